"""The sockets of signing: whole requests and nothing else get an answer, and nobody who is slow, loud or gone holds up the loop."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stockade.core.loop import Loop
from stockade.gateway import agent
from stockade.gateway.agent import Agent, Asking

if TYPE_CHECKING:
    from stockade.gateway.agent import Reply

LONGEST = 100


class Served:
    """An agent that answers with what it was asked, reversed; `held` keeps replies back where `hold` is set."""

    def __init__(self, folder: Path) -> None:
        self.path = f"{folder}/a"
        self.loop, self.hold = Loop(), False
        self.seen: list[bytes] = []
        self.held: list[Reply] = []
        fd = os.open(folder, os.O_PATH)
        self.agent = Agent(fd, "a", LONGEST)
        os.close(fd)
        self.agent.serve(self.loop, self.answer)

    def answer(self, request: bytes, reply: Reply) -> None:
        self.seen.append(request)
        if self.hold:
            self.held.append(reply)
        else:
            reply(request[::-1] or b"\x05")

    def client(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(self.path)
        except OSError:
            sock.close()
            raise
        sock.setblocking(False)
        return sock

    def turn(self, seconds: float = 0.05) -> None:
        """Turn the loop for a moment."""
        over: list[bool] = []
        self.loop.later(seconds, lambda: over.append(True))
        while not over:
            self.loop.turn()

    def read(self, sock: socket.socket, seconds: float = 5) -> bytes | None:
        """The next message that arrives; None when we were hung up on."""
        deadline, data = time.monotonic() + seconds, b""
        while time.monotonic() < deadline:
            try:
                piece = sock.recv((4 if len(data) < 4 else 4 + int.from_bytes(data[:4], "big")) - len(data))
            except BlockingIOError:
                self.turn(0.005)
                continue
            except ConnectionError:
                return None
            if not piece:
                return None
            data += piece
            if len(data) >= 4 and len(data) == 4 + int.from_bytes(data[:4], "big"):
                return data[4:]
        raise AssertionError(f"no message; so far {data!r}")


def frame(message: bytes) -> bytes:
    return len(message).to_bytes(4, "big") + message


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path)
    yield made
    made.agent.close()


def test_requests_are_answered_one_after_the_other_however_they_come(served: Served) -> None:
    with served.client() as one:
        one.send(frame(b"abc"))
        assert served.read(one) == b"cba"
        one.send(frame(b"first") + frame(b"second") + frame(b"x" * LONGEST))
        assert [served.read(one) for _ in range(3)] == [b"tsrif", b"dnoces", b"x" * LONGEST]
        for byte in frame(b"slow"):
            one.send(bytes([byte]))
            served.turn(0.002)
        assert served.read(one) == b"wols"
    assert os.stat(served.path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("start", [b"\0\0\0\0", b"\xff\xff\xff\xff", frame(b"x" * (LONGEST + 1)), (LONGEST + 1).to_bytes(4, "big")])
def test_a_length_that_cannot_be_is_refused_and_its_client_hung_up_on(served: Served, start: bytes) -> None:
    with served.client() as one:
        one.send(start)
        assert served.read(one) == b"\x05"
        assert served.read(one) is None
    assert served.seen == [b""]


def test_a_client_that_says_nothing_or_half_is_hung_up_on_and_others_are_answered(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PATIENCE", 0.2)
    with served.client() as silent, served.client() as half, served.client() as honest:
        half.send(frame(b"abcdef")[:-1])
        served.turn(0.01)
        honest.send(frame(b"ab"))
        assert served.read(honest) == b"ba"
        assert served.read(silent) is None and served.read(half) is None
    assert served.seen == [b"ab"]


def test_who_comes_when_all_places_are_taken_is_hung_up_on_until_one_is_free(served: Served) -> None:
    crowd = [served.client() for _ in range(agent.MOST)]
    served.turn()
    with served.client() as late:
        assert served.read(late) is None
    crowd.pop().close()
    served.turn()
    with served.client() as next_one:
        next_one.send(frame(b"ab"))
        assert served.read(next_one) == b"ba"
    for one in crowd:
        one.close()


def test_who_does_not_read_is_hung_up_on(served: Served) -> None:
    with served.client() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for _ in range(20_000):
            try:
                deaf.send(frame(b"x" * LONGEST))
            except BlockingIOError:
                served.turn(0.01)
            except ConnectionError:
                break
        else:
            raise AssertionError("it was answered for ever")
    with served.client() as honest:
        honest.send(frame(b"ab"))
        assert served.read(honest) == b"ba"


def test_while_one_waits_for_its_answer_another_gets_one_and_a_late_answer_to_nobody_is_lost(served: Served) -> None:
    served.hold = True
    one = served.client()
    one.send(frame(b"one") + frame(b"more"))
    served.turn()
    assert served.seen == [b"one"]  # the second is not read before the first is answered
    with served.client() as two:
        two.send(frame(b"two"))
        served.turn()
        served.held[1](b"2")
        assert served.read(two) == b"2"
    one.close()
    served.held[0](b"1")
    served.turn()


def test_after_the_end_connections_are_refused(served: Served) -> None:
    one = served.client()
    served.turn()
    served.agent.close()
    served.agent.close()
    assert one.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        served.client()
    one.close()


def test_a_loud_client_does_not_hold_up_the_loop(served: Served) -> None:
    """Of a client that never stops one request is served a turn; whatever else is due comes in between."""
    stop = threading.Event()
    noisy = socket.socket(socket.AF_UNIX)
    noisy.connect(served.path)
    noisy.settimeout(0.2)

    def shout() -> None:
        while not stop.is_set():
            try:
                noisy.send(frame(b"noise") * 50)
                noisy.recv(65536)
            except OSError:
                return

    thread = threading.Thread(target=shout)
    thread.start()
    try:
        late = []
        for _ in range(20):
            due = time.monotonic() + 0.01
            served.turn(0.01)
            late.append(time.monotonic() - due)
        assert len(served.seen) > 20 and sorted(late)[10] < 1
    finally:
        stop.set()
        noisy.close()
        thread.join()


class Real:
    """A stand-in for somebody's real agent, as bad as wanted."""

    def __init__(self, path: str, behave: Callable[[socket.socket], None]) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(path)
        self.sock.listen(1)
        self.thread = threading.Thread(target=self.run, args=(behave,))
        self.thread.start()

    def run(self, behave: Callable[[socket.socket], None]) -> None:
        sock, _ = self.sock.accept()
        with sock:
            behave(sock)

    def close(self) -> None:
        self.thread.join()
        self.sock.close()


