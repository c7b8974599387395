"""DNS at the door: granted names get an address of ours, every other name does not exist, and nothing is ever asked of anybody (RFC 1035, RFC 2544 range).

No AAAA, HTTPS or SVCB records are given out, so no IPv6 and no encrypted client hello. Parsing is dnspython's; the bytes are hostile.
"""

from __future__ import annotations

import dns.exception
import dns.flags
import dns.message
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_TTL = 60  # seconds


class Answerer:
    """Answers queries. `granted(name)` says which names exist, `address(name)` gives their synthetic address ("" = no more addresses)."""

    def __init__(self, granted: Callable[[str], bool], address: Callable[[str], str]) -> None:
        self._granted, self._address = granted, address

    def answer(self, packet: bytes) -> tuple[bytes, tuple[str, str, str] | None]:
        """The reply (b"" = none: not a query) and what to log: (name, type, effect). Never raises."""
        if len(packet) < 12 or packet[2] & 0x80:
            return b"", None
        if packet[4:6] != b"\0\1":  # before anything is parsed: ten thousand questions that share one long name take seconds to read
            return _error(packet, dns.rcode.NOTIMP), None
        try:
            query = dns.message.from_wire(packet, question_only=True)
            if query.opcode() != dns.opcode.QUERY or len(query.question) != 1 or query.question[0].rdclass != dns.rdataclass.IN:
                return _error(packet, dns.rcode.NOTIMP), None
            return self._reply(query)
        except (dns.exception.DNSException, ValueError, TypeError, IndexError, KeyError, NotImplementedError):
            return _error(packet, dns.rcode.FORMERR), None

    def _reply(self, query: dns.message.Message) -> tuple[bytes, tuple[str, str, str]]:
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        reply = dns.message.Message(id=query.id)
        reply.flags = dns.flags.QR | dns.flags.AA | dns.flags.RA | (query.flags & dns.flags.RD)
        reply.question = [question]
        address = self._address(name) if self._granted(name) else ""
        if not address:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif question.rdtype == dns.rdatatype.A:
            reply.answer = [dns.rrset.from_text(question.name, _TTL, "IN", "A", address)]
        return reply.to_wire(), (name, kind, "allow" if address else "deny")


def _error(packet: bytes, code: int) -> bytes:
    """A reply of twelve bytes: the query's identifier, QR, opcode and RD, the code, and no records."""
    return packet[:2] + bytes([0x80 | packet[2] & 0x79, code]) + bytes(8)
