"""`stockade approvals stats`: what a person and a program read of it."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from record.test_measures import answer, ask, canary, event, start
from stockade.cli import approvals
from stockade.cli.approvals_stats import shown
from stockade.record.ledger import LOG, Ledger
from stockade.record.measures import added
from stockade.record.measures import approvals as measures

EVENTS = [
    start(),
    ask(1), answer(1, seconds=1.0),
    ask(2, "b", "high"), answer(2, seconds=8.0),
    ask(3, "b", "high"), answer(3, "refused", seconds=70.0),
    ask(4, "c"), answer(4, "timed_out", "rule", 30.0),
    *canary(5, approved=True), *canary(6, approved=False),
    *(event("egress", effect="allow", method="GET") for _ in range(58)),
    event("workspace.report", changed=11),
    event("session.exit"),
]  # fmt: skip


def stats(directory: Path, *words: str) -> int:
    return approvals.main(["stats", "--ledger", str(directory), *words])


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with closing(Ledger(str(tmp_path / "ledger"))) as ledger:
        for one in EVENTS:
            ledger.append({name: value for name, value in one.items() if name != "time"})
        ledger.append({"kind": "session.start", "session": "two", "command": []})
    return tmp_path / "ledger"


def test_a_person_reads_a_table_and_plots(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats(directory) == 0
    found = capsys.readouterr()
    assert found.err == "" and "\x1b" not in found.out
    lines = found.out.splitlines()
    assert lines[0] == "2 sessions, 0 minutes at work"
    assert any(line.startswith("A person was asked 6 times") for line in lines)
    assert "     1 again, what the session had asked before" in lines and "     1 timed out, and denied by that" in lines
    assert "     1 approved, and refused or revoked later" in lines
    assert [line.split() for line in lines if line.endswith(("commands", "connections", "files written"))] == [
        ["at", "least", "1", "commands"], ["at", "least", "58", "connections"], ["at", "least", "11", "files", "written"],
    ]  # fmt: skip
    assert "  so 91% fewer, by what the ledger knows" in lines
    assert any(line.startswith("Approved: 2 of 3, 67% (95% interval: 21% to 94%)") for line in lines)
    assert [line for line in lines if line.startswith(("  low", "  high"))] == [
        f"  low           {'█' * 24}  1 of 1, 100%",
        f"  high          {'█' * 12}{' ' * 12}  1 of 2, 50%",
    ]
    assert "Answered: half within 4.0 s, nine in ten within 1.2 min" in lines
    assert f"  under 2 s     {'█' * 4}▊{' ' * 19}  1" in lines and f"  longer        {'█' * 4}▊{' ' * 19}  1" in lines
    assert any(line.startswith("Requests made up to be refused, and refused: 1 of 2, 50%") for line in lines) and "     1 approved" in lines


def test_what_a_reviewer_did_is_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = [
        start(),
        ask(1), answer(1, by="reviewer"),
        ask(2), answer(2, "canary", "reviewer", canary=True, caught=True),
        ask(3), answer(3, "canary", "reviewer", canary=True, caught=False),
        event("egress", effect="allow", method="POST", by="reviewer"),
        event("egress", effect="allow", method="GET"),
    ]  # fmt: skip
    with closing(Ledger(str(tmp_path / "ledger"))) as ledger:
        for one in events:
            ledger.append({name: value for name, value in one.items() if name != "time"})
    assert stats(tmp_path / "ledger") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "     3 answered by a reviewer instead" in lines and any(line.startswith("A person was asked 0 times") for line in lines)
    assert any(line.startswith("Refused by the reviewer, which people were not shown: 1 of 2, 50%") for line in lines)
    assert [line.split() for line in lines if line.endswith("connections")] == [["at", "least", "1", "connections"]]


def test_a_program_reads_every_number(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats(directory, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["asked"], found["prompts"], found["repeats"], found["reversals"]) == (6, 6, 1, 1)
    assert found["by_risk"]["high"]["rate"] == 0.5 and found["times"]["bins"] == [1, 2, 1, 0, 1]
    assert found["canaries"] == {
        "seeded": 2,
        "missed": 1,
        "unanswered": 0,
        "vigilance": found["canaries"]["vigilance"],
        "reviewer": found["canaries"]["reviewer"],
    }
    assert found["baseline"]["writes"] == {"least": 11, "whole": False}


def test_some_sessions_only(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def asked(*words: str) -> tuple[int, int]:
        assert stats(directory, "--json", *words) == 0
        found = json.loads(capsys.readouterr().out)
        return found["sessions"], found["asked"]

    assert asked("--since", "1h") == (2, 6) and asked("--since", "2999-01-01") == (0, 0)
    assert asked("--session", "on") == (1, 6) and asked("--session", "two") == (1, 0) and asked("--session", "no") == (0, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--session", "two"], "Nobody was asked anything: 1 session, 0 minutes at work."),
        (["--session", "none"], "Nobody was asked anything: there is no such session."),
    ],
)
def test_that_nobody_was_asked_is_said(directory: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats(directory, *words) == 0
    assert capsys.readouterr().out == f"{said}\n"


def test_without_a_ledger_nothing_is_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stats(tmp_path / "none") == 0
    assert capsys.readouterr().out == f"Nothing is recorded in {tmp_path}/none yet.\n"
    assert stats(tmp_path / "none", "--json") == 0
    assert json.loads(capsys.readouterr().out)["asked"] == 0
    assert not (tmp_path / "none").exists()


def test_a_ledger_that_cannot_be_read_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / LOG).mkdir()
    assert stats(tmp_path) == 125
    assert "cannot read the ledger" in capsys.readouterr().err
    assert stats(tmp_path, "--json") == 125
    assert json.loads(capsys.readouterr().out)["error"] == "ledger.unreadable"


def test_a_wrong_time_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        stats(tmp_path, "--since", "yesterday")
    assert ended.value.code == 2 and "'yesterday' is no time" in capsys.readouterr().err


def lines(events: list[dict[str, Any]], **more: Any) -> Iterator[str]:
    return shown(measures(added(json.dumps(one).encode() for one in events).values()), lambda text, colour: text, **more)


def test_without_block_characters_bars_are_ascii() -> None:
    assert all(line.isascii() for line in lines(EVENTS, blocks=False))
    assert any("#" * 24 in line for line in lines(EVENTS, blocks=False))


def test_what_is_not_known_is_not_zero() -> None:
    assert "         unknown  connections" in [*lines([start(), ask(1), answer(1)])]
    assert "  how many fewer it was is not known" in [*lines([ask(1), answer(1)])]
    assert [*lines([{**ask(1), "key": 5}])][-1] == "1 event about approvals could not be understood."


DRIVER = "import sys; from cli.test_approvals_stats import *; sys.exit(stats(Path(sys.argv[1])))"


@pytest.mark.parametrize(("variables", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_colour_only_where_a_terminal_is_and_wants_it(directory: Path, variables: dict[str, str], coloured: bool) -> None:
    ours, theirs = pty.openpty()
    env = {
        **{name: value for name, value in os.environ.items() if name != "NO_COLOR"},
        "TERM": "xterm",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run([sys.executable, "-c", DRIVER, str(directory)], stdout=theirs, env={**env, **variables}, timeout=60)
    os.close(theirs)
    said = b""
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            while piece := terminal.read(65536):
                said += piece
        except OSError:  # EIO: everything was read, and nobody holds the other end
            pass
    assert done.returncode == 0 and b"Approved: 2 of 3" in said
    assert (b"\x1b[31m" in said) == coloured == (b"\x1b" in said)
