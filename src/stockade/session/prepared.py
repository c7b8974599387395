"""What of a session does not depend on what it will be for: a name, a directory, a door, a place for events, cgroups; and in a pool a guest that stands already."""

from __future__ import annotations

import fcntl
import os
import time

from stockade.core import places
from stockade.core.errors import StockadeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stockade.core.values import Confinement, Limits
    from stockade.session.root import Rooted
    from stockade.walls.contract import Box, Plan, Wall
    from stockade.walls.door import Door
    from stockade.walls.gvisor import Guest, Warm
    from stockade.walls.limits import Groups


def new_id() -> str:
    """A session's name, unguessable and never used again."""
    return f"s{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(4).hex()}"


class Prepared:
    """Made for one session, or for none. `close` gives back what it holds; the directory stays, and so does its lock until then."""

    def __init__(self, name: str, wall: Wall, ports: tuple[int, ...]) -> None:
        """Returns while the kernel still makes the door. Raises OSError, StockadeError and its kinds; nothing is left behind then."""
        from stockade.session.bundle import Bundle
        from stockade.walls import door

        self.id = name
        self.wall = wall
        self.door: Door
        self.groups: Groups
        self.box: Guest | None = None
        self.warm: Warm | None = None
        self._parts: tuple[int, ...] = ()  # of the guest that stands ready (walls/states.py)
        self._rehearsed = False
        self._root: Rooted | None = None
        self.directory = ""
        self._closers: list[Any] = []
        try:
            self._making = door.Making((*door.PORTS, *ports), wall.WIRE)
            self._closers.append(self._making.give_up)
            self._directory()
            self.bundle = Bundle(f"{self.directory}/ca.pem", lease=not wall.OWN_KERNEL)
            self._closers.append(self.bundle.close)
            self.sink = None
            if wall.REPORTS:
                from stockade.walls.sink import Sink

                self.sink = Sink(self.lock, self.directory)
                self._closers.append(self.sink.close)
        except BaseException:
            self.discard()
            raise

    def _directory(self) -> None:
        new = self.directory = places.private(f"{places.private(places.state('sessions'))}/.{self.id}")
        self.lock = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._closers.append(lambda: os.close(self.lock))
        fcntl.flock(self.lock, fcntl.LOCK_EX)  # who cleans up after a crash takes only what nobody holds ...
        ready = places.state(f"sessions/{self.id}")  # ... and does not see it under this name before it is held
        os.rename(new, ready)
        self.directory = ready

    @property
    def guest(self) -> Guest:
        """The guest, which `start` has started."""
        assert self.box is not None
        return self.box

    def finish(self, limits: Limits) -> None:
        """Wait for the door, and make cgroups. Raises WallFailed."""
        from stockade.walls import limits as groups

        self.door = self._making.done()
        self._closers.append(self.door.close)
        self.groups = groups.join(f"stockade-{self.id}", groups.outside(limits, self.wall), self.wall.OWN_KERNEL)
        self._closers.append(self.groups.close)

    def rooted(self, wanted: Confinement, written: dict[str, str]) -> Confinement:
        """`wanted` with its root, which is prepared once, in our directory; walls without a kernel of their own refuse any but the usual by themselves.
        `written` are variables that an image has no say in. Raises CannotEnforce, StockadeError, OSError.
        """
        if wanted.root.usual or not self.wall.OWN_KERNEL:
            return wanted
        from stockade.session import root

        if self._root is None:
            self._root = root.made(wanted, self.wall.NAME, self.directory, self._closers.append)
        return root.shown(wanted, self._root, written)

    def start(self, wanted: Confinement) -> None:
        """Start a guest that waits for its mounts; `wanted` has none. Raises CannotEnforce, WallFailed."""
        from stockade.core.frozen import replace
        from stockade.walls import gvisor

        assert self.sink is not None
        warm = gvisor.plan(replace(self.rooted(wanted, {}), events=self.sink.path), gvisor.look(wanted.home)).warm
        self.finish(wanted.limits)
        self.box = gvisor.warm(warm, self.door, self.groups.descriptors)
        self._closers.append(self.box.close)
        self.warm = warm

    def news(self) -> bool:
        """Take what the guest's kernel and its init have said, as far as they have; whether the guest waits for its mounts, and has had its rehearsal. Raises
        WallFailed when it ended.
        """
        from stockade.walls.box import NO_WAIT

        assert self.sink is not None
        if not self.sink.connected and not self.sink.over:
            self.sink.connect()
        try:
            while not self.guest.prepared:
                self.guest.step(NO_WAIT)
        except BlockingIOError:
            return False
        if not self.sink.connected:
            return False
        # INVARIANT: never a program of an image: the guest's init may still mount.
        if not self._rehearsed and (self._root is None or self._root.tree is None):
            self._rehearsed = True
            self.guest.rehearse()
            return False
        self.sink.begin()
        return True

    def guard(self) -> None:
        """The guest stands ready: from now on `sentinels` say when it, or a part of it, has ended. Raises WallFailed if one has by now."""
        from stockade.walls import states

        self._parts = states.parts(self.guest.pid)
        self._closers.append(self.unguard)

    @property
    def sentinels(self) -> tuple[int, ...]:
        """Descriptors of which none is readable while the guest stands ready, and one is when it does not any more: nobody has asked it for anything."""
        return self.guest.fileno(), *self._parts

    @property
    def stands(self) -> bool:
        """Whether it still stands ready."""
        import select

        poll = select.poll()
        for fd in self.sentinels:
            poll.register(fd, select.POLLIN)
        return not poll.poll(0)

    def unguard(self) -> None:
        """It is somebody's now, or nobody's any more. May be called twice."""
        for fd in self._parts:
            os.close(fd)
        self._parts = ()

    def bind(self, plan: Plan) -> Box:
        """The guest, which becomes what `plan` says. Raises StockadeError (`pool.stale`) if it was not started as that says: then it must not be used."""
        from stockade.walls import gvisor

        if not isinstance(plan, gvisor.Plan) or plan.warm != self.warm:
            raise StockadeError(
                "the sandbox that stood ready is not what this policy wants on this machine any more",
                code="pool.stale",
                hint="Nothing was run in it. Another is started.",
            )
        self.guest.bind(plan.late)
        return self.guest

    def close(self) -> None:
        """End the guest, if there is one, and give everything back. May be called twice."""
        while self._closers:
            self._closers.pop()()

    def discard(self) -> None:
        """`close` what no session has had, and remove its directory."""
        from stockade.session import after

        self.close()
        if self.directory:
            after.discard(self.directory)
