"""A stolen secret is recognised however it was dressed, and nothing else is taken for it. Whatever stands around it: tests/fuzz/canaries.py."""

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

from stockade.checks.canaries import DEEP, PIECE, Watch, carries, needles

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


@given(st.binary(min_size=12, max_size=40), st.binary(max_size=9), st.binary(max_size=9))
def test_every_encoding_of_a_surrounded_string_holds_one_of_its_needles(secret: bytes, before: bytes, after: bytes) -> None:
    data = before + secret + after
    found = needles(secret)
    dressed = (data, data[::-1], data.hex().encode(), data.hex().upper().encode(), base64.b64encode(data), base64.urlsafe_b64encode(data))
    for item in (*dressed, urllib.parse.quote_from_bytes(data, safe=b"").encode(), b"".join(b"%%%02X" % byte for byte in data)):
        assert any(needle in item for needle in found), item


@given(st.binary(min_size=12, max_size=40))
def test_no_needle_is_short_enough_to_turn_up_by_chance(secret: bytes) -> None:
    assert all(len(needle) >= 12 for needle in needles(secret))


def watch() -> Watch:
    return Watch({"file": SECRET}, {"key": "sk-held-by-the-broker-1"})


@pytest.mark.parametrize("inner", DRESSES)
@pytest.mark.parametrize("outer", DRESSES)
def test_a_planted_string_is_found_under_two_layers(inner: str, outer: str) -> None:
    assert watch().found([b"x=1", DRESSES[outer](DRESSES[inner](FILE))]) == "file"


@pytest.mark.parametrize("dress", ["plain", "base64", "url-safe base64", "hex", "upper hex", "reversed", "percent"])
def test_a_held_string_is_found_in_large_data(dress: str) -> None:
    data = DRESSES[dress](b"x" * 1_000_001 + b"sk-held-by-the-broker-1" + b"y" * 100_000)
    assert watch().found([data]) == "key"
    assert watch().found([data.replace(b"broker-1", b"broker-2").swapcase() if dress == "plain" else data[:1000]]) == ""


@pytest.mark.parametrize(
    "dress",
    [
        lambda data: base64.encodebytes(data * 9),
        lambda data: json.dumps({"log": base64.encodebytes(data * 9).decode().replace("\n", "\r\n")}).encode(),
        lambda data: data.hex(":").encode(),
        lambda data: data.hex(" ").upper().encode(),
        lambda data: b"".join(b"\\x%02x" % byte for byte in data),
        lambda data: b"".join(b"%%%02x" % byte for byte in data),
        lambda data: b" ".join(bytes([byte]) for byte in data),
    ],
)
def test_what_stands_between_letters_and_lines_is_no_dress(dress: Callable[[bytes], bytes]) -> None:
    """`base64` writes lines, and what an agent sends is often large: a line would end in the middle of it one time in four."""
    other = FILE.replace(b"aws-canary", b"aws-banana")
    for size in (0, 2 * DEEP):
        around = base64.b64encode(bytes(range(256)) * (size // 256)) + b"\n"
        assert watch().found([around + dress(FILE) + b"\n" + around]) == "file"
        assert watch().found([around + dress(other) + b"\n" + around]) == ""


def test_large_compressed_data_is_looked_into() -> None:
    assert watch().found([b"head" + gzip.compress(b"x" * 100_000 + FILE) + bytes(DEEP)]) == "file"


@pytest.mark.parametrize("size", [PIECE, PIECE + 1, 20])
@pytest.mark.parametrize("dress", ["plain", "base64", "hex"])
def test_pieces_over_many_requests_are_put_together(size: int, dress: str) -> None:
    looking = watch()
    pieces = [SECRET[at : at + size].encode() for at in range(0, len(SECRET), size)]
    if size != PIECE and size != 20:
        pieces = [SECRET[max(0, at - 1) : at + PIECE].encode() for at in range(0, len(SECRET), PIECE)]
    found = [
        looking.found([b"{'part': '" + (DRESSES[dress](piece) if len(piece) * 4 >= 44 or dress == "plain" else piece) + b"'}"])
        for piece in pieces
    ]
    assert found[-1] == "file" and not any(found[:-1])


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_harmless_requests_find_nothing_and_never_raise(parts: list[bytes]) -> None:
    assert watch().found(parts) == ""


def test_short_strings_are_not_looked_for() -> None:
    assert Watch({"short": "abc"}, {"key": "0123"}).found([b"abc 0123"]) == ""
