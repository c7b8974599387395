"""What another session costs a gate that many share: memory, the time to add it, and what the others notice.

    python bench/sessions.py [--sessions N] [--json]

Each session has its own grants, its own door and its own supervisor's line. Requests are plain HTTP over connections that are open already; the load is the
same once on connections of one session, once on one connection of each.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import select
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
HOST = "open.localhost"
WORKERS = 4


def upstream(listener: socket.socket) -> None:
    """An HTTP server that answers everything with the same few bytes."""
    import asyncio

    class Answer(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok" * data.count(b"\r\n\r\n"))

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(Answer, sock=listener)
        await server.serve_forever()

    asyncio.run(main())


class Supervisors:
    """The lines of all sessions, answered by one thread."""

    def __init__(self) -> None:
        self.poll = select.epoll()
        self.lines: dict[int, socket.socket] = {}
        self.ready: dict[int, threading.Event] = {}
        self.rest: dict[int, bytes] = {}
        threading.Thread(target=self.run, daemon=True).start()

    def add(self, line: socket.socket) -> threading.Event:
        event = threading.Event()
        self.lines[line.fileno()], self.ready[line.fileno()], self.rest[line.fileno()] = line, event, b""
        self.poll.register(line.fileno(), select.EPOLLIN)
        return event

    def run(self) -> None:
        while True:
            for fd, _ in self.poll.poll():
                data = self.lines[fd].recv(1 << 16)
                if not data:
                    self.poll.unregister(fd)
                    continue
                *found, self.rest[fd] = (self.rest[fd] + data).split(b"\n")
                for text in found:
                    message = json.loads(text)
                    if "id" in message:
                        self.lines[fd].sendall(b'{"id":%d}\n' % message["id"])
                    elif "ready" in message:
                        self.ready[fd].set()
                    elif "failed" in message:
                        raise SystemExit(message["failed"])


def add(introductions: socket.socket, supervisors: Supervisors, number: int, port: int) -> tuple[threading.Event, int]:
    """Introduce a session; (set when it is served, its proxy port)."""
    from gateway import harness
    from stockade.core.frozen import plain
    from stockade.core.values import Grant

    grants = [Grant(HOST, port, "http", paths=("/public/**", f"/own/{number}/*"), private=True)]
    grants += [Grant(f"h{index}.s{number}.test", paths=("/v1/**",), methods=("GET", "POST")) for index in range(4)]
    listeners = harness.loopback_listeners()
    ours, theirs = socket.socketpair()
    socket.send_fds(introductions, [b"session"], [theirs.fileno(), *(sock.fileno() for _, sock in listeners)])
    theirs.close()
    proxy = listeners[0][1].getsockname()[1]
    config = {
        "session": f"s-{number}",
        "grants": [plain(grant) for grant in grants],
        "credentials": {},
        "canaries": {},
        "learning": False,
        "tainted": False,
        "watch": 0,
        "listeners": [{"kind": kind, "port": 1} for kind, _ in listeners],
    }
    for _, sock in listeners:
        sock.close()
    ready = supervisors.add(ours)
    ours.sendall(json.dumps(config).encode() + b"\n")
    return ready, proxy


def used(pids: list[int]) -> int:
    """Proportional set size of some processes, in kB (proc(5))."""
    return sum(
        int(line.split()[1])
        for pid in pids
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        if line.startswith("Pss:")
    )


def load(ports: list[int], port: int, requests: int) -> list[float]:
    """Seconds of each of so many requests, by a few workers over connections to these proxy ports that they take turns on."""
    asked = f"GET http://{HOST}:{port}/public/x HTTP/1.1\r\nHost: {HOST}:{port}\r\n\r\n".encode()
    connections = [socket.create_connection(("127.0.0.1", number)) for number in ports]
    times: list[float] = []

    def work(own: list[socket.socket]) -> None:
        for turn in range(requests // WORKERS):
            connection = own[turn % len(own)]
            began = time.perf_counter()
            connection.sendall(asked)
            got = connection.recv(4096)
            times.append(time.perf_counter() - began)
            if not got.startswith(b"HTTP/1.1 200"):
                raise SystemExit(got.decode())

    def run() -> None:
        workers = [threading.Thread(target=work, args=(connections[index::WORKERS],)) for index in range(WORKERS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    run()  # warm: every connection has been used
    times.clear()
    run()
    for connection in connections:
        connection.close()
    return sorted(times)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sessions", type=int, default=1000)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    from gateway import harness

    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    port = listener.getsockname()[1]
    server = multiprocessing.get_context("fork").Process(target=upstream, args=(listener,), daemon=True)
    server.start()
    directory = Path(tempfile.mkdtemp())
    (directory / "ca.pem").write_text(Path("/etc/ssl/certs/ca-certificates.crt").read_text())
    introductions, introduced = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = harness._spawn(introduced, directory / "ca.pem")
    introduced.close()
    supervisors = Supervisors()
    try:
        ready, first = add(introductions, supervisors, 0, port)
        if not ready.wait(15):
            raise SystemExit("the gate did not start")
        alone = load([first] * min(given.sessions, 900), port, 8000)
        pids = [process.pid, *map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())]
        before, took, ports = used(pids), [], [first]
        for number in range(1, given.sessions):
            began = time.perf_counter()
            ready, proxy = add(introductions, supervisors, number, port)
            ready.wait(15)
            took.append(time.perf_counter() - began)
            ports.append(proxy)
        each = (used(pids) - before) / (given.sessions - 1)
        many = load(ports, port, 8000)
    finally:
        introductions.close()
        process.wait(10)
        server.terminate()
    found = {
        "sessions": given.sessions,
        "memory of an idle session, kB": round(each, 1),
        "adding one, ms (median)": round(statistics.median(took) * 1000, 2),
        "one session: median, ms": round(statistics.median(alone) * 1000, 2),
        "one session: p99, ms": round(alone[len(alone) * 99 // 100] * 1000, 2),
        "all sessions: median, ms": round(statistics.median(many) * 1000, 2),
        "all sessions: p99, ms": round(many[len(many) * 99 // 100] * 1000, 2),
    }
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        for name, value in found.items():
            print(f"{name:36} {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
