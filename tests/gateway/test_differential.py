"""What was decided against what arrived: raw bytes into the gate, raw bytes out of it, and the ledger in between.

INVARIANT: every message that an upstream receives is one that the ledger allowed, in that order and once: same method, path, host, port and length of body;
its header names are among those that the client sent, without the ones that speak for the gate. Nothing else arrives, whatever the client sent.
"""

from __future__ import annotations

import contextlib
import random
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.harness import Gate, Upstream, running
from stockade.core.values import Grant

pytestmark = [pytest.mark.wall, pytest.mark.timeout(300)]
HOST = "open.localhost"


@dataclass
class Message:
    """One request as it arrived: its first line and header lines, and the bytes of its body after the framing."""

    line: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes


@dataclass
class Raw:
    """A server that takes bytes, cuts them into messages in the strictest reading of RFC 9112, and answers each. `broken` holds what it could not read."""

    messages: list[Message] = field(default_factory=list)
    broken: list[bytes] = field(default_factory=list)
    busy: int = 0

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            connection.settimeout(20)
            with contextlib.suppress(OSError, TimeoutError):
                while line := stream.readline(1 << 17):
                    self.busy += 1
                    try:
                        if not self._one(line, stream):
                            return
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    finally:
                        self.busy -= 1

    def _one(self, line: bytes, stream: object) -> bool:
        headers: list[tuple[bytes, bytes]] = []
        while (head := stream.readline(1 << 17)) not in (b"\r\n", b""):  # type: ignore[attr-defined]
            name, colon, value = head.removesuffix(b"\r\n").partition(b":")
            if not colon or not head.endswith(b"\r\n") or name != name.strip() or b"\0" in head or head[:1] in b" \t":
                self.broken.append(line + head)
                return False
            headers.append((name.lower(), value.strip()))
        lengths = [value for name, value in headers if name == b"content-length"]
        chunked = [value for name, value in headers if name == b"transfer-encoding"]
        if not line.endswith(b" HTTP/1.1\r\n") or len(lengths) + len(chunked) > 1 or any(value != b"chunked" for value in chunked):
            self.broken.append(line + repr(headers).encode())
            return False
        body = b""
        if lengths:
            body = stream.read(int(lengths[0]))  # type: ignore[attr-defined]
        while chunked:
            size = int(stream.readline(64).partition(b";")[0], 16)  # type: ignore[attr-defined]
            body += stream.read(size)  # type: ignore[attr-defined]
            if stream.readline(1 << 17) != b"\r\n":  # type: ignore[attr-defined]  # after the last chunk: trailers
                self.broken.append(line + b"trailers")
                return False
            if not size:
                break
        self.messages.append(Message(line, headers, body))
        return True

    def close(self) -> None:
        self.listener.close()


@dataclass
class Pair:
    gate: Gate
    raw: Raw
    left: list[dict[str, object]] = field(default_factory=list)  # allowed, and not arrived yet

    def ask(self, data: bytes, *, pieces: int = 1, wait: float = 0.25) -> bytes:
        """Send bytes to the proxy port, whole or in pieces; everything that comes back until it is quiet."""
        with socket.create_connection(("127.0.0.1", self.gate.ports["http-proxy"]), 10) as sock:
            sock.settimeout(wait)
            got = b""
            with contextlib.suppress(OSError):
                step = max(1, len(data) // pieces)
                for at in range(0, len(data), step):
                    sock.sendall(data[at : at + step])
            with contextlib.suppress(OSError):
                while chunk := sock.recv(65536):
                    got += chunk
            return got

    def check(self, data: bytes, sent_names: set[bytes]) -> int:
        """The invariant for what has happened since the last call; how many messages arrived."""
        deadline = time.monotonic() + 5
        while self.raw.busy and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)
        arrived, self.raw.messages = self.raw.messages, []
        events, self.gate.events[:] = (
            [event for event in self.gate.events if event["kind"] == "egress" and event["method"] != "CONNECT"],
            [],
        )
        assert not self.raw.broken, (data, self.raw.broken)
        self.left += [event for event in events if event["effect"] == "allow"]
        for message in arrived:
            method, _, rest = message.line.partition(b" ")
            target = rest.removesuffix(b" HTTP/1.1\r\n").decode("latin-1")
            hosts = [value.decode("latin-1") for name, value in message.headers if name == b"host"]
            assert len(hosts) == 1, (data, message)
            name, _, port = hosts[0].partition(":")
            decided = {
                "method": method.decode(),
                "path": target.partition("?")[0],
                "host": name,
                "port": int(port or 80),
                "length": len(message.body),
            }
            size = decided.pop("length")  # -1: a gRPC call, whose size nobody knows before it has passed
            matching = [
                event for event in self.left if event["length"] in (size, -1) and all(event[key] == value for key, value in decided.items())
            ]
            assert matching, (data, message, self.left)
            self.left.remove(matching[0])
            names = {name for name, _ in message.headers}
            assert names <= sent_names | {b"host", b"content-length", b"transfer-encoding"}, (data, names)
            assert not [name for name in names if name.startswith((b"x-stockade", b"x-envoy", b"x-forwarded"))]
        return len(arrived)


