"""Sessions inside a program: `async with open_session(policy) as session: await session.exec([...])`. See docs/api.md.

The same session as `stockade run` makes, with the same door, wall, gate, limits and ledger, driven by asyncio. No signal handler is set, and threads
only bring back commits at the end and read checkpoints, so any number of sessions can live in one program; all calls belong to the event loop that opened the session.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from stockade.core.errors import EXIT_FAILED, StockadeError, WallFailed
from stockade.core.loop import READ
from stockade.session import READY, Session, slow
from stockade.session.after import MOMENT
from stockade.session.command import Command, Piece, Result, SessionEnded, plain_path
from stockade.session.deciders import Decider, Deciders
from stockade.session.exchange import AsyncioLoop
from stockade.session.gate import GateKeeper
from stockade.session.guest import Witness
from stockade.session.states import States
from stockade.walls.box import NO_WAIT
from stockade.walls.streams import close, pipe

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from stockade.core.values import Policy
    from stockade.session.checkpoints import Checkpoint
    from stockade.session.prepared import Prepared
    from stockade.walls.box import Child

OUTPUT = 64 << 20  # bytes kept of each stream of one `exec`
ASKED = 64  # commands asked for and not answered yet; more would fill the socket to the sandbox's init
LEASE = 0.02  # seconds between two looks whether somebody wants the certificates
NOTES = 64  # taken in one turn of the loop (foreground.py)


class LiveSession(States):
    """A sandbox that runs commands, several at once if wanted. Made by `open_session`. `id` is what the ledger calls it."""

    def __init__(
        self,
        policy: Policy,
        cwd: str,
        prepared: Prepared | None = None,
        *,
        restore: Checkpoint | str | None = None,
        deciders: Deciders | None = None,
    ) -> None:
        super().__init__(Session(policy, cwd, prepared=prepared), AsyncioLoop(self._broken))
        self._deciders = deciders or Deciders(None, None)
        self._restore = restore
        self.id = self._session.id
        self._aio = asyncio.get_running_loop()
        self._number = 0
        self._slots = asyncio.Semaphore(ASKED)
        self._witness: Witness | None = None
        self._ready = self.future()
        self._output = 0
        self._outcome = ""
        self._closed = False

    @property
    def workspace(self) -> str:
        """The workspace's path inside; commands start there."""
        return self._session.confinement.cwd

    @property
    def refused(self) -> int:
        """How many requests the gate has refused so far."""
        return self._gate.decisions.get("deny", 0) if self._gate is not None else 0

    def future(self) -> asyncio.Future[None]:
        """A new future of the session's event loop."""
        return self._aio.create_future()

    async def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes = b"",
        timeout: float | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str = "",
        max_output: int = OUTPUT,
    ) -> Result:
        """Run a command and wait for it. `timeout` in seconds; `env` is added to the session's; `cwd` inside, relative to the workspace.

        Returns when the command itself has ended; what processes it left behind still write is thrown away. Of each stream at most `max_output`
        bytes are kept. A timeout, or cancelling this call, kills the command's process group.
        Raises SessionEnded (`session.closed`, `session.limit`), WallFailed, StockadeError (`exec.resources`, `ledger.*`), ValueError for a NUL byte.
        """
        command = await self._begin(argv, bool(stdin), env, cwd, collect=True, keep=max_output)
        if command.stdin is not None:
            command.stdin.feed(stdin)
        return await command.result(timeout)

    async def start(self, argv: Sequence[str], *, stdin: bool = False, env: Mapping[str, str] | None = None, cwd: str = "") -> Command:
        """Start a command and return it running: iterate over it for output, write to its `stdin` (None unless asked for). Errors as `exec`."""
        return await self._begin(argv, stdin, env, cwd, collect=False, keep=0)

    async def read(self, path: str, *, max_size: int = OUTPUT) -> bytes:
        """The content of a file inside, read by a command inside: no path that a sandbox chose is ever opened on the host.

        Raises StockadeError (`file.read`, `file.size`).
        """
        found = await self.exec(["/bin/cat", "--", plain_path(path)], max_output=max_size)
        if found.exit_code:
            raise StockadeError(f"cannot read {path} inside: {found.said}", code="file.read", hint="Paths are those of the sandbox.")
        if found.truncated:
            raise StockadeError(
                f"{path} inside holds more than {max_size} bytes",
                code="file.size",
                hint="Raise max_size, or read parts of it with a command.",
            )
        return found.stdout

    async def write(self, path: str, data: bytes) -> None:
        """Write a file inside, through a command inside; replaces what was there. Raises StockadeError (`file.write`)."""
        done = await self.exec(["/bin/sh", "-c", 'exec /bin/cat >"$1"', "sh", plain_path(path)], stdin=data)
        if done.exit_code:
            raise StockadeError(f"cannot write {path} inside: {done.said}", code="file.write", hint="Paths are those of the sandbox.")

    # --- life

    async def open(self) -> None:
        """Used by `open_session`. Raises StockadeError and its kinds; nothing is left behind then."""
        session = self._session
        if self._restore is not None:
            from stockade.session import checkpoints

            session.origin = await asyncio.to_thread(checkpoints.load, self._restore)
        session.open()
        self.loop.watch(session.box.fileno(), READ, self._notes)
        if session.bundle.lazy:
            # The kernel announces whoever opens the certificates by SIGIO, which ends a program that does not expect it. SIGURG does nothing.
            fcntl.fcntl(session.bundle.fileno(), fcntl.F_SETSIG, signal.SIGURG)
            self.loop.later(LEASE, self._certificates)
        session.record_start(())
        gate = self._gate = GateKeeper(session, self.loop, listener=self._deciders.hear)
        self._deciders.session, self._deciders.questions = session, lambda: gate.questions
        gate.listen()
        if session.sink is not None:
            self._witness = Witness(session, session.sink, self.loop)
        if session.box.ready:  # it was waited for already
            if self._witness is not None:
                self._witness.stands()
            self._ready.set_result(None)
        if session.signer is not None:
            session.signer.listen(self.loop)
        if session.certificates_first:
            self._gate.start("certificates")
        if session.policy.limits.wall_time:
            seconds = session.policy.limits.wall_time
            self.loop.later(seconds, lambda: self._stop(f"wall time of {seconds} s is over", "wall_time"))
        self._look_later()
        self.loop.later(MOMENT, session.scan)
        self.loop.later(MOMENT, lambda: session.guard(self.loop))
        late = self.loop.later(READY, lambda: self._broken(slow()))
        await self._ready
        self.loop.cancel(late)
        while session.certificates_first and session.bundle.fileno() >= 0 and self._end is None:
            await asyncio.sleep(LEASE / 4)

    async def close(self) -> None:
        """End everything inside, bring commits back, and record it. May be called twice. Raises StockadeError when the end cannot be recorded."""
        error, closed = self._end, SessionEnded("the session is closed", code="session.closed", hint="Open a new one; nothing was run.")
        if self._closed:
            return
        self._closed = True
        session = self._session
        try:
            if session.recording:
                self._finish(closed)
                self._end = closed
            await self._settled()
            self._deciders.close()
            if self._gate is not None:
                self._gate.close()
            if self._witness is not None:
                self._witness.close()
            if session.signer is not None:
                session.signer.close()
            self.loop.clear()
            if session.recording:
                await self._afterwards()
                why = {"error": error.code, "message": error.message} if error is not None else {}
                session.record(
                    "session.exit",
                    code=0 if error is None else 128 + signal.SIGKILL if self._outcome else EXIT_FAILED,
                    outcome=self._outcome,
                    output=self._output,
                    decisions=dict(self._gate.decisions) if self._gate is not None else {},
                    commands=self._number,
                    seconds=round(time.time() - session.started, 3),
                    **why,
                )
        finally:
            session.close()

    async def _afterwards(self) -> None:
        """What is done with the workspace once everything inside is dead. Whatever can take long goes to a thread; a cancellation waits for it."""
        session = self._session
        facts = session.view.facts
        if not (facts["git"] or facts["layer"]) and time.time() - session.started < MOMENT:
            session.finish()
            return
        task = asyncio.ensure_future(asyncio.to_thread(session.finish))
        cancelled = False
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:
                cancelled = True
        task.result()
        if cancelled:
            raise asyncio.CancelledError

    def _finish(self, error: StockadeError) -> None:
        """No command will end by itself any more. Only the first call counts."""
        if self._end is not None:
            return
        self._end = error
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()
        for command in [*self._commands.values()]:
            command.fail(error)
        self._commands.clear()
        self.loop.forget(self._session.box.fileno())
        self._session.box.close()
        self._wake()

    # --- what happens meanwhile

    async def _begin(
        self, argv: Sequence[str], stdin: bool, env: Mapping[str, str] | None, cwd: str, *, collect: bool, keep: int
    ) -> Command:
        words = list(argv)
        async with self._slots:
            await self._going_on()
            wanted = self._session.confinement
            self._number += 1
            number = self._number
            command = Command(self, number, keep)
            place = os.path.join(wanted.cwd, cwd) if cwd else wanted.cwd
            self._session.record("exec.start", number=number, command=words, cwd=place)
            ours: list[int] = []
            theirs: list[int] = []
            try:
                for inner_reads in (True, False, False):
                    if inner_reads and not stdin:
                        ours.append(-1)
                        theirs.append(-1)
                        continue
                    one, other = pipe(inner_reads)
                    ours.append(one)
                    theirs.append(other)
                child = self._session.box.spawn(
                    words, env={**dict(wanted.environment), **(env or {})}, cwd=place, stdin=theirs[0], stdout=theirs[1], stderr=theirs[2]
                )
            except BaseException:
                close(ours)
                raise
            finally:
                close(theirs)
            command.attach(child, ours[0], ours[1], ours[2], collect=collect)
            self._commands[child.ident] = command
            try:
                await command.asked()
            except asyncio.CancelledError:
                command.kill()
                raise
        if child.error in (11, 12, 24):  # EAGAIN, ENOMEM, EMFILE: the sandbox is at a limit, the program itself was not even looked for
            raise StockadeError(
                f"the sandbox could not start {words[0]}: {os.strerror(child.error)}",
                code="exec.resources",
                hint="Too many processes or commands at once; raise limits.processes or run fewer.",
            )
        return command

    def signal(self, child: Child, number: int) -> None:
        """Pass a signal on to a command's process group."""
        if self._end is None:
            self._session.box.signal(child, number)

    def count(self, size: int) -> None:
        """Some output arrived."""
        self._output += size
        limit = self._session.policy.limits.output
        if limit and self._output > limit:
            self._stop(f"more than {limit} bytes of output", "output")

    def _notes(self, _events: int) -> None:
        session, box = self._session, self._session.box
        for _ in range(NOTES):
            if self._end is not None:
                return
            try:
                child = box.step(NO_WAIT)
            except BlockingIOError:
                return
            except WallFailed:
                why = self._session.died_of()
                if not why:
                    raise
                self._stop(why, "memory")
                return
            if self._witness is not None:
                self._witness.stands()
            if box.ready and not self._ready.done():
                self._ready.set_result(None)
            command = self._commands.get(child.ident) if child is not None else None
            ended = child is not None and child.status is not None
            if session.wall.OWN_KERNEL and ended and (why := session.died_of()):
                self._stop(why, "memory")  # what of a guest the host's kernel ends, the guest's own does not name
                return
            if command is not None and command.news():
                self._session.record("exec.exit", number=command.number, code=command.code)

    def gone(self, command: Command) -> None:
        """A command ended and its streams too."""
        self._commands.pop(command.ident, None)

    def _certificates(self) -> None:
        bundle = self._session.bundle
        if bundle.filled or bundle.fileno() < 0 or self._gate is None:
            return
        if bundle.wanted():
            self._gate.start("certificates")
        else:
            self.loop.later(LEASE, self._certificates)

    def _stop(self, why: str, limit: str) -> None:
        """End the sandbox because of a limit."""
        if self._end is None:
            self._outcome = why
            hint = "The whole sandbox was ended. Raise the limit in the policy, or do less."
            self._finish(SessionEnded(f"the session was ended: {why}", code="session.limit", hint=hint))
            self._session.record("limit", limit=limit, reason=why)

    def _broken(self, error: BaseException) -> None:
        """INVARIANT: an error in whatever serves the sandbox ends it; nothing goes on unwatched."""
        if not isinstance(error, StockadeError):
            hint = "The sandbox was ended. This is a bug in stockade; please report it."
            error = WallFailed(f"{type(error).__name__}: {error}", code="bug", hint=hint)
        self._finish(error)


