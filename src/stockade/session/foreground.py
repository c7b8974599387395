"""`stockade run`: one session with one command in the foreground, its streams and signals joined to the user's.

One loop serves everything: the sandbox's notes, the streams, the user's signals, the watchdog's timer, the knock on the door and the gate's messages.
"""

from __future__ import annotations

import os
import time

from stockade.core.errors import EXIT_FAILED, StockadeError, WallFailed
from stockade.core.frozen import frozen
from stockade.core.loop import READ, Loop, writable
from stockade.session import READY, Session, slow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from stockade.core.asks import Answered, Asked
    from stockade.core.values import Policy
    from stockade.session.gate import GateKeeper
    from stockade.session.guest import Witness
    from stockade.session.prompt import Prompt
    from stockade.walls.box import Child
    from stockade.walls.streams import Pump
    from stockade.walls.terminal import Raw

GRACE = 5.0  # seconds between passing on SIGTERM or SIGHUP and ending the sandbox
NOTES = 64  # taken in one turn of the loop: a sandbox whose init is not ours any more must not keep us from looking at its limits
DRAIN = 2.0  # seconds in which the reader of a run that we ended may take what is left


class Foreground:
    """Runs one command; `outcome` says how it ended, in words, when it was not by itself."""

    def __init__(self, session: Session, *, tty: bool | None) -> None:
        self.session = session
        self.loop = Loop()
        self.tty = tty
        self.outcome = ""
        self.output = 0
        self.child: Child | None = None
        self._pumps: list[Pump] = []
        self._out: list[Pump] = []
        self._gate: GateKeeper | None = None
        self._witness: Witness | None = None
        self._raw: Raw | None = None
        self._prompt: Prompt | None = None
        self._given: list[int] = []
        self._old_signals: dict[int, Any] = {}

    def run(self, argv: Sequence[str]) -> int:
        """The command's exit code. Raises StockadeError when the sandbox could not be made or broke."""
        session = self.session
        session.open()
        # From here on the kernel builds the sandbox on another core; what follows is in its shadow.
        from stockade.walls import terminal

        if self.tty is None:
            self.tty = terminal.interactive()
        self._signals()
        session.record_start(argv)
        try:
            if session.certificates_first:
                self._watch()
                self._await_certificates()
                if self.outcome:
                    session.box.close()
                    return 128 + 9
                child = self._spawn(argv)
            else:
                child = self._spawn(argv)
                self._watch()
            from stockade.walls.workspace import scan  # noqa: F401 - needed at the end; loading it now costs nobody any time

            return self._until_end(child)
        finally:
            self._restore()

    def _spawn(self, argv: Sequence[str]) -> Child:
        from stockade.walls.streams import Pump, pipe

        session, wanted = self.session, self.session.confinement
        environment = dict(wanted.environment)
        if self.tty:
            child = self.child = session.box.spawn(argv, env=environment, cwd=wanted.cwd, tty=True)
            if child.terminal >= 0:
                self._attach_terminal(child)
            return child
        stdin, inner_in = pipe(inner_reads=True)
        stdout, inner_out = pipe(inner_reads=False)
        stderr, inner_err = pipe(inner_reads=False)
        try:
            child = session.box.spawn(argv, env=environment, cwd=wanted.cwd, stdin=inner_in, stdout=inner_out, stderr=inner_err)
        finally:
            for fd in (inner_in, inner_out, inner_err):
                os.close(fd)
        self.child = child
        self._pumps.append(Pump(self.loop, 0, stdin, owns_sink=True))
        self._out = [
            Pump(self.loop, stdout, 1, owns_source=True, count=self._count),
            Pump(self.loop, stderr, 2, owns_source=True, count=self._count),
        ]
        return child

    def _await_certificates(self) -> None:
        """Until the gate has made them, or has failed and everything is refused."""
        if self._gate is not None:
            self._gate.start("certificates")
        while self.session.bundle.fileno() >= 0 and not self.outcome:
            self.loop.turn()

    def _attach_terminal(self, child: Child) -> None:
        from stockade.walls import terminal
        from stockade.walls.streams import Pump

        master = child.terminal
        os.set_blocking(master, False)
        self.session.box.resize(child, 0)
        if os.isatty(0):
            self._raw = terminal.Raw(0)
        self._given.append(master)
        self._pumps.append(Pump(self.loop, 0, os.dup(master), owns_sink=True))
        self._out.append(Pump(self.loop, os.dup(master), 1, owns_source=True, count=self._count))

    def _watch(self) -> None:
        from stockade.session.gate import GateKeeper

        session = self.session
        self.loop.watch(session.box.fileno(), READ, self._notes)
        self._gate = GateKeeper(session, self.loop, say, self._question)
        self._gate.listen()
        if session.sink is not None:
            from stockade.session.guest import Witness

            self._witness = Witness(session, session.sink, self.loop, say)
        if session.signer is not None:
            session.signer.listen(self.loop, say)
        limits = session.policy.limits
        if limits.wall_time:
            self.loop.later(limits.wall_time, lambda: self._stop(f"wall time of {limits.wall_time} s is over", "wall_time"))
        from stockade.session.after import MOMENT
        from stockade.walls.limits import INTERVAL

        self.loop.later(MOMENT, session.scan)
        self.loop.later(MOMENT, lambda: session.guard(self.loop))
        self.loop.later(INTERVAL, self._look)

    def _question(self, asked: Asked | None, answered: Answered | None) -> None:
        """Something is asked, or was answered. Where the program inside has the user's terminal, it is asked there."""
        gate, child = self._gate, self.child
        if answered is not None and answered.asked.trap and answered.by == "person":
            from stockade.core.asks import lesson

            say(lesson(answered.asked.trap, answered.caught))
        if self._raw is None or gate is None or child is None:
            if asked is not None:
                what = asked.key.rpartition(" ")[0] if asked.action == "tool" else asked.key  # without the digest
                kind = {"egress": "request", "tool": "call", "file": "change", "mount": "mount"}[asked.action]
                say(f"a {kind} waits for your word ({asked.risk} risk): {what}")
                say(f"  stockade approvals allow {self.session.id} {asked.number}    (or deny; stockade approvals shows all of it)")
            return
        if self._prompt is None:
            from stockade.session.prompt import Prompt

            def answer(asked: Asked, allow: bool, scope: str) -> None:
                gate.questions.answer(asked.number, asked.digest, allow, channel="terminal", scope=scope)

            self._prompt = Prompt(self.loop, [*self._pumps, *self._out], answer, self._redraw)
        self._prompt.hear(asked, answered)

    def _redraw(self) -> None:
        """Make what runs inside draw again: its window changes, and changes back (ioctl_tty(2), TIOCSWINSZ)."""
        if self.child is not None and self._given:
            self.session.box.resize(self.child, 0, fewer=1)
            self.session.box.resize(self.child, 0)

    def _notes(self, _events: int) -> None:
        from stockade.walls.box import NO_WAIT

        box = self.session.box
        for _ in range(NOTES):
            if box.dead:
                break
            child = self.child
            terminal = child.terminal if child is not None else -1
            try:
                box.step(NO_WAIT)
            except BlockingIOError:
                break
            except WallFailed:
                why = self.session.died_of()
                if not why:
                    raise
                self._stop(why, "memory")
                break
            if self._witness is not None:
                self._witness.stands()
            if child is None:
                continue
            if terminal < 0 <= child.terminal:
                self._attach_terminal(child)
            if child.status is not None or child.error:
                break

    def _until_end(self, child: Child) -> int:
        session = self.session
        while child.status is None and not child.error and not self.outcome:
            self.loop.turn()
        if session.wall.OWN_KERNEL and not self.outcome and (why := session.died_of()):
            self._stop(why, "memory")  # what of a guest the host's kernel ends, the guest's own does not name
        if self._prompt is not None:
            self._prompt.close()
        self.loop.forget(session.box.fileno())
        for pump in self._pumps:
            pump.finish()
        session.box.close()  # whatever the command left running ends here, so the streams end too
        if self._witness is not None:
            self._witness.close()
        for fd in self._given:
            os.close(fd)
        self._given = []
        self.loop.later(DRAIN, lambda: None)  # wakes the loop: a reader that is stuck does not outlast the limit
        deadline = time.monotonic() + (DRAIN if self.outcome else 3600)
        while not all(pump.done for pump in self._out) and time.monotonic() < deadline:
            self.loop.turn()
        return 128 + 9 if self.outcome else child.exit_code

    @property
    def refused(self) -> int:
        """How many requests the gate refused."""
        return self.decisions.get("deny", 0)

    @property
    def learned(self) -> tuple[dict[str, object], ...]:
        """What was asked of the gate, in a session that is there to learn it."""
        return tuple(self._gate.learned) if self._gate else ()

    @property
    def decisions(self) -> dict[str, int]:
        """How many requests the gate decided, by effect."""
        return self._gate.decisions if self._gate else {}

    @property
    def engine(self) -> str:
        """What carried the requests, "" if nothing connected."""
        return self._gate.engine if self._gate else ""

    def _count(self, size: int) -> None:
        self.output += size
        limit = self.session.policy.limits.output
        if limit and self.output > limit:
            self._stop(f"more than {limit} bytes of output", "output")

    def _stop(self, why: str, limit: str) -> None:
        """End the sandbox because of a limit or a signal of the user's."""
        if not self.outcome:
            self.outcome = why
            self.session.record("limit", limit=limit, reason=why)

    def _look(self) -> None:
        from stockade.walls import limits

        session = self.session
        if session.box.ready:
            if why := session.exceeded():
                self._stop(why, "watchdog")
                return
        elif time.time() > session.started + 6 * READY:  # a person who starts something on a busy machine would rather wait
            raise slow(6 * READY)
        self.loop.later(limits.INTERVAL, self._look)

    def _signals(self) -> None:
        """Let signals wake the loop through a pipe, and hand them on (signal(7))."""
        import _signal as signal  # type: ignore[import-not-found]  # what signal wraps, without the 5 ms of enum

        self._wake, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
            signal.SIGQUIT,
            signal.SIGWINCH,
            signal.SIGIO,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ):
            self._old_signals[number] = signal.signal(number, lambda *_: None)
        self.loop.watch(self._wake, READ, self._signalled)

    def _signalled(self, _events: int) -> None:
        import _signal as signal

        for number in os.read(self._wake, 64):
            if number == signal.SIGWINCH:
                if self.child and self._given:
                    self.session.box.resize(self.child, 0)
            elif number == signal.SIGIO:
                if self._gate and self.session.bundle.wanted():
                    self._gate.start("certificates")
            elif self.child:
                self.session.box.signal(self.child, number)
                if number in (signal.SIGTERM, signal.SIGHUP):
                    self.loop.later(GRACE, lambda: self._stop("asked to end", "signal"))
            elif number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                self._stop("asked to end", "signal")  # before its command was started

    def _restore(self) -> None:
        import _signal as signal

        if self._raw is not None:
            self._raw.restore()
        if self.output:  # and nothing of it hides what we say from now on: errors, and the report
            from stockade.session.plainly import plainly

            plainly(2)
        signal.set_wakeup_fd(-1)
        for number, handler in self._old_signals.items():
            signal.signal(number, handler)
        if self._gate:
            self._gate.close()
        if self._witness is not None:
            self._witness.close()
        if self.session.signer is not None:
            self.session.signer.close()


