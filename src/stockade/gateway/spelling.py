"""One spelling of a request, for an engine that passes on what it read: what Envoy does before it asks (gateway/config.py), as a pure function.

INVARIANT: what `settle` returns is what is decided on, and byte for byte what is sent. What Envoy would refuse is refused; what it would drop or resolve
is dropped or resolved here, before anybody decides.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stockade.core.frozen import frozen
from stockade.gateway.config import FACTS, MAX_HEADERS_KIB, READ, UPSTREAM

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_HEADERS = 100
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_TARGET = re.compile(rb'/[!"$-~]*')  # visible ASCII without "#": a fragment is nobody's business but the client's
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110, section 5.5
_LENGTH = re.compile(r"0|[1-9][0-9]{0,14}")
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_SLASH = re.compile(r"%2f|%5c|\\", re.IGNORECASE)
# Between two ends of one connection (RFC 9110, section 7.6.1); `te` and `trailer` too, since trailers are never sent on, and `expect`, which the gate answers.
_HOP = frozenset({"connection", "expect", "keep-alive", "proxy-connection", "te", "trailer", "upgrade", "http2-settings"})
_OURS = frozenset({*FACTS, UPSTREAM, READ, "x-forwarded-proto"})


class Malformed(ValueError):
    """A request that is answered with `status` and goes nowhere. The text is a sentence."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@frozen
class Settled:
    """A request in one spelling. Names of headers are lower case and `host` stands once, first; `content-length` and `transfer-encoding` are the framing's and
    do not stand here but in `framing`. `length` is what was announced, None = the body comes in chunks. `upgrade`: a WebSocket is asked for.
    """

    method: str
    target: str
    scheme: str
    headers: tuple[tuple[str, str], ...]
    framing: tuple[tuple[str, str], ...]
    upgrade: bool

    @property
    def length(self) -> int | None:
        """Bytes of the body, None = it comes in chunks."""
        name, value = self.framing[0] if self.framing else ("", "0")
        return None if name == "transfer-encoding" else int(value)


def settle(
    version: bytes,
    method: bytes,
    target: bytes,
    *,
    scheme: bytes,
    authority: bytes,
    headers: Iterable[tuple[bytes, bytes]],
    tls: bool,
) -> Settled:
    """`scheme` and `authority` come from a target in absolute form (b"" in origin form), `target` is its path and query. Raises Malformed."""
    if version != b"HTTP/1.1":
        raise Malformed(426, "this gate speaks HTTP/1.1")
    if not _TOKEN.fullmatch(method):
        raise Malformed(400, "the method is not a token")
    if not _TARGET.fullmatch(target):
        raise Malformed(400, "the target holds a character that may not stand in one, or does not start with /")
    path, mark, query = target.decode("ascii").partition("?")
    fields = _fields(list(headers))
    judged = _judged(fields, authority.decode("latin-1"))
    return Settled(
        method.decode("ascii"),
        normal_path(path) + mark + query,
        scheme.decode("latin-1") or ("https" if tls else "http"),
        judged,
        _framing(fields),
        [value.lower() for name, value in judged if name == "upgrade"] == ["websocket"],
    )


def normal_path(path: str) -> str:
    """Needless escapes and dot segments resolved (RFC 3986, sections 6.2.2.2 and 5.2.4), empty segments dropped. Idempotent. Raises Malformed for escaped slashes."""
    if _SLASH.search(path):
        raise Malformed(400, "the path holds an escaped slash or a backslash, which servers read in different ways")
    path = _ESCAPE.sub(_unescape, path)
    kept: list[str] = []
    *segments, last = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment not in ("", "."):
            kept.append(segment)
    if last == "..":
        del kept[-1:]
    return "/" + "".join(f"{segment}/" for segment in kept) + ("" if last in (".", "..") else last)


def _unescape(match: re.Match[str]) -> str:
    letter = chr(int(match[1], 16))
    return letter if letter in _UNRESERVED else match[0]


def _fields(headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    """Well-formed headers as text, without those that speak for the gate and those whose name could be read as another's."""
    if len(headers) > _MOST_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADERS_KIB << 10:
        raise Malformed(431, "there are too many headers, or they are too long")
    for name, value in headers:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Malformed(400, "a header holds a character that may not stand in one")
    named = [(name.decode("ascii").lower(), value.decode("latin-1").strip(" \t")) for name, value in headers]
    return [(name, value) for name, value in named if "_" not in name and name not in _OURS and not name.startswith("x-envoy-")]


def _judged(fields: list[tuple[str, str]], authority: str) -> tuple[tuple[str, str], ...]:
    """What is decided on and sent: the host once and first, nothing that concerns only this connection. A wish to upgrade stays, but one to HTTP/2."""
    tokens = {token.strip().lower() for name, value in fields if name == "connection" for token in value.split(",")}
    if tokens & {"host", "content-length", "transfer-encoding", "content-encoding", "content-type"}:
        raise Malformed(400, "the connection header names a header that the message needs")
    if any(name == "expect" and value.lower() != "100-continue" for name, value in fields):
        raise Malformed(417, "only 100-continue can be expected")
    hosts = [value for name, value in fields if name == "host"]
    if len(hosts) > 1 or not (authority or hosts):
        raise Malformed(400, "there is not exactly one host header")
    host = re.sub(r"\.(?=:\d*$|$)", "", authority or hosts[0])
    upgrades = [(name, value) for name, value in fields if name == "upgrade" and "upgrade" in tokens and value.lower() != "h2c"]
    gone = _HOP | tokens | {"host", "content-length", "transfer-encoding"}
    rest = [(name, value) for name, value in fields if name not in gone]
    return (("host", host), *rest, *upgrades, *([("connection", "Upgrade")] if upgrades else []))


def _framing(fields: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """What the message says of its body (RFC 9112, section 6.3), read in the strictest way."""
    found = [(name, value.lower()) for name, value in fields if name in ("content-length", "transfer-encoding")]
    if len(found) > 1:
        raise Malformed(400, "the length of the body can be read in two ways")
    for name, value in found:
        if not (value == "chunked" if name == "transfer-encoding" else _LENGTH.fullmatch(value)):
            raise Malformed(400, f"the {name} is not one that every reader reads alike")
    return tuple(found)
