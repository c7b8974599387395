"""The page on which a developer answers what running sessions ask (`stockade approvals --web`): its requests, and how they reach the sessions.

INVARIANT: an answer goes to the session with the digest of what the browser showed, and counts there or not. Nothing is decided here.
"""

from __future__ import annotations

import asyncio
import json
import time
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Protocol

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from stockade.core.asks import lesson, safe
from stockade.core.errors import StockadeError
from stockade.core.frozen import plain
from stockade.server.access import HEADERS, Access, Refused, asking

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import Message, Receive, Scope, Send

    from stockade.record.measures import Measures
    from stockade.session.inbox import Waiting

EVERY = 0.3  # seconds between two looks at what waits
BEAT = 10.0  # seconds after which a stream says that it is still there
STREAMS = 8  # windows that look on at once
_STATIC = {"": ("page.html", "text/html"), "page.css": ("page.css", "text/css"), "page.js": ("page.js", "text/javascript")}


class Source(Protocol):
    """Where questions come from and answers go: session/inbox.py, in whose words it is. Each call may block; each raises StockadeError."""

    def waiting(self) -> list[Waiting]: ...
    def answer(self, one: Waiting, asked: dict[str, Any], allow: bool, *, channel: str, scope: str = "once") -> dict[str, Any]: ...
    def revoke(self, one: Waiting, key: str) -> None: ...


class Page:
    """The application (ASGI). `entered` is called when a link was used up. `close` ends the streams, which would never end by themselves."""

    def __init__(self, source: Source, measures: Callable[[], Measures], access: Access, entered: Callable[[], None]) -> None:
        self._source, self._measures, self._access, self._entered = source, measures, access, entered
        self._seen: dict[str, Waiting] = {}  # by session: an answer goes only where a question was seen
        self._streams = 0
        self._closed = asyncio.Event()
        routes = [
            *(Route(f"/{name}", self._file, methods=["GET"], name=name or "page") for name in _STATIC),
            Route("/events", self._events, methods=["GET"]),
            Route("/stats", self._stats, methods=["GET"]),
            Route("/answer", self._answer, methods=["POST"]),
            Route("/revoke", self._revoke, methods=["POST"]),
        ]
        self._app = Starlette(routes=[Mount(f"/{access.room}", routes=routes)], exception_handlers={StockadeError: _failed})

    def close(self) -> None:
        """End all streams."""
        self._closed.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        try:
            cookie = self._access.enter(asking(scope))
        except Refused as error:
            await PlainTextResponse(f"Refused. {error}\n", 403)(scope, receive, guarded)
            return
        if cookie:
            self._entered()
            there = {"location": f"/{self._access.room}/", "set-cookie": cookie}
            await Response(status_code=303, headers=there)(scope, receive, guarded)
            return
        await self._app(scope, receive, guarded)

    async def _file(self, request: Request) -> Response:
        name, kind = _STATIC[request.url.path.rpartition("/")[2]]
        return Response(files(__package__).joinpath("static", name).read_bytes(), media_type=kind)

    async def _events(self, _: Request) -> Response:
        """What waits, as server-sent events (HTML Living Standard, section 9.2): all of it each time that it changes."""
        if self._streams >= STREAMS:
            return JSONResponse({"error": "web.windows", "message": "too many windows look on", "hint": "Close some."}, 503)
        return StreamingResponse(self._changes(), media_type="text/event-stream")

    async def _changes(self) -> AsyncIterator[str]:
        self._streams += 1
        try:
            last, told = None, 0.0
            while not self._closed.is_set():
                state = await run_in_threadpool(self._look)
                if state != last:
                    last, told = state, time.monotonic()
                    yield f"data: {json.dumps({'now': time.time(), **state})}\n\n"
                elif time.monotonic() - told > BEAT:
                    told = time.monotonic()
                    yield "event: beat\ndata:\n\n"
                try:
                    await asyncio.wait_for(self._closed.wait(), EVERY)
                except TimeoutError:
                    continue
        finally:
            self._streams -= 1

    def _look(self) -> dict[str, Any]:
        try:
            found = self._source.waiting()
        except (StockadeError, OSError) as error:
            return {"trouble": safe(str(error)), "sessions": []}
        self._seen |= {one.session: one for one in found}
        return {"trouble": "", "sessions": [_shown(one) for one in found]}

    async def _answer(self, request: Request) -> Response:
        match await _body(request):
            case {
                "session": str(session),
                "ask": int(number),
                "digest": str(digest),
                "allow": bool(allow),
                "scope": str(scope),
                **rest,
            } if not rest:
                asked = {"number": number, "digest": digest}
                done = await run_in_threadpool(self._source.answer, self._one(session), asked, allow, channel="web", scope=scope)
            case _:
                raise StockadeError("this is no answer", code="web.request")
        told = lesson(done["asked"]["trap"], done["caught"]) if done["outcome"] == "canary" else ""
        failed = {"failed": f"Allowed, and not done: {safe(done['failed'])}"} if done["failed"] else {}
        return JSONResponse({"allow": done["allow"], "outcome": done["outcome"], "scope": done["scope"], "told": safe(told), **failed})

    async def _revoke(self, request: Request) -> Response:
        match await _body(request):
            case {"session": str(session), "key": str(key), **rest} if not rest:
                await run_in_threadpool(self._source.revoke, self._one(session), key)
            case _:
                raise StockadeError("this takes nothing back", code="web.request")
        return JSONResponse({})

    async def _stats(self, _: Request) -> Response:
        return JSONResponse(plain(await run_in_threadpool(self._measures)))

    def _one(self, session: str) -> Waiting:
        if session not in self._seen:
            raise StockadeError("this session has nothing that waits", code="approval.gone", hint="It was answered already, or has ended.")
        return self._seen[session]


def _shown(one: Waiting) -> dict[str, Any]:
    """A session's questions for the page: texts as printable ASCII, beside the keys that an answer names."""
    asks = [
        {name: safe(value) if isinstance(value, str) and name != "key" else value for name, value in asked.items()}
        | {"place": safe(asked["key"]), "detail": [safe(line) for line in asked["detail"]]}
        for asked in one.asks
    ]
    standing = [{"key": key, "place": safe(key)} for key in one.standing]
    return {"id": one.session, "workspace": safe(one.workspace), "asks": asks, "standing": standing}


async def _body(request: Request) -> object:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise StockadeError("this is not JSON", code="web.request") from error


async def _failed(_: Request, error: Exception) -> Response:
    """What a session said no to, or a request that is none of ours: nothing has happened."""
    assert isinstance(error, StockadeError)
    status = 400 if error.code == "web.request" else 409
    return JSONResponse({name: safe(str(text)) for name, text in error.plain().items()}, status)
