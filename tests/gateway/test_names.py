"""DNS answers: what exists and what does not. Any bytes: tests/fuzz/names.py."""

from __future__ import annotations

import socket

import dns.message
import dns.rcode
import pytest

from stockade.gateway.flow import Synthetic
from stockade.gateway.names import Answerer

GRANTED = {"api.example.com"}


def answerer() -> Answerer:
    return Answerer(GRANTED.__contains__, Synthetic(lambda address, name: None).address)


def test_replies_are_not_answered() -> None:
    """Two answerers can never keep each other busy."""
    query = dns.message.make_query("api.example.com", "A")
    reply, _ = answerer().answer(query.to_wire())
    assert reply and answerer().answer(reply) == (b"", None)


@pytest.mark.parametrize("kind", ["A", "AAAA", "HTTPS", "TXT"])
def test_only_a_records(kind: str) -> None:
    reply = dns.message.from_wire(answerer().answer(dns.message.make_query("API.Example.com", kind).to_wire())[0])
    assert reply.rcode() == dns.rcode.NOERROR and bool(reply.answer) == (kind == "A")


def test_nothing_is_asked_of_a_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", asked)
    monkeypatch.setattr(socket, "getaddrinfo", asked)
    _, seen = answerer().answer(dns.message.make_query("c2VjcmV0.evil.test", "A").to_wire())
    assert seen == ("c2vjcmv0.evil.test", "A", "deny")


def test_many_questions_in_one_packet_are_refused_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each may be a pointer to one long name: ten thousand of them fit, and take seconds."""
    one = dns.message.make_query("api.example.com", "A").to_wire()
    many = one[:4] + (10_000).to_bytes(2, "big") + one[6:] + b"\xc0\x0c\0\1\0\1" * 9_999
    read = []
    monkeypatch.setattr(dns.message, "from_wire", lambda data, **_: read.append(data) or dns.message.make_query("api.example.com", "A"))
    reply, seen = answerer().answer(many)
    assert seen is None and not read and reply[:2] == one[:2] and reply[3] & 15 == dns.rcode.NOTIMP
    assert answerer().answer(one)[1] == ("api.example.com", "A", "allow") and read == [one]


def test_synthetic_addresses_are_stable_distinct_and_bounded() -> None:
    told: list[tuple[str, str]] = []
    table = Synthetic(lambda address, name: told.append((address, name)), most=3)
    given_out = [table.address(name) for name in ("a", "b", "a", "c", "d")]
    assert given_out[0] == given_out[2] and len(set(given_out)) == 4 and given_out[4] == ""
    assert table.known("b") == given_out[1] and table.known("d") == ""
    assert told == [(given_out[0], "a"), (given_out[1], "b"), (given_out[3], "c")]
