"""What listens on loopback (uvicorn), for as long as it is told to: how many may be connected, and how long one may take to say what it wants."""

from __future__ import annotations

from typing import TYPE_CHECKING

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stockade.core.errors import StockadeError

if TYPE_CHECKING:
    import asyncio
    from typing import Any

    from starlette.types import Receive, Scope, Send

PATIENCE = 10.0  # seconds in which a request has to be there up to the end of its headers
LARGEST_HEADERS = 16 << 10  # bytes


class _Connection(H11Protocol):
    """uvicorn's, with bounds that it lacks: whoever is connected and says nothing is hung up on, and so is whoever is one too many."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as its base does
        super().connection_made(transport)
        if self.limit_concurrency is not None and len(self.connections) > self.limit_concurrency:
            transport.abort()
        else:
            self._await_request()

    def on_response_complete(self) -> None:
        self._await_request()
        super().on_response_complete()

    def _await_request(self) -> None:
        self.loop.call_later(PATIENCE, self._late, self.cycle)

    def _late(self, before: object) -> None:
        if self.cycle is before:  # no request has come since
            self.transport.abort()


class Listener(uvicorn.Server):
    """Listens on `port` (0: one that is free) of `address`, for at most `most` connections. A subclass says what is answered, in `called`."""

    def __init__(self, address: str, port: int, most: int) -> None:
        super().__init__(
            uvicorn.Config(
                self.called, host=address, port=port, http=_Connection, ws="none", loop="asyncio", lifespan="off", interface="asgi3",
                log_config=None, log_level="critical", access_log=False, proxy_headers=False, server_header=False,
                limit_concurrency=most, timeout_graceful_shutdown=2, h11_max_incomplete_event_size=LARGEST_HEADERS,
            )
        )  # fmt: skip

    async def called(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI)."""
        raise NotImplementedError

    @property
    def port(self) -> int:
        """The port, once it listens."""
        return int(self.servers[0].sockets[0].getsockname()[1])

    def run(self, sockets: Any = None) -> None:
        """Serve until Ctrl-C, SIGTERM or `should_exit`. Raises StockadeError (`web.port`)."""
        try:
            super().run(sockets)
        except SystemExit as error:  # its way of saying that it could not listen
            raise StockadeError(
                f"nothing can listen on {self.config.host}:{self.config.port}",
                code="web.port",
                hint="Another program does, or it is one of the system's. Where no port is given, one is chosen that is free.",
            ) from error
