"""The tunnel between a supervisor and a machine's init: what goes in at one end comes out at the other, and nothing that a hostile guest says does more than end its
own sandbox (M1, M27). Both ends run here without a machine between them, with the compiler's checks for memory errors on."""

from __future__ import annotations

import ctypes
import functools
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import unavailable
from stockade.walls import native
from walls.boxes import scratch, until

WINDOW, NOTE = 256 << 10, native.NOTE_SIZE
MESSAGE, SHUT, DATA, END, STOP, CREDIT, TIME = 3, 4, 5, 6, 7, 8, 9  # native/tunnel.h
HEAD, NO_BLOB = struct.Struct("=HHI"), -1
MAIN = """
#include "step.h"
#include "tunnel.h"
#include <time.h>
int said_clock(clockid_t which, const struct timespec *to) { return dprintf(2, "clock %d %ld.%09ld\\n", which, to->tv_sec, to->tv_nsec) < 0; }
int main(int argc, char **argv) {
    if (argc < 5) return 1;
    int sockets[2] = {atoi(argv[3]), atoi(argv[4])};
    notes = sockets[0];
    if (argc > 5) listening = atoi(argv[5]);
    sets_clock = getenv("SETS_CLOCK") != NULL;
    tunnel(atoi(argv[2]), !strcmp(argv[1], "guest"), sockets);
    return 7;
}
"""


@functools.cache
def program() -> str:
    """One end by itself, compiled with everything that looks for memory errors."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        unavailable("cc", "no C compiler")
    place = Path(tempfile.mkdtemp(dir=scratch()))
    (place / "main.c").write_text(MAIN)
    here = Path(native.STEP).parent
    sources = [str(path) for path in here.glob("*.c") if path.name != "step.c"]
    # No test sets the clock of this machine: what would is another function here.
    checks = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{here}", "-Dclock_settime=said_clock"]
    step = [compiler, *checks, "-Dmain=step_main", "-c", str(here / "step.c"), "-o", str(place / "step.o")]
    for command in (step, [compiler, *checks, "-o", str(place / "end"), str(place / "main.c"), str(place / "step.o"), *sources]):
        made = subprocess.run(command, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
    return str(place / "end")


class EndOf:
    """A running end: `near` is the other side of its first socket, `late` of its second."""

    def __init__(self, kind: str, stream: socket.socket, *listening: socket.socket) -> None:
        self.near, one = native.pair()
        self.late, two = native.pair()
        self.said = os.memfd_create("said", os.MFD_CLOEXEC)
        fds = [stream.fileno(), one.fileno(), two.fileno(), *(sock.fileno() for sock in listening)]
        self.process = subprocess.Popen([program(), kind, *map(str, fds)], pass_fds=fds, stdin=subprocess.DEVNULL, stderr=self.said)
        for sock in (stream, one, two, *listening):
            sock.close()

    def words(self) -> str:
        return os.pread(self.said, 100_000, 0).decode(errors="replace")

    def close(self) -> None:
        self.near.close()
        self.late.close()
        self.process.kill()
        self.process.wait()
        os.close(self.said)


@contextmanager
def ends(*listening: socket.socket) -> Iterator[tuple[EndOf, EndOf]]:
    """The two ends of a tunnel, joined."""
    left, right = socket.socketpair()
    host = EndOf("host", left)
    guest = EndOf("guest", right, *listening)
    try:
        yield host, guest
        for end in (host, guest):
            assert "Sanitizer" not in end.words(), end.words()
    finally:
        host.close()
        guest.close()


@contextmanager
def one(kind: str = "host") -> Iterator[tuple[EndOf, socket.socket]]:
    """One end, and the stream in the hands of a test."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    end = EndOf(kind, theirs)
    try:
        yield end, ours
        assert "Sanitizer" not in end.words(), end.words()
    finally:
        ours.close()
        end.close()


def execute(end: EndOf, ident: int, *fds: int, nulls: int = 0, flags: int = 0, blob: bytes = b"/\x001\0true\0" + b"0\0") -> None:
    """Ask for a command as `Box.spawn` does."""
    file = native.blob(blob)
    native.request(end.near, "X", ident, nulls, flags, [file, *fds])
    for fd in (file, *fds):
        os.close(fd)


