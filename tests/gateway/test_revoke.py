"""Grants are taken back while things are under way: what is under way ends, what waits is refused, what is left goes on."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.harness import Gate, Upstream, running
from stockade.core.frozen import plain
from stockade.core.values import ALLOW, DENY, Grant
from stockade.gatehouse import Judge


def grants(upstream: Upstream) -> tuple[Grant, ...]:
    names = (("open.localhost", "/v1/**"), ("other.localhost", "/public/**"))
    return tuple(Grant(host, methods=("GET", "POST"), paths=(path,), port=upstream.port, private=True) for host, path in names)


@contextlib.contextmanager
def tunnel(gate: Gate, upstream: Upstream, host: str = "open.localhost") -> Iterator[http.client.HTTPSConnection]:
    """A connection that is kept alive, through the proxy port."""
    made = http.client.HTTPSConnection(
        "127.0.0.1", gate.ports["http-proxy"], context=ssl.create_default_context(cafile=str(gate.ca_file)), timeout=10
    )
    made.set_tunnel(host, upstream.port)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.wall
def test_a_stream_is_cut_and_the_next_request_refused_while_other_grants_hold(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    with (
        running(tmp_path, upstream, grants(upstream), kind=carrier) as gate,
        tunnel(gate, upstream) as kept,
        tunnel(gate, upstream) as streaming,
    ):
        kept.request("GET", "/v1/x")
        assert kept.getresponse().read()
        streaming.request("GET", "/v1/stream")
        answer = streaming.getresponse()
        assert answer.read(9)
        assert gate.revoke(0) < 2
        with pytest.raises((OSError, http.client.HTTPException)):
            answer.read()  # five pieces in a second, of which one came: within that it was cut
        with pytest.raises((OSError, http.client.HTTPException)):
            kept.request("GET", "/v1/x")
            kept.getresponse()
        asked = f"CONNECT open.localhost:{upstream.port} HTTP/1.1\r\nHost: open.localhost:{upstream.port}\r\n\r\n".encode()
        assert b"host-not-granted" in gate.send(gate.ports["http-proxy"], asked)
        assert gate.curl(f"https://other.localhost:{upstream.port}/public/x").stdout.endswith("[200]")


@pytest.mark.wall
def test_a_decision_that_waits_for_its_receipt_is_not_allowed_any_more(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream, grants(upstream), kind=carrier) as gate, tunnel(gate, upstream) as kept:
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
        gate.revoke(0)
        gate.hold.clear()
        for number in range(1, 20):
            gate.order(b'{"id": %d}' % number)
        thread.join(10)
        assert failed.is_set() and not upstream.requests


@pytest.mark.wall
def test_an_upload_under_way_is_cut(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    wide = tuple(
        Grant(one.host, one.port, methods=one.methods, paths=one.paths, private=True, max_upload=1 << 30) for one in grants(upstream)
    )
    with running(tmp_path, upstream, wide, kind=carrier) as gate, tunnel(gate, upstream) as kept:
        kept.putrequest("POST", "/v1/x")
        kept.putheader("content-length", str(1 << 28))
        kept.endheaders(b"x" * (1 << 20))
        gate.revoke(0)
        with pytest.raises((OSError, ssl.SSLError)):
            for _ in range(1 << 8):
                kept.send(b"x" * (1 << 20))


@pytest.mark.wall
def test_a_grant_taken_back_while_the_gate_still_starts_never_holds(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    gate = Gate(tmp_path, upstream.ca, grants(upstream), kind=carrier)
    try:
        gate.order(b'{"revoke": [0]}')
        assert gate.revoked.wait(15) and gate.ready.wait(15), gate.failure
        assert "403" in gate.curl(f"https://open.localhost:{upstream.port}/v1/x").stderr
        assert gate.curl(f"https://other.localhost:{upstream.port}/public/x").stdout.endswith("[200]")
    finally:
        gate.close()


@pytest.mark.wall
def test_a_name_that_was_taken_back_does_not_exist_any_more(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    query = b"\x12\x34\x01\0\0\1\0\0\0\0\0\0\4open\x09localhost\0\0\1\0\1"

    def ask(gate: Gate) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(query, ("127.0.0.1", gate.ports["dns-udp"]))
            return sock.recv(512)[3] & 15

    with running(tmp_path, upstream, grants(upstream), kind=carrier) as gate:
        assert ask(gate) == 0
        gate.revoke(0)
        assert ask(gate) == 3


@pytest.mark.wall
@pytest.mark.parametrize("order", [b'{"revoke": [99]}', b'{"revoke": "all"}', b'{"revoke": [0], "id": 1', b"[]"])
def test_an_order_that_cannot_be_obeyed_ends_the_gate(engine_binary: str, upstream: Upstream, tmp_path: Path, order: bytes) -> None:
    with running(tmp_path, upstream, grants(upstream)) as gate:
        gate.order(order)
        assert gate.ended.wait(10)
        assert gate.curl(f"https://open.localhost:{upstream.port}/v1/x", "-m", "2").stdout == "[000]"


effects = st.sampled_from([ALLOW, DENY])
hosts = st.sampled_from(["a.example.com", "b.example.com", "*.example.com"])
lists = st.lists(st.builds(Grant, hosts, effect=effects), min_size=1, max_size=6)


@given(lists, st.data())
def test_taking_back_never_widens(given_grants: list[Grant], data: st.DataObject) -> None:
    judge = Judge({"grants": [plain(one) for one in given_grants], "credentials": {}, "canaries": {}, "learning": False, "tainted": False})

    def allowed() -> set[str]:
        asked = {"method": "GET", "scheme": "https", "port": 443, "target": "/", "headers": (), "length": 0, "body": b""}
        return {
            host for host in ("a.example.com", "b.example.com", "c.example.com") if judge.request(host=host, **asked)[0].effect == ALLOW
        }

    before = allowed()
    for position in data.draw(st.lists(st.integers(0, len(given_grants) - 1), max_size=6)):
        judge.revoke([position], [])
        after = allowed()
        assert after <= before
        before = after
