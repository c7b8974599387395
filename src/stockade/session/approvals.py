"""One session's questions on their way: from the gate to whoever may answer, into the ledger, and back. Imported when there is a first one.

INVARIANT: what is answered is in the ledger before anything moves by it; what cannot be written is a no.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal

from stockade.checks import lures, tools
from stockade.checks.approvals import Approvals
from stockade.checks.questions import question
from stockade.core.asks import safe
from stockade.core.errors import StockadeError
from stockade.core.frozen import plain, replace
from stockade.core.tools import FileRule, MountRule
from stockade.core.values import Grant

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stockade.core.asks import Answered, Asked
    from stockade.core.loop import Loop
    from stockade.core.tools import ToolRule
    from stockade.session import Session
    from stockade.session.changes import Change
    from stockade.session.mounts import Showing

    type Listener = Callable[[Asked | None, Answered | None], None]


_WHY = {"refused": "a person refused it", "timed_out": "nobody answered in time", "too_many": "too much was asked at once"}


class Questions:
    """`say` is told what the user should know; `listener` of each question that waits (question, None), and of each answer (None, answer)."""

    def __init__(self, session: Session, loop: Loop, say: Callable[[str], None], listener: Listener) -> None:
        self._session, self._loop, self._say, self._listener = session, loop, say, listener
        self._approvals = Approvals(session.policy.approvals)
        self._replies: dict[int, Callable[[bool, str], None]] = {}
        self._changes: dict[int, Change | Showing] = {}  # what is done once it was approved
        self._timer = self._luring = 0
        self._since = 0  # real questions that were answered after the last canary
        self._like: list[tuple[str, str]] = []  # method and path of what was asked lately
        self._grant, self._tainted = Grant(""), False  # of the last one

    @property
    def upcoming(self) -> int:
        """The number of the next question."""
        return self._approvals.upcoming

    @property
    def pending(self) -> tuple[Asked, ...]:
        """What waits, oldest first."""
        return tuple(self._approvals.pending.values())

    def ask(
        self,
        event: Mapping[str, object],
        rule: Grant | ToolRule | FileRule | MountRule,
        *,
        tainted: bool,
        reply: Callable[[bool, str], None],
    ) -> int:
        """Put a question of the gate's, about a request, a tool call, a file or a mount by what the rule is; `reply` is called once, now or later, and told why not where that
        is for whoever asked. Its number, 0 if there is nothing to ask. Raises StockadeError (`ledger.*`): then nobody was asked."""
        now = time.time()
        try:
            asked = self._question(event, rule, tainted, now)
        except StockadeError as error:
            kind = error.code.partition(".")[0]
            if kind not in ("file", "mount"):
                raise
            self._session.record(f"{kind}.refused", path=str(event.get("path", "")), code=error.code, reason=error.message)
            reply(False, error.message)
            return 0
        self._put(asked)
        self._replies[asked.number] = reply
        answered = self._approvals.ask(asked, now)
        if answered is not None:
            self._tell(answered)
            return asked.number
        self._show(asked.number)
        if isinstance(rule, Grant):
            self._like = [*self._like[-7:], (str(event.get("method", "")), str(event.get("path", "")))]
            self._grant, self._tainted = rule, tainted
        return asked.number

    def _work_goes_on(self) -> None:
        """Somebody has answered a real question about a request, which canaries look like. Perhaps a canary comes some time later: in the same moment as another, most would be told apart by that."""
        self._since += 1
        if not self._luring and lures.due(self._session.policy.approvals.canaries / 100, self._since):
            self._since = 0
            self._luring = self._loop.later(lures.pause(), self._lure)

    def _lure(self) -> None:
        """Ask about something that must be refused. It looks like any other question, and nothing happens by it."""
        self._luring, grant = 0, self._grant
        found = lures.lure(self._session.policy.grants, self._like)
        event = {name: value for name, value in plain(found).items() if name != "why"}
        asked = self._question(event, replace(grant, credential=""), self._tainted, time.time())
        asked = replace(asked, trap=found.why)
        self._put(asked)
        self._approvals.ask(asked, time.time())
        self._show(asked.number)

    def _question(self, event: Mapping[str, object], rule: Grant | ToolRule | FileRule | MountRule, tainted: bool, now: float) -> Asked:
        if isinstance(rule, FileRule):
            from stockade.session.changes import Change

            change, number = Change(self._session, event, rule), self._approvals.upcoming
            asked = change.question(number, tainted=tainted, shown=self._approvals.room(now, detail=True))
            self._changes[self._approvals.take()] = change
            return asked
        if isinstance(rule, MountRule):
            from stockade.session.mounts import Showing

            showing, number = Showing(self._session, rule), self._approvals.take()
            self._changes[number] = showing
            return showing.question(number, tainted=tainted)
        number = self._approvals.take()
        if isinstance(rule, Grant):
            return question(number, event, rule, tainted=tainted)
        return tools.question(number, event, rule, tainted=tainted)

    def _put(self, asked: Asked) -> None:
        """Write down that it is asked."""
        facts = {
            name: value
            for name, value in plain(asked).items()
            if name in ("action", "digest", "key", "rule", "risk", "reversible", "tainted", "people")
        }
        self._session.record("ask", ask=asked.number, what=asked.key, **facts)

    def _show(self, number: int) -> None:
        """Tell the channels."""
        self._wait()
        self._listener(self._approvals.pending[number], None)

    def left(self, number: int, review: str) -> Asked | None:
        """A reviewer leaves this to a person, who is shown it now, with what it said. None if it was answered before."""
        return self._approvals.show(number, review, time.time())

    def withdraw(self, number: int) -> None:
        """Whoever asked does not wait any more."""
        over = self._approvals.withdraw(number, time.time())
        if over is not None:
            self._tell(over)

    def answer(
        self, number: int, digest: str, allow: bool, *, channel: str, scope: str = "once", by: Literal["person", "reviewer"] = "person"
    ) -> Answered:
        """Somebody's word. Raises StockadeError: `approval.*`, and nothing is changed; `ledger.*`, and it is a no."""
        if scope not in ("once", "session"):
            raise StockadeError(f"an approval cannot be for {scope!r}", code="approval.scope", hint='It is for "once" or "session".')
        found = self._approvals.answer(
            number, digest, allow, by=by, channel=channel, now=time.time(), scope="session" if scope == "session" else "once"
        )
        found = self._tell(found)
        while (like := self._approvals.covered(time.time())) is not None:
            self._tell(like)
        return found

    def revoke(self, key: str) -> None:
        """Take back an approval for the session. Raises StockadeError `approval.gone`, `ledger.*`."""
        if key not in self._approvals.standing:
            raise StockadeError(f"nothing was approved for {key!r}", code="approval.gone", hint="stockade approvals list shows what holds.")
        self._approvals.revoke(key)  # narrower at once, whether it can be written down or not
        self._session.record("approval.revoke", key=key)

    def plain(self) -> dict[str, Any]:
        """What waits and what was approved for the session, for a channel. A canary looks like any other."""
        shown = [{name: value for name, value in plain(asked).items() if name != "trap"} for asked in self.pending]
        return {"asks": shown, "standing": sorted(self._approvals.standing)}

    def close(self) -> None:
        """Nobody waits any more. Raises StockadeError `ledger.*` when that is done and could not all be written down."""
        now = time.time()
        over = [self._approvals.withdraw(number, now) for number in [*self._approvals.pending]]
        try:
            self._tell_each([one for one in over if one is not None])
        finally:
            self._loop.cancel(self._timer)
            self._loop.cancel(self._luring)

    def _tell_each(self, over: list[Answered]) -> None:
        """One that cannot be written down keeps no other waiting."""
        failed = None
        for one in over:
            try:
                self._tell(one)
            except StockadeError as error:
                failed = error
        if failed is not None:
            raise failed

    def _tell(self, answered: Answered) -> Answered:
        """Have an answer take effect, once it is written down; with it, what became of that."""
        asked = answered.asked
        reply, change = self._replies.pop(asked.number, None), self._changes.pop(asked.number, None)
        facts = {name: getattr(answered, name) for name in ("outcome", "by", "channel", "scope", "seconds")}
        trap = {"canary": True, "caught": answered.caught} if asked.trap else {}
        try:
            self._session.record("answer", ask=asked.number, effect="allow" if answered.allow else "deny", **facts, **trap)
            if answered.allow and change is not None:
                answered = replace(answered, failed=change.carry_out(asked.number))
        except StockadeError:
            if answered.outcome == "approved" and answered.scope == "session":
                self._approvals.revoke(asked.key)  # what is on no record holds for nothing
            if reply is not None:
                reply(False, "")
            # It is over for all who have shown it, too, and was a no.
            self._listener(None, replace(answered, allow=False, outcome="refused", by="rule", channel="", scope="once"))
            raise
        if answered.failed:
            self._say(f"what was approved was not done: {safe(answered.failed)}")
        if reply is not None:
            reply(answered.allow and not answered.failed, answered.failed or (_WHY.get(answered.outcome, "") if change is not None else ""))
        self._listener(None, answered)
        if answered.pause:
            self._pause()
        elif answered.outcome in ("approved", "refused") and asked.action == "egress":
            self._work_goes_on()
        self._wait()
        return answered

    def _pause(self) -> None:
        self._say(
            f"{self._session.policy.approvals.refusals} refusals in a row: the session is paused. Go on: stockade session resume {self._session.id}"
        )
        try:
            self._session.pause()
        except StockadeError as error:
            self._say(f"it could not be paused: {error.message} ({error.code})")

    def _wait(self) -> None:
        self._loop.cancel(self._timer)
        due = self._approvals.due()
        if due is not None:
            self._timer = self._loop.later(max(0.0, due - time.time()), self._expire)

    def _expire(self) -> None:
        try:
            self._tell_each(self._approvals.expire(time.time()))
        finally:
            self._wait()
