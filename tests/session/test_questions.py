"""The invariant of session/approvals.py, under any order of questions, answers, clients that leave, approvals that are taken back, time, reviewers, and a ledger that fails: nothing moves
without a receipt, nothing that nobody approved, and nothing wider."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from stockade.checks import lures
from stockade.checks.reviewing import Opinion
from stockade.core.asks import Asked
from stockade.core.errors import StockadeError, WallFailed
from stockade.core.reviews import Reviewer, ReviewModel, ReviewRule
from stockade.core.tools import ToolRule
from stockade.core.values import Asking, Grant, Policy
from stockade.session import reviewer
from stockade.session.approvals import Questions
from stockade.session.deciders import Deciders

GRANT = Grant("a.test", effect="ask", methods=("POST",))
FOR_PEOPLE = Grant("a.test", effect="ask", methods=("POST",), people=True)
CALLS = (ToolRule("Bash", "ask"), ToolRule("Bash", "ask", people=True))


class Ledger:
    """A session as far as Questions knows one: its ledger fails when it is told to."""

    def __init__(self, **policy: Any) -> None:
        self.policy, self.id = Policy(approvals=Asking(timeout=10, pending=4, per_minute=9, refusals=3, canaries=50), **policy), "s"
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
    """Without a reviewer."""

    reviewed = False

    def __init__(self) -> None:
        super().__init__()
        chance = Random(0)  # the same steps have to come to the same end
        self.chance = mock.patch.object(lures, "_chance", lambda: chance)
        self.chance.start()
        self.ledger, self.clock = Ledger(reviewer=JUDGE if self.reviewed else None), Clock()
        self.questions = Questions(self.ledger, self.clock, lambda _: None, lambda asked, answered: self.hear(asked, answered))  # type: ignore[arg-type]
        self.said: dict[int, list[bool]] = {}  # what the gate was told
        self.about: dict[int, tuple[str, Any]] = {}  # by number: the method, and the rule that asks
        self.approved: dict[int, str] = {}  # for how long
        self.standing: set[str] = set()
        self.shown: set[int] = set()

    def hear(self, asked: Asked | None, answered: Any) -> None:
        """What a channel shows, and is told to show no more."""
        if asked is not None:
            self.shown.add(asked.number)
        if answered is not None:
            self.shown.discard(answered.asked.number)

    def at(self) -> Any:
        return mock.patch("time.time", lambda: self.clock.now)

    def check(self) -> None:
        keys = {event["ask"]: event["key"] for event in self.ledger.events if event["kind"] == "ask"}
        answers = [event for event in self.ledger.events if event["kind"] == "answer"]
        assert len({event["ask"] for event in answers}) == len(answers), "answered twice"
        allowed = {event["ask"]: event for event in answers if event["effect"] == "allow"}
        for number, said in self.said.items():
            assert len(said) <= 1
            if said == [True]:
                assert number in allowed, "something moves, and no receipt says so"
        for number, event in allowed.items():
            if event["outcome"] == "earlier":  # no wider: for what was approved for the session, and is for people's one word at a time
                assert keys[number] in self.standing and not self.about[number][1].people
            else:
                assert self.approved[number] == event["scope"]

    def trusted(self) -> None:
        """After each step, when nothing was broken by the test, what holds is what was approved to hold."""
        self.check()
        held = set(self.questions.plain()["standing"])
        assert held <= self.standing, "it holds, and nobody said so, or it was taken back"
        assert self.shown == {one.number for one in self.questions.pending}, "a channel shows what is over, or not what waits"

    @rule(
        path=st.sampled_from(["/a", "/b"]), people=st.booleans(), broken=st.booleans(), tool=st.booleans(), method=st.sampled_from(["POST", "GET", "DELETE"]),
        tainted=st.booleans(),
    )  # fmt: skip
    def ask(self, path: str, people: bool, broken: bool, tool: bool, method: str, tainted: bool) -> None:
        number = self.questions.upcoming
        self.said[number] = []
        event = {"method": method, "scheme": "https", "host": "a.test", "port": 443, "path": path, "length": 3}
        about: Any = FOR_PEOPLE if people else GRANT
        if tool:
            event, about = {"kind": "tool", "tool": "Bash", "asks": "{}", "length": 2, "digest": path}, CALLS[people]
        self.about[number] = ("" if tool else method, about)
        if self.reviewed and method == "GET" and not (tool or people or tainted):  # as the reviewer's rules say, at once
            self.approved[number] = "once"
        self.ledger.broken = broken
        with self.at():
            try:
                self.questions.ask(event, about, tainted=tainted, reply=lambda allow, _: self.said[number].append(allow))
            except StockadeError:
                assert broken and self.said[number] in ([], [False])
        self.ledger.broken = False
        self.trusted()

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
        self.trusted()

    @rule(
        data=st.data(), allow=st.booleans(), scope=st.sampled_from(["once", "session"]), by=st.sampled_from(["person", "reviewer"]),
        broken=st.booleans(), other=st.sampled_from([False, False, "digest", "number"]),
    )  # fmt: skip
    def answer(self, data: Any, allow: bool, scope: str, by: Any, broken: bool, other: Any) -> None:
        if not self.questions.pending:
            return
        one = data.draw(st.sampled_from(self.questions.pending))
        number = data.draw(st.sampled_from([*self.said, one.number + 1000])) if other == "number" else one.number
        digest = "0" * 64 if other == "digest" else one.digest
        before = self.questions.pending
        if allow and number in self.about:
            self.approved.setdefault(number, scope)
        self.ledger.broken = broken
        with self.at():
            try:
                done = self.questions.answer(number, digest, allow, channel="", scope=scope, by=by)
                assert (done.asked.digest, done.asked.number) == (digest, number)
                assert not done.allow or (allow and not (by == "reviewer" and not done.asked.reviewable))
                if done.allow:
                    self.approved[number] = scope
                if done.allow and scope == "session":
                    self.standing.add(one.key)
            except StockadeError as error:
                assert error.code.startswith("approval.") or broken
                if error.code.startswith("approval."):
                    assert self.questions.pending == before
                elif broken:
                    assert self.said.get(number, []) in ([], [False])
        self.ledger.broken = False
        self.trusted()

    @rule(data=st.data(), broken=st.booleans())
    def take_back(self, data: Any, broken: bool) -> None:
        if not self.questions.plain()["standing"]:
            return
        key = data.draw(st.sampled_from(self.questions.plain()["standing"]))
        self.ledger.broken = broken
        try:
            self.questions.revoke(key)
        except StockadeError:
            assert broken
        self.ledger.broken = False
        assert key not in self.questions.plain()["standing"]  # narrower at once, written down or not
        self.taken_back(key)

    def taken_back(self, key: str) -> None:
        """What was let go on by it until now keeps its account."""
        keys = {event["ask"]: event["key"] for event in self.ledger.events if event["kind"] == "ask"}
        self.trusted()
        for event in self.ledger.events:
            if event["kind"] == "answer" and event["outcome"] == "earlier" and keys[event["ask"]] == key:
                event["outcome"] = "earlier, counted"
                self.approved[event["ask"]] = event["scope"]
        self.standing.discard(key)

    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        if self.questions.pending:
            with self.at():
                self.questions.withdraw(data.draw(st.sampled_from(self.questions.pending)).number)
        self.trusted()

    @rule(seconds=st.floats(0, 20), broken=st.booleans())
    def wait(self, seconds: float, broken: bool) -> None:
        self.clock.now += seconds
        self.ledger.broken = broken
        with self.at():
            while due := [number for number, (at, _) in self.clock.timers.items() if at <= self.clock.now]:  # one may make another
                try:
                    self.clock.timers.pop(due[0])[1]()
                except StockadeError:
                    assert broken
        self.ledger.broken = False
        assert all(one.expires > self.clock.now for one in self.questions.pending)
        self.trusted()

    @rule(broken=st.booleans())
    def end(self, broken: bool) -> None:
        """The gate, or the session, is gone: nobody waits any more, whatever can be written down of it."""
        self.ledger.broken = broken
        waited = [one.number for one in self.questions.pending if not one.trap]
        with self.at():
            try:
                self.questions.close()
            except StockadeError:
                assert broken
        self.ledger.broken = False
        assert not self.questions.pending and all(self.said[number] == [False] for number in waited)
        self.trusted()

    def teardown(self) -> None:
        self.chance.stop()
        with self.at():
            self.questions.close()
        assert not self.questions.pending and not self.clock.timers
        assert all(len(said) == 1 or number not in {e.get("ask") for e in self.ledger.events} for number, said in self.said.items())
        self.trusted()


TestQuestions = Machine.TestCase
TestQuestions.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


# ---- with a reviewer ----------------------------------------------------------------------------------------------------------------

JUDGE = Reviewer(
    allow=(ReviewRule(("GET",)),), deny=(ReviewRule(("DELETE",)),),
    model=ReviewModel("openai", "http://judge.test/", "m", 6, Grant("judge.test", methods=("POST",))),
)  # fmt: skip


class Office:
    """Where a model would be asked, without one: what it says, and when, or that it cannot be asked, is the machine's to choose."""

    fails = False

    def __init__(self, model: Any, session: Any, loop: Any, introduce: Any, said: Any, failed: Any) -> None:
        if self.fails:
            raise OSError(24, "too many open files")
        self.said, self.failed = said, failed

    def ask(self, number: int, body: bytes, seconds: float) -> None:
        if self.fails:
            raise WallFailed("there is no box", code="wall.box")

    def stop(self, number: int) -> None:
        pass

    def close(self) -> None:
        pass


