"""A command inside a live session, as a program outside sees it."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from typing import TYPE_CHECKING, Literal

from stockade.core.errors import StockadeError, WallFailed
from stockade.core.frozen import frozen
from stockade.session.exchange import Inlet, Outlet

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from stockade.session.live import LiveSession
    from stockade.walls.box import Child

ANSWER = 60.0  # seconds in which a sandbox says that it has started a command, or cannot
HELD = 256 << 10  # bytes a started command may be ahead of its reader
type Stream = Literal["stdout", "stderr"]


class SessionEnded(StockadeError):
    """The session is over, so the command was not run or did not end by itself. `code`: `session.closed`, or `session.limit` (which, says the message)."""


@frozen
class Result:
    """What a command did. `exit_code` as the shells count (128 + N: ended by signal N; 126, 127: could not be executed).

    `stdout` and `stderr` are bytes of the sandbox's choice: data, never to be trusted. `truncated`: there was more of one of them.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False
    timed_out: bool = False

    @property
    def said(self) -> str:
        """Why it failed, as far as it said so: the beginning of stderr as a line for people."""
        text = self.stderr[:300].decode("utf-8", "replace").strip() or f"exit code {self.exit_code}"
        return "".join(letter if letter.isprintable() else " " for letter in text)


def plain_path(path: str) -> str:
    """A path that no program takes for an option or for standard input."""
    return path if path.startswith("/") else f"./{path}"


@frozen
class Piece:
    """Some bytes that a command wrote."""

    stream: Stream
    data: bytes


class Command:
    """A command that was started. Iterate over it for its output, `await wait()` for its exit code; as a context manager it is killed at the end.

    Like a program behind a pipe, it stops when its output is not read. Made by `LiveSession.start`.
    """

    def __init__(self, session: LiveSession, number: int, keep: int) -> None:
        self._session, self.number, self._keep = session, number, keep
        self._child: Child | None = None
        self._outlets: list[Outlet] = []
        self._asked = session.future()
        self._ended = session.future()
        self._pieces: deque[Piece] = deque()
        self._size = 0
        self._wake: asyncio.Future[None] | None = None
        self._kept = {"stdout": bytearray(), "stderr": bytearray()}
        self._truncated = False
        self.code = 0
        self.stdin: Inlet | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.kill()
        if self.stdin is not None:
            self.stdin.abandon()
        for outlet in self._outlets:
            outlet.discard()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        """The next bytes of either stream, as they arrive. Ends with the command, also if processes it left behind keep the streams open.

        Raises SessionEnded or WallFailed when the sandbox ended first.
        """
        while True:
            if self._pieces:
                piece = self._pieces.popleft()
                self._size -= len(piece.data)
                if self._size < HELD:
                    for outlet in self._outlets:
                        outlet.resume()
                return piece
            if self._ended.done():
                for outlet in self._outlets:
                    outlet.rest()
                if self._pieces:
                    continue
                for outlet in self._outlets:
                    outlet.discard()
                self._ended.result()
                raise StopAsyncIteration
            self._wake = self._session.future()
            try:
                await self._wake
            finally:
                self._wake = None

    async def wait(self) -> int:
        """The exit code, as in Result. Raises SessionEnded or WallFailed when the sandbox ended first. Cancelling it does not end the command."""
        await asyncio.shield(self._ended)
        return self.code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command's process group (it is the leader of its own); nothing happens if it has ended."""
        if self._child is not None and not self._ended.done():
            self._session.signal(self._child, number)

    # --- what the session tells us

    def attach(self, child: Child, stdin: int, stdout: int, stderr: int, *, collect: bool) -> None:
        """The command was asked for; these are our ends of its pipes (-1: no input)."""
        loop = self._session.loop
        self._child = child
        if stdin >= 0:
            self.stdin = Inlet(loop, stdin, self._session.future)
        names: tuple[Stream, ...] = ("stdout", "stderr")
        for name, fd in zip(names, (stdout, stderr), strict=True):
            self._outlets.append(Outlet(loop, fd, self._collect(name) if collect else self._queue(name), self._changed))

    def _collect(self, name: Stream) -> Callable[[bytes], bool]:
        kept = self._kept[name]

        def sink(piece: bytes) -> bool:
            self._session.count(len(piece))
            room = self._keep - len(kept)
            if len(piece) > room:
                self._truncated = True
                piece = piece[:room]
            kept.extend(piece)
            return True

        return sink

    def _queue(self, name: Stream) -> Callable[[bytes], bool]:
        def sink(piece: bytes) -> bool:
            self._session.count(len(piece))
            self._pieces.append(Piece(name, piece))
            self._size += len(piece)
            self._changed()
            return self._size < HELD

        return sink

    def _changed(self) -> None:
        if self._ended.done() and all(outlet.closed for outlet in self._outlets):
            self._session.gone(self)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def news(self) -> bool:
        """Take over what the wall's child says by now; true once, when it has ended."""
        child = self._child
        assert child is not None
        if not self._asked.done() and (child.pid or child.error):
            self._asked.set_result(None)
        if self._ended.done() or (child.status is None and not child.error):
            return False
        self.code = child.exit_code
        if self.stdin is not None:
            self.stdin.abandon()
        self._ended.set_result(None)
        self._changed()
        return True

    def fail(self, error: StockadeError) -> None:
        """The sandbox is gone."""
        for future in (self._asked, self._ended):
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever awaits it gets it; if nobody does, that is no mistake
        if self.stdin is not None:
            self.stdin.abandon()
        for outlet in self._outlets:
            outlet.close()
        self._changed()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet. What it left behind may still hold its streams."""
        return not self._ended.done()

    @property
    def ident(self) -> int:
        """The wall's number of the command, 0 before it was asked for."""
        return self._child.ident if self._child is not None else 0

    @property
    def begun(self) -> bool:
        """Whether the sandbox has answered that it was started, or cannot be."""
        return self._asked.done()

    async def asked(self) -> None:
        """Until the sandbox has started the command, or said that it cannot. INVARIANT: one that says neither is ended, whatever in it could prevent that."""
        late = self._session.loop.later(ANSWER, self._unanswered)
        try:
            await self._asked
        finally:
            self._session.loop.cancel(late)

    def _unanswered(self) -> None:
        if self._session.paused:
            self._session.loop.later(ANSWER, self._unanswered)
        elif not self.begun:
            hint = "The sandbox was ended: something in it keeps its init from starting commands."
            raise WallFailed(f"no command could be started for {ANSWER:g} s", code="wall.silent", hint=hint)

    async def result(self, timeout: float | None) -> Result:
        """Everything, at the end. A timeout or a cancellation kills the command."""
        timed_out = False
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), timeout)
        except TimeoutError:
            timed_out = True
            self.kill()
            await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            self.kill()
            raise
        finally:
            for outlet in self._outlets:
                if self._ended.done():
                    outlet.rest()
                outlet.discard()
        self._ended.result()
        return Result(self.code, bytes(self._kept["stdout"]), bytes(self._kept["stderr"]), self._truncated, timed_out)
