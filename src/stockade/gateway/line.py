"""The gate's end of the line to one session's supervisor (gateway/control.py is the other end): newline-delimited JSON.

No effect before its receipt: `record` returns when an event is in the ledger, `ask` when somebody has decided.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from stockade.gateway.questions import Buffered

_RECEIPT_TIMEOUT = 10.0  # seconds
_MOST_PENDING = 4096  # events waiting for a receipt
_written = json.JSONEncoder(separators=(",", ":")).encode  # made once: json.dumps would make one for each message
_LONGEST = 16 << 20  # bytes of a message: the first one holds all grants


class NoReceipt(Exception):
    """The ledger did not confirm an event."""


class Line(Buffered):
    """`began` is called with the first message, which is the session's configuration; `gone` when the supervisor hangs up; `revoke` with the places of
    grants that it takes back, and the names of tokens' blocks; `taint` when something secret was opened."""

    def __init__(
        self,
        began: Callable[[dict[str, Any]], None],
        gone: Callable[[], None],
        revoke: Callable[[list[int], list[str]], None],
        taint: Callable[[], None],
    ) -> None:
        self._began, self._gone, self._revoke, self._taint = began, gone, revoke, taint
        self._waiting: dict[int, asyncio.Future[tuple[str, str]]] = {}
        self._next = 0
        self._incoming = b""
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._first = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        if len(self._incoming) > _LONGEST:
            self.close()
        try:
            for line in lines:
                self._hear(json.loads(line))
        except (ValueError, KeyError, TypeError, IndexError):  # a supervisor that we do not understand has no session here
            self.close()

    def _hear(self, message: dict[str, Any]) -> None:
        if self._first:
            self._first = False
            self._began(message)
        elif "revoke" in message or "revoke_tokens" in message:
            self._revoke(message.get("revoke", []), message.get("revoke_tokens", []))
            self.tell({"revoked": True})
        elif "taint" in message:
            self._taint()
            self.tell({"revoked": True})
        else:
            waiting = self._waiting.pop(message["id"], None)
            if waiting and not waiting.done():
                waiting.set_result((message.get("verdict", ""), message.get("why", "")))

    def connection_lost(self, exc: Exception | None) -> None:
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(NoReceipt())
        self._gone()

    def close(self) -> None:
        """Hang up; may be called twice."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    def fail(self, reason: str) -> None:
        """Say why this session cannot be served, and hang up."""
        self.tell({"failed": reason[:500]})
        self.close()

    def tell(self, message: dict[str, object]) -> None:
        """Send one line, in the loop's next turn: what is said in one turn goes as one message, which the supervisor records as one. Raises NoReceipt before there
        is a connection."""
        if self._transport is None:
            raise NoReceipt
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(_written(message).encode())

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None:
            self._transport.write(b"\n".join([*self._outgoing, b""]))
        self._outgoing.clear()

    async def record(self, event: dict[str, object]) -> None:
        """Return when the event is in the ledger. Raises NoReceipt."""
        await self._answered({"event": event}, _RECEIPT_TIMEOUT)

    async def ask(self, event: dict[str, object], seconds: float) -> tuple[bool, str]:
        """Whether somebody who may allows it, within this time, and why not ("" = nobody said). Raises NoReceipt when it could not be asked. Cancelled, or too late, it is not asked any more."""
        number = self._next + 1
        try:
            verdict, why = await self._answered({"ask": event}, seconds)
            return verdict == "allow", why
        except TimeoutError:
            self.tell({"withdrawn": number})
            return False, ""
        except asyncio.CancelledError:  # the client has gone
            self.tell({"withdrawn": number})
            raise

    async def _answered(self, message: dict[str, object], seconds: float) -> tuple[str, str]:
        if len(self._waiting) >= _MOST_PENDING:
            raise NoReceipt
        self._next += 1
        number = self._next
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[tuple[str, str]] = loop.create_future()
        self._waiting[number] = waiting
        late = loop.call_later(seconds, _give_up, waiting)  # for every request: asyncio.wait_for costs more
        try:
            self.tell({"id": number, **message})
            return await waiting
        except TimeoutError:
            if "ask" in message:
                raise
            raise NoReceipt from None
        finally:
            late.cancel()
            self._waiting.pop(number, None)


def _give_up(waiting: asyncio.Future[tuple[str, str]]) -> None:
    if not waiting.done():
        waiting.set_exception(TimeoutError())
