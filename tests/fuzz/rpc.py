"""INVARIANT: whatever a client sends, in whatever pieces, each line that is not blank gives one call, one fault or nothing (a response), and the line after it is read as if it had not been
there; what is answered is one line of ASCII; and an argument that a tool takes is of its type and within its bounds."""

from __future__ import annotations

import json

from stockade.server import rpc
from stockade.server.rpc import Call, Fault, Lines
from stockade.server.tools import TOOLS

WORDS = (
    b'{"jsonrpc":"2.0"', b',"id":1', b',"id":"a"', b',"id":null', b',"method":"tools/call"', b',"method":"ping"', b',"params":{', b'"name":"bash"', b'"name":"read"', b',"arguments":{',
    b'"command":"ls"', b'"path":"a"', b'"timeout":1', b'"offset":0', b"}", b"}}}", b"[", b"]", b"\n", b"NaN", b"1e999", b"\\ud800", b"\\u0000", b"true", b"\xff", b'"',
)  # fmt: skip
_CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"bash","arguments":{"command":"ls"%s}}}\n'
KEPT = {
    "nothing": b"",
    "a call": _CALL % b"",
    "an argument that there is not": _CALL % b',"host":true',
    "true for a number": _CALL % b',"timeout":true',
    "a number out of bounds": _CALL % b',"timeout":0',
    "half a surrogate pair": _CALL % b',"cwd":"\\ud800"',
    "a NUL": _CALL % b',"cwd":"\\u0000"',
    "no JSON": b'{"jsonrpc":\n',
    "no UTF-8": b'"\xff"\n',
    "a number that is none": b'{"jsonrpc":"2.0","id":NaN,"method":"ping"}\n',
    "an id that is no id": b'{"jsonrpc":"2.0","id":[],"method":"ping"}\n{"jsonrpc":"2.0","id":true,"method":"ping"}\n',
    "a batch": b'[{"jsonrpc":"2.0","id":1,"method":"ping"}]\n',
    "a response": b'{"jsonrpc":"2.0","id":1,"result":{}}\n',
    "an id that no encoding has": b'{"jsonrpc":"2.0","id":"\\udfff","method":"ping"}\n',
    "nesting": b"[" * 60000 + b"\n",
    "a number with more digits than Python converts": b'{"jsonrpc":"2.0","id":' + b"9" * 5000 + b',"method":"ping"}\n',
    "more than a line may hold": b" " * 3000 + b"x" * 3000 + b"\n",
}
FAULT = ("stockade.server.tools.Field.wrong", lambda field, value: "")
_AFTER = b'\n{"jsonrpc":"2.0","id":"after","method":"ping"}\n'
_LARGEST = 4096


def one(data: bytes) -> None:
    found = [*Lines(_LARGEST).feed(data + _AFTER)]
    last = found.pop()
    assert isinstance(last, Call) and (last.ident, last.method) == ("after", "ping")
    pieces = Lines(_LARGEST)
    again = [message for at in range(0, len(data), 7) for message in pieces.feed(data[at : at + 7])] + [*pieces.feed(_AFTER)]
    assert [*map(_plain, again[:-1])] == [*map(_plain, found)]
    assert len(found) <= sum(bool(line.strip()) for line in data.split(b"\n"))
    for message in found:
        if isinstance(message, Fault):
            _line(rpc.error(message), "error")
        else:
            if message.ident is not None:
                _line(rpc.result(message.ident, message.params), "result")
            _argued(message)


def _argued(message: Call) -> None:
    tool = TOOLS.get(str(message.params.get("name")))
    if tool is None:
        return
    try:
        found = tool.arguments(message.params.get("arguments", {}))
    except Fault as fault:
        _line(rpc.error(fault), "error")
        return
    assert found.keys() == tool.fields.keys()
    for name, value in found.items():
        field = tool.fields[name]
        assert type(value) is field.kind
        if isinstance(value, str):
            assert len(value.encode()) <= field.most and ("\0" not in value or field.most > 100_000)
        elif field.kind is int:
            assert field.least <= int(value) <= field.most


def _line(line: bytes, holds: str) -> None:
    assert line.isascii() and line.count(b"\n") == 1 and line.endswith(b"\n") and holds in json.loads(line)


def _plain(message: Call | Fault) -> tuple[object, ...]:
    if isinstance(message, Fault):
        return message.code, str(message), message.ident
    return message.method, message.ident, json.dumps(message.params)
