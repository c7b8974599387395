"""INVARIANT: whatever a file holds, reading it ends in a policy or in a PolicyError that says where."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy.support import Places
from stockade.core.errors import PolicyError
from stockade.policy import overrides
from stockade.policy.model import TABLES, keys_of
from stockade.policy.problems import each
from stockade.policy.read import parse

KEYS = sorted({key for table in TABLES for key in keys_of(table)} | {"x", "metods"})
SCALARS = st.one_of(
    st.booleans().map(lambda value: str(value).lower()),
    st.integers(-10, 1 << 70).map(str),
    st.floats(allow_nan=True).map(str),
    st.sampled_from(["1979-05-27T07:32:00Z", "07:32:00", '"8 GiB"', '"ro"', '"env:A"', '"GET"', '"/v1/**"', '"*.a.b"', '"~"', '"/"', '"."', '"pypi"', '"\\u0000"']),
    st.text(max_size=12).map(json.dumps),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[" + ", ".join(items) + "]"),
        st.dictionaries(st.sampled_from(KEYS), inner, max_size=3).map(
            lambda items: "{" + ", ".join(f"{key} = {item}" for key, item in items.items()) + "}"
        ),
    ),
    max_leaves=5,
)
LINES = st.one_of(
    st.tuples(st.sampled_from(KEYS), VALUES).map(lambda both: f"{both[0]} = {both[1]}"),
    st.sampled_from([f"[{key}]" for key in KEYS] + [f"[[{key}]]" for key in KEYS] + ["[credential.a]", "[caps.limits]"]),
    st.text(max_size=10),
)
DOCUMENTS = st.lists(LINES, max_size=10).map(lambda lines: "\n".join(["version = 1", *lines]).encode("utf-8", "surrogatepass"))


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=200), DOCUMENTS))
def test_reading(data: bytes) -> None:
    try:
        parse(data, layer="user", name="f")
    except PolicyError as error:
        for one in each(error):
            assert one.file == "f" and 0 <= one.line <= data.count(b"\n") + 1 and one.code.startswith("policy.")
            assert one.message and json.dumps(one.plain())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(DOCUMENTS)
def test_merging(places: Places, data: bytes) -> None:
    places.project.write_bytes(data)
    try:
        places.compile()
    except PolicyError as error:
        assert each(error)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*overrides.KEYS, "x"]), st.one_of(st.text(max_size=20), st.just("GET https://a.b/c")))))
def test_options(pairs: list[tuple[str, str]]) -> None:
    try:
        overrides.document(tuple(pairs))
    except PolicyError as error:
        assert each(error)[0].file == "command line"
