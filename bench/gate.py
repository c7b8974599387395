"""What the gate costs: the same requests straight to a server on loopback, through the gate, and through a gate without Envoy, taking turns, in one run.

    python bench/gate.py [--rounds N] [--json]

The server is Python's own, so absolute times say little; what the gate adds, and the ratios, are the result. TLS on both sides, and method, path,
headers and credential are checked on every request. Uses the harness of the gate's tests.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import random
import socket
import ssl
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from stockade.gateway.engine import MITMPROXY

if TYPE_CHECKING:
    from gateway.harness import Gate

ROOT = Path(__file__).parents[1]
SIZE = 32 << 20  # bytes of a large download or upload
IMAGE = 8 << 20  # bytes of a request to a model with an image, which the gate searches for credentials
HOST = "api.localhost"


class Route:
    """A way to the server: direct, or through the gate's proxy port."""

    def __init__(self, name: str, ca: Path, port: int, proxy_port: int = 0, key: str = "") -> None:
        self.name, self.port, self.proxy_port = name, port, proxy_port
        self.context = ssl.create_default_context(cafile=str(ca))
        self.headers = {"x-api-key": key}

    def connect(self) -> http.client.HTTPSConnection:
        connection = http.client.HTTPSConnection(HOST, self.port, timeout=30, context=self.context)
        if self.proxy_port:
            connection = http.client.HTTPSConnection("127.0.0.1", self.proxy_port, timeout=30, context=self.context)
            connection.set_tunnel(HOST, self.port)
            connection.connect()
        else:  # the name need not be known to this machine's resolver
            plain = socket.create_connection(("127.0.0.1", self.port), 30)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sock = self.context.wrap_socket(plain, server_hostname=HOST)
        return connection

    def ask(self, connection: http.client.HTTPSConnection, method: str, path: str, body: bytes | None = None, kind: str = "") -> None:
        connection.request(method, path, body=body, headers=self.headers | ({"content-type": kind} if kind else {}))
        answer = connection.getresponse()
        got = len(answer.read())
        if answer.status != 200:
            raise SystemExit(f"{self.name}: {method} {path}: status {answer.status} ({got} bytes)")


def kept(route: Route) -> float:
    """Milliseconds for a small request on a connection that is open already (mean of ten)."""
    connection = route.connect()
    route.ask(connection, "GET", "/v1/small")
    began = time.perf_counter()
    for _ in range(10):
        route.ask(connection, "GET", "/v1/small")
    took = time.perf_counter() - began
    connection.close()
    return took * 100


def fresh(route: Route) -> float:
    """Milliseconds for a small request on a new connection, TLS included."""
    began = time.perf_counter()
    connection = route.connect()
    route.ask(connection, "GET", "/v1/small")
    took = time.perf_counter() - began
    connection.close()
    return took * 1000


def moved(method: str, path: str, make: Callable[[], bytes | None] = lambda: None, kind: str = "") -> Callable[[Route], float]:
    """Megabytes a second of one large body: what `make` makes, of this kind, or SIZE bytes that come back."""

    def measure(route: Route) -> float:
        connection, body = route.connect(), make()
        began = time.perf_counter()
        route.ask(connection, method, path, body, kind)
        took = time.perf_counter() - began
        connection.close()
        return (SIZE if body is None else len(body)) / took / 1e6

    return measure


def image() -> bytes:
    """A request to a model, of about IMAGE bytes, nearly all of them one image."""
    source = {"type": "base64", "media_type": "image/png", "data": base64.b64encode(random.randbytes(IMAGE * 3 // 4)).decode()}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is this?"}]
    return json.dumps({"model": "m", "max_tokens": 1024, "messages": [{"role": "user", "content": content}]}).encode()


KINDS: dict[str, tuple[Callable[[Route], float], int]] = {  # measure, and every how many rounds
    "request on an open connection, ms": (kept, 1),
    "request on a new connection, ms": (fresh, 1),
    "download, MB/s": (moved("GET", f"/v1/big/{SIZE}"), 5),
    "upload, MB/s": (moved("PUT", "/v1/put", lambda: bytes(SIZE), "application/octet-stream"), 5),
    "upload of JSON, MB/s": (moved("POST", "/v1/messages", image, "application/json"), 5),
}


def run(routes: list[Route], rounds: int) -> dict[str, dict[str, float]]:
    """Medians by kind and route."""
    values: dict[str, dict[str, list[float]]] = {kind: {route.name: [] for route in routes} for kind in KINDS}
    for number in range(rounds + 1):  # the first round only warms up
        turns = [(kind, route) for kind, (_, every) in KINDS.items() for route in routes if number % every == 0]
        random.shuffle(turns)
        for kind, route in turns:
            value = KINDS[kind][0](route)
            if number:
                values[kind][route.name].append(value)
    return {kind: {name: round(statistics.median(found), 2) for name, found in row.items() if found} for kind, row in values.items()}


def processor(gate: Gate, route: Route, count: int = 300) -> float:
    """Milliseconds of processor time that all parts of a gate use for a small request on an open connection."""

    def used() -> int:
        stats = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in gate.children().values()]
        return sum(int(fields[11]) + int(fields[12]) for fields in stats)  # utime and stime (proc_pid_stat(5)), in ticks

    connection = route.connect()
    route.ask(connection, "GET", "/v1/small")
    before = used()
    for _ in range(count):
        route.ask(connection, "GET", "/v1/small")
    connection.close()
    return (used() - before) * 1000 / os.sysconf("SC_CLK_TCK") / count


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    sys.path.insert(0, str(ROOT / "tests"))
    from gateway import harness

    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as scratch, contextlib.ExitStack() as stack:
        upstream = harness.Upstream(Path(scratch))
        stack.callback(upstream.close)
        routes = [Route("direct", upstream.ca, upstream.port, key=harness.SECRET)]
        ready, busy = {}, {}
        for name, kind in (("gate", ""), ("fallback", MITMPROXY)):
            place = Path(scratch) / name
            place.mkdir()
            gate = stack.enter_context(harness.running(place, upstream, kind=kind))
            routes.append(Route(name, gate.ca_file, upstream.port, gate.ports["http-proxy"], harness.PLACEHOLDER))
            ready[name] = round(gate.times["ready"] * 1000)
            busy[name] = round(processor(gate, routes[-1]), 2)
        medians = run(routes, max(given.rounds, 5))
    if given.json:
        print(json.dumps({"rounds": given.rounds, "ready_ms": ready, "processor_ms": busy, "medians": medians}, indent=2))
    else:
        width, names = max(map(len, KINDS)), [route.name for route in routes]
        print(f"{'':{width}}  " + "  ".join(f"{name:>9}" for name in names) + "  gate / direct  fallback / gate")
        for kind, row in medians.items():
            ratios = f"{row['gate'] / row['direct']:13.2f}  {row['fallback'] / row['gate']:15.2f}"
            print(f"{kind:{width}}  " + "  ".join(f"{row[name]:9.2f}" for name in names) + f"  {ratios}")
        for name in ready:
            print(f"{name}: ready {ready[name]} ms after its start; {busy[name]} ms of processor time for a request on an open connection")
        print(f"medians of {max(given.rounds, 5)} rounds, all taking turns")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
