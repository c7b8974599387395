"""Somebody else's credential hidden in a body: in a form's fields, the parts of a multipart body, or the fields of JSON. Pure.

What is found: fields named like credentials, with text in them, in forms, in multipart bodies, and in the first two levels of JSON objects; headers that
carry credentials in the parts of a multipart body; a placeholder as the value of such a field, of any name. What is deeper, or in prose, is content: a
conversation may well hold a tool's argument named `token`. A body is what its type says, and also JSON if it begins like it.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import deque
from functools import lru_cache
from urllib.parse import unquote_plus

from stockade.checks.credentials import CREDENTIAL_HEADERS, CREDENTIAL_PARAMETERS
from stockade.core.values import PLACEHOLDER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

LARGEST = 32 << 20  # bytes that are read; the gate holds no more (gateway/config.py, MAX_BUFFERED)
_PARTS = 1000  # parts of a multipart body, and of those in it
_HEAD = 8192  # bytes of the headers of a part
_PARAMETERS = 100  # of a part's disposition
_MANY = 100_000  # fields of a form
# In JSON these mostly name other things: a session there is a conversation of the client's own (Codex sends one with every request).
_JSON_NAMES = CREDENTIAL_PARAMETERS - {"key", "sig", "signature", "sessionid"}
_ODD = "\u00df\u0130\u017f\u01f0\u1e96\u1e97\u1e98\u1e99\u1e9e\u212a\ufb00\ufb01\ufb02\ufb03\ufb04\ufb05\ufb06"  # what `_plain` makes ASCII letters of, not being any
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_STAND_IN = re.compile(rf"\s*+(?:\w++ )?+{PLACEHOLDER}[\w.-]*+\s*+", re.IGNORECASE)
_NO_LETTERS = bytes(number for number in range(128) if not chr(number).isalnum())
_EMPTY_LINE = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r|\n)")
_FOLDED = re.compile(r"(?>\r\n|\r|\n)[ \t]+")
_NAMED = re.compile(r"""(?<![\w*])name\s*=\s*(?:"([^"]*)"|([^\s;"]+))""", re.IGNORECASE)
_BOUNDARY = re.compile(r"""boundary=("?)([0-9A-Za-z'()+_,./:=? -]{1,70})\1\s*(?:;|$)""", re.IGNORECASE)


class Found(Exception):
    """Something that may not leave; the text says what."""


class _Pairs(list["tuple[str, Any]"]):
    """A JSON object with every field as it was written, so that a name that comes twice is seen twice."""


def kinds(headers: tuple[tuple[str, str], ...], start: bytes) -> frozenset[str]:
    """What a body that begins with `start` is, of "form", "multipart" and "json": it may be several, to readers that do not agree."""
    found = set()
    for name, value in headers:
        if name.lower() == "content-type":
            kind = value.partition(";")[0].strip().lower()
            if kind == "application/x-www-form-urlencoded":
                found.add("form")
            elif kind.startswith("multipart/"):
                found.add("multipart")
            elif kind.endswith(("/json", "+json")):
                found.add("json")
    if start.lstrip(b"\xef\xbb\xbf\xff\xfe\x00 \t\r\n")[:1] in (b"{", b"["):
        found.add("json")
    return frozenset(found)


def refused(headers: tuple[tuple[str, str], ...], length: int, start: bytes, body: bytes | None, spared: tuple[str, ...]) -> str:
    """Why a body may not leave, or "". `body` is None while it has not been read, `start` what has come of it.

    `spared` are names of fields that are no credentials here; with "*" nothing is searched.
    """
    if "*" in spared or not length:
        return ""
    found = kinds(headers, start if body is None else body)
    if not found:
        return ""
    if body is None:
        return f"a body of {length} bytes is more than the {LARGEST} that are searched for credentials" if length > LARGEST else ""
    try:
        data = _decoded(headers, body)
        names = frozenset(map(_plain, spared))
        if "json" in found:
            _json(data, names)
        if "form" in found:
            _form(data.decode("latin-1"), names)
        for name, value in headers:
            if name.lower() == "content-type" and value.lower().lstrip().startswith("multipart/"):
                _multipart(data, value, names)
    except Found as reason:
        return str(reason)
    return ""


