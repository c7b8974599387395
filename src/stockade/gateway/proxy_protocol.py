"""The header with which the doorman hands a connection over: PROXY v2, written and read (proxy-protocol.txt, section 2.2). Pure, but for `greeting`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

SESSION_TLV, NAME_TLV, CONNECTION_TLV = 0xE0, 0xE1, 0xE2  # of the range for private use
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def proxy_header(session: str, source: tuple[str, int], destination: tuple[str, int], name: str = "", connection: str = "") -> bytes:
    """The PROXY v2 header of one connection; `name` is what its destination was given out for, if for anything, `connection` what the doorman calls it.
    IPv4-mapped addresses are written as IPv4."""
    import _socket as socket

    addresses = [address.removeprefix("::ffff:") if "." in address else address for address in (source[0], destination[0])]
    four = all(":" not in address for address in addresses)
    if not four:
        addresses = [address if ":" in address else f"::ffff:{address}" for address in addresses]
    family = socket.AF_INET if four else socket.AF_INET6
    packed = b"".join(socket.inet_pton(family, address.partition("%")[0]) for address in addresses)
    packed += source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
    said = [(SESSION_TLV, session.encode())]
    said += [(tlv, text.encode()) for tlv, text in ((NAME_TLV, name), (CONNECTION_TLV, connection)) if text]
    body = packed + b"".join(bytes([tlv]) + len(value).to_bytes(2, "big") + value for tlv, value in said)
    return _SIGNATURE + bytes([0x21, 0x11 if four else 0x21]) + len(body).to_bytes(2, "big") + body


def read_header(data: bytes) -> tuple[str, str, str, int, str]:
    """(session, name, address, port, connection) of a PROXY v2 header as `proxy_header` writes it. Raises ValueError, KeyError."""
    import ipaddress

    if data[:12] != _SIGNATURE or data[12:13] != b"\x21" or len(data) != 16 + int.from_bytes(data[14:16], "big"):
        raise ValueError("not a PROXY v2 header")
    size = {0x11: 12, 0x21: 36}.get(data[13], len(data))
    half = (size - 4) // 2
    address = str(ipaddress.ip_address(data[16 + half : 16 + 2 * half]))
    port, rest = int.from_bytes(data[14 + size : 16 + size], "big"), data[16 + size :]
    said: dict[int, str] = {}
    while rest:
        length = int.from_bytes(rest[1:3], "big")
        if len(rest) < 3 + length:
            raise ValueError("a value that is cut off")
        said[rest[0]], rest = rest[3 : 3 + length].decode(), rest[3 + length :]
    return said[SESSION_TLV], said.get(NAME_TLV, ""), address, port, said.get(CONNECTION_TLV, "")


async def greeting(reader: asyncio.StreamReader) -> tuple[str, str, str, int, str]:
    """The header at the beginning of a connection, as `read_header`. Raises also OSError and IncompleteReadError; waits as long as the caller lets it."""
    head = await reader.readexactly(16)
    return read_header(head + await reader.readexactly(int.from_bytes(head[14:16], "big")))
