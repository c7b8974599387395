"""Taking bytes from Envoy and from supervisors: the loop's side of a connection, without a word about what is decided."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import httptools

from stockade.gateway.config import MAX_BUFFERED
from stockade.gateway.flow import Asked

Answer = tuple[int, list[tuple[str, str]], bytes]
# One for all connections: asyncio fills it and hands it over before it reads again (BufferedProtocol; asyncio's usual way allocates a quarter of a mebibyte
# for each read, which costs more than a decision does).
_BUFFER = memoryview(bytearray(1 << 16))


class Buffered(asyncio.BufferedProtocol):
    """Hands over what came as `data_received(bytes)`."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(_BUFFER[:nbytes]))

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


def begin(tasks: set[asyncio.Task[None]], work: Coroutine[Any, Any, None]) -> None:
    """Do `work` beside everything else, and keep it in `tasks` as long as it takes: the loop alone would let it be collected (asyncio.create_task)."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)


async def unless(gone: Callable[[], Awaitable[None]] | None, asking: Coroutine[Any, Any, tuple[bool, str]]) -> tuple[bool, str]:
    """What `asking` comes to; a no, and it is cancelled, if `gone` returns before (None = it never does)."""
    if gone is None:
        return await asking
    asked, left = asyncio.ensure_future(asking), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({asked, left}, return_when=asyncio.FIRST_COMPLETED)
        return asked.result() if asked.done() else (False, "")
    finally:
        for task in (asked, left):
            task.cancel()
        await asyncio.gather(asked, left, return_exceptions=True)


class Question(Buffered):
    """One connection from Envoy: HTTP/1.1, one question at a time, kept alive. `reply` answers; an exception in it is a refusal.

    `whole`: what is asked here are second questions, with bodies. `unheard` is told of an answer that the engine did not wait for.
    """

    def __init__(
        self, reply: Callable[[Asked], Awaitable[Answer]], *, whole: bool = False, unheard: Callable[[Answer], None] | None = None
    ) -> None:
        self._reply, self._whole, self._unheard = reply, whole, unheard
        self._last: Answer | None = None  # after which nothing has come yet
        self._parser = httptools.HttpRequestParser(self)
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._closing = False
        self._reset()

    def _reset(self) -> None:
        self._target, self._body, self._headers = b"", bytearray(), []  # type: bytes, bytearray, list[tuple[str, str]]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Nobody waits for what is being decided. The engine keeps a connection on which it has heard an answer, unless we close it."""
        if self._task is not None:
            self._task.cancel()
        if self._unheard is not None and self._last is not None and not self._closing:
            self._unheard(self._last)

    def data_received(self, data: bytes) -> None:
        self._last = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._closing = True  # a CONNECT: the parser expects a tunnel to follow; we answer and hang up
        except httptools.HttpParserError:
            self._close()

    def _close(self) -> None:
        if self._transport:
            self._transport.close()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1").lower(), value.decode("latin-1")))

    def on_body(self, body: bytes) -> None:
        self._body += body
        if len(self._body) > MAX_BUFFERED:
            self._close()

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        asked = Asked(method, self._target.decode("latin-1"), tuple(self._headers), bytes(self._body), self._whole)
        self._reset()
        if self._task is not None and not self._task.done():
            self._close()
            return
        # Begun at once, not in the loop's next turn, which is a system call away.
        self._task = asyncio.Task(self._answer(asked), loop=asyncio.get_running_loop(), eager_start=True)

    async def _answer(self, asked: Asked) -> None:
        try:
            answer = await self._reply(asked)
        except Exception as error:
            sys.stderr.write(f"stockade gate: {type(error).__name__} while deciding; refused\n")
            answer = 503, [], b"stockade refused this request: the gate could not decide\n"
        status, headers, body = self._last = answer
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers), f"content-length: {len(body)}", "", ""]
        if self._transport and not self._transport.is_closing():
            self._transport.write("\r\n".join(lines).encode("latin-1") + (b"" if asked.method == "HEAD" else body))
            if self._closing:
                self._transport.close()
        elif self._unheard is not None:
            self._unheard(answer)
