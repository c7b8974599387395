"""Serves the page on loopback until it is told to end (uvicorn)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn

from stockade.core.errors import StockadeError
from stockade.server.access import ADDRESS, Access
from stockade.server.page import Page, Source

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from starlette.types import Receive, Scope, Send

    from stockade.record.measures import Measures


class Server(uvicorn.Server):
    """Listens on `port` of 127.0.0.1 (0: one that is free). `say` is given each link (the first, then a new one whenever one was used up); nothing else learns it."""

    def __init__(self, source: Source, measures: Callable[[], Measures], say: Callable[[str], None], port: int = 0) -> None:
        self._source, self._measures, self._say = source, measures, say
        self._page: Page | None = None
        super().__init__(
            uvicorn.Config(
                self._called, host=ADDRESS, port=port, http="h11", ws="none", loop="asyncio", lifespan="off", interface="asgi3",
                log_config=None, log_level="critical", access_log=False, proxy_headers=False, server_header=False,
                limit_concurrency=64, timeout_graceful_shutdown=2, h11_max_incomplete_event_size=16 << 10,
            )
        )  # fmt: skip

    def run(self, sockets: Any = None) -> None:
        """Serve until Ctrl-C, SIGTERM or `should_exit`. Raises StockadeError (`web.port`)."""
        try:
            super().run(sockets)
        except SystemExit as error:  # its way of saying that it could not listen
            raise StockadeError(
                f"nothing can listen on {ADDRESS}:{self.config.port}",
                code="web.port",
                hint="Another program does, or it is one of the system's. Without --port one is chosen that is free.",
            ) from error

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        access = Access(self.servers[0].sockets[0].getsockname()[1])
        self._page = Page(self._source, self._measures, access, lambda: self._say(access.link()))
        self._say(access.link())

    async def shutdown(self, sockets: Any = None) -> None:
        if self._page is not None:
            self._page.close()
        await super().shutdown(sockets)

    async def _called(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._page is not None:  # a connection before the first link is hung up on
            await self._page(scope, receive, send)
