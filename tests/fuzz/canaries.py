"""INVARIANT: looking for canaries never raises and ends within its budget, whatever bytes it is given; and a planted string that stands in them as a value,
under any encoding that is listed here, is found whatever stands around it."""

from __future__ import annotations

import base64
import gzip

from checks.test_canaries import DRESSES, FILE, SECRET
from stockade.checks.canaries import BUDGET, Watch, layers, needles

HELD = "sk-held-by-the-broker-1"
_EACH = list(DRESSES.values())
_MOST = BUDGET + (8 << 20)  # what the last item within the budget, of at most a mebibyte, may still be unpacked to
LONGEST = 512  # bytes under atheris: what is looked for hides in the order of short things, and the cost grows with their number
WORDS = (
    b"\x1f\x8b\x08", b"\x78\x9c", b"\x78\xda", b"QUJD", b"YWJj=", b"====", b"\n", b" ", b"%41", b"%", b"4142", b"MFRGG===", b"\\n", b"\\/", b"+", b"-", b"_",
    SECRET.encode(), SECRET[:8].encode(), SECRET[:16].encode(), b"broker-1", b'"', b"\x00", b"\x04\x05\x06\x07\x08\x09\x0a\x0b",
)  # fmt: skip
KEPT = {
    "nothing around it": b"",
    "the beginning of a compressed stream that is none, before one that is": b"\x06\x1f\x8b\x08 and more",
    "padding before it": b"\x0eYWJjZA==YWJjZA==YWJjZA==",
    "letters before it": b"\x01QUJDRA and more",
    "a part of an escape": b"\x0a%4",
    "a part of a string": b"\x00" + SECRET[:20].encode(),
    "base64 of many things": b"\x01" + b"\n".join(base64.b64encode(b"%d" % number) for number in range(99)),
    "what unpacks to letters": b"\x00" + gzip.compress(b"QUJDREVG" * (1 << 17), 9),
    "what unpacks to far more": b"\x00"
    + b" ".join(b'"%b"' % base64.b64encode(gzip.compress(bytes([number]) * (1 << 20), 9)) for number in range(8)),
}
FAULT = ("stockade.checks.canaries._MAGIC", ())


def one(data: bytes) -> None:
    """The first byte chooses the encoding of a stolen file and what separates it from the rest, in the middle of which it stands."""
    watch = Watch({"file": SECRET}, {"key": HELD})
    assert watch.found([data]) in ("", "file", "key")
    assert sum(map(len, layers(data, BUDGET))) <= _MOST
    assert all(len(needle) >= 12 for needle in needles(data)) or len(data) < 12
    dress = _EACH[data[0] % len(_EACH)] if data else _EACH[0]
    half = len(data) // 2
    edge = (b'"', b"\n", b"=", b"&")[(data[0] if data else 0) // len(_EACH) % 4]
    stolen = data[1:half] + edge + dress(FILE) + edge + data[half:]
    if sum(stolen.count(magic) for magic in (b"\x1f\x8b\x08", b"\x78")) < 16:
        assert Watch({"file": SECRET}, {}).found([stolen]) == "file"
