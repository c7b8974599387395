"""Proposals from refused requests. Laws: each is a valid rule; it would allow the requests it came from; no event makes anything else of the text."""

from __future__ import annotations

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from policy.support import Places
from stockade.checks.grants import HttpRequest, decide
from stockade.core.values import ALLOW, Grant
from stockade.policy.learn import MANY, propose
from stockade.policy.read import parse


def event(path: str = "/a", **more: object) -> dict[str, object]:
    base: dict[str, object] = {
        "kind": "egress",
        "effect": "deny",
        "rule": "host-not-granted",
        "method": "GET",
        "host": "a.example.com",
        "port": 443,
    }
    return {**base, "scheme": "https", "path": path, "query": 0, "length": 0, **more}


def test_requests_of_one_kind_become_one_rule() -> None:
    first, second = propose([event("/a"), event("/b", query=1), event("/b"), event("/x", method="POST", length=3 << 20)])
    assert first.requests == 3 and tomllib.loads(first.rule)["egress"] == [
        {"host": "a.example.com", "methods": ["GET"], "paths": ["/a", "/b"]}
    ]
    assert tomllib.loads(second.rule)["egress"] == [
        {"host": "a.example.com", "methods": ["POST"], "paths": ["/x"], "query": "none", "max_upload": "4 MiB"}
    ]
    assert "can leave in a body" in second.notes[0]


def test_many_paths_of_a_folder_become_the_folder_and_it_is_said() -> None:
    (found,) = propose([event(f"/d/{number}") for number in range(MANY)])
    assert '"/d/**"' in found.rule and "everything below" in found.notes[0]


def test_what_streams_becomes_a_rule_for_grpc() -> None:
    calls = [event(f"/a.Svc/{name}", method="POST", length=-1) for name in ("Put", "Get")]
    (found,) = propose([*calls, event("/not/a/call", method="POST", length=-1)])
    assert tomllib.loads(found.rule)["egress"] == [{"host": "a.example.com", "grpc": ["a.Svc/Get", "a.Svc/Put"]}]
    assert "can leave in a body" in found.notes[0]


def test_what_no_rule_would_change_is_left_out() -> None:
    for rule in ("canary", "bad-path", "server-side-action", "bare-ip"):
        assert propose([event(rule=rule)]) == ()
    for host in ("*.github.io", "*.co.uk", "*.example.com", "*"):
        assert propose([event(host=host)]) == ()  # nothing is ever proposed for every name below another
    assert propose([event(effect="allow"), event(method="CONNECT"), {"kind": "dns", "effect": "deny"}]) == ()
    assert "write a [credential.NAME]" in propose([event(rule="foreign-credential")])[0].notes[0]


nasty = st.text(max_size=20) | st.sampled_from(
    ['/a"\n[caps]', "/a\\", "/**", "/*", "//", "/a//", "/..", "/a b", "/%2e", "", "/a'", "/ü", "\n", "/a/]", "/[x"]
)


events_of_any_kind = st.builds(
    event,
    nasty | st.just("/ok"),
    host=nasty | st.just("a.example.com"),
    method=nasty | st.sampled_from(["GET", "TRACE", "get"]),
    port=st.integers(-1, 70000),
    length=st.integers(-1, 1 << 40),
    query=st.integers(0, 1),
    scheme=st.sampled_from(["https", "http"]),
)


@given(st.lists(events_of_any_kind, max_size=4))
def test_whatever_was_asked_a_proposal_is_one_plain_rule(events: list[dict[str, object]]) -> None:
    for one in propose(events):
        (table,) = parse(f"version = 1\n{one.rule}".encode(), layer="user", name="f").tables.egress
        assert table.host and (table.paths or table.grpc) and not table.credential and table.effect is None
        assert "\n" not in one.allows + "".join(one.notes)


@given(
    st.sampled_from(["/a", "/a/b", "/a/%2F", "/a;x", "/a%20b", "/"]),
    st.integers(0, 5 << 20),
    st.booleans(),
    st.sampled_from(["http", "https"]),
)
def test_a_proposal_allows_what_it_came_from(path: str, length: int, query: bool, scheme: str) -> None:
    asked = event(path, length=length, query=int(query), scheme=scheme, port=8443, method="POST")
    for one in propose([asked]):
        (table,) = parse(f"version = 1\n{one.rule}".encode(), layer="user", name="f").tables.egress
        grant = Grant(
            str(table.host), table.port or 443, table.scheme or "https", table.methods or (), table.paths or (), table.query or "any",
            max_upload=table.max_upload if table.max_upload is not None else Grant.max_upload,
        )  # fmt: skip
        request = HttpRequest(
            "POST", "a.example.com", path + ("?q=1" if query else ""), "https" if scheme == "https" else "http", 8443, (), length
        )
        verdict = decide(request, (grant,))
        assert verdict.effect == ALLOW or verdict.rule == "bad-path"


def test_proposals_can_be_put_into_a_policy_as_they_are(places: Places) -> None:
    text = "\n".join(one.rule for one in propose([event("/a"), event("/b", host="b.example.com", scheme="http", port=8080, method="PUT")]))
    assert [grant.host for grant in places.write(user=text).compile().policy.grants] == ["a.example.com", "b.example.com"]