def ask(path: str, seconds: float = 5.0) -> tuple[bytes, str]:
    loop = Loop()
    found: list[tuple[bytes, str]] = []
    Asking(loop, path, b"question", seconds, lambda answer, why: found.append((answer, why)))
    while not found:
        loop.turn()
    assert not loop._callbacks and not loop._timers
    return found[0]


def pieces(sock: socket.socket) -> None:
    assert sock.recv(100) == frame(b"question")
    for byte in frame(b"answer"):
        sock.send(bytes([byte]))


@pytest.mark.parametrize(
    ("behave", "answer", "why"),
    [
        (pieces, b"answer", ""),
        (lambda sock: None, b"", "it hung up"),
        (lambda sock: sock.send(frame(b"answer")[:-1]), b"", "it hung up"),
        (lambda sock: (sock.recv(100), sock.send(bytes(4)), sock.recv(1)), b"", "its answer is no answer"),
        (lambda sock: (sock.recv(100), sock.send(b"\xff" * 4), sock.recv(1)), b"", "its answer is no answer"),
        (lambda sock: (sock.recv(100), sock.recv(1)), b"", "it did not answer within 0.3 s"),
        (lambda sock: (sock.recv(100), sock.send(frame(b"x")[:4]), sock.recv(1)), b"", "it did not answer within 0.3 s"),
    ],
)
def test_an_answer_comes_whole_or_not_at_all(tmp_path: Path, behave: Callable[[socket.socket], None], answer: bytes, why: str) -> None:
    real = Real(f"{tmp_path}/r", behave)
    try:
        found = ask(f"{tmp_path}/r", 0.3 if "within" in why else 5.0)
        assert found == (answer, why) or (why == "it hung up" and found[1] in ("Broken pipe", "Connection reset by peer"))
    finally:
        real.close()


def test_an_agent_that_is_not_there(tmp_path: Path) -> None:
    assert ask(f"{tmp_path}/none") == (b"", "No such file or directory")
    (tmp_path / "file").touch()
    assert ask(f"{tmp_path}/file") == (b"", "Connection refused")
    assert ask("/" + "x" * 200)[1] and ask("/a\0b")[1] and ask("")[1]


def test_an_agent_with_a_full_queue_is_not_waited_for(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as full:
        full.bind(f"{tmp_path}/full")
        full.listen(0)
        waiting = []
        for _ in range(10):
            one = socket.socket(socket.AF_UNIX)
            one.setblocking(False)
            try:
                one.connect(f"{tmp_path}/full")
            except BlockingIOError:
                pass
            waiting.append(one)
        began = time.monotonic()
        assert ask(f"{tmp_path}/full") == (b"", "Resource temporarily unavailable")
        assert time.monotonic() - began < 30
        for one in waiting:
            one.close()


# ---- connections that are lent ------------------------------------------------------------------------------------------------------


def test_lent_connections_wait_for_whoever_comes_and_each_that_ends_is_lent_anew(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PATIENCE", 0.2)
    lent: list[socket.socket] = []

    def give(fd: int) -> None:
        lent.append(socket.socket(fileno=os.dup(fd)))

    served.agent.lend(give)
    try:
        assert len(lent) == agent.MOST
        served.turn(0.6)
        assert len(lent) == agent.MOST  # nobody has come, and nobody is late
        first, slow, wrong, gone = lent[:4]
        first.sendall(frame(b"ab"))
        assert served.read(first) == b"ba"
        slow.sendall(b"\0\0")
        assert served.read(slow) is None
        wrong.sendall(frame(b"x" * (LONGEST + 1)))
        assert served.read(wrong) == b"\x05" and served.read(wrong) is None
        gone.close()
        served.turn(0.6)  # the first is late with its next request by now
        assert served.read(first) is None and len(lent) == agent.MOST + 4
        lent[-1].sendall(frame(b"cd"))
        assert served.read(lent[-1]) == b"dc" and served.seen == [b"ab", b"", b"cd"]
        served.agent.close()
        served.turn(0.2)
        assert served.read(lent[4]) is None and len(lent) == agent.MOST + 4
    finally:
        for sock in lent:
            sock.close()
