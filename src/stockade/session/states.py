"""What can be done with a live session as a whole: it stands still, and goes on. The contract, line by line, is docs/states.md."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stockade.core.errors import StockadeError
    from stockade.session import Session


class States:
    """The part of a live session that is about all of it at once."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._end: StockadeError | None = None  # how it ended
        self._waiting: list[asyncio.Future[None]] = []  # for a pause to end

    @property
    def paused(self) -> bool:
        """Whether everything inside stands still, by `pause` or by somebody's `stockade session pause`."""
        return self._end is None and self._session.recording and self._session.box.paused

    def pause(self) -> None:
        """Let everything inside stand still until `resume`; nothing happens if it does.

        `exec` and `start` wait until the session goes on. Limits hold meanwhile, the wall time too.
        Raises SessionEnded, StockadeError (`pause.restless`: it was not paused; `ledger.*`).
        """
        if self._end is not None:
            raise self._end
        self._session.pause()

    def resume(self) -> None:
        """Let it go on; nothing happens if it was not paused. Raises SessionEnded, StockadeError (`ledger.*`)."""
        if self._end is not None:
            raise self._end
        self._session.resume()

    async def _going_on(self) -> None:
        """Wait while the session is paused. Raises how it ended."""
        while self._end is None and self._session.box.paused:
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        if self._end is not None:
            raise self._end

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)
