"""Bytes between the user's descriptors and the sandbox's. The sandbox never holds the user's own: what it could do to them (reopen, truncate, read) is gone."""

from __future__ import annotations

import os

from stockade.core.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stockade.core.loop import Loop

CHUNK = 1 << 16
PIPE_BUF = 4096  # what a pipe surely takes when poll(2) says it is writable (pipe(7))


class Pump:
    """Copies from `source` to `sink` as both allow, never blocking the loop; at the end closes those of the two that are ours.

    `count` is told the size of each piece read. `done` is set at end of file, or when the sink's reader is gone.
    """

    def __init__(
        self,
        loop: Loop,
        source: int,
        sink: int,
        *,
        owns_source: bool = False,
        owns_sink: bool = False,
        count: Callable[[int], None] | None = None,
    ) -> None:
        self._loop, self._source, self._sink, self._count = loop, source, sink, count
        self._owned = [fd for fd, ours in ((source, owns_source), (sink, owns_sink)) if ours]
        # A descriptor of the user's stays in the blocking mode that their shell gave it, so take small bites.
        self._bite = CHUNK if owns_sink else PIPE_BUF
        self._held = memoryview(b"")
        self.done = False
        loop.watch(source, READ, self._read)

    def hold(self) -> None:
        """Copy nothing until `go_on`; nothing is lost."""
        self._loop.forget(self._source)
        self._loop.forget(self._sink)

    def go_on(self) -> None:
        """After `hold`."""
        if self.done:
            return
        if self._held:
            self._loop.watch(self._sink, WRITE, self._write)
        else:
            self._loop.watch(self._source, READ, self._read)

    def _read(self, _events: int) -> None:
        try:
            piece = os.read(self._source, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # EIO: a terminal whose other side is closed
            piece = b""
        if not piece:
            self.finish()
            return
        if self._count:
            self._count(len(piece))
        if not self.done:
            self._held = memoryview(piece)
            self._loop.forget(self._source)
            self._loop.watch(self._sink, WRITE, self._write)

    def _write(self, _events: int) -> None:
        try:
            self._held = self._held[os.write(self._sink, self._held[: self._bite]) :]
        except BlockingIOError:
            return
        except OSError:  # EPIPE: nobody reads any more
            self.finish()
            return
        if not self._held:
            self._loop.forget(self._sink)
            self._loop.watch(self._source, READ, self._read)

    def finish(self) -> None:
        """Stop copying and close what is ours."""
        if not self.done:
            self.done = True
            self._loop.forget(self._source)
            self._loop.forget(self._sink)
            for fd in self._owned:
                os.close(fd)


def pipe(inner_reads: bool) -> tuple[int, int]:
    """(ours, theirs): a pipe whose end on our side does not block; the sandbox reads from it or writes to it."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    ours, theirs = (writer, reader) if inner_reads else (reader, writer)
    os.set_blocking(ours, False)
    return ours, theirs


def close(fds: Iterable[int]) -> None:
    """Close all that are open; below zero there is none."""
    for fd in fds:
        if fd >= 0:
            os.close(fd)
