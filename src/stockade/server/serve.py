"""Serves the page on loopback until it is told to end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.server.access import ADDRESS, Access
from stockade.server.listening import Listener
from stockade.server.page import Page, Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from starlette.types import Receive, Scope, Send

    from stockade.record.measures import Measures

CONNECTIONS = 64


class Server(Listener):
    """Listens on `port` of 127.0.0.1 (0: one that is free). `say` is given each link (the first, then a new one whenever one was used up); nothing else learns it."""

    def __init__(self, source: Source, measures: Callable[[], Measures], say: Callable[[str], None], port: int = 0) -> None:
        self._source, self._measures, self._say = source, measures, say
        self._page: Page | None = None
        super().__init__(ADDRESS, port, CONNECTIONS)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        access = Access(self.port)
        self._page = Page(self._source, self._measures, access, lambda: self._say(access.link()))
        self._say(access.link())

    async def shutdown(self, sockets: Any = None) -> None:
        if self._page is not None:
            self._page.close()
        await super().shutdown(sockets)

    async def called(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._page is not None:  # a connection before the first link is hung up on
            await self._page(scope, receive, send)