@asynccontextmanager
async def open_session(
    policy: Policy | None = None,
    *,
    cwd: str | None = None,
    restore: Checkpoint | str | None = None,
    approver: Decider | None = None,
    reviewer: Decider | None = None,
) -> AsyncIterator[LiveSession]:
    """Open a sandbox, and end everything in it when the block is left.

    Without `policy` it is the one that `stockade run` would use in `cwd` (default: the current folder): administrator's and user's layers, and the project's where its user
    trusts the folder.
    With `restore` (a checkpoint, or the path of one that was kept) what runs inside goes on from there, in a session of its own; the policy's grants hold, but
    for those that had been taken back. Its mounts and limits must be those that the checkpoint was made under.
    `approver` and `reviewer` are asked about what the policy lets somebody decide (session/deciders.py).
    Raises PolicyError, CannotEnforce, WallFailed and StockadeError; nothing is left behind then.
    """
    folder = os.getcwd() if cwd is None else os.path.abspath(cwd)
    if policy is None:
        from stockade.session import trust

        policy = trust.policy(folder)
    session = LiveSession(policy, folder, restore=restore, deciders=Deciders(approver, reviewer))
    try:
        await session.open()
        yield session
    finally:
        await session.close()


__all__ = ["Command", "LiveSession", "Piece", "Result", "SessionEnded", "open_session"]
