"""SIGKILL for every part of a guest, and for who holds it, at every step of its life: an error with a code, nothing left, and the next one is clean (M14, M23).

Without a pool the same is in test_gvisor.py; what a command's processes may do to each other is none of this.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place, adopting, offspring
from session.test_lifecycle import cgroups
from stockade.core.errors import StockadeError
from stockade.core.values import Policy
from stockade.session import checkpoints
from stockade.session.live import LiveSession, open_session
from stockade.session.pool import Pool
from stockade.session.prepared import Prepared
from stockade.walls import gvisor, launching, limits, native
from walls.boxes import require, until

pytestmark = pytest.mark.wall
GUEST = Policy(wall="gvisor")
PARTS = ("bwrap", "runsc", "runsc-gofer", "runsc-sandbox")
SOON = 10.0  # seconds: it takes a hundredth of that on an idle machine
STUBS = "stubs"  # the host's processes that the guest's are, its init among them


@pytest.fixture(autouse=True)
def places(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    require(gvisor)
    monkeypatch.setenv("XDG_STATE_HOME", f"{place.root}/state")
    monkeypatch.setenv("XDG_CONFIG_HOME", f"{place.root}/config")
    join = limits.join

    def joined(name: str, *given: Any) -> limits.Groups:
        made.add(name)
        return join(name, *given)

    made.clear()
    monkeypatch.setattr(limits, "join", joined)
    (place.work / "whose").write_text("mine")


made: set[str] = set()  # names of the cgroups of this test's sandboxes


def held() -> list[str]:
    """What this process has open, pipes and sockets without their numbers: namespaces are told apart by theirs."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        links.append(link.partition(":[")[0] if link.startswith(("pipe", "socket")) else link)
    return sorted(link for link in links if not link.startswith("/proc/"))


@contextmanager
def nothing_left(place: Place) -> Iterator[None]:
    """Of what is done meanwhile there is nothing left afterwards: processes, mounts, interfaces, cgroups, descriptors, directories.

    A network namespace, with its end of a wire, lives for as long as a process is in it or has it open, or it is mounted (network_namespaces(7)).
    """

    def there() -> dict[str, Any]:
        return {
            "mounts": Path("/proc/self/mountinfo").read_text(),
            "interfaces": os.listdir("/sys/class/net"),
            "descriptors": held(),
            "workspace": sorted(os.listdir(place.work)),
        }

    before = there()
    with adopting():
        yield
        assert until(lambda: not offspring(), 20), offspring()
        assert until(lambda: os.listdir(place.sessions) == [], 20), os.listdir(place.sessions)
    assert there() == before
    left = [path for path in cgroups() if os.path.basename(path) in made]
    for path in left:  # one that was just ending when it was closed: the next session sweeps what has been empty for a while
        os.rmdir(path)
    assert made


def with_pool(place: Place, body: Callable[[Pool], Awaitable[None]], size: int = 1, *, filled: bool = True) -> None:
    async def whole() -> None:
        async with Pool(GUEST, size=size) as pool:
            if filled:
                await pool.filled()
            await body(pool)
            await fine(pool, place)

    with nothing_left(place):
        asyncio.run(asyncio.wait_for(whole(), 90))


async def fine(pool: Pool, place: Place) -> None:
    """Whoever wants one gets one that works."""
    async with pool.session(cwd=str(place.work)) as session:
        assert (await session.exec(["cat", "whose"])).stdout == b"mine"


async def true(holds: Callable[[], object], seconds: float = SOON) -> None:
    """Wait until it is."""
    late = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < late
        await asyncio.sleep(0.01)


def pids(bwrap: int, part: str) -> list[int]:
    """The processes of a guest that are this part of it."""
    if part == "bwrap":
        return [bwrap]
    every = {pid: line.split(" ")[0].rpartition("/")[2] for pid, line in offspring(bwrap).items()}
    return [pid for pid, name in every.items() if name == ("" if part == STUBS else part)]


def kill(bwrap: int, part: str) -> None:
    found = pids(bwrap, part)
    assert found, offspring(bwrap)
    for pid in found:
        with suppress(ProcessLookupError):  # a guest's command that has just ended by itself
            os.kill(pid, signal.SIGKILL)


def hunt(bwrap: int, part: str) -> None:
    """Kill a part of a guest as soon as there is one. It is looked for by few system calls: before each the thread may have to wait for the other."""

    def is_it(pid: int) -> bool:
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_bytes().partition(b"\0")[0].rpartition(b"/")[2].decode() == part
        return False

    def look() -> None:
        late = time.monotonic() + SOON
        while time.monotonic() < late:
            first = limits.init_of(bwrap)
            with suppress(OSError):
                for pid in [bwrap] if part == "bwrap" else filter(is_it, [first, *limits.children(first)]):
                    os.kill(pid, signal.SIGKILL)
                    return

    threading.Thread(target=look).start()


def gone(prepared: Prepared) -> bool:
    return prepared.guest.dead and not os.path.exists(prepared.directory)


# ---- a part of it -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["door", *PARTS])
def test_one_that_is_killed_while_it_is_made_is_never_ready(place: Place, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Prepared] = []
    errors: list[BaseException | None] = []
    start, discard, spawn = Prepared.start, Prepared.discard, native.spawn

    def started(self: Prepared, wanted: Any) -> None:
        made.append(self)
        start(self, wanted)
        if part != "door" and len(made) == 1:
            hunt(self.guest.pid, part)

    def discarded(self: Prepared) -> None:
        errors.append(sys.exception())  # why it is
        discard(self)

    def spawned(arguments: Any, *others: Any, **named: Any) -> int:
        if part == "door" and not made:  # it takes a thousandth of a second: whatever ends in its place ends as it would
            return os.posix_spawn("/bin/sh", ["sh", "-c", "kill -9 $$"], {})
        return spawn(arguments, *others, **named)

    monkeypatch.setattr(Prepared, "start", started)
    monkeypatch.setattr(Prepared, "discard", discarded)
    monkeypatch.setattr(native, "spawn", spawned)

    async def body(pool: Pool) -> None:
        await asyncio.wait_for(pool.filled(), 30)
        [waiting] = pool._ready
        assert waiting is made[1] and not os.path.exists(made[0].directory)
        assert [getattr(error, "code", error) for error in errors] == ["wall.setup" if part == "door" else "wall.died"]

    with_pool(place, body, filled=False)


@pytest.mark.parametrize("still", [False, True], ids=["awake", "paused"])
@pytest.mark.parametrize("part", PARTS)
def test_one_that_is_killed_while_it_waits_is_never_handed_out(place: Place, part: str, still: bool) -> None:
    async def body(pool: Pool) -> None:
        waiting = pool._ready[still]
        assert waiting.guest.paused is still
        kill(waiting.guest.pid, part)
        await true(lambda: waiting not in pool._ready)
        assert gone(waiting)
        for _ in range(1 + still):
            await pool.filled()
            await fine(pool, place)
        await pool.filled()
        assert pool.misses == 0

    with_pool(place, body, size=1 + still)


@pytest.mark.parametrize("part", [*PARTS, STUBS])
def test_one_that_is_killed_just_before_it_is_taken_is_an_error_or_is_not_taken(place: Place, part: str) -> None:
    async def body(pool: Pool) -> None:
        [waiting] = pool._ready
        kill(waiting.guest.pid, part)
        try:
            async with pool.session(cwd=str(place.work)) as session:
                if session.id != waiting.id:
                    assert (await session.exec(["cat", "whose"])).stdout == b"mine"
                    return
                await session.exec(["true"])
                raise AssertionError("it answers")
        except StockadeError as error:
            assert error.code == "wall.died"
        assert gone(waiting)

    with_pool(place, body)


@pytest.mark.parametrize("part", [*PARTS, STUBS])
def test_one_that_is_killed_while_it_is_bound_is_an_error(place: Place, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bind = gvisor.Guest.bind_opened

    def bound(self: gvisor.Guest, *given: Any) -> None:
        bind(self, *given)
        kill(self.pid, part)

    async def body(pool: Pool) -> None:
        [waiting] = pool._ready
        with monkeypatch.context() as patch, pytest.raises(StockadeError) as caught:
            patch.setattr(gvisor.Guest, "bind_opened", bound)
            async with pool.session(cwd=str(place.work)) as session:
                assert session.id == waiting.id
                await session.exec(["true"])
        assert caught.value.code == "wall.died" and gone(waiting)

    with_pool(place, body)


def test_a_helper_that_is_killed_while_it_binds_is_an_error(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works for a few milliseconds: where it was done before the kill came, the session has everything; and the next one is tried."""
    bind = gvisor.Guest.bind_opened
    killed = False

    def bound(self: gvisor.Guest, *given: Any) -> None:
        nonlocal killed
        bind(self, *given)
        os.kill(self._binder, signal.SIGKILL)
        ended = os.waitid(os.P_PID, self._binder, os.WEXITED | os.WNOWAIT)
        assert ended
        killed = ended.si_code == os.CLD_KILLED

    async def body(pool: Pool) -> None:
        for _ in range(50):
            await pool.filled()
            [waiting] = pool._ready
            try:
                with monkeypatch.context() as patch:
                    patch.setattr(gvisor.Guest, "bind_opened", bound)
                    await fine(pool, place)
            except StockadeError as error:
                assert killed and error.code == "wall.died" and gone(waiting)
                return
        pytest.fail("all had done their work before they were killed")

    with_pool(place, body)


BUSY = ["/bin/sh", "-c", "echo up; while :; do sleep 0.05; done"]


async def ends(session: LiveSession, part: str) -> None:
    """Kill a part while a command runs; whoever waits for the command is told, and whoever asks for another."""
    command = await session.start(BUSY)
    async for _ in command:
        break
    kill(session._session.box.pid, part)
    with pytest.raises(StockadeError) as caught:
        await asyncio.wait_for(command.wait(), 30)
    assert caught.value.code == "wall.died"
    with pytest.raises(StockadeError, match=caught.value.message):
        await session.exec(["true"])


@pytest.mark.parametrize("part", PARTS)  # without its stubs gVisor may wait for ever (docs/limits.md)
def test_one_that_is_killed_while_a_command_runs_is_an_error(place: Place, part: str) -> None:
    async def body(pool: Pool) -> None:
        async with pool.session(cwd=str(place.work)) as session:
            await ends(session, part)

    with_pool(place, body)


@pytest.mark.parametrize("part", ["runsc-gofer", "runsc-sandbox"])
def test_a_session_that_is_killed_in_a_pause_is_an_error_at_once(place: Place, part: str) -> None:
    """runsc, which would see it, stands still."""

    async def whole() -> None:
        async with open_session(GUEST, cwd=str(place.work)) as session:
            await asyncio.sleep(0.5)
            session.pause()
            waiting = asyncio.ensure_future(session.exec(["true"]))
            kill(session._session.box.pid, part)
            with pytest.raises(StockadeError) as caught:
                await asyncio.wait_for(waiting, SOON)
            assert caught.value.code == "wall.died"

    with nothing_left(place):
        asyncio.run(whole())


@pytest.mark.parametrize("part", ["enter", *PARTS])
def test_one_that_is_killed_while_it_is_saved_is_an_error_and_the_checkpoint_is_whole_or_not_there(
    place: Place, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, save = place.root / "kept", gvisor.Guest.save

    def saving(self: gvisor.Guest, directory: int) -> Any:
        found = save(self, directory)
        if part == "enter":  # what asks runsc for it
            os.kill(found._pid, signal.SIGKILL)
        else:
            kill(self.pid, part)
        return found

    async def whole() -> None:
        async with open_session(GUEST, cwd=str(place.work)) as session:
            monkeypatch.setattr(gvisor.Guest, "save", saving)
            with pytest.raises(StockadeError) as caught:
                await session.checkpoint(str(kept))
                await session.exec(["true"])
            assert caught.value.code in ("checkpoint.failed", "wall.died")
            if part == "enter":
                assert (await session.exec(["cat", "whose"])).stdout == b"mine"

    with nothing_left(place):
        asyncio.run(asyncio.wait_for(whole(), 60))
        if kept.exists():
            checkpoints.load(str(kept))


@pytest.mark.parametrize("part", PARTS)
def test_one_that_is_killed_while_it_is_restored_is_an_error(place: Place, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    warm = gvisor.warm

    def warmed(*given: Any) -> gvisor.Guest:
        box = warm(*given)
        hunt(box.pid, part)
        return box

    async def whole() -> None:
        async with open_session(GUEST, cwd=str(place.work)) as session:
            await session.exec(["/bin/sh", "-c", "echo kept > /tmp/kept"])
            made = await session.checkpoint()
            with monkeypatch.context() as patch, pytest.raises(StockadeError) as caught:
                patch.setattr(gvisor, "warm", warmed)
                async with open_session(GUEST, cwd=str(place.work), restore=made) as other:
                    await other.exec(["true"])
            assert caught.value.code == "wall.died"
            async with open_session(GUEST, cwd=str(place.work), restore=made) as other:
                assert (await other.exec(["cat", "/tmp/kept"])).stdout == b"kept\n"

    with nothing_left(place):
        asyncio.run(asyncio.wait_for(whole(), 60))


@pytest.mark.parametrize(("wall", "lasts"), [("bubblewrap", 0.02), ("gvisor", 0.1)])
def test_bubblewrap_that_is_killed_at_any_moment_of_a_start_leaves_no_orphan(
    place: Place, wall: str, lasts: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first process is not told to die with it before everything is mounted. Who goes on without it would be out of reach: of the watchdog, a pause, the end."""
    choose, start = random.Random(7), launching.start
    killed: list[threading.Timer] = []

    def started(*given: Any, **named: Any) -> Any:
        found = start(*given, **named)
        killed.append(threading.Timer(choose.uniform(0, lasts), os.kill, (found[1], signal.SIGKILL)))
        killed[-1].start()
        return found

    async def whole() -> None:
        for _ in range(12):
            with pytest.raises(StockadeError) as caught:
                async with open_session(Policy(wall=wall), cwd=str(place.work)) as session:
                    while True:
                        await session.exec(["true"])
            assert caught.value.code == "wall.died"
            killed[-1].join()

    with nothing_left(place):
        with monkeypatch.context() as patch:
            patch.setattr(launching, "start", started)
            asyncio.run(asyncio.wait_for(whole(), 90))
        assert place.run("cat", "whose").stdout == b"mine"  # whose end cleans up


# ---- who holds it -----------------------------------------------------------------------------------------------------------------

HOLDER = """
import asyncio, os, sys
from stockade.core.values import Policy
from stockade.session import Session, pool
from stockade.session.prepared import Prepared
from stockade.walls import door, gvisor

def fatal(owner, name):
    real = getattr(owner, name)
    def last(*given, **named):
        real(*given, **named)
        os.kill(os.getpid(), 9)
    setattr(owner, name, last)

async def whole():
    async with pool.Pool(Policy(wall="gvisor"), size=2) as made:
        await made.filled()
        async with made.session() as session:
            await session.start(["sleep", "300"])
            os.kill(os.getpid(), 9)

exec(sys.argv[1])
asyncio.run(whole())
"""
MOMENTS = {
    "named": "fatal(Prepared, '_directory')",
    "door": "fatal(door.Making, 'done')",
    "started": "fatal(gvisor, 'warm')",
    "stands": "fatal(Prepared, 'guard')",
    "one stands": "fatal(gvisor.Guest, 'pause')",
    "taken": "fatal(pool.Pool, '_take')",
    "being bound": "fatal(gvisor.Guest, 'bind_opened')",
    "on record": "fatal(Session, 'record_start')",
    "running": "",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_holder_that_is_killed_leaves_nothing(place: Place, moment: str) -> None:
    with nothing_left(place):
        argv = [sys.executable, "-c", HOLDER, MOMENTS[moment]]
        assert subprocess.run(argv, env=place.env, cwd=place.work, timeout=60).returncode == -signal.SIGKILL
        assert until(lambda: not offspring(), 20), offspring()
        made.update(f"stockade-{name.lstrip('.')}" for name in os.listdir(place.sessions))
        done = place.run("cat", "whose", policy=GUEST)
        assert done.stdout == b"mine", done  # and cleans up
