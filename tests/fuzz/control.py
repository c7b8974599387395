"""INVARIANT: whatever a gate that was taken over sends, the supervisor has messages of closed kinds with closed fields and its own session's name, or a
WallFailed; and it has the same ones however the bytes were cut."""

from __future__ import annotations

import os

from stockade.core.errors import WallFailed
from stockade.gateway.control import Control

_LONG = b'{"id":1,"event":{"kind":"dns","effect":"deny","name":"' + b"x" * 3000 + b'"}}\n'
WORDS = (
    b'{"ready":true}\n', b'{"revoked":true}\n', b'{"ca":"-----BEGIN CERTIFICATE-----\\nx"}\n', b'{"failed":"', b'{"id":1,"event":{', b'"kind":"egress"',
    b'"kind":"dns"', b'"kind":"connect"', b'"kind":"credential"', b'"effect":"allow"', b'"effect":"deny"', b'"effect":"ask"', b'{"id":1,"ask":{', b'"session":"s-2"', b'"host":"h"', b'"port":443',
    b'"name":"', b"}}\n", b'"', b",", b"\n", b"[", b"true", b"null", b"1e9", b"-1", b"NaN", b"\\u001b", b"\xc3\xa9",
)  # fmt: skip
KEPT = {
    "each kind": b'{"ca":"-----BEGIN CERTIFICATE-----\\nx"}\n{"ready":true}\n{"revoked":true}\n{"failed":"why\\u001b[2J"}\n'
    b'{"id":7,"event":{"kind":"egress","session":"s-2","effect":"deny","rule":"r","host":"h","port":443}}\n',
    "a question, which is not decided yet": b'{"id":1,"ask":{"kind":"egress","effect":"ask","host":"h"}}\n',
    "a question about a tool": b'{"id":1,"ask":{"kind":"tool","effect":"ask","tool":"Bash","digest":"0","length":2,"asks":"{}","place":0}}\n',
    "a question about a file": b'{"id":1,"ask":{"kind":"file","effect":"ask","path":"a","digest":"0","length":2,"content":"eAo=","place":0}}\n',
    "a question about a mount": b'{"id":1,"ask":{"kind":"mount","effect":"ask","path":"~/data","place":0}}\n',
    "a content that is too long": b'{"id":1,"ask":{"kind":"file","effect":"ask","path":"a","content":"' + b"x" * 43693 + b'"}}\n',
    "a content where there is none": b'{"id":1,"event":{"kind":"file","effect":"allow","path":"a","content":"eAo="}}\n',
    "a content of something else": b'{"id":1,"ask":{"kind":"egress","effect":"ask","host":"h","content":"eAo="}}\n',
    "a question that says it is decided": b'{"id":1,"ask":{"kind":"egress","effect":"allow","host":"h"}}\n',
    "a value that is too long": _LONG,
    "a field that the kind does not have": b'{"id":1,"event":{"kind":"dns","effect":"deny","port":1}}\n',
    "a kind that the supervisor writes itself": b'{"id":1,"event":{"kind":"session.exit"}}\n',
    "a number that is a truth": b'{"id":true,"event":{"kind":"dns","effect":"deny"}}\n',
    "nesting": b"[" * 60000 + b"\n",
    "a number with more digits than Python converts": b'{"id":' + b"9" * 5000 + b"}\n",
    "the beginning of a message": b'{"ready":tr',
}
FAULT = ("stockade.gateway.control._LONGEST_VALUE", 1 << 20)
_KINDS = {
    "egress": True,
    "dns": True,
    "connect": True,
    "credential": False,
    "tool": True,
    "file": True,
    "mount": True,
}  # and whether it has an effect


def one(data: bytes) -> None:
    whole = _received([data])
    half = len(data) // 2
    assert _received([data[:half], data[half:]]) == whole
    for message in whole or ():
        assert message[0] in ("ca", "ready", "revoked", "failed", "event", "ask")
        if message[0] == "failed":
            assert message[1].isprintable() and message[1].isascii()
        if message[0] in ("event", "ask"):
            _, number, event = message
            assert type(number) is int and 0 < number < 1 << 53
            assert event["session"] == "s-1" and event["kind"] in _KINDS
            assert not _KINDS[event["kind"]] or event["effect"] in (("allow", "deny") if message[0] == "event" else ("ask",))
            assert all(name.isascii() and name.isidentifier() for name in event)
            assert "content" not in event or (message[0], event["kind"]) == ("ask", "file")
            for name, value in event.items():
                most = 43692 if name == "content" else 2048
                assert type(value) is int or (isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= most)


def _received(pieces: list[bytes]) -> list[tuple[object, ...]] | None:
    """All messages of these pieces, None where the supervisor gave up."""
    out, into = os.pipe()
    control = Control(out, "s-1")
    found: list[tuple[object, ...]] = []
    try:
        for piece in pieces:
            os.write(into, piece[: 1 << 16])
            found += control.receive()
    except WallFailed as error:
        assert error.code == "gate.protocol" and error.hint
        return None
    finally:
        control.close()
        os.close(into)
    return found
