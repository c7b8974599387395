"""INVARIANT: a host, path, query or authority either has one meaning, which our reading and readers that are not ours share, or is Ambiguous. A normal form
is its own normal form, and means what was written. Nothing else is ever raised."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

from stockade.checks.normalise import Ambiguous, authority, is_name, normalise_host, normalise_path, query_names

WORDS = (
    b"a", b"b.", b"A.b", b".com", b"127.0.0.1", b"0x7f", b"[::1]", b":443", b":", b"@", b"xn--", b"-", b"_", b"/", b"//", b"/.", b"/..", b"%2e", b"%2F",
    b"%25", b"%00", b"%61", b"%", b";", b";x=1", b"\\", b"\0", b" ", b"?", b"&", b"=", b"+", b"#", b"\xc3\xa9", b"\xe2\x84\xaa", b"\xff", b"~", b"key", b"%6bey",
)  # fmt: skip
KEPT = {
    "a name": b"Example.COM.",
    "a name and a port": b"example.com:8443",
    "an address that only some readers see": b"0x7f.1",
    "a letter that becomes ASCII in lower case": b"\xe2\x84\xaaelvin.com",
    "a path": b"/a/%7Eb;v=1/c%C3%A9/",
    "a separator that is escaped": b"/a%2fb",
    "a dot segment behind a parameter": b"/a/..;x/b",
    "a segment of parameters alone, which some readers drop, and then find //": b"/;x/admin",
    "an escaped separator of parameters, which some readers undo before they drop these": b"/%3b%6by%6b/6by",
    "a dot segment behind one": b"/a/..%3Bx/b",
    "an escape of an escape": b"/a%252e",
    "a query": b"a=1&X-Api_Key=2;%6bey=3?t+oken",
    "a user": b"user:pw@example.com:443",
}
FAULT = ("stockade.checks.normalise._AMBIGUOUS", frozenset())


def one(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    _host(text)
    _path(text)
    _query(text)
    _authority(text)


def _settled(function: Callable[..., Any], *given: Any) -> Any:
    try:
        return function(*given)
    except Ambiguous as error:
        assert error.rule and error.reason.isascii() and error.reason.isprintable()
        return None


def _host(text: str) -> None:
    name = _settled(normalise_host, text)
    assert is_name(text) is (name is not None)
    if name is None:
        return
    assert normalise_host(name) == name == text.lower().removesuffix(".")
    assert name.isascii() and all(letter.isalnum() or letter in "-." for letter in name)
    for reader in (ipaddress.ip_address, socket.inet_aton):  # the second takes every spelling that BSD ever took
        try:
            reader(name)
        except (ValueError, OSError):
            continue
        raise AssertionError(f"{name} is an address to {reader}")


def _path(text: str) -> None:
    path = _settled(normalise_path, text)
    if path is None:
        return
    assert normalise_path(path) == path
    meant = unquote_to_bytes(text)
    assert unquote_to_bytes(path) == meant == unquote_to_bytes(meant), "it means something else, or to a reader who unescapes twice"
    assert meant.split(b"/") == [unquote_to_bytes(part) for part in text.split("/")], "cutting before and after unescaping differ"
    for reading in (
        meant,
        b"/".join(part.partition(b";")[0] for part in meant.split(b"/")),
    ):  # the second is that of servers with path parameters
        assert not {b"", b".", b".."} & set(reading.split(b"/")[1:-1]) and reading.rpartition(b"/")[2] not in (b".", b".."), (
            "some resolve this"
        )
    assert not any(byte < 0x20 or byte in b"\\\x7f" for byte in meant)


def _query(text: str) -> None:
    names = _settled(query_names, text)
    if names is None:
        return
    for separator in "&;":
        for name, _ in parse_qsl(text, keep_blank_values=True, errors="replace", separator=separator):
            if not set(name) & set("&;?"):
                assert "".join(letter for letter in name.casefold() if letter.isalnum()) in names, (
                    f"another reader finds the parameter {name!r}"
                )


def _authority(text: str) -> None:
    found = _settled(authority, text, 443)
    if found is None:
        return
    host, port = found
    assert authority(f"{host}:{port}", 1) == found and 0 < port < 65536
    parts = urlsplit(f"https://{text}/")
    assert (parts.hostname or "").removesuffix(".") == host and (parts.port or 443) == port and parts.username is None and parts.path == "/"
