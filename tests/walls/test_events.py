"""What a guest's kernel reports: messages captured from a real runsc, what is made of broken ones, and the socket that they come through (M37)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.events import KEPT
from stockade.core.values import Confinement
from stockade.walls import events, gvisor, sink
from stockade.walls.events import Event, Malformed
from walls.boxes import until
from walls.test_gvisor import HOST

SAID = {
    "an exec, and an environment": Event("exec", 2, 0, {"path": "/usr/bin/true", "argv": ["/bin/true", "one"]}),
    "the beginning of one as a number": None,
    "its end": Event(events.DONE, 2, 0, {}),
    "the end of one that failed": None,
    "a new process": Event("clone", 2, 0, {}, 3),
    "a new thread": None,
    "a connection": Event("connect", 1, 5, {"host": "10.1.2.4", "port": 444}),
    "a name for a socket, IPv6": Event("bind", 1, 5, {"host": "::1", "port": 99}),
    "an abstract Unix socket whose name is no UTF-8": Event("connect", 1, 5, {"path": "@ab\\xff"}),
    "minus one": Event("setresuid", 1, 0, {"arguments": [-1, 5, -1]}),
    "an argv for a terminal": Event("exec", 0, 0, {"path": "", "argv": ["\\x1b[31mx", "\\u202e\\xff"]}),
    "an argv of more words than are read": Event("exec", 0, 0, {"path": "", "argv": ["a"] * events.WORDS + ["..."]}),
}


def decoded(message: bytes) -> Event | None:
    size, kind, _ = events.header(message)
    return events.decode(kind, message[size:])


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers of system calls in these messages are those of x86-64")
@pytest.mark.parametrize("name", SAID)
def test_what_runsc_sends(name: str) -> None:
    assert decoded(KEPT[name]) == SAID[name]


def test_the_environment_of_a_command_is_not_read() -> None:
    assert b"SECRET=xyz" in KEPT["an exec, and an environment"] and "xyz" not in str(decoded(KEPT["an exec, and an environment"]))


@pytest.mark.parametrize("name", ["a field that ends beyond the message", "a number without end", "a handshake"])
def test_what_is_none_is_malformed(name: str) -> None:
    with pytest.raises(Malformed):
        decoded(KEPT[name])


@given(st.sampled_from(sorted(KEPT)), st.integers(0, 100))
def test_a_message_that_is_cut_is_an_event_or_malformed(name: str, at: int) -> None:
    try:
        found = decoded(KEPT[name][:at])
        assert found is None or isinstance(found, Event)
    except Malformed:
        pass


@given(st.binary(max_size=2000))
def test_texts_are_printable_and_short(value: bytes) -> None:
    found = events.text(value)
    assert found.isprintable() and len(found) <= events.TEXT + 3
    if value.isascii() and value.decode().isprintable() and len(value) <= events.TEXT:
        assert found == value.decode()


def test_no_point_but_one_holds_a_string_of_the_guests() -> None:
    """runsc leaves out what is no UTF-8, and does not say so."""
    strings = {"cwd", "process_name", "container_id", "fd_path", "envv", "env"}
    for point in json.loads(events.configuration("/events"))["trace_session"]["points"]:
        assert not strings & set(point["context_fields"]) and "optional_fields" not in point
        assert point["name"].split("/")[1] in ("execve", "clone", "connect", "bind", "sysno")  # an address is bytes


def test_the_whole_plan_of_a_guest_that_is_heard() -> None:
    deaf, heard = gvisor.plan(Confinement(), HOST).warm, gvisor.plan(Confinement(events="/state/events"), HOST).warm
    at = heard.arguments.index(gvisor.TRACE)
    assert heard.arguments[at - 2 : at + 4] == ("--ro-bind-data", "=2", "/bundle/trace.json", "--ro-bind-fd", "@0", "/events")
    assert heard.arguments[: at - 2] + heard.arguments[at + 4 :] == deaf.arguments
    assert (heard.paths, heard.data[2]) == (("/state/events",), events.configuration("/events"))
    assert heard.command == (*deaf.command[:7], "--pod-init-config=/bundle/trace.json", *deaf.command[7:])
    [told] = json.loads(heard.data[2])["trace_session"]["sinks"]
    assert told == {"name": "remote", "config": {"endpoint": "/events"}}  # no retries: it never waits; errors are not ignored


# ---- the socket, and somebody who speaks as runsc does


class Kernel:
    """The other end."""

    def __init__(self, folder: Path) -> None:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self.sink = sink.Sink(descriptor, str(folder))
        os.close(descriptor)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        os.chdir(folder)
        self.socket.connect(sink.NAME)

    def greet(self) -> None:
        self.socket.send(b"\x08\x02")
        assert self.sink.connect() and self.socket.recv(100) == b"\x08\x01"

    def says(self, *names: str, dropped: int = 0) -> list[dict[str, object]]:
        found = []
        for name in names:
            message = KEPT[name]
            self.socket.send(message[:4] + dropped.to_bytes(4, "little") + message[8:])
            found += self.sink.take()
        return found


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    before = os.getcwd()
    made = Kernel(tmp_path)
    try:
        yield made
    finally:
        os.chdir(before)
        made.socket.close()
        made.sink.close()


def test_a_handshake_that_comes_late_and_then_events_with_the_program(kernel: Kernel) -> None:
    assert kernel.sink.take() == [] and not kernel.sink.connected and not kernel.sink.over
    kernel.greet()
    said = kernel.says("a new process", "an exec, and an environment", "its end", "a new process", "a new thread")
    assert [(event["what"], event.get("program")) for event in said] == [("clone", None), ("exec", None), ("clone", "true")]
    assert said[1] == {"what": "exec", "path": "/usr/bin/true", "argv": ["/bin/true", "one"], "pid": 2, "uid": 0}


def test_an_exec_that_was_not_described_is_an_event(kernel: Kernel) -> None:
    kernel.greet()
    [said] = kernel.says("the beginning of one as a number", "its end")
    assert said["what"] == "exec" and said["pid"] == 2 and "path" not in said and "could not send" in str(said["note"])


@pytest.mark.parametrize("hello", [b"\x08", b"\x08\0", b"\xff" * 20, b"x" * 150_000])
def test_another_handshake_is_refused(kernel: Kernel, hello: bytes) -> None:
    kernel.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    kernel.socket.send(hello)
    assert not kernel.sink.connect() and not kernel.sink.connected
    assert kernel.sink.over
    with pytest.raises(OSError):
        kernel.socket.send(b"\x08\1")


def test_what_is_malformed_ends_the_stream_and_nothing_else(kernel: Kernel) -> None:
    kernel.greet()
    assert kernel.says("a connection") and not kernel.sink.over
    kernel.socket.send(KEPT["a number without end"])
    kernel.socket.send(KEPT["a connection"])
    assert kernel.sink.take() == [] and "too large" in kernel.sink.over
    assert kernel.sink.take() == []
    with pytest.raises(BrokenPipeError):
        kernel.socket.send(KEPT["a connection"])


def test_a_kernel_that_leaves(kernel: Kernel) -> None:
    kernel.greet()
    kernel.socket.send(KEPT["a connection"])
    kernel.socket.close()
    assert len(kernel.sink.take()) == 1
    assert until(lambda: kernel.sink.take() == [] and kernel.sink.over), "it is known"


def test_what_was_dropped_is_counted_also_beyond_the_end_of_the_counter(kernel: Kernel) -> None:
    kernel.greet()
    kernel.says("a connection", dropped=0)
    assert not kernel.sink.pending and kernel.sink.lost() == []
    kernel.says("a connection", dropped=0xFFFFFFFE)
    assert [entry["count"] for entry in kernel.sink.lost()] == [0xFFFFFFFE]
    kernel.says("a connection", dropped=3)
    assert kernel.sink.pending and [entry["count"] for entry in kernel.sink.lost()] == [5]
    assert not kernel.sink.pending and kernel.sink.lost() == []


def test_a_queue_that_was_full_is_told_also_when_nothing_follows(kernel: Kernel) -> None:
    """runsc says how many it has dropped with its next event, and there may be none."""
    kernel.greet()

    def fill() -> int:
        kernel.socket.setblocking(False)
        for sent in range(10_000):
            try:
                kernel.socket.send(KEPT["a new thread"])
            except BlockingIOError:
                return sent
        raise AssertionError("it is never full")

    sent = fill()
    assert sent > 100 and not kernel.sink.pending
    for _ in range(sent // sink.BATCH + 1):
        kernel.sink.take()
    assert kernel.sink.pending
    [said] = kernel.sink.lost()
    assert "perhaps" in str(said["reason"]) and "count" not in said and not kernel.sink.pending
    fill()
    for _ in range(sent // sink.BATCH + 1):
        kernel.sink.take()
    kernel.says("a connection")  # which would know
    assert not kernel.sink.pending and kernel.sink.lost() == []


def test_many_of_one_kind_hide_none_of_another(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(sink.time, "monotonic", lambda: now)
    kernel.greet()
    assert len(kernel.says(*["a connection"] * (sink.BURST + 70))) == sink.BURST
    assert len(kernel.says("a name for a socket, IPv6")) == 1
    assert kernel.sink.lost() == [{"count": 70, "kinds": {"connect": 70}, "reason": "more than 20 of a kind in a second"}]
    now += 1.5
    assert len(kernel.says(*["a connection"] * 50)) == 30


def test_a_kind_that_we_do_not_know_is_counted(kernel: Kernel) -> None:
    kernel.greet()
    kernel.socket.send(b"\x08\0\x63\0\0\0\0\0what is this")
    assert kernel.sink.take() == [] and not kernel.sink.over and kernel.sink.lost()[0]["kinds"] == {"unknown": 1}


def test_what_it_remembers_of_processes_is_bounded(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "PROGRAMS", 3)
    kernel.greet()
    for pid in range(1, 100):
        kernel.socket.send(b"\x08\0\x03\0\0\0\0\0\n\2 " + bytes([pid]) + b"\x12\2/x")
        kernel.sink.take()
    assert len(kernel.sink._programs) == len(kernel.sink._described) == 3
