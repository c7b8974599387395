"""The laws of `decide`, and each way in which a request fails to be what was granted."""

from __future__ import annotations

import itertools
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks.grants import COMMON_HEADERS, CredentialInUse, HttpRequest, choose, decide, decide_connect, granted_name, weigh
from stockade.checks.raw import decide_raw
from stockade.core.frozen import replace
from stockade.core.values import ALLOW, ASK, DENY, Grant, Origin

OWN = CredentialInUse("own", "x-api-key", "{}", "placeholder")
BEARER = CredentialInUse("bearer", "authorization", "Bearer {}", "placeholder")
BOTH = (OWN, BEARER)

NEVER_COMMON = {"authorization", "proxy-authorization", "cookie", "x-api-key", "x-goog-api-key", "x-auth-token", "private-token"}

hosts = st.sampled_from(["a.example.com", "b.example.com", "*.example.com", "example.com", "*.com", "*"])
paths = st.sampled_from(["/", "/v1", "/v1/x", "/v1/*", "/v1/**", "/**", "/V1/x", "/v1/x/", "bad", "/a/../b"])
methods = st.sampled_from(["GET", "POST", "*"])
names = st.sampled_from(["accept", "x-api-key", "x-goog-api-key", "authorization", "x-special", "cookie", "anthropic-beta", "content-type"])
values = st.sampled_from(["application/grpc", "placeholder", "Bearer placeholder", "evil", "web-fetch-2025-09-10", "", "placeholder, evil"])
grants = st.builds(
    Grant,
    host=hosts,
    port=st.sampled_from([443, 8443]),
    methods=st.lists(methods, max_size=2).map(tuple),
    paths=st.lists(paths, max_size=2).map(tuple),
    query=st.sampled_from(["any", "none"]),
    headers=st.lists(names, max_size=2).map(tuple),
    credential=st.sampled_from(["", "own", "bearer", "gone"]),
    effect=st.sampled_from([ALLOW, DENY, ASK]),
    max_upload=st.sampled_from([0, 100]),
    grpc=st.booleans(),
    max_download=st.sampled_from([0, 10, 20]),
)
requests = st.builds(
    HttpRequest,
    method=st.sampled_from(["GET", "POST", "get", "G T"]),
    host=st.sampled_from(["a.example.com", "A.Example.com", "example.com", "evil.test", "127.0.0.1", "a.example.com."]),
    target=st.sampled_from(["/v1/x", "/v1", "/v1/x?q=1", "/v1/x?key=1", "/%76%31/x", "/v1/%2e%2e/x", "//v1", "/V1/X"]),
    port=st.sampled_from([443, 8443]),
    headers=st.lists(st.tuples(names, values), max_size=3).map(tuple),
    length=st.sampled_from([-1, 0, 50, 5000]),
)
lists = st.lists(grants, max_size=5)


@given(requests)
def test_default_deny(request: HttpRequest) -> None:
    assert decide(request, (), BOTH).effect == DENY


@given(requests, lists, st.randoms())
def test_order_and_duplicates_never_matter(request: HttpRequest, held: list[Grant], random: object) -> None:
    shuffled = [*held, *held]
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert choose(request, tuple(shuffled), BOTH) == choose(request, tuple(held), BOTH)


@given(requests, lists, grants)
def test_adding_an_allow_never_denies(request: HttpRequest, held: list[Grant], more: Grant) -> None:
    before = decide(request, tuple(held), BOTH).effect
    after = decide(request, (*held, replace(more, effect=ALLOW)), BOTH).effect
    assert before != ALLOW or after == ALLOW


@given(requests, lists, grants)
def test_a_grant_for_any_host_only_asks_and_only_where_no_other_names_the_host(
    request: HttpRequest, held: list[Grant], wide: Grant
) -> None:
    named = [grant for grant in held if grant.host != "*"]
    before = decide(request, tuple(named), BOTH)
    verdict, grant = choose(request, (*named, replace(wide, host="*", effect=ASK)), BOTH)
    if any(one.effect != DENY and granted_name(request.host, (one,)) for one in named):
        assert verdict == before
    else:
        assert verdict.effect in (ASK, DENY) and (grant is None or grant.host == "*")
    assert choose(request, (*named, replace(wide, host="*", effect=ALLOW)), BOTH)[0] == before, "that such a one allows is not listened to"


