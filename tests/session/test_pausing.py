"""A session stands still and goes on: what that does to clocks, timers, connections and tokens, on both walls (docs/states.md)."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from session import test_revoke
from session.supervised import Place, adopting, offspring
from session.test_revoke import server as server
from session.test_revoke import stockade
from stockade.core.errors import StockadeError, WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Limits, Policy
from stockade.session import live
from stockade.session.command import SessionEnded
from stockade.walls import bubblewrap, gvisor, states
from walls.boxes import PYTHON, inside, require, until

pytestmark = pytest.mark.wall
WALLS = {"bubblewrap": bubblewrap, "gvisor": gvisor}


@pytest.fixture(params=["bubblewrap", "gvisor"])
def wall(request: pytest.FixtureRequest) -> str:
    require(WALLS[request.param])  # type: ignore[arg-type]  # a module is a Wall
    return str(request.param)


@pytest.fixture
def folder(place: Place, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(place.root / name.lower()))
    before = len(os.listdir("/proc/self/fd"))
    yield place.work
    assert len(os.listdir("/proc/self/fd")) == before


CLOCKS = """
import sys, time
for line in sys.stdin:
    print(time.time(), time.monotonic(), flush=True)
"""
TIMER = "import time; began = time.monotonic(); print('up', flush=True); time.sleep(0.3); print(time.monotonic() - began, flush=True)"


def test_clocks_go_on_and_timers_that_are_due_fire_at_once(folder: Path, wall: str) -> None:
    async def body() -> None:
        async with live.open_session(Policy(wall=wall), cwd=str(folder)) as session:
            clocks = await session.start([PYTHON, "-I", "-S", "-c", CLOCKS], stdin=True)
            assert clocks.stdin is not None
            lines = aiter(clocks)

            async def ask() -> tuple[float, float]:
                assert clocks.stdin is not None
                await clocks.stdin.write(b"\n")
                one, other = (await anext(lines)).data.split()
                return float(one), float(other)

            timer = await session.start([PYTHON, "-I", "-S", "-c", TIMER])
            assert (await anext(aiter(timer))).data == b"up\n"
            before = await ask()
            session.pause()
            assert session.paused
            began = time.monotonic()
            await asyncio.sleep(1)
            session.resume()
            lasted = time.monotonic() - began
            assert not session.paused
            wall_clock, monotonic = await ask()
            assert abs(wall_clock - time.time()) < 5  # right, without anybody having set it
            assert wall_clock - before[0] >= lasted - 0.05 and monotonic - before[1] >= lasted - 0.05
            slept = float((await anext(aiter(timer))).data)
            assert lasted - 0.05 <= slept < lasted + 10
            clocks.kill()

    asyncio.run(asyncio.wait_for(body(), 60))


def test_what_is_asked_for_in_a_pause_waits(folder: Path, place: Place, wall: str) -> None:
    async def body() -> None:
        async with live.open_session(Policy(wall=wall), cwd=str(folder)) as session:
            session.pause()
            session.pause()
            asked = asyncio.ensure_future(session.exec(["echo", "later"]))
            given_up = asyncio.ensure_future(session.exec(["touch", "given-up"]))
            await asyncio.sleep(0.2)
            given_up.cancel()
            assert not asked.done()
            session.resume()
            session.resume()
            assert (await asked).stdout == b"later\n"
            assert (await session.exec(["ls"])).stdout == b""
            session.pause()
            doomed = asyncio.ensure_future(session.exec(["echo", "never"]))
            await asyncio.sleep(0)
        with pytest.raises(SessionEnded):
            await doomed
        for call in (session.pause, session.resume):
            with pytest.raises(SessionEnded):
                call()

    asyncio.run(asyncio.wait_for(body(), 60))
    kinds = [event["kind"] for event in place.ledger() if str(event["kind"]).startswith(("session.", "exec."))]
    assert kinds[:4] == ["session.start", "session.pause", "session.resume", "exec.start"] and kinds.count("session.pause") == 2


def test_limits_hold_in_a_pause(folder: Path, wall: str) -> None:
    async def body() -> None:
        async with live.open_session(Policy(wall=wall, limits=Limits(wall_time=1)), cwd=str(folder)) as session:
            running = await session.start(["sleep", "300"])
            session.pause()
            with pytest.raises(SessionEnded, match="wall time") as caught:
                await running.wait()
            assert caught.value.code == "session.limit"

    asyncio.run(asyncio.wait_for(body(), 30))


def test_who_looks_after_limits_rests_in_a_pause_and_goes_on_after_it(folder: Path, wall: str) -> None:
    async def body() -> None:
        async with live.open_session(Policy(wall=wall, limits=Limits(cpu_time=2)), cwd=str(folder)) as session:
            session.pause()
            while not session._resting:
                await asyncio.sleep(0.02)
            session.resume()
            burn = "while :; do :; done"
            with pytest.raises(SessionEnded, match="CPU time") as caught:  # both together, and neither by itself
                await session.exec(["/bin/sh", "-c", f"({burn})& ({burn})& wait"])
            assert caught.value.code == "session.limit"

    asyncio.run(asyncio.wait_for(body(), 60))


def test_without_a_receipt_there_is_no_pause(folder: Path, wall: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StockadeError("no space", code="ledger.write", hint="")

    async def body() -> None:
        async with live.open_session(Policy(wall=wall), cwd=str(folder)) as session:
            with monkeypatch.context() as patched:
                patched.setattr(session._session.ledger, "append", full)
                with pytest.raises(StockadeError, match="no space"):
                    session.pause()
            assert not session.paused
            assert (await session.exec(["echo", "on"])).stdout == b"on\n"

    asyncio.run(asyncio.wait_for(body(), 30))


def test_what_cannot_be_stopped_in_time_goes_on_and_is_an_error(
    folder: Path, place: Place, wall: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def body() -> None:
        async with live.open_session(Policy(wall=wall), cwd=str(folder)) as session:
            running = await session.start(["sh", "-c", "while :; do echo tick; sleep 0.1; done"])
            monkeypatch.setattr(states, "PATIENCE", -1.0)
            with pytest.raises(WallFailed) as caught:
                session.pause()
            assert (caught.value.code, session.paused) == ("pause.restless", False)
            for _ in range(4):
                assert b"tick" in (await anext(aiter(running))).data
            running.kill()

    asyncio.run(asyncio.wait_for(body(), 30))
    assert [event.get("error") for event in place.ledger() if event["kind"] == "session.resume"] == ["pause.restless"]


RESIST = """
import os, signal
for number in range(1, 32):
    if number not in (9, 17, 19):
        signal.signal(number, lambda *_: None)
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:  # wake everybody up, and be somebody else
    os.kill(-1, signal.SIGCONT)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.write(1, b"x")
