"""The door: any address on a listening port arrives, everything else is refused by the kernel, and inside nobody can change that (M4, M10)."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stockade.core.values import Mount
from stockade.walls import door
from walls.boxes import PYTHON, Inside, children, descriptors, inside, require, unconfined_python, until

pytestmark = pytest.mark.wall

# Arguments: family, kind, address, port. Prints "ok" or the error's name.
CONNECT = """
import errno, socket, sys
s = socket.socket(getattr(socket, sys.argv[1]), getattr(socket, sys.argv[2]))
s.settimeout(5)
try:
    s.connect((sys.argv[3], int(sys.argv[4])))
    if s.type == socket.SOCK_DGRAM:
        s.send(b"x"); s.send(b"x")
    else:
        s.sendall(b"hello")
    print("ok")
except OSError as e:
    print(errno.errorcode.get(e.errno, e))
"""
ADDRESSES = [
    *(
        ("AF_INET", address)
        for address in ("127.0.0.1", "127.9.8.7", "10.1.2.3", "192.168.0.1", "169.254.169.254", "8.8.8.8", "203.0.113.7")
    ),
    *(("AF_INET6", address) for address in ("::1", "fd00::5", "2001:db8::7", "2606:4700::1111")),
]


@pytest.fixture
def box() -> Iterator[Inside]:
    require()
    with inside(network="door") as made:
        yield made


def error(made: Inside, code: str, *argv: str) -> str:
    done = made.python(code, *argv)
    assert done.code == 0, done.err
    return done.text


def arrival(fd: int) -> tuple[str, int, bytes]:
    """The address that the next connection on a listening descriptor asked for, and the first bytes."""
    with socket.socket(fileno=os.dup(fd)) as listener:
        listener.settimeout(5)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            address, port = connection.getsockname()[:2]
            return address.removeprefix("::ffff:"), port, connection.recv(16)


@pytest.mark.parametrize(("family", "address"), ADDRESSES)
def test_any_address_on_a_listening_port_arrives_and_tells_itself(box: Inside, family: str, address: str) -> None:
    assert box.door
    for port in (80, 443, 3128, 53):
        assert error(box, CONNECT, family, "SOCK_STREAM", address, str(port)) == "ok"
        assert arrival(box.door.listeners[port]) == (address, port, b"hello")


@pytest.mark.parametrize(("family", "address"), ADDRESSES)
def test_every_other_port_is_refused_at_once(box: Inside, family: str, address: str) -> None:
    for port in (1, 22, 25, 8080, 8443, 65535):
        assert error(box, CONNECT, family, "SOCK_STREAM", address, str(port)) == "ECONNREFUSED"
    for port in (123, 443, 51820):
        assert error(box, CONNECT, family, "SOCK_DGRAM", address, str(port)) == "ECONNREFUSED"


SCAN = """
import socket
found = []
for port in range(1, 65536):
    s = socket.socket()
    # A connection may meet itself when its own port is the one it asks for (simultaneous open, RFC 9293 section 3.5).
    if s.connect_ex(("198.51.100.1", port)) == 0 and s.getsockname()[1] != port: found.append(port)
    s.close()
print(found)
"""


def test_no_tcp_port_but_the_doors_own_answers(box: Inside) -> None:
    assert error(box, SCAN) == "[53, 80, 443, 3128]"


def test_dns_answers_on_the_loopback_address_only(box: Inside) -> None:
    assert error(box, CONNECT, "AF_INET", "SOCK_DGRAM", "127.0.0.1", "53") == "ok"
    for address in ("8.8.8.8", "127.0.0.53", "10.0.0.1"):
        assert error(box, CONNECT, "AF_INET", "SOCK_DGRAM", address, "53") == "ECONNREFUSED"


def test_there_is_no_interface_but_lo(box: Inside) -> None:
    lines = box.run("cat", "/proc/net/dev").text.splitlines()[2:]
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_without_a_door_nothing_answers() -> None:
    require()
    with inside() as made:
        for port in ("53", "80", "443", "3128"):
            assert error(made, CONNECT, "AF_INET", "SOCK_STREAM", "127.0.0.1", port) == "ECONNREFUSED"
            assert error(made, CONNECT, "AF_INET", "SOCK_STREAM", "8.8.8.8", port) in ("ENETUNREACH", "ECONNREFUSED")


# ---- the host's sockets: reached by the control, not from inside ----------------------------------------------------------------


@contextmanager
def listening(address: str | tuple[str, int], family: int) -> Iterator[socket.socket]:
    with socket.socket(family) as server:
        server.bind(address)
        server.listen()
        stop = threading.Event()

        def answer() -> None:
            server.settimeout(0.1)
            while not stop.is_set():
                try:
                    connection, _ = server.accept()
                    connection.close()
                except TimeoutError:
                    continue

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield server
        finally:
            stop.set()
            thread.join()


UNIX = """
import errno, socket, sys
s = socket.socket(socket.AF_UNIX)
try:
    s.connect(sys.argv[1].replace("@", "\\0")); print("ok")
