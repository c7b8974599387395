"""Whole sessions in a virtual machine: the same command, API, ledger and ends as on the other walls (M2, M14, M15, M23, M25)."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from session.supervised import Place, adopting, offspring
from session.test_lifecycle import cgroups_of, error_of
from stockade.core.values import Limits, Policy
from stockade.walls.vm import wall as vm
from walls.boxes import require, until

pytestmark = pytest.mark.wall
MACHINE = Policy(wall="vm", limits=Limits(memory=256 << 20))


@pytest.fixture(autouse=True)
def wall() -> None:
    require(vm)


def test_status_streams_files_and_the_ledger(place: Place) -> None:
    done = place.run("/bin/sh", "-c", "cat; echo err >&2; echo out > file; exit 42", stdin=b"in\0\xff", policy=MACHINE)
    assert (done.returncode, done.stdout, done.stderr) == (42, b"in\0\xff", b"err\n")
    assert (place.work / "file").read_text() == "out\n"
    assert place.run("no-such-program", policy=MACHINE).returncode == 127
    assert [event["wall"] for event in place.ledger() if event["kind"] == "session.start"] == ["vm", "vm"]


def test_commits_come_back_as_data_and_hooks_do_not(place: Place) -> None:
    git = ["git", "-C", str(place.work), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    subprocess.run([*git, "init", "-q", "-b", "main"], check=True)
    (place.work / "a").write_text("one\n")
    subprocess.run([*git, "add", "a"], check=True)
    subprocess.run([*git, "commit", "-qm", "one"], check=True)
    script = """
        git config user.name agent; git config user.email agent@example.com
        echo two > a; git commit -qam two && git log --format=%s | tr '\\n' ' '
        printf '#!/bin/sh\\ntouch /tmp/ran' > .git/hooks/post-checkout; chmod +x .git/hooks/post-checkout; git config core.fsmonitor /tmp/x
    """
    done = place.run("/bin/sh", "-c", script, policy=MACHINE)
    assert done.stdout == b"two one ", done
    assert subprocess.run([*git, "log", "--format=%s"], capture_output=True, text=True, check=True).stdout == "two\none\n"
    assert not (place.work / ".git/hooks/post-checkout").exists()
    assert "fsmonitor" not in (place.work / ".git/config").read_text()


def test_nothing_stays_behind(place: Place) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with adopting():
        done = place.run("/bin/sh", "-c", "setsid sleep 300 & sleep 300 & echo started > $HOME/marker; echo up", policy=MACHINE)
        assert done.stdout == b"up\n"
        assert until(lambda: not offspring(), 20), offspring()
    assert Path("/proc/self/mountinfo").read_text() == before
    assert place.ledger() and not cgroups_of(place)
    assert until(lambda: os.listdir(place.sessions) == [])
    assert place.run("/bin/sh", "-c", "ls -A $HOME", policy=MACHINE).stdout == b""


@pytest.mark.parametrize("moment", [0.05, "any", "running"])
def test_a_supervisor_that_is_killed_leaves_nothing(place: Place, moment: float | str) -> None:
    place.run("true", policy=MACHINE)  # its snapshot is there
    with adopting():
        run = place.start("/bin/sh", "-c", "echo up; sleep 300", policy=MACHINE)
        assert run.stdout and run.stderr
        if moment == "running":
            assert run.stdout.readline() == b"up\n"
        else:
            time.sleep(random.uniform(0, 0.6) if moment == "any" else float(moment))
        run.kill()
        run.wait()
        run.stdout.close()
        run.stderr.close()
        assert until(lambda: not offspring(), 20), offspring()
    assert place.run("echo", "again", policy=MACHINE).stdout == b"again\n"


@pytest.mark.parametrize("part", ["qemu-system-x86_64", "bwrap"])
def test_a_part_that_is_killed_is_a_typed_end(place: Place, part: str) -> None:
    with adopting():
        run = place.start("/bin/sh", "-c", "echo acknowledged > file; sync; echo up; sleep 300", policy=MACHINE)
        try:
            assert run.stdout and run.stdout.readline() == b"up\n"
            parts = {line.split(" ")[0].rpartition("/")[2]: pid for pid, line in offspring().items()}
            os.kill(parts[part], signal.SIGKILL)
            _, err = run.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{part} was killed, and these go on: {offspring()}")
        finally:
            run.kill()
            run.wait()
        assert (run.returncode, json.loads(err.splitlines()[-1])["error"]) == (125, "wall.died")
        assert until(lambda: not offspring(), 20), offspring()
    assert [event["code"] for event in place.ledger() if event["kind"] == "session.exit"] == [125]
    assert (place.work / "file").read_text() == "acknowledged\n"


def test_the_wall_time_is_held(place: Place) -> None:
    few = Policy(wall="vm", limits=Limits(memory=256 << 20, wall_time=3))
    done = place.run("/bin/sh", "-c", "trap '' TERM; kill -STOP 1; kill -KILL 1; sleep 300", policy=few)
    assert done.returncode == 137 and b"wall time" in done.stderr


TAKEN = {
    "vm.missing": "import stockade.walls.vm.find as f; f.PROGRAMS = ('/nowhere/qemu',)",
    "vm.image": "import stockade.walls.vm.image as i; i.SYSTEM = '/nowhere'; import stockade.core.places as p",
    "bubblewrap.missing": "import stockade.walls.bubblewrap as b; b.PROGRAMS = ('/nowhere/bwrap',)",
    "seccomp.missing": "import sys; sys.modules['pyseccomp'] = None; import stockade.walls.seccomp as s; s.VERSION = 99",
    "vm.boot": "import stockade.walls.vm.machine as m; m.KERNEL = 'init=/nowhere rdinit=/nowhere panic=-1'",
    "wall.died": "import stockade.walls.vm.machine as m; m.GUEST_LATE = '/proc/nowhere'",
}


@pytest.mark.parametrize("code", TAKEN)
def test_without_a_part_of_the_wall_nothing_runs(place: Place, code: str) -> None:
    done = place.run("/bin/sh", "-c", "echo ran; touch ran", policy=MACHINE, before=TAKEN[code])
    assert done.returncode == 125 and done.stdout == b"" and os.listdir(place.work) == []
    said = error_of(done)
    assert said["hint"] and (said["error"] == code or (code == "wall.died" and said["error"] == "wall.setup")), said
