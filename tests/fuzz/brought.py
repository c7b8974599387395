"""INVARIANT: whatever a reader of projects sends that was taken over by what it read, what is believed is entries of closed kinds, with names that stay below the
project, no two of the same, within bounds, and written in the one way there is; or nothing."""

from __future__ import annotations

from stockade.core import brought
from stockade.core.brought import KINDS, LARGEST, MOST_ENTRIES, Entry, decode, encode

WORDS = (
    b"f 1 1\nax\n", b"x 13 0\nstockade.toml\n", b"l 9 3\n.mcp.json../\n", b"g ", b" 0 0\n", b"f ", b"1", b" ", b"\n", b"..", b"/", b"\0", b"\xff", b"99999999", b"-1", b"+1",
    b"\xd9\xa1",
)  # fmt: skip
KEPT = {
    "nothing": b"",
    "each kind": encode(tuple(Entry(f"a/{kind}", kind, b"content\n") for kind in KINDS)),
    "a name that is no text": encode((Entry("\udcff\n", "f", b"\0"),)),
    "out of the project": encode((Entry("../x", "f"),)),
    "the root of the machine": encode((Entry("/etc/passwd", "f"),)),
    "twice the same name": encode((Entry("a", "f"), Entry("a", "x"))),
    "a kind that there is not": encode((Entry("a", "z"),)),
    "a length beyond the end": b"f 1 5\nax\n",
    "a length with a sign": b"f +1 1\nax\n",
    "a length in other digits": "f ١ 1\nax\n".encode(),
    "a length with a zero before it": b"f 01 1\nax\n",
    "no newline at the end": b"f 1 1\naxy",
    "a length that is millions": b"f 1 99999999\nax\n",
}
FAULT = ("stockade.core.brought.plain", lambda name: True)


def one(data: bytes) -> None:
    try:
        found = decode(data)
    except ValueError:
        return
    assert encode(found) == data and len(found) <= MOST_ENTRIES
    assert len({entry.name for entry in found}) == len(found)
    for entry in found:
        assert entry.kind in KINDS and len(entry.content) <= LARGEST
        parts = entry.name.split("/")
        assert not {"", ".", ".."} & set(parts) and "\0" not in entry.name and len(entry.name) <= brought.LONGEST_NAME
