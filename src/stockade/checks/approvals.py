"""What waits for somebody's word in one session: asked, answered once, and forgotten. Pure: no clock of its own and no I/O.

INVARIANT: a question is answered at most once, and allowed only by an answer that names its digest, before it expires; or because the same was approved for the
session before. What is denied was never asked here, and a canary is never allowed, whoever says yes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.asks import Answered, Asked
from stockade.core.errors import StockadeError
from stockade.core.frozen import replace

if TYPE_CHECKING:
    from typing import Literal

    from stockade.core.asks import Outcome, Scope
    from stockade.core.values import Asking

MOST_LONG = 4  # questions that carry more than a line, at once: what channels hand on is bounded
WINDOW = 60.0  # seconds that `Asking.per_minute` counts over


class Approvals:
    """One session's questions. Times are Unix seconds and never go back in the caller's hands."""

    def __init__(self, rules: Asking) -> None:
        self.rules = rules
        self.pending: dict[int, Asked] = {}
        self.standing: dict[str, Asked] = {}  # by key: what was approved for the session, and holds
        self._recent: list[float] = []
        self._refusals = 0
        self.upcoming = 1

    def take(self) -> int:
        """The number of the next question, which is then given out."""
        self.upcoming += 1
        return self.upcoming - 1

    def ask(self, asked: Asked, now: float) -> Answered | None:
        """Put a question. None: it waits; otherwise what it is answered at once."""
        if not asked.trap:
            if asked.key in self.standing and not asked.people:
                return Answered(asked, True, "earlier", "rule", scope="session")
            if not self.room(now, detail=asked.action == "file"):
                return Answered(asked, False, "too_many", "rule")
            self._recent.append(now)
        self.pending[asked.number] = replace(asked, asked=now, expires=now + self.rules.timeout)
        return None

    def room(self, now: float, *, detail: bool) -> bool:
        """Whether one more question can be put to somebody, or one with more than a line (`detail`)."""
        self._recent = [at for at in self._recent if now - at < WINDOW]
        long = sum(bool(one.detail) for one in self.pending.values())
        return len(self.pending) < self.rules.pending and len(self._recent) < self.rules.per_minute and not (detail and long >= MOST_LONG)

    def answer(
        self, number: int, digest: str, allow: bool, *, by: Literal["person", "reviewer"], channel: str, now: float, scope: Scope = "once"
    ) -> Answered:
        """Somebody's word. Raises StockadeError and changes nothing: `approval.gone`, `approval.other` (it was about something else), `approval.people`."""
        asked = self.pending.get(number)
        if asked is None or now >= asked.expires:
            raise StockadeError(
                f"nothing with the number {number} waits for an answer",
                code="approval.gone",
                hint="It was answered already, or its time is over: stockade approvals list",
            )
        if digest != asked.digest:
            raise StockadeError(
                "the answer is about something else than what was asked",
                code="approval.other",
                hint="Look at it again: stockade approvals list",
            )
        if by == "reviewer" and asked.people:
            raise StockadeError("only a person may answer this", code="approval.people", hint="The rule says so: people = true")
        if by == "reviewer" and allow and not asked.reviewable:
            hint = "Something secret was opened, or the rule that asks stands in a file above the reviewer's."
            raise StockadeError("only a person may approve this", code="approval.people", hint=hint)
        if asked.people and scope != "once":
            raise StockadeError("this is approved once at a time", code="approval.people", hint="The rule says so: people = true")
        del self.pending[number]
        seconds = round(now - asked.asked, 3)
        if asked.trap:  # what is answered to one says nothing about the agent
            return Answered(asked, False, "canary", by, channel, seconds=seconds, caught=allow)
        if by == "person":  # what a reviewer says neither counts nor ends a row
            self._refusals = 0 if allow else self._refusals + 1
        elif channel == "rules" and asked.asked in self._recent:
            self._recent.remove(asked.asked)  # it took nobody's time
        pause = 0 < self.rules.refusals <= self._refusals
        if pause:
            self._refusals = 0
        if allow and scope == "session":
            self.standing[asked.key] = asked
        outcome: Outcome = "approved" if allow else "refused"
        return Answered(asked, allow, outcome, by, channel, scope if allow else "once", seconds, pause=pause)

    def covered(self, now: float) -> Answered | None:
        """One that waits and that an approval for the session covers meanwhile; None if there is no more."""
        for asked in self.pending.values():
            if asked.key in self.standing and not asked.people and not asked.trap and now < asked.expires:
                del self.pending[asked.number]
                return Answered(asked, True, "earlier", "rule", scope="session", seconds=round(now - asked.asked, 3))
        return None

    def show(self, number: int, review: str, now: float) -> Asked | None:
        """A person is shown now what a reviewer has left undecided, with what it said; None if it waits no more. It expires when it would have."""
        if number in self.pending:
            self.pending[number] = replace(self.pending[number], asked=now, review=review)
        return self.pending.get(number)

    def withdraw(self, number: int, now: float) -> Answered | None:
        """Whoever asked does not wait any more. None if it was answered before."""
        return self._over(number, "withdrawn", now)

    def expire(self, now: float) -> list[Answered]:
        """What nobody has answered in time."""
        late = [number for number, asked in self.pending.items() if now >= asked.expires]
        return [over for number in late if (over := self._over(number, "timed_out", now)) is not None]

    def due(self) -> float | None:
        """When the next question expires (Unix seconds), None if none waits."""
        return min((asked.expires for asked in self.pending.values()), default=None)

    def revoke(self, key: str) -> Asked | None:
        """Take back what was approved for the session. None if nothing was."""
        return self.standing.pop(key, None)

    def _over(self, number: int, outcome: Outcome, now: float) -> Answered | None:
        asked = self.pending.pop(number, None)
        if asked is None:
            return None
        return Answered(asked, False, outcome, "rule", seconds=round(now - asked.asked, 3))
