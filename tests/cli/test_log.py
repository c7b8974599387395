"""`stockade log`, as a program: its output is what people and scripts read."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.cli.log import safe
from stockade.record.ledger import LOG, Ledger

EVIL = "evil\x1b]0;owned\x07\x1b[2J\r\n\u202e\x9b31m\udcff"


@pytest.fixture
def directory(tmp_path: Path) -> str:
    found = str(tmp_path / "ledger")
    ledger = Ledger(found)
    ledger.append({"kind": "session.start", "session": "aaaa1111", "argv": ["sh", "-c", EVIL]})
    ledger.append({"kind": "egress", "session": "aaaa1111", "effect": "deny", "host": EVIL, EVIL: EVIL})
    ledger.append({"kind": "session.start", "session": "bbbb2222", "argv": ["true"]})
    ledger.append({"kind": "session.exit", "session": "bbbb2222", "status": 0})
    ledger.close()
    return found


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stockade.cli.log", *arguments]


def run(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), capture_output=True, timeout=60)


def indices(output: bytes) -> list[int]:
    return [json.loads(line)["index"] for line in output.splitlines()]


def test_show_prints_one_harmless_line_an_event(directory: str) -> None:
    done = run("show", "--ledger", directory)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().split("\n")
    assert len(lines) == 5
    assert all(line.isprintable() for line in lines)
    assert "deny" in lines[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [0, 1, 2, 3]),
        (["--session", "bbbb"], [2, 3]),
        (["--session", "bbbb2222", "--kind", "session.exit"], [3]),
        (["--kind", "session"], [0, 2, 3]),
        (["--kind", "egress", "--kind", "session.exit"], [1, 3]),
        (["--kind", "sess"], []),
        (["--limit", "2"], [2, 3]),
        (["--since", "1h"], [0, 1, 2, 3]),
        (["--since", "2999-01-01"], []),
        (["--since", "4102444800"], []),
    ],
)
def test_show_filters(directory: str, options: list[str], expected: list[int]) -> None:
    assert indices(run("show", "--json", "--ledger", directory, *options).stdout) == expected


def test_json_is_the_log_itself(directory: str) -> None:
    assert run("show", "--json", "--ledger", directory).stdout == Path(directory, LOG).read_bytes()


@pytest.mark.parametrize("options", [["--since", "yesterday"], ["--limit", "-1"], ["--since", ""]])
def test_wrong_usage(directory: str, options: list[str]) -> None:
    assert run("show", "--ledger", directory, *options).returncode == 2


def test_nothing_recorded_yet(tmp_path: Path) -> None:
    assert run("show", "--ledger", str(tmp_path / "none")).returncode == 0
    assert run("verify", "--ledger", str(tmp_path / "none")).returncode == 0


def test_foreign_lines_are_not_shown_and_not_hidden(directory: str) -> None:
    with open(Path(directory, LOG), "ab") as log:
        log.write(b"\x1b[2Jgotcha\n" + b"z" * 200_000 + b"\n[]\n")
    done = run("show", "--ledger", directory)
    assert done.returncode == 1
    assert b"gotcha" not in done.stdout
    assert b"stockade log verify" in done.stderr


def on_a_terminal(directory: str, **extra: str) -> bytes:
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"} | {"TERM": "xterm"} | extra
    with subprocess.Popen(command("show", "--ledger", directory), stdout=theirs, stderr=theirs, env=environment) as process:
        process.wait(60)
    output = os.read(ours, 65536)
    os.close(theirs)
    os.close(ours)
    return output


def test_colour_on_a_terminal_only(directory: str) -> None:
    assert b"\x1b[31mdeny\x1b[0m" in on_a_terminal(directory)
    assert b"\x1b" not in on_a_terminal(directory, NO_COLOR="1")


def test_verify_says_fine_or_where(directory: str) -> None:
    pytest.importorskip("cryptography")
    Ledger(directory).checkpoint()
    Ledger(directory).append({"kind": "test"})
    Ledger(directory).checkpoint()
    Ledger(directory).append({"kind": "test"})
    done = run("verify", "--ledger", directory)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"fine: 6 entries" in done.stdout
    assert b"not signed yet: the last 1" in done.stdout
    found = json.loads(run("verify", "--json", "--ledger", directory).stdout)
    assert (found["ok"], found["entries"], found["signed"], found["unsigned"]) == (True, 6, 5, 1)
    kept = directory + "/../checkpoints/checkpoints"
    assert run("verify", "--ledger", directory, "--checkpoint", kept, "--key", found["key"]).returncode == 0

    path = Path(directory, LOG)
    path.write_bytes(path.read_bytes().replace(b"true", b"fals"))
    done = run("verify", "--ledger", directory)
    assert done.returncode == 1
    assert b"entries 0 to 3" in done.stderr
    done = run("verify", "--json", "--ledger", directory)
    assert (done.returncode, json.loads(done.stdout)["error"]) == (1, "ledger.root")


def test_follow_waits_for_the_log_and_sees_what_comes(tmp_path: Path) -> None:
    directory = str(tmp_path / "ledger")
    with subprocess.Popen(
        command("follow", "--json", "--ledger", directory),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background jobs inherit it ignored
    ) as process:
        assert process.stdout is not None
        time.sleep(0.4)
        ledger = Ledger(directory)
        for number in range(3):
            ledger.append({"kind": "test", "number": number})
            assert json.loads(process.stdout.readline())["number"] == number
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert (process.returncode, output, errors) == (0, b"", b"")


def test_follow_skips_what_was_there_and_ends_with_its_reader(directory: str) -> None:
    process = subprocess.Popen(command("follow", "--json", "--ledger", directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    time.sleep(1.0)
    Ledger(directory).append({"kind": "new"})
    assert json.loads(process.stdout.readline())["kind"] == "new"
    process.stdout.close()
    assert process.wait(20) == 0  # with nothing more appended
    assert process.stderr.read() == b""
    process.stderr.close()


def test_follow_says_when_the_log_shrinks(directory: str) -> None:
    with subprocess.Popen(command("follow", "--all", "--ledger", directory), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.truncate(Path(directory, LOG), 10)
        assert process.wait(20) == 1
        assert process.stderr is not None
        assert b"shorter" in process.stderr.read()


@given(st.text(st.characters(exclude_categories=())))
def test_safe_text_is_printable_and_unambiguous(text: str) -> None:
    found = safe(text)
    assert found.isprintable()
    assert found.encode().decode("utf-8") == found
    if "\\" not in text and text.isprintable():
        assert found == text
