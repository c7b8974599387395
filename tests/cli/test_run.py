"""`stockade run`: the words of its command line, and the whole of it from outside."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.cli import complain, main
from stockade.cli.run import OPTIONS, build_parser, inside, parse
from stockade.core.errors import PolicyError, StockadeError
from stockade.core.values import Policy, Root
from walls.boxes import require, scratch

TAKES_VALUE = [option for option, metavar, _, _ in OPTIONS if metavar]
FLAGS = [option for option, metavar, _, _ in OPTIONS if not metavar]
SINGLE = {"--policy", "--wall", "--workspace", "--mode", "--image", "--agent", "--sign", "--receipt"}

# ---- words ------------------------------------------------------------------------------------------------------------------------

plain = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
command = st.lists(plain.filter(lambda word: word != "--"), min_size=1, max_size=5)
given_option = st.one_of(
    st.tuples(st.sampled_from(FLAGS), st.just(None), st.just(False)),
    st.tuples(st.sampled_from(TAKES_VALUE), plain, st.just(True)),
    # argparse takes a separate word as a value only if it does not look like an option; ours takes any but `--`.
    st.tuples(st.sampled_from(TAKES_VALUE), plain.filter(lambda value: value[:1] != "-"), st.just(False)),
)


@given(st.lists(given_option, max_size=6), command)
def test_the_fast_path_reads_as_argparse_does(options: list[tuple[str, str | None, bool]], words: list[str]) -> None:
    argv: list[str] = []
    for option, value, joined in options:
        argv += [option] if value is None else [f"{option}={value}"] if joined else [option, value]
    argv += ["--", *words]
    wanted = vars(build_parser().parse_args(argv))
    names = [option for option, _, _ in options]
    try:
        found, rest = parse(argv)
    except StockadeError as error:
        assert error.code == "cli.usage"
        assert any(names.count(single) > 1 for single in SINGLE) or {"--tty", "--no-tty"} <= set(names)
        return
    assert rest == wanted["command"] == words
    for option in TAKES_VALUE:
        assert found.get(option) == wanted[option[2:].replace("-", "_")]
    for flag in FLAGS:
        assert bool(found.get(flag)) == wanted[flag[2:].replace("-", "_")]


@given(
    st.lists(plain | st.sampled_from([*TAKES_VALUE, *FLAGS, "--", "-", "--=", "---"]), max_size=8).filter(
        lambda words: not {"-h", "--help"} & {w.partition("=")[0] for w in words}
    )
)
def test_any_words_are_read_or_refused_by_a_typed_error(argv: list[str]) -> None:
    try:
        found, rest = parse(argv)
    except StockadeError as error:
        assert error.code == "cli.usage" and error.hint
        return
    assert rest
    assert argv[len(argv) - len(rest) :] == rest  # the command's own words are never touched
    assert set(found) <= {*TAKES_VALUE, *FLAGS}


@given(command, st.lists(st.sampled_from(["--", "--json", "--mode", "-x"]), max_size=3))
def test_what_follows_the_separator_belongs_to_the_command(words: list[str], extra: list[str]) -> None:
    assert parse(["--json", "--", *extra, *words]) == ({"--json": ["1"]}, [*extra, *words])


def test_without_a_separator_the_first_word_that_is_no_option_begins_the_command() -> None:
    assert parse(["--mode", "ro", "ls", "--json", "--", "-l"]) == ({"--mode": ["ro"]}, ["ls", "--json", "--", "-l"])


@pytest.mark.parametrize(
    ("argv", "says", "hint"),
    [
        (["--worksapce", "x", "--", "ls"], "--worksapce", "Did you mean --workspace?"),
        (["--recipt=f", "--", "ls"], "--recipt", "Did you mean --receipt?"),
        (["--limits", "memory=1", "--", "ls"], "--limits", "Did you mean --limit?"),
        (["--qqq", "--", "ls"], "--qqq", "stockade run --help"),
        (["-v", "ls"], "-v", "--help"),
        (["--json=1", "--", "ls"], "takes no value", "alone"),
        (["--mode"], "needs a value", "MODE"),
        (["--mode", "--", "ls"], "needs a value", "MODE"),
        (["--mode=ro", "--mode=rw", "ls"], "twice", "once"),
        (["--tty", "--no-tty", "ls"], "contradict", "one"),
        ([], "no command", "COMMAND"),
        (["--json", "--"], "no command", "COMMAND"),
    ],
)
def test_mistakes_say_what_is_meant(argv: list[str], says: str, hint: str) -> None:
    with pytest.raises(StockadeError) as caught:
        parse(argv)
    assert caught.value.code == "cli.usage"
    assert says in caught.value.message
    assert hint in caught.value.hint


def test_no_option_runs_anything_outside_or_switches_a_wall_off() -> None:
    """There is no escape hatch to find: every option is one of these (M15)."""
    assert {option for option, _, _, _ in OPTIONS} == {
        *(
            "--policy",
            "--wall",
            "--workspace",
            "--mode",
            "--ro",
            "--rw",
            "--agent",
            "--allow",
            "--image",
            "--preset",
            "--sign",
            "--env",
            "--limit",
        ),
        *("--receipt", "--tty", "--no-tty", "--json", "--no-project"),
    }


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    assert not [option for option, _, _, _ in OPTIONS if option not in said]


def _stderr(call: Callable[[], object]) -> str:
    with contextlib.redirect_stderr(io.StringIO()) as said:
        call()
    return said.getvalue()


def test_errors_are_one_json_object_when_asked_for() -> None:
    said = _stderr(lambda: main(["run", "--json", "--mdoe", "x", "--", "ls"]))
    assert json.loads(said)["error"] == "cli.usage"
    said = _stderr(lambda: main(["run", "--mdoe", "x", "--", "ls", "--json"]))  # that one is the command's
    assert said.startswith("stockade: ")
    with_place = PolicyError("x", code="policy.x", file="f", line=3, key="k")
    said = _stderr(lambda: complain(with_place, as_json=True))
    assert json.loads(said) == {"error": "policy.x", "message": "f:3: x", "hint": "", "file": "f", "line": 3, "key": "k"}


@given(st.text(max_size=60))
def test_no_control_character_reaches_the_terminal_with_an_error(text: str) -> None:
    said = _stderr(lambda: complain(StockadeError(text.replace("\n", ""), code="x", hint=text)))
    assert all(letter.isprintable() or letter == "\n" for letter in said)


@pytest.mark.parametrize(
    ("word", "hint"), [("rnu", "stockade run"), ("polcy", "stockade policy"), ("ls", "stockade run -- ls"), ("--nope", "--help")]
)
def test_a_word_that_is_no_command_gets_the_nearest(word: str, hint: str) -> None:
    said = _stderr(lambda: main([word]))
    assert hint in said


# ---- from outside -----------------------------------------------------------------------------------------------------------------


class Stockade:
    """The command line in a process of its own, with a home and state of its own."""

    def __init__(self, root: Path) -> None:
        self.root, self.work = root, root / "work"
        self.work.mkdir()
        (root / "home").mkdir()

    def __call__(self, *argv: str, stdin: bytes | None = None, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[bytes]:
        keep = {name: os.environ[name] for name in ("PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH") if name in os.environ}
        environment = {
            **keep,
            "HOME": f"{self.root}/home",
            "XDG_CACHE_HOME": f"{scratch()}/xdg_cache_home",
            "XDG_STATE_HOME": f"{self.root}/state",
            **env,
        }
        return subprocess.run(
            [sys.executable, "-m", "stockade", *argv], cwd=cwd or self.work, env=environment, input=stdin, capture_output=True, timeout=60
        )


@pytest.fixture
def stockade(tmp_path: Path) -> Stockade:
    require()
    return Stockade(tmp_path)


@pytest.mark.wall
def test_it_runs_a_command_in_the_current_folder(stockade: Stockade) -> None:
    done = stockade("run", "--", "/bin/sh", "-c", "pwd; cat > made; exit 3", stdin=b"data")
    assert (done.returncode, done.stdout.decode().strip()) == (3, str(stockade.work))
    assert (stockade.work / "made").read_bytes() == b"data"


@pytest.mark.wall
def test_a_program_that_is_not_there_is_explained(stockade: Stockade) -> None:
    done = stockade("run", "--", "no-such-program")
    assert done.returncode == 127
    assert b"no-such-program: not found inside the sandbox" in done.stderr and b"--ro" in done.stderr
    (stockade.work / "file").write_text("")
    done = stockade("run", "--", "./file")
    assert done.returncode == 126 and b"not executable" in done.stderr
    without = b"stockade run mini-swe-agent, without --"  # of whose installation nothing is shown by itself
    assert without in stockade("run", "--", "mini-swe-agent").stderr


def test_what_there_is_inside_is_said_for_each_wall() -> None:
    assert "/usr, the workspace" in inside(Policy(), "node")
    assert "oci.example/x" in inside(Policy(wall="gvisor", root=Root(image="oci.example/x")), "node")
    for machine in (Policy(wall="vm"), Policy(oversight="none")):
        said = inside(machine, "node")
        assert "nothing of the host's /usr" in said and "stockade vm build --include" in said


@pytest.mark.wall
def test_json_tells_how_it_ended(stockade: Stockade) -> None:
    done = stockade("run", "--json", "--", "/bin/sh", "-c", "exit 5")
    said = json.loads(done.stderr)
    assert (said["exit"], said["outcome"]) == (5, "")
    assert said["session"].startswith("s")
    done = stockade("run", "--json", "--limit", "wall_time=1s", "--", "sleep", "60")
    assert done.returncode == 137
    assert "wall time" in json.loads(done.stderr)["outcome"]


@pytest.mark.wall
def test_mounts_modes_limits_and_variables_from_the_command_line(stockade: Stockade) -> None:
    data = stockade.root / "data"
    data.mkdir()
    (data / "f").write_text("here")
    done = stockade("run", "--ro", f"{data}:/mnt/data", "--", "/bin/sh", "-c", "cat /mnt/data/f; echo x > /mnt/data/f")
    assert done.stdout == b"here" and done.returncode != 0
    done = stockade("run", "--rw", str(data), "--", "/bin/sh", "-c", f"echo new > {data}/g")
    assert (done.returncode, (data / "g").read_text()) == (0, "new\n")
    assert stockade("run", "--mode", "ro", "--", "touch", "x").returncode != 0
    done = stockade(
        "run", "--env", "GIVEN=value", "--env", "PASSED", "--", "/bin/sh", "-c", 'echo "$GIVEN $PASSED $OTHER"', PASSED="on", OTHER="never"
    )
    assert done.stdout == b"value on \n"
    done = stockade("run", "--limit", "open_files=64", "--", "/bin/sh", "-c", "ulimit -n")
    assert done.stdout == b"64\n"


@pytest.mark.wall
def test_a_missing_workspace_runs_nothing(stockade: Stockade) -> None:
    done = stockade("run", "--json", "--workspace", "absent", "--", "touch", "ran")
    assert (done.returncode, json.loads(done.stderr)["error"]) == (125, "policy.missing-path")
    done = stockade("run", "--json", "--", "touch", "ran", cwd=stockade.root / "home")
    assert (done.returncode, json.loads(done.stderr)["error"]) == (125, "policy.forbidden-path")
    assert not (stockade.root / "home/ran").exists()


@pytest.mark.wall
def test_a_receipt_is_written(stockade: Stockade) -> None:
    done = stockade("run", "--receipt", "receipt.json", "--", "true")
    assert done.returncode == 0, done.stderr
    receipt = json.loads((stockade.work / "receipt.json").read_text())
    assert receipt


@pytest.mark.wall
def test_a_current_folder_that_is_gone_is_an_error(stockade: Stockade) -> None:
    script = "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); sys.argv[1:] = ['run', '--json', '--', 'true']; from stockade.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", script], cwd=stockade.work, capture_output=True, timeout=30)
    assert (done.returncode, json.loads(done.stderr)["error"]) == (125, "workspace.missing")


@pytest.mark.wall
@pytest.mark.parametrize("home", ["/", "relative", ""])
def test_a_strange_home_runs_nothing_or_stays_confined(stockade: Stockade, home: str) -> None:
    if home != "/":
        try:
            pwd.getpwuid(os.getuid())
        except KeyError:
            pytest.skip("this user is in no password database")
    done = stockade("run", "--json", "--", "/bin/sh", "-c", f"ls {stockade.root}", HOME=home)
    assert b"home" not in done.stdout.split()
    if done.returncode == 125:
        assert json.loads(done.stderr.splitlines()[-1])["error"] != "bug", done.stderr


# ---- agents by their names --------------------------------------------------------------------------------------------------------

FAKE = '#!/bin/sh\necho "$CLAUDE_CONFIG_DIR" "$@"\n'


@pytest.fixture
def claude(stockade: Stockade) -> dict[str, str]:
    """A program called claude on the PATH: variables for a run."""
    (stockade.root / "bin").mkdir()
    (stockade.root / "bin/claude").write_text(FAKE)
    (stockade.root / "bin/claude").chmod(0o755)
    return {"PATH": f"{stockade.root}/bin:{os.environ['PATH']}", "ANTHROPIC_API_KEY": "a-key"}


@pytest.mark.wall
def test_an_agent_by_its_name_gets_what_it_needs(stockade: Stockade, claude: dict[str, str]) -> None:
    done = stockade("run", "--json", "claude", "--version", **claude)
    assert done.returncode == 0, done.stderr
    home, *words = done.stdout.decode().split()
    agent = json.loads(done.stderr)["agent"]
    assert home == agent["home"] == f"{stockade.root}/home/.claude" and agent["kept"] and agent["name"] == "claude"
    assert words[0] == "--dangerously-skip-permissions" and words[-1] == "--version"
    assert agent["argv"][-len(words) + 1 :] == words[:-1]
    done = stockade("run", "claude", **claude)
    assert done.stderr == b""  # not at a terminal: nothing is said between its lines


@pytest.mark.wall
@pytest.mark.parametrize("words", [("--", "claude"), ("/bin/sh", "-c", "claude"), ("./claude",)])
def test_what_is_not_its_own_name_is_any_command(stockade: Stockade, claude: dict[str, str], words: tuple[str, ...]) -> None:
    done = stockade("run", "--json", *words, **claude)
    assert done.returncode == 127 and done.stdout == b"" and "agent" not in json.loads(done.stderr.splitlines()[-1])


@pytest.mark.wall
def test_any_command_may_have_what_an_agent_needs(stockade: Stockade, claude: dict[str, str]) -> None:
    done = stockade("run", "--agent", "claude", "--", "/bin/sh", "-c", 'echo "$CLAUDE_CONFIG_DIR $ANTHROPIC_API_KEY"', **claude)
    assert done.stdout.decode().startswith(f"{stockade.root}/home/.claude stockade-placeholder-anthropic-"), done.stderr


def test_an_agent_that_is_not_there_is_an_error_that_says_what_to_do(stockade: Stockade) -> None:
    done = stockade("run", "--json", "claude", PATH="/usr/bin:/bin", ANTHROPIC_API_KEY="a-key")
    found = json.loads(done.stderr)
    assert (done.returncode, found["error"]) == (125, "agent.missing") and "stockade run -- claude" in found["hint"]
