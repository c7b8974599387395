"""INVARIANT: no request and no grants make a decision raise. The laws of tests/checks/test_grants.py hold for whatever bytes say, not only for what its
strategies draw; what is allowed is what an independent reading of one of the grants allows; path parameters never lead past a denial.

The bytes are text: a line `METHOD host target port length`, lines `header: value`, and lines
`allow|deny|ask host methods paths query port credential headers max_upload` with commas in lists; "" and what is missing are defaults.
"""

from __future__ import annotations

import random
import re
import tomllib

from checks import test_grants as tested
from stockade.checks.grants import HttpRequest, choose, decide, decide_connect, granted_name
from stockade.checks.normalise import normalise_path
from stockade.checks.raw import decide_raw
from stockade.core.frozen import replace
from stockade.core.values import ALLOW, ASK, DENY, Grant

WORDS = (
    b"GET a.example.com /v1/x", b"POST ", b" 443 0\n", b" 8443 50\n", b"accept: x\n", b"x-api-key: placeholder\n", b"x-api-key: sk-evil\n", b"cookie: a=b\n",
    b"authorization: Bearer placeholder\n", b"anthropic-beta: web-fetch-1\n", b"upgrade: websocket\n", b"x-special: 1\n", b"allow a.example.com GET /v1/x",
    b"allow *.example.com * /**", b"deny *.example.com * /v1/**", b"deny a.example.com GET /V1/X", b"ask a.example.com GET /v1/*", b" none", b" any", b" own",
    b" bearer", b" gone", b" x-special,anthropic-beta", b"\n", b" ", b"?q=1", b"?key=1", b"/..", b"%2e", b";a=1", b"//", b"*", b",", b".", b"A", b'"', b"\xc3\xa9",
)  # fmt: skip
KEPT = {
    "a request and its grant": b"GET a.example.com /v1/x?q=1 443 0\naccept: */*\nallow a.example.com GET /v1/*",
    "the own credential": b"POST a.example.com /v1/x 443 50\nx-api-key: placeholder\nallow *.example.com POST /v1/x any 443 own",
    "a foreign one": b"POST a.example.com /v1/x 443 50\nx-api-key: sk-evil\nallow *.example.com POST /v1/x any 443 own",
    "an ungranted path on a granted host": b"GET a.example.com /v2\nallow a.example.com GET /v1/**\nallow a.example.com GET /v1/*",
    "a denial in another case": b"GET a.example.com /v1/x\nallow a.example.com GET /**\ndeny a.example.com GET /V1/X",
    "an approval that a denial takes away": b"GET a.example.com /v1/x\nask a.example.com GET /**\ndeny a.example.com GET /**",
    "a parameter in the segment that a denial names": b"GET a.example.com /v1;a=1/x\nallow a.example.com GET /**\ndeny a.example.com GET /v1/x",
    "a quote in a header that a suggestion repeats": b'GET a.example.com /v2\nallow a.example.com GET /v1 any 443  x-special:"a"\\',
    "a quote in the name of a credential": b'GET a.example.com /v2\nallow a.example.com GET /v1 any 443 "a"\\',
    "a common header in another case": b"GET a.example.com /v1/x\naCcept: */*\nallow a.example.com GET /v1/*",
    "a suggestion that leads on to the upgrade": b"GET a.example.com /v1/x\nupgrade: websocket\n",
    "a suffix that is all names": b"GET example.com /\nallow *.com GET /**\nallow * GET /**\nallow *. GET /**",
}
FAULT = ("stockade.checks.grants.path_matches", lambda *_, **__: True)
_DEFAULT = Grant("")


