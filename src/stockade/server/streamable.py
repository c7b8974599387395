"""`stockade tools --http`: the Model Context Protocol over HTTP for several clients, each with a sandbox of its own.

Source: the specification's revision 2025-06-18, "Transports", Streamable HTTP. One message is one POST. A call of a tool is answered in a stream of events (HTML Living Standard, section
9.2), since it can last longer than clients wait for headers; all else is answered at once. There is nothing that the server would say by itself, and so no stream for GET.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse

from stockade.server import mcp, rpc
from stockade.server.access import asking
from stockade.server.bearer import PATH, Bearer, Refusal
from stockade.server.listening import Listener
from stockade.server.rpc import BUSY, Fault

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping
    from typing import Any

    from starlette.types import Receive, Scope, Send

    from stockade.core.values import Policy

CONNECTIONS = 128
SESSIONS = 8
HELD = 64 << 20  # bytes of bodies that are on their way
BODY = 60.0  # seconds in which a body has to be there
BEAT = 15.0  # seconds after which a stream says that it is still there
IDLE = 1800.0  # seconds without a request and without a call, after which a session is ended
SPARE = 60.0  # and after which it may be ended to make room for a new one
EVERY = 5.0  # seconds between two looks for such
SESSION, REVISION = "mcp-session-id", "mcp-protocol-version"


class Peer:
    """One session of the protocol: a client, its sandbox, and since when nothing has happened."""

    def __init__(self, sandbox: mcp.Sandbox) -> None:
        self.server, self._sandbox, self._last = mcp.Server(sandbox), sandbox, time.monotonic()

    def stir(self) -> None:
        """It does something."""
        self._last = time.monotonic()

    @property
    def idle(self) -> float:
        """Seconds for which nothing has happened."""
        if self.server.running:
            self.stir()
        return time.monotonic() - self._last

    async def close(self) -> None:
        """End everything inside."""
        await self.server.close()
        await self._sandbox.close()


class Streamable(Listener):
    """Serves until SIGTERM, SIGINT or SIGHUP; everything inside has ended then. `say` is given the address and the token, once; `tell` lines for people."""

    def __init__(
        self, policy: Policy, cwd: str, address: str, port: int, say: Callable[[str, str], None], tell: Callable[[str], None]
    ) -> None:
        self._policy, self._cwd, self._address, self._say, self._tell = policy, cwd, address, say, tell
        self._access: Bearer | None = None
        self._peers: dict[str, Peer] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._held = 0
        super().__init__(address, port, CONNECTIONS)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, lambda: setattr(self, "should_exit", True))
        yield

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        access = Bearer(self._address, self.port)
        self._say(access.url, access.token)
        self._access = access
        self._watch = asyncio.ensure_future(self._end_idle())

    async def shutdown(self, sockets: Any = None) -> None:
        self._access = None
        self._watch.cancel()
        await asyncio.gather(*map(self._end, [*self._peers]))
        if self._ending:
            await asyncio.wait(self._ending)
        await super().shutdown(sockets)

    async def called(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._access is None:  # hung up on
            return
        try:
            answer = await self._answer(Request(scope, receive), self._access)
        except Refusal as no:
            more = {name.replace("_", "-"): value for name, value in no.more.items()}
            answer = Response(rpc.error(no), no.status, more, media_type="application/json")
        except ClientDisconnect:
            return
        answer.headers.update({"cache-control": "no-store", "x-content-type-options": "nosniff"})
        await answer(scope, receive, send)

    async def _answer(self, request: Request, access: Bearer) -> Response:
        asked = asking(request.scope)
        said = access.enter(asked)
        if asked.path != PATH:
            raise Refusal(404, f"The tools are at {PATH}.")
        if asked.method == "POST":
            return await self._post(said, request)
        if asked.method != "DELETE":
            raise Refusal(405, "Only POST and DELETE are answered.", allow="POST, DELETE")
        name, _ = self._known(said)
        await self._end(name)
        return Response(status_code=204)

    async def _post(self, said: Mapping[str, str], request: Request) -> Response:
        if _kinds(said.get("content-type", "")) != {"application/json"}:
            raise Refusal(415, "A message is application/json.")
        if not {"application/json", "text/event-stream"} <= _kinds(said.get("accept", "")):
            raise Refusal(406, "Accept has to name application/json and text/event-stream.")
        message = rpc.read(await self._body(request))
        if isinstance(message, Fault):
            raise Refusal(400, message.message, message.code, message.ident)
        opens = message is not None and message.method == "initialize" and message.ident is not None and SESSION not in said
        name, peer = await self._open() if opens else self._known(said)
        answers: list[bytes] = []
        if message is None or message.method == "notifications/initialized":
            return Response(status_code=202)  # the first call starts a sandbox: many clients only look whether a server is there
        if message.method == "tools/call" and sum(one.server.running for one in self._peers.values()) >= mcp.MOST:
            raise Refusal(503, f"{mcp.MOST} calls are running already; wait for one of them", BUSY, message.ident)
        call = peer.server.take(message, answers.append)
        if call is not None:
            return StreamingResponse(_stream(call, answers), media_type="text/event-stream")
        if not answers:
            return Response(status_code=202)
        return Response(answers[0], headers={SESSION: name} if opens else {}, media_type="application/json")

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        try:
            async with asyncio.timeout(BODY):
                async for piece in request.stream():
                    body += piece
                    self._held += len(piece)
                    if len(body) > rpc.LARGEST:
                        raise Refusal(413, f"the message is larger than {rpc.LARGEST} bytes; nothing was done")
                    if self._held > HELD:
                        raise Refusal(503, "too many large messages at once; send it again", BUSY)
        except TimeoutError as error:
            raise Refusal(408, f"the message was not there after {BODY:g} s") from error
        finally:
            self._held -= len(body)
        return bytes(body)

    def _known(self, said: Mapping[str, str]) -> tuple[str, Peer]:
        name, revision = said.get(SESSION, ""), said.get(REVISION, mcp.REVISIONS[0])
        if not name:
            raise Refusal(400, "Mcp-Session-Id is missing: send initialize, and then what its answer has there.")
        if revision not in mcp.REVISIONS:
            raise Refusal(400, f"This revision of the protocol is not spoken here, but {', '.join(mcp.REVISIONS)}.")
        peer = self._peers.get(name)
        if peer is None:
            raise Refusal(
                404,
                f"There is no such session, or it has ended: by DELETE, or after {IDLE / 60:g} minutes without a request, or to make room. Send initialize anew.",
            )
        peer.stir()
        return name, peer

    async def _open(self) -> tuple[str, Peer]:
        while len(self._peers) + len(self._ending) >= SESSIONS:
            longest = max(self._peers, key=lambda name: self._peers[name].idle, default="")
            if not longest or self._peers[longest].idle < SPARE:
                raise Refusal(503, f"{SESSIONS} sessions are in use; end one", BUSY)
            await self._end(longest)
        name = secrets.token_urlsafe(32)
        peer = self._peers[name] = Peer(mcp.Sandbox(self._policy, self._cwd, self._tell))
        return name, peer

    async def _end(self, name: str) -> None:
        """End a session. Goes on to its end when it is cancelled."""
        peer = self._peers.pop(name, None)
        if peer is not None:
            task = asyncio.ensure_future(peer.close())
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
            await asyncio.wait([task])
            if error := task.exception():
                self._tell(f"a bug in stockade, please report it: the end of a session: {type(error).__name__}: {error}")

    async def _end_idle(self) -> None:
        while True:
            await asyncio.sleep(min(EVERY, IDLE))
            for name in [name for name, peer in self._peers.items() if peer.idle > IDLE]:
                self._tell(f"a session was ended after {IDLE:g} s without a request")
                await self._end(name)


async def _stream(call: asyncio.Task[None], answers: list[bytes]) -> AsyncIterator[bytes]:
    """What answers a call, and until then a sign of life. A client that leaves does not cancel the call (the specification says so), and its answer is lost."""
    while not call.done():
        yield b":\n\n"
        await asyncio.wait([call], timeout=BEAT)
    for line in answers:  # none where it was cancelled
        yield b"event: message\ndata: " + line + b"\n"


def _kinds(text: str) -> set[str]:
    """The media types that a header names, without what is said about each (RFC 9110, section 12.5.1)."""
    return {part.partition(";")[0].strip().lower() for part in text.split(",")}
