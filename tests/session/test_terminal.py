"""A person at a real terminal: job control, Ctrl-C, resizing, and a terminal that is as before whatever happened."""

from __future__ import annotations

import os
import signal
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest

from session.screen import Screen
from session.supervised import Place, Terminal, adopting, offspring
from stockade.session.plainly import PLAINLY
from walls.boxes import until

pytestmark = pytest.mark.wall
BASH = ("/bin/bash", "--norc", "--noprofile", "-i")

Open = Callable[..., Terminal]


@pytest.fixture
def terminal(place: Place) -> Iterator[Open]:
    opened: list[Terminal] = []

    def make(*argv: str, tty: bool | None = None, before: str = "") -> Terminal:
        opened.append(Terminal(place, argv or BASH, tty=tty, before=before))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def modes(terminal: Terminal) -> list[object]:
    found: list[object] = termios.tcgetattr(terminal.master)
    return found


def test_a_terminal_of_its_own_inside(terminal: Open) -> None:
    person = terminal(
        "/bin/sh", "-c", "test -t 0 && test -t 1 && test -t 2 && tty && echo $((6*7)) > /dev/tty; readlink /proc/self/fd/0; exit 9"
    )
    person.expect(r"/dev/pts/0\r\n42\r\n/dev/pts/0\r\n")
    assert person.wait() == 9


def test_without_a_terminal_none_is_made(terminal: Open) -> None:
    person = terminal("/bin/sh", "-c", "test -t 0 || echo no-tty; cat", tty=False)
    person.expect("no-tty")
    person.type("line\n")
    person.expect("line.*line")
    person.type("\x04")
    assert person.wait() == 0


def test_job_control(terminal: Open) -> None:
    shell = terminal()
    shell.expect(r"[$#] ")
    shell.type("PS1='> '\n")
    shell.expect("\r\n> ")
    shell.type("sleep 300\n")
    time.sleep(0.3)
    shell.type("\x1a")  # Ctrl-Z
    shell.expect(r"\[1\]\+.*Stopped.*sleep 300")
    shell.type("bg\n")
    shell.expect(r"\[1\]\+ sleep 300 &")
    shell.type("jobs\n")
    shell.expect("Running.*sleep 300")
    shell.type("fg\n")
    shell.expect("sleep 300\r\n")
    time.sleep(0.2)
    shell.type("\x03")  # Ctrl-C
    shell.expect("\r\n> ")
    shell.type("echo status $?\n")
    shell.expect("status 130\r\n")
    shell.type("exit 5\n")
    assert shell.wait() == 5


def test_ctrl_c_interrupts_only_the_program_inside(terminal: Open) -> None:
    person = terminal("/bin/sh", "-c", "trap 'echo interrupted' INT; echo ready; cat; echo after; exit 3")
    person.expect("ready\r\n")
    time.sleep(0.3)  # until cat is there: between fork and exec the shell's trap would swallow it
    person.type("\x03")
    person.expect("interrupted.*after")
    assert person.wait() == 3


def test_the_size_is_the_users_and_follows_it(place: Place, terminal: Open) -> None:
    shell = terminal("/bin/bash", "-c", "trap 'touch changed' WINCH; echo ready; while :; do stty size; sleep 0.05; done")
    shell.expect("ready")
    for columns, lines in ((101, 33), (77, 22), (222, 5)):
        shell.resize(columns, lines)
        now = f"{lines} {columns}\r\n"
        shell.expect(now)
    assert until((place.work / "changed").exists)  # and the program inside was told


def test_every_key_passes(terminal: Open) -> None:
    person = terminal("/bin/sh", "-c", "stty raw -echo; printf 'go\\r\\n'; head -c 255 | od -An -v -tu1 | tr -d '\\n'; stty sane; echo end")
    person.expect("go\r\n")
    os.write(person.master, bytes(range(1, 256)))
    found = person.expect(r"([\d ]+)end").group(1).split()
    assert [int(number) for number in found] == list(range(1, 256))


