"""Somebody else's credential hidden in a body: in a form's fields, the parts of a multipart body, or the fields of JSON. Pure.

What is found: fields named like credentials, with text in them, in forms, in multipart bodies, and in the first two levels of JSON objects; headers that
carry credentials in the parts of a multipart body; a placeholder as the value of such a field, of any name. What is deeper, or in prose, is content: a
conversation may well hold a tool's argument named `token`. A body is what its type says, and also JSON if it begins like it.
"""

from __future__ import annotations

import json
import re
import zlib
from urllib.parse import unquote_plus

from stockade.checks.credentials import CREDENTIAL_HEADERS, CREDENTIAL_PARAMETERS
from stockade.core.values import PLACEHOLDER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

LARGEST = 32 << 20  # bytes that are read; the gate holds no more (gateway/config.py, MAX_BUFFERED)
_PARTS = 1000  # parts of a multipart body
_MANY = 100_000  # fields of a form
# In JSON these mostly name other things: a session there is a conversation of the client's own (Codex sends one with every request).
_JSON_NAMES = CREDENTIAL_PARAMETERS - {"key", "sig", "signature", "sessionid"}
_STRING = re.compile(r'"((?:[^"\\]++|\\.)*+)(?:"(\s*+:)?|$)', re.DOTALL)  # in valid JSON, and whether it is a name; linear in the text
_WORD = re.compile(r"""(?<![\w.$-])([\w.$-]++)["']?\s*+:""")  # begins where a word does: linear in the text
_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")
_STAND_IN = re.compile(rf"\s*(?:\w+ )?{PLACEHOLDER}[\w.-]*\s*", re.IGNORECASE)
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
        for value in (
            value for name, value in headers if name.lower() == "content-type" and value.lower().lstrip().startswith("multipart/")
        ):
            _multipart(data, value, names, 0)
    except Found as reason:
        return str(reason)
    return ""


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter.isalnum())


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
    for part in [*text.split("&"), *(re.split("[&;]", text) if ";" in text else ())]:  # some servers also take `;` for what separates
        name, _, value = part.partition("=")
        _field(unquote_plus(name), unquote_plus(value), spared, CREDENTIAL_PARAMETERS, "form field")


def _json(data: bytes, spared: frozenset[str]) -> None:
    try:
        text = data.decode(json.detect_encoding(data)).removeprefix("\ufeff")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    for document in _documents(text):
        if document is None:  # no JSON: somebody more lenient may read it, and who knows how
            _lenient(text, spared)
        else:
            for pairs in document if isinstance(document, list) and not isinstance(document, _Pairs) else (document,):
                for name, value in _two_levels(pairs):
                    _field(name, value, spared, _JSON_NAMES, "field")


def _documents(text: str) -> list[Any]:
    """The JSON texts that may hold something: one, or one a line; [None] for what is no JSON. Most hold nothing, which is seen in linear time."""
    for texts in ([text], text.splitlines()):
        texts = [one for one in texts if one.strip()]
        try:
            for one in texts:
                json.loads(one)
            return [json.loads(one, object_pairs_hook=_Pairs) for one in texts if _suspicious(one)]
        except (ValueError, RecursionError):
            continue
    return [None]


def _suspicious(text: str) -> bool:
    return PLACEHOLDER in text or any(match[2] and _plain(_unescaped(match[1])) in _JSON_NAMES for match in _STRING.finditer(text))


def _lenient(text: str, spared: frozenset[str]) -> None:
    text = _ESCAPED.sub(lambda match: chr(int(match[1], 16)), text)
    for match in _WORD.finditer(text):
        if _plain(match[1]) in _JSON_NAMES - spared:
            raise Found(f"the body is not JSON, and names a field {match[1]!a} that looks like a credential")


def _two_levels(pairs: Any) -> Iterator[tuple[str, str]]:
    for name, value in pairs if isinstance(pairs, _Pairs) else ():
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, _Pairs):
            yield from ((f"{inner}", text) for inner, text in value if isinstance(text, str))


def _unescaped(name: str) -> str:
    try:
        return str(json.loads(f'"{name}"', strict=False)) if "\\" in name else name
    except ValueError:
        return name


def _multipart(data: bytes, content_type: str, spared: frozenset[str], depth: int) -> None:
    """RFC 2046, section 5.1, read as leniently as any server does: a delimiter counts wherever it begins a line."""
    named = _BOUNDARY.findall(content_type)
    if len(named) != 1 or content_type.lower().count("boundary") != 1 or depth > 3:
        raise Found("the parts of the body cannot be read in one way")
    pieces = re.split(rb"(?:^|[\r\n])--" + re.escape(named[0][1].encode()), data)
    if len(pieces) > _PARTS:
        raise Found(f"the body has more than {_PARTS} parts")
    for piece in pieces[1:]:
        end = _EMPTY_LINE.search(piece)
        head, content = (piece[: end.start()], piece[end.end() :]) if end else (piece, b"")
        for line in re.split(r"[\r\n]+", _FOLDED.sub(" ", head.decode("latin-1"))):
            name, value = line.partition(":")[0].strip(" \t-").lower(), line.partition(":")[2].strip()
            if name in CREDENTIAL_HEADERS:
                raise Found(f"a part's header {name[:60]!a} carries a credential, and only the gate adds credentials")
            if name == "content-disposition":
                for field in _names(value):
                    # Where the content begins, readers disagree after a line that is no header, so that it may be what looks empty here.
                    content_text = content[:4096].strip(b"\r\n").decode("latin-1") or "?"
                    _field(field, content_text, spared, CREDENTIAL_PARAMETERS, "field")
            if name == "content-type" and value.lower().startswith("multipart/"):
                _multipart(content, value, spared, depth + 1)


def _names(disposition: str) -> Iterator[str]:
    """Every name that a Content-Disposition gives its part, in whatever form (RFC 7578, section 4.2; RFC 2231)."""
    from email.message import Message  # 26 ms that few sessions need
    from email.utils import collapse_rfc2231_value

    part = Message()
    part["content-disposition"] = disposition
    for name, value in part.get_params([], header="content-disposition"):
        if name.lower().partition("*")[0] == "name":
            yield collapse_rfc2231_value(value)
    yield from (match[1] or match[2] or "" for match in _NAMED.finditer(disposition))  # also where something follows that is no parameter