@pytest.fixture(scope="module")
def pair(carrier: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    raw = Raw()
    grants = (
        Grant(
            HOST,
            raw.port,
            "http",
            methods=("GET", "POST", "PUT", "HEAD", "OPTIONS"),
            paths=("/public/**",),
            private=True,
            headers=("x-one", "x-two"),
        ),
    )
    with running(tmp_path_factory.mktemp("gate"), upstream, grants, kind=carrier) as gate:
        yield Pair(gate, raw)
    raw.close()


BAD = b"GET /private HTTP/1.1\r\nHost: %s\r\n\r\n"
LINES = [
    b"Content-Length: 5", b"Content-Length: 0", b"content-length: 5, 5", b"Content-Length: +5", b"Content-Length: 5 ", b"Content-Length:5", b"Content-Length: 05",
    b"Content-Length: 50", b"Content-Length : 5", b"Content-Length\t: 5", b"Content-Length: 0x5", b"Content_Length: 50", b"Transfer-Encoding: chunked",
    b"Transfer-Encoding : chunked", b"Transfer-Encoding: xchunked", b"Transfer-Encoding: chunked, identity", b"Transfer-Encoding: identity",
    b"Transfer-Encoding:\x0bchunked", b"transfer-encoding: CHUNKED", b"Transfer-Encoding: \"chunked\"", b"Transfer_Encoding: chunked", b"TE: trailers",
    b"Trailer: x-one", b"Connection: close", b"Connection: keep-alive, content-length", b"Connection: x-one, host", b"Connection: upgrade", b"Upgrade: h2c",
    b"Upgrade: websocket", b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA", b"Host: evil.test", b"Host: open.localhost", b"hoST: open.localhost:1", b"Host:",
    b"X-One: a", b"X-One: a\x00b", b"X-One: a\rX-Two: b", b"X-One: a\nX-Two: b", b" X-One: folded", b"\tfolded", b"X-One", b": empty", b"X-\xffbad: 1",
    b"Expect: 100-continue", b"Expect: 200-ok", b"Authorization: Basic eDp5", b"X-Forwarded-Host: evil.test", b"X-Original-URL: /private", b"X-Rewrite-URL: /private",
    b"X-HTTP-Method-Override: DELETE", b"X-Stockade-Session: s-test", b"X-Stockade-Upstream: 127.0.0.1:1", b"X-Envoy-Original-Path: /private", b"Forwarded: host=evil.test",
    b"Proxy-Connection: keep-alive", b"Max-Forwards: 0", b"Range: bytes=0-1", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
]  # fmt: skip
METHODS = [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"get", b"GE T", b"PRI", b"TRACE", b"", b"G\x00T"]
TARGETS = [
    b"/public/a", b"/public/a?q=1", b"/public/../private", b"/public/%2e%2e/private", b"/public/..%2fprivate", b"/public//a", b"/public/./a", b"/PUBLIC/a", b"/private",
    b"/public/a#frag", b"/public/a\\..\\..\\private", b"/public/a;x=/../../private", b"/public/a%00", b"/public/a%0d%0aX: y", b"/public/\xc3\xa9", b"*", b"/", b"public/a",
    b"//evil.test/public/a", b"/public/a b", b"/public/a\tb", b"/public/a?x=\x01", b"/public/" + b"a" * 9000,
]  # fmt: skip
BODIES = [
    b"",
    b"hello",
    b"5\r\nhello\r\n0\r\n\r\n",
    b"0\r\n\r\n",
    b"5;x=y\r\nhello\r\n0\r\nX-Two: t\r\n\r\n",
    b"5\nhello\n0\n\n",
    b"-5\r\nhello",
    b"fffffffffffffffff\r\nx",
    b"0\r\n",
]
VERSIONS = [b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"HTTP/0.9", b"", b"http/1.1", b"HTTP/1.1 "]
ENDS = [b"\r\n", b"\n", b"\r", b"\r\r\n"]


def spelled(
    port: int, method: bytes, target: bytes, version: bytes, lines: list[bytes], body: bytes, end: bytes, absolute: bool
) -> tuple[bytes, set[bytes]]:
    """A request in these words, and the header names that it could be said to hold."""
    place = f"{HOST}:{port}".encode()
    if absolute:
        target = b"http://" + place + target
    head = [b" ".join(word for word in (method, target, version) if word or word == method), b"Host: " + place, *lines]
    names = {part.partition(b":")[0].strip().lower() for line in head[1:] for part in line.replace(b"\r", b"\n").split(b"\n")}
    return end.join(head) + end + end + body, names


requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(METHODS) | st.sampled_from([b"GET", b"POST"]),
        "target": st.sampled_from(TARGETS) | st.just(b"/public/a"),
        "version": st.sampled_from(VERSIONS) | st.just(b"HTTP/1.1"),
        "lines": st.lists(st.sampled_from(LINES), max_size=3),
        "body": st.sampled_from(BODIES) | st.sampled_from([b"hello", b"5\r\nhello\r\n0\r\n\r\n"]),
        "end": st.sampled_from(ENDS) | st.just(b"\r\n"),
        "absolute": st.booleans() | st.just(True),
    }
)
PLAIN = {"method": b"POST", "target": b"/public/a", "version": b"HTTP/1.1", "lines": [], "body": b"", "end": b"\r\n", "absolute": True}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(requests, min_size=1, max_size=3), st.integers(1, 4))
@example([{**PLAIN, "lines": [b"Content-Length: 5", b"Transfer-Encoding: chunked"], "body": b"0\r\n\r\nGET /private HTTP/1.1\r\n\r\n"}], 1)
@example([{**PLAIN, "lines": [b"Transfer-Encoding: chunked"], "body": b"5\r\nhello\r\n0\r\nX-Two: t\r\n\r\n"}], 3)
@example([{**PLAIN, "lines": [b"Content-Length: 50"], "body": b"x"}, {**PLAIN, "target": b"/private"}], 1)
def test_what_arrives_was_decided(pair: Pair, asked: list[dict[str, object]], pieces: int) -> None:
    spelt = [spelled(pair.raw.port, **one) for one in asked]  # type: ignore[arg-type]
    data = b"".join(text for text, _ in spelt)
    pair.ask(data, pieces=pieces, wait=0.1)
    pair.check(data, set().union(*(names for _, names in spelt)))


