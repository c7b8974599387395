"""One spelling for hosts, paths and query names. What could be read in two ways is refused, never guessed.

The gate matches the normal form and sends the original; that is sound only because both mean the same to every reader that follows RFC 3986, and because
spellings on which readers differ (`%2f`, `..`, `//`, `\\`, path parameters on dots, IP addresses in disguise, non-ASCII names) do not pass.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PATH = frozenset(b"/!$&'()*+,;=:@%") | _UNRESERVED  # RFC 3986, section 3.3: pchar and "/"
_QUERY = frozenset(b'?[]|^`{}"<>\\') | _PATH  # wider than RFC 3986, section 3.4: clients send these raw and nothing is decided on them
_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})?")
# Escapes on which readers differ: separators, also of parameters, dots, the percent sign itself, and control characters.
_AMBIGUOUS = frozenset(b"/\\%.;") | frozenset(range(0x20)) | {0x7F}


class Ambiguous(ValueError):
    """A spelling that we do not pass. `rule` is a closed code, `reason` a sentence for people."""

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(reason)
        self.rule, self.reason = rule, reason


@lru_cache(1024)  # every request names its host, and so does the tunnel that it comes in
def normalise_host(text: str) -> str:
    """Lower case, without one trailing dot. Idempotent.

    Raises Ambiguous: `bare-ip` for addresses in any notation (WHATWG URL, "ends in a number"), `bad-host` for anything that is not an ASCII
    host name (RFC 1123; international names must come in their xn-- form).
    """
    name = text.lower().removesuffix(".") if text.isascii() else ""
    if not name or len(name) > 253:
        raise Ambiguous("bad-host", f"{_show(text)} is not an ASCII host name (international names: use the xn-- form)")
    labels = name.split(".")
    if name.startswith("[") or ":" in name or _NUMBER.fullmatch(labels[-1]):
        raise Ambiguous("bare-ip", f"{_show(text)} is an address; grants are for names, and only the gate resolves them")
    if not all(_LABEL.fullmatch(label) for label in labels):
        raise Ambiguous("bad-host", f"{_show(text)} is not a host name")
    return name


def is_name(text: str) -> bool:
    """Whether this is a host name in a spelling that is read in one way."""
    try:
        return bool(normalise_host(text))
    except Ambiguous:
        return False


def normalise_path(text: str) -> str:
    """Escapes of unreserved characters undone, other escapes in upper case (RFC 3986, section 6.2.2). Idempotent. Takes no query.

    Raises Ambiguous (`bad-path`) for dot segments, empty segments (except the last), segments of parameters alone, escaped `/ \\ % . ;`, control
    characters, and anything that may not stand in a path.
    """
    if not text.startswith("/") or len(text) > 8192:
        raise Ambiguous("bad-path", "the path does not start with / or is longer than 8192 characters")
    if not text.isascii() or not _PATH.issuperset(text.encode()):
        raise Ambiguous("bad-path", "the path holds a character that may not stand in a path (RFC 3986, section 3.3)")
    path = _ESCAPE.sub(_escape, text)
    segments = path.split("/")[1:]
    if any(segment == "" for segment in segments[:-1]):
        raise Ambiguous("bad-path", "the path holds an empty segment (//)")
    if any(segment.split(";")[0] in (".", "..") for segment in segments):
        raise Ambiguous("bad-path", "the path holds a dot segment")
    if any(segment.startswith(";") for segment in segments):
        raise Ambiguous("bad-path", "the path holds a segment of parameters alone, which some servers drop")
    return path


def without_parameters(path: str) -> str:
    """A normal path as servers read it that drop path parameters (RFC 3986, section 3.3; Java's do): `/a;v=1/b` is `/a/b` to them."""
    return "/".join(segment.partition(";")[0] for segment in path.split("/"))


def _escape(match: re.Match[str]) -> str:
    digits = match[1]
    if digits is None:
        raise Ambiguous("bad-path", "the path holds a percent sign that is not an escape")
    byte = int(digits, 16)
    if byte in _AMBIGUOUS:
        raise Ambiguous("bad-path", f"the path holds the escape %{digits.upper()}, which servers read in different ways")
    return chr(byte) if byte in _UNRESERVED else f"%{digits.upper()}"


def query_names(query: str) -> tuple[str, ...]:
    """Names of the parameters of a query string (without `?`), unescaped, lower case, letters and digits only (`X-Api_Key` is `xapikey`).

    Raises Ambiguous (`bad-query`) for characters that may not stand in a URL and for broken escapes.
    """
    if not query.isascii() or not _QUERY.issuperset(query.encode()):
        raise Ambiguous("bad-query", "the query holds a character that may not stand in a URL")
    if any(match[1] is None for match in _ESCAPE.finditer(query)):
        raise Ambiguous("bad-query", "the query holds a percent sign that is not an escape")
    names = []
    for part in re.split("[&;?]", query):
        name = unquote_to_bytes(part.split("=")[0].replace("+", " ")).decode("utf-8", "replace").casefold()
        names.append("".join(letter for letter in name if letter.isalnum()))
    return tuple(names)


def authority(text: str, default_port: int) -> tuple[str, int]:
    """`host[:port]` as (normal host, port). Raises Ambiguous (`bad-host`, `bare-ip`), also for userinfo, which would be a credential."""
    if "@" in text:
        raise Ambiguous("userinfo", "the URL carries a user name or password")
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return normalise_host(text), default_port
    if host.startswith("[") or ":" in host:
        raise Ambiguous("bare-ip", f"{_show(text)} is an address; grants are for names, and only the gate resolves them")
    if not (port.isascii() and port.isdigit()) or port.startswith("0") or len(port) > 5 or int(port) > 65535:
        raise Ambiguous("bad-host", f"{_show(text)} does not end in a port number")
    return normalise_host(host), int(port)


def _show(text: str) -> str:
    return ascii(text[:80])
