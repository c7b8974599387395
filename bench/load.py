"""A client that is not the bottleneck: HTTP/1.1 over TLS on plain sockets, in a few processes. Only the standard library, so that it runs in a sandbox.

Reads one measurement a line from standard input, as JSON, and answers each with a line: `{"value": NUMBER}` or `{"error": TEXT}`.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SMALL = b"a small answer\n"  # what the server says to small requests, and to an upload when it has it all
PROCESSES = 2


class Way:
    """How to reach the server. `address` is dialled: the server, or a proxy (`tunnel`) that is asked for host:port. `$NAME` in texts is the environment's."""

    def __init__(self, host: str, port: int, address: list[Any], tunnel: bool, ca: str, key: str) -> None:
        self.name, self.address = host, (address[0], address[1])
        authority = f"{host}:{port}"
        self.hello = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode() if tunnel else b""
        self.tail = f" HTTP/1.1\r\nHost: {authority}\r\nx-api-key: {os.path.expandvars(key)}\r\nAccept: */*\r\n".encode()
        self.ca = os.path.expandvars(ca)
        self.context: ssl.SSLContext | None = None

    def connect(self) -> ssl.SSLSocket:
        plain = socket.create_connection(self.address, 30)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.hello:
            plain.sendall(self.hello)
            said = b""
            while not said.endswith(b"\r\n\r\n"):
                said += plain.recv(1) or stop("the proxy hung up")
            if b" 200 " not in said.partition(b"\r\n")[0]:
                stop(f"CONNECT: {said[:100]!r}")
        if self.context is None:
            self.context = ssl.create_default_context(cafile=self.ca)
        return self.context.wrap_socket(plain, server_hostname=self.name)

    def small(self) -> bytes:
        return b"GET /v1/small" + self.tail + b"\r\n"


def stop(why: str) -> Any:
    raise RuntimeError(why)


def read(connection: ssl.SSLSocket) -> None:
    """One small answer, whole."""
    said = connection.recv(65536)
    while SMALL not in said:
        more = connection.recv(65536) or stop(f"no whole answer: {said[:200]!r}")
        said += more
    if not said.startswith(b"HTTP/1.1 200"):
        stop(f"answer: {said[:200]!r}")


def rate(way: Way, seconds: float, connections: int) -> float:
    """Small requests a second, one at a time on each of so many open connections."""

    def work() -> float:
        ready, asked = selectors.EpollSelector(), way.small()
        for _ in range(connections // PROCESSES):
            connection = way.connect()
            connection.sendall(asked)
            read(connection)
            ready.register(connection, selectors.EVENT_READ)
            connection.sendall(asked)
        count, began = 0, time.perf_counter()
        while (now := time.perf_counter()) - began < seconds:
            for key, _ in ready.select(1):
                answered = key.fileobj
                assert isinstance(answered, ssl.SSLSocket)
                read(answered)
                answered.sendall(asked)
                count += 1
        return count / (now - began)

    return spread(work)


def latency(way: Way, seconds: float) -> float:
    """Median milliseconds of a small request on one open connection."""
    connection, asked, times = way.connect(), way.small(), []
    until = time.perf_counter() + seconds
    while (began := time.perf_counter()) < until:
        connection.sendall(asked)
        read(connection)
        times.append(time.perf_counter() - began)
    connection.close()
    return statistics.median(times[1:]) * 1000


def fresh(way: Way, seconds: float, threads: int) -> float:
    """New TLS connections a second, each with one small request."""

    def work() -> float:
        counts: list[int] = []
        until = time.perf_counter() + seconds
        failed: list[Exception] = []

        def one() -> None:
            count = 0
            try:
                while time.perf_counter() < until:
                    with way.connect() as connection:
                        connection.sendall(way.small())
                        read(connection)
                    count += 1
            except Exception as error:
                failed.append(error)
            counts.append(count)

        way.connect().close()
        workers = [threading.Thread(target=one) for _ in range(threads // PROCESSES)]
        began = time.perf_counter()
        until = began + seconds
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if failed:
            raise failed[0]
        return sum(counts) / (time.perf_counter() - began)

    return spread(work)


def download(way: Way, size: int) -> float:
    """Megabytes a second of one large answer."""
    connection, room, left = way.connect(), bytearray(1 << 18), size
    began = time.perf_counter()
    connection.sendall(b"GET /v1/big" + way.tail + b"\r\n")
    said = connection.recv(16384)
    while b"\r\n\r\n" not in said:
        said += connection.recv(16384) or stop("no answer")
    if not said.startswith(b"HTTP/1.1 200"):
        stop(f"answer: {said[:200]!r}")
    left -= len(said.partition(b"\r\n\r\n")[2])
    while left > 0:  # if it comes in chunks, what marks them counts too, which is next to nothing
        left -= connection.recv_into(room) or stop(f"{left} bytes are missing")
    took = time.perf_counter() - began
    connection.close()
    return size / took / 1e6


def upload(way: Way, size: int) -> float:
    """Megabytes a second of one large body, until it is answered."""
    connection, block = way.connect(), bytes(1 << 18)
    began = time.perf_counter()
    connection.sendall(b"PUT /v1/put" + way.tail + b"content-type: application/octet-stream\r\ncontent-length: %d\r\n\r\n" % size)
    for _ in range(size // len(block)):
        connection.sendall(block)
    read(connection)
    took = time.perf_counter() - began
    connection.close()
    return size / took / 1e6


def spread(work: Callable[[], float]) -> float:
    """The sum over a few processes, which a single interpreter lock would otherwise hold up."""
    pipes = []
    for _ in range(PROCESSES):
        into_us, from_child = os.pipe()
        if not os.fork():
            said: dict[str, Any]
            try:
                said = {"value": work()}
            except Exception as error:
                said = {"error": f"{type(error).__name__}: {error}"}
            os.write(from_child, json.dumps(said).encode())
            os._exit(0)
        os.close(from_child)
        pipes.append(into_us)
    found = []
    for pipe in pipes:
        with open(pipe) as file:
            found.append(json.loads(file.read() or '{"error": "a process of the client died"}'))
        os.wait()
    for said in found:
        if "error" in said:
            stop(said["error"])
    return float(sum(said["value"] for said in found))


def main() -> None:
    kinds: dict[str, Callable[..., float]] = {
        "rate": rate, "latency": latency, "fresh": fresh, "download": download, "upload": upload
    }  # fmt: skip
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer: dict[str, Any] = {"value": kinds[order["kind"]](Way(**order["way"]), *order["arguments"])}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
