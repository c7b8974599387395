"""What happens in a guest that has a kernel of its own goes into the ledger while it happens, as that kernel says (walls/sink.py)."""

from __future__ import annotations

import os

from stockade.core.errors import WallFailed
from stockade.core.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.core.loop import Loop
    from stockade.session import Session
    from stockade.walls.sink import Sink

SUM = 1.0  # seconds: so often at most, what is not on record is summed up
GRACE = 0.5  # seconds from the end of the stream until the sandbox must have ended too
SOON = 0.25  # seconds after it stands: then its start has had both cores, and it is looked for what it consists of
LAST = 16  # batches that are read once the sandbox is dead: more than the socket holds


class Witness:
    """Writes down what comes out of a session's sink, from now until `close`."""

    def __init__(self, session: Session, sink: Sink, loop: Loop, say: Callable[[str], None] = lambda _: None) -> None:
        self._session, self._sink, self._loop, self._say = session, sink, loop, say
        self._watched = -1
        self._parts: tuple[int, ...] = ()
        self._stood = self._summing = self._closed = False
        self._watch()

    def stands(self) -> None:
        """The sandbox has said something. Raises WallFailed (`gvisor.events`) if it stands without having connected before."""
        if self._session.box.ready and not self._sink.connected:
            raise WallFailed(
                f"the sandbox's kernel does not say what happens in it{': ' + self._sink.over if self._sink.over else ''}",
                code="gvisor.events",
                hint="The sandbox was ended. `stockade doctor --wall gvisor` tries runsc, and with --fix installs one that works.",
            )
        if self._session.box.ready and not self._stood:
            self._stood = True
            self._loop.later(SOON, self._guard)

    def _guard(self) -> None:
        """From now on see by ourselves when a part of the guest ends: runsc ends the rest then, but not while it stands still, and nobody should depend on it."""
        from stockade.walls import states

        if self._closed or self._session.box.dead:
            return
        try:
            self._parts = states.parts(self._session.box.pid)
        except WallFailed:
            self._loop.later(GRACE, self._broken)
        for fd in self._parts:
            self._loop.watch(fd, READ, self._part_ended)

    def _part_ended(self, _events: int) -> None:
        for fd in self._parts:
            self._loop.forget(fd)
        self._loop.later(GRACE, self._broken)

    def _broken(self) -> None:
        """A part of the guest has ended. Raises WallFailed if it has not ended as a whole by now."""
        if not self._closed and not self._session.box.dead:
            from stockade.walls import states

            raise states.lost(self._session.died_of())

    def close(self) -> None:
        """The sandbox is dead: write down what it has said before. Raises StockadeError when that cannot be recorded. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._loop.forget(self._watched)
        for fd in self._parts:
            self._loop.forget(fd)
            os.close(fd)
        self._parts = ()
        for _ in range(LAST):
            if not self._sink.over:
                self._record()
        self._sum()

    def _watch(self) -> None:
        self._watched = self._sink.fileno()
        self._loop.watch(self._watched, READ, self._read)

    def _read(self, _events: int) -> None:
        self._record()
        if self._sink.over:
            self._loop.forget(self._watched)
            self._loop.later(GRACE, self._ended)
        elif self._sink.fileno() != self._watched:
            self._loop.forget(self._watched)
            self._watch()
        if self._sink.pending and not self._summing:
            self._summing = True
            self._loop.later(SUM, self._sum)

    def _record(self) -> None:
        for event in self._sink.take():
            self._session.record(f"guest.{event.pop('what')}", **event)

    def _sum(self) -> None:
        self._summing = False
        for lost in self._sink.lost():
            self._session.record("guest.lost", **lost)

    def _ended(self) -> None:
        """The stream has ended. If the sandbox lives on, nobody sees any more what happens in it, and everybody should know."""
        if not self._closed and not self._session.box.dead:
            self._session.record("guest.lost", reason=f"the stream has ended before the guest: {self._sink.over}")
            self._say("what happens in the sandbox is not recorded any more: its kernel's stream of events has ended (stockade log show)")
