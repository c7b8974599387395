"""Once something secret was opened, nothing that was sent afterwards passes: not one byte, whatever was under way.

INVARIANT under test: what the engine gets was sent before the opening, or after the brain had been told of it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import mmap
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.harness import Gate, Guest, Upstream, greeted, running
from stockade.core.frozen import plain
from stockade.core.values import Grant, Mount
from stockade.gatehouse import Judge
from stockade.gateway import engine
from stockade.gateway.doorman import Doorman
from stockade.walls.watch import Watch

SECRET = b"THE-SECRET-OF-THE-FILE"
FILLER = b"x" * 997


class Yard:
    """A doorman in a process of its own between a client and an engine that are sockets of the test; it watches `folder` when told to."""

    def __init__(self, directory: Path, *, watched: bool) -> None:
        self.folder = directory / "secret"
        self.folder.mkdir(exist_ok=True)
        (self.folder / "key").write_bytes(SECRET)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.engine = socket.socket(socket.AF_UNIX)
        path = str(directory / f"engine-{os.urandom(4).hex()}.sock")
        self.engine.bind(path)
        self.engine.listen(64)
        self.engine.settimeout(10)
        self.watch = Watch([Mount(str(self.folder), "/secret", secret=True)]) if watched else None
        self._connections: list[socket.socket] = []
        self._orders, obeyed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

        def serve() -> None:
            self.engine.close()
            self._orders.close()
            doorman = Doorman(obeyed, 64)
            while True:
                doorman.turn()

        self._pid = engine.fork(serve)
        obeyed.close()
        watching = self.watch.descriptors if self.watch else ()
        self.order({"open": "s-1", "paths": [path], "watch": len(watching)}, self.listener.fileno(), *watching)

    def order(self, order: dict[str, object], *fds: int) -> None:
        socket.send_fds(self._orders, [json.dumps(order).encode()], fds)

    def connect(self) -> tuple[socket.socket, socket.socket]:
        """The client's and the engine's end of one connection."""
        client = socket.create_connection(self.listener.getsockname(), 10)
        inner, _ = self.engine.accept()
        inner.settimeout(10)
        self._connections += client, inner
        greeted(inner)
        return client, inner

    def close(self) -> None:
        os.kill(self._pid, 9)
        os.waitpid(self._pid, 0)
        for sock in (self._orders, self.listener, self.engine, *self._connections):
            sock.close()
        if self.watch:
            self.watch.close()


@contextlib.contextmanager
def yard(directory: Path, *, watched: bool = True) -> Iterator[Yard]:
    made = Yard(directory, watched=watched)
    try:
        yield made
    finally:
        made.close()


def drain(inner: socket.socket, into: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := inner.recv(1 << 16):
            into += data


def steal(made: Yard, before: int) -> bytes:
    """Send filler, then the secret as soon as it is read, on a connection that was open already; what the engine got of it."""
    client, inner = made.connect()
    got = bytearray()
    reader = threading.Thread(target=drain, args=(inner, got))
    reader.start()
    with client, inner:
        with contextlib.suppress(OSError):
            for _ in range(before):
                client.send(FILLER)
            fd = os.open(made.folder / "key", os.O_RDONLY)
            client.send(os.read(fd, 100))
            os.close(fd)
            client.shutdown(socket.SHUT_WR)
        reader.join(10)
    return bytes(got)


def test_reading_and_sending_at_once_never_wins(tmp_path: Path) -> None:
    for number in range(200):
        with yard(tmp_path) as made:
            assert SECRET not in steal(made, random.choice((0, 1, 3, 50))), number


def test_unwatched_it_wins_every_time(tmp_path: Path) -> None:
    """The control; and without reading anything, everything arrives."""
    with yard(tmp_path, watched=False) as made:
        assert all(steal(made, number % 4).endswith(SECRET) for number in range(20))
    with yard(tmp_path) as made:
        client, inner = made.connect()
        got = bytearray()
        reader = threading.Thread(target=drain, args=(inner, got))
        reader.start()
        data = random.randbytes(5 << 20)
        client.sendall(data)
        client.close()
        reader.join(10)
        assert bytes(got) == data


def lent(made: Yard, way: str) -> bytes:
    """Send pages and change them when they are already on their way: what the engine, which reads late, gets of them."""
    client, inner = made.connect()
    size = 8192
    with client, inner:
        file = os.memfd_create("page")
        os.write(file, b"a" * size)
        if way == "sendfile":
            assert os.sendfile(client.fileno(), file, 0, size) == size
        else:
            reading, writing = os.pipe()
            mapped = mmap.mmap(file, size)
            assert os.splice(file, writing, size, offset_src=0) == size
            assert os.splice(reading, client.fileno(), size) == size
            mapped.close()
            os.close(reading)
            os.close(writing)
        time.sleep(0.1)  # by now the doorman has passed them on, and the engine has not read them yet
        stolen = os.open(made.folder / "key", os.O_RDONLY)
        os.pwrite(file, os.read(stolen, 100), 0)
        os.close(stolen)
        os.close(file)
        got = bytearray()
        client.shutdown(socket.SHUT_WR)
        drain(inner, got)
    return bytes(got)


@pytest.mark.parametrize("way", ["sendfile", "splice"])
def test_a_page_that_was_lent_before_holds_what_it_held_then(tmp_path: Path, way: str) -> None:
    with yard(tmp_path, watched=False) as made:
        assert SECRET in lent(made, way)
    with yard(tmp_path) as made:
        assert lent(made, way) == b"a" * 8192


def refused(made: Yard) -> bool:
    """Whether a new connection is closed, and the engine does not hear of it."""
    with socket.create_connection(made.listener.getsockname(), 10) as client:
        ended = client.recv(100) == b""
    ready, _, _ = select.select([made.engine], [], [], 0.05)
    return ended and not ready


def test_after_the_brain_knows_connections_pass_again(tmp_path: Path) -> None:
    with yard(tmp_path) as made:
        (made.folder / "key").read_bytes()
        assert refused(made)
        made.order({"cut": "s-1", "spare": ""})  # an order to cut alone says nothing about the secret
        time.sleep(0.05)
        assert refused(made)
        made.order({"taint": "s-1"})
        time.sleep(0.05)
        client, inner = made.connect()
        client.sendall(b"asked under the narrower rules")
        assert inner.recv(100) == b"asked under the narrower rules"


@pytest.mark.parametrize("watched", [False, True])
def test_which_connections_end_tells_nothing(tmp_path: Path, watched: bool) -> None:
    """Unwatched, a thief with many connections writes one bit with each that is closed."""
    with yard(tmp_path, watched=watched) as made:
        pairs = [made.connect() for _ in range(16)]
        (made.folder / "key").read_bytes()
        for client, _ in pairs[::2]:
            client.close()
        time.sleep(0.1)
        ended = [bool(select.select([inner], [], [], 0)[0]) for _, inner in pairs]
        assert ended == ([True] * 16 if watched else [True, False] * 8)


def test_how_fast_an_answer_is_read_tells_nothing(tmp_path: Path) -> None:
    """What waits for inside to read it is not taken over any more."""
    with yard(tmp_path) as made:
        client, inner = made.connect()
        inner.settimeout(0.2)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while True:
                sent += inner.send(FILLER)
        (made.folder / "key").read_bytes()
        client.settimeout(5)
        with contextlib.suppress(OSError):
            while client.recv(1 << 16):
                pass
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            inner.send(FILLER)


def test_the_alarm_is_heard_while_somebody_reads_which_mount_it_was(tmp_path: Path) -> None:
    """The supervisor empties the queue: the doorman must not take that for silence."""
    with yard(tmp_path) as made:
        client, inner = made.connect()
        (made.folder / "key").read_bytes()
        assert made.watch and made.watch.seen() == "/secret"
        client.sendall(SECRET)
        assert inner.recv(100) == b""


# --- the whole gate


def test_raw_connections_are_decided_by_the_same_rule() -> None:
    grants = [Grant("a.example.com", 9000, "tcp", after_secret=after) for after in (False, True)]
    for grant, effect in zip(grants, ("deny", "allow"), strict=True):
        judge = Judge({"grants": [plain(grant)], "credentials": {}, "canaries": {}, "learning": False, "tainted": False})
        assert judge.raw("a.example.com", 9000)[0].effect == "allow"
        judge.taint()
        assert judge.raw("a.example.com", 9000)[0].effect == effect


def grants(upstream: Upstream) -> tuple[Grant, ...]:
    def one(path: str, *, after: bool = False) -> Grant:
        return Grant(
            "open.localhost",
            methods=("GET", "POST"),
            paths=(path,),
            port=upstream.port,
            private=True,
            after_secret=after,
            max_upload=1 << 30,
        )

    return one("/v1/**"), one("/after/**", after=True)


def fetch(gate: Guest, upstream: Upstream, path: str) -> str:
    done = gate.curl(f"https://open.localhost:{upstream.port}{path}", "-d", "data")
    return done.stdout[-4:-1] if "200" in done.stdout[-5:] else (done.stderr + done.stdout)


def tunnel(gate: Guest, upstream: Upstream) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    made = http.client.HTTPSConnection("127.0.0.1", gate.ports["http-proxy"], context=context, timeout=10)
    made.set_tunnel("open.localhost", upstream.port)
    return made


@pytest.mark.wall
def test_the_gate_narrows_and_what_holds_afterwards_goes_on(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream, grants(upstream)) as gate:
        assert [fetch(gate, upstream, path) for path in ("/v1/x", "/after/x")] == ["200", "200"]
        streaming = tunnel(gate, upstream)
        streaming.request("GET", "/v1/stream")
        answer = streaming.getresponse()
        assert answer.read(9)
        assert gate.taint() < 2
        with pytest.raises((OSError, http.client.HTTPException)):
            answer.read()
        streaming.close()
        assert "403" in fetch(gate, upstream, "/v1/x") and gate.events[-1]["rule"] == "after-secret"
        assert fetch(gate, upstream, "/after/x") == "200"
        gate.taint()  # once more changes nothing
        assert fetch(gate, upstream, "/after/x") == "200"


@pytest.mark.wall
def test_a_decision_that_waits_for_its_receipt_is_not_allowed_any_more(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream, grants(upstream)) as gate, contextlib.closing(tunnel(gate, upstream)) as kept:
        upstream.requests.clear()
        kept.connect()
        gate.hold.set()
        before = len(gate.events)
        failed = threading.Event()

        def ask() -> None:
            try:
                kept.request("POST", "/v1/x", b"data")
                kept.getresponse()
            except (OSError, http.client.HTTPException):
                failed.set()

        thread = threading.Thread(target=ask)
        thread.start()
        deadline = time.monotonic() + 5
        while len(gate.events) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        gate.taint()
        gate.hold.clear()
        for number in range(1, 20):
            gate.order(b'{"id": %d}' % number)
        thread.join(10)
        assert failed.is_set() and not upstream.requests


@pytest.mark.wall
@pytest.mark.parametrize("when", ["before the gate was configured", "while it starts"])
def test_what_was_opened_before_the_gate_stood(engine_binary: str, upstream: Upstream, tmp_path: Path, when: str) -> None:
    (tmp_path / "secret").mkdir()
    watch = Watch([Mount(str(tmp_path / "secret"), "/secret", secret=True)])
    try:
        if when == "before the gate was configured":
            gate = Gate(tmp_path, upstream.ca, grants(upstream), tainted=True)
        else:
            gate = Gate(tmp_path, upstream.ca, grants(upstream), watch=watch.descriptors)
            os.listdir(tmp_path / "secret")
            gate.order(b'{"taint": true}')
        try:
            assert gate.ready.wait(15), gate.failure
            assert "403" in fetch(gate, upstream, "/v1/x") and gate.events[-1]["rule"] == "after-secret"
            assert fetch(gate, upstream, "/after/x") == "200"
        finally:
            gate.close()
    finally:
        watch.close()


@pytest.mark.wall
def test_an_opening_that_the_supervisor_has_not_seen_yet_stops_everything(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    watch = Watch([Mount(str(tmp_path / "secret"), "/secret", secret=True)])
    try:
        with running(tmp_path, upstream, grants(upstream), watch=watch.descriptors) as gate:
            assert fetch(gate, upstream, "/v1/x") == "200"
            upstream.requests.clear()
            os.listdir(tmp_path / "secret")
            assert not [path for path in ("/v1/x", "/after/x") if "200" in fetch(gate, upstream, path)] and not upstream.requests
            gate.taint()
            assert "403" in fetch(gate, upstream, "/v1/x") and fetch(gate, upstream, "/after/x") == "200"
    finally:
        watch.close()


@pytest.mark.wall
def test_another_session_at_the_same_gate_notices_nothing(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    watch = Watch([Mount(str(tmp_path / "secret"), "/secret", secret=True)])
    try:
        with running(tmp_path, upstream, grants(upstream)) as gate:
            other = gate.visit("s-other", grants(upstream), watch=watch.descriptors)
            with contextlib.closing(other), contextlib.closing(tunnel(gate, upstream)) as kept:
                assert other.ready.wait(10), other.failure
                kept.request("GET", "/v1/stream")
                answer = kept.getresponse()
                assert answer.read(9) and fetch(other, upstream, "/v1/x") == "200"
                os.listdir(tmp_path / "secret")
                assert "200" not in fetch(other, upstream, "/v1/x")
                other.taint()
                assert "403" in fetch(other, upstream, "/v1/x") and fetch(other, upstream, "/after/x") == "200"
                assert answer.read().endswith(b"data: 4\n\n") and fetch(gate, upstream, "/v1/x") == "200"
    finally:
        watch.close()


@pytest.mark.wall
def test_a_watch_that_got_lost_on_the_way_ends_the_session(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream, grants(upstream)) as gate:
        ours, theirs = socket.socketpair()
        with ours:
            socket.send_fds(gate.introductions, [b"session"], [theirs.fileno()])
            theirs.close()
            config = {
                "session": "s-2",
                "grants": [],
                "credentials": {},
                "canaries": {},
                "learning": False,
                "tainted": False,
                "listeners": [],
            }
            ours.sendall(json.dumps({**config, "watch": 2}).encode() + b"\n")
            ours.settimeout(10)
            said = b""
            while piece := ours.recv(1 << 16):
                said += piece
            assert b"does not fit" in said
        assert fetch(gate, upstream, "/v1/x") == "200"
