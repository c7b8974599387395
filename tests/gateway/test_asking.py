"""The model of what the engine makes of a request. Whether it is true says test_foreseen.py, with the engine; here is what must hold of any request."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.core.errors import StockadeError
from stockade.gateway.asking import Unasked, connect, engine_path, questions, sent


@pytest.mark.parametrize(
    ("path", "made"),
    [
        ("/v1/x/../y", "/v1/y"),
        ("/v1/%2e%2E/y", "/y"),
        ("/v1/..;a=b/y", "/y"),
        ("/v1/.%2e;/y", "/v1/..;/y"),
        ("/v1/..%3b/y", "/v1/..%3b/y"),
        ("/v1//y///", "/v1/y/"),
        ("/a//../b", "/a/b"),
        ("/a\\..\\b", "/b"),
        ("/%76%31/%7e%c3", "/v1/~%c3"),
        ("/a/{b|c}", "/a/%7Bb%7Cc%7D"),
        ("/../..", "/"),
        ("//", "//"),
        ("///..", "//"),
    ],
)
def test_paths_as_the_engine_makes_them(path: str, made: str) -> None:
    assert engine_path(path) == made


@given(st.text("/.;%2eEfF5cC0ab\\{~é", max_size=20))
def test_what_the_engine_made_it_makes_no_more_of(text: str) -> None:
    try:
        once = engine_path(f"/{text}")
    except Unasked:
        return
    if "%2e" not in once.lower() and "..;" not in once and ".;" not in once:  # `%%32e` and `%2e;` need two rounds, there too
        assert engine_path(once) == once


@pytest.mark.parametrize(
    "url", ["", "/x", "x", "ftp://a.test/", "https:/a.test/", "https://", "https:///x", "file:///etc/passwd", "https://?x"]
)
def test_what_is_no_url_is_an_error(url: str) -> None:
    with pytest.raises(StockadeError) as caught:
        sent("GET", url)
    assert caught.value.code == "gate.url" and caught.value.hint


def test_a_client_writes_the_length_itself() -> None:
    for name in ("Content-Length", "transfer-encoding"):
        with pytest.raises(StockadeError) as caught:
            sent("GET", "https://a.test/", ((name, "5"),))
        assert caught.value.code == "gate.header"


def test_the_parts_of_a_request() -> None:
    found = sent("POST", "HTTPS://A.test:8443?q=1#part", (("X-Y", " z "),), body=b"body")
    assert (found.scheme, found.authority, found.target, found.length) == ("https", "A.test:8443", "/?q=1", 4)
    tunnel = dict(connect(found, "s").headers)
    assert (tunnel["host"], tunnel["x-stockade-method"], tunnel["x-stockade-way"]) == ("A.test:8443", "CONNECT", "proxy")
    first, again = questions(found, "s")
    facts = dict(first.headers)
    assert (facts["x-stockade-connect"], facts["x-stockade-sni"], facts["x-stockade-length"]) == ("CONNECT A.test:8443", "A.test", "4")
    assert (facts["x-y"], facts["host"], first.target, first.body, again.whole) == ("z", "A.test:8443", "/?q=1", b"body", True)


def test_only_the_beginning_of_a_body_comes_with_the_first_question() -> None:
    first, again = questions(sent("POST", "https://a.test/", body=b"x" * 100_000), "s")
    assert (len(first.body), len(again.body)) == (64 << 10, 100_000)


def test_no_client_can_say_what_only_the_engine_says() -> None:
    said = ("X-Stockade-Session", "x-stockade-method", "x-envoy-original-path", "x-forwarded-proto", "under_score")
    first, _ = questions(sent("GET", "http://a.test/", tuple((name, "evil") for name in said)), "s")
    assert "evil" not in dict(first.headers).values() and "under_score" not in dict(first.headers)


@given(
    st.text(max_size=8) | st.sampled_from(["GET", "POST"]),
    st.text(max_size=20),
    st.lists(st.tuples(st.text(max_size=8) | st.sampled_from(["connection", "upgrade", "host"]), st.text(max_size=8)), max_size=3),
)
def test_any_request_is_asked_about_or_refused(method: str, rest: str, headers: list[tuple[str, str]]) -> None:
    try:
        found = sent(method, f"https://{rest}", tuple(headers))
        connect(found, "s")
        first, _ = questions(found, "s")
    except (StockadeError, Unasked):
        return
    assert first.target.isascii() and first.target.isprintable()
