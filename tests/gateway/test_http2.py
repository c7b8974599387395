"""HTTP/2 on either side: frames that a polite client never sends, what the ledger allowed, and what arrived at a server that chose HTTP/1.1 or HTTP/2.

INVARIANT: that of test_differential.py, and no trailers of a request: what one version of HTTP says in another way never becomes a second request, another target,
or a header that nobody judged.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, RequestReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

from gateway.harness import Gate, running
from gateway.test_differential import Message, Pair, Raw
from stockade.core.values import Grant
from stockade.gateway.certs import Authority

pytestmark = [pytest.mark.wall, pytest.mark.timeout(120)]
HOST = "open.localhost"
Headers = list[tuple[bytes, bytes]]


class Chosen(Raw):
    """The raw server behind TLS, which speaks the one version that it is made for, strictly. What comes in HTTP/2 is kept as the message that it stands for."""

    def __init__(self, directory: Path, version: str) -> None:
        super().__init__()
        authority = Authority("raw")
        self.ca = directory / f"{version[:2]}-ca.pem"
        self.ca.write_text(authority.pem)
        (directory / "leaf.pem").write_text(authority.leaf(HOST) + authority.leaf_key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "leaf.pem")
        self._context.set_alpn_protocols([version])
        self.two = version == "h2"

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as secure:
            if self.two:
                self._talk_two(secure)
            else:
                super()._talk(secure)

    def _talk_two(self, secure: ssl.SSLSocket) -> None:
        connection = H2Connection(H2Configuration(client_side=False, header_encoding=None))
        connection.initiate_connection()
        secure.sendall(connection.data_to_send())
        open_streams: dict[int, tuple[Headers, bytearray]] = {}
        while data := secure.recv(65536):
            try:
                events = connection.receive_data(data)
            except ProtocolError as error:
                self.broken.append(repr(error).encode())
                return
            for event in events:
                if isinstance(event, RequestReceived):
                    open_streams[event.stream_id] = (list(event.headers), bytearray())
                elif isinstance(event, DataReceived):
                    open_streams[event.stream_id][1].extend(event.data)
                    connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, TrailersReceived):
                    self.broken.append(b"trailers: " + repr(event.headers).encode())
                elif isinstance(event, StreamEnded):
                    self._arrived(*open_streams.pop(event.stream_id))
                    connection.send_headers(event.stream_id, [(b":status", b"200"), (b"content-length", b"2")])
                    connection.send_data(event.stream_id, b"ok", end_stream=True)
            secure.sendall(connection.data_to_send())

    def _arrived(self, headers: Headers, body: bytearray) -> None:
        said = dict(headers)
        if len(said) != len(headers):
            self.broken.append(repr(headers).encode())
        line = said[b":method"] + b" " + said[b":path"] + b" HTTP/1.1\r\n"
        rest = [(name, value) for name, value in headers if not name.startswith(b":")]
        self.messages.append(Message(line, [(b"host", said[b":authority"]), *rest], bytes(body)))


@dataclass
class Spoken:
    """What a client says on one stream: headers, body, trailers; and whether it closes its side."""

    headers: Headers
    body: bytes = b""
    trailers: Headers | None = None


class Client:
    """Requests over HTTP/2 in a tunnel, one after the other, without a look at whether they are well-formed."""

    def __init__(self, gate: Gate, port: int) -> None:
        self.gate, self.port = gate, port

    def ask(self, *spoken: Spoken, wait: float = 0.15) -> tuple[int, bytes]:
        """The status and body of the last answer; 0 for a reset, a goodbye, or silence."""
        place = f"{HOST}:{self.port}"
        with socket.create_connection(("127.0.0.1", self.gate.ports["http-proxy"]), 10) as sock:
            sock.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            assert b" 200 " in sock.recv(4096)
            context = ssl.create_default_context(cafile=str(self.gate.ca_file))
            context.set_alpn_protocols(["h2"])
            with contextlib.suppress(OSError), context.wrap_socket(sock, server_hostname=HOST) as secure:
                secure.settimeout(wait)
                connection = H2Connection(
                    H2Configuration(header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False)
                )
                connection.initiate_connection()
                found = (0, b"")
                for number, one in enumerate(spoken):
                    found = self._talk(secure, connection, 2 * number + 1, one)
                return found
        return 0, b""

    def _talk(self, secure: ssl.SSLSocket, connection: H2Connection, stream: int, spoken: Spoken) -> tuple[int, bytes]:
        connection.send_headers(stream, spoken.headers, end_stream=not spoken.body and spoken.trailers is None)
        if spoken.body:
            connection.send_data(stream, spoken.body, end_stream=spoken.trailers is None)
        if spoken.trailers is not None:
            connection.send_headers(stream, spoken.trailers, end_stream=True)
        secure.sendall(connection.data_to_send())
        status, body = 0, b""
        with contextlib.suppress(TimeoutError):
            while data := secure.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, ResponseReceived):
                        status = int(dict(event.headers)[b":status"])
                    elif isinstance(event, DataReceived):
                        body += event.data
                    elif isinstance(event, ConnectionTerminated):
                        raise ConnectionError("goodbye")
                    elif isinstance(event, StreamEnded | StreamReset):
                        return status, body
        return status, body


@dataclass
class Scene:
    pair: Pair
    client: Client

    def request(self, *more: tuple[bytes, bytes], replace: dict[bytes, bytes | None] | None = None, **rest: Any) -> Spoken:
        """A POST that is granted, with changes: None takes a pseudo-header away."""
        place = f"{HOST}:{self.client.port}".encode()
        head: dict[bytes, bytes | None] = {b":method": b"POST", b":scheme": b"https", b":path": b"/public/a", b":authority": place}
        head |= replace or {}
        return Spoken([(name, value) for name, value in head.items() if value is not None] + list(more), **rest)


@pytest.fixture(scope="module", params=["http/1.1", "h2"])
def scene(engine_binary: str, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Scene]:
    directory = tmp_path_factory.mktemp("http2")
    server = Chosen(directory, request.param)
    methods = ("GET", "POST", "PUT", "HEAD")
    grants = (
        Grant(HOST, server.port, methods=methods, paths=("/public/**",), private=True, headers=("x-one", "x-two")),
        Grant(HOST, server.port, methods=("POST",), paths=("/demo.Svc/*",), query="none", private=True, grpc=True),
    )
    with running(directory, server, grants) as gate:  # type: ignore[arg-type]  # it has a `ca`
        yield Scene(Pair(gate, server), Client(gate, server.port))
    server.close()


PRIVATE = b"GET /private HTTP/1.1\r\nHost: %s\r\n\r\n" % HOST.encode()
MORE: Headers = [
    (b"transfer-encoding", b"chunked"), (b"transfer-encoding", b"identity"), (b"Transfer-Encoding", b"chunked"), (b"transfer_encoding", b"chunked"),
    (b"content-length", b"0"), (b"content-length", b"5"), (b"content-length", b"500"), (b"content-length", b"5, 5"), (b"content-length", b"+5"), (b"content-length", b""),
    (b"connection", b"close"), (b"connection", b"x-one"), (b"keep-alive", b"1"), (b"proxy-connection", b"keep-alive"), (b"upgrade", b"h2c"), (b"upgrade", b"websocket"),
    (b"http2-settings", b"AAMAAABkAARAAAAAAAIAAAAA"), (b"te", b"chunked"), (b"te", b"trailers"), (b"trailer", b"x-one"), (b"expect", b"100-continue"),
    (b"x-one", b"a\r\nx-two: b"), (b"x-one", b"a\r\n\r\n" + PRIVATE), (b"x-one", b"a\nx-two: b"), (b"x-one", b"a\rb"), (b"x-one", b"a\0b"),
    (b"x-one\r\nx-two", b"b"), (b"x-one: a\r\nx-two", b"b"), (b"x-one ", b"a"), (b"x one", b"a"), (b"x-one:", b"a"), (b"X-One", b"a"), (b"", b"a"), (b"x-\xff", b"a"),
    (b"host", b"evil.test"), (b"host", HOST.encode()), (b":authority", b"evil.test"), (b":path", b"/private"), (b":method", b"DELETE"), (b":foo", b"bar"),
    (b":protocol", b"websocket"), (b":status", b"200"), (b"x-stockade-session", b"s-test"), (b"x-stockade-body", b"whole"), (b"x-stockade-bounds", b"0 0"),
    (b"x-stockade-upstream", b"127.0.0.1:1"), (b"x-envoy-original-path", b"/private"), (b"x-http-method-override", b"DELETE"), (b"cookie", b"a=b"),
    (b"authorization", b"Bearer attacker"), (b"x-forwarded-host", b"evil.test"), (b"content-type", b"application/grpc"), (b"content-type", b"application/grpc+json"),
]  # fmt: skip
HEADS: list[dict[bytes, bytes | None]] = [
    {b":path": b"/public/a HTTP/1.1\r\nHost: evil.test\r\n\r\nGET /private"}, {b":path": b"/public/../private"}, {b":path": b"/public/%2e%2e/private"},
    {b":path": b"/public/..%2fprivate"}, {b":path": b"https://evil.test/public/a"}, {b":path": b"/public/a#x"}, {b":path": b"/public/a b"}, {b":path": b""}, {b":path": b"*"},
    {b":path": b"public/a"}, {b":path": b"//evil.test/public/a"}, {b":path": b"/public/a\\..\\private"}, {b":path": None}, {b":path": b"/private"},
    {b":method": b"GET /private HTTP/1.1\r\nx:"}, {b":method": b"post"}, {b":method": b"PO ST"}, {b":method": b""}, {b":method": None}, {b":method": b"CONNECT"},
    {b":method": b"DELETE"}, {b":method": b"PRI"}, {b":method": b"TRACE"}, {b":scheme": b"http"}, {b":scheme": b"ftp"}, {b":scheme": None}, {b":scheme": b"https\r\nx-one: a"},
    {b":authority": b"evil.test"}, {b":authority": b"open.localhost:1"}, {b":authority": b"user@open.localhost"}, {b":authority": b"open.localhost\r\nx-one: a"},
    {b":authority": b"open.localhost, evil.test"}, {b":authority": b"127.0.0.1"}, {b":authority": b""}, {b":authority": None},
]  # fmt: skip
BODIES = (b"hello", b"0\r\n\r\n" + PRIVATE)
TRAILERS: list[Headers] = [
    [(b"x-one", b"late")],
    [(b"x-api-key", b"attacker"), (b"authorization", b"Bearer attacker")],
    [(b"content-length", b"0"), (b"transfer-encoding", b"chunked")],
    [(b":path", b"/private")],
    [(b"x-one", b"a\r\n\r\n" + PRIVATE)],
]


@pytest.fixture(autouse=True)
def nothing_is_left(scene: Scene) -> None:
    """Of a test before this one, which may have failed."""
    scene.pair.raw.messages, scene.pair.raw.broken, scene.pair.left = [], [], []
    scene.client.gate.events.clear()


def _settle(scene: Scene, talks: list[tuple[Spoken, ...]]) -> int:
    """Say all of it, each talk on a connection of its own, and hold the invariant against what arrived."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda talk: scene.client.ask(*talk), talks))
    seen = -1
    while seen != (seen := len(scene.client.gate.events) + len(scene.pair.raw.messages)):
        time.sleep(0.1)  # most clients have hung up before what they asked for was decided
    names = {name.lower() for talk in talks for one in talk for name, _ in one.headers}
    return scene.pair.check(b"", names)