def test_each_line_alone_and_a_second_request_hidden_behind_it(pair: Pair) -> None:
    hidden = BAD % f"{HOST}:{pair.raw.port}".encode()
    bodies = (b"hello" + hidden, b"0\r\n\r\n" + hidden, b"5\r\nhello\r\n0\r\n\r\n" + hidden, hidden)
    for line in LINES:
        spelt = [spelled(pair.raw.port, b"POST", b"/public/a", b"HTTP/1.1", [line], body, b"\r\n", True) for body in bodies]
        with ThreadPoolExecutor(len(bodies)) as pool:
            list(pool.map(lambda one: pair.ask(one[0], wait=0.2), spelt))
        pair.check(line, set().union(*(names for _, names in spelt)))


def test_benign_requests_arrive_one_by_one_on_one_connection(pair: Pair) -> None:
    """The control: the same harness sees messages arrive, bodies too, so an empty result elsewhere means something."""
    one, names = spelled(
        pair.raw.port, b"POST", b"/public/a?q=1", b"HTTP/1.1", [b"Content-Length: 5", b"X-One: 1"], b"hello", b"\r\n", True
    )
    two, _ = spelled(pair.raw.port, b"POST", b"/public/b", b"HTTP/1.1", [b"Transfer-Encoding: chunked"], BODIES[2], b"\r\n", True)
    got = pair.ask(one + two + one, wait=1)
    arrived = [*pair.raw.messages]
    assert got.count(b"HTTP/1.1 200") == 3 and pair.check(one + two, names) == 3
    assert [message.body for message in arrived] == [b"hello"] * 3 and (b"x-one", b"1") in arrived[0].headers


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(0, 2**32))
def test_noise_after_a_good_beginning(pair: Pair, noise: bytes, seed: int) -> None:
    good, names = spelled(pair.raw.port, b"POST", b"/public/a", b"HTTP/1.1", [b"X-One: 1", b"Content-Length: 5"], b"hello", b"\r\n", True)
    at = random.Random(seed).randrange(len(good))
    data = good[:at] + noise + good[at:]
    pair.ask(data, wait=0.12)
    names |= {part.partition(b":")[0].strip().lower() for part in data.replace(b"\r", b"\n").split(b"\n")}
    pair.check(data, names)


def test_the_same_inside_a_tunnel(pair: Pair) -> None:
    """TLS inside a tunnel, HTTP/1.1: framing tricks against a server that speaks no TLS, so that nothing but a whole handshake could arrive."""

    def talk(line: bytes) -> None:
        with socket.create_connection(("127.0.0.1", pair.gate.ports["http-proxy"]), 10) as sock:
            sock.sendall(f"CONNECT {HOST}:{pair.raw.port} HTTP/1.1\r\nHost: {HOST}:{pair.raw.port}\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 200")
            context = ssl.create_default_context(cafile=str(pair.gate.ca_file))
            with context.wrap_socket(sock, server_hostname=HOST) as secure, contextlib.suppress(OSError):
                secure.settimeout(0.2)
                data, _ = spelled(pair.raw.port, b"POST", b"/public/a", b"HTTP/1.1", [line], b"hello", b"\r\n", False)
                secure.sendall(data)
                while secure.recv(65536):
                    pass

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(talk, LINES))
    assert pair.check(b"tls", set()) == 0
