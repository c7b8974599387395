"""The invariant of session/approvals.py, under any order of questions, answers, clients that leave, time, and a ledger that fails: nothing moves without a receipt,
and nothing that nobody approved."""

from __future__ import annotations

from random import Random
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from stockade.checks import lures
from stockade.core.errors import StockadeError
from stockade.core.tools import ToolRule
from stockade.core.values import Asking, Grant, Policy
from stockade.session.approvals import Questions

GRANT = Grant("a.test", effect="ask", methods=("POST",))
FOR_PEOPLE = Grant("a.test", effect="ask", methods=("POST",), people=True)
CALLS = (ToolRule("Bash", "ask"), ToolRule("Bash", "ask", people=True))


class Ledger:
    """A session as far as Questions knows one: its ledger fails when it is told to."""

    def __init__(self) -> None:
        self.policy, self.id = Policy(approvals=Asking(timeout=10, pending=4, per_minute=9, refusals=3, canaries=50)), "s"
        self.events: list[dict[str, Any]] = []
        self.broken = False
        self.paused = 0

    def record(self, kind: str, **facts: Any) -> None:
        if self.broken:
            raise StockadeError("the disk is full", code="ledger.write")
        self.events.append({"kind": kind, **facts})

    def pause(self) -> None:
        self.paused += 1


class Clock:
    """A loop whose timers are due when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: dict[int, tuple[float, Any]] = {}
        self.last = 0

    def later(self, seconds: float, callback: Any) -> int:
        self.last += 1
        self.timers[self.last] = (self.now + seconds, callback)
        return self.last

    def cancel(self, timer: int) -> None:
        self.timers.pop(timer, None)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        chance = Random(0)  # the same steps have to come to the same end
        self.chance = mock.patch.object(lures, "_chance", lambda: chance)
        self.chance.start()
        self.ledger, self.clock = Ledger(), Clock()
        self.questions = Questions(self.ledger, self.clock, lambda _: None, lambda _asked, _answered: None)  # type: ignore[arg-type]
        self.said: dict[int, list[bool]] = {}  # what the gate was told
        self.approved: set[int] = set()
        self.standing: set[str] = set()

    def at(self) -> Any:
        return mock.patch("time.time", lambda: self.clock.now)

    def check(self) -> None:
        allowed = {event["ask"] for event in self.ledger.events if event["kind"] == "answer" and event["effect"] == "allow"}
        for number, said in self.said.items():
            assert len(said) <= 1
            if said == [True]:
                assert number in allowed, "something moves, and no receipt says so"
        keys = {event["ask"]: event["key"] for event in self.ledger.events if event["kind"] == "ask"}
        for event in self.ledger.events:
            if event["kind"] == "answer" and event["effect"] == "allow":
                assert event["ask"] in self.approved or (event["outcome"] == "earlier" and keys[event["ask"]] in self.standing)

    @rule(path=st.sampled_from(["/a", "/b"]), people=st.booleans(), broken=st.booleans(), tool=st.booleans())
    def ask(self, path: str, people: bool, broken: bool, tool: bool) -> None:
        number = self.questions.upcoming
        self.said[number] = []
        event = {"method": "POST", "scheme": "https", "host": "a.test", "port": 443, "path": path, "length": 3}
        about: Any = FOR_PEOPLE if people else GRANT
        if tool:
            event, about = {"kind": "tool", "tool": "Bash", "asks": "{}", "length": 2, "digest": path}, CALLS[people]
        self.ledger.broken = broken
        with self.at():
            try:
                self.questions.ask(event, about, tainted=False, reply=self.said[number].append)
            except StockadeError:
                assert broken and self.said[number] in ([], [False])
        self.ledger.broken = False
        self.check()

    @rule(broken=st.booleans())
    def lured(self, broken: bool) -> None:
        """What is due of the canaries comes now."""
        self.ledger.broken = broken
        with self.at():
            for number, (_, callback) in [*self.clock.timers.items()]:
                if callback == self.questions._lure and self.clock.timers.pop(number, None):
                    try:
                        callback()
                    except StockadeError:
                        assert broken
        self.ledger.broken = False
        self.check()

    @rule(
        data=st.data(), allow=st.booleans(), scope=st.sampled_from(["once", "session"]), by=st.sampled_from(["person", "reviewer"]),
        broken=st.booleans(),
    )  # fmt: skip
    def answer(self, data: Any, allow: bool, scope: str, by: Any, broken: bool) -> None:
        if not self.questions.pending:
            return
        one = data.draw(st.sampled_from(self.questions.pending))
        self.ledger.broken = broken
        with self.at():
            try:
                done = self.questions.answer(one.number, one.digest, allow, channel="", scope=scope, by=by)
                if done.allow:
                    self.approved.add(one.number)
                    if scope == "session":
                        self.standing.add(one.key)
            except StockadeError as error:
                assert error.code.startswith("approval.") or broken
                if broken:
                    assert self.said.get(one.number, []) in ([], [False])
        self.ledger.broken = False
        self.check()

    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        if self.questions.pending:
            with self.at():
                self.questions.withdraw(data.draw(st.sampled_from(self.questions.pending)).number)
        self.check()

    @rule(seconds=st.floats(0, 20))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        with self.at():
            while due := [number for number, (at, _) in self.clock.timers.items() if at <= self.clock.now]:  # one may make another
                self.clock.timers.pop(due[0])[1]()
        assert all(one.expires > self.clock.now for one in self.questions.pending)
        self.check()

    def teardown(self) -> None:
        self.chance.stop()
        with self.at():
            self.questions.close()
        assert not self.questions.pending and not self.clock.timers
        assert all(len(said) == 1 or number not in {e["ask"] for e in self.ledger.events} for number, said in self.said.items())
        self.check()


TestQuestions = Machine.TestCase
TestQuestions.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