def request(end: EndOf) -> tuple[bytes, list[int]]:
    """What the guest's init is asked."""
    end.near.setblocking(True)
    data, controls, _, _ = end.near.recvmsg(NOTE, 4096)
    fds: list[int] = []
    for _, _, value in controls:
        fds += struct.unpack(f"{len(value) // 4}i", value)
    return data, fds


def message(data: bytes, sock: int = 0) -> bytes:
    """A frame that carries a message without descriptors."""
    body = struct.pack("=iHHH", NO_BLOB, sock, len(data), 0) + bytes(2 + 4 * native.MAX_FDS)
    return body[:MESSAGE_SIZE] + data


MESSAGE_SIZE = 4 + 6 + 4 * native.MAX_FDS + 2  # struct message of tunnel.c, padded to four


def framed(kind: int, channel: int, body: bytes) -> bytes:
    return HEAD.pack(kind, channel, len(body)) + body


def note(kind: str, ident: int, value: int = 0) -> bytes:
    return struct.pack("=IIi52s", ord(kind), ident, value, b"")


def frames(stream: socket.socket, count: int) -> list[tuple[int, int, bytes]]:
    found = []
    for _ in range(count):
        kind, channel, size = HEAD.unpack(stream.recv(HEAD.size, socket.MSG_WAITALL))
        found.append((kind, channel, stream.recv(size, socket.MSG_WAITALL) if size else b""))
    return found


# ---- honest ends ------------------------------------------------------------------------------------------------------------------


def pump(source: bytes, into: int, out_of: int, seed: int) -> bytes:
    """Write `source` in pieces of any size while reading what arrives, in turns that depend on `seed`; closes both."""
    turns, got, at = random.Random(seed), bytearray(), 0
    os.set_blocking(into, False)
    os.set_blocking(out_of, False)
    late = time.monotonic() + 60
    while True:
        assert time.monotonic() < late, f"{at} of {len(source)} written, {len(got)} read"
        if at < len(source) and turns.random() < 0.7:
            with suppress(BlockingIOError):
                at += os.write(into, source[at : at + turns.randrange(1, 200_000)])
        if at == len(source) and into >= 0:
            os.close(into)
            into = -1
        if turns.random() < 0.7:
            with suppress(BlockingIOError):
                piece = os.read(out_of, turns.randrange(1, 200_000))
                if not piece:
                    break
                got += piece
        else:
            select.select([out_of], [], [], 0.001)
    os.close(out_of)
    return bytes(got)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    size=st.integers(0, 3 * WINDOW) | st.sampled_from([0, 1, 4096, WINDOW - 1, WINDOW, WINDOW + 1]),
    seed=st.integers(0, 2**32),
    back=st.booleans(),
)
def test_every_byte_comes_through_in_order_and_then_the_end(size: int, seed: int, back: bool) -> None:
    data = random.Random(seed).randbytes(size)
    with ends() as (host, guest):
        ours, theirs = os.pipe()
        execute(host, 7, *((theirs,) if back else (ours,)), nulls=0b101 if back else 0b110)
        asked, fds = request(guest)
        assert struct.unpack("=IIiI", asked) == (ord("X"), 7, 0b101 if back else 0b110, 0)
        assert os.pread(fds[0], 100, 0) == b"/\x001\0true\0" + b"0\0"
        os.close(fds[0])
        assert pump(data, *((fds[1], ours) if back else (theirs, fds[1])), seed) == data


def test_a_stream_that_nobody_reads_holds_up_no_other() -> None:
    with ends() as (host, guest):
        stuck, stuck_end = os.pipe()
        free, free_end = os.pipe()
        execute(host, 1, stuck_end, nulls=0b101)
        _, (_, into_stuck) = request(guest)
        os.set_blocking(into_stuck, False)
        with suppress(BlockingIOError):
            while True:
                os.write(into_stuck, bytes(1 << 16))
                time.sleep(0.002)
        execute(host, 2, free_end, nulls=0b101)
        _, (_, into_free) = request(guest)
        data = os.urandom(2 * WINDOW)
        assert pump(data, into_free, free, 1) == data
        os.close(into_stuck)
        os.close(stuck)