def test_what_arrives_was_decided_whatever_the_headers_say(scene: Scene) -> None:
    for body in BODIES:
        # The second time before the pseudo-headers.
        _settle(scene, [(scene.request(one, body=body), Spoken([one, *scene.request().headers], body)) for one in MORE])


def test_what_arrives_was_decided_whatever_the_request_is_for(scene: Scene) -> None:
    _settle(scene, [tuple(scene.request(replace=head, body=body) for body in (b"", b"hello")) for head in HEADS])


def test_trailers_of_a_request_never_arrive(scene: Scene) -> None:
    grpc = {b":path": b"/demo.Svc/Get"}
    more = ((b"content-type", b"application/grpc"), (b"te", b"trailers"))
    talks = [(scene.request(body=b"hello", trailers=trailers),) for trailers in TRAILERS]
    talks += [(scene.request(*more, replace=grpc, body=bytes(5), trailers=trailers),) for trailers in TRAILERS]
    assert _settle(scene, talks) == 2 * 2  # those that are well-formed, without their trailers


@pytest.mark.parametrize(
    ("path", "more"),
    [
        (b"/public/a?q=1", [(b"x-one", b"1"), (b"content-type", b"application/octet-stream")]),
        (b"/public/a", [(b"content-length", b"5")]),
        (b"/demo.Svc/Get", [(b"content-type", b"application/grpc"), (b"te", b"trailers")]),
    ],
)
def test_benign_requests_arrive(scene: Scene, path: bytes, more: Headers) -> None:
    spoken = scene.request(*more, replace={b":path": path}, body=b"hello")
    assert scene.client.ask(spoken, wait=5) == (200, b"ok")
    (arrived,) = [*scene.pair.raw.messages]
    assert arrived.body == b"hello" and set(arrived.headers) >= {(name, value) for name, value in more if name != b"content-length"}
    assert scene.pair.check(b"", {name for name, _ in spoken.headers}) == 1


def test_both_versions_at_the_client_reach_a_server_of_either(scene: Scene) -> None:
    for version in ("--http1.1", "--http2"):
        done = scene.client.gate.curl(f"https://{HOST}:{scene.client.port}/public/{version}", version, "-D", "/dev/stderr")
        assert done.stdout == "ok[200]" and ("HTTP/2 200" in done.stderr) == (version == "--http2")
    assert scene.pair.check(b"", {b"accept", b"user-agent"}) == 2