def one(data: bytes) -> None:
    request, held = _read(data.decode("utf-8", "replace"))
    more = held[-1] if held else replace(_DEFAULT, host=request.host)
    _law(tested.test_default_deny, request)
    _law(tested.test_order_and_duplicates_never_matter, request, held, random.Random(0))
    _law(tested.test_adding_an_allow_never_denies, request, held[:-1], more)
    _law(tested.test_deny_beats_allow, request, held[:-1], more)
    _law(tested.test_a_suggested_grant_allows_the_request, request, held)
    _law(tested.test_never_a_foreign_credential, request, held)
    verdict, grant = choose(request, tuple(held), tested.BOTH)
    for reason in verdict.reasons:
        assert reason.isprintable() and reason.isascii()
    if verdict.effect == ALLOW:
        assert grant in held and _says(grant, request) and granted_name(request.host, tuple(held))
        assert decide_connect(request.host, request.port, tuple(held)).effect == ALLOW
    _raw(request, tuple(replace(one, scheme="tcp") for one in held))
    if verdict.grant:
        assert not any("*" in table["host"] for table in tomllib.loads(verdict.grant)["egress"]), "more than was asked for is proposed"
    path, mark, query = request.target.partition("?")
    bare = "/".join(part.partition(";")[0] for part in path.split("/"))
    if decide(replace(request, target=bare + mark + query), tuple(held), tested.BOTH).rule == "denied-by-rule":
        assert verdict.effect == DENY, "a server that drops path parameters reads what is denied"


def _raw(request: HttpRequest, held: tuple[Grant, ...]) -> None:
    """The same for raw TCP, of which only host and port are known."""
    verdict, grant = decide_raw(request.host, request.port, held)
    assert decide_raw(request.host, request.port, held[::-1] * 2) == (verdict, grant)
    assert decide_raw(request.host, request.port, tuple(replace(one, scheme="https") for one in held))[0].effect == DENY
    assert decide_raw(request.host, request.port, tuple(replace(one, effect=DENY) for one in held))[0].effect == DENY
    if verdict.effect == ALLOW:
        assert grant in held and grant.effect == ALLOW and grant.port == request.port and granted_name(request.host, (grant,))
        assert not any(one.effect == DENY and one.port == request.port and one.host.lower() == request.host.lower() for one in held)


def _law(test: object, *given: object) -> None:
    test.hypothesis.inner_test(*given)  # type: ignore[attr-defined]  # hypothesis keeps what it wraps there


def _says(grant: Grant, request: HttpRequest) -> bool:
    """Does the grant cover this request? Written from the documentation of grants, not from the code."""
    host = request.host.lower()
    named = host == grant.host.lower() or (
        grant.host.startswith("*.") and grant.host.count(".") > 1 and host.endswith(grant.host[1:].lower())
    )
    path = normalise_path(request.target.partition("?")[0])
    patterns = [
        re.escape(normalise_path(one)).replace(r"/\*\*", "(/.*)", 1) if one.endswith("/**") else re.escape(normalise_path(one))
        for one in _readable(grant)
    ]
    covered = any(re.fullmatch(pattern.replace(r"/\*", "/[^/]+"), path) for pattern in patterns)
    method = request.method in grant.methods or "*" in grant.methods
    return (
        named
        and covered
        and method
        and (grant.port, grant.scheme) == (request.port, request.scheme)
        and 0 <= request.length <= grant.max_upload
    )


def _readable(grant: Grant) -> list[str]:
    found = []
    for one in grant.paths:
        try:
            found.append(normalise_path(one))
        except ValueError:
            continue
    return found


def _read(text: str) -> tuple[HttpRequest, list[Grant]]:
    first, *lines = text.split("\n")
    method, host, target, port, length = (*first.split(" ")[:5], *[""] * 5)[:5]
    headers, held = [], []
    for line in lines[:12]:
        if line.startswith(("allow ", "deny ", "ask ")):
            held.append(_grant(line.split(" ")))
        elif ":" in line:
            name, _, value = line.partition(":")
            headers.append((name, value.strip()))
    return HttpRequest(method, host, target or "/", "https", _number(port, 443), tuple(headers), _number(length, 0)), held


def _grant(words: list[str]) -> Grant:
    words = [
        "".join(letter for letter in word if letter.isascii() and letter.isprintable()) for word in words
    ]  # a policy holds nothing else
    effect, host, methods, paths, query, port, credential, headers, most = (*words[:9], *[""] * 9)[:9]
    return Grant(
        host, _number(port, 443), "https", _list(methods) or ("GET",), _list(paths) or ("/**",), "none" if query == "none" else "any", _list(headers),
        credential, _number(most, 1 << 20), {"deny": DENY, "ask": ASK}.get(effect, ALLOW),
    )  # fmt: skip


def _list(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def _number(text: str, default: int) -> int:
    return int(text) if re.fullmatch(r"-?[0-9]{1,9}", text, re.ASCII) else default
