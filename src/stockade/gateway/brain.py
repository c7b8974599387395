"""What one session's part of the gate does: answers Envoy's questions (ext_authz over HTTP) and the sandbox's DNS queries.

No effect before its receipt: an allow is given only after the supervisor has said that the decision is in the ledger. Any exception is a refusal.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from stockade.core.frozen import replace
from stockade.core.values import ALLOW, ASK, DENY, Grant, Verdict
from stockade.gateway.apart import Apart
from stockade.gateway.config import CONNECTION_FACT, MAX_BUFFERED, NOWHERE, READ, SEAT, UPSTREAM
from stockade.gateway.flow import Asked, Flow, Judge, Leaving, Outcome, Synthetic, refusal_text
from stockade.gateway.hooks import Call, Change, Showing, answer, done
from stockade.gateway.line import Line, NoReceipt
from stockade.gateway.meter import ANNOUNCED, BOUNDS
from stockade.gateway.questions import Answer, begin, unless
from stockade.gateway.resolve import Resolver, Unreachable
from stockade.gateway.rooms import Full, Rooms
from stockade.gateway.sigv4 import Expired

_CUT_TIMEOUT = 0.25  # seconds
_BEGINS = 512  # characters of a query, and of a body, that a person is shown
_AT_ONCE = 15.0  # seconds that a person has where the engine cannot ask a second time: its first question gets no answer after 20
_SMALL = 1 << 10  # bytes of target and body that take no time to speak of
_MOST_STREAMS = 32  # connections for DNS at once: each costs a descriptor and a buffer, which all sessions of a gate share
_MOST_ASKED = 32  # requests that wait for somebody's word; each keeps a connection of the engine's
_SAID = 202  # the status of an answer of ours: the engine would take 200 for leave to go on (RFC 9110, section 15.3.3)
_TOO_MANY = ("rate-exceeded", "too-many-bodies", "too-many-requests")  # worth trying again (RFC 6585, section 4)
_MOST_REMEMBERED = 4096  # names, for logging each once
_MOST_REPLIES = 512  # to queries for granted names, which come with every new connection

Writer = Callable[[Leaving], list[tuple[str, str]]]


class Brain:
    """Decides for one session. `secrets` maps a credential's name to what writes it into a request, as parts of our answer; `cut` ends every connection of the
    session, and is told whether that is because something secret was opened, and the number of one to spare ("" = none); `named` is told which name an address
    was given out for; `rooms` are for the bodies that it reads, `seats` for requests under way, and what takes long is decided `apart`; somebody has `patience`
    seconds to answer what has to be asked (0 = nobody is there to ask).
    """

    def __init__(
        self,
        session: str,
        judge: Judge,
        ledger: Line,
        secrets: dict[str, Writer],
        cut: Callable[[bool, str], None],
        named: Callable[[str, str], None],
        rooms: Rooms,
        seats: Rooms,
        apart: Apart,
        patience: float = 0.0,
    ) -> None:
        self._session, self._rooms, self._seats, self._apart = session, rooms, seats, apart
        self._one, self._turn = asyncio.Lock(), asyncio.Lock()
        self._judge, self._ledger, self._secrets = judge, ledger, secrets
        self._cut, self._patience = cut, patience
        self._revocations = self._asking = 0
        self._streams = asyncio.Semaphore(_MOST_STREAMS)
        self._addresses = Synthetic(named)
        self._flow = Flow(session, judge, self._addresses)
        self._resolver = Resolver()
        self._logged: set[tuple[str, ...]] = set()
        self._secretive = judge.secretive()
        self._used: set[str] = set()  # numbers of connections, by rules that do not hold after something secret
        self._next_sample = 0.0
        self._answerer: Any = None
        self._replies: dict[bytes, bytes] = {}  # by the query; both without the identifier
        self._tasks: set[asyncio.Task[None]] = set()

    def revoke(self, positions: list[int], tokens: list[str]) -> None:
        """Take grants and tokens back, now: no decision that is still waiting for something is allowed by them, and what is under way is cut."""
        self._judge.revoke(positions, tokens)
        self._replies.clear()
        self._revocations += 1
        self._cut(False, "")

    def taint(self) -> None:
        """Something secret was opened: as if every grant that does not hold after that were taken back, now."""
        self._judge.taint()
        self._revocations += 1
        self._cut(True, "")

    async def authorise(self, asked: Asked) -> Answer:
        """ext_authz over HTTP: 200 allows (with the address to use and the credential), anything else refuses."""
        before = self._revocations
        if self._judge.dear(asked):
            async with self._one:
                outcome = await self._apart.examine(self._flow, self._judge, asked)
            rule, reason = self._judge.spent(outcome.grant, outcome.length) if outcome.grant else ("", "")
            if rule:  # by what was allowed meanwhile
                outcome = _changed(outcome, rule, f"{reason}.")
        else:
            if len(asked.target) + len(asked.body) > _SMALL:  # one after the other, so that between them the other sessions get their turns
                async with self._turn:
                    await asyncio.sleep(0)
            outcome = self._flow.examine(asked)
        if outcome.inside is not None:
            return await self._inside(outcome.inside, outcome, asked)
        if outcome.tunnel and outcome.verdict.effect == ALLOW and not self._addresses.address(outcome.host):
            outcome = _changed(outcome, "too-many-names", "this session has asked for more names than any needs.")
        connection = next((value for name, value in asked.headers if name == CONNECTION_FACT), "") if self._secretive else ""
        return await self._settle(outcome, before, connection, asked)

    async def _inside(self, about: Call | Change | Showing, outcome: Outcome, asked: Asked) -> Answer:
        """Tell an agent whether it may make a tool call, or what became of what it asked for. INVARIANT: never with the status that lets a request go on."""
        if outcome.verdict.effect == ASK:
            outcome = await self._asked(outcome, asked)
        try:
            await self._ledger.record(outcome.event)
        except NoReceipt:
            return 503, [("content-type", "text/plain")], b"stockade refused this: it could not be written to the ledger\n"
        if isinstance(about, Call):
            return _SAID, [("content-type", "application/json")], answer(about, outcome.verdict)
        status = _SAID if outcome.verdict.effect == ALLOW else 403
        return status, [("content-type", "application/json")], done(about, outcome.verdict)

    async def raw(self, name: str, port: int, connection: str, left: Callable[[], Awaitable[None]]) -> tuple[Grant, str] | None:
        """May a raw connection to this name and port be opened? `name` is what its address was given out for, `connection` its number; `left` returns when whoever
        opened it has gone, while somebody is asked. The grant and the address to use, or None."""
        outcome = self._flow.raw(name, port)
        status, headers, _ = await self._settle(outcome, self._revocations, connection, left=left)
        address = dict(headers).get(UPSTREAM, "")
        return (outcome.grant, address) if status == 200 and outcome.grant is not None and address else None

    async def may_send(self, grant: Grant, sent: int, data: bytes, before: bytes) -> bool:
        """May these bytes go out on a raw connection? `sent` counts them and all before them, `before` is the end of what went before."""
        rule = self._judge.more(grant, sent, len(data))
        looked, carried = before + data, ""
        if not rule and self._judge.dear(Asked("TCP", "", (), looked)):
            async with self._one:
                carried = await self._apart.carried(self._judge, looked)
        elif not rule:
            carried = self._judge.carried([looked])
        if not rule and not carried:
            return True
        where = {"way": "raw", "scheme": "tcp", "host": grant.host, "port": grant.port}
        said = {"canary": carried} if carried else {"length": sent}
        with suppress(NoReceipt):  # it is closed all the same
            await self._ledger.record({"kind": "egress", "effect": DENY, "rule": rule or "canary", **where, **said})
        return False

    async def _settle(
        self, outcome: Outcome, before: int, connection: str, asked: Asked | None = None, left: Callable[[], Awaitable[None]] | None = None
    ) -> Answer:
        """From a verdict to its effect: counted, asked about where somebody must be asked, the address found, and written down. `before`: how often something
        had been taken back when it was given; `connection`: the number of the one that it came on, and what is spoken on it, from the outside in."""
        grant, early = outcome.grant, outcome.verdict.effect == ASK and asked is not None and not asked.whole
        if early and grant is not None and not grant.grpc and not grant.websocket:  # whose bodies have no end that can be waited for
            outcome = replace(outcome, read=True)  # the engine waits for a person only with its second question
        if outcome.read:
            try:
                room = await self._rooms.take(self._session, max(1, outcome.length) if outcome.length >= 0 else MAX_BUFFERED)
                # INVARIANT: an address that leads nowhere, should the engine ever fail to ask again.
                return 200, [(READ, room), (UPSTREAM, NOWHERE)], b""
            except Full:
                reason = "its body has to be read, and those of this session's other requests fill what may be held of them; try again."
                outcome = _changed(outcome, "too-many-bodies", reason)
        # INVARIANT: counted before anything is awaited, so that requests at the same time cannot share what is left.
        watched = self._secretive and not self._judge.tainted()
        take_back = self._judge.spend(outcome.grant, outcome.length) if outcome.grant else lambda: None
        if outcome.grant and watched:
            before += self._goes_out(outcome.grant, connection)
        if outcome.verdict.effect == ASK:
            outcome = await self._asked(outcome, asked, left)
            if outcome.verdict.effect != ALLOW:
                take_back()
        address, extra, seat = "", [], ""
        if outcome.verdict.effect == ALLOW and not outcome.tunnel:
            if outcome.grant is None:
                raise ValueError("an allow without a grant")
            try:
                address = await self._resolver.address(outcome.host, outcome.port, outcome.grant.private)
                extra = self._credential(outcome)
                seat = await self._seats.take(self._session, 1) if asked is not None else ""
            except (Unreachable, Expired) as error:
                take_back()
                outcome = _changed(outcome, error.rule, f"{error}.")
            except Full:
                take_back()
                outcome = _changed(outcome, "too-many-requests", "this session has as many requests under way as it may; try again.")
        given = False
        try:
            if extra:
                await self._once(
                    ("credential", str(outcome.event["credential"])), {"kind": "credential", "name": outcome.event["credential"]}
                )
            await self._ledger.record(outcome.event)
            given = outcome.verdict.effect == ALLOW and before == self._revocations
        except NoReceipt:
            take_back()
            return 503, [("content-type", "text/plain")], b"stockade refused this request: it could not be written to the ledger\n"
        finally:
            if not given:
                self._seats.give_back(seat)
        if before != self._revocations:
            return 503, [("content-type", "text/plain")], b"stockade refused this request: grants were taken back meanwhile; try again\n"
        if outcome.verdict.effect != ALLOW:
            headers = [("content-type", "text/plain; charset=utf-8"), ("x-stockade-rule", outcome.verdict.rule)]
            status = 429 if outcome.verdict.rule in _TOO_MANY else 403
            return status, headers, refusal_text(outcome).encode()
        # INVARIANT: a request that is allowed carries its address; without one Envoy would go where the client pointed (ORIGINAL_DST).
        parts = [(name, value) for name, value in ((UPSTREAM, address), (SEAT, seat)) if value]
        return 200, [*parts, *_bounds(outcome), *extra], b""

    def _goes_out(self, grant: Grant, connection: str) -> bool:
        """Whether something secret is about to come in for the first time. Then nothing that is under way by other rules goes on: every other connection ends
        now, and this one as well if it carries more than this request and has been used by such a rule. What was decided meanwhile has to be asked again."""
        number, *spoken = connection.split()
        if not self._judge.tainted():
            if not grant.after_secret and len(self._used) < _MOST_REMEMBERED:
                self._used.add(number)
            return False
        one_at_a_time = all(protocol.startswith("HTTP/1") for protocol in spoken)
        alone = one_at_a_time or (number not in self._used and len(self._used) < _MOST_REMEMBERED)
        self._used.clear()
        self._revocations += 1
        self._cut(False, number if alone else "")
        return True

    async def overrun(self, asked: Asked) -> Answer:
        """The engine has counted more than was granted, and holds the stream. What only announced too much it refuses itself; what is under way has to be cut."""
        with suppress(NoReceipt):  # a refusal does not wait for the ledger
            await self._ledger.record(self._flow.overrun(asked))
        if all(name != ANNOUNCED for name, _ in asked.headers):
            self._cut(False, "")
            await asyncio.sleep(_CUT_TIMEOUT)  # should the connection still be there then, the engine asks again
        return 200, [], b""

    def _credential(self, outcome: Outcome) -> list[tuple[str, str]]:
        name = outcome.grant.credential if outcome.grant else ""
        return self._secrets[name](outcome.leaving) if name and outcome.leaving else []

    async def _asked(self, outcome: Outcome, asked: Asked | None, left: Callable[[], Awaitable[None]] | None = None) -> Outcome:
        """Hold the request until somebody has said yes or no, or has had time enough, or nobody waits any more. Others are not held up."""
        self._asking += 1
        try:
            event = {**outcome.event, **_shown(outcome, asked), **({"place": self._judge.place(outcome.grant)} if outcome.grant else {})}
            patience = min(self._patience, _AT_ONCE) if asked is not None and not asked.whole else self._patience
            allowed, why = False, ""
            if self._patience > 0 and self._asking <= _MOST_ASKED:
                with suppress(NoReceipt):
                    allowed, why = await unless(left, self._ledger.ask(event, patience))
        finally:
            self._asking -= 1
        if allowed and outcome.grant and 0 < outcome.grant.not_after <= time.time():
            allowed, why = False, "it was approved after the rule had ended"
        if not allowed:
            return _changed(outcome, outcome.verdict.rule, f"{why or 'nobody approved it'}.")
        rule = f"approved: {outcome.event['rule']}"
        return replace(outcome, verdict=Verdict(ALLOW, rule), event={**outcome.event, "effect": ALLOW, "rule": rule})

    async def refused_name(self, name: str) -> None:
        """The engine has closed a connection because TLS on it asked for a name that it may not ask for."""
        shown = ascii(name[:253])[1:-1]
        if self._judge.carried([name.encode("utf-8", "replace")]):
            shown = "(withheld)"
        with suppress(NoReceipt):
            await self._once(("connect", name), {"kind": "connect", "effect": DENY, "rule": "sni-mismatch", "host": shown})

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
        if known := self._replies.get(packet[2:]):
            return packet[:2] + known
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
            if effect == ALLOW and len(packet) <= 512 and len(self._replies) < _MOST_REPLIES:
                self._replies[packet[2:]] = bytes(reply[2:])
        return bytes(reply)

    def end(self) -> None:
        """The session is over: nobody waits for what was begun for it."""
        for task in [*self._tasks]:
            task.cancel()

    def serve_datagrams(self, sock: socket.socket) -> None:
        """Answer DNS queries on a UDP socket of the door, at most 64 at once; more are dropped, as a network would. The caller stops reading it."""
        sock.setblocking(False)

        def ready() -> None:
            for _ in range(32):
                try:
                    packet, sender = sock.recvfrom(4096)
                except OSError:
                    return
                if len(self._tasks) < 64:
                    begin(self._tasks, reply(packet, sender))

        async def reply(packet: bytes, sender: Any) -> None:
            if answer := await self.query(packet):
                try:
                    sock.sendto(answer, sender)
                except OSError:
                    return

        asyncio.get_running_loop().add_reader(sock.fileno(), ready)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """DNS over one TCP connection of the door (RFC 7766): two bytes of length, at most 64 queries, 10 s of patience. Connections beyond some are closed."""
        try:
            if self._streams.locked():
                return
            async with self._streams, asyncio.timeout(10):
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


def _bounds(outcome: Outcome) -> list[tuple[str, str]]:
    """What the engine has to count: a body whose length nobody announced, and an answer that is bounded."""
    if outcome.grant is None:
        return []
    up, down = outcome.grant.max_upload if outcome.length < 0 else 0, outcome.grant.max_download
    return [(BOUNDS, f"{up} {down}")] if up or down else []


def _shown(outcome: Outcome, asked: Asked | None) -> dict[str, object]:
    """What only the person who is asked gets to see, and no ledger: the query and how the body begins, the arguments of a tool, or what a file shall hold."""
    if (inside := outcome.inside) is not None:
        said = {"asks": inside.shown} if isinstance(inside, Call) else {"content": inside.content} if isinstance(inside, Change) else {}
        return {**said, "place": inside.place}
    if asked is None:
        return {}
    query, body = ascii(asked.target.partition("?")[2])[1:-1], asked.body[:_BEGINS].decode("latin-1")
    hidden = {"hidden": len(query) - _BEGINS} if len(query) > _BEGINS else {}
    return {"asks": query[:_BEGINS], **hidden, "begins": ascii(body)[1:-1][:_BEGINS]}


def _changed(outcome: Outcome, rule: str, reason: str) -> Outcome:
    """A refusal after all."""
    event = {**outcome.event, "effect": DENY, "rule": rule}
    event.pop("credential", None)
    return Outcome(Verdict(DENY, rule, (*outcome.verdict.reasons, reason)), event, outcome.host, outcome.port)
