"""The process that decides: answers Envoy's questions (ext_authz and SDS, both HTTP on a Unix socket) and the sandbox's DNS queries.

No effect before its receipt: an allow is given only after the supervisor has said that the decision is in the ledger. Any exception is a refusal.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httptools

from stockade.core.values import ALLOW, Verdict
from stockade.gateway.certs import REFUSED, Authority
from stockade.gateway.config import MAX_BUFFERED, NOWHERE, READ, UPSTREAM
from stockade.gateway.flow import Asked, Flow, Judge, Outcome, Synthetic, refusal_text
from stockade.gateway.resolve import Resolver, Unreachable

_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  a type's name
_RECEIPT_TIMEOUT = 10.0  # seconds
_MOST_PENDING = 4096  # events waiting for a receipt
_MOST_REMEMBERED = 4096  # names, for logging each once

Answer = tuple[int, list[tuple[str, str]], bytes]


class NoReceipt(Exception):
    """The ledger did not confirm an event."""


class _Buffered(asyncio.BufferedProtocol):
    """Takes bytes into one buffer: asyncio's usual way allocates a quarter of a mebibyte for each read, which costs more than the decision does."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(1 << 16))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._buffer[:nbytes]))

    def data_received(self, data: bytes) -> None:
        raise NotImplementedError


class Ledger(_Buffered):
    """Our end of the line to the supervisor. `gone` is called when it hangs up, `revoke` with the places of grants that it takes back."""

    def __init__(self, gone: Callable[[], None], revoke: Callable[[list[int]], None] = lambda _: None) -> None:
        super().__init__()
        self._gone, self._revoke = gone, revoke
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._next = 0
        self._incoming = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "revoke" in message:
                self._revoke(message["revoke"])
                self.tell({"revoked": True})
                continue
            waiting = self._waiting.pop(message["id"], None)
            if waiting and not waiting.done():
                waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone()

    def tell(self, message: dict[str, object]) -> None:
        """Send one line."""
        if self._transport is None:
            raise NoReceipt
        self._transport.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def record(self, event: dict[str, object]) -> None:
        """Return when the event is in the ledger. Raises NoReceipt."""
        if len(self._waiting) >= _MOST_PENDING:
            raise NoReceipt
        self._next += 1
        number = self._next
        self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self.tell({"id": number, "event": event})
            await asyncio.wait_for(self._waiting[number], _RECEIPT_TIMEOUT)
        except TimeoutError as error:
            raise NoReceipt from error
        finally:
            self._waiting.pop(number, None)


