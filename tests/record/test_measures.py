"""What people were asked and how they answered, added up: by hand, and by laws that hold for any events."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import inf, isnan, nan
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.frozen import plain
from stockade.record.measures import BINS, Measures, Tally, added, approvals, ranked, share

LAW = settings(deadline=None)  # how long one example takes says nothing on a busy machine

Event = dict[str, Any]


def ask(ident: int, key: str = "k", risk: str = "low", **facts: Any) -> Event:
    """As the supervisor writes it."""
    what = f"POST https://api.example.test/{key}"
    said = {
        "action": "egress",
        "what": what,
        "digest": "0" * 64,
        "key": key,
        "rule": "policy.toml:3",
        "risk": risk,
        "tainted": False,
        "reversible": False,
    }
    return {"kind": "ask", "session": "one", "time": 10.0 * ident, "ask": ident, **said, "people": False, **facts}


def answer(ident: int, outcome: str = "approved", by: str = "person", seconds: float = 4.0, **facts: Any) -> Event:
    effect = "allow" if outcome in ("approved", "earlier") else "deny"
    said = {"effect": effect, "outcome": outcome, "by": by, "channel": "terminal" if by == "person" else "", "scope": "once"}
    return {"kind": "answer", "session": "one", "time": 10.0 * ident + seconds, "ask": ident, **said, "seconds": seconds, **facts}


def canary(ident: int, *, approved: bool) -> list[Event]:
    return [ask(ident, f"canary {ident}", "high"), answer(ident, "canary", canary=True, caught=approved)]


def start(time: float = 0.5, wall: str = "bubblewrap", command: Sequence[str] = ("claude",), **facts: Any) -> Event:
    return {"kind": "session.start", "session": "one", "time": time, "wall": wall, "command": list(command), **facts}


def event(kind: str, time: float = 1.0, **facts: Any) -> Event:
    return {"kind": kind, "session": "one", "time": time, **facts}


def measured(*events: Event) -> Measures:
    return approvals(added(json.dumps(one).encode() for one in events).values())


def test_of_nothing_everything_is_unknown_or_none() -> None:
    found = measured()
    assert (found.sessions, found.asked, found.prompts, found.per_hour, found.approved.rate) == (0, 0, 0, None, None)
    assert (found.times.median, found.times.p90, found.canaries.vigilance.rate, found.baseline.cut) == (None, None, None, None)
    assert (found.canaries.vigilance.low, found.canaries.vigilance.high) == (0.0, 1.0)
    assert not found.baseline.commands.whole


def test_how_often_a_person_was_interrupted() -> None:
    found = measured(
        start(time=1000.0),
        ask(1), answer(1),
        ask(2), answer(2, "earlier"),  # an earlier approval covers it: nobody was shown anything, whoever gave that one
        ask(3, "other"), answer(3, "refused", "reviewer"),
        ask(4, "more"), answer(4, "too_many", "rule"),
        ask(5, "k"), answer(5, "timed_out", "rule", 60.0),
        ask(6, "gone"), answer(6, "withdrawn", "rule", 3.0),
        ask(7, "k"),
        event("session.exit", 1000.0 + 1800),
    )  # fmt: skip
    assert (found.asked, found.prompts, found.per_hour, found.reviewed) == (7, 4, 8.0, 1)
    assert found.repeats == 2  # asked once more in vain, and once more without an answer so far
    seen = found.outcomes
    assert (seen.approved, seen.refused, seen.timed_out, seen.withdrawn, seen.too_many, seen.earlier, seen.open) == (1, 1, 1, 1, 1, 1, 1)
    assert (found.approved.part, found.approved.of, found.times.median) == (1, 1, 4.0)  # what nobody answered was not refused


def test_answers_by_risk_and_how_soon_they_came() -> None:
    risks, seconds = ["low", "low", "medium", "high", "high", "strange"], [0.5, 1.9, 2.0, 7.0, 30.0, 90.0]
    outcomes = ["approved", "approved", "approved", "refused", "approved", "refused"]
    events: list[Event] = []
    for ident, (risk, outcome, took) in enumerate(zip(risks, outcomes, seconds, strict=True), 1):
        events += [ask(ident, str(ident), risk), answer(ident, outcome, seconds=took)]
    found = measured(*events, ask(9, "9", "high"), answer(9, "approved", "reviewer", 0.1))
    assert (found.approved.part, found.approved.of) == (4, 6)
    assert {risk: (one["part"], one["of"]) for risk, one in plain(found.by_risk).items()} == {
        "low": (2, 2),
        "medium": (1, 1),
        "high": (1, 2),
        "unknown": (0, 1),
    }
    assert (found.times.median, found.times.p90, found.times.bins) == (2.0, 90.0, (2, 1, 1, 1, 1))
    assert (found.times.quick.part, found.times.quick.of) == (2, 6)


def test_repeats_are_of_one_session() -> None:
    other = {"session": "two"}
    assert measured(ask(1), answer(1), ask(2), answer(2)).repeats == 1
    assert measured(ask(1), answer(1), ask(1, **other), answer(1, **other)).repeats == 0


@pytest.mark.parametrize(
    ("events", "count"),
    [
        ([ask(1), answer(1), event("approval.revoke", key="k")], 1),
        ([ask(1), answer(1), event("approval.revoke", key="k"), event("approval.revoke", key="k")], 1),
        ([ask(1), answer(1), ask(2), answer(2, "refused")], 1),
        ([ask(1), answer(1), ask(2), answer(2, "refused"), ask(3), answer(3), event("approval.revoke", key="k")], 2),
        ([ask(1), answer(1, "refused"), ask(2), answer(2)], 0),  # the other way round opens nothing by mistake
        ([ask(1), answer(1), event("approval.revoke", key="another")], 0),
        ([ask(1), answer(1), ask(2), answer(2, "timed_out", "rule")], 0),
        ([ask(1), answer(1, "approved", "reviewer"), event("approval.revoke", key="k")], 0),
        ([ask(1), answer(1), event("approval.revoke", key="k", session="two")], 0),
    ],
)
def test_reversals(events: list[Event], count: int) -> None:
    assert measured(*events).reversals == count


def test_vigilance_is_of_canaries_that_people_answered() -> None:
    found = measured(
        *canary(1, approved=False), *canary(2, approved=False), *canary(3, approved=True),
        ask(4, "x"), answer(4, "timed_out", "rule", canary=True, caught=False),
        ask(5, "y"), answer(5, "refused", "reviewer", canary=True, caught=False),
        ask(6, "z", "high"), answer(6),
    )  # fmt: skip
    seen = found.canaries
    assert (seen.seeded, seen.missed, seen.unanswered, seen.vigilance.part, seen.vigilance.of) == (5, 1, 1, 2, 3)
    assert (seen.reviewer.part, seen.reviewer.of) == (1, 1)
    assert (found.approved.part, found.approved.of, found.by_risk.high.of) == (1, 1, 1)  # canaries say nothing about real requests
    assert found.prompts == 5 and found.times.quick.of == 4  # but they interrupt, and are answered, like all others


def test_time_at_work_is_without_pauses_and_without_what_comes_afterwards() -> None:
    paused = [event("session.pause", 1100.0), event("session.pause", 1200.0), event("session.resume", 1500.0)]
    assert measured(start(1000.0), *paused, event("session.exit", 2000.0)).hours == 600 / 3600
    assert measured(start(1000.0), event("egress", 1300.0), event("workspace.report", 99000.0, changed=1)).hours == 300 / 3600
    assert measured(start(1000.0), event("session.pause", 1100.0), event("session.exit", 1400.0)).hours == 100 / 3600
    assert measured(start(1000.0), event("session.exit", 1100.0), event("gate.exit", 1500.0)).hours == 100 / 3600
    assert measured(event("egress", 1000.0), event("egress", 1060.0)).hours == 60 / 3600  # its start is in an older ledger
    backwards = measured(start(1000.0), ask(1), event("session.exit", 900.0))
    assert (backwards.hours, backwards.per_hour) == (0.0, None)


def test_the_baseline_says_what_it_cannot_know() -> None:
    requests = [
        event("egress", effect=effect, method=method) for effect, method in (("allow", "GET"), ("deny", "GET"), ("deny", "CONNECT"))
    ]
    tunnel = event("egress", effect="allow", method="CONNECT")
    found = measured(start(), *requests, tunnel, event("connect", effect="deny"), event("workspace.report", changed=6), ask(1), answer(1))
    seen = found.baseline
    assert (seen.commands.least, seen.connections.least, seen.writes.least) == (1, 4, 6)
    assert not (seen.commands.whole or seen.connections.whole or seen.writes.whole)
    assert seen.cut == pytest.approx(1 - 1 / 11)


def test_a_guest_with_a_kernel_of_its_own_hides_no_command() -> None:
    programs = [event("guest.exec", path="/bin/true")] * 3
    whole = measured(start(wall="gvisor"), *programs).baseline.commands
    assert (whole.least, whole.whole) == (3, True)  # what the session was started with is one of them
    assert not measured(start(wall="gvisor"), *programs, event("guest.lost", count=2)).baseline.commands.whole
    assert not measured(start(wall="gvisor"), *programs, start(session="two")).baseline.commands.whole
    in_process = measured(start(command=()), event("exec.start", command=["ls"]), event("exec.start", command=["id"])).baseline.commands
    assert (in_process.least, in_process.whole) == (2, False)


def test_a_file_that_is_merged_is_counted_once() -> None:
    merged = event("workspace.merge", created=2, changed=3, not_deleted=7)
    assert measured(start(), merged, event("workspace.report", changed=5)).baseline.writes.least == 5
    assert measured(start(), event("workspace.report", complete=False, held=[])).baseline.writes.least == 0


def test_more_prompts_than_are_known_of_is_no_cut() -> None:
    assert measured(start(), *(one for ident in (1, 2) for one in (ask(ident), answer(ident)))).baseline.cut is None


@pytest.mark.parametrize(
    "bad",
    [
        ask(1),  # a second time
        {**ask(2), "ask": "2"},
        {**ask(2), "ask": True},
        {**ask(2), "key": None},
        {"kind": "ask", "session": "one", "method": "GET", "host": "a.test"},
        answer(7),  # was never asked
        {**answer(1), "outcome": "perhaps"},
        {**answer(1), "outcome": ["approved"]},
        {**answer(1), "outcome": "open"},
        {**answer(1), "ask": [1]},
    ],
)
def test_what_cannot_be_understood_is_counted_and_changes_nothing_else(bad: Event) -> None:
    good = [start(), ask(1), answer(1), event("session.exit", 100.0)]
    clean, found = measured(*good), measured(*good[:2], bad, *good[2:])
    assert found.unread == 1 and {**plain(found), "unread": 0} == plain(clean)


def test_only_the_first_answer_counts() -> None:
    found = measured(ask(1), answer(1, "refused"), answer(1, "approved"))
    assert (found.outcomes.refused, found.outcomes.approved, found.unread) == (1, 0, 1)


@pytest.mark.parametrize("seconds", [None, "4", True, -1.0, nan, inf, 10**400])
def test_a_time_that_is_none_is_not_taken_for_a_quick_answer(seconds: object) -> None:
    one = Tally()
    for each in (ask(1), {**answer(1), "seconds": seconds}):
        one.add(each)
    assert one.times == [] and approvals([one]).approved.of == 1


# --- shares and ranks


@LAW
@given(st.integers(0, 400), st.integers(0, 400))
def test_an_interval_holds_its_rate_and_is_where_the_score_test_says(part: int, of: int) -> None:
    part = min(part, of)
    found = share(part, of)
    if not of:
        assert found.rate is None
        return
    assert found.rate == part / of and 0 <= found.low <= found.rate <= found.high <= 1
    z = NormalDist().inv_cdf(0.975)
    for bound in (found.low, found.high):  # the interval's ends are the rates that the score test just does not reject
        if 1e-9 < bound < 1 - 1e-9:
            assert (found.rate - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / of, rel=1e-6, abs=1e-12)
    mirrored = share(of - part, of)
    assert mirrored.low == pytest.approx(1 - found.high, abs=1e-9)


def test_the_interval_of_a_textbook() -> None:
    """Newcombe, 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    for part, of, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        found = share(part, of)
        assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@LAW
