"""The door: a network namespace with no route and no interface but `lo`, in which only our listening sockets answer.

Every address is local there (AnyIP), so a connection to any address on a listening port arrives at our socket, and `getsockname()` of the accepted
connection is the address that was asked for. Every other port is refused by the kernel. The sandbox joins from a nested user namespace and can
change none of it (user_namespaces(7), rtnetlink(7)). What to do with the connections is the gate's business, not ours.
"""

from __future__ import annotations

import os

from stockade.core.errors import WallFailed
from stockade.walls import native

PROXY, HTTP, HTTPS, DNS = 3128, 80, 443, 53
PORTS = (PROXY, HTTP, HTTPS, DNS)
LOOPBACK, WIRE = "127.0.0.1", "192.0.0.1"  # where the listeners answer inside; native/door.c knows them too


class Door:
    """Descriptors of one door: TCP `listeners` by port (dual-stack, listening), `dns` (UDP, port 53), and two namespaces: the `network` that the sandbox
    joins and the `user` that owns it. `far` keeps the namespace at the other end of a wire, -1 without one. `tap` is the sandbox's end of a wire that is no
    namespace (then it has no `network`): whole frames are read from and written to it.
    """

    def __init__(self, listeners: dict[int, int], dns: int, network: int, user: int, far: int = -1, tap: int = -1) -> None:
        self.listeners, self.dns, self.network, self.user, self.far, self.tap = listeners, dns, network, user, far, tap

    def sockets(self) -> list[int]:
        """The listening descriptors; empty once the door is shut."""
        return [*self.listeners.values(), *([self.dns] if self.dns >= 0 else [])]

    def shut(self) -> None:
        """Close the listening sockets: the kernel refuses every connection from then on, waiting ones too."""
        for fd in self.sockets():
            os.close(fd)
        self.listeners, self.dns = {}, -1

    def close(self) -> None:
        """Close everything; may be called twice. What still runs inside has no network from then on."""
        self.shut()
        for fd in (self.network, self.user, self.far, self.tap):
            if fd >= 0:
                os.close(fd)
        self.network = self.user = self.far = self.tap = -1


class Making:
    """A door on its way: the kernel works while the caller does something else, until `done`."""

    def __init__(self, ports: tuple[int, ...] = PORTS, wire: str = "") -> None:
        """Start the helper. With a `wire` the listeners stay in a namespace of their own, for a sandbox whose kernel has a network stack of its own: "veth" leads to them
        from another namespace, which the sandbox joins, "tap" from a descriptor. Raises WallFailed when it cannot be started.
        """
        self._ports, self._wire = ports, wire
        self._sock, theirs = native.pair()
        try:
            self._pid = native.spawn(
                ["door", str(theirs.fileno()), *([wire] if wire else []), *map(str, ports)], [theirs.fileno()], stderr=2
            )
        except BaseException:
            self._sock.close()
            raise
        finally:
            theirs.close()

    def done(self) -> Door:
        """Wait for the door. Raises WallFailed when the kernel refused (no user namespaces, no memory)."""
        try:
            note = native.receive(self._sock)
        finally:
            self.give_up()
        if note is None:
            raise WallFailed("the door's helper ended without a word", code="wall.setup", hint="`stockade doctor` tries each step.")
        kind, _, value, text, fds = note
        count = len(self._ports)
        if kind != "D" or len(fds) != count + 3 + bool(self._wire):
            for fd in fds:
                os.close(fd)
            if text == "/dev/net/tun":
                raise WallFailed(
                    f"a virtual machine's wire cannot be made: {text}: {os.strerror(value)}",
                    code="door.tap",
                    hint="The module tun gives this device (sudo modprobe tun), and everybody may open it: sudo chmod 0666 /dev/net/tun",
                )
            raise native.failed(text or "door", value)
        listeners, (dns, network, user, *far) = dict(zip(self._ports, fds, strict=False)), fds[count:]
        if self._wire == "tap":
            return Door(listeners, dns, -1, user, far[0], network)
        return Door(listeners, dns, network, user, *far)

    def give_up(self) -> None:
        """Let go of a door that nobody took; may be called twice."""
        if self._pid:
            self._sock.close()
            os.waitpid(self._pid, 0)
            self._pid = 0


def make(ports: tuple[int, ...] = PORTS, wire: str = "") -> Door:
    """Make a door, without any privilege. Raises WallFailed as `Making` does."""
    return Making(ports, wire).done()
