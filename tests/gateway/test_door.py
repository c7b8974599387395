"""Through a real door: transparent connections and DNS, from a network namespace that has no other way out."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import dns.message
import dns.rcode
import dns.rdatatype
import pytest

from conftest import unavailable
from gateway.harness import Gate, Upstream, running, until
from stockade.core.errors import StockadeError
from stockade.walls import door

pytestmark = pytest.mark.wall


@contextlib.contextmanager
def made(*ports: int) -> Iterator[door.Door]:
    """A door with listeners on these ports, where the machine has any."""
    try:
        opened = door.make(ports)
    except StockadeError as error:
        unavailable("door", error.message)
    yield opened
    os.close(opened.network)
    os.close(opened.user)


JOIN = (
    "import os, sys\n"
    "os.setns(int(sys.argv[1]), os.CLONE_NEWUSER)\n"
    "os.setns(int(sys.argv[2]), os.CLONE_NEWNET)\n"
    "os.execvp(sys.argv[3], sys.argv[3:])\n"
)


class Inside:
    """Runs commands inside a door. It joins in a program of its own: in a fork of this process gRPC, once it was used, has threads, and a process with
    threads cannot join a user namespace (setns(2))."""

    def __init__(self, opened: door.Door) -> None:
        self._namespaces = (opened.user, opened.network)

    def _joining(self, argv: list[str]) -> list[str]:
        return [sys.executable, "-I", "-S", "-c", JOIN, *map(str, self._namespaces), *argv]

    def start(self, argv: list[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(self._joining(argv), stdout=subprocess.PIPE, text=True, pass_fds=self._namespaces)

    def run(self, argv: list[str], given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        done = subprocess.run(self._joining(argv), input=given, capture_output=True, timeout=30, pass_fds=self._namespaces)
        assert b"os.setns" not in done.stderr, done.stderr.decode()
        return done

    def python(self, program: str, *arguments: str, given: bytes = b"") -> bytes:
        """What a program writes."""
        return self.run([sys.executable, "-I", "-S", "-c", program, *arguments], given).stdout


@pytest.fixture(scope="module")
def opened(carrier: str, upstream: Upstream) -> Iterator[door.Door]:
    with made(door.PROXY, door.HTTP, door.HTTPS, door.DNS, upstream.port, upstream.plain_port) as opened:
        yield opened


@pytest.fixture(scope="module")
def gate(carrier: str, upstream: Upstream, opened: door.Door, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    kinds = {
        door.PROXY: "http-proxy",
        door.HTTP: "http",
        door.HTTPS: "https",
        door.DNS: "dns-tcp",
        upstream.port: "https",
        upstream.plain_port: "http",
    }
    listeners = [(kinds[port], socket.socket(fileno=fd)) for port, fd in opened.listeners.items()]
    listeners.append(("dns-udp", socket.socket(fileno=opened.dns)))
    with running(tmp_path_factory.mktemp("gate"), upstream, listeners=listeners, kind=carrier) as started:
        yield started


@pytest.fixture
def inside(opened: door.Door) -> Inside:
    return Inside(opened)


def ask(inside: Inside, packet: bytes, stream: bool = False, wait: float = 3) -> bytes:
    """Send a datagram (or a length-prefixed message over TCP) to the door's DNS from inside; the reply, b"" if none came in `wait` seconds."""
    program = (
        "import socket,sys\n"
        "data=sys.stdin.buffer.read()\n"
        f"s=socket.socket(type=socket.{'SOCK_STREAM' if stream else 'SOCK_DGRAM'})\n"
        f"s.settimeout({wait}); s.connect(('127.0.0.1',53))\n"
        f"s.sendall({'len(data).to_bytes(2)+' if stream else ''}data)\n"
        "try: sys.stdout.buffer.write(s.recv(4096))\n"
        "except OSError: pass\n"
    )
    reply = inside.python(program, given=packet)
    return reply[2:] if stream else reply


