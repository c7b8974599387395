"""A poll loop of a few lines: descriptors with callbacks, and timers. asyncio would triple the start-up of `stockade run` (poll(2))."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.POLLIN, select.POLLOUT


def writable(fd: int) -> bool:
    """Whether a write of up to 4096 bytes does not block now (pipe(7); for a terminal that was stopped it would)."""
    poll = select.poll()
    poll.register(fd, WRITE)
    return bool(poll.poll(0))


class Loop:
    """Not thread-safe. Callbacks get the poll events; whoever registered a descriptor must remove it before closing it."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: dict[int, tuple[float, Callable[[], None]]] = {}
        self._next_timer = 0

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call `callback(events)` when `fd` is ready; replaces an earlier watch of the same descriptor."""
        self._poll.register(fd, events)
        self._callbacks[fd] = callback

    def forget(self, fd: int) -> None:
        """Stop watching; unknown descriptors are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def later(self, seconds: float, callback: Callable[[], None]) -> int:
        """Call `callback` once after `seconds`; returns a number for `cancel`."""
        self._next_timer += 1
        self._timers[self._next_timer] = (time.monotonic() + seconds, callback)
        return self._next_timer

    def cancel(self, timer: int) -> None:
        """Forget a timer; one that ran is ignored."""
        self._timers.pop(timer, None)

    def turn(self) -> None:
        """Wait until something is ready or due, and call it."""
        timeout: float | None = None
        if self._timers:
            timeout = max(0.0, min(due for due, _ in self._timers.values()) - time.monotonic()) * 1000 + 0.5
        for fd, events in self._poll.poll(timeout):
            callback = self._callbacks.get(fd)  # an earlier callback of this turn may have removed it
            if callback is not None:
                callback(events)
        now = time.monotonic()
        for number, (due, action) in [*self._timers.items()]:
            if due <= now and self._timers.pop(number, None) is not None:
                action()