@given(requests, lists, grants)
def test_adding_an_allow_never_bounds_an_answer_more(request: HttpRequest, held: list[Grant], more: Grant) -> None:
    before = choose(request, tuple(held), BOTH)[1]
    after = choose(request, (*held, replace(more, effect=ALLOW)), BOTH)[1]
    if before is not None and after is not None and before.credential == after.credential:
        assert (after.max_download or 100) >= (before.max_download or 100)


@given(requests, lists, grants)
def test_deny_beats_allow(request: HttpRequest, held: list[Grant], denial: Grant) -> None:
    before = decide(request, tuple(held), BOTH)
    after = decide(request, (*held, replace(denial, effect=DENY)), BOTH)
    assert before.effect == ALLOW or after.effect in (before.effect, DENY)
    if (
        before.effect == ALLOW
        and choose(
            request, (replace(denial, effect=ALLOW, credential="", max_upload=10000, headers=tuple(n for n, _ in request.headers)),), ()
        )[0].effect
        == ALLOW
    ):
        assert after.effect == DENY


@given(requests, lists)
def test_a_suggested_grant_allows_the_request(request: HttpRequest, held: list[Grant]) -> None:
    """Or leads on to the next thing that is wrong with it; never back to host, method, path or query."""
    verdict = decide(request, tuple(held), BOTH)
    if verdict.effect == DENY and verdict.grant:
        table = tomllib.loads(verdict.grant)["egress"]
        assert len(table) == 1
        plain: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in table[0].items()}
        if calls := plain.pop("grpc", ()):
            plain |= {"methods": ("POST",), "paths": tuple(f"/{call}" for call in calls), "query": "none", "grpc": True}
        grant = Grant(**plain)
        again = decide(request, (grant,), BOTH)
        assert again.effect == ALLOW or again.rule in (
            "foreign-credential",
            "header-not-granted",
            "header-value-not-granted",
            "credential-missing",
            "upload-too-large",
            "upgrade-not-granted",
        )


@given(requests, lists)
def test_never_a_foreign_credential(request: HttpRequest, held: list[Grant]) -> None:
    """Whatever is granted without naming the header: a credential header that passes holds the placeholder or is listed."""
    verdict, grant = choose(request, tuple(held), BOTH)
    if verdict.effect == ALLOW and grant is not None:
        listed = {entry.partition(":")[0].strip().lower() for entry in grant.headers}
        for name, value in request.headers:
            harmless = name.lower() in COMMON_HEADERS and name.lower() not in NEVER_COMMON
            scheme, _, secret = value.rpartition(" ")
            assert harmless or name.lower() in listed or (secret == "placeholder" and scheme.lower() in ("", "bearer"))


@given(requests, lists)
def test_what_is_weighed_first_decides(request: HttpRequest, held: list[Grant]) -> None:
    verdict, chosen = choose(request, tuple(held), BOTH)
    weighed = weigh(request, tuple(held), BOTH)
    assert {grant for grant, _ in weighed} <= set(held)
    if not weighed:
        assert verdict.effect == DENY
        return
    grant, refusal = weighed[0]
    if refusal is None:
        assert verdict.effect == grant.effect and chosen == (None if grant.effect == DENY else grant)
    else:
        assert (verdict.effect, verdict.rule) == (DENY, refusal.rule if refusal.depth else "host-not-granted")
        assert not refusal.depth or (verdict.reasons, verdict.grant) == ((f"{refusal.reason}.",), refusal.grant)


@given(requests, lists)
def test_what_is_weighed_is_what_each_grant_says_alone(request: HttpRequest, held: list[Grant]) -> None:
    for grant, refusal in weigh(request, tuple(held), BOTH):
        alone = decide(request, (grant,), BOTH)
        if grant.effect == DENY:
            assert (refusal is None) == (alone.rule == "denied-by-rule")
        else:
            assert alone.effect == (grant.effect if refusal is None else DENY)


API = Grant(
    "api.example.com",
    methods=("POST",),
    paths=("/v1/messages",),
    credential="own",
    origin=Origin("/home/someone/policy.toml", 7, "egress[0]"),
)
READ = Grant("files.example.com", paths=("/simple/*/", "/files/**"), query="none")


