"""Value classes are values: immutable, comparable, hashable, and rebuilt from plain data without loss."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.errors import CannotEnforce, Denied, PolicyError, StockadeError
from stockade.core.frozen import frozen, plain, replace
from stockade.core.values import ALLOW, DENY, Credential, Environment, Grant, Limits, Mount, Origin, Policy, Verdict, Workspace


@frozen
class Point:
    x: int
    y: int = 0


@frozen
class Named(Point):
    name: str = ""


def test_values_are_made_by_position_or_name_and_compared_by_content() -> None:
    assert Point(1, 2) == Point(x=1, y=2) == Point(1, y=2)
    assert Point(1) != Point(2) and Point(1) != Named(1)
    assert hash(Point(1)) == hash(Point(1)) and len({Point(1), Point(1), Named(1)}) == 2
    assert repr(Named(1, name="a")) == "Named(x=1, y=0, name='a')"
    match Point(3, 4):
        case Point(x, y):
            assert (x, y) == (3, 4)


@pytest.mark.parametrize("wrong", [((), {}), ((1, 2, 3), {}), ((1,), {"x": 2}), ((1,), {"z": 2})])
def test_missing_repeated_and_unknown_fields_are_refused(wrong: tuple[tuple[int, ...], dict[str, int]]) -> None:
    with pytest.raises(TypeError):
        Point(*wrong[0], **wrong[1])


def test_nothing_can_be_changed() -> None:
    point = Point(1)
    with pytest.raises(AttributeError):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        del point.x
    with pytest.raises(AttributeError):
        point.other = 2  # type: ignore[attr-defined]
    assert replace(point, y=5) == Point(1, 5) and point == Point(1)
    with pytest.raises(TypeError):
        replace(point, z=1)


def test_a_verdict_has_no_truth_value() -> None:
    """`if verdict:` would let a denial pass."""
    for effect in (ALLOW, DENY):
        with pytest.raises(TypeError):
            bool(Verdict(effect, "rule"))


text = st.text(max_size=10)
origins = st.builds(Origin, text, st.integers(0, 99), text, text)
texts = st.lists(text, max_size=3).map(tuple)
pairs = st.lists(st.tuples(text, text), max_size=3).map(tuple)
policies = st.builds(
    Policy,
    wall=st.sampled_from(["auto", "bubblewrap"]),
    workspace=st.builds(Workspace, path=text, origin=origins),
    mounts=st.lists(st.builds(Mount, text, text, st.sampled_from(["ro", "rw"]), origins), max_size=3).map(tuple),
    environment=st.builds(Environment, texts, pairs),
    limits=st.builds(Limits, st.integers(0, 9), st.integers(0, 1 << 40)),
    grants=st.lists(
        st.builds(Grant, text, st.integers(1, 65535), methods=texts, paths=texts, headers=texts, origin=origins), max_size=3
    ).map(tuple),
    credentials=st.lists(st.builds(Credential, text, text, origin=origins), max_size=2).map(tuple),
    sources=pairs,
)


@settings(max_examples=40, deadline=None)
@given(policies)
def test_a_policy_survives_being_written_as_plain_data(policy: Policy) -> None:
    assert Policy.from_plain(plain(policy)) == policy
    assert Policy.from_plain(json.loads(json.dumps(plain(policy)))) == policy


def test_an_origin_says_where() -> None:
    assert str(Origin("f.toml", 3, "egress.host")) == "f.toml:3 (egress.host)"
    assert str(Origin()) == "built-in"


def test_errors_carry_a_code_and_what_to_do_and_are_plain_data() -> None:
    error = PolicyError("bad", code="policy.x", hint="do this", file="f", line=2, key="k")
    assert str(error) == "f:2: bad"
    assert json.loads(json.dumps(error.plain())) == {
        "error": "policy.x",
        "message": "f:2: bad",
        "hint": "do this",
        "file": "f",
        "line": 2,
        "key": "k",
    }
    assert str(PolicyError("bad", code="c", file="f")) == "f: bad"
    verdict = Verdict(DENY, "rule")
    assert Denied("no", verdict=verdict).verdict is verdict
    for kind in (StockadeError, CannotEnforce):
        assert kind("m", code="c").exit_status == 125