except OSError as e: print(errno.errorcode[e.errno])
"""


def test_a_listener_on_the_hosts_loopback_is_out_of_reach(box: Inside) -> None:
    with listening(("127.0.0.1", 0), socket.AF_INET) as server:
        port = str(server.getsockname()[1])
        assert unconfined_python(CONNECT, "AF_INET", "SOCK_STREAM", "127.0.0.1", port).text == "ok"
        assert error(box, CONNECT, "AF_INET", "SOCK_STREAM", "127.0.0.1", port) == "ECONNREFUSED"


def test_the_hosts_abstract_sockets_are_out_of_reach(box: Inside) -> None:
    name = f"@stockade-test-{os.getpid()}"
    with listening(name.replace("@", "\0"), socket.AF_UNIX):
        assert unconfined_python(UNIX, name).text == "ok"
        assert error(box, UNIX, name) == "ECONNREFUSED"


def test_the_hosts_path_sockets_outside_the_mounts_are_out_of_reach(box: Inside, tmp_path: Path) -> None:
    path = f"{tmp_path}/s"
    with listening(path, socket.AF_UNIX):
        assert unconfined_python(UNIX, path).text == "ok"
        assert error(box, UNIX, path) == "ENOENT"
    code = 'import socket; a, b = socket.socketpair(); a.send(b"x"); print(b.recv(1)); s = socket.socket(socket.AF_UNIX); s.bind("\\0mine"); s.listen()'
    assert error(box, code) == "b'x'"  # the twin: Unix sockets of its own work


# ---- changing the door from inside ------------------------------------------------------------------------------------------------

CHANGE = """
import ctypes, errno, fcntl, json, os, socket, struct
libc = ctypes.CDLL(None, use_errno=True)
out = {}
def attempt(name, what):
    try: what(); out[name] = "ok"
    except OSError as e: out[name] = errno.errorcode.get(e.errno, str(e))
def call(number, *args):
    if libc.syscall(number, *args) < 0: raise OSError(ctypes.get_errno(), "")
def netlink(kind, payload):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.send(struct.pack("=IHHII", 16 + len(payload), kind, 0x405, 1, 0) + payload)
    code = struct.unpack_from("=i", s.recv(4096), 16)[0]
    if code: raise OSError(-code, "")
UDP = lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
attempt("add route", lambda: netlink(24, struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 253, 1, 0) + struct.pack("=HH4sHHI", 8, 1, b"\\1\\1\\1\\1", 8, 4, 1)))
attempt("delete route", lambda: netlink(25, struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 255, 3, 254, 2, 0)))
attempt("add address", lambda: netlink(20, struct.pack("=BBBBI", 2, 32, 0, 0, 1) + struct.pack("=HH4s", 8, 2, b"\\1\\2\\3\\4")))
attempt("add link", lambda: netlink(16, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0) + struct.pack("=HH6s2x", 10, 3, b"dummy0")))
attempt("setns", lambda: call(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0))
attempt("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1))
attempt("raw6", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, 58))
attempt("ping", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 1).sendto(b"\\x08" + bytes(7), ("8.8.8.8", 0)))
attempt("packet", lambda: socket.socket(17, socket.SOCK_RAW, 3))
attempt("vsock", lambda: socket.socket(40, socket.SOCK_STREAM))
attempt("alg", lambda: socket.socket(38, socket.SOCK_SEQPACKET))
attempt("bluetooth", lambda: socket.socket(31, socket.SOCK_RAW, 1))
attempt("xdp", lambda: socket.socket(44, socket.SOCK_RAW))
attempt("tipc", lambda: socket.socket(30, socket.SOCK_RAW))
for name, number in (("sock_diag", 4), ("audit", 9), ("netfilter", 12), ("kobject", 15), ("generic", 16), ("crypto", 21)):
    attempt("netlink " + name, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, number))
attempt("bind 443", lambda: socket.socket().bind(("203.0.113.9", 443)))
attempt("bind 53", lambda: UDP().bind(("203.0.113.9", 53)))
attempt("bind 3128", lambda: socket.socket().bind(("127.0.0.1", 3128)))
attempt("sysctl", lambda: os.write(os.open("/proc/sys/net/ipv4/ip_unprivileged_port_start", os.O_WRONLY), b"0"))
attempt("tun", lambda: os.open("/dev/net/tun", os.O_RDWR))
def share():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1); s.bind(("127.0.0.1", 3128)); s.listen()
attempt("share 3128", share)
def routes():
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    s.send(struct.pack("=IHHII", 17, 22, 0x301, 1, 0) + b"\\0")
    assert len(s.recv(65536)) > 100