def test_whoever_stops_reading_is_noticed_at_the_other_end() -> None:
    with ends() as (host, guest):
        out, out_end = os.pipe()
        execute(host, 1, out_end, nulls=0b101)
        _, (_, into) = request(guest)
        os.close(out)
        with pytest.raises(BrokenPipeError):
            for _ in range(2000):
                os.write(into, b"x")
                time.sleep(0.01)
        source, source_end = os.pipe()
        execute(host, 2, source, nulls=0b110)
        _, (_, stdin) = request(guest)
        os.close(stdin)
        with pytest.raises(BrokenPipeError):
            for _ in range(2000):
                os.write(source_end, b"x")
                time.sleep(0.01)


def test_a_pair_of_sockets_carries_both_ways_and_each_way_ends_by_itself() -> None:
    with ends() as (host, guest):
        ours, theirs = socket.socketpair()
        execute(host, 3, os.dup(theirs.fileno()), flags=native.STAYS | native.TERMINAL)
        theirs.close()
        _, (blob, fd) = request(guest)
        os.close(blob)
        inner = socket.socket(fileno=fd)
        ours.settimeout(20)
        inner.settimeout(20)
        ours.sendall(b"to the guest")
        assert inner.recv(100) == b"to the guest"
        ours.shutdown(socket.SHUT_WR)
        assert inner.recv(100) == b""
        inner.sendall(b"and back")
        inner.close()
        assert ours.recv(100) + ours.recv(100) == b"and back"
        ours.close()


@pytest.mark.parametrize("size", [1, 60_000, 65_536])
def test_what_a_command_wrote_comes_before_the_news_that_it_ended(size: int) -> None:
    with ends() as (host, guest):
        out, out_end = os.pipe()
        execute(host, 9, out_end, nulls=0b101)
        _, (_, into) = request(guest)
        os.write(into, b"x" * size)
        guest.near.send(note("Q", 9, 0))
        host.near.settimeout(20)
        assert native.receive(host.near) == ("Q", 9, 0, "", [])
        os.set_blocking(out, False)
        assert len(os.read(out, 1 << 20)) == size  # all of it is there, although its other end is open still
        os.close(into)
        os.close(out)


def test_news_do_not_wait_for_what_is_written_later() -> None:
    with ends() as (host, guest):
        out, out_end = os.pipe()
        execute(host, 9, out_end, nulls=0b101)
        _, (_, into) = request(guest)
        writer = subprocess.Popen(["yes"], stdout=into, stderr=subprocess.DEVNULL)  # left behind by the command
        os.close(into)
        reader = subprocess.Popen(["cat"], stdin=out, stdout=subprocess.DEVNULL)
        os.close(out)
        try:
            guest.near.send(note("Q", 9, 0))
            host.near.settimeout(20)
            assert native.receive(host.near) == ("Q", 9, 0, "", [])
        finally:
            writer.kill()
            writer.wait()
            reader.kill()
            reader.wait()


def test_too_many_descriptors_are_an_error_and_nothing_is_lost() -> None:
    with ends() as (host, guest):
        started = 0
        opened = []
        for ident in range(1, 40):
            fds = [os.open("/dev/null", os.O_WRONLY) for _ in range(60)]
            execute(host, ident, *fds, nulls=0b001)
            ready, _, _ = select.select([host.near, guest.near], [], [], 20)
            if host.near in ready:
                assert native.receive(host.near) == ("F", ident, 24, "", [])  # EMFILE
                break
            _, given_fds = request(guest)
            opened += given_fds
            started += 1
        assert 10 < started < 39
        for fd in opened:
            os.close(fd)
        time.sleep(0.1)
        out, out_end = os.pipe()
        execute(host, 99, out_end, nulls=0b101)
        _, (_, into) = request(guest)
        os.write(into, b"again")
        assert os.read(out, 10) == b"again"


