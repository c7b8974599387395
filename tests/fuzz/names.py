"""INVARIANT: whatever arrives on the DNS port gets at most one reply, which dnspython can read, which is hardly longer than the question and gives an address
to a granted name only. Nothing is raised, and no socket is opened: no query ever goes to anybody."""

from __future__ import annotations

import socket

import dns.flags
import dns.message
import dns.rcode

from stockade.gateway.flow import Synthetic
from stockade.gateway.names import Answerer

GRANTED = {"api.example.com", "x"}
_ANSWER = 16  # bytes of an address record whose name is a pointer (RFC 1035, section 4.1.3)


def _query(name: str, kind: str = "A", **more: bool) -> bytes:
    query = dns.message.make_query(name, kind, **more)
    query.id = 0x1234
    return query.to_wire()


WORDS = (
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", b"\x03api\x07example\x03com\x00", b"\x01x\x00", b"\x00\x01\x00\x01", b"\x00\x1c\x00\x01", b"\x00",
    b"\xc0\x0c", b"\x80", b"\x00\x00\x29\x10\x00\x00\x00\x00\x00\x00\x00", b"\x3f", b"\xff\xff", b"\x00\xfc\x00\x01", b"\x00\x01\x00\x03", b"\x28", b"\x10",
)  # fmt: skip
KEPT = {
    "a granted name": _query("API.Example.com"),
    "another name": _query("c2VjcmV0.evil.test"),
    "a type that is never given out": _query("api.example.com", "HTTPS"),
    "a whole zone": _query("api.example.com", "AXFR"),
    "an extended query": _query("api.example.com", use_edns=True),
    "a reply, which must not be answered": _query("x")[:2] + b"\x80" + _query("x")[3:],
    "a name that points at itself": b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\xc0\x0c\x00\x01\x00\x01",
    "two questions": b"\x12\x34\x01\x00\x00\x02\x00\x00\x00\x00\x00\x00\x01x\x00\x00\x01\x00\x01\x01x\x00\x00\x01\x00\x01",
    "less than a header": b"\x12\x34",
    "the opcode of an update": b"\x12\x34\x29\x00\x00\x01\x00\x00\x00\x00\x00\x00\x01x\x00\x00\x01\x00\x01",
}
FAULT = ("stockade.gateway.names._error", lambda packet, code: packet)


def _opened(*_: object, **__: object) -> None:
    raise AssertionError("a socket was opened")


def one(data: bytes) -> None:
    kept = socket.socket, socket.getaddrinfo
    socket.socket = socket.getaddrinfo = _opened  # type: ignore[assignment,misc]  # whoever asks a resolver needs one of them
    try:
        reply, seen = Answerer(GRANTED.__contains__, Synthetic(lambda address, name: None).address).answer(data)
    finally:
        socket.socket, socket.getaddrinfo = kept  # type: ignore[misc]
    if not reply:
        assert seen is None and (len(data) < 12 or data[2] & 0x80)
        return
    found = dns.message.from_wire(reply)
    assert found.id == int.from_bytes(data[:2], "big") and found.flags & dns.flags.QR
    assert len(reply) <= max(len(data), 12) + _ANSWER and not found.authority and not found.additional
    addresses = [record.to_text() for answer in found.answer for record in answer]
    if addresses:
        (answer,) = found.answer
        assert answer.name == found.question[0].name and answer.name.to_text(omit_final_dot=True).lower() in GRANTED
        assert len(addresses) == 1 and addresses[0].startswith("198.18.")
    if seen is not None:
        name, kind, effect = seen
        assert effect == ("allow" if name in GRANTED else "deny") and (found.rcode() == dns.rcode.NXDOMAIN) is (effect == "deny")
        assert all(text.isascii() and text.isprintable() and len(text) <= 2048 for text in (name, kind)), (
            "the supervisor would end the gate"
        )
