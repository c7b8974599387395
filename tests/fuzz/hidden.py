"""INVARIANT: no body makes the search for credentials raise, whatever its type says. What passes holds none where a plain reader of forms, of JSON or of multipart
bodies would find one: readers of the standard library, here."""

from __future__ import annotations

import json
from email.message import Message
from email.parser import BytesParser
from typing import Any
from urllib.parse import parse_qsl

from stockade.checks.bodies import refused
from stockade.core.values import PLACEHOLDER

_FORM, _JSON, _PARTS = (
    (("content-type", kind),) for kind in ("application/x-www-form-urlencoded", "application/json", "multipart/form-data; boundary=XX")
)
_NAMES = ("token", "api_key", "password")
WORDS = (
    b"token", b"api_key", b"password", b"Api-Key", b"evil", b"=", b"&", b";", b"%74oken", b"{", b"}", b"[", b"]", b'"', b":", b",", b"\\u0074oken", b"\\", b"\n", b"\r\n",
    b"--XX", b"--", b'Content-Disposition: form-data; name="', b"name*=utf-8''t%6Fken", b"Authorization: x", b"Content-Type: multipart/mixed; boundary=YY", b"--YY",
    PLACEHOLDER.encode(), b"\xff\xfe", b"\x00", b"/*", b"*/", b"'",
)  # fmt: skip
KEPT = {
    "a form": b"note=1&token=evil",
    "a form with a value that is none to readers who cut at semicolons": b"token=;",
    "an escaped form": b"note=1&%74oken=evil",
    "JSON": b'{"note":1,"api_key":"evil"}',
    "an escaped name": b'{"\\u0074oken":"evil"}',
    "a name that comes twice": b'{"token":"evil","token":null}',
    "a second level": b'{"auth":{"password":"evil"}}',
    "JSON lines": b'{"a":1}\n{"token":"evil"}',
    "a part": b'--XX\r\nContent-Disposition: form-data; name="token"\r\n\r\nevil\r\n--XX--\r\n',
    "a part's header": b'--XX\r\nContent-Disposition: form-data; name="f"\r\nAuthorization: x\r\n\r\nevil\r\n--XX--\r\n',
    "a part without an empty line, which some readers do without": b'--XX\r\nContent-Disposition: form-data; name="token"\rx\r\nevil\r\n--XX--\r\n',
    "a line end that only some readers take for one": b'--XX\r\nContent-Disposition: form-data; name="token"\r\n\r\tevil\r\n--XX--\r\n',
    "a stand-in": f'{{"x":"{PLACEHOLDER}a-1"}}'.encode(),
    "what is none": b'{"note":"token","messages":[{"token":"deep"}]}',
    "nesting": b'{"token":"evil","a":' + b"[" * 100_000,
}
FAULT = ("stockade.checks.bodies._JSON_NAMES", frozenset())


def one(data: bytes) -> None:
    for headers in (_FORM, _JSON, _PARTS, ()):
        why = refused(headers, len(data), data[:64], data, ())
        assert isinstance(why, str) and why.isprintable()
        if not why and data:
            {_FORM: _form, _JSON: _json, _PARTS: _multipart}.get(headers, _nothing)(data)
        assert refused(headers, len(data), data, data, ("*",)) == ""


def _nothing(data: bytes) -> None:
    if data[:1] in (b"{", b"["):
        _json(data)


def _form(data: bytes) -> None:
    for name, value in parse_qsl(data.decode("latin-1")):
        assert not (name.lower() in _NAMES and value), name


def _json(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    for item in document if isinstance(document, list) else [document]:
        _fields(item, 2)


def _fields(value: Any, levels: int) -> None:
    for name, inner in value.items() if isinstance(value, dict) else ():
        assert not (name.lower() in _NAMES and isinstance(inner, str) and inner), name
        if levels > 1:
            _fields(inner, levels - 1)


def _multipart(data: bytes) -> None:
    whole = BytesParser().parsebytes(b"Content-Type: multipart/form-data; boundary=XX\r\n\r\n" + data)
    for part in whole.get_payload() if whole.is_multipart() else ():
        assert isinstance(part, Message) and part["authorization"] is None
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload()
        assert not (isinstance(name, str) and name.lower() in _NAMES and isinstance(content, str) and content.strip("\r\n"))