@given(st.lists(st.floats(0, 100), max_size=30), st.sampled_from([0.1, 0.5, 0.9, 1.0]))
def test_a_rank_is_one_of_the_values_and_covers_its_share(values: list[float], quantile: float) -> None:
    found = ranked(sorted(values), quantile)
    if found is None:
        assert not values
        return
    assert found in values
    assert sum(value <= found for value in values) >= quantile * len(values) - 1e-9
    assert sum(value < found for value in values) < quantile * len(values)


# --- laws

OUTCOMES = st.sampled_from(["approved", "refused", "canary", "timed_out", "withdrawn", "too_many", "earlier", "open", "?"])
IDENTS, KEYS, TIMES = st.integers(0, 4), st.sampled_from("ab"), st.floats(0, 1e5)
EVENTS = st.one_of(
    st.builds(lambda ident, key, risk, time: {**ask(ident, key, risk), "time": time}, IDENTS, KEYS, st.sampled_from(["low", "high", "x"]), TIMES),
    st.builds(
        lambda ident, outcome, by, seconds, lure, caught: answer(ident, outcome, by, seconds, canary=lure, caught=caught),
        IDENTS, OUTCOMES, st.sampled_from(["person", "reviewer", "rule"]), st.floats(0, 100), st.booleans(), st.booleans(),
    ),
    st.builds(lambda key: event("approval.revoke", key=key), KEYS),
    st.builds(event, st.sampled_from(["session.start", "session.exit", "session.pause", "session.resume", "exec.start", "guest.exec"]), TIMES),
    st.builds(lambda effect, method: event("egress", effect=effect, method=method), st.sampled_from(["allow", "deny"]), st.sampled_from(["GET", "CONNECT"])),
    st.builds(lambda changed: event("workspace.report", changed=changed), st.integers(0, 5)),
)  # fmt: skip
SESSIONS = st.dictionaries(st.sampled_from("pqr"), st.lists(EVENTS, max_size=12), max_size=3)


