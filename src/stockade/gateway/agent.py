"""Sockets of the SSH agent protocol (draft-ietf-sshm-ssh-agent): one that the sandbox asks, one to the user's own agent. Reads no message, only lengths.

Served by the supervisor's own loop, so nothing here waits: a client that is slow, silent or too many is hung up on. Imported only by sessions that sign.
"""

from __future__ import annotations

import _socket
import os

from stockade.core.loop import READ

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.core.loop import Loop

    Reply = Callable[[bytes], None]

MOST = 8  # clients at once
PATIENCE = 20.0  # seconds in which a client has to have sent a whole request
AGAIN = 0.05  # seconds until a connection that has ended is lent anew: whoever inside begins and ends them without end keeps nobody busy
LONGEST_ANSWER = 256 << 10  # bytes that the real agent may answer; OpenSSH's own bound


class Incoming:
    """One message: its length in four bytes, then so many bytes. It is read to its last byte and no further."""

    def __init__(self, longest: int) -> None:
        self._longest, self._wanted, self._received = longest, 4, bytearray()

    def read(self, sock: _socket.socket) -> bytes | None:
        """The message, None as long as it is not all there. Raises EOFError when the peer has hung up, ValueError for a length that no message has."""
        try:
            piece = sock.recv(self._wanted - len(self._received))
        except BlockingIOError:
            return None
        except OSError:
            piece = b""
        if not piece:
            raise EOFError
        self._received += piece
        if len(self._received) < self._wanted:
            return None
        if self._wanted > 4:
            return bytes(self._received[4:])
        length = int.from_bytes(self._received, "big")
        if not 0 < length <= self._longest:
            raise ValueError(f"{length} bytes")
        self._wanted += length
        return None


class Client:
    """One connection of a client's: a request is answered before the next is read."""

    def __init__(self, sock: _socket.socket) -> None:
        self.sock, self.timer = sock, 0


class Agent:
    """Listens at `path` below `directory` (a descriptor). `answer(request, reply)` is called for each request and calls `reply` once, now or later.

    A request longer than `longest` bytes is handed on as b"", and its client hung up on after the reply.
    """

    def __init__(self, directory: int, name: str, longest: int) -> None:
        self._longest = longest
        self._loop: Loop | None = None
        self._answer: Callable[[bytes, Reply], None]
        self._clients: dict[int, Client] = {}
        self._give: Callable[[int], None] | None = None
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        path = f"/proc/self/fd/{directory}/{name}"  # a path below somebody's home may be longer than an address can be
        self._sock.bind(path)
        os.chmod(path, 0o600)
        self._sock.listen(MOST)

    def serve(self, loop: Loop, answer: Callable[[bytes, Reply], None]) -> None:
        """Begin to accept. Clients that came before have waited."""
        self._loop, self._answer = loop, answer
        loop.watch(self._sock.fileno(), READ, self._welcome)

    def lend(self, give: Callable[[int], None]) -> None:
        """Where nobody inside can connect here: `give` is handed one end of each connection, which it does not keep, before anybody has come to the other."""
        self._give = give
        for _ in range(MOST):
            self._lend()

    def _lend(self) -> None:
        if self._give is not None and self._sock.fileno() >= 0:
            sock, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
            self._give(theirs.fileno())
            theirs.close()
            client = self._clients[sock.fileno()] = Client(sock)
            self._expect(client, come=False)

    def _welcome(self, _events: int) -> None:
        try:
            fd, _ = self._sock._accept()  # type: ignore[attr-defined]  # what socket.accept wraps, without the import
        except OSError:
            return
        sock = _socket.socket(fileno=fd)
        sock.setblocking(False)
        if len(self._clients) >= MOST:
            sock.close()
            return
        client = self._clients[fd] = Client(sock)
        self._expect(client)

    def _expect(self, client: Client, *, come: bool = True) -> None:
        assert self._loop is not None
        incoming = Incoming(self._longest)
        client.timer = self._loop.later(PATIENCE, lambda: self._drop(client)) if come else 0
        self._loop.watch(client.sock.fileno(), READ, lambda _events: self._hear(client, incoming))

    def _hear(self, client: Client, incoming: Incoming) -> None:
        assert self._loop is not None
        try:
            message, last = incoming.read(client.sock), False
        except EOFError:
            self._drop(client)
            return
        except ValueError:
            message, last = b"", True
        if message is None:
            if not client.timer:  # it was lent, and somebody is there now
                client.timer = self._loop.later(PATIENCE, lambda: self._drop(client))
            return
        self._loop.forget(client.sock.fileno())
        self._loop.cancel(client.timer)
        self._answer(message, lambda said: self._reply(client, said, last=last))

    def _reply(self, client: Client, message: bytes, *, last: bool) -> None:
        if client.sock.fileno() < 0:
            return
        data = len(message).to_bytes(4, "big") + message
        try:
            if client.sock.send(data, _socket.MSG_NOSIGNAL) == len(data) and not last:
                self._expect(client)
                return
        except OSError:
            pass  # it is gone, or does not read its answers
        self._drop(client)

    def _drop(self, client: Client) -> None:
        fd = client.sock.fileno()
        if fd >= 0 and self._loop is not None:
            self._loop.forget(fd)
            self._loop.cancel(client.timer)
            self._clients.pop(fd, None)
            client.sock.close()
            if self._give is not None:
                self._loop.later(AGAIN, self._lend)

    def close(self) -> None:
        """Hang up on everybody and refuse whoever comes; the path stays. May be called twice."""
        self._give = None
        for client in [*self._clients.values()]:
            self._drop(client)
        if self._sock.fileno() >= 0:
            if self._loop is not None:
                self._loop.forget(self._sock.fileno())
            self._sock.close()


class Asking:
    """One question to the agent at `path`. `done(answer, why)` is called once: with its answer, or with b"" and what went wrong."""

    def __init__(self, loop: Loop, path: str, question: bytes, seconds: float, done: Callable[[bytes, str], None]) -> None:
        self._loop, self._done, self._incoming = loop, done, Incoming(LONGEST_ANSWER)
        self._sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        self._timer = loop.later(seconds, lambda: self._end(b"", f"it did not answer within {seconds:g} s"))
        data = len(question).to_bytes(4, "big") + question
        try:
            self._sock.connect(path)  # of a Unix socket it is done at once or not at all (unix(7))
            if self._sock.send(data, _socket.MSG_NOSIGNAL) != len(data):
                raise OSError(0, "it does not take the question")
        except (OSError, ValueError) as error:  # ValueError: a path that no address can hold
            self._end(b"", getattr(error, "strerror", None) or str(error))
            return
        loop.watch(self._sock.fileno(), READ, self._hear)

    def _hear(self, _events: int) -> None:
        try:
            answer = self._incoming.read(self._sock)
        except EOFError:
            self._end(b"", "it hung up")
        except ValueError:
            self._end(b"", "its answer is no answer")
        else:
            if answer is not None:
                self._end(answer, "")

    def _end(self, answer: bytes, why: str) -> None:
        if self.give_up():
            self._done(answer, why)

    def give_up(self) -> bool:
        """Hang up; `done` is not called any more. Whether there was something to give up."""
        self._loop.cancel(self._timer)
        if self._sock.fileno() < 0:
            return False
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        return True
