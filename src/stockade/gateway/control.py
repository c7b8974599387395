"""The supervisor's end of the line to its gate: newline-delimited JSON over a Unix stream. HOT: nothing is imported until a gate is started.

The gate is confined and may be taken over by what it parses, so its messages are checked like a stranger's: closed kinds, closed fields, bounded sizes.
It cannot name a session: the supervisor writes that into each event itself.
"""

from __future__ import annotations

import os

from stockade.core.errors import WallFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Literal

    Message = (
        tuple[Literal["ca"], str]
        | tuple[Literal["ready"]]
        | tuple[Literal["revoked"]]
        | tuple[Literal["failed"], str]
        | tuple[Literal["event", "ask"], int, dict[str, object]]
        | tuple[Literal["withdrawn"], int]
    )

_LONGEST = 1 << 16  # bytes of a line
_FIELDS = {
    "egress": ("effect", "rule", "way", "scheme", "method", "host", "port", "path", "query", "length", "credential", "canary", "secret"),
    "dns": ("effect", "name", "type", "canary"),
    "connect": ("effect", "rule", "host"),
    "credential": ("name",),
    "tool": ("effect", "rule", "tool", "digest", "length"),
    "file": ("effect", "rule", "path", "digest", "length"),
    "mount": ("effect", "rule", "path"),
}
_SHOWN = (
    "place",
    "asks",
    "hidden",
    "begins",
)  # of what a person is asked: the place of the grant in the configuration, the query and how many characters more it has, and how the body begins
_LONGEST_VALUE = 2048
_CONTENT = "content"  # of a file that is asked about, in base64: longer than any other field
_LONGEST_CONTENT = ((32 << 10) + 2) // 3 * 4  # what gateway/hooks.py takes
_MOST_WAITING = 1 << 24  # bytes that the gate has not read yet


class Introductions:
    """Our end of the socket on which sessions are introduced to a gate; `theirs` is the gate's, to be closed once the gate has it.

    The gate ends when we `close`. It says how many sessions it has whenever that changes.
    """

    def __init__(self) -> None:
        import socket

        self._sock, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs = other.detach()

    def fileno(self) -> int:
        return self._sock.fileno()

    def introduce(self, fds: Sequence[int]) -> None:
        """Bring a session: its line, then its door's sockets. Raises OSError when the gate is gone."""
        import socket

        socket.send_fds(self._sock, [b"session"], list(fds), socket.MSG_NOSIGNAL)

    def count(self) -> int:
        """How many sessions the gate has, by its last word, which must be there; -1 = the gate is gone."""
        try:
            said = self._sock.recv(32)
        except OSError:
            said = b""
        return int(said) if said.isdigit() and len(said) < 9 else -1

    def close(self) -> None:
        """Hang up."""
        self._sock.close()


