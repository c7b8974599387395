"""The pump between the user's descriptors and the sandbox's: every byte in order, no blocking, no leak, and a clean end whoever leaves first."""

from __future__ import annotations

import os
import pty
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.loop import READ, Loop
from stockade.walls.streams import Pump, pipe
from stockade.walls.terminal import Raw, set_size, size_of
from walls.boxes import descriptors, until


def turn_until_done(loop: Loop, *pumps: Pump) -> None:
    loop.later(20, lambda: pytest.fail("the pump hangs"))
    while not all(pump.done for pump in pumps):
        loop.turn()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(min_size=1, max_size=9000), max_size=8), st.booleans())
def test_every_byte_arrives_in_order(pieces: list[bytes], owns_sink: bool) -> None:
    before, loop, counted = descriptors(), Loop(), list[int]()
    source, feed = os.pipe()
    take, sink = os.pipe()
    loop_before = descriptors()
    pump = Pump(loop, source, sink, owns_source=True, owns_sink=owns_sink, count=counted.append)
    received: list[bytes] = []

    def write() -> None:
        for piece in pieces:
            os.write(feed, piece)
        os.close(feed)

    def read() -> None:
        while piece := os.read(take, 1 << 20):
            received.append(piece)

    threads = [threading.Thread(target=write), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    turn_until_done(loop, pump)
    if not owns_sink:
        os.close(sink)
    for thread in threads:
        thread.join()
    os.close(take)
    assert b"".join(received) == b"".join(pieces)
    assert sum(counted) == len(b"".join(pieces))
    assert descriptors() == before < loop_before


def test_a_slow_reader_stops_the_reading_and_loses_nothing() -> None:
    loop = Loop()
    source, feed = os.pipe2(os.O_NONBLOCK)
    take, sink = os.pipe()
    pump = Pump(loop, source, sink, owns_source=True)
    sent = received = 0
    for _ in range(400):  # far more than both pipes hold: the feeder must meet back-pressure
        try:
            sent += os.write(feed, b"x" * 4096)
        except BlockingIOError:
            break
        loop.later(0, lambda: None)
        loop.turn()
    else:
        pytest.fail("nothing held the feeder back")
    os.set_blocking(take, False)
    os.close(feed)
    while not pump.done:
        loop.later(0, lambda: None)
        loop.turn()
        try:
            received += len(os.read(take, 1 << 20))
        except BlockingIOError:
            pass
    os.close(sink)
    os.set_blocking(take, True)
    while piece := os.read(take, 1 << 20):
        received += len(piece)
    os.close(take)
    assert received == sent > 65536


def refused(feed: int) -> bool:
    try:
        os.write(feed, b"x")
    except BrokenPipeError:
        return True
    return False


def test_a_sink_without_a_reader_ends_the_pump_and_closes_what_is_ours() -> None:
    before, loop = descriptors(), Loop()
    source, feed = os.pipe()
    take, sink = os.pipe()
    pump = Pump(loop, source, sink, owns_source=True, owns_sink=True)
    os.close(take)
    os.write(feed, b"x")
    turn_until_done(loop, pump)
    # And so the writer learns of it: at once, if nothing of an earlier test is just being started with all that we hold.
    assert until(lambda: refused(feed))
    os.close(feed)
    pump.finish()  # twice is fine
    assert descriptors() == before


def test_the_users_own_descriptors_are_never_closed_nor_made_non_blocking() -> None:
    loop = Loop()
    source, feed = os.pipe()
    take, sink = os.pipe()
    pump = Pump(loop, source, sink)
    os.write(feed, b"x")
    os.close(feed)
    turn_until_done(loop, pump)
    assert os.get_blocking(source) and os.get_blocking(sink)
    assert os.read(take, 10) == b"x"
    for fd in (source, sink, take):
        os.close(fd)  # still open: raises nothing


@pytest.mark.parametrize("gone", ["closed", "directory", "terminal"])
def test_a_source_that_cannot_be_read_is_an_end_of_file(gone: str) -> None:
    loop = Loop()
    take, sink = os.pipe()
    if gone == "directory":
        source = os.open("/", os.O_RDONLY)
    elif gone == "terminal":
        master, source = pty.openpty()
        os.close(master)
    else:
        source = os.dup(take)
        os.close(source)
    pump = Pump(loop, source, sink, owns_sink=True)
    turn_until_done(loop, pump)
    assert os.read(take, 1) == b""
    os.close(take)
    if gone != "closed":
        os.close(source)


@pytest.mark.parametrize("inner_reads", [True, False])
def test_a_pipe_blocks_the_sandbox_and_not_us(inner_reads: bool) -> None:
    ours, theirs = pipe(inner_reads)
    assert not os.get_blocking(ours) and os.get_blocking(theirs)
    assert not os.get_inheritable(ours) and not os.get_inheritable(theirs)
    writer, reader = (ours, theirs) if inner_reads else (theirs, ours)
    os.write(writer, b"x")
    assert os.read(reader, 1) == b"x"
    os.close(ours)
    os.close(theirs)


def test_the_loop_forgets_what_a_callback_removed_in_the_same_turn() -> None:
    loop, called = Loop(), list[str]()
    ends = [os.pipe() for _ in range(2)]

    def first(name: str) -> None:
        called.append(name)
        for reader, _ in ends:
            loop.forget(reader)

    for name, (reader, writer) in zip("ab", ends, strict=True):
        os.write(writer, b"x")
        loop.watch(reader, READ, lambda _events, name=name: first(name))  # type: ignore[misc]
    loop.turn()
    assert len(called) == 1
    for pair in ends:
        for fd in pair:
            os.close(fd)


def test_timers_run_once_in_their_time_and_can_be_cancelled() -> None:
    loop, called = Loop(), list[str]()
    loop.later(0.02, lambda: called.append("late"))
    loop.later(0, lambda: called.append("now"))
    loop.cancel(loop.later(0, lambda: called.append("never")))
    loop.cancel(99)
    loop.turn()
    assert called == ["now"]
    loop.turn()
    assert called == ["now", "late"]


def test_raw_mode_comes_and_goes() -> None:
    import termios

    master, fd = pty.openpty()
    before = termios.tcgetattr(fd)
    raw = Raw(fd)
    modes = termios.tcgetattr(fd)
    assert not modes[3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert not modes[1] & termios.OPOST
    raw.restore()
    assert termios.tcgetattr(fd) == before
    raw = Raw(fd)
    os.close(master)
    raw.restore()  # the terminal is gone: nothing to restore, and no error
    raw.restore()
    os.close(fd)


def test_a_window_size_is_copied_and_a_missing_terminal_ignored() -> None:
    one, two = pty.openpty(), pty.openpty()
    import fcntl
    import termios

    fcntl.ioctl(one[1], termios.TIOCSWINSZ, b"\x21\x00\x63\x00\x00\x00\x00\x00")
    size = size_of(one[1])
    assert size is not None and size[:2] == (33, 99)
    set_size(two[0], size)
    assert os.get_terminal_size(two[1]) == (99, 33)
    reader, writer = os.pipe()
    assert size_of(reader) is None
    set_size(reader, size)
    for fd in (*one, *two, reader, writer):
        os.close(fd)
