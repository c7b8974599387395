"""One session of a gate takes what it can get of something that all share; another is served meanwhile. Where that is memory: test_rooms.py."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest

from gateway.harness import Gate, Guest, Upstream, running, until
from stockade.core.values import Grant
from stockade.gateway.brain import _MOST_STREAMS
from stockade.gateway.doorman import MOST_CONNECTIONS
from stockade.gateway.rooms import MOST_SEATS, SEATS, Rooms

pytestmark = pytest.mark.wall


class Silent:
    """A server that takes every request and never answers; `came` counts them."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.port, self.came = self._listener.getsockname()[1], 0
        self._kept: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        poll = select.epoll()
        poll.register(self._listener, select.EPOLLIN)
        found: dict[int, socket.socket] = {}
        with contextlib.suppress(OSError, ValueError):
            while True:
                for fd, _ in poll.poll(0.2):
                    if fd == self._listener.fileno():
                        connection, _ = self._listener.accept()
                        found[connection.fileno()] = connection
                        self._kept.append(connection)
                        poll.register(connection, select.EPOLLIN)
                    else:
                        self.came += found[fd].recv(65536).count(b"\r\n\r\n")
                        poll.unregister(fd)

    def close(self) -> None:
        self._listener.close()
        for connection in self._kept:
            connection.close()


@pytest.fixture(scope="module")
def silent() -> Iterator[Silent]:
    server = Silent()
    yield server
    server.close()


def granted(upstream: Upstream, *more: Grant) -> tuple[Grant, ...]:
    secure = Grant("api.localhost", paths=("/v1/**",), port=upstream.port, private=True)
    return (
        secure,
        Grant("open.localhost", paths=("/public/**",), methods=("GET", "POST"), port=upstream.plain_port, scheme="http", private=True),
        *more,
    )


@pytest.fixture(scope="module")
def gate(engine_binary: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("gate"), upstream, granted(upstream)) as started:
        yield started


@pytest.fixture
def hog(gate: Gate, upstream: Upstream, silent: Silent) -> Iterator[Guest]:
    slow = Grant("silent.localhost", paths=("/**",), port=silent.port, scheme="http", private=True)
    with gate.visited("s-hog", granted(upstream, slow)) as guest:
        yield guest


def served(guest: Guest, upstream: Upstream) -> list[str]:
    """The status of a request of each kind."""
    urls = f"https://api.localhost:{upstream.port}/v1/x", f"http://open.localhost:{upstream.plain_port}/public/x"
    return [guest.curl(url).stdout[-5:] for url in urls]


