"""`stockade trust` from outside, and what a start makes of it (M17): nothing that a repository holds is a vote, and what is trusted is exactly what was seen."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from session.screen import Screen
from session.supervised import Terminal
from stockade.cli.trust import name, text
from stockade.core import brought, places
from stockade.core.brought import Entry
from stockade.core.errors import StockadeError, Tampered
from stockade.policy import files
from stockade.record.reading import Reader
from stockade.session import trust
from stockade.walls.workspace.brought import collect
from walls.boxes import require, scratch

RULE = 'version = 1\n[[egress]]\nhost = "{}"\npaths = ["/x"]\n'
STOCKADE = [sys.executable, "-P", "-m", "stockade"]


class Project:
    """A project, and a home and state of its own outside it, which are also this process's."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.top = root, root / "project"
        for variable, value in self.env.items():
            monkeypatch.setenv(variable, value)
        self.top.mkdir()
        (root / "home").mkdir()
        self.work = self.top
        self.write("stockade.toml", RULE.format("project.test"))
        self.write(".mcp.json", '{"mcpServers": {}}\n')

    def write(self, name: str, content: str) -> Path:
        path = self.top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        return path

    @property
    def env(self) -> dict[str, str]:
        keep = {name: os.environ[name] for name in ("PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH") if name in os.environ}
        return {
            **keep,
            "HOME": f"{self.root}/home",
            "XDG_CACHE_HOME": f"{scratch()}/xdg_cache_home",
            "XDG_STATE_HOME": f"{self.root}/state",
        }

    def __call__(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*STOCKADE, *words], cwd=cwd or self.top, env=self.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )

    @property
    def digest(self) -> str:
        return files.digest(collect(str(self.top)))

    def trust(self) -> None:
        trust.grant(str(self.top), collect(str(self.top)), "digest")

    def hosts(self, cwd: Path | None = None, *, project: bool = True) -> list[str]:
        """Which hosts a start here would let out, or the code of the error that stops it."""
        try:
            return [grant.host for grant in trust.policy(str(cwd or self.top), project=project).grants]
        except StockadeError as error:
            return [error.code]

    def events(self) -> list[dict[str, Any]]:
        """What the ledger says of trust."""
        with closing(Reader(places.state("ledger"))) as reader:
            return [event for line in reader.lines() if (event := json.loads(line))["kind"] == "trust"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    require()
    return Project(tmp_path.resolve(), monkeypatch)


Open = Callable[..., Terminal]


@pytest.fixture
def person(project: Project) -> Iterator[Open]:
    """Somebody at a terminal, who has called `stockade trust`."""
    opened: list[Terminal] = []

    def make(before: str = "") -> Terminal:
        opened.append(Terminal(project, (), words=[*STOCKADE, "trust"]))  # type: ignore[arg-type]  # a place too: it has a folder and an environment
        opened[-1].type(before)
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def asked(person: Terminal) -> str:
    """Everything up to the question, without colours."""
    found = person.expect(r"Trust [^\r\n]*project\? Type yes", 60)
    return re.sub(r"\x1b\[\d*m", "", found.string.decode())


# ---- a person -------------------------------------------------------------------------------------------------------------------------

pytestmark = pytest.mark.wall


def test_a_person_sees_what_it_brings_and_says_yes(project: Project, person: Open) -> None:
    assert project.hosts() == []
    somebody = person()
    seen = asked(somebody)
    assert 'host = "project.test"' in seen and "mcpServers" in seen
    somebody.type("yes\n")
    somebody.expect("Trusted")
    assert somebody.wait() == 0
    assert project.hosts() == ["project.test"] and project.hosts(project=False) == []
    done = project("policy", "show", "--json")
    assert [grant["host"] for grant in json.loads(done.stdout)["policy"]["grants"]] == ["project.test"], done.stderr
    assert project("policy", "explain", "GET https://project.test/x").returncode == 0
    assert project("policy", "explain", "--no-project", "GET https://project.test/x").returncode == 1
    assert project("gate", "explain", "https://project.test/x").returncode == 0
    assert project("gate", "explain", "--no-project", "https://project.test/x").returncode == 1
    done = project("run", "--", "true")
    assert done.returncode == 0, done.stderr
    (event,) = project.events()
    assert (event["outcome"], event["by"], event["path"], event["files"]) == (
        "granted",
        "person",
        str(project.top),
        ["stockade.toml", ".mcp.json"],
    )


@pytest.mark.parametrize("answer", ["no\n", "\n", "y\n", "\x04"])
def test_anything_else_is_no(project: Project, person: Open, answer: str) -> None:
    somebody = person()
    asked(somebody)
    somebody.type(answer)
    somebody.expect("Not trusted")
    assert somebody.wait() == 1
    assert project.hosts() == [] and [event["outcome"] for event in project.events()] == ["refused"]


def test_what_was_typed_before_the_question_is_no_answer(project: Project, person: Open) -> None:
    somebody = person(before="yes\nyes\n")
    asked(somebody)
    time.sleep(0.3)
    somebody.type("no\n")
    assert somebody.wait() == 1 and project.hosts() == []


def test_without_a_person_nothing_is_trusted(project: Project) -> None:
    done = subprocess.run([*STOCKADE, "trust"], cwd=project.top, env=project.env, input="yes\n", capture_output=True, text=True, timeout=60)
    assert done.returncode == 125 and "there is none" in done.stderr and "--digest" in done.stderr
    assert project.hosts() == []


def test_a_script_pins_a_digest(project: Project) -> None:
    before = project.digest
    assert json.loads(project("trust", "--json").stdout)["digest"] == before
    project.write(".mcp.json", '{"mcpServers": {"evil": {"command": "evil"}}}\n')
    done = project("trust", "--digest", before)
    assert done.returncode == 125 and "not the one that you named" in done.stderr and project.hosts() == []
    for wrong in (project.digest[:16], ""):
        assert project("trust", "--json", f"--digest={wrong}").returncode in (1, 125) and project.hosts() == []
    assert project("trust", "--digest", project.digest).returncode == 0 and project.hosts() == ["project.test"]
    assert [(event["outcome"], event["by"]) for event in project.events()][-1] == ("granted", "digest")


# ---- what is trusted is what was seen ---------------------------------------------------------------------------------------------------

CHANGES: list[tuple[str, Callable[[Project], object], str]] = [
    ("the policy", lambda p: p.write("stockade.toml", RULE.format("evil.test")), "stockade.toml (changed)"),
    ("a tool server", lambda p: p.write(".mcp.json", "{}"), ".mcp.json (changed)"),
    ("a new hook", lambda p: p.write(".claude/settings.json", "{}"), ".claude/settings.json (new)"),
    ("a file that is gone", lambda p: (p.top / ".mcp.json").unlink(), ".mcp.json (gone)"),
    ("a mode", lambda p: (p.top / ".mcp.json").chmod(0o755), ".mcp.json (changed)"),
    ("a link in its place", lambda p: (p.top / ".mcp.json").rename(p.top / "x") and (p.top / ".mcp.json").symlink_to("x"), ".mcp.json (changed)"),
    ("a pipe in its place", lambda p: ((p.top / ".mcp.json").unlink(), os.mkfifo(p.top / ".mcp.json")), ".mcp.json (changed)"),
    ("git's config", lambda p: p.write(".git/config", "[core]\n\tfsmonitor = ./evil\n"), ".git/config (new)"),
    ("another common directory", lambda p: p.write(".git/commondir", "../meta"), ".git/commondir (new)"),
    ("a git file", lambda p: p.write(".git", "gitdir: ../meta"), ".git (new)"),
    ("a folder that becomes a link", lambda p: ((p.root / "c").mkdir(), (p.top / ".claude").symlink_to("../c")), ".claude (new)"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "says"), [change[1:] for change in CHANGES], ids=[change[0] for change in CHANGES])
def test_any_change_takes_trust_back(project: Project, change: Callable[[Project], object], says: str) -> None:
    project.trust()
    project.write("src/main.py", "print()")  # twin: what no tool obeys may change
    project.write("CLAUDE.md", "Be kind.")
    assert project.hosts() == ["project.test"]
    change(project)
    with pytest.raises(StockadeError) as caught:
        trust.policy(str(project.top))
    assert caught.value.code == "trust.changed" and says in caught.value.message and "--no-project" in caught.value.hint
    event = project.events()[-1]
    assert event["outcome"] == "changed" and event["files"] == [says]
    assert project.hosts(project=False) == []


def test_what_changed_runs_nothing(project: Project) -> None:
    project.trust()
    project.write(".mcp.json", "{}")
    done = project("run", "--json", "--", "touch", "ran")
    assert (done.returncode, json.loads(done.stderr)["error"]) == (125, "trust.changed") and not (project.top / "ran").exists()
    assert json.loads(project("trust", "--json").stdout)["state"] == "changed"
    assert project("policy", "check").returncode == 1


def test_what_changed_is_shown_against_what_was_trusted_and_can_be_trusted_anew(project: Project, person: Open) -> None:
    project.trust()
    project.write("stockade.toml", RULE.format("evil.test"))
    project.write(".envrc", "echo new\n")
    (project.top / ".mcp.json").unlink()
    somebody = person()
    seen = asked(somebody)
    assert '-host = "project.test"' in seen and '+host = "evil.test"' in seen
    assert ".mcp.json  is gone" in seen and "echo new" in seen
    somebody.type("yes\n")
    assert somebody.wait() == 0
    assert project.hosts() == ["evil.test"]


def test_going_back_to_what_was_trusted_is_trusted(project: Project) -> None:
    project.trust()
    project.write(".mcp.json", "{}")
    assert project.hosts() == ["trust.changed"]
    project.write(".mcp.json", '{"mcpServers": {}}\n')
    assert project.hosts() == ["project.test"]


def test_a_run_without_anything_of_the_projects_goes_on(project: Project) -> None:
    project.trust()
    project.write("stockade.toml", "nonsense")
    assert project("run", "--no-project", "--", "true").returncode == 0
    assert project("run", "--no-project", "--policy", "stockade.toml", "--", "true").returncode == 125, "a file that is named is read"


def test_trust_is_taken_back_and_listed_without_a_look_at_the_project(project: Project) -> None:
    project.trust()
    digest = project.digest
    (listed,) = json.loads(project("trust", "--list", "--json").stdout)
    assert (listed["path"], listed["digest"]) == (str(project.top), digest)
    (project.top / "stockade.toml").unlink()
    os.rename(project.top, project.root / "moved")
    done = project("trust", "--revoke", str(project.top), "--json", cwd=project.root)
    assert json.loads(done.stdout) == {"path": str(project.top), "revoked": True}
    assert json.loads(project("trust", "--revoke", str(project.top), "--json", cwd=project.root).stdout)["revoked"] is False
    assert project("trust", "--list", cwd=project.root).stdout == "You trust no folder.\n"


def test_a_policy_that_loosens_is_trusted_in_vain_and_says_so(project: Project) -> None:
    project.write("stockade.toml", 'version = 1\n[[mount]]\npath = "~"\nmode = "rw"\n')
    done = project("trust", "--digest", project.digest)
    assert done.returncode == 0 and "a start in this folder will stop" in done.stdout
    done = project("run", "--json", "--", "touch", "ran")
    assert (
        done.returncode == 125
        and json.loads(done.stderr)["error"] in ("policy.errors", "policy.project")
        and not (project.top / "ran").exists()
    )


# ---- a repository has no vote (M17) -------------------------------------------------------------------------------------------------------


def test_a_folder_above_or_below_or_beside_is_not_trusted_with_it(project: Project) -> None:
    project.write("sub/stockade.toml", RULE.format("below.test"))
    project.trust()
    assert project.hosts(cwd=project.top / "sub") == []
    (project.root / "stockade.toml").write_text(RULE.format("above.test"))
    assert project.hosts() == ["project.test"]


def test_a_copy_elsewhere_is_not_trusted(project: Project) -> None:
    project.trust()
    other = project.root / "other"
    other.mkdir()
    for each in ("stockade.toml", ".mcp.json"):
        (other / each).write_bytes((project.top / each).read_bytes())
    assert project.hosts(cwd=other) == []


def test_a_link_to_the_folder_means_the_folder(project: Project) -> None:
    link = project.root / "link"
    link.symlink_to("project")
    done = project("trust", str(link), "--show", cwd=project.root)
    assert "symbolic link" in done.stdout and str(project.top) in done.stdout
    project.trust()
    assert project.hosts(cwd=link) == ["project.test"]
    link.unlink()
    (project.root / "evil").mkdir()
    (project.root / "evil/stockade.toml").write_text(RULE.format("evil.test"))
    link.symlink_to("evil")
    assert project.hosts(cwd=link) == []


@pytest.mark.parametrize("where", [".stockade", ".git/stockade", ".local/state/stockade", "."])
def test_a_record_of_trust_in_the_project_means_nothing(project: Project, where: str) -> None:
    """Control: the very same record, in the user's own state, is trust."""
    project.trust()
    (record,) = (project.root / "state/stockade/trust").iterdir()
    place = project.write(f"{where}/trust/{record.name}", "")
    place.write_bytes(record.read_bytes())
    assert project.hosts() == ["project.test"]
    record.unlink()
    assert project.hosts() == []


@pytest.mark.parametrize("noted", ["stockade.toml", ".mcp.json", ".claude"])
def test_what_could_change_unseen_cannot_be_trusted(project: Project, noted: str) -> None:
    """A link: its content lies elsewhere. Twin: a file in its place."""
    (project.root / "elsewhere").mkdir()
    (project.top / noted).unlink(missing_ok=True)
    (project.top / noted).symlink_to("../elsewhere")
    with pytest.raises(StockadeError, match="a symbolic link") as caught:
        project.trust()
    assert caught.value.code == "trust.refused" and noted in caught.value.message and project.hosts() == []
    assert [(event["outcome"], event["by"]) for event in project.events()] == [("refused", "rule")]
    (project.top / noted).unlink()
    project.trust()


def test_a_home_cannot_be_trusted(project: Project) -> None:
    done = project("trust", "--json", cwd=project.root / "home")
    assert done.returncode == 125 and json.loads(done.stderr)["error"] == "policy.forbidden-path"


# ---- in this process ----------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own(project: Project) -> Path:
    return project.top


def body(top: Path) -> bytes:
    return collect(str(top))


def test_the_content_that_counts_is_the_one_that_was_trusted(own: Path) -> None:
    trust.grant(str(own), body(own), "digest")
    assert trust.layer(str(own)) == (f"{own}/stockade.toml", RULE.format("project.test").encode())


@pytest.mark.parametrize("at", ["first", "middle", "last", "cut", "swapped", "writable", "link"])
def test_a_record_that_is_not_ours_stops_the_start(own: Path, at: str) -> None:
    trust.grant(str(own), body(own), "digest")
    (record,) = Path(places.state("trust")).iterdir()
    data = bytearray(record.read_bytes())
    if at == "cut":
        record.write_bytes(data[:-1])
    elif at == "swapped":  # somebody else's record under our name
        trust.grant(str(own.parent), body(own), "digest")
        other = next(path for path in record.parent.iterdir() if path != record)
        record.write_bytes(other.read_bytes())
    elif at == "writable":
        record.chmod(0o622)
    elif at == "link":
        record.rename(record.parent / "x")
        record.symlink_to("x")
    else:
        data[{"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[at]] ^= 1
        record.write_bytes(data)
    with pytest.raises(Tampered) as caught:
        trust.layer(str(own))
    assert caught.value.code == "trust.tampered" and "stockade trust" in caught.value.hint


def test_a_state_that_others_can_write_is_refused(own: Path) -> None:
    trust.grant(str(own), body(own), "digest")
    Path(places.state("trust")).chmod(0o777)
    with pytest.raises(StockadeError) as caught:
        trust.layer(str(own))
    assert caught.value.code == "place.unsafe"


def test_what_cannot_be_recorded_is_not_trusted(own: Path) -> None:
    ledger = Path(places.state("ledger"))
    ledger.parent.mkdir(parents=True, mode=0o700)
    ledger.write_text("in the way")
    with pytest.raises(StockadeError):
        trust.grant(str(own), body(own), "digest")
    assert trust.kept(str(own)) is None and trust.layer(str(own)) is None


LIES = {
    "nothing of the kind": b"hello",
    "a name that is not on the list": brought.encode((Entry("src/main.py", "f"),)),
    "a name outside": brought.encode((Entry("../secret", "f"),)),
    "a kind that there is not": b"z 13 0\nstockade.toml\n",
    "half an entry": b"f 13 5\nstockade.toml",
    "too much": b"f 5 5\n" * (1 << 20),
}


@pytest.mark.parametrize("said", LIES.values(), ids=LIES)
def test_a_reader_that_was_taken_over_is_not_believed(own: Path, monkeypatch: pytest.MonkeyPatch, said: bytes) -> None:
    """Its box holds what it does; this is what it says."""

    def lies(*given: Any) -> int:
        os.write(given[5], said)
        return 0

    monkeypatch.setattr("stockade.session.confined.confined", lies)
    with pytest.raises(StockadeError) as caught:
        trust.look(str(own))
    assert caught.value.code == "trust.reader" and "nothing is trusted" in caught.value.hint


def test_a_lie_in_good_form_is_found_at_the_next_start(own: Path) -> None:
    """What a person sees is what is compared: a reader that shows something harmless has it trusted, and that is not what is there."""
    trust.grant(str(own), brought.encode((Entry("stockade.toml", "f", b"version = 1\n"),)), "person")
    with pytest.raises(StockadeError) as caught:
        trust.layer(str(own))
    assert caught.value.code == "trust.changed"


def test_the_reader_sees_the_project_and_nothing_else_and_cannot_write(own: Path) -> None:
    require()
    assert trust.look(str(own)) == body(own)


# ---- text ---------------------------------------------------------------------------------------------------------------------------------


@given(st.text())
def test_no_letter_acts_on_the_terminal(said: str) -> None:
    for shown in (text(said), name(said)):
        assert all(letter.isprintable() and not unicodedata.category(letter).startswith("M") for letter in shown)
    assert name(said).isascii()


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"), ("a\u202eb", "a\\u202eb"), ("a\u200bb", "a\\u200bb"), ("e\u0301", "e\\u0301"), ("\u3164", "\\u3164"), ("\r", "\\r"),
        ("\x07", "\\x07"), ("\x9b31m", "\\x9b31m"), ("\udcff", "\\udcff"), ("caf\u00e9", "caf\u00e9"),
    ],
)  # fmt: skip
def test_what_could_act_is_spelled_out(said: str, shown: str) -> None:
    assert text(said) == shown


def test_a_line_that_is_long_hides_nothing_at_its_end(project: Project) -> None:
    project.write(".mcp.json", '{"command": "ls' + " " * 3000 + '; evil"}')
    done = project("trust", "--show")
    assert "evil" in done.stdout and max(map(len, done.stdout.splitlines())) < 250


def test_a_line_that_is_wider_than_the_terminal_does_not_go_on_where_our_own_begin(project: Project) -> None:
    own = "project: trusted since 2026-01-01 10:00. Nothing has changed."
    project.write(".mcp.json", "\n".join(" " * blanks + letter + own for blanks in range(40, 60) for letter in ("", "\u6f22")))
    somebody = Terminal(project, (), words=[*STOCKADE, "trust", "--show"], size=(60, 24))  # type: ignore[arg-type]  # a place too: it has a folder and an environment
    try:
        somebody.expect("Digest of what it brings", 60)
        screen = Screen(60, 400)
        screen.feed(somebody.whole.decode().replace("\u6f22", "##"))
        assert any(own[:12] in line for line in screen.shown)  # the twin: it is shown
        assert not [line for line in screen.shown if line.startswith(own[:8])]
    finally:
        somebody.close()


def test_a_file_cannot_look_like_the_question(project: Project) -> None:
    project.write(".mcp.json", "\nTrust this? Type yes: \x1b[1A\x1b[2K\n")
    done = project("trust", "--show")
    assert not any(line.startswith("Trust this") for line in done.stdout.splitlines()) and "\x1b" not in done.stdout
