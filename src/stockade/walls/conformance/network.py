"""The network is "none" or the door: nothing else answers, not the host and not another sandbox."""

from __future__ import annotations

import os
import select
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stockade.core.errors import CannotEnforce
from stockade.core.values import Mount
from stockade.walls.conformance import probes
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import LACKING, NO_DOOR, NO_PYTHON, PORTS, Failed, expect, explained, lacking

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.walls.conformance.lab import Lab, Opened, Running

ANSWER = b"answered-by-the-host\n"


@contextmanager
def host(address: str | tuple[str, int], family: socket.AddressFamily = socket.AF_INET) -> Iterator[str]:
    """A server on the host that answers whoever connects; gives its port."""
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()
        thread = threading.Thread(target=_answer, args=(server,), daemon=True)
        thread.start()
        try:
            yield str(server.getsockname()[1]) if family == socket.AF_INET else ""
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def _answer(server: socket.socket) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection:
            connection.settimeout(3)
            try:
                connection.recv(100)
                connection.sendall(ANSWER)
            except OSError:
                pass


def addresses() -> list[str]:
    """Loopback, and the address of this machine by which it reaches others, if it has one. Sends nothing: connect(2) of a UDP socket only looks at routes."""
    found = ["127.0.0.1"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            found.append(probe.getsockname()[0])
        except OSError:
            pass
    return found


def answers(opened: Opened, address: str, port: int | str) -> bool:
    """Whether anything takes a connection there. Raises Skipped where the probe lacks its programs."""
    done = lacking(opened.sh(probes.CONNECT, address, str(port)), LACKING)
    return not done.code or b"connected" in done.out


def unreachable(lab: Lab, opened: Opened) -> None:
    """The host's own servers answer natively, and not in `opened`."""
    for address in addresses():
        with host((address, 0)) as port:
            done = lab.control_of(probes.CONNECT, address, port)
            expect(ANSWER in done.out, "the control got no answer, so that nothing is proved")
            expect(not answers(opened, address, port), f"a server of the host answered at {address}")


@check("network.none", "without a network nothing answers, and no server of the host can be reached", LACKING)
def none(lab: Lab) -> None:
    box = lab.box()
    unreachable(lab, box)
    for address in ("127.0.0.1", lab.wall.ADDRESS, "192.0.2.1"):
        for port in (53, 80, *PORTS):
            expect(not answers(box, address, port), f"{address} port {port} answered")


@check("network.boxes-apart", "a server in one box cannot be reached from another", NO_PYTHON, LACKING)
def boxes_apart(lab: Lab) -> None:
    port = "5311"
    with lab.open() as one, lab.open() as two:
        running = one.begin(probes.LISTEN, port, "from-one")
        one.until(lambda: running.out or running.child.status is not None, "the server did not start")
        if running.child.status is not None:
            lacking(one.finish(running), NO_PYTHON)
        expect(
            "from-one" in lacking(one.sh(probes.CONNECT, "127.0.0.1", port), LACKING).text, "the twin: a box does not reach its own server"
        )
        expect("from-one" not in two.sh(probes.CONNECT, "127.0.0.1", port).text, "another box reaches it")
        expect("from-one" not in lab.control().sh(probes.CONNECT, "127.0.0.1", port).text, "the host reaches it on its own loopback")


def _accepted(listener: int, seconds: float) -> tuple[socket.socket, bytes] | None:
    """The next connection on a listening descriptor, and its first bytes; None when none comes."""
    with socket.socket(fileno=os.dup(listener)) as server:
        server.settimeout(seconds)
        try:
            connection, _ = server.accept()
        except TimeoutError:
            return None
    connection.settimeout(seconds)
    return connection, connection.recv(100)


def _quiet(listener: int) -> bool:
    """Whether no connection waits on a listening descriptor."""
    return not select.select([listener], [], [], 0)[0]


def _arrived(lab: Lab, opened: Opened, running: Running, port: int) -> socket.socket:
    """The connection that a probe makes, at the listener of its own door, after its first bytes."""
    opened.until(lambda: running.child.pid or running.child.error, "the command did not start")
    got = _accepted(opened.door.listeners[port], lab.patience)
    if got is None:
        lacking(opened.finish(running), LACKING)
    if got is None or got[1] != b"hello":
        raise Failed(f"nothing arrived at the listener of port {port}, or something else than was sent")
    return got[0]


@check("network.door", "what connects to the door arrives at its listener, and is answered; so does DNS by UDP", NO_DOOR, LACKING)
def door(lab: Lab) -> None:
    with lab.open(network="door") as opened:
        for port in PORTS:
            running = opened.begin(probes.CONNECT, lab.wall.ADDRESS, str(port))
            with _arrived(lab, opened, running, port) as connection:
                connection.sendall(b"from the door")
            done = opened.finish(running)
            expect(done.text == "connected\nfrom the door", f"port {port}: no answer came back ({done.said})")
        lacking(opened.sh(probes.DATAGRAM, lab.wall.ADDRESS, "53"), LACKING)
        with socket.socket(fileno=os.dup(opened.door.dns)) as names:
            names.settimeout(lab.patience)
            try:
                expect(names.recv(100) == b"hello", "another question than was asked arrived")
            except TimeoutError:
                expect(False, "no question arrived by UDP")


@check("network.door-only", "with a door nothing but its listeners answers: no server of the host, no other port", NO_DOOR, LACKING)
def door_only(lab: Lab) -> None:
    with lab.open(network="door") as opened:
        unreachable(lab, opened)
        for address in (lab.wall.ADDRESS, "127.0.0.1", "192.0.2.1"):
            for port in (1, 22, 80, 5312, 8443):
                expect(not answers(opened, address, port), f"{address} port {port} answered")
        for port in PORTS:
            expect(_quiet(opened.door.listeners[port]), f"something arrived at port {port} that was sent elsewhere")


@check("network.doors-apart", "each box has a door of its own: what one sends never arrives at another's", NO_DOOR, LACKING)
def doors_apart(lab: Lab) -> None:
    port = PORTS[0]
    with lab.open(network="door") as one, lab.open(network="door") as two:
        for opened, other in ((one, two), (two, one)):
            running = opened.begin(probes.CONNECT, lab.wall.ADDRESS, str(port))
            _arrived(lab, opened, running, port).close()
            opened.finish(running)
            expect(_quiet(other.door.listeners[port]), "it arrived at the other's door")


@check("network.door-shut", "once the door is shut nothing answers any more", NO_DOOR, LACKING)
def door_shut(lab: Lab) -> None:
    with lab.open(network="door") as opened:
        opened.until(lambda: opened.box.ready, "the sandbox did not stand")
        expect(len(opened.door.sockets()) == len(PORTS) + 1, "the door has other sockets than were asked for")
        opened.door.shut()
        expect(opened.door.sockets() == [], "a door that is shut has sockets")
        for port in PORTS:
            expect(not answers(opened, lab.wall.ADDRESS, port), f"port {port} answers after the door was shut")


@check("network.unix", "the host's Unix sockets cannot be reached, neither by name nor by path", NO_PYTHON)
def unix(lab: Lab) -> None:
    name, path = f"stockade-conformance-{lab.token}", f"{lab.folder()}/socket"
    with lab.open() as opened:
        for address, shown in ((f"\0{name}", f"@{name}"), (path, path)):
            with host(address, socket.AF_UNIX):
                done = lacking(opened.sh(probes.UNIX, shown), NO_PYTHON)
                expect(ANSWER in lab.control_of(probes.UNIX, shown).out, "the control got no answer, so that nothing is proved")
                expect(done.code and ANSWER not in done.out, f"a socket of the host answered at {shown}")
    try:
        with (
            host(shown := f"{lab.folder()}/socket", socket.AF_UNIX),
            lab.open(Mount(shown, "/mnt/socket", "rw"), sockets=("/mnt/socket",)) as opened,
        ):
            expect(ANSWER in opened.sh(probes.UNIX, "/mnt/socket").out, "the twin: a socket that is mounted to answer does not")
    except CannotEnforce as error:
        explained("a socket that is mounted to answer", error)