@pytest.mark.parametrize("whose", ["host", "guest"])
def test_when_either_side_is_gone_both_ends_leave(whose: str) -> None:
    with ends() as (host, guest):
        (host if whose == "host" else guest).near.close()
        assert host.process.wait(20) == 0
        assert guest.process.wait(20) in (0, 7, 125)


def test_a_socket_that_is_shut_is_shut_at_the_other_end_and_no_other() -> None:
    with ends() as (host, guest):
        host.late.close()
        guest.late.settimeout(20)
        assert guest.late.recv(10) == b""
        guest.near.send(note("P", 0))
        host.near.settimeout(20)
        assert native.receive(host.near) == ("P", 0, 0, "", [])


# ---- the clock ------------------------------------------------------------------------------------------------------------------------

ADJ_SETOFFSET, ADJ_NANO = 0x0100, 0x2000  # adjtimex(2)


@pytest.mark.root
def test_when_the_hosts_clock_jumps_the_guest_is_told_the_time() -> None:
    """As it does when the host has slept, of which a guest notices nothing. Here by a nanosecond, and back."""
    libc = ctypes.CDLL(None, use_errno=True)
    with one() as (_host, stream):
        for nanoseconds in (1, 999_999_999):
            wait = select.select([stream], [], [], 0.2)[0]
            assert not wait  # it says nothing by itself
            timex = struct.pack("=I4x 4q i4x 3q 2q", ADJ_SETOFFSET | ADJ_NANO, *[0] * 8, -(nanoseconds > 1), nanoseconds)
            if libc.adjtimex(ctypes.create_string_buffer(timex, 256)) < 0:
                unavailable("clock", os.strerror(ctypes.get_errno()))
            kind, channel, size = HEAD.unpack(stream.recv(HEAD.size, socket.MSG_WAITALL))
            seconds, fraction = struct.unpack("=qq", stream.recv(16, socket.MSG_WAITALL))
            assert (kind, channel, size) == (TIME, 0, 16) and abs(seconds + fraction / 1e9 - time.time()) < 20


def test_only_a_guest_lets_its_clock_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    told = HEAD.pack(TIME, 0, 16) + struct.pack("=qq", 1_900_000_000, 5)
    for kind in ("host", "guest"):
        with one(kind) as (end, stream):
            stream.sendall(told)
            assert end.process.wait(20) and "clock" not in end.words()
    monkeypatch.setenv("SETS_CLOCK", "1")
    with one("guest") as (end, stream):
        stream.sendall(told)
        until(lambda: "clock 0 1900000000.000000005\n" in end.words())
        stream.sendall(HEAD.pack(TIME, 0, 8) + bytes(8))
        assert end.process.wait(20)


# ---- connections that the host has lent ---------------------------------------------------------------------------------------------


@pytest.fixture
def meeting(tmp_path: Path) -> Iterator[tuple[socket.socket, Callable[[], socket.socket]]]:
    """A listening socket for the guest's end, and what connects to it."""
    listening, made = socket.socket(socket.AF_UNIX), []
    listening.setblocking(False)
    listening.bind(str(tmp_path / "s"))
    listening.listen(8)

    def connect() -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(20)
        sock.connect(str(tmp_path / "s"))
        made.append(sock)
        return sock

    yield listening, connect
    for sock in made:
        sock.close()


def lend(host: EndOf) -> socket.socket:
    """As walls/vm/wall.py does."""
    ours, theirs = socket.socketpair()
    ours.settimeout(20)
    native.request(host.near, "A", 0, fds=(theirs.fileno(), theirs.fileno()))
    theirs.close()
    return ours


Meeting = tuple[socket.socket, Callable[[], socket.socket]]


def test_whoever_connects_in_the_guest_is_joined_to_what_was_lent_and_the_next_one_waits(meeting: Meeting) -> None:
    listening, connect = meeting
    with ends(listening) as (host, guest):
        first, second = lend(host), lend(host)
        one, two, three = connect(), connect(), connect()
        for number, sock in enumerate((one, two, three)):
            sock.sendall(b"from %d" % number)
        assert (first.recv(100), second.recv(100)) == (b"from 0", b"from 1")
        first.sendall(b"to 0")
        second.sendall(b"to 1")
        assert (one.recv(100), two.recv(100)) == (b"to 0", b"to 1")
        assert not select.select([three], [], [], 0.2)[0]
        third = lend(host)
        assert third.recv(100) == b"from 2"
        one.close()
        assert first.recv(100) == b""
        second.close()
        assert two.recv(100) == b""
        execute(host, 1)  # of the guest's init nothing was asked before
        data, fds = request(guest)
        assert data[:1] == b"X"
        for fd in fds:
            os.close(fd)
        for sock in (first, third):
            sock.close()


