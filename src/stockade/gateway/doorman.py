"""The doorman: accepts on the sockets of every session's door, says in PROXY v2 where each connection wanted to go and whose it is, and splices bytes it
never reads.

A process of its own, forked before any secret arrives. Half-closes are passed on, a slow reader stops its writer, and the number of connections is capped for
each session and in all: past the cap connections wait in the listen queue. (proxy-protocol.txt, version 2; splice(2); epoll(7), edge-triggered.)
"""

from __future__ import annotations

import os

from stockade.gateway import engine
from stockade.gateway.proxy_protocol import proxy_header

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    import socket
    from collections.abc import Callable

# EPOLLIN, OUT, ERR | HUP, RDHUP and ET (epoll_ctl(2)): select's own names would cost an import where they are looked at
_IN, _OUT, _BROKEN, _HALF, _EDGE = 0x1, 0x4, 0x8 | 0x10, 0x2000, 1 << 31
_CHUNK = 1 << 16  # a pipe's default capacity (pipe(7))
_ROUNDS = 16  # chunks a connection may move before others get their turn
_MOST_DISCARDED = 64 << 20  # bytes
MOST_CONNECTIONS = 1024  # of one session
LONGEST_ORDER = 4096  # bytes
MOST_LISTENERS = 64  # of one session


class _Pair:
    """One connection: two sockets, a pipe for each direction, and how many bytes are in each pipe."""

    number = ""  # what the brain knows it by

    def __init__(self, inside: socket.socket, outside: socket.socket) -> None:
        self.sockets = (inside, outside)
        self.pipes = (os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC), os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        self.held = [0, 0]
        self.ended = [False, False]
        self.shut = [False, False]
        self.due = [False, False]  # ways in which something may move
        self.discarded = -1  # bytes thrown away since the engine stopped listening, -1 = it listens

    def take(self, way: int) -> int:
        """Read what is there; how much, 0 at the end. Raises BlockingIOError for nothing yet."""
        into = self.pipes[way][1]
        return os.splice(self.sockets[way].fileno(), into, _CHUNK - self.held[way], flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)

    def give(self, way: int) -> int:
        """Write what was read, as far as it goes; how much. Raises BlockingIOError when nothing goes."""
        target = self.sockets[1 - way].fileno()
        return os.splice(self.pipes[way][0], target, self.held[way], flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE)

    def lose(self, way: int) -> int:
        """Throw away what was read; how much."""
        return len(os.read(self.pipes[way][0], self.held[way]))

    def ready(self, end: int, events: int) -> None:
        """Take note of what epoll says of one of the sockets. With edges a socket that could be written to before is reported with every byte that comes."""
        if events & (_IN | _HALF | _BROKEN):
            self.due[end] = True
        if events & _BROKEN or (events & _OUT and self.held[1 - end]):
            self.due[1 - end] = True

    def pump(self) -> bool | None:
        """Move what can be moved. True: more may be ready; False: wait for events; None: both directions have ended. Raises OSError on a broken connection."""
        for way in (0, 1):
            if self.due[way]:
                self.due[way] = not self.shut[way] and self._pump_way(way)
        return None if all(self.shut) else any(self.due)

    def _pump_way(self, way: int) -> bool:
        for _ in range(_ROUNDS):
            moved = False
            if not self.ended[way] and self.held[way] < _CHUNK:
                try:
                    count = self.take(way)
                    self.ended[way] = count == 0
                    self.held[way] += count
                    moved = True
                except BlockingIOError:
                    pass
            if self.held[way]:
                try:
                    self.held[way] -= self._write(way)
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

    def _write(self, way: int) -> int:
        """Hand what was read to its target. An engine that hung up in the middle of an upload has an answer (413) that the client still has to read: go on
        reading the upload for a while, for nothing, so that the kernel does not reset the connection under it (RFC 9112, section 9.6)."""
        if way or self.discarded < 0:
            try:
                return self.give(way)
            except (BrokenPipeError, ConnectionResetError):
                if way:
                    raise
                self.discarded = 0
        count = self.lose(way)
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


