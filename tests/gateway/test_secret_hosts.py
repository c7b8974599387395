"""Once something secret is asked of a host, nothing that is under way by rules that do not hold after that goes on: its answer could leave that way."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded

from gateway.harness import Gate, Upstream, running, until
from stockade.core.values import Grant

pytestmark = pytest.mark.wall
LENGTH = 4 << 20


@pytest.fixture
def gate(carrier: str, upstream: Upstream, tmp_path: Path) -> Iterator[Gate]:
    """One for each test, because it can become narrower only once."""
    grants = tuple(
        Grant(
            "open.localhost", methods=("POST", "GET"), paths=(f"/{name}/**",), port=upstream.plain_port, scheme="http", private=True,
            max_upload=64 << 20, secret=name == "secret", after_secret=name == "later",
        )
        for name in ("secret", "free", "later")
    )  # fmt: skip
    with running(tmp_path, upstream, grants, kind=carrier) as started:
        yield started


def url(upstream: Upstream, path: str) -> str:
    return f"http://open.localhost:{upstream.plain_port}{path}"


def fetch(gate: Gate, upstream: Upstream, path: str) -> str:
    done = gate.curl(url(upstream, path))
    return done.stdout.rpartition("[")[2].rstrip("]")


@contextlib.contextmanager
def uploading(gate: Gate, upstream: Upstream, path: str) -> Iterator[socket.socket]:
    """An upload whose first part has arrived at the server."""
    upstream.requests.clear()
    before = upstream.connections
    with socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 10) as connection:
        head = f"POST {url(upstream, path)} HTTP/1.1\r\nhost: open.localhost:{upstream.plain_port}\r\ncontent-length: {LENGTH}\r\n\r\n"
        connection.sendall(head.encode() + bytes(LENGTH // 2))
        assert until(lambda: upstream.connections > before)
        yield connection


def finish(connection: socket.socket) -> bytes:
    """Send the rest; what is answered, b"" = it was cut."""
    with contextlib.suppress(OSError):
        connection.sendall(b"the secret".ljust(LENGTH // 2, b"\0"))
        return connection.recv(65536)
    return b""


@pytest.mark.parametrize(("path", "asked"), [("/free/up", "/later/x"), ("/free/up", "/free/x"), ("/later/up", "/free/x")])
def test_what_is_not_secret_ends_nothing(gate: Gate, upstream: Upstream, path: str, asked: str) -> None:
    """The control: so the upload of the next test would have arrived."""
    with uploading(gate, upstream, path) as upload:
        assert fetch(gate, upstream, asked) == "200"
        assert b" 200 " in finish(upload)
    assert (path, LENGTH) in [(arrived, size) for _, arrived, _, size in upstream.requests]


@pytest.mark.parametrize("path", ["/free/up", "/later/up"])
def test_an_upload_under_way_does_not_carry_what_comes_in(gate: Gate, upstream: Upstream, path: str) -> None:
    with uploading(gate, upstream, path) as upload:
        assert fetch(gate, upstream, "/secret/x") == "200"
        assert finish(upload) == b""
    arrived = {target: size for _, target, _, size in upstream.requests}
    assert arrived["/secret/x"] == 0 and arrived.get(path, 0) <= LENGTH // 2
    assert [fetch(gate, upstream, path) for path in ("/free/x", "/later/x", "/secret/x")] == ["403", "200", "200"]
    with uploading(gate, upstream, "/later/up") as upload:  # only the first time
        assert fetch(gate, upstream, "/secret/x") == "200"
        assert b" 200 " in finish(upload)


def test_a_connection_that_was_used_before_is_spared_in_http_1(gate: Gate, upstream: Upstream) -> None:
    """It carries one request at a time, so nothing else is under way on it."""
    with closing(http.client.HTTPConnection("127.0.0.1", gate.ports["http-proxy"], timeout=10)) as kept:
        for path, status in (("/free/x", 200), ("/secret/x", 200), ("/free/x", 403), ("/later/x", 200)):
            kept.request("GET", url(upstream, path))
            answer = kept.getresponse()
            answer.read()
            assert answer.status == status


class Two:
    """One connection in HTTP/2, to the proxy."""

    def __init__(self, gate: Gate, upstream: Upstream) -> None:
        self.sock = socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 10)
        self._upstream, self._h2 = upstream, H2Connection()
        self._h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.sock.sendall(self._h2.data_to_send())

    def ask(self, path: str, *, method: str = "GET", body: bytes | None = b"") -> int:
        """Begin a request, and end it unless `body` is None; its number."""
        stream = self._h2.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "http"), (":authority", f"open.localhost:{self._upstream.plain_port}"), (":path", path)]
        self._h2.send_headers(stream, [*head, *([("content-length", str(LENGTH))] if body is None else [])], end_stream=body is not None)
        self.flush()
        return stream

    def status(self, stream: int) -> int:
        """Of its answer, when that is whole; 0 = the connection was cut."""
        status = 0
        with contextlib.suppress(OSError):
            while data := self.sock.recv(65536):
                for event in self._h2.receive_data(data):
                    if isinstance(event, ResponseReceived) and event.stream_id == stream:
                        status = int(dict(event.headers)[b":status"])
                    if isinstance(event, DataReceived):
                        self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    if isinstance(event, StreamEnded) and event.stream_id == stream:
                        return status
                self.flush()
        return 0

    def __enter__(self) -> Two:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@pytest.mark.parametrize("carrier", ["envoy"], indirect=True)
def test_in_http_2_a_connection_is_spared_only_if_nothing_else_was_on_it(gate: Gate, upstream: Upstream) -> None:
    with Two(gate, upstream) as mixed:
        assert mixed.status(mixed.ask("/free/x")) == 200
        mixed.ask("/free/up", method="POST", body=None)
        assert mixed.status(mixed.ask("/secret/x")) == 0
    with Two(gate, upstream) as again:
        assert [again.status(again.ask(path)) for path in ("/secret/x", "/free/x", "/later/x")] == [200, 403, 200]


@pytest.mark.parametrize("carrier", ["envoy"], indirect=True)
def test_in_http_2_one_that_is_for_the_secret_alone_goes_on(gate: Gate, upstream: Upstream) -> None:
    with Two(gate, upstream) as alone:
        assert [alone.status(alone.ask(path)) for path in ("/secret/x", "/later/x", "/free/x")] == [200, 200, 403]