def named(sessions: Mapping[str, list[Event]]) -> dict[str, list[Event]]:
    return {name: [{**one, "session": name} for one in events] for name, events in sessions.items()}


@LAW
@given(SESSIONS, st.randoms(use_true_random=False))
def test_how_sessions_lie_among_one_another_is_no_part_of_it(sessions: dict[str, list[Event]], order: Any) -> None:
    whole = named(sessions)
    one_by_one = [one for events in whole.values() for one in events]
    turns = [name for name, events in whole.items() for _ in events]
    order.shuffle(turns)
    left = {name: iter(events) for name, events in whole.items()}
    assert measured(*(next(left[name]) for name in turns)) == measured(*one_by_one)


@LAW
@given(SESSIONS)
def test_what_is_counted_of_some_sessions_and_of_the_others_adds_up(sessions: dict[str, list[Event]]) -> None:
    each = [plain(measured(*events)) for events in named(sessions).values()]
    whole = plain(measured(*(one for events in named(sessions).values() for one in events)))
    for name in ("sessions", "asked", "prompts", "repeats", "reversals", "reviewed", "unread"):
        assert whole[name] == sum(one[name] for one in each)
    for name in whole["outcomes"]:
        assert whole["outcomes"][name] == sum(one["outcomes"][name] for one in each)
    for name in ("commands", "connections", "writes"):
        assert whole["baseline"][name]["least"] == sum(one["baseline"][name]["least"] for one in each)
    assert whole["times"]["bins"] == [sum(one["times"]["bins"][at] for one in each) for at in range(len(BINS) + 1)]


