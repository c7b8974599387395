"""JSON-RPC 2.0 without I/O: bytes in, messages and faults out, and the texts of answers. What a client of `stockade tools` sends is read here and nowhere else.

One message is one line, or the body of one request of HTTP (Model Context Protocol, revision 2025-06-18, "Transports"). Batches are refused, as that revision does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from stockade.core.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator

LARGEST = 8 << 20  # bytes of one message
PARSE, INVALID, NO_METHOD, BAD_PARAMS, BUSY = -32700, -32600, -32601, -32602, -32000  # JSON-RPC 2.0, section 5.1; the last is ours
type Ident = str | int


@frozen
class Call:
    """A request (`ident` is not None: it wants an answer) or a notification."""

    method: str
    params: dict[str, Any]
    ident: Ident | None = None


class Fault(Exception):
    """Something that is no call: what to answer. `ident` is None where it could not be read."""

    def __init__(self, code: int, message: str, ident: Ident | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.ident = code, message, ident


class Lines:
    """Bytes of a stream, cut into messages. A line that is too long is one fault, and the next line is read as ever."""

    def __init__(self, largest: int = LARGEST) -> None:
        self._largest, self._held, self._over = largest, bytearray(), False

    def feed(self, data: bytes) -> Iterator[Call | Fault]:
        """Take some bytes; gives what they complete. INVARIANT: never more than `largest` bytes and one piece are held."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._hold(line)
            whole, over, self._held, self._over = bytes(self._held), self._over, bytearray(), False
            if over:
                yield Fault(INVALID, f"the message is larger than {self._largest} bytes; nothing was done")
            elif whole.strip():
                found = read(whole)
                if found is not None:
                    yield found
        self._hold(rest)

    def _hold(self, piece: bytes) -> None:
        if self._over or len(self._held) + len(piece) > self._largest:
            self._over = True
            self._held.clear()
        else:
            self._held += piece


def read(line: bytes) -> Call | Fault | None:
    """What one line or body says; None for a response, since we ask nothing. Never raises."""
    try:
        said = json.loads(line.decode("utf-8"), parse_constant=_never)
    except (ValueError, RecursionError):  # no UTF-8, no JSON, a number that is none, nested without end
        return Fault(PARSE, "this is no JSON text")
    if not isinstance(said, dict):
        return Fault(INVALID, "a message is one JSON object; batches are not taken")
    ident = said.get("id")
    if "id" in said and (isinstance(ident, bool) or not isinstance(ident, str | int)):
        return Fault(INVALID, "id has to be a string or an integer")
    if said.get("jsonrpc") != "2.0":
        return Fault(INVALID, 'jsonrpc has to be "2.0"', ident)
    if "method" not in said and ("result" in said or "error" in said):
        return None
    method, params = said.get("method"), said.get("params", {})
    if not isinstance(method, str):
        return Fault(INVALID, "method has to be a string", ident)
    if not isinstance(params, dict):
        return Fault(BAD_PARAMS, "params has to be an object", ident)
    return Call(method, params, ident)


def _never(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def result(ident: Ident, value: dict[str, Any]) -> bytes:
    """The line that answers a request."""
    return _line({"jsonrpc": "2.0", "id": ident, "result": value})


def error(fault: Fault) -> bytes:
    """The line that says what was wrong."""
    return _line({"jsonrpc": "2.0", "id": fault.ident, "error": {"code": fault.code, "message": fault.message}})


def _line(value: dict[str, Any]) -> bytes:
    return (
        json.dumps(value).encode("ascii") + b"\n"
    )  # ASCII: no character of a sandbox's choice ends a line, whatever the client takes for an end
