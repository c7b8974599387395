"""The supervisor's end of the line, and what a gate that was taken over might send. Any bytes: tests/fuzz/control.py."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from stockade.core.errors import WallFailed
from stockade.gateway.control import Control
from stockade.gateway.line import Line, NoReceipt


@pytest.fixture
def line() -> Iterator[tuple[Control, socket.socket]]:
    ours, theirs = socket.socketpair()
    control = Control(ours.detach(), "s-1")
    yield control, theirs
    theirs.close()
    control.close()


def nothing(*_: object) -> None:
    """What a line of the brain's may be told of."""


EVENT = {"kind": "egress", "session": "s-other", "effect": "deny", "rule": "r", "host": "h", "port": 443}


def test_messages_in_pieces(line: tuple[Control, socket.socket]) -> None:
    control, gate = line
    pem = "-----BEGIN CERTIFICATE-----\nx\n"
    data = b"".join(json.dumps(m).encode() + b"\n" for m in ({"ca": pem}, {"ready": True}, {"id": 1, "event": EVENT}, {"failed": "why"}))
    got = []
    for number in range(len(data)):
        gate.send(data[number : number + 1])
        got += control.receive()
    assert got == [("ca", pem), ("ready",), ("event", 1, {**EVENT, "session": "s-1"}), ("failed", "why")]
    control.acknowledge(1)
    assert gate.recv(100) == b'{"id":1}\n'
    gate.shutdown(socket.SHUT_RDWR)
    assert control.receive() == [] and control.closed
    control.closed = False


@pytest.mark.parametrize(
    "message",
    [
        b"x", b"[]", b"{}", b'{"ready":1}', b'{"ready":true,"x":1}', b'{"ca":"not pem"}', b'{"id":"1","event":{}}', b'{"id":true,"event":{"kind":"dns","effect":"deny"}}',
        b'{"id":-1,"event":{"kind":"dns","effect":"deny"}}', b'{"id":1,"event":{"kind":"session.exit"}}', b'{"id":1,"event":{"kind":["dns"]}}',
        b'{"id":1,"event":{"kind":"dns","effect":"maybe"}}', b'{"id":1,"event":{"kind":"dns"}}', b'{"id":1,"event":{"kind":"dns","effect":"deny","time":1}}',
        b'{"id":1,"event":{"kind":"dns","effect":"deny","name":{}}}', b'{"id":1,"event":{"kind":"dns","effect":"deny","name":"\\u001b[2J"}}',
        b'{"id":1,"event":{"kind":"dns","effect":"deny","name":1.5}}', b"[" * 60000, b'{"id":1,"event":{"kind":"dns","effect":"deny","name":"' + b"x" * 3000 + b'"}}',
    ],
)  # fmt: skip
def test_malformed(line: tuple[Control, socket.socket], message: bytes) -> None:
    control, gate = line
    gate.sendall(message + b"\n")
    with pytest.raises(WallFailed) as caught:
        control.receive()
    assert caught.value.code == "gate.protocol"


def test_an_endless_line(line: tuple[Control, socket.socket]) -> None:
    control, gate = line
    gate.setblocking(False)
    with pytest.raises(WallFailed):
        for _ in range(100):
            gate.send(b"x" * 10000)
            control.receive()


def test_writing_to_a_gate_that_does_not_read_never_blocks(line: tuple[Control, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockade.gateway.control._MOST_WAITING", 5000)
    control, gate = line
    with pytest.raises(WallFailed):
        for number in range(2_000_000):
            control.acknowledge(number)
    assert control.wants_to_write
    gate.close()


def test_it_is_cheap_to_import() -> None:
    program = "import sys; import stockade.gateway.control; print([n for n in ('json', 're', 'typing', 'socket', 'asyncio', 'enum') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-S", "-c", f"import sys; sys.path[:0]={sys.path!r}; {program}"], capture_output=True, text=True)
    assert done.stdout == "[]\n", done


def test_what_is_decided_in_one_moment_goes_and_is_receipted_as_one_message(line: tuple[Control, socket.socket]) -> None:
    control, gate = line

    def heard() -> list[int]:
        """The numbers of the events that are in one read."""
        assert select.select([control], [], [], 10)[0]
        return [message[1] for message in control.receive() if message[0] == "event"]

    async def decide() -> None:
        brain = Line(nothing, nothing, nothing, nothing)
        gate.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: brain, sock=socket.socket(fileno=os.dup(gate.fileno())))
        brain.data_received(b"{}\n")  # its configuration
        first = [asyncio.create_task(brain.record({**EVENT, "port": port})) for port in (1, 2, 3)]
        assert await asyncio.to_thread(heard) == [1, 2, 3]
        assert not any(task.done() for task in first)
        control.acknowledge(1, 3)
        await asyncio.wait_for(asyncio.gather(first[0], first[2]), 10)
        assert not first[1].done()  # each waits for its own
        alone = asyncio.create_task(brain.record({**EVENT, "port": 4}))
        assert await asyncio.to_thread(heard) == [4]
        control.acknowledge(2, 4)
        await asyncio.wait_for(asyncio.gather(first[1], alone), 10)
        brain.fail("why")  # the last word is said, though nothing turns any more
        with pytest.raises(NoReceipt):
            await asyncio.wait_for(brain.record(EVENT), 10)

    asyncio.run(decide())
    assert ("failed", "why") in control.receive()