@LAW
@given(st.lists(EVENTS, max_size=30))
def test_the_numbers_fit_together(events: list[Event]) -> None:
    found = measured(*events)
    seen, lures = found.outcomes, found.canaries
    assert sum(plain(seen).values()) == found.asked
    assert seen.open + seen.timed_out + seen.withdrawn <= found.prompts <= found.asked - seen.too_many - seen.earlier
    assert found.times.quick.of == sum(found.times.bins) == found.approved.of + lures.vigilance.of
    assert sum(risk["of"] for risk in plain(found.by_risk).values()) == found.approved.of
    assert (
        lures.seeded == lures.vigilance.of + lures.unanswered + lures.reviewer.of
        and lures.missed == lures.vigilance.of - lures.vigilance.part
    )
    assert found.repeats <= max(0, found.prompts - 1) and found.reversals <= seen.approved
    assert found.hours >= 0 and (found.baseline.cut is None or 0 <= found.baseline.cut <= 1)


@LAW
@given(st.lists(EVENTS, max_size=20), st.integers(0, 20))
def test_half_a_ledger_and_then_the_rest_is_the_whole(events: list[Event], at: int) -> None:
    one = Tally()
    for each in events[:at]:
        one.add(each)
    approvals([one])  # looking in between changes nothing
    for each in events[at:]:
        one.add(each)
    assert plain(approvals([one] if events else [])) == plain(measured(*events))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
FIELDS = st.sampled_from([*ask(1), *answer(1), "wall", "command", "changed", "created", "method", "canary", "caught"])
WORDS = st.sampled_from(
    ["ask", "answer", "approval.revoke", "session.start", "session.pause", "egress", "workspace.report", "one", "person", "canary"]
)


@LAW
@given(st.lists(st.dictionaries(FIELDS, WORDS | PLAIN, max_size=12), max_size=12))
def test_no_event_at_all_makes_it_fall(events: list[Event]) -> None:
    one = Tally()
    for each in events:
        one.add(each)
    found = approvals([one])
    assert not isnan(found.hours) and json.loads(json.dumps(plain(found), allow_nan=False))["sessions"] == 1
    added(json.dumps(each).encode() for each in events)
