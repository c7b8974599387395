"""WebSockets and gRPC calls: what begins one, and that nothing else passes by a grant for one. Pure; never raises for anything a client sent.

What passes in them is not read, so a grant has to say that it is for them.
"""

from __future__ import annotations

import re

from stockade.core.values import Grant

_WEBSOCKET_HEADERS = frozenset(
    "upgrade sec-websocket-key sec-websocket-version sec-websocket-extensions sec-websocket-protocol".split()
)  # RFC 6455, section 11.3
# "gRPC over HTTP2", Requests. Metadata of one's own, "-bin" or not, goes up like any header, so a grant has to list it.
_GRPC_HEADERS = frozenset("grpc-timeout grpc-encoding grpc-accept-encoding grpc-previous-rpc-attempts".split())
_GRPC_METHOD = re.compile(r"/([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*/[A-Za-z_]\w*)", re.ASCII)
_GRPC_TYPES = ("application/grpc", "application/grpc+proto")


_SUBPROTOCOL = re.compile(r"(?!.*(key|bearer|auth|token|secret|passw))[!#$%&'*+.^_`|~0-9a-z-]{1,40}")


def doubtful(value: str) -> str:
    """The first subprotocol of a WebSocket that may carry a credential, as some servers take it there from browsers ("openai-insecure-api-key.sk-..."); "" if none does."""
    return next((ascii(one.strip()[:20])[1:-1] for one in value.lower().split(",") if not _SUBPROTOCOL.fullmatch(one.strip())), "")


def own_headers(grant: Grant) -> frozenset[str]:
    """The headers that the kind of a grant needs beyond the common ones."""
    return _WEBSOCKET_HEADERS if grant.websocket else _GRPC_HEADERS if grant.grpc else frozenset()


def refused(grant: Grant, method: str, headers: tuple[tuple[str, str], ...], length: int) -> tuple[str, str, str]:
    """(rule, reason, what a wider rule would also say) when a request is not of the kind that is granted; three empty strings if it is."""
    upgrades = [value.lower() for name, value in headers if name.lower() == "upgrade"]
    if grant.websocket and (upgrades != ["websocket"] or method != "GET" or length):
        return "websocket-only", "this is granted as a WebSocket only", ""
    if upgrades and not grant.websocket:
        wider = "websocket = true\n" if upgrades == ["websocket"] else ""
        return "upgrade-not-granted", "an upgrade of the connection is not granted here", wider
    if grant.grpc and not is_call(headers):
        return "grpc-only", f"this is granted as a gRPC call only, with the content-type {_GRPC_TYPES[0]}", ""
    return "", "", ""


def is_call(headers: tuple[tuple[str, str], ...]) -> bool:
    """Does a request with these headers say that it is a gRPC call, in exactly one way?"""
    named = [value for name, value in headers if name.lower() == "content-type"]
    return len(named) == 1 and named[0].lower() in _GRPC_TYPES


def called(method: str, path: str, headers: tuple[tuple[str, str], ...]) -> str:
    """The method that a gRPC call is of, as a rule names it ("package.Service/Method"); "" if the request is no call."""
    found = _GRPC_METHOD.fullmatch(path) if method == "POST" and is_call(headers) else None
    return found[1] if found else ""
