"""Whatever is in an event, a line is one JSON object of printable ASCII. Any line: tests/fuzz/ledger.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.errors import StockadeError, Tampered
from stockade.record.lines import MAX_LINE, encode, parse

TEXT = st.text(st.characters(exclude_categories=()), max_size=30)  # lone surrogates too
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)


def refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    assert len(found) == len(pairs), "a key occurs twice"
    return found


def strict(line: bytes) -> dict[str, Any]:
    def no_constant(name: str) -> float:
        raise ValueError(name)

    assert line.decode("ascii").isprintable()
    assert len(line) <= MAX_LINE
    found = json.loads(line, object_pairs_hook=refuse_twice, parse_constant=no_constant)
    json.dumps(found, ensure_ascii=False).encode("utf-8")  # no lone surrogate anywhere
    assert isinstance(found, dict)
    return found


@settings(deadline=None)
@given(st.dictionaries(TEXT.filter(lambda key: key not in ("index", "time", "cut")), VALUES, max_size=6))
def test_any_plain_event_is_one_line(event: dict[str, object]) -> None:
    line = encode(7, 1.5, event)
    found = strict(line)
    assert (found["index"], found["time"]) == (7, 1.5)
    assert parse(line, 7) == found


def test_plain_values_come_back() -> None:
    event: dict[str, object] = {
        "kind": "x",
        "text": 'a"\\\n\x1b\u2028é😀',
        "n": -5,
        "f": 0.25,
        "yes": True,
        "no": None,
        "l": [1, [], {}],
        "d": {"k": "v"},
    }
    found = strict(encode(0, 0.0, event))
    assert {key: found[key] for key in event} == event
    assert "cut" not in found


def test_what_json_cannot_say_is_spelled_out() -> None:
    found = strict(encode(0, 0.0, {"raw": "a\udcff", "b": b"\xff", "big": 1 << 70, "nan": float("nan"), "inf": float("-inf")}))
    assert found["raw"] == "a\\udcff"
    assert found["b"] == "\\xff"
    assert found["big"] == hex(1 << 70)
    assert (found["nan"], found["inf"]) == ("nan", "-inf")


@pytest.mark.parametrize(
    "value",
    [
        "x" * 1_000_000,
        "\U0001f600" * 16384,
        ["y" * 5000] * 500,
        {f"{'k' * 100}{n}": "\x00" * 300 for n in range(2000)},
        {("k" * 20000) + str(n): n for n in range(3)},
        [[[[["deep"] * 50] * 50] * 50] * 50] * 50,
        list(range(100_000)),
    ],
    ids=["text", "escapes", "list", "dict", "long-keys", "nested", "numbers"],
)
def test_too_much_is_cut_and_says_so(value: object) -> None:
    found = strict(encode(3, 1.0, {"kind": "egress", "session": "s", "value": value}))
    assert (found["kind"], found["session"]) == ("egress", "s")
    assert found["cut"] >= 1
    assert "[cut, " in json.dumps(found)


def test_the_widest_event_fits() -> None:
    event: dict[str, object] = {f"{n}" + "\U0001f600" * 500: "\U0001f600" * 500 for n in range(500)}
    assert strict(encode(1 << 60, 2.0**36, event))["cut"] >= 1


def test_a_cycle_ends() -> None:
    loop: list[object] = []
    loop.extend([loop, loop])
    assert strict(encode(0, 0.0, {"loop": loop}))["cut"] >= 1


@pytest.mark.parametrize("event", [{"index": 1}, {"time": 1}, {"cut": 1}, {"x": object()}, {"x": {1: 2}}, {"x": {1, 2}}])
def test_what_is_not_an_event_is_refused(event: dict[str, object]) -> None:
    with pytest.raises(StockadeError) as caught:
        encode(0, 0.0, event)
    assert caught.value.code == "ledger.event"


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b"", "ledger.line"),
        (b"[]", "ledger.line"),
        (b'{"index":0}', "ledger.line"),
        (b'{"index":true,"time":1.0}', "ledger.line"),
        (b'{"index":0,"time":NaN}', "ledger.line"),
        (b'{"index":0,"time":1e999}', "ledger.line"),
        (b'{"index":0,"time":1.0,"x":"\xc3\xa9"}', "ledger.line"),
        (b"[" * 60000, "ledger.line"),
        (b" " * (MAX_LINE + 1), "ledger.line"),
        (b'{"index":1,"time":1.0}', "ledger.index"),
    ],
)
def test_foreign_lines_are_refused(line: bytes, code: str) -> None:
    with pytest.raises(Tampered) as caught:
        parse(line, 0)
    assert caught.value.code == code
