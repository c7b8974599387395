"""Where a guest's kernel reports to: a Unix socket of ours that it connects to before it starts, and what of that goes on record.

Nobody in the guest waits for us: what does not fit into the socket is dropped and counted by the sender, and what comes faster than the ledger is to grow is
counted here, each kind of event by itself, so that many of one kind hide none of another. Both counts go on record.
"""

from __future__ import annotations

import _socket
import time

from stockade.walls import events

NAME = "events"
BATCH = 256  # messages read at once, before others have their turn
BURST, RATE = 500, 20.0  # events of one kind that go on record at once, and in a second from then on
PROGRAMS = 4096  # processes whose program is remembered
_OVERHEAD = 768  # bytes that the kernel counts for a short message, with what it keeps beside it
_NO_WAIT, _WHOLE = 0x40, 0x20  # MSG_DONTWAIT; MSG_TRUNC: the length that a message had (recv(2))

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.walls.events import Event

    Facts = dict[str, object]


class Sink:
    """Listens in `directory` (a descriptor, of the directory at `path`) for one connection. `connected` once the kernel has made it; `over` says why nothing
    more comes, "" = it is open. Raises OSError when the socket cannot be made.
    """

    def __init__(self, directory: int, path: str) -> None:
        self.path = f"{path}/{NAME}"
        self.connected = False
        self.over = ""
        self._listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        self._stream: _socket.socket | None = None
        self._room = 0  # bytes of messages that the queue takes at least
        self._buffer = memoryview(bytearray(events.LONGEST))
        self._budget: dict[str, tuple[float, float]] = {}  # kind: how many may be recorded, as of when
        self._missed: dict[str, int] = {}
        self._dropped = self._reported = 0
        self._queued = 0  # bytes that what was read since the queue was empty took up in it, about
        self._perhaps = False  # it was full, and no message from after that has said yet how many were dropped
        self._programs: dict[int, str] = {}
        self._alone = True  # our init in there has started nothing yet
        self._described: dict[int, None] = {}  # processes whose exec was reported with its argv, and not yet as a number
        try:
            self._listener.bind(f"/proc/self/fd/{directory}/{NAME}")  # a path below somebody's home may be longer than an address can be
            self._listener.listen(1)
        except OSError:
            self._listener.close()
            raise

    def fileno(self) -> int:
        """Readable when `take` has something to do. It changes with the connection."""
        return (self._stream or self._listener).fileno()

    @property
    def pending(self) -> bool:
        """Whether `lost` has something to say."""
        return bool(self._missed) or self._perhaps or self._dropped != self._reported

    def take(self) -> list[Facts]:
        """What goes on record of what has arrived, or of a part of it. Sets `over` at the end of the stream, and at anything that is not what runsc sends."""
        found: list[Facts] = []
        try:
            for _ in range(BATCH if self.connected or self.connect() else 0):
                message = self._next()
                if message is None:
                    break
                event = self._heard(message)
                if event is not None:
                    found.append(event)
        except BlockingIOError:
            self._queued = 0
        except (events.Malformed, OSError) as error:
            self._stop(str(error))
        return found

    def connect(self) -> bool:
        """Take the connection and answer its handshake, as far as that has come; whether it is made. Sets `over` when it cannot be."""
        try:
            if self._stream is None:
                fd, _ = self._listener._accept()  # type: ignore[attr-defined]  # what socket.accept wraps, without the import
                self._stream = _socket.socket(fileno=fd)
                self._room = (
                    self._stream.getsockopt(_socket.SOL_SOCKET, _socket.SO_SNDBUF) * 3 // 4
                )  # the sender's is as large, which is the default
            message = self._next()
            if message is not None:
                if events.version(message) < events.VERSION:
                    raise events.Malformed("a handshake without a version")
                self._stream.send(bytes((0x08, events.VERSION)), _NO_WAIT)  # Handshake.version
                self.connected = True
        except BlockingIOError:
            pass
        except (events.Malformed, OSError) as error:
            self._stop(str(error))
        return self.connected

    def begin(self) -> None:
        """What was said so far is about nobody's commands: a guest that has been made ready says so, too."""
        while not self.over and self.connected and self.take():
            pass
        self._alone = True

    def lost(self) -> list[Facts]:
        """What is not on record, since the last call: `count`, by kind of event where that is known, and the `reason`."""
        found: list[Facts] = []
        if self._dropped != self._reported:
            count = self._dropped - self._reported & 0xFFFFFFFF
            found.append({"count": count, "reason": "the guest's kernel could not send them: too many at once, or too long"})
            self._reported = self._dropped
        elif self._perhaps:
            found.append({"reason": "perhaps some: the socket was full, and the guest's kernel says how many only with its next event"})
        self._perhaps = False
        if self._missed:
            reason = f"more than {RATE:g} of a kind in a second"
            found.append({"count": sum(self._missed.values()), "reason": reason, "kinds": self._missed})
            self._missed = {}
        return found

    def close(self) -> None:
        """Stop listening. May be called twice."""
        self._listener.close()
        if self._stream is not None:
            self._stream.close()

    def _next(self) -> bytes | None:
        """One message; None at the end of the stream, or when there is none. Raises BlockingIOError, OSError, Malformed."""
        if self._stream is None or self.over:
            return None
        size = self._stream.recv_into(self._buffer, 0, _NO_WAIT | _WHOLE)
        if not size:
            self.over = "the guest's kernel has closed it"
            return None
        if size > events.LONGEST:
            raise events.Malformed(f"a message of {size} bytes")
        return self._buffer[:size].tobytes()

    def _stop(self, why: str) -> None:
        """Whatever else it says is not read, and not waited for; the descriptor stays until `close`, since a loop may know it."""
        self.over = why
        if self._stream is not None:
            try:
                self._stream.shutdown(2)  # SHUT_RDWR
            except OSError:
                pass

    def _heard(self, message: bytes) -> Facts | None:
        """What goes on record of a message. Raises Malformed."""
        if not self._queued:
            self._perhaps = False  # sent when the queue was empty, so it knows of all that were dropped before
        self._queued += max(_OVERHEAD, len(message) + _OVERHEAD // 2)
        if self._queued > self._room:
            self._perhaps = True
        size, kind, self._dropped = events.header(message)
        event = events.decode(kind, message[size:])
        if event is None:
            if kind not in events.KNOWN:
                self._missed["unknown"] = self._missed.get("unknown", 0) + 1
            return None
        return self._joined(event)

    def _joined(self, event: Event) -> Facts | None:
        """The event with the program of its process, which is known from what it has executed; None for what does not go on record, or is there already."""
        what, facts = event.what, event.facts
        self._alone = self._alone and event.pid == 1 and what in ("mount", "umount2")
        if self._alone:
            return None  # it puts what the guest is to see into its places
        if what == "exec":
            self._knows(event.pid, str(facts["path"]).rpartition("/")[2])
            self._described[event.pid] = None
            if len(self._described) > PROGRAMS:
                del self._described[next(iter(self._described))]
        elif what == events.DONE:
            if event.pid in self._described:
                del self._described[event.pid]
                return None
            self._knows(event.pid, "")
            what, facts = "exec", {"note": "what it is the guest's kernel could not send: too long, or no UTF-8"}
        elif what == "clone":
            self._knows(event.child, self._programs.get(event.pid, ""))
            facts = {"child": event.child}
        if not self._affords(what):
            self._missed[what] = self._missed.get(what, 0) + 1
            return None
        program = {"program": name} if what != "exec" and (name := self._programs.get(event.pid)) else {}
        return {"what": what, **facts, **program, "pid": event.pid, "uid": event.uid}

    def _knows(self, pid: int, program: str) -> None:
        self._programs.pop(pid, None)
        self._programs[pid] = program
        if len(self._programs) > PROGRAMS:
            del self._programs[next(iter(self._programs))]

    def _affords(self, what: str) -> bool:
        """Whether one more of a kind goes on record (a token bucket)."""
        now = time.monotonic()
        left, then = self._budget.get(what, (float(BURST), now))
        left = min(float(BURST), left + (now - then) * RATE)
        self._budget[what] = (left - 1 if left >= 1 else left, now)
        return left >= 1