def ask(target: str = "/v1/messages", host: str = "api.example.com", method: str = "POST", **more: object) -> str:
    headers = more.pop("headers", ())
    request = HttpRequest(method, host, target, headers=tuple(headers.items()) if isinstance(headers, dict) else headers, **more)  # type: ignore[arg-type]
    verdict = decide(request, (API, READ), BOTH)
    return verdict.rule if verdict.effect == DENY else verdict.effect


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (ALLOW, {}),
        (
            ALLOW,
            {"headers": {"X-API-Key": "placeholder", "Accept": "*/*", "x-stainless-lang": "python", "anthropic-version": "2023-06-01"}},
        ),
        ("foreign-credential", {"headers": {"x-api-key": "sk-attacker"}}),
        ("foreign-credential", {"headers": {"authorization": "Bearer attacker"}}),
        ("foreign-credential", {"headers": {"Cookie": "a=b"}}),
        ("foreign-credential", {"headers": {"x-goog-api-key": "attacker"}}),
        ("foreign-credential", {"headers": (("x-api-key", "placeholder"), ("X-Api-Key", "placeholder"))}),
        ("foreign-credential", {"headers": {"x-api-key": "placeholder, sk-attacker"}}),
        ("foreign-credential", {"headers": {"x-api-key": ""}}),
        ("header-not-granted", {"headers": {"anthropic-beta": "web-fetch-2025-09-10"}}),
        ("header-not-granted", {"headers": {"x-webhook-url": "http://evil.test"}}),
        ("upgrade-not-granted", {"headers": {"upgrade": "websocket"}}),
        ("header-not-granted", {"headers": {"x-original-url": "/v1/files"}}),
        ("header-not-granted", {"headers": {"transfer-encoding\n": "x"}}),
        ("credential-in-query", {"target": "/v1/messages?key=attacker"}),
        ("credential-in-query", {"target": "/v1/messages?a=1&X-Amz-Signature=0"}),
        ("credential-in-query", {"target": "/v1/messages?%61ccess_token=0"}),
        ("path-not-granted", {"target": "/v1/files"}),
        ("path-not-granted", {"target": "/v1/messages/"}),
        ("path-not-granted", {"target": "/V1/messages"}),
        ("method-not-granted", {"method": "DELETE"}),
        ("bad-method", {"method": "post"}),
        ("bad-path", {"target": "/v1/x/../messages"}),
        ("bad-path", {"target": "/v1/..%2fmessages"}),
        ("host-not-granted", {"port": 8443}),
        ("host-not-granted", {"scheme": "http", "port": 80}),
        ("host-not-granted", {"host": "evil.test"}),
        ("host-not-granted", {"host": "api.example.com.evil.test"}),
        ("bad-host", {"host": "api.example.com."}),
        ("upload-too-large", {"length": 1 << 21}),
        ("upload-too-large", {"length": -1}),
        (ALLOW, {"length": 1 << 20}),
    ],
)
def test_api(wanted: str, asked: dict[str, object]) -> None:
    assert ask(**asked) == wanted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "target"),
    [
        (ALLOW, "/simple/name/"),
        ("path-not-granted", "/simple/name"),
        ("path-not-granted", "/simple//"),
        ("path-not-granted", "/simple/"),
        (ALLOW, "/files/a/b/c.whl"),
        ("path-not-granted", "/files"),
        ("query-not-granted", "/simple/name/?exfil=data"),
        ("query-not-granted", "/simple/name/?"),
    ],
)
def test_patterns(wanted: str, target: str) -> None:
    assert ask(target, "files.example.com", "GET") == (wanted if target != "/simple//" else "bad-path")


def test_no_credential_grant_means_none_is_carried() -> None:
    assert ask("/files/x", "files.example.com", "GET", headers={"authorization": "Bearer placeholder"}) == "foreign-credential"


def test_authorization_scheme_ignores_case_but_nothing_else() -> None:
    grant = replace(API, credential="bearer")
    for value, effect in (
        ("Bearer placeholder", ALLOW),
        ("bearer placeholder", ALLOW),
        ("Bearer  placeholder", DENY),
        ("placeholder", DENY),
        ("Bearer PLACEHOLDER", DENY),
    ):
        request = HttpRequest("POST", "api.example.com", "/v1/messages", headers=(("Authorization", value),))
        assert decide(request, (grant,), BOTH).effect == effect, value


def test_fetching_betas_must_be_named() -> None:
    def beta(value: str, *listed: str) -> str:
        grant = replace(API, headers=listed)
        return decide(HttpRequest("POST", "api.example.com", "/v1/messages", headers=(("anthropic-beta", value),)), (grant,), BOTH).effect

    assert beta("interleaved-thinking-2025-05-14", "anthropic-beta") == ALLOW
    assert beta("interleaved-thinking-2025-05-14, Web-Fetch-2025-09-10", "anthropic-beta") == DENY
    assert beta("mcp-client-2025-04-04", "anthropic-beta") == DENY
    assert beta("web-fetch-2025-09-10", "anthropic-beta: web-fetch-2025-09-10") == ALLOW
    assert beta("other-2025-01-01", "anthropic-beta: web-fetch-2025-09-10") == DENY


