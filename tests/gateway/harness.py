"""A gate without a box: loopback listeners handed to the gate's process, a supervisor in a thread, and an upstream of our own under a test CA."""

from __future__ import annotations

import contextlib
import fcntl
import http.server
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import plain
from stockade.core.tools import FileRule, ToolRule
from stockade.core.values import Grant
from stockade.gateway import engine
from stockade.gateway.certs import Authority
from stockade.gateway.control import Control

SECRET, PLACEHOLDER = "real-secret-7f3a", "stockade-placeholder-own"
CREDENTIAL = {"header": "x-api-key", "template": "{}", "user": "", "secret": SECRET, "placeholder": PLACEHOLDER}
NAMES = ("api.localhost", "open.localhost", "other.localhost")


def require_engine() -> None:
    """Skip, or fail where it must work, unless there is an engine for the gate."""
    from conftest import unavailable

    try:
        engine.find()
    except CannotEnforce as error:
        unavailable("envoy", error.message)


class Quiet(http.server.BaseHTTPRequestHandler):
    """HTTP/1.1, and nothing on standard error."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass


class Served(http.server.ThreadingHTTPServer):
    """Serves on a port of 127.0.0.1 from the start, over TLS if there is a context, until `close`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        if tls:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def certified(authority: Authority, directory: Path, *names: str) -> ssl.SSLContext:
    """A server's side of TLS with a certificate for each of these names, and the first one's for whoever asks for another. Writes into `directory`."""
    contexts = {}
    for name in names:
        files = directory / f"{name}.pem"
        files.write_text(authority.leaf(name) + authority.leaf_key)
        contexts[name] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        contexts[name].load_cert_chain(files)

    def by_name(connection: ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:
        if name in contexts:
            connection.context = contexts[name]

    contexts[names[0]].sni_callback = by_name
    return contexts[names[0]]


class Upstream:
    """HTTPS and HTTP servers on 127.0.0.1 that remember what arrived. `requests` holds (method, path, headers, body length)."""

    def __init__(self, directory: Path) -> None:
        authority = Authority("upstream test")
        self.ca = directory / "upstream-ca.pem"
        self.ca.write_text(authority.pem)
        self.requests: list[tuple[str, str, list[tuple[str, str]], int]] = []
        self.connections = 0
        upstream = self

        class Handler(Quiet):
            disable_nagle_algorithm = True
            wbufsize = 1 << 16

            def setup(self) -> None:
                upstream.connections += 1
                super().setup()

            def do_GET(self) -> None:
                length = 0
                if self.headers.get("transfer-encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        length += len(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    left = int(self.headers.get("content-length", "0"))
                    while left and (chunk := self.rfile.read(min(left, 1 << 20))):
                        left -= len(chunk)
                        length += len(chunk)
                upstream.requests.append((self.command, self.path, [(k.lower(), v) for k, v in self.headers.items()], length))
                path = self.path.partition("?")[0]
                if path == "/v1/stream":
                    self._stream()
                elif path.startswith("/v1/big/"):
                    self._big(int(path.rpartition("/")[2]))
                else:
                    body = json.dumps({"path": self.path, "headers": dict(self.headers.items()), "length": length}).encode()
                    self.send_response(200)
                    self.send_header("content-type", "application/json")
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    if self.command != "HEAD":
                        self.wfile.write(body)
                    self.wfile.flush()

            do_POST = do_PUT = do_DELETE = do_HEAD = do_PATCH = do_GET

            def _stream(self) -> None:
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for number in range(5):
                    data = f"data: {number}\n\n".encode()
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                    self.wfile.flush()
                    time.sleep(0.2)
                self.wfile.write(b"0\r\n\r\n")

            def _big(self, size: int) -> None:
                self.send_response(200)
                self.send_header("content-length", str(size))
                self.end_headers()
                block = bytes(1 << 16)
                for _ in range(size // len(block)):
                    self.wfile.write(block)

        self.plain, self.tls = Served(Handler), Served(Handler, certified(authority, directory, *NAMES))
        self.port, self.plain_port = self.tls.server_port, self.plain.server_port

    def close(self) -> None:
        self.plain.close()
        self.tls.close()


def grants_for(upstream: Upstream) -> tuple[Grant, ...]:
    """The policy of most tests: a host with a credential, one without, plain HTTP, and one whose address is private without the grant saying so."""
    port = upstream.port
    return (
        Grant(
            "api.localhost",
            methods=("GET", "POST", "PUT", "HEAD"),
            paths=("/v1/**",),
            credential="own",
            max_upload=256 << 20,
            port=port,
            private=True,
        ),
        Grant("open.localhost", paths=("/public/**",), port=port, private=True),
        Grant("open.localhost", port=upstream.plain_port, scheme="http", paths=("/public/**",), private=True),
        Grant("other.localhost", paths=("/public/**",), port=port),
        Grant("wrong.localhost", paths=("/public/**",), port=port, private=True),
    )


class Guest:
    """A session at a gate. `ports` by kind; `events` as its supervisor got them; `hold` makes the supervisor keep its receipts back; `approve` answers what
    is asked (None = never)."""

    def __init__(
        self,
        introductions: socket.socket,
        directory: Path,
        grants: tuple[Grant, ...],
        listeners: list[tuple[str, socket.socket]] | None = None,
        canaries: dict[str, str] | None = None,
        credentials: dict[str, dict[str, str]] | None = None,
        learning: bool = False,
        session: str = "s-test",
        patience: float = 0.0,
        tainted: bool = False,
        token_key: str = "",
        watch: tuple[int, ...] = (),
        tools: tuple[ToolRule, ...] = (),
        files: tuple[FileRule, ...] = (),
    ) -> None:
        self.events: list[dict[str, object]] = []
        self.hold = threading.Event()
        self.ready = threading.Event()
        self.ended = threading.Event()
        self.revoked = threading.Event()
        self.approve: Callable[[dict[str, object]], bool | None] = lambda event: None
        self.failure = ""
        self.times: dict[str, float] = {}
        self.ca_file = directory / f"gate-ca-{session}.pem"
        self.listeners = listeners or loopback_listeners()
        self.ports = {kind: sock.getsockname()[1] for kind, sock in self.listeners}
        ours, theirs = socket.socketpair()
        self._started = time.perf_counter()
        socket.send_fds(introductions, [b"session"], [theirs.fileno(), *(sock.fileno() for _, sock in self.listeners), *watch])
        theirs.close()
        self.control = Control(ours.detach(), session)
        self.control.configure(
            {
                "session": session,
                "grants": [plain(grant) for grant in grants],
                "credentials": credentials or {"own": CREDENTIAL},
                "canaries": canaries or {},
                "learning": learning,
                "tainted": tainted,
                "watch": len(watch),
                "tools": [plain(rule) for rule in tools],
                "files": [plain(rule) for rule in files],
                "patience": patience,
                "token_key": token_key,
                "listeners": [{"kind": kind, "port": self.ports[kind]} for kind, _ in self.listeners],
            }
        )
        self._orders: list[bytes] = []
        self._stop = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()

    def _supervise(self) -> None:
        while not self.control.closed and not self._stop.is_set():
            select.select([self.control], [self.control] if self.control.wants_to_write else [], [], 0.05)
            while self._orders:
                self.control._outgoing += self._orders.pop(0)
            self.control.flush()
            for message in self.control.receive():
                if message[0] == "ca":
                    self.times["ca"] = time.perf_counter() - self._started
                    self.ca_file.write_text(message[1])
                elif message[0] == "ready":
                    self.times["ready"] = time.perf_counter() - self._started
                    self.ready.set()
                elif message[0] == "failed":
                    self.failure = message[1]
                elif message[0] == "revoked":
                    self.revoked.set()
                elif message[0] == "ask":
                    threading.Thread(target=self._answer, args=(message[1], message[2]), daemon=True).start()
                elif message[0] == "event":
                    self.events.append(message[2])
                    if not self.hold.is_set():
                        self.control.acknowledge(message[1])
        self.control.close()
        self.ended.set()

    def order(self, line: bytes) -> None:
        """Have the supervisor, which is a thread of its own, send one line to the gate."""
        self._orders.append(line + b"\n")

    def revoke(self, *positions: int) -> float:
        """Take grants back; seconds until the gate said that it has obeyed."""
        return self._obeyed({"revoke": positions})

    def taint(self) -> float:
        """Say that something secret was opened; seconds until the gate said that it has obeyed."""
        return self._obeyed({"taint": True})

    def _obeyed(self, order: dict[str, object]) -> float:
        self.revoked.clear()
        began = time.perf_counter()
        self.order(json.dumps(order).encode())
        assert self.revoked.wait(5)
        return time.perf_counter() - began

    def revoke_tokens(self, *ids: str) -> float:
        """Take tokens back; seconds until the gate said that it has obeyed."""
        return self._obeyed({"revoke_tokens": ids})

    def _answer(self, number: int, event: dict[str, object]) -> None:
        said = self.approve(event)
        if said is not None:
            self.order(json.dumps({"id": number, "verdict": "allow" if said else "deny"}).encode())

    def hang_up(self) -> None:
        """Close the supervisor's end of the line."""
        self._stop.set()
        self._supervisor.join(5)

    def close(self) -> None:
        self.hang_up()
        for _, sock in self.listeners:
            sock.close()

    def curl(self, url: str, *options: str, proxy: bool = True, patience: float = 20) -> subprocess.CompletedProcess[str]:
        """curl through the proxy port; the output ends in `[status]`."""
        argv = ["curl", "-sS", "-m", "10", "--cacert", str(self.ca_file), "-w", "[%{http_code}]"]
        if proxy:
            argv += ["-x", f"http://127.0.0.1:{self.ports['http-proxy']}"]
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        return subprocess.run([*argv, *options, url], capture_output=True, text=True, env=environment, timeout=patience)

    def send(self, port: int, data: bytes, wait: float = 5.0) -> bytes:
        """Raw bytes to a port of the gate; everything that comes back until the end or `wait` seconds of silence."""
        with socket.create_connection(("127.0.0.1", port), wait) as connection:
            connection.sendall(data)
            got = b""
            with contextlib.suppress(TimeoutError, ConnectionResetError):
                while chunk := connection.recv(65536):
                    got += chunk
            return got


class Gate(Guest):
    """A running gate with one session, `visit` brings more; `kind` is its engine."""

    def __init__(self, directory: Path, upstream_ca: Path, *given: Any, kind: str = "", **named: Any) -> None:
        self.directory = directory
        self.introductions, introduced = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.process = _spawn(introduced, upstream_ca, kind)
        introduced.close()
        super().__init__(self.introductions, directory, *given, **named)

    def visit(self, session: str, grants: tuple[Grant, ...], **named: Any) -> Guest:
        """Another session at the same gate. The caller closes it."""
        return Guest(self.introductions, self.directory, grants, session=session, **named)

    @contextlib.contextmanager
    def visited(self, session: str, grants: tuple[Grant, ...], **named: Any) -> Iterator[Guest]:
        """The same, ready to be used, and closed afterwards."""
        guest = self.visit(session, grants, **named)
        try:
            assert guest.ready.wait(10), guest.failure
            yield guest
        finally:
            guest.close()

    def hang_up(self) -> None:
        """What the end of a supervisor with a gate of its own looks like from there."""
        super().hang_up()
        self.introductions.close()

    def children(self) -> dict[str, int]:
        """Process numbers of the gate's parts by name."""
        found = {"brain": self.process.pid}
        listing = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        for pid in map(int, listing.split()):
            named = Path(f"/proc/{pid}/cmdline").read_bytes()
            engine = named.partition(b"\0")[0].endswith(b"envoy") or b"gateway.mitm" in named
            found["engine" if engine else "doorman"] = pid
        return found

    def close(self) -> None:
        self.hang_up()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()  # one that did not obey must not outlive its test: others look for what was left running
        for _, sock in self.listeners:
            sock.close()


def loopback_listeners() -> list[tuple[str, socket.socket]]:
    """Dual-stack listeners as a door has them, but on the loopback of whoever runs the tests."""
    found = []
    for kind in ("http-proxy", "http", "https", "dns-tcp"):
        sock = socket.socket(socket.AF_INET6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
        sock.listen(512)
        found.append((kind, sock))
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 0))
    return [*found, ("dns-udp", datagrams)]


def _spawn(introduced: socket.socket, upstream_ca: Path, kind: str = "") -> subprocess.Popen[bytes]:
    """The gate's process, with the socket on which sessions are introduced as descriptor 3."""
    shifted = fcntl.fcntl(introduced.fileno(), fcntl.F_DUPFD_CLOEXEC, 200)  # out of the way of 3
    argv = [sys.executable, "-I", "-m", "stockade.gatehouse", kind or engine.find(), str(upstream_ca)]
    mover = f"import os,sys\nos.dup2({shifted}, 3); os.close({shifted})\nos.execv(sys.executable, {argv})"
    process = subprocess.Popen([sys.executable, "-I", "-S", "-c", mover], pass_fds=[shifted], start_new_session=True)
    os.close(shifted)
    return process


@contextlib.contextmanager
def running(
    directory: Path,
    upstream: Upstream,
    grants: tuple[Grant, ...] | None = None,
    listeners: list[tuple[str, socket.socket]] | None = None,
    canaries: dict[str, str] | None = None,
    credentials: dict[str, dict[str, str]] | None = None,
    learning: bool = False,
    patience: float = 0.0,
    tainted: bool = False,
    token_key: str = "",
    watch: tuple[int, ...] = (),
    kind: str = "",
    tools: tuple[ToolRule, ...] = (),
    files: tuple[FileRule, ...] = (),
) -> Iterator[Gate]:
    """A gate that is ready. Raises AssertionError with its own words when it is not."""
    given = grants if grants is not None else grants_for(upstream)
    more: dict[str, Any] = {"patience": patience, "tainted": tainted, "token_key": token_key, "watch": watch, "kind": kind, "tools": tools}
    more["files"] = files
    gate = Gate(directory, upstream.ca, given, listeners, canaries, credentials, learning, **more)
    try:
        assert gate.ready.wait(15), f"the gate did not start: {gate.failure}"
        yield gate
    finally:
        gate.close()


def greeted(connection: socket.socket) -> bytes:
    """The PROXY header that a connection begins with, and nothing that comes after it."""
    head = connection.recv(16, socket.MSG_WAITALL)
    return head + connection.recv(int.from_bytes(head[14:]), socket.MSG_WAITALL)


def until(true: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether it becomes true in this time: the engine's log comes a moment later."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
