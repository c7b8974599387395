"""The commands of a git push: what passes and what does not. What holds for any bytes: tests/fuzz/push.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks.grants import HttpRequest, decide
from stockade.checks.push import refused
from stockade.core.values import ALLOW, DENY, Grant

OLD, NEW, ZERO = "a" * 40, "b" * 40, "0" * 40
CAPS = "\0 report-status side-band-64k object-format=sha1"


def line(text: str | bytes) -> bytes:
    data = text if isinstance(text, bytes) else text.encode()
    return b"%04x" % (len(data) + 4) + data


def push(*refs: str, new: str = NEW, end: bytes = b"0000PACK...") -> bytes:
    return b"".join(line(f"{OLD} {new} {ref}{CAPS if not number else ''}") for number, ref in enumerate(refs)) + end


def agents(ref: str) -> bool:
    return ref.startswith("refs/heads/agent/")


@pytest.mark.parametrize(
    "start",
    [
        push("refs/heads/agent/x"),
        push("refs/heads/agent/x", "refs/heads/agent/y"),
        push("refs/heads/agent/x", end=b"0000"),
        push("refs/heads/agent/push-options", "refs/heads/agent/y"),
        line(f"{OLD} {NEW} refs/heads/agent/x{CAPS} agent=git/push-options") + b"0000PACK",
        b"0000",
        line(f"shallow {OLD}") + push("refs/heads/agent/x"),
        line(f"{ZERO} {NEW} refs/heads/agent/x{CAPS}\n") + b"0000",
        line(f"{'a' * 64} {'b' * 64} refs/heads/agent/x{CAPS}") + b"0000PACK",
    ],
)
def test_granted(start: bytes) -> None:
    assert refused((), start, agents) == ""


@pytest.mark.parametrize(
    "start",
    [
        push("refs/heads/main"),
        push("refs/heads/agent/x", "refs/heads/main"),
        push("refs/heads/agent/x", new=ZERO),
        push("refs/heads/agent/x", end=b""),
        push("refs/heads/agent/x", end=b"00"),
        push("refs/heads/agent/x", end=b"0001"),
        push("refs/heads/agent/x", end=b"0004"),
        push("HEAD"),
        line(f"{OLD} {NEW} refs/heads/agent/x{CAPS} push-options") + b"0000" + line("merge_request.create") + b"0000PACK",
        line(f"{OLD} {NEW} refs/heads/agent/x\0push-options\n") + b"0000" + line("ci.skip") + b"0000PACK",
        push("refs/heads/agent/x refs/heads/main"),
        push("refs/heads/agent/x\nrefs/heads/main"),
        line(f"{OLD} {NEW} refs/heads/agent/x") + line(f"{OLD} {NEW} refs/heads/agent/y{CAPS}") + b"0000",
        line(f"{OLD} {'b' * 64} refs/heads/agent/x{CAPS}") + b"0000",
        line(f"{OLD.upper()} {NEW} refs/heads/agent/x{CAPS}") + b"0000",
        line("push-cert\0 report-status\n") + push("refs/heads/agent/x"),
        b"0000" + push("refs/heads/agent/x"),
        b"+000" + push("refs/heads/agent/x"),
        b"00 5x" + push("refs/heads/agent/x"),
        b"",
        b"PACK",
        push(*["refs/heads/agent/x"] * 1001),
    ],
)
def test_refused(start: bytes) -> None:
    assert refused((), start, agents)


def test_a_compressed_push_is_refused() -> None:
    assert refused((("Content-Encoding", "gzip"),), push("refs/heads/agent/x"), agents)


@given(st.lists(st.sampled_from(["refs/heads/agent/x", "refs/heads/main", "refs/tags/v1", "refs/heads/agent/a/b"]), min_size=1, max_size=4))
def test_a_push_passes_exactly_when_every_ref_does(refs: list[str]) -> None:
    grant = Grant("git.example.com", methods=("POST",), paths=("/o/r/git-receive-pack",), refs=("refs/heads/agent/**",))
    body = push(*refs)
    asked = HttpRequest("POST", "git.example.com", "/o/r/git-receive-pack", length=len(body), start=body)
    assert decide(asked, (grant,)).effect == (ALLOW if all(map(agents, refs)) else DENY)