def test_a_large_output_arrives_whole(terminal: Open) -> None:
    person = terminal("/bin/sh", "-c", "stty -opost; seq 1 60000; echo end")
    person.expect("\n60000\nend", 30)
    assert person.wait() == 0


@pytest.mark.parametrize("end", ["exit", "signal", "limit", "killed wall"])
def test_the_modes_are_restored_after_every_end(terminal: Open, end: str) -> None:
    with adopting():
        before = "import time; time.sleep(0.4)" + ("; foreground.GRACE = 0.2" if end == "signal" else "")
        person = terminal("/bin/sh", "-c", "trap '' TERM; echo up; read x; exit 4", before=before)
        saved = modes(person)
        person.expect("up")
        assert until(lambda: modes(person) != saved)
        if end == "exit":
            person.type("x\n")
            assert person.wait() == 4
        elif end == "signal":
            os.kill(person.pid, signal.SIGTERM)
            assert person.wait() == 137
        elif end == "limit":
            os.kill(person.pid, signal.SIGHUP)
            assert person.wait() in (137, 128 + signal.SIGHUP)
        else:
            inits = [pid for pid, line in offspring().items() if line.startswith("/proc/self/fd/") and " inside " in line]
            for pid in inits:
                os.kill(pid, signal.SIGKILL)
            assert person.wait() == 125
        assert modes(person) == saved


def test_a_terminal_that_vanishes_ends_everything(place: Place, terminal: Open) -> None:
    with adopting():
        person = terminal("/bin/sh", "-c", "trap '' HUP TERM; echo up; sleep 300", before="foreground.GRACE = 0.3")
        person.expect("up")
        person.hang_up()
        assert person.wait() != 0  # its last words have nowhere to go
        assert until(lambda: not offspring(), 20), offspring()
    assert until(lambda: os.listdir(place.sessions) == [], 20)


def test_a_terminal_that_vanishes_while_much_is_written_ends_everything(terminal: Open) -> None:
    with adopting():
        person = terminal("/bin/sh", "-c", "trap '' HUP TERM; yes", before="foreground.GRACE = 0.3")
        person.expect("y\r\ny")
        person.hang_up()
        assert person.wait() != 0
        assert until(lambda: not offspring(), 20), offspring()


def test_the_users_terminal_is_not_to_be_found_inside(terminal: Open) -> None:
    """The sandbox has its own devpts: the user's terminal device is not in it, and no descriptor leads there."""
    person = terminal("/bin/sh", "-c", "ls /dev/pts | tr '\\n' ' '; ls -l /proc/*/fd 2>/dev/null | grep -c /dev/pts/[1-9]; echo done")
    person.expect("0 ptmx 0\r\ndone")
    assert person.wait() == 0


@pytest.mark.parametrize("trick", ["\x1b(0", "\x1bPq", "\x1b[2J\x1b[1$}", "\x1b[2J\x1b[2;3r\x1b[?6h\x1b[2;1H"])
def test_what_a_program_leaves_the_terminal_in_does_not_hide_the_report(place: Place, trick: str) -> None:
    octal = "".join(f"\\{byte:03o}" for byte in trick.encode())
    argv = ("/bin/sh", "-c", f"for name in .envrc Makefile package.json conftest.py; do echo x >$name; done; printf '{octal}'")
    person = Terminal(place, (), words=[sys.executable, "-P", "-m", "stockade", "run", "--", *argv], size=(80, 24))
    try:
        assert person.wait(60) == 0
    finally:
        person.close()
    said = (person.whole + person.seen).decode()
    told = []
    for bytes_seen in (said, said.replace(PLAINLY, "")):
        screen = Screen()
        screen.feed(bytes_seen)
        told.append(
            all(
                any(line.startswith("    ") and name in line for line in screen.shown[:-1])
                for name in (".envrc", "Makefile", "package.json")
            )
        )
    assert PLAINLY in said and told == [True, False], screen.shown  # without it nobody would see the report