def test_denials_ignore_case_and_parameters_and_unreadable_ones_cover_everything() -> None:
    wide = Grant("h.example.com", paths=("/**",))
    request = HttpRequest("GET", "h.example.com", "/Admin/x")
    assert decide(request, (wide,)).effect == ALLOW
    assert decide(request, (wide, Grant("h.example.com", paths=("/admin/**",), effect=DENY))).effect == DENY
    assert decide(request, (wide, Grant("h.example.com", paths=("broken",), effect=DENY))).effect == DENY
    with_parameters = replace(request, target="/Admin;v=1/x")  # servers that drop path parameters read /Admin/x
    assert decide(with_parameters, (wide,)).effect == ALLOW
    assert decide(with_parameters, (wide, Grant("h.example.com", paths=("/admin/**",), effect=DENY))).effect == DENY
    assert decide(with_parameters, (wide, Grant("h.example.com", paths=("/admin;v=1/*",), effect=DENY))).effect == DENY
    assert decide(request, (Grant("h.example.com", paths=("broken",)),)).effect == DENY


def test_a_question_is_lifted_by_an_allow_of_its_own_file_and_by_no_other() -> None:
    request = HttpRequest("GET", "h.example.com", "/x")
    asks = Grant("h.example.com", effect=ASK, origin=Origin("user", 1))
    own, other = Grant("h.example.com", origin=Origin("user", 9)), Grant("h.example.com", origin=Origin("managed", 9))
    elsewhere = Grant("h.example.com", paths=("/y",), origin=Origin("user", 9))
    for found, wanted in (
        ((asks,), ASK),
        ((asks, own), ALLOW),
        ((asks, other), ASK),
        ((asks, elsewhere), ASK),
        ((asks, own, other), ALLOW),
    ):
        for grants in itertools.permutations(found):
            assert decide(request, grants).effect == wanted
            assert weigh(request, grants)[0][0].effect == wanted
    denied = Grant("h.example.com", effect=DENY)
    assert decide(request, (asks, own, denied)).effect == DENY


def test_of_rules_that_ask_those_count_that_leave_it_to_the_fewest() -> None:
    """No rule of another file gives a reviewer what one of them keeps for people, whatever else it says."""
    request = HttpRequest("GET", "h.example.com", "/x")
    anybody = Grant("h.example.com", effect=ASK, max_download=9, origin=Origin("user", 1))
    kept = replace(anybody, unreviewed=True, origin=Origin("managed", 1))
    people = replace(anybody, people=True, origin=Origin("managed", 2))
    for found, wanted in (((anybody, kept), kept), ((anybody, people), people), ((anybody, kept, people), people), ((anybody,), anybody)):
        for grants in itertools.permutations(found):
            assert choose(request, grants)[1] == wanted == weigh(request, grants)[0][0]
            raw = tuple(replace(grant, scheme="tcp") for grant in grants)
            assert decide_raw("h.example.com", 443, raw)[1] == replace(wanted, scheme="tcp")


def test_suffixes_need_two_labels() -> None:
    assert granted_name("x.example.com", (Grant("*.example.com"),)) and granted_name("a.b.example.com.", (Grant("*.example.com"),))
    assert not granted_name("example.com", (Grant("*.example.com"),))
    assert (
        not granted_name("example.com", (Grant("*.com"),))
        and not granted_name("x", (Grant("*."),))
        and not granted_name("x.y", (Grant("*"),))
    )
    assert not granted_name("notexample.com", (Grant("*.example.com"),))


def test_reasons_do_not_tell_host_paths() -> None:
    verdict = decide(HttpRequest("POST", "api.example.com", "/v1/files"), (API,), BOTH)
    assert "policy.toml:7" in verdict.reasons[0] and "/home/someone" not in "".join(verdict.reasons)


def test_the_credential_of_a_grant_must_exist() -> None:
    assert decide(HttpRequest("POST", "api.example.com", "/v1/messages"), (API,), ()).rule == "credential-missing"


def test_connect() -> None:
    assert decide_connect("API.example.com", 443, (API,)).effect == ALLOW
    for host, port in (("api.example.com", 22), ("evil.test", 443), ("10.0.0.1", 443)):
        assert decide_connect(host, port, (API,)).effect == DENY
    assert decide_connect("api.example.com", 443, (replace(API, effect=DENY),)).effect == DENY