class Reviewed(Machine):
    """With one, whose rules answer at once, whose model says anything at any time, or nothing, and which breaks down."""

    reviewed = True

    def __init__(self) -> None:
        super().__init__()
        self.place = mock.patch.object(reviewer, "_Office", Office)
        self.place.start()
        Office.fails = False
        self.left: list[int] = []  # to people
        self.review = reviewer.Review(
            JUDGE, self.ledger, self.clock, lambda _: None, lambda _: None, lambda: self.questions, lambda asked, _: self.left.append(asked.number) if asked else None  # type: ignore[arg-type]
        )  # fmt: skip

    def hear(self, asked: Asked | None, answered: Any) -> None:
        super().hear(asked, answered)
        self.review.hear(asked, answered)

    @rule(
        data=st.data(), word=st.sampled_from(["allow", "allow", "deny", "person"]), error=st.sampled_from(["", "", "unreadable"]), broken=st.booleans()
    )  # fmt: skip
    def model_says(self, data: Any, word: Any, error: str, broken: bool) -> None:
        """About something that it was asked, or that is over long since, or that it was never asked."""
        if not self.said:
            return
        number = data.draw(st.sampled_from([*self.said]))
        asked = {one.number: one for one in self.questions.pending}.get(number)
        consulted = number in self.review._asked
        if word == "allow" and consulted and asked is not None and asked.reviewable and self.clock.now < asked.expires:
            self.approved[number] = "once"
        answers = len(self.ledger.events)
        self.ledger.broken = broken
        with self.at():
            try:
                self.review._said(number, Opinion("person" if error else word, "why", error))
            except StockadeError as failed:
                assert broken and failed.code == "ledger.write" and self.said[number] in ([], [False])
        self.ledger.broken = False
        if not consulted:
            assert len(self.ledger.events) == answers, "it was not asked"
        self.trusted()

    @rule()
    def breaks(self) -> None:
        """Whoever asks the model dies; all that it was asked is left to people."""
        consulted = [*self.review._asked]
        with self.at():
            self.review._closed(OSError(5, "gone"))
        assert not self.review._asked and all(
            number in self.left for number in consulted if number in {one.number for one in self.questions.pending}
        )
        self.trusted()

    @rule(fails=st.booleans())
    def cannot_be_asked(self, fails: bool) -> None:
        Office.fails = fails

    def trusted(self) -> None:
        super().trusted()
        people = {number for number, (_, rule) in self.about.items() if rule.people}
        answers = [
            event
            for event in self.ledger.events
            if event["kind"] == "answer" and event["by"] == "reviewer" and event["channel"] in ("rules", "model")
        ]
        assert not people & {event["ask"] for event in answers} and {event["scope"] for event in answers} <= {"once"}
        assert people.isdisjoint(self.review._asked), "a model is asked about what is for people"

    def teardown(self) -> None:
        super().teardown()
        self.review.close()
        assert not self.review._asked
        self.place.stop()


