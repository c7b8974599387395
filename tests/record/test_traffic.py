"""Adding up what sessions asked of their gates."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.record.traffic import Board, Traffic

LAW = settings(deadline=None)  # how long one example takes says nothing on a busy machine


def egress(effect: str = "allow", **facts: Any) -> dict[str, Any]:
    return {"kind": "egress", "session": "one", "time": 100.0, "effect": effect, "method": "GET", "host": "a.test", "length": 0, **facts}


def added(*events: dict[str, Any]) -> Traffic:
    found = Traffic()
    for event in events:
        found.add(event)
    return found


def test_requests_bytes_and_the_busiest_host() -> None:
    found = added(
        {"kind": "session.start", "time": 5.0, "command": ["curl", "x"]},
        egress(length=10),
        egress(host="b.test", length=5),
        egress("deny", host="b.test", length=1000),
        egress("deny", host="b.test", method="CONNECT"),
        egress(host="c.test", method="CONNECT"),
        {"kind": "dns", "effect": "deny", "name": "d.test"},
        egress(host="judge.test", by="reviewer", length=7),  # nothing that the session asked for
    )
    assert (found.command, found.started) == (("curl", "x"), 5.0)
    assert (found.allowed, found.refused, found.up, found.busiest) == (2, 2, 15, "b.test")
    assert found.last["method"] == "CONNECT" and found.last["effect"] == "deny"
    assert found.ended == "" and added({"kind": "gate.exit", "reason": "the gate ended"}).ended == "the gate ended"


def test_made_up_names_cost_a_bounded_amount() -> None:
    found = added(*(egress("deny", host=f"{number}.test") for number in range(5000)))
    assert found.refused == 5000 and len(found._hosts) < 1100 and found.busiest == "(others)"


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3), max_leaves=5
)
names = st.sampled_from(["kind", "effect", "method", "host", "length", "time", "command", "reason", "session"])
kinds = st.sampled_from(["egress", "session.start", "gate.exit", "dns", "allow", "CONNECT", "one"])


@LAW
@given(st.lists(st.dictionaries(names, kinds | plain, max_size=9), max_size=8), st.integers(0, 8))
def test_any_events_add_up_whatever_way_they_are_cut(events: list[dict[str, Any]], at: int) -> None:
    whole, parts = Board(), Board()
    lines = [json.dumps(event).encode() + b"\n" for event in events]
    whole.add(lines)
    parts.add(lines[:at])
    parts.add(lines[at:])
    assert whole.traffic.keys() == parts.traffic.keys()
    for name, found in whole.traffic.items():
        other = parts.traffic[name]
        assert (found.allowed, found.refused, found.up, found.busiest) == (other.allowed, other.refused, other.up, other.busiest)
        assert min(found.allowed, found.refused, found.up) >= 0


def line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"


def test_a_board_counts_the_sessions_that_are_wanted_and_what_is_recent() -> None:
    board = Board()
    board.begin(50.0)
    old, new = egress(time=10.0), egress("deny", time=60.0)
    board.add([line(old), line(new), line({**new, "session": "two"}), b"\xff{one\n", b"[one]\n", line({"session": "one"})], ["one"])
    assert set(board.traffic) == {"one"}
    assert (board.traffic["one"].allowed, board.traffic["one"].refused) == (1, 1)
    assert board.rates("one", 60.0) == (0.0, 0.1) and board.rates("none", 60.0) == (0.0, 0.0)
    board.begin(60.0)
    board.add([line({**old, "time": 61.0}), line({**new, "session": "two", "time": 61.0})])
    assert board.rates("one", 62.0) == (0.5, 0.0) and board.rates("two", 62.0) == (0.0, 0.5)
    board.keep(["two"])
    assert set(board.traffic) == {"two"}
