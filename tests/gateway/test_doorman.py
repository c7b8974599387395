"""The doorman alone, between a client and an engine that are plain sockets of the test. Any header: tests/fuzz/proxy.py."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.harness import greeted
from stockade.gateway import engine
from stockade.gateway.doorman import Doorman
from stockade.gateway.proxy_protocol import proxy_header


def test_header_is_what_the_specification_says() -> None:
    header = proxy_header("s-1", ("::ffff:10.0.0.1", 5555), ("::ffff:93.184.216.34", 443))
    assert header == (
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11"
        + struct.pack("!H", 18)
        + bytes([10, 0, 0, 1, 93, 184, 216, 34])
        + struct.pack("!HH", 5555, 443)
        + b"\xe0\x00\x03s-1"
    )
    six = proxy_header("s", ("fe80::1%lo", 1), ("2001:db8::1", 443))
    assert six[12:14] == b"\x21\x21" and len(six) == 16 + 36 + 4


class Between:
    """A doorman in a process of its own; `client()` and `engine()` give the two ends of new connections."""

    def __init__(self, directory: Path, most: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.engine_listener = socket.socket(socket.AF_UNIX)
        path = str(directory / "engine.sock")
        self.engine_listener.bind(path)
        self.engine_listener.listen(64)
        self.engine_listener.settimeout(5)
        self.orders, obeyed = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = engine.fork(lambda: self._serve(obeyed, most))
        obeyed.close()
        self.path = path
        self.open("s-1", self.listener)

    def _serve(self, obeyed: socket.socket, most: int) -> None:
        self.engine_listener.close()
        self.orders.close()
        doorman = Doorman(obeyed, most)
        while True:
            doorman.turn()

    def open(self, session: str, listener: socket.socket) -> None:
        self.order({"open": session, "paths": [self.path], "watch": 0}, listener)

    def order(self, order: dict[str, object], *listeners: socket.socket) -> None:
        socket.send_fds(self.orders, [json.dumps(order).encode()], [one.fileno() for one in listeners])

    def client(self) -> socket.socket:
        connection = socket.create_connection(self.listener.getsockname(), 5)
        connection.settimeout(5)
        return connection

    def engine(self) -> socket.socket:
        connection, _ = self.engine_listener.accept()
        connection.settimeout(5)
        greeted(connection)
        return connection

    def close(self) -> None:
        os.kill(self.pid, 9)
        os.waitpid(self.pid, 0)
        self.orders.close()
        self.listener.close()
        self.engine_listener.close()


@pytest.fixture
def between(tmp_path: Path) -> Iterator[Between]:
    started = Between(tmp_path, 8)  # of which one session gets half
    yield started
    started.close()


def read_all(connection: socket.socket) -> bytes:
    got = bytearray()
    while chunk := connection.recv(1 << 16):
        got += chunk
    return bytes(got)


def test_bytes_pass_both_ways_and_half_closes_too(between: Between) -> None:
    with between.client() as client, between.engine() as inner:
        client.sendall(b"question")
        client.shutdown(socket.SHUT_WR)
        assert read_all(inner) == b"question"
        inner.sendall(b"answer")
        inner.close()
        assert read_all(client) == b"answer"


def test_much_in_both_directions_at_once_in_odd_pieces(between: Between) -> None:
    data = random.randbytes(5 << 20)
    with between.client() as client, between.engine() as inner:

        def pour(connection: socket.socket) -> None:
            place = 0
            while place < len(data):
                size = random.choice((1, 7, 4096, 70000, 300000))
                connection.sendall(data[place : place + size])
                place += size
            connection.shutdown(socket.SHUT_WR)

        writers = [threading.Thread(target=pour, args=(end,)) for end in (client, inner)]
        got: dict[int, bytes] = {}
        readers = [threading.Thread(target=lambda end=end: got.update({id(end): read_all(end)})) for end in (client, inner)]
        for thread in (*writers, *readers):
            thread.start()
        for thread in (*writers, *readers):
            thread.join(20)
        wanted = hashlib.sha256(data).digest()
        assert [hashlib.sha256(got[id(end)]).digest() for end in (client, inner)] == [wanted, wanted]


def test_a_slow_reader_stops_its_writer(between: Between) -> None:
    with between.client() as client, between.engine():
        client.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while sent < 64 << 20:
                sent += client.send(bytes(1 << 16))
        assert sent < 32 << 20


def test_a_reset_on_one_side_closes_the_other(between: Between) -> None:
    with between.client() as client, between.engine() as inner:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        assert inner.recv(10) == b""


def test_past_the_cap_connections_wait(between: Between) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(between.client())
        inner = [stack.enter_context(between.engine()) for _ in range(4)]
        between.engine_listener.settimeout(0.3)
        with pytest.raises(TimeoutError):
            between.engine()
        between.engine_listener.settimeout(5)
        inner[0].close()
        first = stack.pop_all()
        with first:
            pass
        # the first four have ended; the fifth closed as well, so a new one gets through
        with between.client() as late:
            late.sendall(b"x")
            while True:
                with between.engine() as accepted:
                    if accepted.recv(1):
                        break


def test_no_engine_means_closed(between: Between) -> None:
    between.engine_listener.close()
    with between.client() as client, contextlib.suppress(ConnectionResetError):
        client.sendall(b"x")
        assert client.recv(1) == b""


def test_an_engine_that_answers_early_is_heard(between: Between) -> None:
    """It closes in the middle of an upload after its refusal: the client still reads the refusal."""
    with between.client() as client, between.engine() as inner:
        client.sendall(b"x" * 100)
        inner.recv(100)
        inner.sendall(b"413")
        inner.close()
        for _ in range(50):
            client.sendall(bytes(1 << 16))
        client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"413"
