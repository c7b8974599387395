"""`stockade doctor --conformance`, run as a program: on our wall, on somebody else's, and on one that leaks."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from stockade.cli import conformance
from stockade.cli.paint import Paint
from stockade.walls.conformance import Outcome
from walls import boxes

DOCTOR = [sys.executable, "-m", "stockade", "doctor"]
MINE = "from stockade.walls.bubblewrap import ADDRESS, OVERHEAD, OWN_KERNEL, USER, look, make_door, open_box, plan\nNAME = 'mine'\n"


def run(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    places = {f"XDG_{name}_HOME": str(tmp_path / name.lower()) for name in ("STATE", "CACHE", "CONFIG")}
    tests = str(Path(__file__).parents[1])
    env = {**os.environ, **places, "PYTHONPATH": f"{tmp_path}:{tests}", "TERM": "xterm"}
    return subprocess.run([*DOCTOR, *words], env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.wall
def test_our_wall_and_one_by_its_import_path(tmp_path: Path) -> None:
    boxes.require()
    (tmp_path / "my_wall.py").write_text(MINE)
    for wall, name in (("bubblewrap", "bubblewrap"), ("my_wall", "mine")):
        only = ("--only", "receipt", "--only", "exec.stdin", "--only", "cleanup.kill")
        done = run(tmp_path, "--conformance", wall, *only)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        lines = done.stdout.splitlines()
        assert [line for line in lines if line and not line.startswith(" ")][:-1] == ["exec", "receipt", "cleanup"]
        assert any(line.split()[:2] == ["pass", "stdin"] for line in lines)
        assert lines[-1] == f"{name}: 7 of 7 checks passed."


@pytest.mark.wall
def test_a_wall_that_leaks_is_status_1_and_said_in_json(tmp_path: Path) -> None:
    boxes.require()
    done = run(tmp_path, "--conformance", "walls.leaky:mangled_status", "--only", "exec.exit-codes", "--only", "exec.stdin", "--json")
    found = json.loads(done.stdout)
    assert (done.returncode, done.stderr, found["ok"], found["wall"], found["version"]) == (1, "", False, "leaky", 1)
    good, bad = sorted(found["checks"], key=lambda check: not check["ok"])
    assert (good["check"], good["status"], good["reason"], good["group"]) == ("exec.stdin", "pass", "", "exec")
    assert (bad["check"], bad["status"]) == ("exec.exit-codes", "fail") and "255 came as 1" in bad["reason"]
    assert good["about"] and good["seconds"] >= 0
    done = run(tmp_path, "--conformance", "walls.leaky:mangled_status", "--only", "exec.exit-codes")
    assert done.returncode == 1 and "It does not hold: exec.exit-codes." in done.stdout


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--conformance", "no_such_wall"), 125, "conformance.unknown"),
        (("--conformance", "half_wall"), 125, "conformance.contract"),
        (("--conformance", "bad_wall"), 125, "conformance.import"),
        (("--conformance", "blind_wall"), 125, "blind.missing"),
        (("--conformance", "bubblewrap", "--only", "no.such"), 125, "conformance.check"),
        (("--conformance", "bubblewrap", "--fix"), 2, "--conformance goes with"),
        (("--conformance", "bubblewrap", "--wall", "gate"), 2, "--conformance goes with"),
        (("--only", "exec"), 2, "--only goes with"),
    ],
)
def test_what_cannot_be_run_is_said(tmp_path: Path, words: tuple[str, ...], status: int, said: str) -> None:
    (tmp_path / "half_wall.py").write_text("NAME = 'half'\n")
    (tmp_path / "bad_wall.py").write_text("1 / 0\n")
    blind = (
        "from stockade.core.errors import CannotEnforce\ndef look(home): raise CannotEnforce('no', code='blind.missing', hint='get it')\n"
    )
    (tmp_path / "blind_wall.py").write_text(MINE + blind)
    done = run(tmp_path, *words, "--json")
    assert (done.returncode, done.stdout) == (status, "")
    assert json.loads(done.stderr)["error"] == said if status == 125 else said in done.stderr


@pytest.mark.wall
def test_on_a_terminal_there_is_colour_and_progress(tmp_path: Path) -> None:
    boxes.require()
    master, slave = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "XDG_CACHE_HOME": str(tmp_path)}
    env.pop("NO_COLOR", None)
    with subprocess.Popen([*DOCTOR, "--conformance", "bubblewrap", "--only", "receipt"], stdout=slave, stderr=slave, env=env) as process:
        os.close(slave)
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError:  # EIO: it has ended
            pass
    os.close(master)
    assert process.returncode == 0
    assert b"\x1b[32mpass\x1b[0m" in shown and b"0/5 receipt.rules" in shown and shown.count(b"\r\x1b[K") >= 10


def test_a_row_shows_a_skip_that_counts_as_failed_and_nothing_that_a_terminal_acts_on() -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    paint = Paint(Terminal())  # type: ignore[arg-type]  # only asked this
    paint.on = True
    declared = Outcome("network.door", "network", "skip", "the wall has no door", 0.1, True)
    other = Outcome("network.door", "network", "skip", "it was\x1b[2J late", 0.1, False)
    assert "\x1b[33mskip" in conformance.row(declared, paint) and "the wall has no door" in conformance.row(declared, paint)
    assert "\x1b[31mskip" in conformance.row(other, paint) and "\x1b[2J" not in conformance.row(other, paint)
    assert conformance.summary([declared], True) == "0 of 1 checks passed, 1 skipped."
    assert conformance.summary([other], False).endswith("It does not hold: network.door.")
