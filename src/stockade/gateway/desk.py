"""Where a running session takes orders from its user: a Unix socket in its own directory, one message in, one message out (unix(7), SOCK_SEQPACKET).

Orders narrow: grants can be looked at and revoked, never added; the session can be paused, and goes on as it was. And they answer what was asked, by a rule that says
that it may be (session/approvals.py). Whoever can open the socket has the user's rights on this machine; the
directory is closed to everybody else, and the kernel says who is calling. HOT: made on the path of every `stockade run`; what it needs to answer is
imported when somebody asks.
"""

from __future__ import annotations

import _socket
import os
from struct import unpack

from stockade.core.errors import StockadeError
from stockade.core.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stockade.core.loop import Loop

    Message = dict[str, Any]
    # (order, answer): calls `answer` once, now or later. Raises StockadeError for a no, ValueError for what is no order.
    Obey = Callable[[Message, Callable[[Message], None]], None]

NAME = "desk"
LONGEST = 64 << 10  # bytes of a message
MOST = 16  # callers at once


class Desk:
    """Listens in `directory` (a descriptor) until `close`, and hands each order to `obey`."""

    def __init__(self, directory: int, loop: Loop, obey: Obey) -> None:
        self._loop, self._obey = loop, obey
        self._callers: dict[int, _socket.socket] = {}
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        self._sock.bind(f"/proc/self/fd/{directory}/{NAME}")  # a path below somebody's home may be longer than an address can be
        self._sock.listen(MOST)
        loop.watch(self._sock.fileno(), READ, self._welcome)

    def _welcome(self, _events: int) -> None:
        try:
            fd, _ = self._sock._accept()  # type: ignore[attr-defined]  # what socket.accept wraps, without the import
        except OSError:
            return
        caller = _socket.socket(fileno=fd)
        caller.setblocking(False)
        _, uid, _ = unpack("3i", caller.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()) or len(self._callers) >= MOST:
            caller.close()
            return
        self._callers[fd] = caller
        self._loop.watch(fd, READ, lambda _events: self._hear(caller))

    def _hear(self, caller: _socket.socket) -> None:
        import json

        try:
            data = caller.recv(LONGEST)
        except OSError:
            data = b""
        self._loop.forget(caller.fileno())
        try:
            order = json.loads(data)
            if not isinstance(order, dict):
                raise ValueError("an order is a JSON object")
            self._obey(order, lambda said: self._answer(caller, said))
        except StockadeError as error:
            self._answer(caller, error.plain())
        except (ValueError, RecursionError) as error:
            self._answer(caller, {"error": "session.order", "message": f"this is no order: {error}", "hint": ""})

    def _answer(self, caller: _socket.socket, message: Message) -> None:
        import json

        if caller.fileno() < 0:
            return
        self._callers.pop(caller.fileno(), None)
        try:
            caller.send(json.dumps(message).encode(), _socket.MSG_NOSIGNAL)
        except OSError:
            pass  # it did not wait, or what it asked for does not fit: it is hung up on
        finally:
            caller.close()

    def close(self) -> None:
        """Stop listening and hang up on everybody; may be called twice."""
        for one in (self._sock, *self._callers.values()):
            if one.fileno() >= 0:
                self._loop.forget(one.fileno())
                one.close()
        self._callers.clear()


def ask(directory: str, order: Message, seconds: float = 10.0) -> Message:
    """Give an order to the session in `directory` and return its answer. Raises StockadeError: what the session says, or `session.silent`."""
    import json
    import socket

    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(seconds)
                sock.connect(f"/proc/self/fd/{fd}/{NAME}")
                sock.send(json.dumps(order).encode())
                data = sock.recv(1 << 20)
        finally:
            os.close(fd)
    except OSError as error:
        raise StockadeError(
            f"the session does not answer: {error}",
            code="session.silent",
            hint="It has just ended, or it is stopped: stockade session list",
        ) from error
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise StockadeError("the session hung up", code="session.silent", hint="stockade session list shows whether it still runs.")
    if "error" in found:
        raise StockadeError(str(found.get("message")), code=str(found["error"]), hint=str(found.get("hint", "")))
    return found
