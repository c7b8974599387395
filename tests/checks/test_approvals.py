"""Questions and their answers. The invariant, under any order of questions, answers, withdrawals and time: nothing is allowed that nobody approved."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from stockade.checks.approvals import Approvals
from stockade.checks.questions import question
from stockade.core.asks import Answered, Asked
from stockade.core.errors import StockadeError
from stockade.core.frozen import replace
from stockade.core.values import Asking, Grant

RULES = Asking(timeout=10, pending=3, per_minute=6, refusals=2)


def asked(approvals: Approvals, key: str = "GET https://a.test/x", **more: Any) -> Asked:
    number = approvals.take()
    return Asked(number, "egress", key, f"digest-{number}", key, **more)


class Machine(RuleBasedStateMachine):
    """Keeps its own account of what people have said, and compares every answer with it."""

    questions = Bundle("questions")

    def __init__(self) -> None:
        super().__init__()
        self.approvals = Approvals(RULES)
        self.now = 1000.0
        self.over: set[int] = set()
        self.may: set[str] = set()  # keys that a person has approved for the session

    def hear(self, found: Answered | None, *, by_whom: bool = False) -> None:
        if found is None:
            return
        one = found.asked
        assert one.number not in self.over, "answered twice"
        self.over.add(one.number)
        if found.allow:
            assert not one.trap
            assert by_whom or (found.outcome == "earlier" and one.key in self.may and not one.people)

    @rule(
        target=questions, key=st.sampled_from("ab"), people=st.booleans(), trap=st.sampled_from(["", "", "it is one"]), reviewable=st.booleans()
    )  # fmt: skip
    def ask(self, key: str, people: bool, trap: str, reviewable: bool) -> Asked:
        one = asked(self.approvals, key, people=people, trap=trap, reviewable=reviewable)
        self.hear(self.approvals.ask(one, self.now))
        return one

    @rule()
    def cover(self) -> None:
        self.hear(self.approvals.covered(self.now))

    @rule(
        one=questions,
        right=st.booleans(),
        allow=st.booleans(),
        by=st.sampled_from(["person", "reviewer"]),
        scope=st.sampled_from(["once", "session"]),
    )
    def answer(self, one: Asked, right: bool, allow: bool, by: Any, scope: Any) -> None:
        waiting = self.approvals.pending.get(one.number)
        may = waiting is not None and self.now < waiting.expires and right and not (one.people and (by == "reviewer" or scope == "session"))
        may = may and not (by == "reviewer" and allow and not one.reviewable)
        try:
            found = self.approvals.answer(
                one.number, one.digest if right else "other", allow, by=by, channel="test", now=self.now, scope=scope
            )
        except StockadeError:
            assert not may and self.approvals.pending.get(one.number) == waiting
            return
        assert may
        assert found.allow == (allow and not one.trap) and (not one.trap or found.caught == allow)
        self.hear(found, by_whom=True)
        if found.allow and scope == "session":
            self.may.add(one.key)

    @rule(one=questions)
    def withdraw(self, one: Asked) -> None:
        self.hear(self.approvals.withdraw(one.number, self.now))

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        for found in self.approvals.expire(self.now):
            self.hear(found)

    @rule(key=st.sampled_from("ab"))
    def revoke(self, key: str) -> None:
        assert (self.approvals.revoke(key) is not None) == (key in self.may)
        self.may.discard(key)

    @invariant()
    def few_wait(self) -> None:
        real = [one for one in self.approvals.pending.values() if not one.trap]
        assert len(real) <= RULES.pending and self.over.isdisjoint(self.approvals.pending)


TestMachine = Machine.TestCase


def test_refusals_in_a_row_are_a_sign_and_an_approval_between_them_is_none() -> None:
    def say(approvals: Approvals, allow: bool, **more: Any) -> bool:
        one = asked(approvals, **more)
        assert approvals.ask(one, 0.0) is None
        return approvals.answer(one.number, one.digest, allow, by="person", channel="", now=1.0).pause

    approvals = Approvals(replace(RULES, per_minute=100))
    assert [say(approvals, allow) for allow in (False, True, False, False, False, False)] == [False, False, False, True, False, True]
    assert not say(Approvals(replace(RULES, refusals=1)), False, trap="a canary says nothing about the agent")
    never = Approvals(replace(RULES, refusals=0, per_minute=100))
    assert not any(say(never, False) for _ in range(10))


def test_too_many_are_denied_and_nobody_is_bothered() -> None:
    approvals = Approvals(RULES)
    found = [approvals.ask(asked(approvals, key=str(number)), 0.0) for number in range(4)]
    assert [one and one.outcome for one in found] == [None, None, None, "too_many"]
    for number in (1, 2, 3):
        approvals.withdraw(number, 1.0)
    found = [approvals.ask(one, 2.0) for one in [asked(approvals, key=str(number)) for number in range(5, 9)]]
    assert [one and one.outcome for one in found] == [None, None, None, "too_many"]
    for number in (5, 6, 7):
        approvals.withdraw(number, 3.0)
    last = approvals.ask(asked(approvals), 4.0)
    assert last is not None and last.outcome == "too_many"  # six in this minute
    assert approvals.ask(asked(approvals), 70.0) is None


def test_what_is_for_people_no_reviewer_answers() -> None:
    approvals = Approvals(RULES)
    one = asked(approvals, people=True)
    assert approvals.ask(one, 0.0) is None
    with pytest.raises(StockadeError, match="only a person"):
        approvals.answer(one.number, one.digest, True, by="reviewer", channel="", now=1.0)
    assert approvals.answer(one.number, one.digest, True, by="person", channel="", now=1.0).allow


def test_what_a_reviewer_says_is_no_word_of_a_person_about_the_agent() -> None:
    """Its refusals pause nothing, its approvals end no row of a person's refusals, and what its rules answer takes nobody's time."""
    approvals = Approvals(replace(RULES, per_minute=3))

    def say(allow: bool, by: Any, channel: str) -> bool:
        one = asked(approvals)
        assert approvals.ask(one, 0.0) is None
        return approvals.answer(one.number, one.digest, allow, by=by, channel=channel, now=1.0).pause

    assert not any(say(False, "reviewer", "rules") for _ in range(10))
    assert not say(False, "person", "inbox") and not say(True, "reviewer", "rules") and say(False, "person", "inbox")
    assert not say(True, "reviewer", "model")  # asking a model costs something
    assert (last := approvals.ask(asked(approvals), 2.0)) is not None and last.outcome == "too_many"


def test_a_person_is_shown_what_a_reviewer_leaves_and_has_the_time_that_is_left() -> None:
    approvals = Approvals(RULES)
    one = asked(approvals)
    assert approvals.ask(one, 0.0) is None
    shown = approvals.show(one.number, "unsure", 4.0)
    assert shown is not None and (shown.asked, shown.expires, shown.review, shown.digest) == (4.0, 10.0, "unsure", one.digest)
    assert approvals.answer(one.number, one.digest, True, by="person", channel="", now=5.0).seconds == 1.0
    assert approvals.show(one.number, "unsure", 6.0) is None


EVENT = {"kind": "egress", "scheme": "https", "host": "api.test", "port": 443, "method": "POST", "path": "/v1/x", "query": 1, "length": 5}


def test_a_question_says_all_that_it_is_about() -> None:
    grant = Grant("api.test", effect="ask", credential="own", methods=("POST",))
    one = question(7, {**EVENT, "asks": "a=b", "begins": "hello"}, grant, tainted=False)
    assert one.what == "POST https://api.test/v1/x?a=b, with your credential own; it sends 5 bytes: hello"
    assert (one.key, one.risk, one.reversible, one.people) == ("POST https://api.test/v1/x", "medium", False, False)
    digests = {
        question(1, {**EVENT, **change}, grant, tainted=False).digest
        for change in (
            {},
            {"asks": "a"},
            {"begins": "b"},
            {"path": "/v1"},
            {"method": "PUT"},
            {"length": 6},
            {"host": "api.test2"},
            {"port": 1},
        )
    }
    assert len(digests) == 8


@pytest.mark.parametrize(
    "change, tainted, risk",
    [
        ({"method": "GET", "query": 0, "length": 0}, False, "low"),
        ({"method": "GET", "query": 0, "length": 0}, True, "low"),
        ({"method": "GET", "length": 0, "asks": "q"}, False, "medium"),
        ({"method": "GET", "length": 0, "asks": "q"}, True, "high"),
        ({}, False, "medium"),
        ({}, True, "high"),
        ({"length": -1}, False, "high"),
        ({"length": 1 << 20}, False, "high"),
        ({"method": "DELETE", "length": 0}, False, "high"),
        ({"scheme": "tcp", "length": 0}, False, "medium"),
    ],
)
def test_the_risk_is_what_it_can_carry(change: dict[str, object], tainted: bool, risk: str) -> None:
    assert question(1, {**EVENT, **change}, Grant("api.test", effect="ask"), tainted=tainted).risk == risk


shown = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)


@given(
    one=st.fixed_dictionaries(
        {
            "method": shown,
            "host": shown,
            "path": shown,
            "asks": shown,
            "begins": shown,
            "port": st.integers(-1, 70000),
            "length": st.integers(-1, 1 << 40),
        }
    ),
    other=shown,
)
def test_whatever_a_request_says_its_question_says_it_all_on_one_line(one: dict[str, Any], other: str) -> None:
    grant = Grant("api.test", effect="ask")
    asks = question(1, {"scheme": "https", **one}, grant, tainted=False)
    assert asks.what.isascii() and asks.what.isprintable() and asks.what.startswith(asks.key)
    assert one["asks"] in asks.what and (one["begins"] in asks.what or not one["length"])
    changed = question(1, {"scheme": "https", **one, "asks": other}, grant, tainted=False)
    assert (changed.digest == asks.digest) == (other == one["asks"])


def test_an_approval_for_the_session_covers_what_waits_already() -> None:
    approvals = Approvals(RULES)
    first, like, other = asked(approvals), asked(approvals), asked(approvals, "GET https://a.test/y")
    for one in (first, like, other):
        assert approvals.ask(one, 1000) is None
    approvals.answer(first.number, first.digest, True, by="person", channel="", now=1001, scope="session")
    assert approvals.covered(1010) is None, "its time is over"
    found = approvals.covered(1002)
    assert found is not None and (found.asked.number, found.allow, found.outcome, found.seconds) == (like.number, True, "earlier", 2)
    assert approvals.covered(1002) is None and [*approvals.pending] == [other.number]
