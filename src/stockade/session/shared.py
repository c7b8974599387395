"""A gate that several sessions of one user share: started by the first that needs it, or as a service, and gone when nobody has needed it for a while."""

from __future__ import annotations

import fcntl
import os
import sys
import time

from stockade.core import places
from stockade.core.errors import StockadeError, WallFailed
from stockade.core.loop import READ, Loop
from stockade.gateway import hall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.session.own_gate import OwnGate

IDLE = 60.0  # seconds without a session after which one that was started on demand ends
_START = 10.0  # seconds until it must receive
_KEPT = ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "SSL_CERT_FILE", "PATH", "LANG")  # what it sees of our environment


def introduce(fds: list[int]) -> None:
    """Hand a session to the shared gate, which is started if there is none. Raises StockadeError (`gate.shared`) if that does not come up in time."""
    directory = os.open(places.private(places.state("gate")), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + _START
        started = False
        while not hall.call(directory, fds):
            if not started:
                _start(directory)
                started = True
            if time.monotonic() > deadline:
                raise WallFailed(
                    "the shared gate did not start",
                    code="gate.shared",
                    hint=f'Look into {places.state("gate/log")}, or set gate = "own" in the policy.',
                )
            time.sleep(0.01)
    finally:
        os.close(directory)


def _start(directory: int) -> None:
    """Start a gate that outlives us. Two at once are no harm: the second finds the directory locked, and leaves."""
    argv = [sys.executable, "-I", "-m", "stockade", "gate", "serve", "--idle", f"{IDLE:g}"]
    hall.start(argv, {name: os.environ[name] for name in _KEPT if name in os.environ}, directory)


def serve(idle: float, say: Callable[[str], None]) -> None:
    """Be the shared gate of this user until it has had no session for `idle` seconds (0 = for ever), or its gate ends.

    Raises StockadeError: `gate.running` if there is one already, WallFailed (`gate.exit`) when the gate ends; CannotEnforce, WallFailed as a session.
    """
    from stockade.gateway import engine
    from stockade.session.own_gate import OwnGate

    directory = os.open(places.private(places.state("gate")), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StockadeError(
            "a shared gate of this user runs already", code="gate.running", hint="One is enough: sessions find it."
        ) from None
    gate = OwnGate(engine.find())
    reception = hall.Hall(directory)
    try:
        say(f"receives sessions in {places.state('gate')}")
        _Service(reception, gate, idle).run()
    finally:
        gate.close()
        reception.close()


class _Service:
    """Receives supervisors and introduces them to the gate."""

    def __init__(self, reception: hall.Hall, gate: OwnGate, idle: float) -> None:
        self._reception, self._gate, self._idle = reception, gate, idle
        self._loop = Loop()
        self._over = False
        self._timer = 0

    def run(self) -> None:
        self._loop.watch(self._reception.fileno(), READ, self._receive)
        self._loop.watch(self._gate.introductions.fileno(), READ, self._count)
        self._loop.watch(self._gate.fileno(), READ, self._notes)
        self._wait()
        while not self._over:
            self._loop.turn()

    def _receive(self, _events: int) -> None:
        received = self._reception.receive()
        if received is None:
            return
        caller, fds = received
        with caller:
            try:
                self._gate.introductions.introduce(fds)
                hall.welcome(caller)
            finally:
                for fd in fds:
                    os.close(fd)
        self._stay()

    def _count(self, _events: int) -> None:
        count = self._gate.introductions.count()
        if count < 0:
            raise WallFailed("the gate ended", code="gate.exit", hint=self._gate.said()[-300:])
        self._stay()
        if count == 0:
            self._wait()

    def _notes(self, _events: int) -> None:
        if ended := self._gate.ended():
            raise WallFailed(ended, code="gate.exit", hint=self._gate.said()[-300:])

    def _wait(self) -> None:
        """Nobody is here: leave unless somebody comes in time."""
        if self._idle:
            self._timer = self._loop.later(self._idle, self._leave)

    def _stay(self) -> None:
        if self._timer:
            self._loop.cancel(self._timer)
            self._timer = 0

    def _leave(self) -> None:
        self._over = True
