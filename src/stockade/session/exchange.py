"""asyncio for the in-process API: the loop that our callbacks are written against, and the pipes of a command."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from typing import TYPE_CHECKING

from stockade.core.loop import READ, WRITE, Loop
from stockade.walls.streams import CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable

BITES = 16  # pieces read in one turn, so that one loud command does not starve the others
LEFT_OVER = 2 << 20  # more than any pipe holds (pipe(7), F_SETPIPE_SZ without privilege): what a command wrote before it ended


class AsyncioLoop(Loop):
    """core.loop.Loop's interface over a running asyncio loop. A callback that raises is handed to `failed`: it must not be logged and forgotten."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._failed = failed
        self._events: dict[int, int] = {}
        self._handles: dict[int, asyncio.TimerHandle] = {}
        self._count = 0

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        before = self._events.get(fd, 0)
        if before & ~events & READ:
            self._loop.remove_reader(fd)
        if before & ~events & WRITE:
            self._loop.remove_writer(fd)
        self._events[fd] = events
        if events & READ:
            self._loop.add_reader(fd, self._call, callback, READ)
        if events & WRITE:
            self._loop.add_writer(fd, self._call, callback, WRITE)

    def forget(self, fd: int) -> None:
        before = self._events.pop(fd, 0)
        if before & READ:
            self._loop.remove_reader(fd)
        if before & WRITE:
            self._loop.remove_writer(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> int:
        self._count += 1
        self._handles[self._count] = self._loop.call_later(seconds, self._due, self._count, callback)
        return self._count

    def cancel(self, timer: int) -> None:
        handle = self._handles.pop(timer, None)
        if handle is not None:
            handle.cancel()

    def turn(self) -> None:
        raise NotImplementedError("asyncio turns this loop")

    def clear(self) -> None:
        """Forget everything."""
        for fd in [*self._events]:
            self.forget(fd)
        for timer in [*self._handles]:
            self.cancel(timer)

    def _due(self, timer: int, callback: Callable[[], None]) -> None:
        self._handles.pop(timer, None)
        self._call(callback)

    def _call(self, callback: Callable[..., None], *args: int) -> None:
        try:
            callback(*args)
        except Exception as error:
            self._failed(error)


class Outlet:
    """The host's end of a pipe that the sandbox writes to. `sink` is given each piece and says whether it wants more now; `resume()` goes on."""

    def __init__(self, loop: Loop, fd: int, sink: Callable[[bytes], bool], changed: Callable[[], None]) -> None:
        self._loop, self._fd, self._sink, self._changed = loop, fd, sink, changed
        self._reading = False
        self.resume()

    @property
    def closed(self) -> bool:
        """Whether everything was read, or the pipe was given up."""
        return self._fd < 0

    def resume(self) -> None:
        """Read on after the sink had enough."""
        if not self._reading and self._fd >= 0:
            self._reading = True
            self._loop.watch(self._fd, READ, self._ready)

    def _ready(self, _events: int) -> None:
        for _ in range(BITES):
            try:
                piece = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            if not piece:
                self.close()
                return
            more = self._sink(piece)
            if self._fd < 0:  # it was too much for the session
                return
            if not more:
                self._loop.forget(self._fd)
                self._reading = False
                return
            if len(piece) < CHUNK // 16:  # most likely all there is
                return

    def rest(self) -> None:
        """Read what lies in the pipe now, wanted or not. The command has ended, so this is the last it said."""
        seen = 0
        while self._fd >= 0 and seen < LEFT_OVER:
            try:
                piece = os.read(self._fd, CHUNK)
            except BlockingIOError:
                return
            if not piece:
                self.close()
                return
            seen += len(piece)
            self._sink(piece)

    def discard(self) -> None:
        """Nobody listens any more: what processes that outlive the command still say is read and thrown away, so that they are not ended by it."""
        self._sink = lambda _piece: True
        self.resume()

    def close(self) -> None:
        """Give up the pipe."""
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
            self._changed()


class Inlet:
    """The host's end of a pipe that the sandbox reads from: a command's standard input. Single user: await one `write` before the next."""

    def __init__(self, loop: Loop, fd: int, new_future: Callable[[], asyncio.Future[None]]) -> None:
        self._loop, self._fd, self._new_future = loop, fd, new_future
        self._waiting: deque[tuple[memoryview, asyncio.Future[None] | None]] = deque()
        self._last = False

    async def write(self, data: bytes) -> None:
        """Hand over `data`; returns when the pipe has taken it. Raises BrokenPipeError when the command does not read any more."""
        if self._fd < 0 or self._last:
            raise BrokenPipeError("the command's standard input is closed")
        if not data:
            return
        done = self._new_future()
        self._put(data, done)
        await done

    def close(self) -> None:
        """End of input, after what was written before. May be called twice."""
        self._last = True
        if not self._waiting:
            self.abandon()

    def feed(self, data: bytes) -> None:
        """All the input there will be, without waiting; if the command reads less of it, that is its business."""
        if data:
            self._put(data, None)
        self.close()

    def _put(self, data: bytes, done: asyncio.Future[None] | None) -> None:
        self._waiting.append((memoryview(data), done))
        if len(self._waiting) == 1:
            self._ready(WRITE)
            if self._waiting and self._fd >= 0:
                self._loop.watch(self._fd, WRITE, self._ready)

    def _ready(self, _events: int) -> None:
        while self._waiting and self._fd >= 0:
            data, done = self._waiting[0]
            try:
                data = data[os.write(self._fd, data) :]
            except BlockingIOError:
                return
            except OSError:  # EPIPE: nobody reads any more
                self.abandon()
                return
            if data:
                self._waiting[0] = (data, done)
                continue
            self._waiting.popleft()
            if done is not None and not done.done():
                done.set_result(None)
        if self._fd >= 0:
            self._loop.forget(self._fd)
            if self._last:
                self.abandon()

    def abandon(self) -> None:
        """Close the pipe now. Whoever waits in `write` gets BrokenPipeError."""
        if self._fd >= 0:
            self._loop.forget(self._fd)
            os.close(self._fd)
            self._fd = -1
        while self._waiting:
            _, done = self._waiting.popleft()
            if done is not None and not done.done():
                done.set_exception(BrokenPipeError("the command stopped reading its standard input"))
