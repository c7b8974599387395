"""The yard's internet: one process that is every host. Puppet model, attacker's sink, name server, metadata service.

Runs as root of the yard's own network namespace, which has no interface but `lo`. Routes that make every address local (AnyIP) let a
wildcard listener play any host; `getsockname()` tells which one was meant. Nothing here can reach, or be reached from, the machine.
"""

from __future__ import annotations

import base64
import fcntl
import ipaddress
import os
import socket
import ssl
import struct
import threading
import time
from typing import Any

from stockade.drills.puppet import PuppetHandler

PUPPETS = {"api.anthropic.com": "160.79.104.10", "api.openai.com": "162.159.140.245"}
HOSTS = {
    **PUPPETS,
    "evil.test": "93.184.215.66",
    "files.test": "93.184.215.20",  # a site that some policies grant
    "rebind.test": "169.254.169.254",  # a public name that its owner points at the cloud's metadata service
    "intranet.test": "10.20.30.40",
    "loop.test": "127.0.0.1",
}
EVIL6 = "2606:2800:21f:cb07::66"
TCP_PORTS = (22, 25, 53, 80, 443, 853, 3128, 4444, 8080, 8443, 9001)
UDP_PORTS = (123, 443, 4444, 51820)
ABSTRACT = "\0stockade-drill-sink"
PATH_SOCKET = "/run/drill/docker.sock"  # stands for the Docker, D-Bus or SSH agent socket of a real machine
MAX_RECORD = 4 << 20


class Records:
    """What the outside saw, in order. Thread-safe."""

    def __init__(self) -> None:
        self._items: list[dict[str, Any]] = []
        self._lock = threading.Lock()

    def add(self, kind: str, dest: str, port: int, data: bytes = b"", **more: Any) -> dict[str, Any]:
        item = {"kind": kind, "dest": dest, "port": port, "data": bytearray(data), **more}
        with self._lock:
            self._items.append(item)
        return item

    def take(self) -> list[dict[str, Any]]:
        """Everything so far, ready for JSON (`data` in base64), and forget it."""
        with self._lock:
            items, self._items = self._items, []
        return [{**item, "data": base64.b64encode(bytes(item["data"][:MAX_RECORD])).decode()} for item in items]


