"""Bodies that have to be read are held by the engine: so many for a session and no more, and whoever holds them holds up nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.harness import Gate, Guest, Upstream, running, until
from stockade.core.values import Grant
from stockade.gateway import rooms
from stockade.gateway.rooms import MOST, MOST_WAITING, TOTAL, Full, Rooms

LARGE = 31 << 20  # bytes; just under what the gate reads of one body


async def taken(of: Rooms, session: str, size: int) -> str:
    """A room that is there at once."""
    async with asyncio.timeout(0.5):
        return await of.take(session, size)


def test_a_session_may_take_so_much_and_leaves_as_much_to_the_others() -> None:
    async def main() -> None:
        of, sizes = Rooms(), []
        for number in range(20):
            size = MOST
            while size and not of._fits(f"s-{number}", size):
                size //= 2
            await taken(of, f"s-{number}", size)
            sizes.append(size)
        assert sizes[:7] == [MOST] * 7 and sizes == sorted(sizes, reverse=True) and all(sizes) and sum(sizes) < TOTAL

    asyncio.run(main())


def test_who_comes_first_gets_it_first_and_a_full_session_holds_up_no_other() -> None:
    async def main() -> None:
        of = Rooms()
        first = await taken(of, "a", MOST)
        large, small = asyncio.create_task(of.take("a", MOST)), asyncio.create_task(of.take("a", 1))
        await asyncio.sleep(0)
        assert await taken(of, "b", MOST)
        of.give_back(first)
        of.give_back(first)  # twice is once
        name = await large
        await asyncio.sleep(0)
        assert not small.done()
        of.give_back(name)
        assert await small

    asyncio.run(main())


def test_too_many_are_refused_at_once_and_the_others_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        of = Rooms()
        monkeypatch.setattr(rooms, "PATIENCE", 0.05)
        kept = await taken(of, "a", MOST)
        waiting = [asyncio.create_task(of.take("a", 1)) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Full):
            await taken(of, "a", 1)
        waiting[0].cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError) and all(isinstance(result, Full) for result in results[1:])
        of.give_back(kept)
        assert await taken(of, "a", MOST)  # nothing of those who left is kept

    asyncio.run(main())


def test_a_room_that_came_too_late_is_free_again() -> None:
    async def main() -> None:
        of = Rooms()
        kept = await taken(of, "a", MOST)
        waiting = asyncio.create_task(of.take("a", MOST))
        await asyncio.sleep(0)
        of.give_back(kept)  # reserved for whoever waits, who is cancelled before he knows
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await taken(of, "a", MOST)

    asyncio.run(main())


# --- with a gate


@pytest.fixture(scope="module")
def gate(carrier: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("gate"), upstream, grants=granted(upstream), kind=carrier) as started:
        yield started


@pytest.fixture
def hog(gate: Gate, upstream: Upstream) -> Iterator[Guest]:
    with gate.visited("s-hog", granted(upstream)) as guest:
        yield guest


def granted(upstream: Upstream) -> tuple[Grant, ...]:
    return (
        Grant(
            "open.localhost",
            port=upstream.plain_port,
            scheme="http",
            methods=("POST",),
            paths=("/public/**",),
            max_upload=64 << 20,
            private=True,
        ),
    )


def begun(guest: Guest, upstream: Upstream) -> socket.socket:
    """A request with a body that must be read; its last byte never comes."""
    connection = socket.create_connection(("127.0.0.1", guest.ports["http-proxy"]))
    head = f"POST http://open.localhost:{upstream.plain_port}/public/x HTTP/1.1\r\nhost: open.localhost:{upstream.plain_port}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\ncontent-length: {LARGE}\r\n\r\n".encode())
    connection.setblocking(False)
    return connection


def push(connections: dict[socket.socket, int], seconds: float) -> list[bytes]:
    """Send what goes of each body but its last byte; answers that have come."""
    answers, piece, end = [], b"x" * 65536, time.monotonic() + seconds
    waiting = dict(connections)
    while waiting and time.monotonic() < end:
        readable, writable, _ = select.select(waiting, [one for one, left in waiting.items() if left], [], 0.2)
        for one in readable:
            with contextlib.suppress(OSError):
                answers.append(one.recv(65536))
            del waiting[one]
        for one in writable:
            if one in waiting:
                with contextlib.suppress(OSError):
                    waiting[one] -= one.send(piece[: waiting[one]])
        connections.update(waiting)
        if not writable and sum(not left for left in waiting.values()) >= MOST // LARGE:
            break
    return answers


def resident(gate: Gate) -> int:
    status = Path(f"/proc/{gate.children()['engine']}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) << 10


def upload(guest: Guest, upstream: Upstream, tmp_path: Path, *options: str, size: int = 8 << 20) -> str:
    file = tmp_path / "body.json"
    file.write_text(json.dumps({"text": "x" * size}))
    sent = ["-H", "content-type: application/json", "-H", "expect:", "--data-binary", f"@{file}", *options]
    return guest.curl(f"http://open.localhost:{upstream.plain_port}/public/x", *sent).stdout


@pytest.mark.wall
def test_whoever_fills_it_fills_his_own(gate: Gate, hog: Guest, upstream: Upstream, tmp_path: Path) -> None:
    before = resident(gate)
    connections = {begun(hog, upstream): LARGE - 1 for _ in range(MOST_WAITING + 8)}
    try:
        answers = push(connections, 20)
        held = sum(not left for left in connections.values())
        assert held == MOST // LARGE
        assert resident(gate) - before < 3 * MOST  # unbounded it would be 40 times 31 MiB
        assert answers and all(b" 429 " in answer and b"too-many-bodies" in answer for answer in answers)
        assert upload(gate, upstream, tmp_path).endswith("[200]")  # the neighbour, meanwhile
        assert upload(gate, upstream, tmp_path, "-H", "transfer-encoding: chunked").endswith("[200]")
    finally:
        for connection in connections:
            connection.close()
    # Nothing stays taken of those who went away, whatever they were waiting for.
    assert until(lambda: upload(hog, upstream, tmp_path).endswith("[200]"), 20)
    assert {event["rule"] for event in hog.events if event.get("effect") == "deny"} == {"too-many-bodies"}


@pytest.mark.wall
@pytest.mark.parametrize("carrier", ["envoy"], indirect=True)
def test_a_room_is_given_back_with_every_request(gate: Gate, hog: Guest, upstream: Upstream, tmp_path: Path) -> None:
    """Far more than fits at once, one after the other, on connections that stay open and on new ones."""
    for _ in range(5):
        assert upload(hog, upstream, tmp_path, size=30 << 20).endswith("[200]")
    for _ in range(2 * MOST // LARGE):
        connection = begun(hog, upstream)
        push({connection: LARGE // 2}, 0.1)
        connection.close()
    assert upload(hog, upstream, tmp_path).endswith("[200]")
