"""What can be done with a live session as a whole: it stands still and goes on; it is saved, and another goes on from there. The contract, line by line, is
docs/states.md."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError, WallFailed
from stockade.session.after import IMAGES
from stockade.walls import limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stockade.session import Session
    from stockade.session.checkpoints import Checkpoint
    from stockade.session.command import Command
    from stockade.session.exchange import AsyncioLoop
    from stockade.session.gate import GateKeeper
    from stockade.session.live import LiveSession
    from stockade.walls.gvisor import Guest

GRACE = 0.3  # seconds that what a command has left behind has to let go of its streams
LATE = 300.0  # seconds that saving may take: some for each GiB


class States:
    """The part of a live session that is about all of it at once."""

    def __init__(self, session: Session, loop: AsyncioLoop) -> None:
        self._session, self.loop = session, loop
        session.changed = self._changed
        self._resting = False  # whether the watchdog waits for the end of a pause
        self._commands: dict[int, Command] = {}
        self._gate: GateKeeper | None = None
        self._end: StockadeError | None = None  # how it ended
        self._waiting: list[asyncio.Future[None]] = []  # for a pause to end
        self._saving: asyncio.Future[Checkpoint] | None = None
        self._images = 0

    def _broken(self, error: BaseException) -> None:
        """End the session because of an error. LiveSession's."""
        raise NotImplementedError

    def _stop(self, why: str, limit: str) -> None:
        """End the session because of a limit. LiveSession's."""
        raise NotImplementedError

    @property
    def paused(self) -> bool:
        """Whether everything inside stands still, by `pause` or by somebody's `stockade session pause`."""
        return self._end is None and self._session.recording and self._session.box.paused

    def pause(self) -> None:
        """Let everything inside stand still until `resume`; nothing happens if it does.

        `exec` and `start` wait until the session goes on. Limits hold meanwhile, the wall time too.
        Raises SessionEnded, StockadeError (`pause.restless`: it was not paused; `session.saving`; `ledger.*`).
        """
        if self._end is not None:
            raise self._end
        self._session.pause()

    def resume(self) -> None:
        """Let it go on; nothing happens if it was not paused. Raises SessionEnded, StockadeError (`ledger.*`)."""
        if self._end is not None:
            raise self._end
        self._session.resume()

    async def checkpoint(self, path: str = "") -> Checkpoint:
        """Save what runs inside, and go on. Without `path` it is removed when the session ends; a `path` must not exist, and becomes a directory of yours.

        It holds the memory of everything inside, secrets that were read there included. No command may run, but what commands have left in the background
        may, if none of its streams leads outside. Commands that are asked for meanwhile wait. Connections through the gate are cut.
        Raises CannotEnforce (`checkpoint.wall`, `checkpoint.root`), SessionEnded, StockadeError (`checkpoint.busy`, `checkpoint.held`, `checkpoint.exists`,
        `session.paused`, `session.saving`, `ledger.*`), WallFailed (`checkpoint.failed`): then nothing is left of it, and the session goes on.
        """
        from stockade.walls import gvisor, root, states

        session = self._session
        if self._end is not None:
            raise self._end
        if not isinstance(session.box, gvisor.Guest):
            raise states.unable(session.wall.NAME)
        root.refuse_saved(session.policy.root)
        if session.box.paused:
            raise StockadeError("a paused session cannot be saved", code="session.paused", hint="Resume it first.")
        if session.saving:
            raise StockadeError("the session is being saved already", code="session.saving", hint="Wait for that.")
        if busy := sum(command.running for command in self._commands.values()):
            raise StockadeError(
                f"{busy} of its commands still run, whose streams lead outside and cannot be saved",
                code="checkpoint.busy",
                hint="Wait for them, or leave in the background what is to go on, with its streams redirected inside.",
            )
        session.saving = True
        task = self._saving = asyncio.ensure_future(self._save(session.box, path))
        cancelled = False
        try:
            while not task.done():  # what is saved by half is never left behind
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError:
                    cancelled = True
        finally:
            session.saving = False
            self._wake()
        made = task.result()
        if cancelled:
            made.discard()
            raise asyncio.CancelledError
        return made

    @asynccontextmanager
    async def fork(self) -> AsyncIterator[LiveSession]:
        """A session of its own that goes on from where this one is: own id, door, gate, tokens, receipt, limits and ledger entries, by the same policy, without
        what was taken back from this one. It ends with the block; this one goes on. Raises as `checkpoint` and `open_session` do.
        """
        from stockade.session.live import open_session

        made = await self.checkpoint()
        try:
            async with open_session(self._session.policy, cwd=self._session.cwd, restore=made) as session:
                made.discard()
                yield session
        finally:
            made.discard()

    async def _save(self, box: Guest, path: str) -> Checkpoint:
        from stockade.session import checkpoints
        from stockade.walls import gvisor

        session = self._session
        place = os.path.abspath(path) if path else f"{session.directory}/{IMAGES}/{self._images}"
        self._images += 1
        try:
            if not path:
                os.makedirs(os.path.dirname(place), 0o700, exist_ok=True)
            os.mkdir(place, 0o700)
        except OSError as error:
            raise StockadeError(
                f"cannot make {place}: {error.strerror}",
                code="checkpoint.exists",
                hint="Name a place that does not exist yet, in a folder that does.",
            ) from error
        try:
            await self._let_go()
            directory = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await self._written(box, directory)
            finally:
                os.close(directory)
            keeper = self._gate
            tainted = keeper is not None and keeper.tainted or _pending(session)
            revoked = keeper.revoked() if keeper is not None else []
            plan = session.plan
            assert isinstance(plan, gvisor.Plan)  # its box is a guest's
            facts = {
                "shape": gvisor.shape(plan),
                "runsc": plan.warm.digest,
                "revoked": revoked,
                "unsigned": session.signer is not None and session.signer.revoked,
                "tainted": tainted,
            }
            made = await asyncio.to_thread(checkpoints.describe, place, session.id, **facts)
            session.record("session.checkpoint", digest=made.digest, size=made.size, path=path and place, runsc=plan.warm.digest)
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)
            if isinstance(error, OSError):
                raise WallFailed(
                    f"the checkpoint cannot be written: {error}", code="checkpoint.failed", hint="Nothing is left of it. Is the disk full?"
                ) from error
            raise
        return made

    async def _let_go(self) -> None:
        """A command that has ended may have left something that is about to close its streams. If that stays, saving finds it."""
        late = time.monotonic() + GRACE
        while self._commands and time.monotonic() < late:
            await asyncio.sleep(0.01)

    async def _written(self, box: Guest, directory: int) -> None:
        """Have the guest written into `directory`. Raises as `checkpoint` does; a guest that does not come to an end is ended."""
        saving = box.save(directory)
        loop = asyncio.get_running_loop()  # not ours, which forgets everything when the session ends
        over: asyncio.Future[None] = loop.create_future()
        done = saving.fileno()
        loop.add_reader(done, _once, over)
        late = loop.call_later(LATE, self._broken, slow())
        try:
            await over
        finally:
            loop.remove_reader(done)
            late.cancel()
        try:
            saving.done()
        except StockadeError:
            if self._end is not None:
                raise self._end from None
            raise

    async def _settled(self) -> None:
        """Wait until nothing is being saved any more, which is soon once the sandbox is dead, and remove what was saved for as long as it lives."""
        if self._saving is not None:
            await asyncio.wait([self._saving])
            shutil.rmtree(f"{self._session.directory}/{IMAGES}", ignore_errors=True)

    async def _going_on(self) -> None:
        """Wait while the session is paused or being saved. Raises how it ended."""
        while self._end is None and (self._session.box.paused or self._session.saving):
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        if self._end is not None:
            raise self._end

    def _changed(self) -> None:
        """It was paused, or goes on."""
        self._wake()
        if self._resting and not self._session.box.paused:
            self._look_later()

    def _look_later(self) -> None:
        self._resting = False
        self.loop.later(limits.INTERVAL, self._look)

    def _look(self) -> None:
        """The watchdog. In a pause nothing grows, and a program may have hundreds that stand still."""
        self._resting = self._session.box.paused
        if self._resting:
            return
        if why := self._session.exceeded():
            self._stop(why, "watchdog")
        else:
            self._look_later()

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            _once(one)


def _once(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def slow() -> WallFailed:
    """The error for a guest that does not come to an end with being saved."""
    return WallFailed(
        f"the guest was not saved within {LATE:g} s",
        code="checkpoint.slow",
        hint="The sandbox was ended: nobody knows what state it is in.",
    )


def _pending(session: Session) -> bool:
    """Whether something secret was opened that nobody has been told of yet."""
    if session.watch is None:
        return False
    poll = select.poll()
    poll.register(session.watch.fileno(), select.POLLIN)
    return bool(poll.poll(0))
