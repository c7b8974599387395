"""Tokens of a session: what was made from one by narrowing passes within its checks and not beyond, and nothing else passes."""

from __future__ import annotations

import base64
import time

import pytest
from biscuit_auth import Biscuit, BiscuitBuilder, BlockBuilder, KeyPair, PublicKey

from stockade.checks.credentials import CredentialInUse
from stockade.checks.grants import HttpRequest, decide
from stockade.checks.tokens import FAILED, FOREIGN, LONGEST, REVOKED, Tokens
from stockade.checks.usage import State
from stockade.core.values import ALLOW, Credential, Grant
from stockade.gateway.broker import mint

SESSION = "s-one"
NAMES = ("own", "other-key")
MADE, KEY = mint(SESSION, tuple(Credential(name, "env:X", "x-api-key") for name in NAMES))
OWN = MADE["own"]
HEAD = "stockade-placeholder-own-"
NOW = 1_790_000_000.0  # September 2026
FACTS: dict[str, str | int] = {
    "method": "GET", "scheme": "https", "host": "api.example.com", "port": 443, "path": "/v1/models", "query": "", "length": 0,
}  # fmt: skip


def narrowed(token: str, code: str, key: str = KEY, **values: object) -> str:
    """What the holder of `token` makes of it."""
    return HEAD + Biscuit.from_base64(token.removeprefix(HEAD), PublicKey(key)).append(BlockBuilder(code, values)).to_base64()


def rule(token: str, tokens: Tokens | None = None, credential: str = "own", **facts: str | int) -> str:
    return (tokens or Tokens(SESSION, KEY)).refused(token, credential, {**FACTS, **facts}, NOW)[0]


@pytest.mark.parametrize(
    ("code", "beyond"),
    [
        ('check if method("GET")', {"method": "POST"}),
        ('check if method($m), ["GET", "HEAD"].contains($m)', {"method": "PUT"}),
        ('check if path("/v1/models")', {"path": "/v1/files"}),
        ('check if path($p), $p.starts_with("/v1/models") || $p == "/v1/x"', {"path": "/v1/files"}),
        ('check if host("api.example.com"), port(443), scheme("https")', {"host": "other.example.com"}),
        ('check if length($n), $n < 100; check if query("")', {"length": 100}),
        ('check all path($p), !$p.ends_with("/secret")', {"path": "/v1/secret"}),
        ('reject if method("DELETE")', {"method": "DELETE"}),
    ],
)
def test_a_narrowed_token_passes_within_its_checks_and_not_beyond(code: str, beyond: dict[str, str | int]) -> None:
    token = narrowed(OWN, code)
    assert rule(token) == "" and rule(token, **beyond) == FAILED
    assert rule(OWN, **beyond) == "", "the token that it was made from goes on"


def test_a_token_is_good_until_its_time() -> None:
    tokens, token = Tokens(SESSION, KEY), narrowed(OWN, "check if time($t), $t < 2026-09-21T13:00:00Z")
    assert tokens.refused(token, "own", FACTS, 1_789_995_599) == ("", "")
    found, reason = tokens.refused(token, "own", FACTS, 1_789_995_600)
    assert found == FAILED and "$t < 2026-09-21T13:00:00Z" in reason


def test_what_was_narrowed_can_only_be_narrowed_further() -> None:
    token = narrowed(narrowed(OWN, 'check if method("GET")'), 'check if path("/v1/models"); check if method($m)')
    assert rule(token) == "" and rule(token, method="POST") == FAILED and rule(token, path="/x") == FAILED


def test_a_block_that_was_taken_away_is_noticed() -> None:
    parent = Biscuit.from_base64(OWN.removeprefix(HEAD), PublicKey(KEY))
    child = bytes(parent.append(BlockBuilder('check if method("POST")')).to_bytes())
    forged = bytes(parent.to_bytes())[:-36] + child[-36:]  # what child says of its last block behind the blocks of its parent
    assert rule(HEAD + base64.urlsafe_b64encode(forged).decode()) == FOREIGN


