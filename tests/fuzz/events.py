"""INVARIANT: whatever a guest's kernel sends is an event, nothing, or Malformed, in bounded time: numbers of 32 bits, texts printable and short, a closed list of
what it can be; and what a plain reader of the specification ("Encoding", protobuf.dev) finds in a message that is whole, is what the event says."""

from __future__ import annotations

import json

from stockade.walls import events

WORDS = (
    b"\x08\0\x03\0\0\0\0\0",
    b"\x08\0\x06\0\x01\0\0\0",
    b"\x08\0\x0a\0\0\0\0\0",
    b"\n\x04 \x02:\0",
    b"\x1a\x03one",
    b"\x12\r/usr/bin/true",
    b" ;",
    b" e",
    b"\x12\0",
    b"\xff\xff\xff\xff\x0f",
    b"2\x10\2\0\1\xbc\n\1\2\4\0\0\0\0\0\0\0\0",
    b"\x1b[31m",
)
_CLONE = "0800020000000000 0a0420023a00 1803 2003 2897d3b29cd7e9dcf518 3080808009"
_RAW = "0800060000000000 0a0420023a00 {} 203b 28c0ebff909ed41f 3090efcc909ed41f 5001"
KEPT = {
    "a handshake": bytes.fromhex("0801"),
    "an exec, and an environment": bytes.fromhex(
        "0800030000000000 0a0420023a00 120d2f7573722f62696e2f74727565 1a092f62696e2f74727565 1a036f6e65 220a5345435245543d78797a"
    ),
    "the beginning of one as a number": bytes.fromhex(_RAW.format("")),
    "its end": bytes.fromhex(_RAW.format("1200")),
    "the end of one that failed": bytes.fromhex(_RAW.format("12021002")),
    "a new process": bytes.fromhex(_CLONE),
    "a new thread": bytes.fromhex("0800020000000000 0a0420013a00 1804 2001 28c6a295a9d7e9dcf518 30809ef401"),
    "a connection": bytes.fromhex("08000a0000000000 0a0620013a021005 182a 2003 3210 020001bc0a0102040000000000000000"),
    "a name for a socket, IPv6": bytes.fromhex(
        "0800180000000000 0a0620013a021005 1831 2004 321c 0a000063000000000000000000000000000000000000000100000000"
    ),
    "an abstract Unix socket whose name is no UTF-8": bytes.fromhex("08000a0000000000 0a0620013a021005 182a 2003 3206 0100006162ff"),
    "a number that is there twice": b"\x08\0\x03\0\0\0\0\0\n\4 \2 ;\x12\2/x",
    "minus one": bytes.fromhex("0800060000000000 0a0420013a00 2075 28ffffffff0f 3005 38ffffffff0f 5003"),
    "an argv for a terminal": b"\x08\0\x03\0\0\0\0\0\x1a\x06\x1b[31mx\x1a\x04\xe2\x80\xae\xff",
    "an argv of more words than are read": b"\x08\0\x03\0\0\0\0\0" + b"\x1a\x01a" * 5000,
    "a long word": b"\x08\0\x03\0\0\0\0\0\x1a\xa0\x1f" + b"\x07" * 4000,
    "a header of its own length": b"\x0c\0\x06\0\0\0\0\0more\x20\x65",
    "a field that ends beyond the message": b"\x08\0\x03\0\0\0\0\0\x1a\x7fshort",
    "a number without end": b"\x08\0\x06\0\0\0\0\0" + b"\xff" * 20,
}  # fmt: skip
FAULT = ("stockade.walls.events.TEXT", 1 << 16)
_WHAT = {"exec", "clone", "connect", "bind", events.DONE, *(name for name, _ in events.CALLS.values())}


def one(data: bytes) -> None:
    try:
        events.version(data)
    except events.Malformed:
        pass
    try:
        size, kind, dropped = events.header(data)
        assert 8 <= size <= len(data) and 0 <= dropped < 1 << 32
        event = events.decode(kind, data[size:])
    except events.Malformed:
        return
    if event is None:
        return
    assert event.what in _WHAT
    assert all(-(1 << 31) <= number < 1 << 31 for number in (event.pid, event.uid, event.child))
    assert len(json.dumps(event.facts)) < 8 << 10
    for value in event.facts.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                assert item.isprintable() and len(item) <= 256 + 3
            else:
                assert isinstance(item, int) and -(1 << 31) <= item < 1 << 31
    fields = _plainly(data[size:])
    if fields is None:
        return
    found = dict(fields)  # of what is there twice the last counts
    context = _plainly(found.get(1, b"")) if isinstance(found.get(1, b""), bytes) else None  # type: ignore[arg-type]
    if context is not None:
        group = dict(context).get(4, 0)
        assert isinstance(group, int) and event.pid % (1 << 32) == group % (1 << 32)
    if kind == events.EXEC:
        argv, said = [value for number, value in fields if number == 3], event.facts["argv"]
        assert isinstance(said, list)
        if len(argv) < 10 and all(
            isinstance(word, bytes) and word.isascii() and word.decode().isprintable() and len(word) < 99 for word in argv
        ):
            assert said == [word.decode() for word in argv if isinstance(word, bytes)]


def _plainly(data: bytes) -> list[tuple[int, int | bytes]] | None:
    """The fields of a short message of numbers and texts, None for any other."""
    found: list[tuple[int, int | bytes]] = []
    numbers = iter(data)

    def number() -> int:
        groups = []
        while True:
            groups.append(next(numbers))
            if groups[-1] < 128:
                return sum((group % 128) << (7 * at) for at, group in enumerate(groups))

    while len(found) < 60:
        try:
            tag = number()
        except StopIteration:
            return found
        try:
            if tag % 8 == 0:
                found.append((tag // 8, number()))
            elif tag % 8 == 2:
                found.append((tag // 8, bytes(next(numbers) for _ in range(number()))))
            else:
                return None
        except (StopIteration, RuntimeError):
            return None
    return None