TestReviewed = Reviewed.TestCase
TestReviewed.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)


# ---- in a program -------------------------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["once", "session", False, None, "anything", "raise"])


@given(st.lists(st.tuples(st.sampled_from(["/a", "/b"]), st.booleans(), st.booleans(), WORDS, WORDS), min_size=1, max_size=4))
def test_whatever_a_programs_reviewer_and_approver_say(asks: list[Any]) -> None:
    """What is allowed is just what one of them has said, who might."""

    async def whole() -> None:
        ledger, clock, said = Ledger(), Clock(), []  # type: Ledger, Clock, list[list[bool]]

        def who(position: int) -> Any:
            async def decider(asked: Asked) -> Any:
                word = asks[asked.number - 1][position]
                if word == "raise":
                    raise RuntimeError(word)
                return word

            return decider

        deciders = Deciders(who(4), who(3))
        questions = Questions(ledger, clock, lambda _: None, deciders.hear)  # type: ignore[arg-type]
        deciders.questions, deciders.session = lambda: questions, ledger  # type: ignore[assignment]
        standing: set[str] = set()
        with mock.patch.object(lures, "due", lambda part, since: False), mock.patch("time.time", lambda: clock.now):
            for path, people, tainted, reviews, approves in asks:
                said.append([])
                event = {"method": "POST", "scheme": "https", "host": "a.test", "port": 443, "path": path, "length": 3}
                number = questions.ask(
                    event, FOR_PEOPLE if people else GRANT, tainted=tainted, reply=lambda allow, _, one=said[-1]: one.append(allow)
                )
                for _ in range(20):
                    await asyncio.sleep(0)
                by_reviewer = not people and reviews not in (None, "raise") and not (tainted and reviews in ("once", "session"))
                word = reviews if by_reviewer else approves
                if path in standing and not people:
                    assert said[-1] == [True]
                elif word is None:
                    assert said[-1] == [] and [one.number for one in questions.pending][-1] == number
                else:
                    assert said[-1] == [word in ("once", "session")]
                    if word == "session" and not people:  # what is for people alone is for once
                        standing.add(path)
            deciders.close()
            questions.close()
        answers = {event["ask"]: event for event in ledger.events if event["kind"] == "answer"}
        assert [answers[number]["effect"] == "allow" for number in range(1, len(asks) + 1)] == [one == [True] for one in said]

    asyncio.run(whole())
