"""The questions that the engine would ask the brain about a request, without an engine: so that one can say beforehand what the gate will say.

What Envoy does to a request before it asks is a model here, by what was seen of it (tests/gateway/test_foreseen.py compares the two). Clients are taken
to use the proxy; a transparent connection is asked about in the same words.
"""

from __future__ import annotations

import re

from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.gateway.config import FACTS, SHOWN_FIRST
from stockade.gateway.flow import Asked

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")  # RFC 9110, section 5.6.2
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\U0010ffff]*")
_TARGET = re.compile(r'[!"$-~]*')  # visible ASCII without "#"
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_CALL = re.compile(r"application/grpc(\+.*)?")  # what the engine takes for a gRPC call, and asks about without its body
_REFUSED = re.compile(r"%(2f|5c|00)", re.IGNORECASE)
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPED = re.compile(r'[{}|^"<>`]')
# Those that Envoy's parser of HTTP/1.1 knows, and the brain's; CONNECT is for tunnels.
METHODS = frozenset(
    """ACL BIND CHECKOUT COPY DELETE GET HEAD LINK LOCK MERGE MKACTIVITY MKCALENDAR MKCOL MOVE NOTIFY OPTIONS PATCH POST PROPFIND PROPPATCH
    PURGE PUT REBIND REPORT SEARCH SOURCE SUBSCRIBE TRACE UNBIND UNLINK UNLOCK UNSUBSCRIBE""".split()
)
# What a connection header does not take away, whatever it names: the message needs these, or the engine looks at them itself.
_NEVER_HOP = frozenset({"host", "content-length", "transfer-encoding", "upgrade", "close", "keep-alive"})
_FRAMING = ("content-length", "transfer-encoding")