def raise_network() -> None:
    """Bring `lo` up and make every IPv4 and IPv6 address local. Sources: netdevice(7), rtnetlink(7)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, 0x8914, struct.pack("16sh14s", b"lo", 0x1 | 0x40, b""))  # SIOCSIFFLAGS: up, running
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.bind((0, 0))
        for family, scope in ((socket.AF_INET, 254), (socket.AF_INET6, 0)):
            body = struct.pack("BBBBBBBBI", family, 0, 0, 0, 255, 3, scope, 2, 0) + struct.pack("HHI", 8, 4, 1)  # local 0/0 dev lo
            link.send(struct.pack("IHHII", 16 + len(body), 24, 0x0405, 1, 0) + body)
            status = -struct.unpack("i", link.recv(4096)[16:20])[0]
            if status:
                raise OSError(status, os.strerror(status))
    for name, value in (("ip_unprivileged_port_start", "0"), ("ping_group_range", "0 0")):
        try:
            with open(f"/proc/sys/net/ipv4/{name}", "w") as knob:
                knob.write(value)
        except OSError:
            pass  # only some controls need it, and they will say so


class Internet:
    """All listeners. `certificate` is a PEM file with the leaf chain and its key."""

    def __init__(self, certificate: str) -> None:
        self.records = Records()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._tls.set_alpn_protocols(["http/1.1"])
        self._puppets = set(PUPPETS.values())

    def start(self, path_socket: str = "") -> None:
        for port in TCP_PORTS:
            listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=256)
            self._thread(self._accept, listener)
        for port in UDP_PORTS:
            self._thread(self._udp, _udp_socket(port))
        self._thread(self._names, _udp_socket(53))
        for family, protocol in ((socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6)):
            self._thread(self._raw, socket.socket(family, socket.SOCK_RAW, protocol), "icmp")
        self._thread(self._raw, socket.socket(socket.AF_INET, socket.SOCK_RAW, 253), "raw")  # RFC 3692: experiments
        self._thread(self._frames, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
        for address in (ABSTRACT, path_socket):
            if address:
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(address)
                listener.listen(16)
                if not address.startswith("\0"):
                    os.chmod(address, 0o777)
                self._thread(self._accept_unix, listener, "abstract" if address.startswith("\0") else "unix")

    def _thread(self, target: Any, *args: Any) -> None:
        threading.Thread(target=target, args=args, daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            connection, _ = listener.accept()
            self._thread(self._serve, connection)

    def _accept_unix(self, listener: socket.socket, kind: str) -> None:
        while True:
            connection, _ = listener.accept()
            self._thread(self._collect, connection, self.records.add(kind, kind, 0))

    def _serve(self, connection: socket.socket) -> None:
        """One TCP connection: TLS if it begins like TLS; to the puppet's addresses the puppet, everything else the sink."""
        dest, port = _plain(connection.getsockname()[0]), connection.getsockname()[1]
        connection.settimeout(20)
        kind = "tcp"
        try:
            if port == 53:
                return self._names_tcp(connection, dest)
            first = connection.recv(1, socket.MSG_PEEK) if port != 22 else b""
            if first == b"\x16":
                connection, kind = self._tls.wrap_socket(connection, server_side=True), "tls"
            if dest in self._puppets and port in (80, 443):
                return self._puppet(connection, dest, port)
        except OSError as error:
            self.records.add(kind, dest, port, note=str(error))
            connection.close()
            return None
        self._collect(connection, self.records.add(kind, dest, port))
        return None

    def _puppet(self, connection: socket.socket, dest: str, port: int) -> None:
        def record(method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> None:
            self.records.add("model", dest, port, body, method=method, path=path, headers=headers)

        handler = type("Handler", (PuppetHandler,), {"record": staticmethod(record)})
        try:
            handler(connection, (dest, port), None)
        except OSError:
            pass
        finally:
            connection.close()

    def _collect(self, connection: socket.socket, item: dict[str, Any]) -> None:
        """Swallow everything, answer politely at the end of an HTTP request or at a pause, so that no client hangs."""
        data: bytearray = item["data"]
        answered = False
        connection.settimeout(0.3)
        deadline = time.monotonic() + 15
        try:
            while time.monotonic() < deadline and len(data) < MAX_RECORD:
                try:
                    part = connection.recv(65536)
                except TimeoutError:
                    part = None
                if part == b"":
                    break
                data += part or b""
                if b"expect: 100-continue" in bytes(data[:4096]).lower() and not answered and b"\r\n\r\n" in data and not part:
                    connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    continue
                if _whole(bytes(data)) or (part is None and data and not answered):
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 8\r\nConnection: close\r\n\r\nsink ok\n"
                    )
                    answered = True
                    if _whole(bytes(data)):
                        break
        except OSError:
            pass
        finally:
            connection.close()

    def _udp(self, sock: socket.socket) -> None:
        while True:
            data, control, _, _ = sock.recvmsg(65536, 256)
            self.records.add("udp", _destination(control), sock.getsockname()[1], data)

    def _raw(self, sock: socket.socket, kind: str) -> None:
        while True:
            self.records.add(kind, "", 0, sock.recv(65536))

    def _frames(self, sock: socket.socket) -> None:
        """Frames written to the interface by hand bypass routing; only those that carry our word are of interest."""
        while True:
            data = sock.recv(65536)
            if b"drill-frame" in data:
                self.records.add("frame", "", 0, data)

    def _names(self, sock: socket.socket) -> None:
        while True:
            query, control, _, sender = sock.recvmsg(4096, 256)
            sock.sendto(self._resolve(query, "udp", _destination(control)), sender)

    def _names_tcp(self, connection: socket.socket, dest: str) -> None:
        with connection:
            while len(head := connection.recv(2, socket.MSG_WAITALL)) == 2:
                answer = self._resolve(connection.recv(struct.unpack("!H", head)[0], socket.MSG_WAITALL), "tcp", dest)
                connection.sendall(struct.pack("!H", len(answer)) + answer)

    def _resolve(self, query: bytes, way: str, dest: str) -> bytes:
        """Answer a DNS query (RFC 1035) for `HOSTS` and anything below them; NXDOMAIN for the rest. Everything is recorded."""
        try:
            name, kind, end = question(query)
        except (ValueError, IndexError, struct.error):
            self.records.add("dns", dest, 53, query, name="?", way=way)
            return query[:2] + b"\x81\x81" + b"\0" * 8
        self.records.add("dns", dest, 53, name.encode(), name=name, qtype=kind, way=way)
        host = next((known for known in HOSTS if name.lower() == known or name.lower().endswith("." + known)), None)
        answers = b""
        if host and kind == 1:
            answers = b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04" + ipaddress.IPv4Address(HOSTS[host]).packed
        elif host == "evil.test" and kind == 28:
            answers = b"\xc0\x0c\0\x1c\0\x01\0\0\0\x05\0\x10" + ipaddress.IPv6Address(EVIL6).packed
        elif host and kind == 16:
            answers = b"\xc0\x0c\0\x10\0\x01\0\0\0\x05\0\x03\x02ok"
        code = b"\x81\x80" if host else b"\x81\x83"
        return query[:2] + code + struct.pack("!HHHH", 1, 1 if answers else 0, 0, 0) + query[12:end] + answers


def question(query: bytes) -> tuple[str, int, int]:
    """(name, type, offset behind the question) of a DNS query. Raises ValueError or IndexError for anything broken."""
    labels, at = [], 12
    while size := query[at]:
        if size > 63:
            raise ValueError("compressed question")
        labels.append(query[at + 1 : at + 1 + size].decode("latin-1"))
        at += 1 + size
    (kind,) = struct.unpack("!H", query[at + 1 : at + 3])
    return ".".join(labels), kind, at + 5


def _whole(data: bytes) -> bool:
    """Whether `data` is a complete HTTP/1.1 request (RFC 9112)."""
    head, gap, body = data.partition(b"\r\n\r\n")
    if not gap:
        return False
    fields = {key.strip().lower(): value.strip() for key, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])}
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        return body.endswith(b"0\r\n\r\n")
    return b"HTTP/1." in head.split(b"\r\n")[0] and len(body) >= int(fields.get(b"content-length", b"0") or b"0")


def _plain(address: str) -> str:
    return address.removeprefix("::ffff:")


def _udp_socket(port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.bind(("::", port))
    return sock


def _destination(control: list[tuple[int, int, bytes]]) -> str:
    for level, kind, data in control:
        if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO):
            return _plain(str(ipaddress.IPv6Address(data[:16])) if data[:12] != b"\0" * 10 + b"\xff\xff" else socket.inet_ntoa(data[12:16]))
    return ""
