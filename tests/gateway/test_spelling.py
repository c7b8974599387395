"""One spelling for a request (gateway/spelling.py). Invariant: what comes out goes in again unchanged, and holds nothing that could end a line."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stockade.gateway.config import FACTS, READ, UPSTREAM
from stockade.gateway.spelling import Malformed, Settled, normal_path, settle

HOST = (b"Host", b"a.example.com")


def settled(
    *headers: tuple[bytes, bytes], target: bytes = b"/x", version: bytes = b"HTTP/1.1", authority: bytes = b"", method: bytes = b"GET"
) -> Settled:
    return settle(version, method, target, scheme=b"http" if authority else b"", authority=authority, headers=headers, tls=False)


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("/", "/"),
        ("/a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/../../a", "/a"),
        ("/a/%2e%2E/b", "/b"),
        ("/%62", "/b"),
        ("/a/..", "/"),
        ("/a/b/.", "/a/b/"),
        ("//evil.test/x", "/evil.test/x"),
        ("/a%20b%3f", "/a%20b%3f"),
        ("/a/...", "/a/..."),
        ("/a/..;x/b", "/a/..;x/b"),  # left to the checks, which refuse it
        ("/%252e%252e/a", "/%252e%252e/a"),
    ],
)
def test_paths(path: str, normal: str) -> None:
    assert normal_path(path) == normal


@pytest.mark.parametrize("path", ["/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b"])
def test_paths_that_are_read_in_two_ways(path: str) -> None:
    with pytest.raises(Malformed):
        normal_path(path)


@given(st.text("/.%2eE5a;", max_size=30))
@example("/%2%65%2e/../a")
def test_a_path_is_settled_once(text: str) -> None:
    try:
        once = normal_path("/" + text)
    except Malformed:
        return
    assert normal_path(once) == once
    assert not {"", ".", ".."} & set(once.split("/")[1:-1]) and once.split("/")[-1] not in (".", "..")


def test_what_speaks_for_the_gate_is_dropped_and_the_host_comes_first() -> None:
    forged = [(name.upper().encode(), b"forged") for name in (*FACTS, UPSTREAM, READ, "x-envoy-retry-on", "x-forwarded-proto", "x_api_key")]
    found = settled((b"Accept", b" a\t"), *forged, HOST, (b"x-other", b"1"))
    assert found.headers == (("host", "a.example.com"), ("accept", "a"), ("x-other", "1"))


def test_what_concerns_one_connection_only_is_dropped_but_a_wish_to_upgrade_is_seen() -> None:
    hop = ((b"Keep-Alive", b"5"), (b"TE", b"trailers"), (b"Proxy-Connection", b"x"), (b"X-Named", b"1"), (b"Expect", b"100-Continue"))
    assert settled(HOST, *hop, (b"Connection", b"close, X-Named")).headers == (("host", "a.example.com"),)
    upgrade = settled(HOST, (b"Upgrade", b"WebSocket"), (b"Connection", b"keep-alive, Upgrade"))
    assert upgrade.upgrade and upgrade.headers[1:] == (("upgrade", "WebSocket"), ("connection", "Upgrade"))
    for dropped in ((b"Upgrade", b"h2c"), (b"Connection", b"Upgrade")), ((b"Upgrade", b"websocket"),):
        assert settled(HOST, *dropped).headers == (("host", "a.example.com"),)
    for other in (b"websocket, h2c", b"tcp"):
        found = settled(HOST, (b"Upgrade", other), (b"Connection", b"Upgrade"))
        assert not found.upgrade and ("upgrade", other.decode()) in found.headers
    assert not settled(HOST, (b"Upgrade", b"websocket"), (b"Upgrade", b"websocket")).upgrade


def test_the_absolute_form_names_the_host() -> None:
    assert settled((b"Host", b"evil.test"), authority=b"a.example.com:81").headers == (("host", "a.example.com:81"),)
    assert settled((b"Host", b"a.example.com.:81")).headers == (("host", "a.example.com:81"),)
    assert settled((b"Host", b"a.example.com.")).headers == (("host", "a.example.com"),)


def test_framing() -> None:
    assert (settled(HOST).length, settled(HOST).framing) == (0, ())
    assert settled(HOST, (b"Content-Length", b"7")).length == 7
    chunked = settled(HOST, (b"Transfer-Encoding", b"Chunked"))
    assert chunked.length is None and chunked.framing == (("transfer-encoding", "chunked"),)


@pytest.mark.parametrize(
    ("status", "lines", "more"),
    [
        (400, [], {}),
        (400, [HOST, HOST], {}),
        (400, [HOST, (b"content-length", b"1"), (b"content-length", b"1")], {}),
        (400, [HOST, (b"content-length", b"1"), (b"transfer-encoding", b"chunked")], {}),
        *[(400, [HOST, (b"content-length", value)], {}) for value in (b"+1", b"01", b"1,1", b"0x1", b"", b"1" * 16, b"\xb2")],
        *[(400, [HOST, (b"transfer-encoding", value)], {}) for value in (b"gzip, chunked", b"chunked, identity", b"xchunked", b"")],
        *[(400, [HOST, (b"connection", value)], {}) for value in (b"host", b"close, content-length", b"Transfer-Encoding")],
        *[(400, [HOST, (b"x-a", value)], {}) for value in (b"a\r\nb: c", b"a\n", b"a\0", b"a\x7f")],
        *[(400, [HOST, (name, b"a")], {}) for name in (b"x a", b"x:a", b"", b"x\xff", b"x\r")],
        *[(400, [HOST], {"target": target}) for target in (b"*", b"x", b"", b"/a#b", b"/a b", b"/\xe9", b"/a\0", b"/a\r\n")],
        *[(400, [HOST], {"method": method}) for method in (b"", b"G T", b"G\0", b"\xe9")],
        *[(426, [HOST], {"version": version}) for version in (b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.2", b"")],
        (417, [HOST, (b"expect", b"200-ok")], {}),
        (431, [HOST, *[(b"accept", b"a")] * 100], {}),
        (431, [HOST, (b"accept", b"a" * (64 << 10))], {}),
    ],
)  # fmt: skip
def test_malformed(status: int, lines: list[tuple[bytes, bytes]], more: dict[str, bytes]) -> None:
    with pytest.raises(Malformed) as caught:
        settled(*lines, **more)
    assert caught.value.status == status


headers = st.lists(
    st.tuples(st.sampled_from([b"Host", b"Accept", b"Connection", b"Upgrade", b"content-length", b"x_y", b"x-z"]) | st.binary(max_size=6), st.binary(max_size=8)),
    max_size=6,
)  # fmt: skip


@given(headers, st.binary(max_size=12), st.sampled_from([b"", b"a.example.com", b"b.", b"c.:1"]))
def test_what_comes_out_goes_in_unchanged(lines: list[tuple[bytes, bytes]], rest: bytes, authority: bytes) -> None:
    try:
        once = settled(HOST, *lines, target=b"/" + rest, authority=authority)
    except Malformed:
        return
    sent = "".join(f"{name}: {value}" for name, value in (*once.headers, *once.framing)) + once.target
    assert not {"\r", "\n", "\0"} & set(sent)
    written = [(name.encode(), value.encode("latin-1")) for name, value in (*once.headers, *once.framing)]
    assert settled(*written, target=once.target.encode()) == once