def opened(guest: Guest, data: bytes, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    found = [stack.enter_context(socket.create_connection(("127.0.0.1", guest.ports["http-proxy"]), 10)) for _ in range(count)]
    for connection in found:
        connection.sendall(data)
    return found


def test_tunnels_in_which_nothing_is_said(gate: Gate, hog: Guest, upstream: Upstream) -> None:
    target = f"api.localhost:{upstream.port}"
    with contextlib.ExitStack() as stack:
        made = opened(hog, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode(), MOST_CONNECTIONS, stack)
        answers = {connection.recv(4096)[:60] for connection in made}
        assert all(b" 200 " in one for one in answers), answers
        assert served(gate, upstream) == ["[200]", "[200]"]
    assert until(lambda: served(hog, upstream) == ["[200]", "[200]"], 30)


def test_questions_that_come_all_at_once_wait_until_the_brain_has_time(gate: Gate, hog: Guest, upstream: Upstream) -> None:
    target, brain = f"api.localhost:{upstream.port}", gate.children()["brain"]
    with contextlib.ExitStack() as stack:
        os.kill(brain, signal.SIGSTOP)  # as if something took it long
        try:
            made = opened(hog, f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode(), 400, stack)
            early = select.select(made, [], [], 1.0)[0]
        finally:
            os.kill(brain, signal.SIGCONT)
        assert not early and {connection.recv(4096)[9:12] for connection in made} == {b"200"}


def test_requests_that_are_never_answered(gate: Gate, hog: Guest, upstream: Upstream, silent: Silent) -> None:
    head = f"GET http://silent.localhost:{silent.port}/x HTTP/1.1\r\nHost: silent.localhost:{silent.port}\r\n\r\n".encode()
    others = []

    def filled() -> bool:
        silent.came = 0
        with contextlib.ExitStack() as stack:
            opened(hog, head, MOST_CONNECTIONS, stack)
            full = until(lambda: silent.came == MOST_CONNECTIONS, 20)
            others.append(served(gate, upstream))
        return full

    assert until(filled, 120) and until(filled, 120)  # and what was taken is free again, a moment later
    assert all(one == ["[200]", "[200]"] for one in others), others
    assert until(lambda: served(hog, upstream) == ["[200]", "[200]"], 30)


@pytest.mark.parametrize("kind", ["address", "body"])
def test_requests_that_take_time_to_read(gate: Gate, hog: Guest, upstream: Upstream, kind: str) -> None:
    """Each takes a tenth of a second or more, which nobody else waits for but once in a while. Decided as they come, all of them would be before the others' next."""
    place, count = f"open.localhost:{upstream.plain_port}", 60
    part = b"--a\r\ncontent-disposition: form-data; " + b"; ".join(b"n%d*0*=x" % number for number in range(99)) + b"\r\n\r\n"
    body, query = (b"", ";" * 59_000) if kind == "address" else (part * 450, "")
    head = f"content-type: multipart/form-data; boundary=a\r\ncontent-length: {len(body)}\r\n" if body else ""
    data = f"POST http://{place}/public/x?{query} HTTP/1.1\r\nHost: {place}\r\n{head}\r\n".encode() + body
    before = len(hog.events)
    with contextlib.ExitStack() as stack:
        made = [stack.enter_context(socket.create_connection(("127.0.0.1", hog.ports["http-proxy"]), 30)) for _ in range(count)]
        senders = [threading.Thread(target=_say, args=(connection, data)) for connection in made]
        for sender in senders:
            sender.start()
        assert until(lambda: len(hog.events) > before, 60)
        assert served(gate, upstream) == ["[200]", "[200]"]
        assert len(hog.events) - before < count
        for connection in made:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for sender in senders:
            sender.join()


def _say(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


def test_seats_are_never_all_one_sessions() -> None:
    of = Rooms(SEATS, MOST_SEATS)
    names = []
    for session in range(40):
        while of._fits(f"s-{session}", 1):
            names.append(of._reserve(f"s-{session}", 1))
    assert len(names) < SEATS and of._fits("s-40", 1) is False and len(names) > SEATS * 0.99
    taken = [sum(one[0] == f"s-{number}" for one in of._rooms.values()) for number in range(9)]
    assert taken[:7] == [MOST_SEATS] * 7 and taken[7] == MOST_SEATS // 2 and taken[8] == MOST_SEATS // 4


def test_connections_for_names(gate: Gate, hog: Guest) -> None:
    def to(guest: Guest) -> socket.socket:
        connection = stack.enter_context(socket.create_connection(("127.0.0.1", guest.ports["dns-tcp"]), 10))
        connection.settimeout(0.01)
        return connection

    def answered(guest: Guest) -> bool:
        connection, query = to(guest), dns.message.make_query("api.localhost", "A").to_wire()
        connection.settimeout(5)
        with contextlib.suppress(OSError):
            connection.sendall(len(query).to_bytes(2, "big") + query)
            data = connection.recv(4096)
            return len(data) > 2 and dns.message.from_wire(data[2:]).rcode() == dns.rcode.NOERROR
        return False

    with contextlib.ExitStack() as stack:
        made = [to(hog) for _ in range(3 * _MOST_STREAMS)]
        ended: set[socket.socket] = set()
        assert until(lambda: ended.update(filter(over, {*made} - ended)) or len(ended) == 2 * _MOST_STREAMS, 30), len(ended)
        assert answered(gate)
    with contextlib.ExitStack() as stack:
        assert until(lambda: answered(hog), 20)


def over(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True