class Brain:
    """Decides for one session. `secrets` maps a credential's name to (header, value as written); `cut` ends every connection of the session."""

    def __init__(
        self, session: str, judge: Judge, ledger: Ledger, authority: Authority, secrets: dict[str, tuple[str, str]], cut: Callable[[], None]
    ) -> None:
        self._session, self._judge, self._ledger, self._authority, self._secrets = session, judge, ledger, authority, secrets
        self._cut = cut
        self._revocations = 0
        self._addresses = Synthetic()
        self._flow = Flow(session, judge, self._addresses)
        self._resolver = Resolver()
        self._logged: set[tuple[str, ...]] = set()
        self._next_sample = 0.0
        self._leaves: dict[str, str] = {}
        self._answerer: Any = None
        self._tasks: set[asyncio.Task[None]] = set()

    def revoke(self, positions: list[int]) -> None:
        """Take grants back, now: no decision that is still waiting for something is allowed by them, and what is under way is cut."""
        self._judge.revoke(positions)
        self._revocations += 1
        self._cut()

    async def authorise(self, asked: Asked) -> Answer:
        """ext_authz over HTTP: 200 allows (with the address to use and the credential), anything else refuses."""
        outcome, before = self._flow.examine(asked), self._revocations
        if outcome.read:
            # INVARIANT: an address that leads nowhere, should the engine ever fail to ask again.
            return 200, [(READ, "1"), (UPSTREAM, NOWHERE)], b""
        # INVARIANT: counted before anything is awaited, so that requests at the same time cannot share what is left.
        take_back = self._judge.spend(outcome.grant, outcome.length) if outcome.grant else lambda: None
        address, extra = "", []
        if outcome.verdict.effect == ALLOW and not outcome.tunnel:
            if outcome.grant is None:
                raise ValueError("an allow without a grant")
            try:
                address = await self._resolver.address(outcome.host, outcome.port, outcome.grant.private)
                extra = self._credential(outcome)
            except Unreachable as error:
                take_back()
                outcome = _changed(outcome, error.rule, f"{error}.")
        try:
            if extra:
                await self._once(
                    ("credential", str(outcome.event["credential"])), {"kind": "credential", "name": outcome.event["credential"]}
                )
            await self._ledger.record(outcome.event)
        except NoReceipt:
            if outcome.grant:
                take_back()
            return 503, [("content-type", "text/plain")], b"stockade refused this request: it could not be written to the ledger\n"
        if before != self._revocations:
            return 503, [("content-type", "text/plain")], b"stockade refused this request: grants were taken back meanwhile; try again\n"
        if outcome.verdict.effect != ALLOW:
            headers = [("content-type", "text/plain; charset=utf-8"), ("x-stockade-rule", outcome.verdict.rule)]
            status = 429 if outcome.verdict.rule == "rate-exceeded" else 403  # RFC 6585, section 4: worth trying again
            return status, headers, refusal_text(outcome).encode()
        # INVARIANT: a request that is allowed carries its address; without one Envoy would go where the client pointed (ORIGINAL_DST).
        return 200, [*([(UPSTREAM, address)] if address else []), *extra], b""

    def _credential(self, outcome: Outcome) -> list[tuple[str, str]]:
        name = outcome.grant.credential if outcome.grant else ""
        return [self._secrets[name]] if name else []

    async def secret(self, asked: Asked) -> Answer:
        """SDS over REST: a leaf for each granted name asked for, a leaf for nobody's name where nothing is granted."""
        names = [str(name)[:256] for name in json.loads(asked.body).get("resource_names", [])][:8]
        resources = [{"@type": _SECRET, "name": name, "tls_certificate": await self._leaf(name)} for name in names]
        reply = {"version_info": "1", "type_url": _SECRET, "resources": resources}
        return 200, [("content-type", "application/json")], json.dumps(reply).encode()

    async def _leaf(self, asked_name: str) -> dict[str, object]:
        name = asked_name.lower()
        if not self._judge.name(name) or name.endswith("."):
            event = {"kind": "connect", "effect": "deny", "rule": "host-not-granted", "host": ascii(name[:253])[1:-1]}
            await self._once(("connect", name), event)
            name = REFUSED
        if name not in self._leaves:
            if len(self._leaves) >= _MOST_REMEMBERED:
                self._leaves.clear()
            self._leaves[name] = self._authority.leaf(name)
        return {
            "certificate_chain": {"inline_string": self._leaves[name]},
            "private_key": {"inline_string": self._authority.leaf_key},
        }

    async def _once(self, key: tuple[str, ...], event: Mapping[str, object]) -> None:
        """Record an event the first time only."""
        if key in self._logged:
            return
        if len(self._logged) >= _MOST_REMEMBERED:  # somebody makes up names: from here on a sample, so that the ledger is not the victim
            if time.monotonic() < self._next_sample:
                return
            self._next_sample = time.monotonic() + 0.1
            await self._ledger.record(dict(event))
            return
        await self._ledger.record(dict(event))
        self._logged.add(key)

    async def query(self, packet: bytes) -> bytes:
        """One DNS query. The first costs the import of dnspython."""
        if self._answerer is None:
            from stockade.gateway.names import Answerer

            self._answerer = Answerer(self._judge.name, self._addresses.address)
        reply, seen = self._answerer.answer(packet)
        if seen:
            name, kind, effect = seen
            if effect != ALLOW and (carried := self._judge.carried([name.encode(), name.replace(".", "").encode()])):
                # Without the name, which is what somebody tried to send; once a second, so that the ledger is not the victim.
                event = {"kind": "dns", "effect": effect, "name": "(withheld)", "type": kind, "canary": carried}
                try:
                    await self._once(("canary", carried, str(int(time.monotonic()))), event)
                except NoReceipt:
                    return b""
                return bytes(reply)
            shown = ascii(name[:255])[1:-1].replace("\\\\", "\\")
            try:
                await self._once(("dns", name, kind), {"kind": "dns", "effect": effect, "name": shown, "type": kind})
            except NoReceipt:
                return b""
        return bytes(reply)

    def serve_datagrams(self, sock: socket.socket) -> None:
        """Answer DNS queries on a UDP socket of the door, at most 64 at once; more are dropped, as a network would."""
        sock.setblocking(False)

        def ready() -> None:
            for _ in range(32):
                try:
                    packet, sender = sock.recvfrom(4096)
                except OSError:
                    return
                if len(self._tasks) < 64:
                    task = asyncio.get_running_loop().create_task(reply(packet, sender))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

        async def reply(packet: bytes, sender: Any) -> None:
            if answer := await self.query(packet):
                try:
                    sock.sendto(answer, sender)
                except OSError:
                    return

        asyncio.get_running_loop().add_reader(sock.fileno(), ready)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """DNS over one TCP connection of the door (RFC 7766): two bytes of length, at most 64 queries, 10 s of patience."""
        try:
            async with asyncio.timeout(10):
                for _ in range(64):
                    size = int.from_bytes(await reader.readexactly(2), "big")
                    answer = await self.query(await reader.readexactly(size))
                    if not answer:
                        break
                    writer.write(len(answer).to_bytes(2, "big") + answer)
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


def _changed(outcome: Outcome, rule: str, reason: str) -> Outcome:
    event = {**outcome.event, "effect": "deny", "rule": rule}
    event.pop("credential", None)
    return Outcome(Verdict("deny", rule, (reason,)), event, outcome.host, outcome.port)


class Question(_Buffered):
    """One connection from Envoy: HTTP/1.1, one question at a time, kept alive. `reply` answers; an exception in it is a refusal.

    `whole`: what is asked here are second questions, with bodies.
    """

    def __init__(self, reply: Callable[[Asked], Awaitable[Answer]], *, whole: bool = False) -> None:
        super().__init__()
        self._reply, self._whole = reply, whole
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

    def data_received(self, data: bytes) -> None:
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
        self._task = asyncio.get_running_loop().create_task(self._answer(asked))

    async def _answer(self, asked: Asked) -> None:
        try:
            status, headers, body = await self._reply(asked)
        except Exception as error:
            sys.stderr.write(f"stockade gate: {type(error).__name__} while deciding; refused\n")
            status, headers, body = 503, [], b"stockade refused this request: the gate could not decide\n"
        lines = [f"HTTP/1.1 {status} -", *(f"{name}: {value}" for name, value in headers), f"content-length: {len(body)}", "", ""]
        if self._transport and not self._transport.is_closing():
            self._transport.write("\r\n".join(lines).encode("latin-1") + (b"" if asked.method == "HEAD" else body))
            if self._closing:
                self._transport.close()
