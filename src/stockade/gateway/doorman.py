"""The doorman: accepts on the door's sockets, says in PROXY v2 where each connection wanted to go and whose it is, and splices bytes it never reads.

A process of its own, forked before any secret arrives. Half-closes are passed on, a slow reader stops its writer, and the number of connections is capped:
past the cap connections wait in the listen queue. (proxy-protocol.txt, version 2; splice(2); epoll(7), edge-triggered.)
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    import socket

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_SESSION_TLV = 0xE0  # first of the range for private use (proxy-protocol.txt, section 2.2)
_CHUNK = 1 << 16  # a pipe's default capacity (pipe(7))
_ROUNDS = 16  # chunks a connection may move before others get their turn
_MOST_DISCARDED = 64 << 20  # bytes
MOST_CONNECTIONS = 1024
CUT = b"cut\n"  # what the brain writes when every connection has to end


def proxy_header(session: str, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    """The PROXY v2 header of one connection. IPv4-mapped addresses are written as IPv4."""
    import _socket as socket

    addresses = [address.removeprefix("::ffff:") if "." in address else address for address in (source[0], destination[0])]
    four = all(":" not in address for address in addresses)
    if not four:
        addresses = [address if ":" in address else f"::ffff:{address}" for address in addresses]
    family = socket.AF_INET if four else socket.AF_INET6
    packed = b"".join(socket.inet_pton(family, address.partition("%")[0]) for address in addresses)
    packed += source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
    name = session.encode()
    body = packed + bytes([_SESSION_TLV]) + len(name).to_bytes(2, "big") + name
    return _SIGNATURE + bytes([0x21, 0x11 if four else 0x21]) + len(body).to_bytes(2, "big") + body


class _Pair:
    """One connection: two sockets, a pipe for each direction, and how many bytes are in each pipe."""

    def __init__(self, inside: socket.socket, outside: socket.socket) -> None:
        self.sockets = (inside, outside)
        self.pipes = (os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC), os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self.held = [0, 0]
        self.ended = [False, False]
        self.shut = [False, False]
        self.discarded = -1  # bytes thrown away since the engine stopped listening, -1 = it listens

    def pump(self) -> bool | None:
        """Move what can be moved. True: more may be ready; False: wait for events; None: both directions have ended. Raises OSError on a broken connection."""
        more = False
        for way in (0, 1):
            if not self.shut[way]:
                more = self._pump_way(way) or more
        return None if all(self.shut) else more

    def _pump_way(self, way: int) -> bool:
        source, (out, into) = self.sockets[way].fileno(), self.pipes[way]
        for _ in range(_ROUNDS):
            moved = False
            if not self.ended[way] and self.held[way] < _CHUNK:
                try:
                    count = os.splice(source, into, _CHUNK - self.held[way], flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
                    self.ended[way] = count == 0
                    self.held[way] += count
                    moved = True
                except BlockingIOError:
                    pass
            if self.held[way]:
                try:
                    self.held[way] -= self._write(way, out)
                    moved = True
                except BlockingIOError:
                    pass
            if self.ended[way] and not self.held[way]:
                self.shut[way] = True
                if way or self.discarded < 0:
                    self.sockets[1 - way].shutdown(1)  # SHUT_WR
                return False
            if not moved:
                return False
        return True

    def _write(self, way: int, out: int) -> int:
        """Empty the pipe towards its target. An engine that hung up in the middle of an upload has an answer (413) that the client still has to read: go on
        reading the upload for a while, for nothing, so that the kernel does not reset the connection under it (RFC 9112, section 9.6)."""
        if way or self.discarded < 0:
            try:
                return os.splice(out, self.sockets[1 - way].fileno(), self.held[way], flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)
            except (BrokenPipeError, ConnectionResetError):
                if way:
                    raise
                self.discarded = 0
        count = len(os.read(out, self.held[way]))
        self.discarded += count
        if self.discarded > _MOST_DISCARDED:
            raise ConnectionAbortedError
        return count

    def close(self) -> None:
        for end in self.sockets:
            end.close()
        for pipe in self.pipes:
            os.close(pipe[0])
            os.close(pipe[1])


class Doorman:
    """Serves `listeners` (descriptor -> path of the engine's Unix socket) for one session. `told` is a pipe on which the brain says `CUT` (-1 = none)."""

    def __init__(self, session: str, listeners: dict[int, str], most: int = MOST_CONNECTIONS, told: int = -1) -> None:
        import select
        import socket

        self._session, self._most = session, most
        self._epoll: select.epoll = select.epoll()
        self._listeners = {fd: (socket.socket(fileno=fd), path) for fd, path in listeners.items()}
        self._pairs: dict[int, _Pair] = {}
        self._busy: list[_Pair] = []
        self._open = 0
        self._accepting = False
        self._told = told
        if told >= 0:
            os.set_blocking(told, False)
            self._epoll.register(told, 1)  # EPOLLIN
        self._accept(True)

    def _accept(self, wanted: bool) -> None:
        if wanted == self._accepting:
            return
        self._accepting = wanted
        for fd, (listener, _) in self._listeners.items():
            listener.setblocking(False)
            if wanted:
                self._epoll.register(fd, 1)  # EPOLLIN
            else:
                self._epoll.unregister(fd)

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        ready = self._epoll.poll(0 if self._busy else -1)
        busy, self._busy = self._busy, []
        pairs = dict.fromkeys(busy)
        for fd, _ in ready:
            if fd == self._told:
                if not os.read(fd, 1 << 16):
                    raise EOFError("the brain is gone")
                self._cut()
                return
        for fd, _ in ready:
            if fd in self._listeners:
                self._welcome(*self._listeners[fd])
            elif fd in self._pairs:
                pairs[self._pairs[fd]] = None
        for pair in pairs:
            self._pump(pair)

    def _pump(self, pair: _Pair) -> None:
        try:
            state = pair.pump()
        except OSError:
            state = None
        if state is None:
            self._drop(pair)
        elif state:
            self._busy.append(pair)

    def _drop(self, pair: _Pair) -> None:
        for end in pair.sockets:
            del self._pairs[end.fileno()]
        pair.close()
        self._open -= 1
        self._accept(True)

    def _cut(self) -> None:
        """End every connection at once; what is in the pipes goes nowhere."""
        self._busy = []
        for pair in set(self._pairs.values()):
            self._drop(pair)

    def _welcome(self, listener: socket.socket, path: str) -> None:
        import select
        import socket

        try:
            inside, source = listener.accept()
        except OSError:
            return
        outside = socket.socket(socket.AF_UNIX)
        try:
            inside.setblocking(False)
            outside.setblocking(False)
            outside.connect(path)
            header = proxy_header(self._session, source[:2], inside.getsockname()[:2])
            if outside.send(header) != len(header):
                raise OSError("short write")
            inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _Pair(inside, outside)
        except OSError:  # the engine is gone or full, or the client is: closed, never sent elsewhere
            inside.close()
            outside.close()
            return
        for end in pair.sockets:
            self._pairs[end.fileno()] = pair
            self._epoll.register(end.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET)
        self._open += 1
        if self._open >= self._most:
            self._accept(False)


def serve(session: str, listeners: dict[int, str], told: int) -> None:
    """Serve for ever. Raises the open-files limit to what the kernel grants (six descriptors a connection)."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    doorman = Doorman(session, listeners, max(1, min(MOST_CONNECTIONS, (hard - 64) // 6)), told)
    while True:
        doorman.turn()