def _standard_descriptors() -> None:
    """Open /dev/null where the caller closed 0, 1 or 2: the number would go to a file of ours, and the command's output into it."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR)  # takes the lowest free number, which is this one


def say(text: str) -> None:
    """A line for the user between the lines of the command; the terminal may be in raw mode. Where nobody reads it is dropped: what is inside can cause any number."""
    if writable(2):
        os.write(2, f"stockade: {text[:1000]}\r\n".encode("utf-8", "backslashreplace"))


@frozen
class End:
    """How a run ended: exit code, why we ended it (""= by itself), whether the command could not be executed, refused requests, session,
    what became of the workspace, and what was asked of the gate in a session that is there to learn it (events as in the ledger).
    """

    code: int
    outcome: str
    missing: bool
    refused: int
    session: str
    events: tuple[dict[str, Any], ...] = ()
    learned: tuple[dict[str, object], ...] = ()


def run(policy: Policy, argv: Sequence[str], *, cwd: str, tty: bool | None = None, receipt: str = "", learning: bool = False) -> End:
    """Run `argv` confined by `policy`; `receipt` names a file to write ("" = none). `learning`: see Session.

    Raises StockadeError when nothing could be run, or when what happened cannot be recorded.
    """
    _standard_descriptors()
    with Session(policy, cwd, learning=learning) as session:
        if os.isatty(2):
            session.say = say
        paper = None
        if receipt:
            from stockade.record.receipts import ReceiptFile

            paper = ReceiptFile(os.path.join(cwd, receipt))  # before the sandbox could move its directory
        front = Foreground(session, tty=tty)
        try:
            code = front.run(argv)
        except StockadeError as error:
            if session.recording:
                session.record("session.exit", code=EXIT_FAILED, error=error.code, message=error.message)
            raise
        events = session.finish()
        facts = {"code": code, "outcome": front.outcome, "output": front.output, "decisions": front.decisions}
        end = session.record("session.exit", seconds=round(time.time() - session.started, 3), **facts)
        if paper is not None:
            from stockade.record.receipts import ended

            paper.write(
                ended(
                    session.receipt(),
                    end=end,
                    exit_status=code,
                    limits=(front.outcome,) if front.outcome else (),
                    decisions=front.decisions,
                    engine=front.engine,
                )
            )
        missing = front.child is not None and front.child.error != 0
    return End(code, front.outcome, missing, front.refused, session.id, tuple(events), front.learned)
