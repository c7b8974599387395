"""Who answers a session's questions in a program: a reviewer, which is automatic, and an approver, which stands for a person. `stockade approvals` may be sooner."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

from stockade.core.asks import Asked
from stockade.core.errors import StockadeError

if TYPE_CHECKING:
    from stockade.core.asks import Answered
    from stockade.session import Session
    from stockade.session.approvals import Questions

# "once" or "session": yes. False: no. None: somebody else shall say.
type Decider = Callable[[Asked], Awaitable[Literal["once", "session", False] | None]]


class Deciders:
    """Asks the reviewer, unless only a person may answer, and then the approver. A reviewer that fails, or approves what is not its to approve, is passed over; an
    approver that fails says no.

    INVARIANT: they are asked about what waits, and only about that. What is denied never comes here.
    """

    def __init__(self, approver: Decider | None, reviewer: Decider | None) -> None:
        self._approver, self._reviewer = approver, reviewer
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self.questions: Callable[[], Questions] | None = None
        self.session: Session | None = None

    def hear(self, asked: Asked | None, answered: Answered | None) -> None:
        """A listener of Questions."""
        if asked is not None and (self._approver or self._reviewer):
            self._tasks[asked.number] = asyncio.ensure_future(self._decide(asked))
        if (
            answered is not None
            and (task := self._tasks.pop(answered.asked.number, None)) is not None
            and task is not asyncio.current_task()
        ):
            task.cancel()

    def close(self) -> None:
        """Ask nobody any more."""
        for task in self._tasks.values():
            task.cancel()

    async def _decide(self, asked: Asked) -> None:
        if self._reviewer is not None and not asked.people:
            try:
                said = await self._reviewer(asked)
            except Exception as error:
                said = None
                if self.session is not None:
                    self.session.record("review", ask=asked.number, error=type(error).__name__)
            if said is not None and (asked.reviewable or said not in ("once", "session")):
                self._answer(asked, said, "reviewer")
                return
        if self._approver is not None:
            try:
                said = await self._approver(asked)
            except Exception:
                said = False
            if said is not None:
                self._answer(asked, said, "person")

    def _answer(self, asked: Asked, said: Literal["once", "session", False], by: Literal["person", "reviewer"]) -> None:
        if self.questions is None:
            return
        try:
            if said not in ("once", "session"):
                self.questions().answer(asked.number, asked.digest, False, by=by, channel="program")
            else:
                scope = "once" if asked.people else said  # nothing that is for people alone is approved for longer
                self.questions().answer(asked.number, asked.digest, True, by=by, channel="program", scope=scope)
        except StockadeError as error:
            if error.code not in ("approval.gone", "approval.people"):
                raise
