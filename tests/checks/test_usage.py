"""Bounds over time. Laws: what was spent is counted, what did not happen is given back, and having used more never allows more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks.grants import HttpRequest, decide
from stockade.checks.usage import State, Usage, Used, counted, spent
from stockade.core.values import ALLOW, DENY, Grant


def grant(**fields: Any) -> Grant:
    return Grant("api.example.com", methods=("POST",), **fields)


def post(length: int = 0) -> HttpRequest:
    return HttpRequest("POST", "api.example.com", "/x", length=length)


def test_uses() -> None:
    once, usage = grant(uses=2), Usage()
    for expected in (ALLOW, ALLOW, DENY):
        verdict = decide(post(), (once,), state=usage.state(0, (once,)))
        assert verdict.effect == expected
        if verdict.effect == ALLOW:
            usage.spend(once, 0, 0)
    assert verdict.rule == "uses-spent"
    usage.give_back(once, 0, 0)
    assert decide(post(), (once,), state=usage.state(0, (once,))).effect == ALLOW


def test_upload_budget() -> None:
    bounded, usage = grant(upload_budget=100), Usage()
    usage.spend(bounded, 60, 0)
    state = usage.state(0, (bounded,))
    assert decide(post(40), (bounded,), state=state).effect == ALLOW
    refused = decide(post(41), (bounded,), state=state)
    assert refused.rule == "upload-budget-spent" and "40 of 100" in refused.reasons[0]


def test_rate() -> None:
    slow, usage = grant(rate=2, rate_seconds=60), Usage()
    for now, expected in ((0, ALLOW), (1, ALLOW), (2, DENY), (59.9, DENY), (60, ALLOW), (60.5, DENY), (61, ALLOW)):
        verdict = decide(post(), (slow,), state=usage.state(now, (slow,)))
        assert verdict.effect == expected, now
        if verdict.effect == ALLOW:
            usage.spend(slow, 0, now)


def test_one_that_fails_late_gives_back_its_own_place_and_nobody_elses() -> None:
    """Otherwise a request that is kept waiting, and then fails, buys one more."""
    slow, usage = grant(rate=2, rate_seconds=60), Usage()
    usage.spend(slow, 0, 0)
    usage.spend(slow, 0, 59)
    usage.give_back(slow, 0, 0)
    assert usage.state(61, (slow,)).used[slow].times == (59,)
    usage.spend(slow, 0, 61)
    assert decide(post(), (slow,), state=usage.state(62, (slow,))).rule == "rate-exceeded"
    single, usage = grant(rate=1, rate_seconds=1), Usage()
    usage.spend(single, 0, 0)
    usage.spend(single, 0, 1)
    usage.give_back(single, 0, 0)
    assert decide(post(), (single,), state=usage.state(1.5, (single,))).rule == "rate-exceeded"


@pytest.mark.parametrize(("now", "rule"), [(99, "not-yet"), (100, ""), (199, ""), (200, "expired")])
def test_window(now: int, rule: str) -> None:
    assert spent(grant(not_before=100, not_after=200), 0, State(now))[0] == rule


def test_after_something_secret_came_in_only_what_says_so_holds() -> None:
    plain, source, later = grant(), grant(secret=True, paths=("/secret",)), grant(after_secret=True, paths=("/later",))
    usage, all_of_them = Usage(), (plain, source, later)
    assert decide(post(), all_of_them, state=usage.state(0, all_of_them)).effect == ALLOW
    usage.spend(source, 0, 0)
    state = usage.state(0, all_of_them)
    assert decide(post(), all_of_them, state=state).rule == "after-secret"
    for path in ("/secret", "/later"):
        assert decide(HttpRequest("POST", "api.example.com", path), all_of_them, state=state).effect == ALLOW
    usage.give_back(source, 0, 0)
    assert usage.state(0, ()).tainted  # it may have arrived all the same


bounded = st.builds(
    grant,
    uses=st.integers(0, 3), rate=st.integers(0, 3), rate_seconds=st.integers(1, 10), upload_budget=st.integers(0, 30),
    not_before=st.integers(0, 20), not_after=st.integers(0, 20), secret=st.booleans(), after_secret=st.booleans(),
)  # fmt: skip
use = st.builds(Used, st.integers(0, 5), st.integers(0, 50), st.lists(st.floats(0, 20), max_size=4).map(lambda times: tuple(sorted(times))))


@given(st.lists(bounded, min_size=1, max_size=4), st.integers(0, 20), st.integers(0, 40), use, st.data())
def test_having_used_more_never_allows_more(grants: list[Grant], now: int, length: int, more: Used, data: st.DataObject) -> None:
    used = {one: data.draw(use) for one in grants}
    busier = {
        one: Used(was.uses + more.uses, was.bytes + more.bytes, tuple(sorted((*was.times, *more.times)))) for one, was in used.items()
    }
    before = decide(post(length), tuple(grants), state=State(now, used))
    for state in (State(now, busier), State(now, busier, tainted=True), State(now, used, tainted=True)):
        after = decide(post(length), tuple(grants), state=state)
        assert before.effect == ALLOW or after.effect != ALLOW


@given(st.lists(st.tuples(st.integers(0, 20), st.booleans()), max_size=20))
def test_what_is_spent_and_given_back_is_as_if_it_had_not_been(steps: list[tuple[int, bool]]) -> None:
    one, kept, all_of_it = grant(uses=100, upload_budget=1000), Usage(), Usage()
    for length, stays in steps:
        all_of_it.spend(one, length, 0)
        if stays:
            kept.spend(one, length, 0)
        else:
            all_of_it.give_back(one, length, 0)
    left, right = kept.state(0, (one,)).used.get(one, Used()), all_of_it.state(0, (one,)).used.get(one, Used())
    assert (left.uses, left.bytes) == (right.uses, right.bytes)


def test_what_is_not_bounded_is_not_counted() -> None:
    assert not counted(grant()) and all(counted(grant(**{name: 1})) for name in ("uses", "rate", "upload_budget", "secret"))


def test_a_session_may_begin_after_a_secret() -> None:
    assert Usage(tainted=True).state(0, ()).tainted and not Usage().state(0, ()).tainted
