"""The thinking part alone: what the engine says against what the request says. Invariant: whatever the headers, an answer and never an exception."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.core.frozen import plain, replace
from stockade.core.tools import ToolRule
from stockade.core.values import ALLOW, DENY, GATE, Grant, Origin, Verdict
from stockade.gatehouse import Judge
from stockade.gateway.config import FACTS, SHOWN_FIRST
from stockade.gateway.flow import Asked, Flow, Outcome, Synthetic, refusal_text

GRANT = Grant("api.example.com", methods=("GET", "POST"), paths=("/v1/**",))
CONFIG: dict[str, Any] = {
    "grants": [plain(GRANT), plain(Grant("api.example.com", scheme="http", port=80))],
    "credentials": {},
    "canaries": {},
    "learning": False,
    "tainted": False,
}
TUNNEL = {
    "session": "s-1", "connect": "CONNECT api.example.com:443", "sni": "api.example.com", "destination": "envoy://tunnel/", "length": "-",
    "scheme": "https", "method": "GET", "way": "tunnel", "body": "shown", "connection": "1 HTTP/1.1",
}  # fmt: skip
STRAIGHT = {**TUNNEL, "connect": "", "destination": "198.18.0.1:443", "way": "https"}


def flow() -> Flow:
    addresses = Synthetic(lambda address, name: None)
    addresses.address("api.example.com")
    return Flow("s-1", Judge(CONFIG), addresses)


def examine(
    facts: dict[str, str],
    host: str = "api.example.com",
    target: str = "/v1/x",
    body: bytes = b"",
    *more: tuple[str, str],
    whole: bool = False,
) -> Outcome:
    headers = (("host", host), *((f"x-stockade-{name}", value) for name, value in facts.items()), *more)
    return flow().examine(Asked("GET", target, headers, body, whole))


@pytest.mark.parametrize("facts", [TUNNEL, STRAIGHT])
def test_what_agrees_is_allowed(facts: dict[str, str]) -> None:
    outcome = examine(facts)
    assert outcome.verdict.effect == ALLOW and outcome.grant == GRANT and (outcome.host, outcome.port) == ("api.example.com", 443)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"session": "s-2"}, "session"),
        ({"session": "-"}, "session"),
        ({"sni": "-"}, "sni-mismatch"),
        ({"sni": "other.example.com"}, "sni-mismatch"),
        ({"connect": "GET api.example.com"}, "host-mismatch"),
        ({"connect": "CONNECT other.example.com:443"}, "host-mismatch"),
        ({"connect": "CONNECT api.example.com:444"}, "host-not-granted"),
        ({"connect": "-"}, "bad-host"),
        ({"connect": "CONNECT 127.0.0.1:443"}, "bare-ip"),
        ({"scheme": "http"}, "scheme"),
        ({"scheme": "-"}, "scheme"),
        ({"length": "x"}, "bad-length"),
        ({"length": "-1"}, "bad-length"),
        ({"method": "CONNECT"}, "connect"),
        ({"method": "-"}, "bad-method"),
        ({"way": "https", "destination": "93.184.216.34:443"}, "bare-ip"),
        ({"way": "https", "destination": "198.18.0.2:443"}, "bare-ip"),
        ({"way": "https", "destination": "-"}, "bare-ip"),
        ({"way": "https", "destination": "198.18.0.1:8443"}, "port-mismatch"),
        ({"way": "http"}, "scheme"),
        ({"way": "-"}, "scheme"),
    ],
)
def test_what_disagrees_is_refused(change: dict[str, str], rule: str) -> None:
    outcome = examine({**TUNNEL, **change})
    assert outcome.verdict.effect != ALLOW and outcome.verdict.rule == rule
    assert rule in refusal_text(outcome)


@pytest.mark.parametrize("name", sorted(FACTS))
def test_a_fact_said_twice_is_refused(name: str) -> None:
    outcome = examine(TUNNEL, "api.example.com", "/v1/x", b"", (name, TUNNEL[name.removeprefix("x-stockade-")]))
    assert outcome.verdict.rule == "engine-facts"


def test_a_body_that_must_be_read_is_asked_for_and_only_then_decided() -> None:
    facts = {**TUNNEL, "length": "2", "method": "POST"}
    first = examine(facts, target="/v1/messages")
    assert first.read and first.length == 2
    assert examine(facts, "api.example.com", "/v1/messages", b"{}", whole=True).verdict.effect == ALLOW
    assert not examine(facts, target="/v1/other").read


@pytest.mark.parametrize("body", [b"", b"{", b"{}{}"])
def test_a_body_that_did_not_come_whole_is_refused(body: bytes) -> None:
    facts = {**TUNNEL, "length": "2", "method": "POST"}
    assert examine(facts, "api.example.com", "/v1/messages", body, whole=True).verdict.rule == "server-side-action"


def test_a_body_without_an_announced_length_comes_with_the_first_question() -> None:
    facts = {**TUNNEL, "method": "POST"}
    assert examine(facts, "api.example.com", "/v1/messages", b"{}").verdict.effect == ALLOW
    assert examine(facts, "api.example.com", "/v1/messages", b'{"mcp_servers": [1]}').verdict.rule == "server-side-action"


def test_of_a_body_without_an_announced_length_the_beginning_may_come_first() -> None:
    facts, body = {**TUNNEL, "method": "POST"}, bytes(SHOWN_FIRST)
    first = examine(facts, "api.example.com", "/v1/x", body)
    assert first.read and first.length == -1
    assert examine(facts, "api.example.com", "/v1/x", body, whole=True).length == SHOWN_FIRST
    assert examine(facts, "api.example.com", "/v1/x", body[1:]).length == SHOWN_FIRST - 1
    assert examine({**facts, "method": "DELETE"}, "api.example.com", "/v1/x", body).verdict.effect == DENY


@pytest.mark.parametrize("body", ["unread", "-", ""])
def test_a_body_of_unknown_length_is_not_taken_for_an_empty_one(body: str) -> None:
    """Only a grant for gRPC allows one."""
    assert examine({**TUNNEL, "method": "POST", "body": body}).verdict.rule == "upload-too-large"
    assert examine({**TUNNEL, "method": "POST", "body": body, "length": "0"}).verdict.effect == ALLOW


class Believing(Judge):
    """Allows everything: what the flow refuses, it refuses on its own."""

    def request(self, **asked: Any) -> tuple[Verdict, Grant | None]:
        return Verdict(ALLOW, "test"), GRANT


names = st.sampled_from(["host", *FACTS, "content-length", "x", "x-envoy-a"])
texts = st.sampled_from(
    ["api.example.com", "-", "", "CONNECT api.example.com:443", "s-1", "https", "tunnel", "198.18.0.1:443", "evil", "\u00ff\x00", "a,b"]
)


@given(st.lists(st.tuples(names, texts | st.text(max_size=10)), max_size=12), st.text(max_size=20), st.binary(max_size=10))
def test_any_question_gets_an_answer(headers: list[tuple[str, str]], target: str, body: bytes) -> None:
    addresses = Synthetic(lambda address, name: None)
    addresses.address("api.example.com")
    outcome = Flow("s-1", Believing(CONFIG), addresses).examine(Asked("GET", target, tuple(headers), body))
    refusal_text(outcome)
    if outcome.verdict.effect == ALLOW:
        said = dict(headers)
        assert said["x-stockade-session"] == "s-1" and outcome.host == "api.example.com"
    for value in outcome.event.values():
        assert isinstance(value, int) or (isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= 2048)


def test_a_rule_in_a_file_with_any_name_can_be_written_down() -> None:
    """What the supervisor takes for an event is printable ASCII, and a home may be called otherwise."""
    for path in ("/home/m\u00fcller/policy.toml", '/home/\u674e/\U0001f600\'s "own".toml', "/" + "x/" * 2000, "/" + "\U0001f600" * 1000):
        origin = Origin(path, 3, "egress[0]")
        tools = (plain(ToolRule("Bash", ALLOW, origin=origin)), plain(ToolRule("Read", "ask", origin=origin)))
        judge = Judge({**CONFIG, "grants": [plain(replace(GRANT, origin=origin))], "tools": tools})
        one = Flow("s-1", judge, Synthetic(lambda address, name: None))
        facts = {**TUNNEL, "way": "proxy", "scheme": "http", "method": "POST", "connect": ""}
        for host, target, said in (("api.example.com", "/v1/x", facts | TUNNEL), (GATE, "/tool", facts)):
            for tool in ("Bash", "Read"):
                body = b'{"hook_event_name":"PreToolUse","tool_name":"%s","tool_input":{}}' % tool.encode()
                said = {**said, "length": str(len(body)), "method": "POST"}
                headers = (("host", host), *((f"x-stockade-{name}", value) for name, value in said.items()))
                outcome = one.examine(Asked("POST", target, headers, body, whole=True))
                rule = str(outcome.event["rule"])
                assert outcome.verdict.effect != DENY and rule.isascii() and rule.isprintable() and len(rule) <= 2048, outcome