"""


def test_nothing_inside_keeps_itself_from_it(wall: str) -> None:
    with inside(wall=WALLS[wall]) as one:  # type: ignore[arg-type]  # a module is a Wall
        one.box.step()
        reader, writer = os.pipe()
        try:
            for _ in range(3):
                one.box.spawn([PYTHON, "-I", "-S", "-c", RESIST], env={}, stdout=writer)
            for _ in range(5):
                assert select.select([reader], [], [], 20)[0]
                one.box.pause()
                os.read(reader, 1 << 20)
                assert not select.select([reader], [], [], 0.3)[0]  # the twin is the line above: it moves by itself
                one.box.resume()
        finally:
            os.close(reader)
            os.close(writer)


def test_connections_live_through_a_pause(wall: str) -> None:
    """At the door itself: nobody between who could mend it."""
    code = "import socket; s = socket.create_connection(('192.0.2.7', 443)); [s.sendall(d.upper()) for d in iter(lambda: s.recv(9), b'')]"
    with inside(network="door", ports=(443,), wall=WALLS[wall]) as one:  # type: ignore[arg-type]  # a module is a Wall
        one.box.step()
        one.start(PYTHON, "-I", "-S", "-c", code)
        with socket.socket(fileno=os.dup(one.door.listeners[443])) as listener:  # type: ignore[union-attr]  # there is a door
            listener.settimeout(20)
            peer, _ = listener.accept()
        with peer:
            peer.settimeout(20)
            peer.sendall(b"one")
            assert peer.recv(9) == b"ONE"
            one.box.pause()
            peer.sendall(b"two")
            assert not select.select([peer], [], [], 0.5)[0]
            one.box.resume()
            assert peer.recv(9) == b"TWO"
            peer.sendall(b"three")
            assert peer.recv(9) == b"THREE"


def test_a_user_pauses_a_run_and_its_token_passes_as_before(place: Place, server: Any, wall: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = test_revoke.policy
    address = WALLS[wall].ADDRESS
    monkeypatch.setattr(test_revoke, "policy", lambda server: replace(plain(server), wall=wall))
    monkeypatch.setattr(test_revoke, "LOOP", test_revoke.LOOP.replace("127.0.0.1:3128", f"{address}:3128"))
    run, answers, ident = test_revoke.start(place, "a", server)
    try:
        done = stockade(place, "pause", ident)
        assert (done.returncode, done.stdout.split(".")[0]) == (0, "Paused"), done
        said = answers.read_text()
        time.sleep(0.5)
        assert answers.read_text() == said
        assert json.loads(stockade(place, "pause", ident, "--json").stdout) == {"paused": True, "changed": False}
        assert [(left["id"], left["state"]) for left in json.loads(stockade(place, "list", "--json").stdout)] == [(ident, "paused")]
        assert "goes on" in stockade(place, "resume", ident).stdout
        assert [left["state"] for left in json.loads(stockade(place, "list", "--json").stdout)] == ["running"]
        assert until(lambda: answers.read_text().count("200") > said.count("200") + 3, 20)
        assert {*answers.read_text().split()} == {"200"}
        assert json.loads(stockade(place, "resume", ident, "--json").stdout) == {"paused": False, "changed": False}
        stockade(place, "pause", ident)
    finally:
        run.terminate()
        run.communicate(timeout=30)
    assert stockade(place, "pause", ident).returncode == 125
    kinds = [event["kind"] for event in place.ledger() if event["kind"] in ("session.pause", "session.resume", "session.exit")]
    assert kinds == ["session.pause", "session.resume", "session.pause", "session.exit"]


def test_a_supervisor_that_is_killed_in_a_pause_leaves_nothing(place: Place, wall: str) -> None:
    with adopting():
        run = place.start("/bin/sh", "-c", "echo up; sleep 300", policy=Policy(wall=wall))
        assert run.stdout and run.stderr and run.stdout.readline() == b"up\n"
        (ident,) = os.listdir(place.sessions)
        assert stockade(place, "pause", ident).returncode == 0
        assert offspring()
        run.kill()
        run.wait()
        run.stdout.close()
        run.stderr.close()
        assert until(lambda: not offspring(), 20), offspring()
