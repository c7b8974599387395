"""Whole sessions on the gVisor wall: the same command, API, ledger and ends as on the other (M14, M23, M25)."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from session.supervised import Place, adopting, offspring
from session.test_lifecycle import NO_CGROUPS, cgroups_of, error_of
from stockade.core.values import Grant, Limits, Mount, Policy
from stockade.session import live
from stockade.session.command import SessionEnded
from stockade.walls import gvisor
from walls.boxes import PYTHON, require, until

pytestmark = pytest.mark.wall
GUEST = Policy(wall="gvisor")


@pytest.fixture(autouse=True)
def wall() -> None:
    require(gvisor)


def test_status_streams_and_files_come_through(place: Place) -> None:
    done = place.run("/bin/sh", "-c", "cat; echo err >&2; echo out > file; exit 42", stdin=b"in\0\xff", policy=GUEST)
    assert (done.returncode, done.stdout, done.stderr) == (42, b"in\0\xff", b"err\n")
    assert (place.work / "file").read_text() == "out\n"
    assert place.run("no-such-program", policy=GUEST).returncode == 127
    assert [event["wall"] for event in place.ledger() if event["kind"] == "session.start"] == ["gvisor", "gvisor"]


def test_nothing_stays_behind(place: Place) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with adopting():
        done = place.run("/bin/sh", "-c", "setsid sleep 300 & sleep 300 & echo started > $HOME/marker; echo up", policy=GUEST)
        assert done.stdout == b"up\n"
        assert until(lambda: not offspring(), 20), offspring()
    assert Path("/proc/self/mountinfo").read_text() == before
    assert place.ledger() and not cgroups_of(place)
    assert until(lambda: os.listdir(place.sessions) == [])
    assert place.run("/bin/sh", "-c", "ls -A $HOME", policy=GUEST).stdout == b""


@pytest.mark.parametrize("moment", [0.02, 0.08, 0.15, 0.25, "any", "running"])
def test_a_supervisor_that_is_killed_leaves_nothing(place: Place, moment: float | str) -> None:
    with adopting():
        run = place.start("/bin/sh", "-c", "echo up; sleep 300", policy=GUEST)
        assert run.stdout and run.stderr
        if moment == "running":
            assert run.stdout.readline() == b"up\n"
        else:
            time.sleep(random.uniform(0, 0.4) if moment == "any" else float(moment))
        run.kill()
        run.wait()
        run.stdout.close()
        run.stderr.close()
        assert until(lambda: not offspring(), 20), offspring()
    assert place.run("echo", "again", policy=GUEST).stdout == b"again\n"


@pytest.mark.parametrize("part", ["runsc-sandbox", "runsc-gofer", "runsc", "bwrap"])
def test_a_part_that_is_killed_is_a_typed_end(place: Place, part: str) -> None:
    with adopting():
        run = place.start("/bin/sh", "-c", "echo up; sleep 300", policy=GUEST)
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


@pytest.mark.parametrize("before", ["", NO_CGROUPS], ids=["cgroups", "without"])
def test_a_memory_hog_ends_the_run_which_says_so(place: Place, before: str) -> None:
    hog = "kept = [b'x' * (1 << 20) for _ in range(900)]; print('had it all')"
    few = Policy(wall="gvisor", limits=Limits(memory=200 << 20))
    done = place.run(PYTHON, "-I", "-S", "-c", hog, policy=few, before=before)
    assert done.stdout == b"" and (done.returncode, b"more than 200 MiB of memory" in done.stderr) == (137, True), done
    assert [event["limit"] for event in place.ledger() if event["kind"] == "limit"] != []
    assert place.run("echo", "fine", policy=few, before=before).stdout == b"fine\n"


def test_the_wall_time_is_held(place: Place) -> None:
    began = time.monotonic()
    done = place.run("/bin/sh", "-c", "trap '' TERM; kill -STOP 1; sleep 300", policy=Policy(wall="gvisor", limits=Limits(wall_time=1)))
    assert done.returncode == 137 and b"wall time" in done.stderr and time.monotonic() - began < 120


TAKEN = {
    "gvisor.missing": "import stockade.walls.runsc as r; r.PROGRAMS = ('/nowhere/runsc',)",
    "bubblewrap.missing": "import stockade.walls.bubblewrap as b; b.PROGRAMS = ('/nowhere/bwrap',)",
    "seccomp.missing": "import sys; sys.modules['pyseccomp'] = None; import stockade.walls.seccomp as s; s.VERSION = 99",
    "wall.died": "import stockade.walls.gvisor as g; g.configuration = lambda wanted: '{}'",
}


@pytest.mark.parametrize("code", TAKEN)
def test_without_a_part_of_the_wall_nothing_runs(place: Place, code: str) -> None:
    done = place.run("/bin/sh", "-c", "echo ran; touch ran", policy=GUEST, before=TAKEN[code])
    assert done.returncode == 125 and done.stdout == b"" and os.listdir(place.work) == []
    said = error_of(done)
    assert said["error"] == code and said["hint"]


def test_what_asks_over_tls_has_the_certificates_before_it_starts(place: Place) -> None:
    asking = Policy(wall="gvisor", grants=(Grant("api.example.test"),))
    done = place.run("/bin/sh", "-c", "grep -c BEGIN $SSL_CERT_FILE", policy=asking)
    assert done.stdout == b"1\n", done
    assert [event["why"] for event in place.ledger() if event["kind"] == "gate.start"] == ["certificates"]
    assert place.run("/bin/sh", "-c", "cat $SSL_CERT_FILE", policy=GUEST).stdout == b""  # nothing can be asked: no gate is started
    broken = "import stockade.gateway.engine as e\ndef find(): raise OSError('no engine')\ne.find = find"
    done = place.run("echo", "offline", policy=asking, before=broken)
    assert done.stdout == b"offline\n" and b"network is closed" in done.stderr


def within(place: Place, monkeypatch: pytest.MonkeyPatch, body: Callable[[live.LiveSession], object], policy: Policy = GUEST) -> None:
    async def whole() -> None:
        async with live.open_session(policy, cwd=str(place.work)) as session:
            await body(session)  # type: ignore[misc]

    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(place.root / name.lower()))
    asyncio.run(whole())


def test_a_secret_mount_does_not_keep_the_interface_waiting(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.home / "file").write_text("hidden")

    async def body(session: live.LiveSession) -> None:
        assert (await session.exec(["cat", "/mnt/secret/file"])).stdout == b"hidden"

    within(place, monkeypatch, body, Policy(wall="gvisor", mounts=(Mount(str(place.home), "/mnt/secret", "ro", secret=True),)))
    assert "taint" in [event["kind"] for event in place.ledger()]


def test_the_interface_is_the_same(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(session: live.LiveSession) -> None:
        results = await asyncio.gather(*(session.exec(["sh", "-c", f"echo {number}; exit {number}"]) for number in range(8)))
        assert [(one.exit_code, one.stdout) for one in results] == [(number, b"%d\n" % number) for number in range(8)]
        data = os.urandom(300_000)
        await session.write("kept", data)
        assert await session.read("kept") == data == (place.work / "kept").read_bytes()
        slow = await session.exec(["sh", "-c", "sleep 77 & sleep 77"], timeout=0.5)
        assert slow.timed_out and (await session.exec(["sh", "-c", "ps ax | grep -c '[s]leep 77'"])).stdout == b"0\n"

    within(place, monkeypatch, body)


def test_memory_ends_the_session_of_a_program_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(session: live.LiveSession) -> None:
        with pytest.raises(SessionEnded, match="memory"):
            await session.exec([PYTHON, "-I", "-S", "-c", "kept = [b'x' * (1 << 20) for _ in range(900)]"])

    within(place, monkeypatch, body, Policy(wall="gvisor", limits=Limits(memory=200 << 20)))