class Control:
    """Reads and answers one gate. `fd` is ours from now on and becomes non-blocking; use `fileno` and `wants_to_write` in a poll loop."""

    def __init__(self, fd: int, session: str) -> None:
        os.set_blocking(fd, False)
        self._fd, self._session = fd, session
        self._incoming, self._outgoing = bytearray(), bytearray()
        self.closed = False

    def fileno(self) -> int:
        return self._fd

    @property
    def wants_to_write(self) -> bool:
        """Poll for writing too, and call `flush` when the descriptor is writable."""
        return bool(self._outgoing)

    def configure(self, config: dict[str, object]) -> None:
        """Send the first line. It holds secrets: it goes to the gate and nowhere else."""
        self._send(config)

    def acknowledge(self, *numbers: int) -> None:
        """Tell the gate that events are in the ledger. Until then it lets nothing happen."""
        self._put(b"".join([b'{"id":%d}\n' % number for number in numbers]))  # for every request

    def answer(self, number: int, allow: bool, why: str = "") -> None:
        """Tell the gate what was said to something it asked about; `why` not is for whoever is inside."""
        self._send({"id": number, "verdict": "allow" if allow else "deny", **({"why": why} if why else {})})

    def revoke(self, positions: list[int]) -> None:
        """Take grants back, by their place in the configuration. The gate answers "revoked" when nothing passes by them any more."""
        self._send({"revoke": positions})

    def revoke_tokens(self, ids: list[str]) -> None:
        """Take tokens back, by the names of their blocks. Answered as `revoke`."""
        self._send({"revoke_tokens": ids})

    def taint(self) -> None:
        """Say that the session has read something secret. The gate answers "revoked" when nothing passes any more by what does not hold after that."""
        self._send({"taint": True})

    def receive(self) -> list[Message]:
        """The whole messages that are there; `closed` is true after the gate has gone. Raises WallFailed (`gate.protocol`) for anything malformed."""
        while True:
            try:
                chunk = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                break
            except OSError:
                chunk = b""
            if not chunk:
                self.closed = True
                break
            self._incoming += chunk
            if len(chunk) < 1 << 16 or len(self._incoming) >= 4 * _LONGEST:
                break  # there is no more, or it waits until the next turn
        *lines, rest = bytes(self._incoming).split(b"\n")
        self._incoming = bytearray(rest)
        if len(rest) > _LONGEST:
            raise _broken("a line without an end")
        return [self._parse(line) for line in lines]

    def flush(self) -> None:
        """Write what is waiting, as far as the gate takes it."""
        while self._outgoing:
            try:
                del self._outgoing[: os.write(self._fd, self._outgoing)]
            except BlockingIOError:
                return
            except OSError:
                self.closed = True
                self._outgoing.clear()

    def close(self) -> None:
        """Hang up: the gate exits at once. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self.closed = True

    def _send(self, message: dict[str, object]) -> None:
        import json

        self._put(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    def _put(self, line: bytes) -> None:
        self._outgoing += line
        if len(self._outgoing) > _MOST_WAITING:
            raise _broken("it does not read what it is told")
        self.flush()

    def _parse(self, line: bytes) -> Message:
        import json

        try:
            message = json.loads(line) if len(line) <= _LONGEST else None
        except (ValueError, RecursionError):
            message = None
        match message:
            case {"id": int(number), "event": dict(event), **rest} if not rest and type(number) is int and 0 < number < 1 << 53:
                return ("event", number, self._event(event, ("allow", "deny")))
            case {"ca": str(pem), **rest} if not rest and pem.startswith("-----BEGIN CERTIFICATE-----") and pem.isascii():
                return ("ca", pem)
            case {"ready": True, **rest} if not rest:
                return ("ready",)
            case {"revoked": True, **rest} if not rest:
                return ("revoked",)
            case {"failed": str(text), **rest} if not rest:
                return ("failed", ascii(text[:_LONGEST_VALUE])[1:-1])
            case {"id": int(number), "ask": dict(event), **rest} if not rest and type(number) is int and 0 < number < 1 << 53:
                return ("ask", number, self._event(event, ("ask",), _SHOWN))
            case {"withdrawn": int(number), **rest} if not rest and type(number) is int and 0 < number < 1 << 53:
                return ("withdrawn", number)
        raise _broken("a message of no known kind")

    def _event(self, event: dict[object, object], effects: tuple[str, ...], more: tuple[str, ...] = ()) -> dict[str, object]:
        kind = event.get("kind")
        known = _FIELDS.get(kind) if isinstance(kind, str) else None
        if known is None:
            raise _broken("an event of no known kind")
        clean: dict[str, object] = {"kind": kind, "session": self._session}
        for name, value in event.items():
            if name in ("kind", "session"):
                continue
            longest = _LONGEST_CONTENT if name == _CONTENT else _LONGEST_VALUE
            text = isinstance(value, str) and len(value) <= longest and value.isascii() and value.isprintable()
            content = more and kind == "file" and name == _CONTENT
            if (name not in (*known, *more) and not content) or not (text or (type(value) is int and -1 <= value < 1 << 53)):
                raise _broken(f"an event of kind {kind} with a field that it cannot have")
            clean[str(name)] = value
        if "effect" in known and clean.get("effect") not in effects:
            raise _broken("an event without an effect")
        return clean


def _broken(what: str) -> WallFailed:
    return WallFailed(
        f"the gate sent {what}" if not what.startswith("it ") else f"the gate: {what}",
        code="gate.protocol",
        hint="The gate is ended and the network stays closed. This should not happen: please report it.",
    )