class _WatchedPair(_Pair):
    """A connection of a session that has not opened anything secret yet: bytes pass while its alarm is silent, and never after, in neither direction (how
    fast inside reads would tell something, too).

    INVARIANT: the alarm is asked after the bytes are ours and before they move on, so what passes was sent before anything secret was opened. Hence copied,
    not spliced: a page that was lent to the socket (sendfile(2), vmsplice(2)) can still be written to by whoever lent it.
    """

    def __init__(self, inside: socket.socket, outside: socket.socket, rung: Callable[[], bool]) -> None:
        super().__init__(inside, outside)
        self._rung, self._kept = rung, bytearray()

    def take(self, way: int) -> int:
        data = b"" if way else self.sockets[0].recv(_CHUNK - self.held[0])
        if self._rung():
            raise ConnectionAbortedError("something secret was opened")
        if way:
            return super().take(way)
        self._kept += data
        return len(data)

    def give(self, way: int) -> int:
        if way:
            return super().give(way)
        count = self.sockets[1].send(self._kept)
        del self._kept[:count]
        return count

    def lose(self, way: int) -> int:
        if way:
            return super().lose(way)
        count = len(self._kept)
        self._kept.clear()
        return count


class _Guest:
    """One session: its door's listeners (descriptor -> socket, path of the engine's Unix socket), its connections, and the descriptors that become readable
    when it has opened something secret (walls/watch.py)."""

    def __init__(self, name: str, listeners: dict[int, tuple[socket.socket, str]], watch: list[int]) -> None:
        import select

        self.name, self.listeners, self._watch = name, listeners, watch
        self._alarm = select.poll()
        for fd in watch:
            self._alarm.register(fd, select.POLLIN)
        self.pairs: set[_Pair] = set()
        self.names: dict[str, str] = {}  # by the address that was given out for each
        self.accepting = False

    @property
    def watched(self) -> bool:
        return bool(self._watch)

    def rung(self) -> bool:
        """Whether something secret was opened, and the brain does not decide accordingly yet."""
        return bool(self._watch and self._alarm.poll(0))

    def unwatch(self) -> None:
        """Nobody need know any more; may be called twice."""
        while self._watch:
            os.close(self._watch.pop())