@pytest.mark.parametrize("whose", ["guest", "host", "nobody's"])
def test_connections_that_are_over_leave_room_for_others(meeting: Meeting, whose: str) -> None:
    """More than there can be at once, one after another; and an end that stays open keeps nobody busy."""
    listening, connect = meeting
    with ends(listening) as (host, _):
        for number in range(1500):
            ours = lend(host)
            if whose == "nobody's":  # taken back before anybody came
                ours.close()
                continue
            theirs = connect()
            theirs.sendall(b"%d" % number)
            assert ours.recv(100) == b"%d" % number
            gone, stays = (theirs, ours) if whose == "guest" else (ours, theirs)
            gone.close()
            assert stays.recv(100) == b""
            if number < 1499:
                stays.close()
        before = busy(host)
        time.sleep(1)
        assert busy(host) - before < 0.5
        last = lend(host)
        connect().sendall(b"last")
        assert last.recv(100) == b"last"
        last.close()
        ours.close()


def busy(end: EndOf) -> float:
    """Seconds of processor time (proc_pid_stat(5))."""
    fields = Path(f"/proc/{end.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- hostile ones -----------------------------------------------------------------------------------------------------------------

small = st.integers(0, 6)
lengths = st.integers(0, 40) | st.sampled_from([NOTE, MESSAGE_SIZE, MESSAGE_SIZE + NOTE, WINDOW, WINDOW + 1, 2**31, 2**32 - 1])
numbers = st.integers(0, 2**32 - 1).map(lambda value: struct.pack("=I", value)) | st.integers(0, WINDOW).map(
    lambda value: struct.pack("=I", value)
)
whole = st.one_of(
    st.builds(framed, st.just(DATA), small, st.binary(max_size=300)),
    st.builds(framed, st.just(CREDIT), small, numbers),
    st.builds(framed, st.sampled_from([END, STOP, SHUT]), small, st.just(b"")),
    st.builds(lambda kind, ident, value: framed(MESSAGE, 0, message(note(kind, ident, value))), st.sampled_from("PRSFQE"), small, st.integers(-9, 9)),
    st.builds(lambda blob, sock, size, count: framed(MESSAGE, 0, struct.pack("=iHHH", blob, sock, size, count) + bytes(MESSAGE_SIZE - 10 + NOTE)),
              st.sampled_from([-1, 0, 5, 2**31 - 1, -(2**31)]), st.integers(0, 3), st.sampled_from([0, 16, 64, 65, 65535]), st.sampled_from([0, 1, 63, 64, 65535])),
    st.builds(lambda kind, channel, size, body: HEAD.pack(kind, channel, size) + body, st.integers(0, 12), small, lengths, st.binary(max_size=80)),
    st.binary(max_size=60),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(said=st.lists(whole, max_size=12), cut=st.integers(1, 5000), seed=st.integers(0, 2**16))
def test_whatever_a_guest_says_the_host_reads_it_or_leaves(said: list[bytes], cut: int, seed: int) -> None:
    with one() as (host, stream):
        out, out_end = os.pipe()
        source, source_end = os.pipe()
        os.write(source_end, b"input")
        lent = lend(host)
        execute(host, 1, source, out_end, nulls=0b100)
        opened = frames(stream, 2)
        assert [kind for kind, _, _ in opened] == [MESSAGE, MESSAGE]
        data = b"".join(said)
        with suppress(OSError):
            for at in range(0, len(data), cut):
                stream.sendall(data[at : at + cut])
        stream.shutdown(socket.SHUT_WR)
        code = host.process.wait(20)
        assert code in (0, 125), host.words()
        # No more came out than was said to any channel, and no descriptor with any note.
        os.set_blocking(out, False)
        with suppress(BlockingIOError):
            got = os.read(out, 1 << 20)
            assert len(got) <= len(data)
        with lent:
            lent.setblocking(False)
            with suppress(BlockingIOError):
                assert len(lent.recv(1 << 20)) <= len(data)
        host.near.setblocking(False)
        with suppress(BlockingIOError, ConnectionResetError):
            while (found := native.receive(host.near)) is not None:
                assert not found[4]
        os.close(out)
        os.close(source_end)


EVIL = {
    "more than the window": lambda channel: framed(DATA, channel, bytes(32768)) * (WINDOW // 32768 + 4),
    "more credit than there can be": lambda channel: framed(CREDIT, channel, struct.pack("=I", 2**32 - 1)),
    "a length beyond everything": lambda channel: HEAD.pack(DATA, channel, 2**32 - 1),
    "a kind that is none": lambda channel: framed(99, channel, b""),
    "descriptors": lambda _: framed(MESSAGE, 0, struct.pack("=iHHH", 0, 0, NOTE, 3) + bytes(MESSAGE_SIZE - 10 + NOTE)),
    "for the mounts' socket": lambda _: framed(MESSAGE, 0, message(note("B", 0), 1)),
    "a request": lambda _: framed(MESSAGE, 0, message(struct.pack("=IIiI", ord("X"), 1, 0, 0))),
}  # fmt: skip


@pytest.mark.parametrize("what", EVIL)
def test_what_cannot_be_ends_the_sandbox_and_says_so(what: str) -> None:
    with one() as (host, stream):
        out, out_end = os.pipe()
        execute(host, 1, out_end, nulls=0b101)
        body = frames(stream, 1)[0][2]
        channel = struct.unpack_from("=H", body, 10)[0]
        with suppress(OSError):
            stream.sendall(EVIL[what](channel))
        assert host.process.wait(20) == 125
        assert "the guest's stream is not as agreed" in host.words()
        os.close(out)


def test_a_guest_that_floods_cannot_make_the_host_hold_more_than_a_window() -> None:
    with one() as (host, stream):
        out, out_end = os.pipe()
        execute(host, 1, out_end, nulls=0b101)
        channel = struct.unpack_from("=H", frames(stream, 1)[0][2], 10)[0]
        before = resident(host.process.pid)
        for _ in range(WINDOW // 16384):
            stream.sendall(framed(DATA, channel, bytes(16384)))
        for ident in range(20_000):  # news of commands that there are not
            stream.sendall(framed(MESSAGE, 0, message(note("S", ident % 7, 1))))
            if ident % 100 == 0:
                host.near.setblocking(False)
                with suppress(BlockingIOError):
                    while True:
                        host.near.recv(100)
        assert host.process.poll() is None
        assert resident(host.process.pid) - before < 8 << 20
        host.process.send_signal(signal.SIGKILL)
        os.close(out)


def test_a_guest_that_never_reads_what_it_is_granted_cannot_make_the_host_hold_it_and_gets_it_once_it_reads() -> None:
    """Each byte of output earns a frame of credit, which is longer than what it answers: who takes none of them fills the host's memory if nothing ends that."""
    with one() as (host, stream):
        for ident in range(1, 9):
            execute(host, ident, *(os.open("/dev/null", os.O_WRONLY) for _ in range(60)), nulls=0b001)
            frames(stream, 1)
        channels = range(2, 482)  # as they are numbered, one after the other
        host.near.settimeout(20)
        news = framed(MESSAGE, 0, message(note("S", 1, 1)))
        before, turns = resident(host.process.pid), 600
        for _ in range(turns):
            stream.sendall(b"".join(framed(DATA, channel, b"x") for channel in channels) + news)
            assert native.receive(host.near) is not None  # all of it was read
        assert resident(host.process.pid) - before < 12 << 20
        owed = turns * len(channels)
        while owed:
            ((kind, _, body),) = frames(stream, 1)
            assert kind == CREDIT
            owed -= struct.unpack("=I", body)[0]


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