def _foreign() -> dict[str, str]:
    sibling, sibling_key = mint("s-two", (Credential("own", "env:X", "x-api-key"),))
    theirs, _ = mint(SESSION, (Credential("own", "env:X", "x-api-key"),))
    raw = base64.urlsafe_b64decode(OWN.removeprefix(HEAD) + "==")
    forged = BiscuitBuilder(f'session("{SESSION}"); credential("own")').build(KeyPair().private_key)
    appended = Biscuit.from_base64(OWN.removeprefix(HEAD), PublicKey(KEY)).append
    return {
        "a sibling's": sibling["own"],
        "a sibling's, narrowed": narrowed(sibling["own"], 'check if method("GET")', sibling_key),
        "one for the same session of another key": theirs["own"],
        "one with the right first block of another key": HEAD + forged.to_base64(),
        "one for another credential under this name": HEAD + MADE["other-key"].removeprefix("stockade-placeholder-other-key-"),
        "one with an authority block appended": HEAD + appended(BlockBuilder(f'session("{SESSION}"); credential("own")')).to_base64(),
        "one with a rule appended": HEAD + appended(BlockBuilder('method("GET") <- path($p)')).to_base64(),
        "one with a regular expression": narrowed(OWN, 'check if path($p), $p.matches("(a*)*b")'),
        "one with sums": narrowed(OWN, 'check if path($p), $p + $p != "x"'),
        "one with a loop": narrowed(OWN, "check if [1, 2].all($a -> [1, 2].any($b -> $a == $b))"),
        "one over what is no fact": narrowed(OWN, "check if revocation_id($a, $b), revocation_id($c, $d)"),
        "a fact with more terms": narrowed(OWN, "check if method($a, $b)"),
        "a scope": narrowed(OWN, "check if method($a) trusting previous"),
        "one with garbage behind": OWN + "AAAA",
        "one with a bit turned": HEAD + base64.urlsafe_b64encode(raw[:60] + bytes([raw[60] ^ 1]) + raw[61:]).decode(),
        "half of one": OWN[: len(OWN) // 2],
        "the head alone": HEAD,
        "a huge one": HEAD + "A" * (1 << 20),
        "one of many blocks": _long(),
        "one that is too long": narrowed(OWN, ";".join(["check if true"] * 200)),
        "nothing": "",
        "somebody's key": "sk-evil",
        "letters of no alphabet": HEAD + "ä€\0\n",
    }


def _long() -> str:
    token = OWN
    for _ in range(8):
        token = narrowed(token, "check if true")
    return token


FOREIGNERS = _foreign()


@pytest.mark.parametrize("text", FOREIGNERS.values(), ids=FOREIGNERS)
def test_what_is_no_token_of_this_session_is_refused(text: str) -> None:
    tokens = Tokens(SESSION, KEY)
    assert [rule(text, tokens) for _ in range(2)] == [FOREIGN, FOREIGN], "and remembered as that"
    assert rule(OWN, tokens) == ""


def test_the_longest_chain_that_is_allowed_passes() -> None:
    token = OWN
    for _ in range(4):
        token = narrowed(token, 'check if method("GET"), path("/v1/models")')
    assert len(token) < LONGEST and rule(token) == ""


def test_a_token_of_one_credential_is_none_of_another() -> None:
    tokens = Tokens(SESSION, KEY)
    assert rule(MADE["other-key"], tokens, "other") == FOREIGN, "other-key is not other"
    assert rule(MADE["other-key"], tokens, "other-key") == "" and rule(MADE["other-key"], tokens) == FOREIGN


def test_one_token_is_taken_back_and_its_parent_goes_on() -> None:
    tokens = Tokens(SESSION, KEY)
    child, sister = narrowed(OWN, 'check if method("GET")'), narrowed(OWN, 'check if method("GET")')
    grandchild = narrowed(child, "check if true")
    assert [rule(one, tokens) for one in (OWN, child, sister, grandchild)] == ["", "", "", ""]
    tokens.revoke([tokens.name(child)])
    assert [rule(one, tokens) for one in (OWN, child, sister, grandchild)] == ["", REVOKED, "", REVOKED]
    assert not tokens.taken_back(OWN, "own")
    tokens.revoke([tokens.name(OWN)])
    assert [rule(one, tokens) for one in (OWN, child, sister, grandchild)] == [REVOKED] * 4
    assert tokens.taken_back(OWN, "own") and not tokens.taken_back(MADE["other-key"], "other-key")


def test_only_tokens_of_this_session_have_a_name_here() -> None:
    tokens = Tokens(SESSION, KEY)
    assert len(tokens.name(MADE["other-key"])) == 128
    for text in (FOREIGNERS["a sibling's"], "", "sk-evil", HEAD, "stockade-placeholder-" + "-" * 100):
        with pytest.raises(ValueError, match="no token of this session"):
            tokens.name(text)


def test_the_most_expensive_tokens_cost_little() -> None:
    """What each of these does is bounded by its length. The bound is wide: a machine may be busy."""
    path = "/" + "x" * 8000
    worst = [
        ";".join(['check if path("/x")'] * 60),
        "check if path($p), " + ",".join(['$p.contains("xxxxxxxxy") == false'] * 28),
        "check if " + ",".join(f"path($p{number})" for number in range(45)),
    ]
    for code in worst:
        token, tokens = narrowed(OWN, code), Tokens(SESSION, KEY)
        assert len(token) <= LONGEST
        began = time.process_time()
        tokens.refused(token, "own", {**FACTS, "path": path}, NOW)
        assert time.process_time() - began < 0.25


@pytest.mark.parametrize("where", [{"header": "x-api-key"}, {"header": "", "query": "key"}])
def test_with_the_token_of_the_session_goes_everything_that_stands_for_the_credential(where: dict[str, str]) -> None:
    tokens = Tokens(SESSION, KEY)
    own = CredentialInUse("own", placeholder=OWN, tokens=tokens, **where)
    grants = (Grant("api.example.com", paths=("/v1/**",), credential="own", query="any"),)
    targets = ("/v1/models", f"/v1/models?key={OWN}") if own.query else ("/v1/models",)
    held = () if own.query else ((("x-api-key", OWN),), (("x-api-key", narrowed(OWN, "check if true")),))
    asked = [HttpRequest("GET", "api.example.com", target, headers=headers) for target in targets for headers in ((), *held)]

    def rules() -> set[str]:
        verdicts = [decide(request, grants, (own,), State(now=NOW)) for request in asked]
        return {"" if verdict.effect == ALLOW else verdict.rule for verdict in verdicts}

    assert rules() == {""}
    tokens.revoke([tokens.name(MADE["other-key"])])
    assert rules() == {""}
    tokens.revoke([tokens.name(OWN)])
    assert rules() == {REVOKED}, "also where the credential is left out for the gate to add"


@pytest.mark.parametrize(
    ("template", "basic", "written"),
    [
        ("{}", False, "{}"),
        ("Bearer {}", False, "Bearer {}"),
        ("Bearer {}", False, "bearer {}"),
        ("Token token={};x", False, "Token token={};x"),
        ("Basic {}", True, "Basic {}"),
    ],
)
def test_wherever_the_credential_stands(template: str, basic: bool, written: str) -> None:
    own = CredentialInUse("own", "authorization", template, OWN, basic, tokens=Tokens(SESSION, KEY))
    grants = (Grant("api.example.com", methods=("GET", "POST"), paths=("/v1/**",), credential="own"),)

    def asks(token: str, method: str = "GET") -> str:
        value = written.replace("{}", base64.b64encode(f"me:{token}".encode()).decode() if basic else token)
        request = HttpRequest(method, "api.example.com", "/v1/models", headers=(("authorization", value),))
        verdict = decide(request, grants, (own,), State(now=NOW))
        return "" if verdict.effect == ALLOW else verdict.rule

    child = narrowed(OWN, 'check if method("GET"), path("/v1/models"), host("api.example.com")')
    assert asks(OWN) == asks(child) == asks(OWN, "POST") == "" and asks(child, "POST") == FAILED
    assert asks(FOREIGNERS["a sibling's, narrowed"]) == asks("") == asks(OWN + "x") == FOREIGN
