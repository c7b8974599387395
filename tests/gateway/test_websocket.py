"""WebSockets: by a grant for one and by no other, both ways at once, and gone when the grant is."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gateway.harness import Gate, Upstream, running
from stockade.checks.grants import HttpRequest, decide
from stockade.core.values import ALLOW, Grant
from stockade.gateway.certs import Authority

pytestmark = pytest.mark.wall
HOST = "open.localhost"
MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


class Echo:
    """A server that speaks just enough of RFC 6455 to shake hands, and then sends back every byte. `heads` holds what it was asked."""

    def __init__(self, directory: Path) -> None:
        authority = Authority("echo")
        self.ca = directory / "ca.pem"
        self.ca.write_text(authority.pem)
        (directory / "leaf.pem").write_text(authority.leaf(HOST) + authority.leaf_key)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(directory / "leaf.pem")
        self._context.set_alpn_protocols(["h2", "http/1.1"])  # it would rather speak HTTP/2, which knows no such upgrade
        self.heads: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._talk, args=(connection,), daemon=True).start()

    def _talk(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(connection, server_side=True) as secure:
            while b"?no" in (head := self._head(secure)).split(b"\r\n")[0]:  # it does not take the upgrade, and goes on with HTTP
                secure.sendall(b"HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 99\r\nContent-Length: 0\r\n\r\n")
            key = next(
                (line.partition(b":")[2].strip() for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key:")), b""
            )
            if not key:
                secure.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                return
            answer = base64.b64encode(hashlib.sha1(key + MAGIC).digest())
            secure.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
                + answer
                + b"\r\n\r\n"
            )
            while data := secure.recv(65536):
                secure.sendall(data)

    def _head(self, secure: ssl.SSLSocket) -> bytes:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            if not (byte := secure.recv(1)):
                raise OSError("it hung up")
            head += byte
        self.heads.append(head)
        return head

    def close(self) -> None:
        self._listener.close()


@dataclass
class Scene:
    gate: Gate
    echo: Echo

    @contextlib.contextmanager
    def open(self, path: str, *lines: str, method: str = "GET", upgrade: str = "websocket") -> Iterator[tuple[ssl.SSLSocket, bytes]]:
        """A connection through the proxy port that asked for an upgrade, and the head of the answer."""
        place = f"{HOST}:{self.echo.port}"
        with socket.create_connection(("127.0.0.1", self.gate.ports["http-proxy"]), 10) as sock:
            sock.sendall(f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n".encode())
            assert b" 200 " in sock.recv(4096)
            context = ssl.create_default_context(cafile=str(self.gate.ca_file))
            with context.wrap_socket(sock, server_hostname=HOST) as secure:
                head = [
                    f"{method} {path} HTTP/1.1",
                    f"Host: {place}",
                    "Sec-WebSocket-Version: 13",
                    f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
                ]
                head += [f"Upgrade: {upgrade}", "Connection: Upgrade"] if upgrade else []
                secure.sendall("\r\n".join([*head, *lines, "", ""]).encode())
                answer = b""
                while b"\r\n\r\n" not in answer and (more := secure.recv(4096)):
                    answer += more
                yield secure, answer


@pytest.fixture
def scene(carrier: str, tmp_path: Path) -> Iterator[Scene]:
    echo = Echo(tmp_path)
    grants = (
        Grant(HOST, echo.port, methods=("GET",), paths=("/ws",), private=True, websocket=True),
        Grant(HOST, echo.port, methods=("GET", "POST"), paths=("/plain",), private=True),
    )
    upstream = type("Ca", (), {"ca": echo.ca})()
    with running(tmp_path, upstream, grants, kind=carrier) as gate:
        yield Scene(gate, echo)
    echo.close()


def test_it_passes_both_ways_for_as_long_as_it_is_granted(scene: Scene) -> None:
    with scene.open("/ws") as (secure, answer):
        assert answer.startswith(b"HTTP/1.1 101")
        data = os.urandom(300_000)
        threading.Thread(target=secure.sendall, args=(data,), daemon=True).start()
        got = b""
        while len(got) < len(data):
            got += secure.recv(65536)
        assert got == data
        scene.gate.revoke(0)
        secure.settimeout(2)
        try:
            assert secure.recv(1) == b""
        except OSError as error:
            assert not isinstance(error, TimeoutError)


@pytest.mark.parametrize(
    ("path", "options", "rule"),
    [
        ("/plain", {}, b"upgrade-not-granted"),
        ("/other", {}, b"path-not-granted"),
        ("/ws", {"upgrade": "h2c"}, b"websocket-only"),
        ("/ws", {"upgrade": "websocket, h2c"}, b""),
        ("/ws", {"upgrade": ""}, b"websocket-only"),
        ("/ws", {"method": "POST"}, b"method-not-granted"),
        ("/plain", {"upgrade": "tcp"}, b""),
    ],
)
def test_everything_else_is_refused(scene: Scene, path: str, options: dict[str, str], rule: bytes) -> None:
    with scene.open(path, **options) as (_, answer):  # type: ignore[arg-type]
        assert answer.split()[1] in (b"403", b"400") and (not rule or rule in answer)
    assert not scene.echo.heads


def test_nothing_is_smuggled_behind_an_upgrade_that_the_server_did_not_take(scene: Scene) -> None:
    """A proxy that believes in a tunnel where there is none would pass the next request on unseen."""
    hidden = f"GET /private HTTP/1.1\r\nHost: {HOST}:{scene.echo.port}\r\n\r\n".encode()
    with scene.open("/ws?no") as (secure, answer):
        assert b" 426 " in answer
        secure.settimeout(0.5)
        with contextlib.suppress(OSError):
            secure.sendall(hidden * 2)
            while secure.recv(4096):
                pass
    assert len(scene.echo.heads) == 1


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer attacker",
        "Sec-WebSocket-Protocol: x\r\nCookie: a=b",
        "Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.sk-attacker",
        "X-Other: 1",
    ],
)
def test_its_headers_are_judged_as_any_others(scene: Scene, line: str) -> None:
    with scene.open("/ws", line) as (_, answer):
        assert b" 403 " in answer
    assert not scene.echo.heads


def test_a_suggested_rule_says_that_it_is_one(upstream: Upstream) -> None:
    grant = Grant("a.example.com", methods=("GET",), paths=("/x",))
    asked = HttpRequest("GET", "a.example.com", "/x", headers=(("Upgrade", "WebSocket"), ("sec-websocket-key", "x")))
    assert decide(asked, (grant,)).grant.endswith("websocket = true\n")
    assert decide(asked, (Grant("a.example.com", methods=("GET",), paths=("/x",), websocket=True),)).effect == ALLOW