class Unasked(ValueError):
    """A request that the engine answers itself, with `status`, and asks nobody about. The text says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@frozen
class Sent:
    """A request as a client would write it. `authority` is what stands between `://` and the path, `target` the path with its query.

    `length` is the body's size in bytes, `body` the body (None = only its size is known).
    """

    method: str
    scheme: str
    authority: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    length: int = 0
    body: bytes | None = b""


def sent(method: str, url: str, headers: tuple[tuple[str, str], ...] = (), *, length: int = 0, body: bytes | None = b"") -> Sent:
    """The request for a URL, its fragment left out as clients do; the method GRPC stands for a gRPC call. Raises StockadeError: `gate.url` for what is no http or https URL,
    `gate.header` for a header that says how long the body is."""
    scheme, mark, rest = url.partition("://")
    rest = rest.partition("#")[0]
    end = min((rest.index(one) for one in "/?" if one in rest), default=len(rest))
    authority, target = rest[:end], rest[end:]
    scheme = scheme.lower()
    if not mark or scheme not in ("https", "http", "tcp") or not authority:
        hint = "Only http and https pass the gate, and raw TCP as tcp://host:port."
        raise StockadeError(f"{url[:200]!a} is not the URL of a request", code="gate.url", hint=hint)
    if scheme == "tcp":
        if target.strip("/") or headers or length or body or ":" not in authority:
            message = "raw TCP is a name and a port, and has no path, headers or body"
            raise StockadeError(message, code="gate.url", hint="Write tcp://host:port.")
        return Sent("TCP", scheme, authority, "")
    if framing := [name for name, _ in headers if name.lower() in _FRAMING]:
        raise StockadeError(f"{framing[0]} is written by the client itself", code="gate.header", hint="Give the body, or how long it is.")
    target = target if target.startswith("/") else f"/{target}"
    if method == "GRPC":
        method, headers = "POST", (("content-type", "application/grpc"), *headers)
    return Sent(method, scheme, authority, target, headers, length if body is None else len(body), body)


def connect(request: Sent, session: str) -> Asked:
    """What is asked when the client wants a tunnel to where the request goes."""
    return Asked("GET", "/", (*_facts(session, method="CONNECT", way="proxy"), ("host", _with_port(request))))


def questions(request: Sent, session: str) -> tuple[Asked, Asked]:
    """What is asked about the request itself, first and, when its body has to be read, again. With https it comes out of a tunnel. Raises Unasked."""
    tunnel = request.scheme == "https"
    call = any(name.lower() == "content-type" and _CALL.fullmatch(value) for name, value in request.headers)
    facts = _facts(
        session,
        method=request.method,
        way="tunnel" if tunnel else "proxy",
        scheme=request.scheme,
        connect=f"CONNECT {_with_port(request)}" if tunnel else "-",
        sni=re.sub(r":\d*$", "", request.authority) if tunnel else "-",
        length=str(request.length) if request.length else "-",
        body="unread" if call and not request.length else "shown",
    )
    if request.method not in METHODS:
        raise Unasked(400, f"{request.method[:60]!a} is no method that the engine knows (they are written in capitals)")
    path, mark, query = request.target.partition("?")
    if not _TARGET.fullmatch(request.target):
        raise Unasked(400, "the URL holds a character that is not visible ASCII")
    headers = (*facts, *_headers(request))
    target = engine_path(path) + mark + query
    body = b"" if call and not request.length else request.body or b""
    return Asked(request.method, target, headers, body[:SHOWN_FIRST]), Asked(request.method, target, headers, body, whole=True)


def engine_path(path: str) -> str:
    """`path` as Envoy makes it with `normalize_path` and `merge_slashes`: dot segments resolved (RFC 3986, section 5.2.4; also behind `;`), needless escapes
    undone, some characters escaped, empty segments dropped. Raises Unasked for escaped slashes."""
    if found := _REFUSED.search(path):
        raise Unasked(400, f"the path holds the escape {found[0]}")
    kept: list[str] = []
    *segments, last = path.replace("\\", "/").split("/")[1:]
    for segment in segments:
        dots = _dots(segment)
        if dots == "..":
            del kept[-1:]
        elif not dots:
            kept.append(segment)
    if _dots(last) == "..":
        del kept[-1:]
    text = "/" + "".join(f"{segment}/" for segment in kept) + ("" if _dots(last) else last)
    if text.strip("/"):
        text = re.sub("//+", "/", text)
    elif len(text) > 1:
        text = "//"
    text = _ESCAPE.sub(lambda match: _unescaped(match), text)
    return _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", text)


def _dots(segment: str) -> str:
    plain = re.sub("%2e", ".", segment, flags=re.IGNORECASE)
    head = segment.partition(";")[0]
    return plain if plain in (".", "..") else head if head in (".", "..") else ""


def _unescaped(match: re.Match[str]) -> str:
    letter = chr(int(match[1], 16))
    return letter if letter in _UNRESERVED else match[0]


def _headers(request: Sent) -> tuple[tuple[str, str], ...]:
    """The client's headers, names in lower case, without those that the engine drops: its own, those with underscores, and those of one connection (RFC
    9110, section 7.6.1)."""
    named = [(name.lower(), value.strip(" \t")) for name, value in request.headers]
    for name, value in named:
        if not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise Unasked(400, f"the header {name[:60]!a} holds a character that may not stand in one")
    hosts = [value for name, value in named if name == "host"] if request.scheme == "https" else []  # plain HTTP names it in the target
    if len(hosts) > 1:
        raise Unasked(400, "there is more than one host header")
    tokens = {token.strip().lower() for name, value in named if name == "connection" for token in value.split(",")}
    upgrades = [value.lower() for name, value in named if name == "upgrade"]
    dropped = {"host", "x-forwarded-proto", *FACTS, *tokens - _NEVER_HOP}
    if upgrades and "upgrade" in tokens and upgrades != ["h2c"]:
        if upgrades != ["websocket"]:
            raise Unasked(403, f"an upgrade to {', '.join(upgrades)[:60]!a} is never granted")
    else:
        dropped |= {"upgrade"}  # without its connection header, or to HTTP/2 in the clear, it goes no further
    kept = [(name, value) for name, value in named if "_" not in name and name not in dropped and not name.startswith("x-envoy-")]
    return ("host", (hosts or [request.authority])[0]), *kept


def _with_port(request: Sent) -> str:
    """What a client writes after CONNECT: always with a port."""
    has_port = ":" in request.authority.rpartition("]")[2]
    return request.authority if has_port else f"{request.authority}:443"


def _facts(session: str, **known: str) -> tuple[tuple[str, str], ...]:
    known["session"] = session
    return tuple((name, known.get(name.removeprefix("x-stockade-"), "-")) for name in FACTS)