def lookup(inside: Inside, name: str, kind: str = "A", stream: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    reply = dns.message.from_wire(ask(inside, query.to_wire(), stream))
    assert query.is_response(reply)
    return reply


def curl(gate: Gate, inside: Inside, url: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    argv = ["curl", "-sS", "-m", "10", "--noproxy", "*", "--cacert", str(gate.ca_file), "-w", "[%{http_code}]", *options, url]
    return inside.run(argv)


def test_granted_names_get_a_stable_synthetic_address(gate: Gate, inside: Inside) -> None:
    replies = [lookup(inside, name, stream=stream) for name in ("api.localhost", "API.localhost.") for stream in (False, True)]
    addresses = {reply.answer[0][0].to_text() for reply in replies}
    assert len(addresses) == 1 and addresses.pop().startswith("198.18.")


@pytest.mark.parametrize("kind", ["AAAA", "HTTPS", "SVCB", "TXT", "MX", "ANY"])
def test_other_types_of_granted_names_are_empty(gate: Gate, inside: Inside, kind: str) -> None:
    reply = lookup(inside, "api.localhost", kind)
    assert reply.rcode() == dns.rcode.NOERROR and not reply.answer


@pytest.mark.parametrize("name", ["c2VjcmV0.evil.test", "localhost", "example.com", "1.0.18.198.in-addr.arpa", "x.api.localhost", "."])
def test_other_names_do_not_exist(gate: Gate, inside: Inside, name: str) -> None:
    assert lookup(inside, name).rcode() == dns.rcode.NXDOMAIN
    assert {"kind": "dns", "effect": "deny"}.items() <= gate.events[-1].items()


def test_hostile_datagrams_do_not_stop_the_answers(gate: Gate, inside: Inside) -> None:
    for _ in range(5):
        ask(inside, random.randbytes(random.randrange(600)), wait=0.3)
    assert lookup(inside, "api.localhost").answer


def test_transparent_https_and_http(gate: Gate, inside: Inside, upstream: Upstream) -> None:
    address = lookup(inside, "api.localhost").answer[0][0].to_text()
    plain = lookup(inside, "open.localhost").answer[0][0].to_text()
    upstream.requests.clear()
    done = curl(gate, inside, f"https://api.localhost:{upstream.port}/v1/x", "--resolve", f"api.localhost:{upstream.port}:{address}")
    assert done.stdout.endswith(b"[200]"), done
    done = curl(
        gate, inside, f"http://open.localhost:{upstream.plain_port}/public/x", "--resolve", f"open.localhost:{upstream.plain_port}:{plain}"
    )
    assert done.stdout.endswith(b"[200]"), done
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("address", ["198.18.77.77", "93.184.216.34", "127.0.0.1", "169.254.169.254", "10.0.0.1"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_address_that_is_not_the_names_own(gate: Gate, inside: Inside, upstream: Upstream, address: str, scheme: str) -> None:
    """A granted name in Host and SNI, a connection to somewhere else: refused, TLS before it begins, and nothing is dialled."""
    name, port, path = (
        ("api.localhost", upstream.port, "/v1/x") if scheme == "https" else ("open.localhost", upstream.plain_port, "/public/x")
    )
    lookup(inside, name)
    before = upstream.connections
    done = curl(gate, inside, f"{scheme}://{name}:{port}{path}", "--resolve", f"{name}:{port}:{address}")
    assert (b"bare-ip" in done.stdout and done.stdout.endswith(b"[403]")) if scheme == "http" else done.returncode == 35, done
    assert upstream.connections == before


def test_the_address_of_another_granted_name(gate: Gate, inside: Inside, upstream: Upstream) -> None:
    other = lookup(inside, "open.localhost").answer[0][0].to_text()
    done = curl(gate, inside, f"https://api.localhost:{upstream.port}/v1/x", "--resolve", f"api.localhost:{upstream.port}:{other}")
    assert done.returncode == 35, done  # SSL connect error
    assert until(lambda: any(event["kind"] == "connect" and event["host"] == "api.localhost" for event in gate.events))


def test_a_bare_address_and_ipv6(gate: Gate, inside: Inside, upstream: Upstream) -> None:
    for host in ("93.184.216.34", "[2606:2800:220:1::1]"):
        done = curl(gate, inside, f"http://{host}:{upstream.plain_port}/")
        assert done.stdout.endswith(b"[403]") and b"bare-ip" in done.stdout, done
        assert curl(gate, inside, f"https://{host}:{upstream.port}/").returncode == 35  # SSL connect error


def test_the_proxy_port(gate: Gate, inside: Inside, upstream: Upstream) -> None:
    argv = [
        "curl",
        "-sS",
        "-m",
        "10",
        "--cacert",
        str(gate.ca_file),
        "-x",
        "http://127.0.0.1:3128",
        "-o",
        "/dev/null",
        "-w",
        "%{http_code}",
    ]
    done = inside.run([*argv, f"https://api.localhost:{upstream.port}/v1/x"])
    assert done.stdout == b"200", done


def test_raw_bytes_on_transparent_ports_are_closed(gate: Gate, inside: Inside, upstream: Upstream) -> None:
    program = (
        "import socket,sys\n"
        f"s=socket.create_connection(('198.18.0.1',{upstream.port}),5); s.sendall(b'SSH-2.0-x\\r\\n')\n"
        "try: print(s.recv(100))\n"
        "except ConnectionResetError: print(b'')\n"
    )
    before = upstream.connections
    assert inside.python(program) == b"b''\n"
    assert upstream.connections == before


def test_bytes_that_look_like_a_proxy_header_are_only_bytes(gate: Gate, inside: Inside, upstream: Upstream) -> None:
    """A client that speaks PROXY v2 itself, naming another session and destination, is not believed: it is not HTTP."""
    forged = b"\r\n\r\n\x00\r\nQUIT\n" + bytes([0x21, 0x11]) + struct.pack("!H", 12 + 9) + bytes(12) + b"\xe0\x00\x06s-evil"
    request = f"GET /public/x HTTP/1.1\r\nHost: open.localhost:{upstream.plain_port}\r\n\r\n".encode()
    program = (
        "import socket,sys\n"
        f"s=socket.create_connection(('198.18.0.1',{upstream.plain_port}),5); s.sendall(sys.stdin.buffer.read())\n"
        "s.settimeout(3); sys.stdout.buffer.write(s.recv(4096))\n"
    )
    assert b" 200 " not in inside.python(program, given=forged + request)
