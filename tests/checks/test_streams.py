"""Grants for gRPC: what passes by one, that nothing else does, and what is suggested to whoever lacks one."""

from __future__ import annotations

import tomllib

import pytest

from stockade.checks.grants import HttpRequest, choose, decide
from stockade.checks.streams import is_call
from stockade.checks.usage import State, spent
from stockade.core.frozen import replace
from stockade.core.values import ALLOW, DENY, Grant

GRANT = Grant("api.example.com", methods=("POST",), paths=("/a.Svc/Get", "/b.Svc/*"), query="none", grpc=True, headers=("x-listed-bin",))
TYPE = ("content-type", "application/grpc")
CALL = HttpRequest("POST", "api.example.com", "/a.Svc/Get", headers=(TYPE, ("te", "trailers"), ("grpc-timeout", "1S")), length=-1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target": "/b.Svc/Anything"},
        {"headers": (("Content-Type", "application/grpc+proto"), ("grpc-encoding", "gzip"), ("grpc-accept-encoding", "gzip"))},
        {"headers": (TYPE, ("x-listed-bin", "AAAA"), ("grpc-previous-rpc-attempts", "1"))},
        {"length": 5},
    ],
)
def test_calls_of_granted_methods_pass(changes: dict[str, object]) -> None:
    verdict, grant = choose(replace(CALL, **changes), (GRANT,))
    assert (verdict.effect, grant) == (ALLOW, GRANT)


@pytest.mark.parametrize(
    ("rule", "changes"),
    [
        ("path-not-granted", {"target": "/a.Svc/Delete"}),
        ("path-not-granted", {"target": "/c.Svc/Get"}),
        ("path-not-granted", {"target": "/b.Svc/"}),
        ("path-not-granted", {"target": "/b.Svc/Get/x"}),
        ("method-not-granted", {"method": "GET"}),
        ("query-not-granted", {"target": "/a.Svc/Get?x"}),
        ("grpc-only", {"headers": ()}),
        ("grpc-only", {"headers": (("content-type", "application/json"),)}),
        ("grpc-only", {"headers": (TYPE, ("content-type", "application/json"))}),
        ("grpc-only", {"headers": (("content-type", "application/grpc+json"),)}),
        ("grpc-only", {"headers": (("content-type", "application/grpc-web"),)}),
        ("header-not-granted", {"headers": (TYPE, ("x-other-bin", "AAAA"))}),
        ("header-not-granted", {"headers": (TYPE, ("grpc-trace-bin", "AAAA"))}),
        ("foreign-credential", {"headers": (TYPE, ("authorization", "Bearer x"))}),
        ("upgrade-not-granted", {"headers": (TYPE, ("upgrade", "h2c"))}),
        ("upload-too-large", {"length": (1 << 20) + 1}),
    ],
)
def test_nothing_else_does(rule: str, changes: dict[str, object]) -> None:
    verdict = decide(replace(CALL, **changes), (GRANT,))
    assert (verdict.effect, verdict.rule) == (DENY, rule)


def test_a_body_of_unknown_length_needs_a_grant_for_it_and_a_bound() -> None:
    plain = replace(GRANT, grpc=False, headers=("grpc-timeout",))
    assert decide(CALL, (plain,)).rule == decide(CALL, (replace(GRANT, max_upload=0),)).rule == "upload-too-large"
    assert decide(replace(CALL, length=5), (plain,)).effect == ALLOW


def test_what_cannot_be_counted_is_not_within_a_budget() -> None:
    grant = replace(GRANT, upload_budget=1 << 30)
    assert spent(grant, -1, State())[0] == "upload-budget-spent" and not spent(grant, 5, State())[0]


@pytest.mark.parametrize("near", [None, replace(GRANT, paths=("/a.Svc/Other",)), replace(GRANT, grpc=False)])
def test_the_suggestion_is_a_grant_for_grpc(near: Grant | None) -> None:
    (found,) = tomllib.loads(decide(CALL, (near,) if near else ()).grant)["egress"]
    assert found["grpc"] == ["a.Svc/Get"] and not {"methods", "paths"} & found.keys()


def test_what_says_that_it_is_a_call() -> None:
    assert is_call((("CONTENT-TYPE", "Application/grpc"),))
    assert not is_call(()) and not is_call((TYPE, TYPE)) and not is_call((("content-type", "application/grpc; x=y"),))


SOCKET = Grant("api.example.com", paths=("/ws",), websocket=True)
WISH = (("upgrade", "websocket"), ("sec-websocket-version", "13"))


@pytest.mark.parametrize(
    "protocols", ["mqtt", "graphql-ws, graphql-transport-ws", "v4.channel.k8s.io", "wamp.2.json", "protobuf.reliable.webpubsub.azure.v1"]
)
def test_subprotocols_of_a_websocket_pass(protocols: str) -> None:
    request = HttpRequest("GET", "api.example.com", "/ws", headers=(*WISH, ("Sec-WebSocket-Protocol", protocols)))
    assert decide(request, (SOCKET,)).effect == ALLOW


@pytest.mark.parametrize(
    "protocols",
    [
        "realtime, openai-insecure-api-key.sk-theirs",
        "base64url.bearer.authorization.k8s.io.dGhlaXJz, base64.binary.k8s.io",
        "Token, 0123456789abcdef0123456789abcdef01234567",
        "graphql-ws, header-eyJob3N0IjoiYXBpLmV4YW1wbGUuY29tIiwieCI6MX0",
        "x, \x7f",
    ],
)
def test_subprotocols_that_may_carry_a_key_do_not_unless_they_are_listed(protocols: str) -> None:
    request = HttpRequest("GET", "api.example.com", "/ws", headers=(*WISH, ("Sec-WebSocket-Protocol", protocols)))
    assert decide(request, (SOCKET,)).rule == "foreign-credential"
    assert decide(request, (replace(SOCKET, headers=("sec-websocket-protocol",)),)).effect == ALLOW