attempt("list addresses", routes)
def server():
    s = socket.socket(); s.bind(("127.0.0.1", 0)); s.listen()
    socket.create_connection(s.getsockname()); s.accept()
attempt("own server", server)
attempt("lo down", lambda: fcntl.ioctl(UDP(), 0x8914, struct.pack("16sH14x", b"lo", 0)))
attempt("unshare net", lambda: call(272, 0x40000000))
attempt("unshare user", lambda: call(272, 0x10000000))
print(json.dumps(out))
"""


def test_nothing_inside_can_change_the_door_or_reach_another_network(box: Inside) -> None:
    done = json.loads(error(box, CHANGE))
    benign = {"list addresses", "own server"}  # getifaddrs(3) works, and so does a server of the sandbox's own
    assert {name: done.pop(name) for name in benign} == dict.fromkeys(benign, "ok")
    assert "ok" not in done.values(), done
    for name in ("add route", "delete route", "add address", "add link", "lo down", "raw", "raw6"):
        assert done[name] == "EPERM", name
    assert box.door
    assert error(box, CONNECT, "AF_INET", "SOCK_STREAM", "192.0.2.1", "443") == "ok"  # still stands
    assert arrival(box.door.listeners[443])[:2] == ("192.0.2.1", 443)


def test_the_same_changes_succeed_for_the_owner_of_a_namespace() -> None:
    """The control: what is refused inside is possible where one holds the capabilities, so the test above can fail."""
    require()
    done = unconfined_python(CHANGE, options=["--unshare-net", "--cap-add", "ALL", "--uid", "0", "--gid", "0"])
    found = json.loads(done.text)
    for name in ("add route", "add address", "raw", "raw6", "packet", "unshare net", "lo down"):
        assert found[name] == "ok", (name, found)


def test_closing_the_descriptors_refuses_from_then_on() -> None:
    require()
    with inside(network="door") as made:
        assert made.door
        assert error(made, CONNECT, "AF_INET", "SOCK_STREAM", "192.0.2.1", "443") == "ok"
        made.door.shut()
        for port in ("443", "80", "3128", "53"):
            assert error(made, CONNECT, "AF_INET", "SOCK_STREAM", "192.0.2.1", port) == "ECONNREFUSED"
        assert error(made, CONNECT, "AF_INET", "SOCK_DGRAM", "127.0.0.1", "53") == "ECONNREFUSED"


def test_ports_that_a_grant_names_are_listened_on_too() -> None:
    require()
    with inside(network="door", ports=(*door.PORTS, 8443, 22)) as made:
        assert made.door
        for port in (8443, 22):
            assert error(made, CONNECT, "AF_INET", "SOCK_STREAM", "192.0.2.1", str(port)) == "ok"
            assert arrival(made.door.listeners[port])[:2] == ("192.0.2.1", port)


def test_two_doors_are_two_networks() -> None:
    require()
    with inside(network="door") as one, inside(network="door") as two:
        assert one.door and two.door
        assert error(one, CONNECT, "AF_INET", "SOCK_STREAM", "192.0.2.1", "443") == "ok"
        assert arrival(one.door.listeners[443])[:2] == ("192.0.2.1", 443)
        with socket.socket(fileno=os.dup(two.door.listeners[443])) as other:
            other.setblocking(False)
            with pytest.raises(BlockingIOError):
                other.accept()
            other.setblocking(True)
        code = 'import socket, time; s = socket.socket(); s.bind(("127.0.0.1", 5555)); s.listen(); time.sleep(60)'
        one.start(PYTHON, "-I", "-c", code)
        assert until(lambda: error(one, CONNECT, "AF_INET", "SOCK_STREAM", "127.0.0.1", "5555") == "ok")
        assert error(two, CONNECT, "AF_INET", "SOCK_STREAM", "127.0.0.1", "5555") == "ECONNREFUSED"


def test_fifty_doors_leak_nothing() -> None:
    require()
    door.make().close()
    before = descriptors(), children()
    made = [door.make() for _ in range(50)]
    assert children() == before[1]  # no process stays behind a door
    for each in made:
        assert len(each.sockets()) == 5
        each.close()
    assert (descriptors(), children()) == before


def test_a_socket_that_lies_in_a_mount_is_what_a_mount_gives(tmp_path: Path) -> None:
    """Whoever mounts a folder grants the sockets in it: stated here so that a change is noticed."""
    require()
    with listening(f"{tmp_path}/s", socket.AF_UNIX), inside(Mount(str(tmp_path), "/mnt", "ro")) as made:
        assert error(made, UNIX, "/mnt/s") == "ok"
