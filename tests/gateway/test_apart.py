"""What takes long to decide is decided in a process apart: the same answers, and nobody else waits."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.harness import CREDENTIAL, SECRET, Gate, Guest, Upstream, running
from stockade.core.frozen import plain, replace
from stockade.core.values import Grant
from stockade.gatehouse import Judge
from stockade.gateway import apart
from stockade.gateway.apart import Apart, Undecided
from stockade.gateway.flow import Asked, Flow, Synthetic

MIB = 1 << 20
CANARY = "planted-canary-8e21c0d4"
GRANT = Grant("api.example.com", methods=("POST",), paths=("/v1/**",), credential="own", max_upload=8 * MIB, upload_budget=16 * MIB)
CONFIG = {
    "session": "s-1",
    "grants": [plain(Grant("other.example.com")), plain(GRANT)],
    "credentials": {"own": CREDENTIAL},
    "canaries": {"aws": CANARY},
    "learning": False,
    "tainted": False,
}


def test_it_says_what_the_work_says() -> None:
    assert asyncio.run(apart.run(lambda: b"x" * 300_000, 5)) == b"x" * 300_000 + b"\n"


@pytest.mark.parametrize(
    "work",
    [
        lambda: bytes(1 // 0),
        lambda: bytes(3 << 30),
        lambda: bytes(2 * MIB),
        lambda: time.sleep(60) or b"",
        lambda: os._exit(0),
        lambda: os.abort(),
    ],
    ids=["fails", "takes memory", "says too much", "never ends", "leaves", "crashes"],
)
def test_without_a_decision_it_is_none_and_nothing_stays(work: Callable[[], bytes], capfd: pytest.CaptureFixture[str]) -> None:
    async def main() -> None:
        with pytest.raises(Undecided):
            await apart.run(work, 0.5)

    def mine() -> set[str]:
        """Pipes, by their numbers, and children."""
        paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
        pipes = {os.readlink(path) for path in paths if os.path.exists(path)}
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        return {name for name in pipes if name.startswith("pipe:")} | set(children)

    before = mine()
    asyncio.run(main())
    assert mine() <= before
    assert "stockade" not in capfd.readouterr().err


def test_it_has_no_connection_of_anybodys() -> None:
    def left() -> bytes:
        return json.dumps([fd for fd in range(3, 4096) if os.path.exists(f"/proc/self/fd/{fd}")]).encode()

    with open("/dev/null") as file:
        assert file.fileno() in json.loads(left())
        assert len(json.loads(asyncio.run(apart.run(left, 5)))) == 1  # the way to say it


def asked(body: bytes, *more: tuple[str, str], target: str = "/v1/x", whole: bool = True, method: str = "POST") -> Asked:
    facts = {
        "session": "s-1", "connect": "CONNECT api.example.com:443", "sni": "api.example.com", "destination": "envoy://tunnel/",
        "length": str(len(body)), "scheme": "https", "method": method, "way": "tunnel", "body": "shown",
    }  # fmt: skip
    headers = (("host", "api.example.com"), *((f"x-stockade-{name}", value) for name, value in facts.items()), *more)
    return Asked("POST", target, headers, body, whole)


KEY = ("x-api-key", CREDENTIAL["placeholder"])
QUESTIONS = [
    asked(b"x" * MIB),
    asked(b"x" * MIB, KEY),
    asked(json.dumps({"model": "m", "text": "x" * MIB}).encode(), ("content-type", "application/json")),
    asked(json.dumps({"api_key": "theirs", "text": "x" * MIB}).encode(), ("content-type", "application/json")),
    asked(b"x" * 9 * MIB),
    asked(CANARY.encode() + b"x" * MIB),
    asked(b"x" * MIB, ("x-api-key", "theirs")),
    asked(b"x" * MIB, target="/v2/x"),
    asked(b"x" * MIB, method="DELETE"),
    asked(b"x" * 65536, whole=False),
    asked(json.dumps({"mcp_servers": [{"url": "https://evil.test"}], "text": "x" * MIB}).encode(), target="/v1/messages"),
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_it_decides_as_the_brain_does(question: Asked) -> None:
    def flow() -> tuple[Flow, Judge]:
        judge = Judge(CONFIG)
        return Flow("s-1", judge, Synthetic(lambda address, name: None)), judge

    here, there = flow(), flow()
    expected = here[0].examine(question)
    assert asyncio.run(Apart().examine(*there, question)) == expected
    assert there[1].pieces() == here[1].pieces()


def test_what_is_dear_is_what_takes_long() -> None:
    plainly = Judge({**CONFIG, "canaries": {}})
    assert not plainly.dear(asked(b"")) and not plainly.dear(asked(b"x" * 1000)) and plainly.dear(asked(b"x" * MIB))
    assert plainly.dear(asked(b"x" * 1000, ("content-encoding", "gzip"))) and not plainly.dear(asked(b"", ("content-encoding", "gzip")))
    assert Judge(CONFIG).dear(asked(b"x" * 10_000)) and Judge(CONFIG).dear(asked(b"", ("x", "y" * 10_000)))
    assert Judge(CONFIG).dear(asked(b"", target="/v1/" + "x" * 10_000)) and not plainly.dear(asked(b"", target="/v1/" + "x" * 10_000))
    assert not Judge(CONFIG).dear(asked(b"x" * 1000))


def test_a_planted_string_in_pieces_is_seen_over_several_of_them() -> None:
    judge = Judge(CONFIG)
    flow = Flow("s-1", judge, Synthetic(lambda address, name: None))
    rules = []
    for piece in (CANARY[:12], CANARY[12:]):
        outcome = asyncio.run(Apart().examine(flow, judge, asked(b"x" * MIB + piece.encode())))
        rules.append(outcome.verdict.rule)
    assert rules[0] != "canary" and rules[1] == "canary"


def test_bytes_of_a_raw_connection_are_searched_as_well_and_in_pieces() -> None:
    judge = Judge(CONFIG)

    def carried(data: bytes) -> str:
        return asyncio.run(Apart().carried(judge, data))

    assert carried(b"x" * 60_000) == "" and carried(b"x" * 60_000 + CANARY.encode()) == "the canary aws"
    assert [carried(b"x" * 60_000 + piece.encode()) for piece in (CANARY[:12], CANARY[12:])] == ["", "the canary aws"]


# --- with a gate


def granted(upstream: Upstream) -> tuple[Grant, ...]:
    grant = Grant(
        "open.localhost",
        port=upstream.plain_port,
        scheme="http",
        methods=("GET", "POST"),
        paths=("/public/**",),
        max_upload=32 * MIB,
        private=True,
    )
    budget = replace(grant, paths=("/budget",), upload_budget=2 * MIB)
    return (
        grant,
        budget,
        Grant(
            "api.localhost", port=upstream.port, methods=("POST",), paths=("/v1/**",), credential="own", max_upload=4 * MIB, private=True
        ),
    )


@pytest.fixture(scope="module")
def gate(carrier: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("gate"), upstream, granted(upstream), kind=carrier) as started:
        yield started


@pytest.fixture
def other(gate: Gate, upstream: Upstream) -> Iterator[Guest]:
    with gate.visited("s-other", granted(upstream)) as guest:
        yield guest


def ask(guest: Guest, upstream: Upstream, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", guest.ports["http-proxy"], timeout=30)
    try:
        headers = {"content-type": "application/json"} if body else {}
        connection.request("POST" if body else "GET", f"http://open.localhost:{upstream.plain_port}{path}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.wall
def test_large_bodies_pass_with_the_credential_or_are_refused_for_what_they_hold(gate: Gate, upstream: Upstream, tmp_path: Path) -> None:
    file, url = tmp_path / "body.json", f"https://api.localhost:{upstream.port}/v1/x"
    for fields, expected in (({}, "[200]"), ({"api_key": "theirs"}, "[403]")):
        file.write_text(json.dumps({**fields, "text": "x" * MIB}))
        upstream.requests.clear()
        sent = ("-H", "content-type: application/json", "-H", f"x-api-key: {CREDENTIAL['placeholder']}", "--data-binary", f"@{file}")
        assert gate.curl(url, *sent).stdout.endswith(expected)
        arrived = [(dict(headers)["x-api-key"], length) for _, _, headers, length in upstream.requests]
        assert arrived == ([(SECRET, file.stat().st_size)] if expected == "[200]" else [])
    assert gate.events[-1]["rule"] == "credential-in-body"


@pytest.mark.wall
def test_what_is_left_is_not_shared_by_two_that_are_decided_at_once(gate: Gate, upstream: Upstream) -> None:
    body = json.dumps({"text": "x" * (3 * MIB // 2)}).encode()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(gate, upstream, "/budget", body), range(4)))
    assert sorted(status for status, _ in answers) == [200, 403, 403, 403]
    assert all(b"upload-budget-spent" in text for status, text in answers if status == 403)


@pytest.mark.wall
def test_what_nobody_waits_for_any_more_is_not_decided(gate: Gate, upstream: Upstream) -> None:
    """Else whoever asks and goes away would have the brain keep bodies, and work, without end."""
    body = b"[" + b'{"a":0},' * (2 * MIB // 8) + b"0]"
    began = time.monotonic()
    assert ask(gate, upstream, "/public/x", body)[0] == 200
    alone = time.monotonic() - began
    head = f"POST http://open.localhost:{upstream.plain_port}/public/x HTTP/1.1\r\nhost: open.localhost:{upstream.plain_port}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    connections = [socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 10) for _ in range(20)]
    for connection in connections:
        connection.sendall(head.encode() + body)
    time.sleep(alone)  # they have been asked about, and wait for one another
    for connection in connections:
        connection.close()
    began = time.monotonic()
    assert ask(gate, upstream, "/public/x", body)[0] == 200
    assert time.monotonic() - began < 10 * alone  # twenty would take twice that, and more


@pytest.mark.wall
@pytest.mark.parametrize("carrier", ["envoy"], indirect=True)
def test_nobody_waits_for_a_body_that_takes_long_to_read(gate: Gate, other: Guest, upstream: Upstream) -> None:
    """Many small objects are what json takes longest for."""
    body = b"[" + b'{"a":0},' * (4 * MIB // 8) + b"0]"
    began = time.monotonic()
    assert ask(other, upstream, "/public/x", body)[0] == 200
    alone, stop, waits = time.monotonic() - began, threading.Event(), []

    def fill() -> None:
        while not stop.is_set():
            ask(other, upstream, "/public/x", body)

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(fill)
        try:
            while len(waits) < 15:
                began = time.monotonic()
                assert ask(gate, upstream, "/public/x")[0] == 200
                waits.append(time.monotonic() - began)
        finally:
            stop.set()
    assert statistics.median(waits) < alone / 4
