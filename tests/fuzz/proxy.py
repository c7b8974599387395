"""INVARIANT: a PROXY v2 header says to a reader of the specification (proxy-protocol.txt, section 2.2) exactly the addresses, ports,
session and name it was made from, and to our own reader the session, the name and the port; any other bytes that reader refuses."""

from __future__ import annotations

import ipaddress
import struct

from stockade.gateway.proxy_protocol import proxy_header, read_header

WORDS = (
    b"\0" * 12,
    b"\0" * 10 + b"\xff\xff",
    b"\x7f\0\0\1",
    b"\xc6\x12\0\1",
    b"\xfe\x80",
    b"\1\xbb",
    b"s-1",
    b"\x04",
    b"\x06",
    b"\xe0\0\3",
    b"\xff",
)
KEPT = {
    "two addresses of IPv4": b"\0" + b"\x0a\0\0\1" + bytes(12) + b"\xc6\x12\0\1" + bytes(12) + b"\x15\xb3\1\xbb" + b"s-1",
    "two of IPv6": b"\3" + b"\x20\1" + bytes(14) + b"\xfe\x80" + bytes(14) + b"\0\1\1\xbb" + b"s-1",
    "one of each": b"\1" + b"\x20\1" + bytes(14) + b"\x0a\0\0\1" + bytes(12) + b"\0\0\xff\xff" + b"",
    "IPv4 in the dress of IPv6, as a listener for both sees it": b"\4"
    + b"\x0a\0\0\1"
    + bytes(12)
    + b"\x0a\0\0\2"
    + bytes(12)
    + b"\0\1\0\2s",
    "a name": b"\0" + b"\x0a\0\0\1" + bytes(12) + b"\xc6\x12\0\1" + bytes(12) + b"\x15\xb3\1\xbb" + b"s-1|db.example.com",
    "a header without a session": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
    "a value that is cut off": b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0e" + bytes(12) + b"\xe0\0",
    "with a zone": b"\x0b" + b"\xfe\x80" + bytes(14) + b"\xfe\x80" + bytes(14) + b"\0\1\0\2s",
}
FAULT = ("stockade.gateway.proxy_protocol.SESSION_TLV", 0x20)


def one(data: bytes) -> None:
    """A byte of switches, two addresses of 16 bytes (IPv4 takes the first four), two ports, the session, and behind a | the name."""
    try:
        read_header(data)
    except (ValueError, KeyError):
        pass
    data = data.ljust(37, b"\0")
    kinds = data[0]
    addresses = [_address(data[1:17], bool(kinds & 1)), _address(data[17:33], bool(kinds & 2))]
    ports = struct.unpack("!HH", data[33:37])
    session, _, name = data[37 : 37 + 1000].decode("utf-8", "replace").partition("|")
    written = [str(address) for address in addresses]
    if kinds & 4:
        written = [text if ":" in text else f"::ffff:{text}" for text in written]
    if kinds & 8:
        written = [f"{text}%lo" if ":" in text and "." not in text else text for text in written]
    header = proxy_header(session, (written[0], ports[0]), (written[1], ports[1]), name)
    assert _read(header) == ([_plain(one) for one in addresses], list(ports), session, name)
    assert read_header(header) == (session, name, read_header(header)[2], ports[1], "")
    assert _plain(ipaddress.ip_address(read_header(header)[2])) == _plain(addresses[1])


def _address(data: bytes, six: bool) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return ipaddress.IPv6Address(data) if six else ipaddress.IPv4Address(data[:4])


def _plain(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    return getattr(address, "ipv4_mapped", None) or address


def _read(header: bytes) -> tuple[list[ipaddress.IPv4Address | ipaddress.IPv6Address], list[int], str, str]:
    signature, version, family, length = struct.unpack("!12sBBH", header[:16])
    body = header[16:]
    assert signature == b"\r\n\r\n\0\r\nQUIT\n" and version == 0x21 and family in (0x11, 0x21) and length == len(body)
    size = 4 if family == 0x11 else 16
    found = [_plain(_address(body[at : at + size].ljust(16, b"\0"), size == 16)) for at in (0, size)]
    ports = list(struct.unpack("!HH", body[2 * size : 2 * size + 4]))
    rest, said = body[2 * size + 4 :], []
    while rest:
        kind, long = struct.unpack("!BH", rest[:3])
        said.append((kind, rest[3 : 3 + long].decode()))
        assert len(rest) >= 3 + long
        rest = rest[3 + long :]
    assert [kind for kind, _ in said] in ([0xE0], [0xE0, 0xE1]), "the session, and perhaps the name"
    return found, ports, said[0][1], said[1][1] if len(said) > 1 else ""
