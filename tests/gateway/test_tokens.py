"""Tokens of a session at a real gate: a narrowed one passes within its checks; one is taken back and the others go on (M3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from biscuit_auth import Biscuit, BlockBuilder, PublicKey

from gateway.harness import CREDENTIAL, SECRET, Gate, Guest, Upstream, grants_for, running
from stockade.checks.tokens import Tokens
from stockade.core.values import Credential
from stockade.gateway.broker import mint

pytestmark = pytest.mark.wall
_HEAD = "stockade-placeholder-own-"
_CREDENTIALS = (Credential("own", "env:X", "x-api-key"),)


def narrowed(token: str, key: str, code: str) -> str:
    return _HEAD + Biscuit.from_base64(token.removeprefix(_HEAD), PublicKey(key)).append(BlockBuilder(code)).to_base64()


def asks(guest: Guest, upstream: Upstream, token: str, method: str = "GET", path: str = "/v1/models") -> str:
    """The status, or the rule that refused it."""
    done = guest.curl(f"https://api.localhost:{upstream.port}{path}", "-i", "-X", method, "-H", f"x-api-key: {token}")
    lines = [line.partition(": ")[2] for line in done.stdout.splitlines() if line.startswith("x-stockade-rule: ")]
    return lines[0] if lines else done.stdout[-5:]


def test_a_narrowed_token_at_the_gate(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    made, key = mint("s-test", _CREDENTIALS)
    other, other_key = mint("s-sibling", _CREDENTIALS)
    token = made["own"]
    child = narrowed(
        token, key, 'check if method("GET"), path("/v1/models"), host("api.localhost"); check if time($t), $t < 2999-01-01T00:00:00Z'
    )
    late = narrowed(token, key, "check if time($t), $t < 2020-01-01T00:00:00Z")
    credentials = {"own": {**CREDENTIAL, "placeholder": token}}
    with running(tmp_path, upstream, credentials=credentials, token_key=key) as gate:
        upstream.requests.clear()
        assert asks(gate, upstream, token) == asks(gate, upstream, child) == asks(gate, upstream, token, "POST", "/v1/x") == "[200]"
        assert [dict(headers)["x-api-key"] for _, _, headers, _ in upstream.requests] == [SECRET] * 3
        upstream.requests.clear()
        assert (
            asks(gate, upstream, child, "POST")
            == asks(gate, upstream, child, path="/v1/files")
            == asks(gate, upstream, late)
            == "token-check"
        )
        for foreign in (other["own"], narrowed(other["own"], other_key, "check if true"), token[:-9], _HEAD + "A" * 3000):
            assert asks(gate, upstream, foreign) == "foreign-credential"
        assert not upstream.requests
        rules = [event["rule"] for event in gate.events if event.get("kind") == "egress" and event["effect"] == "deny"]
        assert rules == ["token-check"] * 3 + ["foreign-credential"] * 4
        _taken_back_alone(gate, upstream, token, child, key, tmp_path)


def _taken_back_alone(gate: Gate, upstream: Upstream, token: str, child: str, key: str, directory: Path) -> None:
    grandchild, sister = narrowed(child, key, "check if true"), narrowed(token, key, "check if true")
    made, their_key = mint("s-other", _CREDENTIALS)
    credentials = {"own": {**CREDENTIAL, "placeholder": made["own"]}}
    guest = gate.visit("s-other", grants_for(upstream), credentials=credentials, token_key=their_key)
    try:
        assert guest.ready.wait(10)
        name = Tokens("s-test", key).name(child)
        gate.revoke_tokens(name)
        assert asks(gate, upstream, child) == asks(gate, upstream, grandchild) == "token-revoked"
        assert asks(gate, upstream, token) == asks(gate, upstream, sister) == asks(guest, upstream, made["own"]) == "[200]"
        assert asks(guest, upstream, token) == asks(guest, upstream, sister) == "foreign-credential"
        gate.revoke_tokens(Tokens("s-test", key).name(token))
        assert asks(gate, upstream, token) == asks(gate, upstream, sister) == "token-revoked"
        assert asks(guest, upstream, made["own"]) == "[200]"
    finally:
        guest.close()


def test_an_order_about_tokens_that_cannot_be_obeyed_ends_the_session(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream, token_key=mint("s-test", ())[1]) as gate:
        gate.order(b'{"revoke_tokens": [["x"]]}')
        assert gate.ended.wait(10)
