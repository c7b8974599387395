from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import stockade
from policy.support import Places
from stockade.cli.policy import build_parser, main
from stockade.core import places as core_places


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(core_places, "MANAGED_POLICY", str(tmp_path / "etc/stockade/policy.toml"))
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    return Places(tmp_path, monkeypatch)


def test_check_says_what_is_wrong(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.write(project="[[egress]]\nhots = 'a.b'\n[limit]\n")
    assert main(["check", "project.toml"]) == 1
    error = capsys.readouterr().err
    assert (
        f"{places.project}:3: unknown key egress[0].hots\n  Did you mean host?" in error
        and f"{places.project}:4: unknown key limit" in error
    )
    assert main(["check", "project.toml", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and [(one["line"], one["key"]) for one in found["errors"]] == [(3, "egress[0].hots"), (4, "limit")]
    assert main(["check", "gone.toml"]) == 1


def test_check_warns(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.write(user='[[egress]]\npreset = "anthropic"\n')
    (places.work / "stockade.toml").write_text("nonsense = [")
    assert main(["check"]) == 0
    out = capsys.readouterr().out
    assert (
        "ANTHROPIC_API_KEY is not set here" in out
        and "./stockade.toml was not read" in out
        and "stockade trust" in out
        and f"ok: {places.own}" in out
    )
    assert main(["check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"][0]["error"] == "policy.no-secret"


def test_check_of_ones_own_file_reads_it_once(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.write(user='[caps]\nmodes = ["rw"]\n')
    assert main(["check", str(places.own), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"] == [str(places.own)]


def test_check_of_a_managed_draft(places: Places) -> None:
    places.write(managed='[caps]\nmodes = ["ro"]\n', user='[workspace]\nmode = "rw"\n')
    assert main(["check", str(places.managed), "--managed"]) == 1
    places.write(user="")
    assert main(["check", str(places.managed), "--managed"]) == 0


def test_show_names_origins(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.write(user='[limits]\nmemory = "1 GiB"\n[[egress]]\npreset = "anthropic"\n')
    assert main(["show"]) == 0
    out = capsys.readouterr().out
    assert f'memory = "1 GiB"  # {places.own}:3 (limits.memory)' in out
    assert f"[[egress]]  # {places.own}:5 (egress[0].preset), preset anthropic\nhost = " in out
    assert "processes = 1024  # built-in" in out and "\x1b" not in out
    assert main(["show", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"]["limits"]["memory"] == 1 << 30 and found["origins"]["limits.memory"]["line"] == 3


def test_what_show_prints_is_a_policy(places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.test/simple")
    (places.home / 'odd "name"').mkdir()
    places.write(
        user='[[mount]]\npath = "~/odd \\"name\\""\nat = "/x"\n[[egress]]\npreset = "pypi"\n[[egress]]\npreset = "anthropic"\n'
        '[[egress]]\nhost = "a.b"\npaths = ["/"]\neffect = "deny"\n[[egress]]\nhost = "a.b"\ngrpc = ["a.Svc/Get", "b.Svc/*"]\nmax_download = "3 KiB"\n[environment]\nset = {A = "ü"}\n'
        '[[tool]]\nname = "mcp__*"\nmatch = {"a b" = "x\\\\*", command = "rm \\"*"}\neffect = "ask"\npeople = true\n[[tool]]\nname = "Bash"\neffect = "deny"\n'
    )
    before = places.compile().policy
    assert main(["show"]) == 0
    text = capsys.readouterr().out
    names = before.environment.pass_names
    places.own.write_text("version = 1\n" + text.replace(json.dumps(list(names)), "[]"))
    after = places.compile().policy

    def bare(policy: object) -> str:
        import re

        return re.sub(r"origin=Origin\([^)]*\)|sources=.*", "", repr(policy))

    assert bare(after) == bare(before)


def test_explain_names_rule_file_line_and_the_narrow_grant(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.write(user='[[egress]]\npreset = "anthropic"\n')
    assert main(["explain", "POST https://api.anthropic.com/v1/files"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("DENY  POST https://api.anthropic.com/v1/files\n") and "path-not-granted" in out
    assert f"{places.own}:3 (egress[0].preset), preset anthropic" in out and '    paths = ["/v1/files"]' in out
    assert main(["explain", "POST", "https://api.anthropic.com/v1/messages?beta=true", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["effect"], found["origin"]["line"], found["origin"]["preset"]) == ("allow", 3, "anthropic")


def test_explain_says_what_a_tool_call_would_be_answered(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.write(user='[[tool]]\nname = "Bash"\nmatch = { command = "git push*" }\neffect = "ask"\n')
    for question, status, says in (
        ("tool Bash command=git push --to=x", 1, f"ASK  tool Bash command=git push --to=x\n  rule   tool {places.own}:2 (tool[0])"),
        ("tool Bash command=git pull", 0, "ALLOW  tool Bash command=git pull\n  rule   no-tool-rule\n  where  built-in"),
        ("tool Bash", 0, "no-tool-rule"),
    ):
        assert main(["explain", question]) == status
        assert says in capsys.readouterr().out
    assert main(["explain", "tool B\u0430sh"]) == 125 and "is no name of a tool" in capsys.readouterr().err


@pytest.mark.parametrize(
    "question",
    [
        "GET https://new.example.com/a/b",
        "PUT http://new.example.com:8080/x",
        "GET https://a.example.com/other",
        "DELETE https://a.example.com/x",
        "GET https://a.example.com/x?q=1",
        "GRPC https://a.example.com/a.Svc/Get",
    ],
)
def test_the_suggested_grant_is_a_valid_rule_that_allows_it(places: Places, capsys: pytest.CaptureFixture[str], question: str) -> None:
    rule = '[[egress]]\nhost = "a.example.com"\npaths = ["/x"]\nquery = "none"\n'
    places.write(user=rule)
    assert main(["explain", question, "--json"]) == 1
    grant = json.loads(capsys.readouterr().out)["grant"]
    places.write(user=rule + grant)
    assert main(["explain", question]) == 0


def test_a_denial_beats_a_grant(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    rule = '[[egress]]\nhost = "a.example.com"\npaths = ["/**"]\n'
    places.write(user=rule + rule + 'effect = "deny"\n')
    assert main(["explain", "GET https://a.example.com/x"]) == 1
    out = capsys.readouterr().out
    assert "denied-by-rule" in out and f"{places.own}:5" in out and "narrowest" not in out


@pytest.mark.parametrize(
    ("question", "status", "text"),
    [
        ("write ~/x", 1, 'mode = "rw"'),
        ("read ~/.aws/credentials", 1, "holds credentials"),
        ("write ./new", 0, "is rw"),
        ("GET https://192.0.2.1/", 1, "is an address"),
        ("GET https://u:p@a.b/", 1, "user name or password"),
        ("GET https://a.b", 1, "host-not-granted"),
        ("GET ftp://a.b/", 125, "Only http and https"),
        ("why", 125, "not a question"),
        ("read", 125, "not a question"),
    ],
)
def test_questions(places: Places, capsys: pytest.CaptureFixture[str], question: str, status: int, text: str) -> None:
    assert main(["explain", question]) == status
    assert text in "".join(capsys.readouterr())


def test_names_cannot_move_the_cursor(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "read ../\x1b[2J\x07x"]) == 1
    assert "\x1b" not in capsys.readouterr().out


def test_a_broken_policy_is_no_answer(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    places.write(user="nonsense = 1\n")
    for command in (["show"], ["explain", "read x"]):
        assert main(command) == 125
    assert "unknown key nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_on_terminals_only(places: Places, variables: dict[str, str], coloured: bool) -> None:
    master, slave = pty.openpty()
    code = "import sys; from stockade.cli.policy import main; sys.exit(main(sys.argv[1:]))"
    environment = {**{name: value for name, value in os.environ.items() if name != "NO_COLOR"}, "TERM": "xterm", **variables}
    environment["PYTHONPATH"] = str(Path(stockade.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", code, "explain", "read x"], stdout=slave, env=environment, cwd=places.work, check=False)
    os.close(slave)
    out = os.read(master, 65536)
    os.close(master)
    assert done.returncode == 0 and (b"\x1b[32m" in out) is coloured and b"ALLOW" in out


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args([])
    assert caught.value.code == 2
    capsys.readouterr()


def test_with_an_agent_its_layer_is_shown_and_explained(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (places.root / "bin").mkdir()
    (places.root / "bin/claude").write_text("#!/bin/sh\n")
    (places.root / "bin/claude").chmod(0o755)
    monkeypatch.setenv("PATH", str(places.root / "bin"))
    assert main(["show", "--agent", "claude"]) == 0
    out = capsys.readouterr().out
    assert f"# agent claude, its state in {places.home}/.claude: private, kept for this workspace" in out
    assert (
        "# agent:claude (egress[0].preset), preset anthropic" in out
        and 'set.DISABLE_TELEMETRY = "1"  # agent:claude (environment.set.DIS' in out
    )
    ask = "POST https://api.anthropic.com/v1/messages"
    assert main(["explain", ask]) == 1
    assert main(["explain", "--agent", "claude", ask]) == 0
    assert "agent:claude (egress[0].preset), preset anthropic" in capsys.readouterr().out
    places.write(user='[[egress]]\nhost = "api.anthropic.com"\npaths = ["/**"]\neffect = "deny"\n')
    assert main(["explain", "--agent", "claude", ask]) == 1
    assert f"{places.own}:2" in capsys.readouterr().out
    assert main(["show", "--agent", "clod", "--json"]) == 125
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"] == "agent.unknown"
