"""Deciding what takes long in a process apart: large bodies hold up no other session, and what a hostile one does to a parser it does there (fork(2)).

That process has what the brain had when it was made, and no connection of anybody's. It decides and is gone. What it says is read like a stranger's: closed
fields, and a grant by its place. What it could not know, because it happened meanwhile, is for whoever asked: what was taken back, and what was used up.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from stockade.core.frozen import plain
from stockade.core.values import Verdict
from stockade.gateway import engine
from stockade.gateway.flow import Asked, Flow, Judge, Leaving, Outcome, judged_headers
from stockade.gateway.hooks import about

AT_ONCE = 2
SECONDS = 10.0  # for one decision; the engine waits twice as long for an answer
_MEMORY = 768 << 20  # bytes that it may take beyond what the brain has
_LONGEST = 1 << 20  # bytes that it may say


class Undecided(Exception):
    """It did not come to a decision."""


class Apart:
    """Decides for all sessions of a gate, `AT_ONCE` at a time; a session asks for one at a time, so that none waits long because of another."""

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(AT_ONCE)

    async def examine(self, flow: Flow, judge: Judge, asked: Asked) -> Outcome:
        """As `flow.examine`. Raises Undecided, ValueError, KeyError."""
        async with self._free:
            said = await run(lambda: _told(flow.examine(asked), judge), SECONDS)
        return _understood(said, judge, asked)

    async def carried(self, judge: Judge, data: bytes) -> str:
        """As `judge.carried`, of one part. Raises Undecided, ValueError, KeyError."""
        async with self._free:
            said = json.loads(await run(lambda: json.dumps([judge.carried([data]), judge.pieces()]).encode(), SECONDS))
        judge.seen(said[1])
        return str(said[0])


def _told(outcome: Outcome, judge: Judge) -> bytes:
    verdict = outcome.verdict
    said = {
        "verdict": [verdict.effect, verdict.rule, list(verdict.reasons), verdict.grant],
        "event": outcome.event,
        "host": outcome.host,
        "port": outcome.port,
        "grant": judge.place(outcome.grant) if outcome.grant is not None else -1,
        "read": outcome.read,
        "length": outcome.length,
        "body": outcome.leaving is not None and outcome.leaving.body != b"",
        "pieces": judge.pieces(),
        "inside": plain(outcome.inside) if outcome.inside is not None else None,
    }
    return json.dumps(said).encode()


def _understood(data: bytes, judge: Judge, asked: Asked) -> Outcome:
    said: dict[str, Any] = json.loads(data)
    effect, rule, reasons, snippet = said["verdict"]
    event, place = dict(said["event"]), int(said["grant"])
    grant = judge.grant(place) if place >= 0 else None
    judge.seen(said["pieces"])
    leaving = None
    if grant is not None and grant.credential and not said["read"]:
        body = asked.body if said["body"] else b""
        leaving = Leaving(str(event["method"]), str(event["scheme"]), asked.target, judged_headers(asked), body)
    return Outcome(
        Verdict(effect, str(rule), tuple(map(str, reasons)), str(snippet)),
        event,
        str(said["host"]),
        int(said["port"]),
        grant,
        read=said["read"] is True,
        length=int(said["length"]),
        leaving=leaving,
        inside=about(said["inside"]) if said["inside"] is not None else None,
    )


async def run(work: Callable[[], bytes], seconds: float) -> bytes:
    """What `work` gives in a process of its own, which is ended after `seconds`. Raises Undecided."""
    reading, writing = os.pipe()
    try:
        pid = engine.fork(lambda: _work(work, writing))
    except OSError as error:
        os.close(reading)
        raise Undecided("another process cannot be made") from error
    finally:
        os.close(writing)
    loop = asyncio.get_running_loop()
    data, ended = bytearray(), loop.create_future()

    def ready() -> None:
        piece = os.read(reading, 1 << 16)
        data.extend(piece)
        if len(data) > _LONGEST:
            os.kill(pid, 9)
        if not piece:  # it has ended, and its memory is free
            loop.remove_reader(reading)
            if not ended.done():
                ended.set_result(None)

    loop.add_reader(reading, ready)
    late = loop.call_later(seconds, os.kill, pid, 9)
    try:
        await ended
    finally:
        late.cancel()
        loop.remove_reader(reading)
        os.close(reading)
        os.kill(pid, 9)  # not reaped yet, so the number is still its own
        os.waitpid(pid, 0)
    if data[-1:] != b"\n":
        raise Undecided("it ended without a decision")
    return bytes(data)


def _work(work: Callable[[], bytes], writing: int) -> None:
    """In the child. Whatever goes wrong there is not quoted: it may hold what was sent."""
    os.closerange(3, writing)  # the connections of all sessions
    os.closerange(writing + 1, 1 << 20)
    with open("/proc/self/statm") as sizes:
        pages = int(sizes.read().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    with suppress(Exception):
        said = work() + b"\n"
        while said:
            said = said[os.write(writing, said) :]
    os._exit(0)