def _plain(name: str) -> str:
    folded = name.casefold()
    return folded.encode().translate(None, _NO_LETTERS).decode() if folded.isascii() else "".join(filter(str.isalnum, folded))


def _field(name: str, value: str, spared: frozenset[str], names: frozenset[str], where: str) -> None:
    if _plain(name) in names - spared and value:
        raise Found(f"the {where} {name[:60]!a} looks like a credential, and only the gate adds credentials")
    if _STAND_IN.fullmatch(value):
        raise Found(f"the {where} {name[:60]!a} holds a placeholder, which is worth nothing there")


def _decoded(headers: tuple[tuple[str, str], ...], body: bytes) -> bytes:
    """The body without its compression. What cannot be undone here is refused: its fields cannot be read."""
    for name, value in headers:
        if name.lower() != "content-encoding" or value.strip().lower() in ("", "identity"):
            continue
        if value.strip().lower() not in ("gzip", "x-gzip", "deflate"):
            raise Found(f"the body is compressed ({value[:40]!a}), so that its fields cannot be read")
        try:
            opened = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, by its first bytes
            body = opened.decompress(body, LARGEST)
        except zlib.error:
            raise Found("the body is not compressed as it says, so that its fields cannot be read") from None
        if not opened.eof or opened.unused_data:
            raise Found("the compressed body is too large, or more than one, so that its fields cannot be read")
    return body


def _form(text: str, spared: frozenset[str]) -> None:
    if text.count("&") + text.count(";") > _MANY:
        raise Found(f"the form has more than {_MANY} fields")
    for part in dict.fromkeys([*text.split("&"), *(re.split("[&;]", text) if ";" in text else ())]):  # some servers separate by `;` too
        name, _, value = part.partition("=")
        _field(unquote_plus(name), unquote_plus(value), spared, CREDENTIAL_PARAMETERS, "form field")


def _json(data: bytes, spared: frozenset[str]) -> None:
    try:
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    for lines in (False, True):
        try:
            documents = _documents(dict.fromkeys(text.splitlines()) if lines else (text,))
        except (ValueError, RecursionError):
            continue
        for document in documents:
            for pairs in document if isinstance(document, list) and not isinstance(document, _Pairs) else (document,):
                for name, value in _two_levels(pairs):
                    _field(name, value, spared, _JSON_NAMES, "field")
        return
    _lenient(text, spared)  # no JSON: somebody more lenient may read it, and who knows how


def _documents(texts: Iterable[str]) -> list[Any]:
    """Those that hold a name like a credential's, at whatever depth, or a placeholder. Raises ValueError, RecursionError: one of them is no JSON."""
    found = []
    names: dict[str, Any] = {}
    read = json.JSONDecoder(object_pairs_hook=names.update).raw_decode  # keeps names, and no objects
    for text in filter(str.strip, texts):
        names.clear()
        if read(text := text.strip(" \t\r\n"))[1] != len(text):
            raise ValueError("something follows")
        if PLACEHOLDER in text or not _JSON_NAMES.isdisjoint(map(_plain, names)):
            found.append(json.loads(text, object_pairs_hook=_Pairs))
    return found


def _lenient(text: str, spared: frozenset[str]) -> None:
    """Finds a name like a credential's in front of a colon, as `name:`, `"name" :` or `'name':`."""
    text = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    for odd in _ODD:
        text = text.replace(odd, _plain(odd))
    if last := deque(_backwards(_JSON_NAMES - spared).finditer(text.lower()[::-1]), 1):
        name = text[len(text) - last[0].end(1) : len(text) - last[0].start(1)]
        raise Found(f"the body is not JSON, and names a field {name[:60]!a} that looks like a credential")


