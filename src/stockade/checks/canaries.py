"""Finding strings that must never leave in bytes that are about to, however they are dressed. Pure.

A tripwire, not a wall: whoever knows that it is there can encrypt, or spell in pieces of seven bytes. Two depths: `needles` finds what common encodings make
of a string in time that is linear in the data; `carries` undoes layers of encodings, within a budget, on data that is small enough.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import re
import urllib.parse
import zlib
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

DEPTH = 3  # encodings around one another that are undone
SHORTEST = 12  # bytes of a string that is looked for; shorter ones turn up by chance
PIECE = 8  # bytes of a string in one request that count as a part of it
DEEP = 64 << 10  # bytes of data whose layers are undone
BUDGET = 2 << 20  # bytes of all layers together
_RUNS = re.compile(rb"[A-Za-z0-9+/_\s-]{16,}")  # padding ends a run: what follows it is encoded anew
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){8,}")
_BASE32 = re.compile(rb"[A-Z2-7a-z]{16,}=*")
_LOOSE = bytes(
    byte for byte in range(256) if not re.match(rb"[0-9A-Za-z+/_-]", bytes([byte]))
)  # what lines and pairs of digits are set apart by
_STARTS = 16  # places in one item where a compressed stream might begin, for each kind
_MAGIC = ((b"\x1f\x8b\x08", 31), (b"\x78\x9c", 15), (b"\x78\x01", 15), (b"\x78\xda", 15))


def carries(data: bytes, secret: str, budget: int = 1 << 30) -> bool:
    """Whether `data` holds `secret` as it is or under up to `DEPTH` layers of common encodings and compressions; at most `budget` bytes are looked at."""
    wanted = secret.encode()
    return any(wanted in item or wanted.lower() in item.lower() for item in layers(data, budget))


def layers(data: bytes, budget: int) -> Iterator[bytes]:
    """`data`, then everything that it might decode to, then what that might decode to, up to `DEPTH`; ends when `budget` bytes were given.

    INVARIANT: what waits to be given is never more than the budget and what one item unpacks to.
    """
    seen, waiting = {data}, deque([(data, 0)])
    budget -= len(data)
    while waiting:
        item, depth = waiting.popleft()
        yield item
        for found in sorted(unwrapped(item) - seen) if depth < DEPTH and budget > 0 else ():
            seen.add(found)
            waiting.append((found, depth + 1))
            budget -= len(found)


def needles(secret: bytes) -> tuple[bytes, ...]:
    """What the usual encodings make of `secret`, wherever it stands in what is encoded: as it is, reversed, hex, percent, base64 in both alphabets."""
    found = {secret, secret[::-1], secret.hex().encode(), secret.hex().upper().encode()}
    found |= {urllib.parse.quote_from_bytes(secret, safe=b"").encode(), b"".join(b"%%%02X" % byte for byte in secret)}
    for skip in range(3):
        text = base64.b64encode(bytes(skip) + secret)
        # The first and last letters also hold bits of what stands beside it.
        text = text[-(-skip * 8 // 6) :][: (len(secret) * 8 - (-skip * 8 % 6 and 6 - skip * 8 % 6)) // 6]
        found |= {text, text.replace(b"+", b"-").replace(b"/", b"_")}
    return tuple(sorted(needle for needle in found if len(needle) >= SHORTEST))


class Watch:
    """Looks for strings by name: `planted` ones thoroughly and over many requests, `held` ones (the broker's own secrets) by their needles.

    Keeps how much of each planted string has left in pieces, so it belongs to one session. Strings shorter than `SHORTEST` are not looked for.
    """

    def __init__(self, planted: Mapping[str, str], held: Mapping[str, str]) -> None:
        self._planted = {name: text.encode() for name, text in planted.items() if len(text.encode()) >= SHORTEST}
        self._needles = {name: needles(text.encode()) for name, text in (*planted.items(), *held.items()) if len(text.encode()) >= SHORTEST}
        self._gone = dict.fromkeys(self._planted, 0)

    @property
    def thorough(self) -> bool:
        """Whether whole bodies have to be read."""
        return bool(self._planted)

    @property
    def pieces(self) -> dict[str, int]:
        """How many bytes of each planted string have left in pieces."""
        return dict(self._gone)

    def seen(self, pieces: Mapping[str, int]) -> None:
        """Another look, which began from here, has found so much to have left."""
        for name in self._gone:
            self._gone[name] = max(self._gone[name], int(pieces[name]))

    def found(self, parts: Iterable[bytes]) -> str:
        """The name of a string that one of these parts of a request carries, "" if none does. Counts pieces: call it once for each part."""
        for data in parts:
            if name := self._found(data):
                return name
        return ""

    def _found(self, data: bytes) -> str:
        solid = re.sub(rb"\\[nrx]", b"", data).translate(None, _LOOSE)
        for name, texts in self._needles.items():
            if any(text in data or text in solid for text in texts):
                return name
        if not self._planted:
            return ""
        for item in layers(data, BUDGET) if len(data) <= DEEP else (data, *_decompressed(data)):
            low = item.lower()
            for name, text in self._planted.items():
                if text.lower() in low or self._piece(name, text, item):
                    return name
        return ""

    def _piece(self, name: str, text: bytes, data: bytes) -> bool:
        """Whether the next pieces of `text` in `data` complete what left before."""
        at = self._gone[name]
        while at < len(text) and text[at : at + PIECE] in data:
            size = PIECE
            while at + size < len(text) and text[at : at + size + 1] in data:
                size += 1
            at = min(at + size, len(text))
        if at == len(text) and self._gone[name] < at:
            self._gone[name] = 0
            return True
        self._gone[name] = at
        return False


def unwrapped(data: bytes) -> set[bytes]:
    """Everything that `data`, or a part of it, might decode to."""
    found = {
        data[::-1],
        codecs.decode(data.decode("latin-1"), "rot13").encode("latin-1"),
        urllib.parse.unquote_to_bytes(data.replace(b"+", b" ")),
    }
    found.add(data.replace(b"\\n", b"\n").replace(b'\\"', b'"').replace(b"\\/", b"/"))
    for run in _RUNS.findall(data):
        solid = re.sub(rb"\s", b"", run).replace(b"-", b"+").replace(b"_", b"/")
        for skip in range(4):  # the run may begin with letters that are not part of the encoding
            part = solid[skip:]
            part = part[: len(part) - 1] if len(part) % 4 == 1 else part
            found |= _tried(base64.b64decode, part + b"=" * (-len(part) % 4))
    for run in _HEX.findall(data):
        found |= _tried(bytes.fromhex, run.decode()) | _tried(bytes.fromhex, run[1:-1].decode())
    for run in _BASE32.findall(data):
        found |= _tried(base64.b32decode, run.rstrip(b"=").upper() + b"=" * (-len(run.rstrip(b"=")) % 8))
    found.update(_decompressed(data))
    return {item for item in found if item}


def _tried(decode: object, data: object) -> set[bytes]:
    try:
        return {decode(data)}  # type: ignore[operator]  # each decoder takes bytes
    except (ValueError, binascii.Error):
        return set()


def _decompressed(data: bytes) -> Iterator[bytes]:
    """What gzip or zlib made of up to a mebibyte of all of them together, wherever they begin in `data`."""
    room = 1 << 20
    for magic, window in _MAGIC:
        at = -1
        for _ in range(_STARTS):
            at = data.find(magic, at + 1)
            if at < 0 or room <= 0:
                break
            try:
                found = zlib.decompressobj(window).decompress(data[at:], room)
            except zlib.error:
                continue
            room -= len(found)
            yield found
