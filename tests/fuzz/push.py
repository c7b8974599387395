"""INVARIANT: any bytes are the commands of a push or the reason why they are not, never an exception. What passes names granted refs only and deletes none, and
means the same with the pack behind it; what is cut short does not pass."""

from __future__ import annotations

import re

from stockade.checks.push import PROBE, commands, refused

_OLD, _NEW, _NONE = b"a" * 40, b"b" * 40, b"0" * 40
_REF = re.compile(r"refs/[!-~]+")


def _line(data: bytes) -> bytes:
    return b"%04x" % (len(data) + 4) + data


def _granted(ref: str) -> bool:
    return ref.startswith("refs/heads/agent/")


_ONE = _line(_OLD + b" " + _NEW + b" refs/heads/agent/x\0 report-status")
WORDS = (
    _ONE, _line(_OLD + b" " + _NEW + b" refs/heads/main"), _line(b"shallow " + _OLD), b"0000", b"0001", b"0004", b"00", b"PACK", _OLD, _NEW, _NONE, b" ",
    b"\0", b"\n", b"refs/heads/agent/", b"refs/heads/main", b"push-cert", b"a" * 64, b"0067", b"0066", b"ffff",
)  # fmt: skip
KEPT = {
    "a push": _ONE + b"0000PACK",
    "what git asks with first": PROBE,
    "two refs, one of them not granted": _ONE + _line(_OLD + b" " + _NEW + b" refs/heads/main") + b"0000",
    "a deletion": _line(_OLD + b" " + _NONE + b" refs/heads/agent/x\0") + b"0000",
    "a shallow clone's": _line(b"shallow " + _OLD) + _ONE + b"0000",
    "a line that ends in the middle": _ONE[:-3],
    "a name with a space": _line(_OLD + b" " + _NEW + b" refs/heads/agent/x refs/heads/main\0") + b"0000",
    "a signed push, whose commands stand elsewhere": _line(b"push-cert\0 report-status\n") + _ONE + b"0000",
    "a length that only some readers take": b"+05f" + _ONE[4:] + b"0000",
}
FAULT = ("stockade.checks.push._COMMAND", re.compile(rb"(\w+) (\w+) (.*)"))


def one(data: bytes) -> None:
    found = commands(data)
    why = refused((), data, _granted)
    assert why.isascii() and why.isprintable()
    if isinstance(found, str):
        assert why or data == PROBE
        return
    assert all(_REF.fullmatch(ref) and re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", new) for new, ref in found)
    passes = bool(found) and all(_granted(ref) and new.strip("0") for new, ref in found)
    assert (why == "") is (passes or data == PROBE)
    assert commands(data + b"PACK\x00\x00") == found
    end = _end(data)
    assert all(isinstance(commands(data[:cut]), str) for cut in {end - 1, end - 4, end // 2, 0})


def _end(data: bytes) -> int:
    """Where the flush packet ends, by a reader that believes every length (gitprotocol-common(5))."""
    at = 0
    while size := int(data[at : at + 4], 16):
        at += size
    return at + 4