@lru_cache(16)
def _backwards(names: frozenset[str]) -> re.Pattern[str]:
    """Finds each of `names` in front of a colon, in lower-case text that is written backwards: there are few colons, and they are found fast.

    Linear in the text: what a match reads holds no second colon. Other than ASCII letters, names hold only what `_plain` removes.
    """

    def one_of(words: set[str]) -> str:
        ends = sorted({word[-1:] for word in words}, reverse=True)
        return "|".join(end and f"{end}[.$_-]*+(?:{one_of({word[:-1] for word in words if word[-1:] == end})})" for end in ends)

    return re.compile(rf""":\s*+["']?([.$_-]*+(?:{one_of({*names})}))(?![\w.$-])""")


def _two_levels(pairs: Any) -> Iterator[tuple[str, str]]:
    for name, value in pairs if isinstance(pairs, _Pairs) else ():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, _Pairs):
            yield from ((f"{inner}", text) for inner, text in value if isinstance(text, str))


def _multipart(data: bytes, content_type: str, spared: frozenset[str]) -> None:
    """RFC 2046, section 5.1, read as leniently as any server does: a delimiter counts wherever it begins a line."""
    count, found = 0, [(data, content_type, 0)]
    while found:
        data, content_type, depth = found.pop()
        named = _BOUNDARY.findall(content_type)
        if len(named) != 1 or content_type.lower().count("boundary") != 1 or depth > 3:
            raise Found("the parts of the body cannot be read in one way")
        delimiter = re.escape(b"--" + named[0][1].encode())
        # It is found first, which is fast, and then what is before it is looked at.
        pieces = re.split(delimiter + rb"(?<![^\r\n]" + delimiter + rb")", data, maxsplit=_PARTS)
        if (count := count + len(pieces)) > _PARTS:
            raise Found(f"the body has more than {_PARTS} parts")
        for piece in pieces[1:]:
            end = _EMPTY_LINE.search(piece, 0, _HEAD)
            if end is None and len(piece) > _HEAD:
                raise Found(f"a part's headers are longer than {_HEAD} bytes")
            head, content = (piece[: end.start()], piece[end.end() :]) if end else (piece, b"")
            seen: set[str] = set()
            for line in re.split(r"[\r\n]+", _FOLDED.sub(" ", head.decode("latin-1"))):
                name, value = line.partition(":")[0].strip(" \t-").lower(), line.partition(":")[2].strip()
                if name in CREDENTIAL_HEADERS:
                    raise Found(f"a part's header {name[:60]!a} carries a credential, and only the gate adds credentials")
                if name in seen:
                    raise Found(f"a part has more than one {name}, and cannot be read in one way")
                seen |= {name} & {"content-disposition", "content-type"}
                if name == "content-disposition":
                    for field in _names(value):
                        # Where the content begins, readers disagree after a line that is no header, so that it may be what looks empty here.
                        _field(field, content[:4096].strip(b"\r\n").decode("latin-1") or "?", spared, CREDENTIAL_PARAMETERS, "field")
                elif name == "content-type" and value.lower().startswith("multipart/"):
                    found.append((content, value, depth + 1))


def _names(disposition: str) -> list[str]:
    """Every name that a Content-Disposition gives its part, in whatever form (RFC 7578, section 4.2; RFC 2231)."""
    from email.message import Message  # 26 ms that few sessions need
    from email.utils import collapse_rfc2231_value

    if disposition.count(";") > _PARAMETERS:  # which `get_params` reads in quadratic time
        raise Found(f"a part's disposition has more than {_PARAMETERS} parameters")
    part = Message()
    part["content-disposition"] = disposition
    try:
        params = part.get_params([], header="content-disposition")
        names = [collapse_rfc2231_value(value) for name, value in params if name.lower().partition("*")[0] == "name"]
    except ValueError:  # a number or a character set that Python does not take
        raise Found("a part's name cannot be read") from None
    return names + [
        match[1] or match[2] or "" for match in _NAMED.finditer(disposition)
    ]  # also where something follows that is no parameter
