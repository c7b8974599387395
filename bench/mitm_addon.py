"""For mitmdump: what the gate checks, as far as an addon of a few lines does. Host, method and path, and one header is exchanged."""

import os
import socket
from typing import Any

from mitmproxy import http

HOST, PLACEHOLDER, KEY = os.environ["BENCH_HOST"], os.environ["BENCH_PLACEHOLDER"], os.environ["BENCH_KEY"]
_resolve = socket.getaddrinfo


def _loopback(host: str, *rest: Any, **named: Any) -> Any:
    """The name of the server is known to no resolver."""
    return _resolve("127.0.0.1" if host == HOST else host, *rest, **named)


socket.getaddrinfo = _loopback  # type: ignore[assignment]  # typeshed lists each case


def requestheaders(flow: http.HTTPFlow) -> None:
    request = flow.request
    allowed = request.pretty_host == HOST and request.method in ("GET", "PUT") and request.path.startswith("/v1/")
    if not allowed or request.headers.get("x-api-key") != PLACEHOLDER:
        flow.response = http.Response.make(403, b"refused\n")
        return
    request.headers["x-api-key"] = KEY
    request.stream = True


def responseheaders(flow: http.HTTPFlow) -> None:
    assert flow.response
    flow.response.stream = True
