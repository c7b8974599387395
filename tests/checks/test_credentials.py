"""The own credential in its one place and no other: in the query, in a signature for AWS. Invariant: whatever stands elsewhere is refused."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks import sigv4
from stockade.checks.credentials import CredentialInUse, without_own
from stockade.checks.grants import HttpRequest, decide
from stockade.checks.normalise import query_names
from stockade.core.values import ALLOW, PLACEHOLDER, Grant

MINE, OTHERS = f"{PLACEHOLDER}own-00112233", f"{PLACEHOLDER}own-44556677"
QUERY = CredentialInUse("own", "", placeholder=MINE, query="key")
PLAIN = Grant("api.example.com", methods=("GET", "POST"), headers=("x-note", "referer"))
KEYED = Grant("api.example.com", methods=("GET", "POST"), headers=("x-note",), credential="own")
HOST = "api.example.com"


def rule(target: str, grant: Grant = KEYED, own: CredentialInUse = QUERY, **more: Any) -> str:
    verdict = decide(HttpRequest("GET", HOST, target, **more), (grant,), (own,))
    assert MINE not in str(verdict.reasons)
    return "" if verdict.effect == ALLOW else verdict.rule


@pytest.mark.parametrize("query", ["", "?", "?a=1", f"?key={MINE}", f"?a=1&key={MINE}&b=2", f"?key={MINE}&monkey=1"])
def test_the_placeholder_in_its_parameter_or_none(query: str) -> None:
    assert rule(f"/x{query}") == ""


@pytest.mark.parametrize("name", ["job_token", "X-Api-Key", "x-auth-token", "api_secret", "secretAccessKey", "application_key"])
def test_names_that_are_credentials_somewhere(name: str) -> None:
    assert rule(f"/x?{name}=theirs") == "credential-in-query"


@pytest.mark.parametrize(
    "query",
    ["key=evil", "key", "key=", f"key={OTHERS}", f"key={MINE}&key={MINE}", f"key={MINE}&key=evil", f"KEY={MINE}", f"k%65y={MINE}", f"key={MINE}x",
     f"key={MINE}&K-E-Y=evil", f"key={MINE};a=1", f"a=1;key={MINE}", f"?key={MINE}", f"a=1?key={MINE}", f"key={MINE}&token=evil", f"api_key={MINE}",
     f"note={MINE}", f"note={OTHERS}", f"note={MINE.replace('-', '%2d')}", f"note={MINE.upper()}", f"{MINE}", "access_token=evil"],
)  # fmt: skip
def test_everything_else_in_the_query(query: str) -> None:
    assert rule(f"/x?{query}") == "credential-in-query"


def test_the_parameter_is_nobody_elses() -> None:
    """A grant with another credential, or none, takes no such parameter, placeholder or not."""
    header = CredentialInUse("header", "x-api-key", placeholder=OTHERS)
    for query in (f"key={MINE}", "key=evil", f"note={MINE}"):
        for grant in (PLAIN, Grant(HOST, credential="header")):
            assert decide(HttpRequest("GET", HOST, f"/x?{query}"), (grant,), (QUERY, header)).rule == "credential-in-query"
    assert decide(HttpRequest("GET", HOST, "/x"), (KEYED,), ()).rule == "credential-missing"
    assert decide(HttpRequest("GET", HOST, f"/x?key={MINE}"), (KEYED,), ()).rule == "credential-in-query"


def test_the_own_parameter_is_not_counted_among_the_listed() -> None:
    none, listed = (Grant(HOST, credential="own", query=kind, parameters=("page",)) for kind in ("none", "listed"))  # type: ignore[arg-type]
    assert rule(f"/x?key={MINE}", none) == rule(f"/x?key={MINE}", listed) == rule(f"/x?page=1&key={MINE}", listed) == ""
    assert rule(f"/x?key={MINE}&a=1", none) == "query-not-granted"
    assert rule(f"/x?key={MINE}&a=1", listed) == "parameter-not-granted"


def test_a_header_is_no_place_for_a_query_credential() -> None:
    for name in ("authorization", "x-api-key", "cookie"):
        assert rule("/x", headers=((name, MINE),)) == "foreign-credential"


@pytest.mark.parametrize("stand_in", [MINE, OTHERS, MINE.upper()])
@pytest.mark.parametrize("grant", [PLAIN, KEYED])
def test_a_placeholder_outside_its_place(stand_in: str, grant: Grant) -> None:
    for headers in ((("x-note", f"see {stand_in}"),), (("Referer", f"https://x/?key={stand_in}"),), (("user-agent", stand_in),)):
        assert rule("/x", grant, headers=headers) == "foreign-credential"
    for path in (f"/{stand_in}/x", f"/a;{stand_in}", f"/{stand_in.replace('-', '%2D', 1)}"):
        assert rule(path, grant) == "foreign-credential"
    body = f"note={stand_in}".encode()
    form = (("content-type", "application/x-www-form-urlencoded"),)
    assert rule("/x", grant, headers=form, length=len(body), body=body) == "credential-in-body"


parts = st.sampled_from(
    ["a=1", "b", "", f"key={MINE}", "key=evil", "KEY=1", "k%65y=1", ";", f"x={MINE}", "token=1", "?key=1", f"key={OTHERS}", "monkey=1"]
)


@given(st.lists(parts, max_size=5).map("&".join))
def test_what_is_left_holds_no_credential(query: str) -> None:
    left, reason = without_own(query, QUERY)
    if not reason:
        assert sorted((left or "").split("&") + [f"key={MINE}"] * (query.count(MINE))) in (
            sorted(query.split("&")),
            sorted(["", *query.split("&")]),
        )
        assert "key" not in query_names(left or "") and PLACEHOLDER not in (left or "")


# ---- AWS --------------------------------------------------------------------------------------------------------------------------

AWS = CredentialInUse("own", "authorization", placeholder=MINE, services=("s3", "dynamodb"), regions=("eu-central-1",))
ONE = CredentialInUse("own", "authorization", placeholder=MINE, services=("s3",), regions=("eu-central-1",))
EMPTY = hashlib.sha256(b"").hexdigest()


def authorization(key: str = MINE, scope: str = "20270102/eu-central-1/s3/aws4_request", algorithm: str = "AWS4-HMAC-SHA256") -> str:
    return f"{algorithm} Credential={key}/{scope}, SignedHeaders=host;x-amz-date, Signature={'0' * 64}"


def asked(signed: str | None, *headers: tuple[str, str], own: CredentialInUse = AWS, **more: Any) -> str:
    found = (*((("Authorization", signed),) if signed is not None else ()), *headers)
    return rule("/bucket/x", own=own, headers=found, **more)


@pytest.mark.parametrize(
    "text", [authorization(), authorization().replace(", ", ","), authorization(scope="20270102/eu-central-1/dynamodb/aws4_request")]
)
def test_what_can_be_signed_anew(text: str) -> None:
    assert asked(text, ("X-Amz-Date", "20270102T000000Z"), ("x-amz-content-sha256", EMPTY), ("amz-sdk-invocation-id", "1")) == ""


@pytest.mark.parametrize(
    "text",
    [authorization("AKIAIOSFODNN7EXAMPLE"), authorization(OTHERS), authorization(f"{MINE}x"), "", MINE, f"Bearer {MINE}", f"AWS {MINE}:c2ln",
     authorization() + ", Credential=AKIA/20270102/eu-central-1/s3/aws4_request", authorization().replace("Signature", "signature"),
     authorization(f"AKIA/{MINE}"), authorization(scope="20270102/eu-central-1/s3/aws4_request/x"), authorization() + "x"],
)  # fmt: skip
def test_another_key(text: str) -> None:
    assert asked(text) == "foreign-credential"


@pytest.mark.parametrize(
    "text",
    [authorization(scope="20270102/us-east-1/s3/aws4_request"), authorization(scope="20270102/eu-central-1/iam/aws4_request"),
     authorization(scope="20270102/eu-central-1/S3/aws4_request"), authorization(algorithm="AWS4-ECDSA-P256-SHA256"),
     authorization(scope="20270102/eu-central-1s3/s3/aws4_request"), None],
)  # fmt: skip
def test_another_scope(text: str | None) -> None:
    assert asked(text) == "signature-not-granted"


def test_an_unsigned_request_where_there_is_one_scope() -> None:
    assert asked(None, own=ONE) == ""


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ((("x-amz-security-token", "evil"),), "foreign-credential"),
        ((("authorization", authorization()),), "foreign-credential"),
        ((("cookie", "a=b"),), "foreign-credential"),
        ((("x-amz-date", "1"), ("X-Amz-Date", "2")), "signature-not-granted"),
        ((("x-amz-copy-source", "/other/secret"),), "header-not-granted"),
        ((("x-amz-target", "DynamoDB_20120810.DeleteTable"),), "header-not-granted"),
        ((("x-amz-acl", "public-read"),), "header-not-granted"),
    ],
)
def test_other_headers(headers: tuple[tuple[str, str], ...], found: str) -> None:
    assert asked(authorization(), *headers) == found


def test_what_is_said_of_the_body() -> None:
    body = b"hello"
    right = hashlib.sha256(body).hexdigest()
    sized: dict[str, Any] = {"length": len(body), "body": body}
    for said in (right, "UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"):
        assert asked(authorization(), ("x-amz-content-sha256", said), **sized) == ""
    for said in (
        EMPTY,
        "x" * 64,
        right.upper(),
        "",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER",
        "unsigned-payload",
    ):
        assert asked(authorization(), ("x-amz-content-sha256", said), **sized) == "signature-not-granted"
    for text in (authorization(scope="20270102/eu-central-1/dynamodb/aws4_request"),):
        assert asked(text, ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"), **sized) == "signature-not-granted"
    plain = Grant(HOST, 80, "http", ("PUT",), credential="own")
    request = HttpRequest(
        "PUT", HOST, scheme="http", port=80, headers=(("authorization", authorization()), ("x-amz-content-sha256", "UNSIGNED-PAYLOAD"))
    )
    assert decide(request, (plain,), (AWS,)).rule == "signature-not-granted"
    assert (
        sigv4.needs_body(())
        and sigv4.needs_body((("X-Amz-Content-Sha256", right),))
        and not sigv4.needs_body((("x-amz-content-sha256", "UNSIGNED-PAYLOAD"),))
    )


def test_chunk_signatures_are_refused_with_the_way_out() -> None:
    headers = (("authorization", authorization()), ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"))
    verdict = decide(HttpRequest("GET", HOST, headers=headers), (KEYED,), (AWS,))
    assert "AWS_REQUEST_CHECKSUM_CALCULATION=when_required" in verdict.reasons[0] and "payload_signing_enabled" in verdict.reasons[0]


def test_presigned_urls() -> None:
    target = f"/bucket/x?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={MINE}%2F20270102%2Feu-central-1%2Fs3%2Faws4_request&X-Amz-Signature={'0' * 64}"
    for grant in (KEYED, PLAIN):
        assert rule(target, grant, AWS) == "credential-in-query"


@given(
    st.text(max_size=120)
    | st.lists(st.sampled_from(["AWS4-HMAC-SHA256 ", "Credential=", MINE, "/", "s3", "eu-central-1", ",", " "]), max_size=14).map("".join)
)
def test_nothing_raises_and_nothing_else_is_signed(text: str) -> None:
    verdict = decide(HttpRequest("GET", HOST, headers=(("authorization", text),)), (KEYED,), (AWS,))
    assert verdict.effect != ALLOW