class Doorman:
    """Serves the doors of any number of sessions. `most` bounds the connections of all; `orders` is the brain's end of a pair (SOCK_SEQPACKET), on which it
    says {"open": session, "paths": [...], "watch": n} with a listening descriptor for each path and then n of its watch, {"name": host, "address": what was
    given out for it, "session": ...}, {"cut": session, "spare": connection or ""}, {"taint": session} (cut, and decided by narrower rules from now on), and {"close": session}.
    """

    def __init__(self, orders: socket.socket, most: int) -> None:
        import select

        self._orders = orders
        self._epoll: select.epoll = select.epoll()
        self._guests: dict[str, _Guest] = {}
        self._listeners: dict[int, _Guest] = {}
        self._pairs: dict[int, tuple[_Guest, _Pair, int]] = {}  # by descriptor; the end is 0 inside, 1 outside
        self._busy: dict[_Pair, _Guest] = {}
        self._waiting: set[_Guest] = set()  # sessions whose connections wait in the listen queue
        self._free, self._last = most, 0
        self._epoll.register(orders.fileno(), 1)  # EPOLLIN

    def turn(self) -> None:
        """Wait for something to do, and do it. Raises EOFError when the brain is gone."""
        ready = self._epoll.poll(0 if self._busy else -1)
        busy, self._busy = self._busy, {}
        listeners = []
        for fd, events in ready:
            if fd in self._pairs:
                guest, pair, end = self._pairs[fd]
                pair.ready(end, events)
                busy[pair] = guest
            elif fd in self._listeners:
                listeners.append(fd)
        if any(fd == self._orders.fileno() for fd, _ in ready):
            self._obey()
            # INVARIANT: nothing of what was found ready before an order is moved after it.
            self._busy = {pair: guest for pair, guest in busy.items() if pair in guest.pairs}
            return
        for fd in listeners:
            self._welcome(self._listeners[fd], fd)
        for pair, guest in busy.items():
            if pair in guest.pairs:  # else it was cut together with another
                self._pump(guest, pair)

    def _obey(self) -> None:
        import json
        import socket

        data, fds, flags, _ = socket.recv_fds(self._orders, LONGEST_ORDER, MOST_LISTENERS)
        if not data:
            raise EOFError("the brain is gone")
        if flags & socket.MSG_CTRUNC:
            raise ValueError("an order came with more descriptors than it can have")
        match json.loads(data):
            case {"open": str(name), "paths": list(paths), "watch": int(count)} if (
                count >= 0 and len(paths) + count == len(fds) and name not in self._guests
            ):
                doors, watch = fds[: len(paths)], fds[len(paths) :]
                self._open(name, {fd: (socket.socket(fileno=fd), path) for fd, path in zip(doors, paths, strict=True)}, watch)
            case {"name": str(host), "address": str(address), "session": str(name)} if name in self._guests:
                self._guests[name].names[address] = host
            case {"cut": str(name), "spare": str(number)} if name in self._guests:
                self._cut(self._guests[name], number)
            case {"taint": str(name)} if name in self._guests:
                self._cut(self._guests[name])
                self._guests[name].unwatch()
            case {"close": str(name)} if name in self._guests:
                self._close(self._guests.pop(name))
            case _:
                raise ValueError("an order of no known kind")

    def _open(self, name: str, listeners: dict[int, tuple[socket.socket, str]], watch: list[int]) -> None:
        guest = self._guests[name] = _Guest(name, listeners, watch)
        for fd, (listener, _) in listeners.items():
            listener.setblocking(False)
            self._listeners[fd] = guest
        self._admit(guest)

    def _close(self, guest: _Guest) -> None:
        self._admit(guest, False)
        self._waiting.discard(guest)
        for fd, (listener, _) in guest.listeners.items():
            del self._listeners[fd]
            listener.close()
        guest.listeners = {}
        self._cut(guest)
        guest.unwatch()

    def _cut(self, guest: _Guest, spare: str = "") -> None:
        """End every connection of a session at once, but the one of this number; what is in the pipes goes nowhere."""
        for pair in [*guest.pairs]:
            if not spare or pair.number != spare:
                self._drop(guest, pair)

    def _admit(self, guest: _Guest, wanted: bool = True) -> None:
        """Accept a session's connections, or leave them waiting."""
        (self._waiting.discard if wanted else self._waiting.add)(guest)
        if wanted == guest.accepting:
            return
        guest.accepting = wanted
        for fd in guest.listeners:
            if wanted:
                self._epoll.register(fd, 1)  # EPOLLIN
            else:
                self._epoll.unregister(fd)

    def _full(self, guest: _Guest) -> bool:
        """A session may have as many connections as are still free: so whoever takes a lot always leaves as much to the others."""
        return len(guest.pairs) >= min(MOST_CONNECTIONS, self._free)

    def _pump(self, guest: _Guest, pair: _Pair) -> None:
        try:
            state = pair.pump()
        except OSError:
            state = None
        if state is None and guest.rung():
            self._cut(guest)  # all at once: which of them inside has ended first would tell something
        elif state is None:
            self._drop(guest, pair)
        elif state:
            self._busy[pair] = guest

    def _drop(self, guest: _Guest, pair: _Pair) -> None:
        for end in pair.sockets:
            del self._pairs[end.fileno()]
        pair.close()
        guest.pairs.discard(pair)
        self._busy.pop(pair, None)
        self._free += 1
        for waiting in [*self._waiting]:
            if not self._full(waiting):
                self._admit(waiting)

    def _welcome(self, guest: _Guest, fd: int) -> None:
        import socket

        listener, path = guest.listeners[fd]
        try:
            inside, source = listener.accept()
        except OSError:
            return
        if guest.rung():  # where inside connects to tells something, too
            inside.close()
            return
        outside = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            inside.setblocking(False)
            outside.connect(path)
            wanted = inside.getsockname()[:2]
            self._last += 1
            number = str(self._last)
            header = proxy_header(guest.name, source[:2], wanted, guest.names.get(wanted[0].removeprefix("::ffff:"), ""), number)
            if outside.send(header) != len(header):
                raise OSError("short write")
            inside.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            pair = _WatchedPair(inside, outside, guest.rung) if guest.watched else _Pair(inside, outside)
            pair.number = number
        except OSError:  # the engine is gone or full, or the client is: closed, never sent elsewhere
            inside.close()
            outside.close()
            return
        for end, one in enumerate(pair.sockets):
            self._pairs[one.fileno()] = guest, pair, end
            self._epoll.register(one.fileno(), _IN | _OUT | _HALF | _EDGE)
        guest.pairs.add(pair)
        self._free -= 1
        if self._full(guest):
            self._admit(guest, False)


def serve(orders: socket.socket) -> None:
    """Serve until the brain is gone (EOFError). Raises the open-files limit to what the kernel grants (six descriptors a connection)."""
    doorman = Doorman(orders, max(1, (engine.open_files() - 64) * 3 // 4 // 6))  # the rest is for listeners
    while True:
        doorman.turn()
