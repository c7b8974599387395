"""Sandboxes that stand ready before anybody wants them: `async with Pool(policy) as pool: async with pool.session(cwd=...) as session: ...`. See docs/api.md.

A guest in the pool has a kernel, a door that nobody serves, cgroups, and nothing else: no mount, no variable, no grant, no credential. All of that it is given when
somebody takes it, and then it is that session's, until it ends with it. All but the next one are paused: the kernel of a guest without work wakes up some hundred times
a second (runsc 20240729, systrap), which costs a few percent of a processor.

INVARIANT: what was handed out once is never handed out again; what is not handed out runs no command.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.session import READY, confine, slow
from stockade.session.live import LiveSession
from stockade.session.prepared import Prepared, new_id

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stockade.core.values import Confinement, Policy

REST = 0.1  # seconds before one is made up for, as long as others are ready: a boot takes both cores of a small machine from whoever has just got his
CALM = 60.0  # seconds without a miss, after which one sandbox less is kept ready
FAILURES = 3  # starts that fail one after the other: then the pool starts none until a session, started as ever, has shown that one can


class Pool:
    """Keeps at least `size` sandboxes ready, and at most `most`: twice as many as before when one was wanted and none was there, and one less after each quiet
    minute. Belongs to the event loop in which it is entered. `hits` and `misses` count the sessions that got one, and those that had to wait for a start.
    """

    def __init__(self, policy: Policy, *, size: int = 2, most: int = 32) -> None:
        """`policy` is what sessions have that name no other. Raises CannotEnforce (`pool.wall`) on a wall whose sandboxes cannot be made before."""
        if confine.wall_of(policy).NAME != "gvisor":
            raise CannotEnforce(
                f"sandboxes of the {confine.wall_of(policy).NAME} wall cannot stand ready before they are wanted",
                code="pool.wall",
                hint='Use wall = "gvisor", or open sessions one by one (open_session): on this wall that is fast.',
            )
        if not 0 < size <= most:
            raise ValueError("size must be at least 1, and not more than most")
        self._policy, self._size, self._most = policy, size, most
        self._shape = shape(policy)
        self._wanted = size
        self._ready: list[Prepared] = []
        self._failures = 0
        self._missed = time.monotonic()
        self._wake = asyncio.Event()
        self._filler: asyncio.Task[None] | None = None
        self.hits = self.misses = 0

    async def __aenter__(self) -> Self:
        self._filler = asyncio.create_task(self._fill())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._filler is not None
        self._filler.cancel()
        await asyncio.wait([self._filler])
        while self._ready:
            self._let_go(self._ready.pop())
        if not self._filler.cancelled():
            self._filler.result()  # it ends by itself only by a mistake of ours

    @property
    def ready(self) -> int:
        """How many stand ready now."""
        return len(self._ready)

    async def filled(self) -> None:
        """Wait until as many stand ready as are kept. Raises StockadeError if they cannot be started."""
        while len(self._ready) < self._wanted:
            if self._filler is None or self._filler.done():
                raise WallFailed("nobody fills this pool", code="pool.start", hint="Enter it first: `async with Pool(policy) as pool`.")
            if self._failures >= FAILURES:
                raise WallFailed(
                    "sandboxes could not be started", code="pool.start", hint="`stockade doctor --wall gvisor` tries each part."
                )
            await asyncio.sleep(0.005)

    @asynccontextmanager
    async def session(self, policy: Policy | None = None, *, cwd: str | None = None) -> AsyncIterator[LiveSession]:
        """As `open_session`, in a sandbox that stood ready if there is one that fits `policy`: with the same limits, wall and raw ports as the pool's."""
        folder = os.getcwd() if cwd is None else os.path.abspath(cwd)
        wanted = self._policy if policy is None else policy
        session = self._take(wanted, folder)
        try:
            try:
                await session.open()
            except StockadeError as error:
                if error.code != "pool.stale":
                    raise
                await session.close()
                self.hits, self.misses = self.hits - 1, self.misses + 1
                session = LiveSession(wanted, folder)
                await session.open()
            self._failures = 0
            yield session
        finally:
            await session.close()

    def _take(self, policy: Policy, folder: str) -> LiveSession:
        while self._ready and not self._ready[0].stands:  # it has ended, and the loop has not told us yet
            self._let_go(self._ready.pop(0))
        if not self._ready or shape(policy) != self._shape:
            self.misses += 1
            if not self._ready:
                self._wanted = min(self._most, self._wanted * 2)
                self._missed = time.monotonic()
            self._wake.set()
            return LiveSession(policy, folder)
        prepared = self._ready.pop(0)  # the oldest: the others have had less time to go stale
        self._unwatch(prepared)
        self._wake.set()
        try:
            prepared.guest.resume()
            session = LiveSession(policy, folder, prepared)
        except BaseException:
            prepared.discard()
            raise
        self.hits += 1
        return session

    async def _fill(self) -> None:
        """Start what is missing, one at a time: so that who wants one is not held up by many that start."""
        while True:
            self._wake.clear()
            if len(self._ready) < self._wanted and self._failures < FAILURES:
                if self._ready:
                    await asyncio.sleep(REST)
                if self._ready:
                    self._ready[0].guest.resume()
                await self._start()
                continue
            if self._wanted > self._size and time.monotonic() - self._missed > CALM:
                self._wanted, self._missed = self._wanted - 1, time.monotonic()
                if len(self._ready) > self._wanted:
                    self._let_go(self._ready.pop())
            try:
                await asyncio.wait_for(self._wake.wait(), CALM)
            except TimeoutError:
                pass

    async def _start(self) -> None:
        prepared: Prepared | None = None
        try:
            prepared = Prepared(new_id(), confine.wall_of(self._policy), confine.raw_ports(self._policy))
            prepared.start(confine.bare(self._policy))
            await self._stands(prepared)
            prepared.guard()
            if self._ready:
                prepared.guest.pause()
            self._ready.append(prepared)
            self._watch(prepared)
            self._failures = 0
        except (StockadeError, OSError):  # whoever wants one starts it then, and is told why that fails
            self._failures += 1
            if prepared is not None:
                prepared.discard()
        except BaseException:
            if prepared is not None:
                prepared.discard()
            raise

    async def _stands(self, prepared: Prepared) -> None:
        """Wait until the guest waits for its mounts. Raises WallFailed."""
        loop, deadline = asyncio.get_running_loop(), time.monotonic() + READY
        assert prepared.sink is not None
        while not prepared.news():
            heard: asyncio.Future[None] = loop.create_future()
            watched = [prepared.guest.fileno(), *([] if prepared.sink.connected or prepared.sink.over else [prepared.sink.fileno()])]
            for fd in watched:
                loop.add_reader(fd, _settle, heard)
            try:
                await asyncio.wait_for(heard, deadline - time.monotonic())
            except TimeoutError:
                raise slow() from None
            finally:
                for fd in watched:
                    loop.remove_reader(fd)

    def _watch(self, prepared: Prepared) -> None:
        for fd in prepared.sentinels:
            asyncio.get_running_loop().add_reader(fd, self._ended, prepared)

    def _unwatch(self, prepared: Prepared) -> None:
        for fd in prepared.sentinels:
            asyncio.get_running_loop().remove_reader(fd)
        prepared.unguard()

    def _ended(self, prepared: Prepared) -> None:
        self._ready.remove(prepared)
        self._let_go(prepared)
        self._wake.set()

    def _let_go(self, prepared: Prepared) -> None:
        self._unwatch(prepared)
        prepared.discard()


def shape(policy: Policy) -> tuple[str, tuple[int, ...], Confinement]:
    """What of a policy a sandbox is started with; the rest it is given when it is taken."""
    return confine.wall_of(policy).NAME, confine.raw_ports(policy), confine.bare(policy)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


__all__ = ["Pool"]
