"""What a grant says of queries, kinds of bodies and what they hold. Invariants: nothing raises, and what is not listed is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks.constraints import at, body_refused, canonical, content_type_refused, parameter_refused
from stockade.checks.grants import HttpRequest, decide
from stockade.core.values import ALLOW, BodyRule, Grant

JSON = ("content-type", "application/json")


def grant(**fields: Any) -> Grant:
    return Grant("api.example.com", methods=("POST", "GET"), **fields)


# ---- the query --------------------------------------------------------------------------------------------------------------------

LISTED = grant(query="listed", parameters=("page", "sort=asc", "sort=desc", "a b"))


@pytest.mark.parametrize("query", ["", "page=1", "page", "sort=asc&page=2", "sort=%61sc", "p%61ge=x", "a+b=1", "a%20b=1", "page=1&page=2"])
def test_listed_parameters_pass(query: str) -> None:
    assert parameter_refused(query, LISTED) is None
    assert decide(HttpRequest("GET", "api.example.com", f"/x?{query}"), (LISTED,)).effect == ALLOW


@pytest.mark.parametrize(
    "query", ["q=1", "sort=up", "sort", "Page=1", "page=1;q=2", "page=1&q", "&", "=", "page%00=1", "page[]=1", "sort=asc%20"]
)
def test_other_parameters_do_not(query: str) -> None:
    assert parameter_refused(query, LISTED) is not None
    assert decide(HttpRequest("GET", "api.example.com", f"/x?{query}"), (LISTED,)).effect != ALLOW


@given(st.text(max_size=30), st.lists(st.text(max_size=5), max_size=3))
def test_a_parameter_that_passes_is_listed(query: str, parameters: list[str]) -> None:
    assert parameter_refused(query, grant(query="listed", parameters=tuple(parameters))) is not None or not query or parameters


# ---- kinds of bodies ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "length", "passes"),
    [
        ((JSON,), 5, True),
        ((("Content-Type", "Application/JSON; charset=utf-8"),), 5, True),
        ((), 0, True),
        ((), 5, False),
        ((JSON, JSON), 5, False),
        ((("content-type", "multipart/form-data; boundary=x"),), 5, False),
        ((("content-type", ""),), 5, False),
        ((("content-type", "application/json, text/plain"),), 5, False),
    ],
)
def test_content_types(headers: tuple[tuple[str, str], ...], length: int, passes: bool) -> None:
    only = grant(content_types=("application/json",))
    assert (content_type_refused(headers, length, only) == "") is passes
    assert (decide(HttpRequest("POST", "api.example.com", "/x", headers=headers, length=length), (only,)).effect == ALLOW) is passes


# ---- bodies -------------------------------------------------------------------------------------------------------------------------

MODEL = grant(body=(BodyRule("/model", ('"a"', '"b"')), BodyRule("/tools", absent=True), BodyRule("/n", most=10)))


@pytest.mark.parametrize(
    ("body", "passes"),
    [
        (b'{"model": "a", "n": 3}', True),
        (b'{"model": "b", "n": 10, "more": [1]}', True),
        (b'{"model": "c", "n": 3}', False),
        (b'{"Model": "a", "n": 3}', False),
        (b'{"model": "a"}', False),
        (b'{"model": "a", "n": 11}', False),
        (b'{"model": "a", "n": "3"}', False),
        (b'{"model": "a", "n": true}', False),
        (b'{"model": "a", "n": 1, "tools": null}', False),
        (b'{"model": "a", "n": 1, "Tools": []}', False),
        (b'{"model": "a", "Model": "c", "n": 1}', False),
        (b'{"model": "c", "model": "a", "n": 1}', False),
        (b'{"model": ["a"], "n": 1}', False),
        (b'{"model": "a", "n": NaN}', False),
        (b'{"model": "a", "n": 1}{}', False),
        (b'\xef\xbb\xbf{"model": "a", "n": 1}', False),
        ('{"model": "a", "n": 1}'.encode("utf-16"), False),
        (b"[]", False),
        (b"", False),
        (b"[" * 100_000, False),
    ],
)
def test_bodies(body: bytes, passes: bool) -> None:
    assert (body_refused((JSON,), body, MODEL) == "") is passes
    asked = HttpRequest("POST", "api.example.com", "/x", headers=(JSON,), length=len(body), body=body)
    assert (decide(asked, (MODEL,)).effect == ALLOW) is passes


def test_a_compressed_body_is_refused() -> None:
    assert body_refused((JSON, ("Content-Encoding", "gzip")), b'{"model": "a", "n": 3}', MODEL)
    assert not body_refused((JSON, ("Content-Encoding", "identity")), b'{"model": "a", "n": 3}', MODEL)


def test_a_body_that_one_grant_refuses_may_be_allowed_by_another() -> None:
    body = b'{"model": "c"}'
    asked = HttpRequest("POST", "api.example.com", "/x", headers=(JSON,), length=len(body), body=body)
    assert decide(asked, (MODEL,)).rule == "body-not-granted"
    assert decide(asked, (MODEL, grant(paths=("/x",)))).effect == ALLOW


@given(
    st.binary(max_size=60), st.lists(st.builds(BodyRule, st.text(max_size=6), st.just(()), st.booleans(), st.integers(-1, 3)), max_size=3)
)
def test_never_raises(body: bytes, rules: list[BodyRule]) -> None:
    body_refused((), body, grant(body=tuple(rules)))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(values)
def test_every_value_is_found_at_its_own_pointer(document: Any) -> None:
    def places(value: Any, pointer: str) -> Any:
        yield pointer, value
        if isinstance(value, dict) and len({key.casefold() for key in value}) < len(value):
            return  # such a document is refused before anything is looked up in it
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, inner in items:
            yield from places(inner, f"{pointer}/{str(name).replace('~', '~0').replace('/', '~1')}")

    for pointer, value in places(document, ""):
        found, there = at(document, pointer)
        assert found and canonical(there) == canonical(value)
    assert json.loads(canonical(document)) == document
