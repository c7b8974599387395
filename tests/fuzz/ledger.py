"""INVARIANT: any bytes where the ledger keeps an entry, its frontier, a checkpoint or a key are read as exactly that, or are Tampered; an entry that is read is
one JSON object to a strict reader, and comes back as it was when it is written again."""

from __future__ import annotations

import json
from typing import Any

from stockade.core import notes
from stockade.core.errors import StockadeError, Tampered
from stockade.record import checkpoint
from stockade.record.ledger import State
from stockade.record.lines import MAX_LINE, OWN_KEYS, encode, parse
from stockade.record.merkle import Frontier, leaf_hash

_TREE = Frontier()
for _number in range(3):
    _TREE.add(leaf_hash(b"%d" % _number))
_KEY = notes.Verifier.from_public("stockade/0123456789abcdef", bytes(range(32)))
WORDS = (
    b'{"index":7,"time":1.500000', b',"kind":"egress"', b',"x":', b"}", b"{", b"[", b"]", b'"', b"\\ud83d", b"\\u0000", b"NaN", b"1e999", b"Infinity", b"true",
    b"null", b"-1", b"stkdfr1\n", b"\0" * 8, b"stockade/", b"\n\n", b"\xe2\x80\x94 ", b"+", b"AQ==", b"=", b"\xff",
)  # fmt: skip
KEPT = {
    "an entry": b'{"index":7,"time":1.500000,"kind":"x","text":"a\\ud83d\\ude00\\n","l":[1,{"a":null}],"cut":1}',
    "another entry's number": b'{"index":8,"time":1.500000}',
    "a constant that is no JSON": b'{"index":7,"time":1.500000,"x":NaN}',
    "a number that is none": b'{"index":7,"time":1e999}',
    "a number of more digits than Python converts": b'{"index":7,"time":1.5,"x":' + b"9" * 5000 + b"}",
    "nesting": b'{"index":7,"time":1.5,"x":' + b"[" * 20000,
    "more than a line": b'{"index":7,"time":1.5,"x":"' + b"x" * MAX_LINE + b'"}',
    "a frontier": State(3, 99, 2, _TREE).encode(),
    "a frontier of more entries than it has hashes": b"stkdfr1\n" + bytes(8) + b"\xff" * 24 + bytes(32),
    "a key": str(_KEY).encode(),
    "a checkpoint": b"stockade/x\n3\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 stockade/x " + b"A" * 91 + b"=\n",
    "a checkpoint without a size": b"stockade/x\n\n" + b"A" * 43 + b"=\n\n\xe2\x80\x94 stockade/x AAAA\n",
}
FAULT = ("stockade.record.lines._no_constant", float)


def one(data: bytes) -> None:
    _entry(data)
    _frontier(data)
    for read in (checkpoint.parse, lambda data: notes.Verifier.from_text(data.decode("utf-8", "replace"))):
        try:
            found = read(data)
        except Tampered as error:
            assert error.code in ("ledger.checkpoint", "note.key") and error.message.isprintable()
            continue
        if isinstance(found, checkpoint.Note):
            assert found.checkpoint.text() == b"".join(found.raw.splitlines(keepends=True)[:3]) and found.signatures
        else:
            assert notes.Verifier.from_text(str(found)) == found


def _entry(data: bytes) -> None:
    try:
        event = parse(data, 7)
    except Tampered as error:
        assert error.code in ("ledger.line", "ledger.index")
        return
    assert event["index"] == 7 and json.loads(data, parse_constant=_no_constant) == event
    plain = {name: value for name, value in event.items() if name not in OWN_KEYS}
    try:
        line = encode(7, event["time"], plain)
    except StockadeError as error:
        assert error.code == "ledger.event"
        return
    assert parse(line, 7)["index"] == 7


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _frontier(data: bytes) -> None:
    state = State.decode(data)
    if state is not None:
        assert data.startswith(state.encode()) and len(state.tree.root()) == 32
