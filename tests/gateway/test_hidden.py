"""Credentials in places where they should not be (M7), with real clients: each way is refused in words, and its honest twin arrives. The own one in the query."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gateway.harness import SECRET, Gate, Upstream, running
from gateway.test_differential import Raw
from stockade.core.values import PLACEHOLDER, Grant

pytestmark = pytest.mark.wall
MINE, OTHERS = f"{PLACEHOLDER}own-00112233", f"{PLACEHOLDER}own-44556677"
HEADER = {"header": "x-api-key", "template": "{}", "user": "", "secret": SECRET, "placeholder": MINE}
SPECIAL = "s&cr=t/ %+?#1234"
QUERY = {"header": "", "template": "{}", "user": "", "secret": SPECIAL, "placeholder": f"{MINE}q", "query": "key"}
WRITTEN = "key=s%26cr%3Dt%2F%20%25%2B%3F%231234"


@pytest.fixture(scope="module")
def raw() -> Iterator[Raw]:
    served = Raw()
    yield served
    served.close()


@pytest.fixture(scope="module")
def gate(engine_binary: str, upstream: Upstream, raw: Raw, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    common: dict[str, Any] = {
        "methods": ("GET", "POST"),
        "paths": ("/v1/**",),
        "private": True,
        "max_upload": 64 << 20,
        "headers": ("x-note",),
    }
    grants = (
        Grant("api.localhost", port=upstream.port, credential="own", **common),
        Grant("open.localhost", port=upstream.port, **common),
        Grant("open.localhost", port=upstream.plain_port, scheme="http", **common),
        Grant("other.localhost", port=upstream.port, credential_fields=("token",), **common),
        Grant("query.localhost", port=raw.port, scheme="http", credential="query", **common),
    )
    with running(tmp_path_factory.mktemp("gate"), upstream, grants, credentials={"own": HEADER, "query": QUERY}) as started:
        yield started


@pytest.fixture
def quiet(upstream: Upstream) -> Upstream:
    upstream.requests.clear()
    return upstream


# ---- bodies and places ------------------------------------------------------------------------------------------------------------

LARGE = "x" * 200_000
J = ("-H", "content-type: application/json")
# (curl's options, the rule). What begins with @ is a file of that content, FILE one with a long text.
SMUGGLED: dict[str, tuple[tuple[str, ...], str]] = {
    "form": (("-d", "note=1&api_key=evil"), "credential-in-body"),
    "large form": (("--data-binary", f"@note={LARGE}&api_key=evil"), "credential-in-body"),
    "form without a length": (("-H", "transfer-encoding: chunked", "-d", "api_key=evil"), "credential-in-body"),
    "JSON": ((*J, "-d", '{"note":1,"api_key":"evil"}'), "credential-in-body"),
    "large JSON": ((*J, "--data-binary", f'@{{"note":"{LARGE}","auth":{{"password":"evil"}}}}'), "credential-in-body"),
    "large JSON as text": (("-H", "content-type: text/plain", "--data-binary", f'@{{"note":"{LARGE}","token":"evil"}}'), "credential-in-body"),
    "multipart": (("-F", "note=1", "-F", "access_token=evil"), "credential-in-body"),
    "a part's header": (("-F", "note=1;headers=Authorization: Bearer evil"), "credential-in-body"),
    "large multipart": (("-F", "note=<FILE", "-F", "token=evil"), "credential-in-body"),
    "another session's stand-in in a body": (("-d", f"note={OTHERS}"), "credential-in-body"),
    "another session's stand-in in a header": (("-H", f"x-note: {OTHERS}"), "foreign-credential"),
    "another session's stand-in as the key": (("-H", f"x-api-key: {OTHERS}"), "foreign-credential"),
    "the own one in a header": (("-H", f"user-agent: {MINE}"), "foreign-credential"),
    "the own one in the wrong header": (("-H", f"authorization: Bearer {MINE}"), "foreign-credential"),
    "cookie": (("-b", "session=evil"), "foreign-credential"),
    "oddly cased": (("--http1.1", "-H", "aUTHORIZATION: Bearer evil"), "foreign-credential"),
    "twice": (("--http1.1", "-H", f"X-Api-Key: {MINE}", "-H", "x-aPI-key: evil"), "foreign-credential"),
    "userinfo": (("-u", "user:evil"), "foreign-credential"),
}  # fmt: skip


def options(of: tuple[str, ...], place: Path) -> list[str]:
    (place / "FILE").write_text(LARGE)
    found = []
    for index, option in enumerate(of):
        if option.startswith("@"):
            (place / str(index)).write_text(option[1:])
            option = f"@{place / str(index)}"
        found.append(option.replace("FILE", str(place / "FILE")))
    return found


@pytest.mark.parametrize("host", ["api", "open"])
@pytest.mark.parametrize("name", SMUGGLED)
def test_smuggled(gate: Gate, quiet: Upstream, name: str, host: str, tmp_path: Path) -> None:
    of, rule = SMUGGLED[name]
    done = gate.curl(f"https://{host}.localhost:{quiet.port}/v1/x", *options(of, tmp_path))
    assert done.stdout.endswith("[403]") and f"request: {rule}" in done.stdout, done
    assert "evil" not in done.stdout and "evil" not in json.dumps(gate.events[-1])
    assert not quiet.requests


TWINS: dict[str, tuple[str, ...]] = {
    "form": ("-d", "note=1&kind=key"),
    "large form": ("--data-binary", f"@note={LARGE}"),
    "JSON": (*J, "-d", '{"note":"api_key=evil","max_tokens":3}'),
    "large JSON": (*J, "--data-binary", f'@{{"note":"{LARGE}","messages":[{{"input":{{"token":"x"}}}}]}}'),
    "what the agent printed": (*J, "-d", json.dumps({"messages": [{"content": f"API_KEY={MINE}\n"}]})),
    "multipart": ("-F", "note=1", "-F", "file=Authorization: in a file;filename=token"),
    "large multipart": ("-F", "note=<FILE", "-F", "file=@FILE"),
    "large bytes": ("-H", "content-type: application/octet-stream", "--data-binary", f"@token={LARGE}"),
}


@pytest.mark.parametrize("host", ["api", "open"])
@pytest.mark.parametrize("name", TWINS)
def test_what_is_none_arrives(gate: Gate, quiet: Upstream, name: str, host: str, tmp_path: Path) -> None:
    done = gate.curl(f"https://{host}.localhost:{quiet.port}/v1/x", *options(TWINS[name], tmp_path))
    assert done.stdout.endswith("[200]"), done
    [(method, _, _, length)] = quiet.requests
    assert method == "POST" and length > 5


def test_compressed_fields(gate: Gate, quiet: Upstream, tmp_path: Path) -> None:
    for text, status in ((f"note={LARGE}&token=evil", "403"), (f"note={LARGE}", "200")):
        (tmp_path / "z").write_bytes(gzip.compress(text.encode()))
        done = gate.curl(f"https://open.localhost:{quiet.port}/v1/x", "-H", "content-encoding: gzip", "--data-binary", f"@{tmp_path}/z")
        assert done.stdout.endswith(f"[{status}]"), done
    assert len(quiet.requests) == 1


def test_a_grant_lets_a_field_pass(gate: Gate, quiet: Upstream) -> None:
    """The name `other.localhost` has no public address, so what passes the fields is refused for that, later."""
    for data, rule in (("token=mine", "address-not-public"), ("password=mine", "credential-in-body")):
        done = gate.curl(f"https://other.localhost:{quiet.port}/v1/x", "-d", data)
        assert done.stdout.endswith("[200]") if rule == "address-not-public" else rule in done.stdout


def test_more_than_is_searched_is_refused_in_words(gate: Gate, quiet: Upstream, tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.write(b"note=")
        file.truncate((32 << 20) + 5)
    url = f"https://open.localhost:{quiet.port}/v1/x"
    done = gate.curl(url, "--http1.1", "--data-binary", f"@{tmp_path}/huge")
    assert done.stdout.endswith("[403]") and "searched for credentials" in done.stdout
    done = gate.curl(url, "-H", "content-type: application/zip", "--data-binary", f"@{tmp_path}/huge")
    assert done.stdout.endswith("[200]") and quiet.requests[0][3] > 32 << 20


@pytest.mark.parametrize(
    "line",
    [
        "GET http://user:evil@open.localhost:{port}/v1/x HTTP/1.1\r\nHost: open.localhost:{port}",
        "GET /v1/x HTTP/1.1\r\nHost: user:evil@open.localhost:{port}",
        "CONNECT user:evil@open.localhost:{port} HTTP/1.1\r\nHost: user:evil@open.localhost:{port}",
    ],
)
def test_userinfo_in_addresses_never_arrives(gate: Gate, quiet: Upstream, line: str) -> None:
    got = gate.send(gate.ports["http-proxy"], line.format(port=quiet.plain_port).encode() + b"\r\n\r\n", 1.0)
    assert not got.startswith(b"HTTP/1.1 200") or "evil" not in str(quiet.requests)
    assert all(
        dict(headers)["host"] == f"open.localhost:{quiet.plain_port}" and "authorization" not in dict(headers)
        for _, _, headers, _ in quiet.requests
    )


def test_a_stand_in_in_the_address(gate: Gate, quiet: Upstream) -> None:
    for stand_in in (MINE, OTHERS):
        for path, rule in (
            (f"/v1/{stand_in}", "foreign-credential"),
            (f"/v1/x?note={stand_in}", "credential-in-query"),
            (f"/v1/x?key={stand_in}", "credential-in-query"),
        ):
            done = gate.curl(f"https://api.localhost:{quiet.port}{path}")
            assert done.stdout.endswith("[403]") and rule in done.stdout
    assert not quiet.requests


# ---- the own credential in the query ------------------------------------------------------------------------------------------------


def target(gate: Gate, raw: Raw, asked: str) -> tuple[str, bytes]:
    """(what arrived for this target, "" for nothing; what the client got)"""
    raw.messages.clear()
    host = f"query.localhost:{raw.port}"
    with socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 5) as connection, connection.makefile("rb") as stream:
        connection.sendall(f"GET http://{host}{asked} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        lines = []
        while (line := stream.readline()) not in (b"\r\n", b""):
            lines.append(line)
        length = next((int(line.split()[1]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        got = b"".join(lines) + stream.read(length)
    assert len(raw.messages) <= 1
    return (raw.messages[0].line.split()[1].decode() if raw.messages else ""), got


@pytest.mark.parametrize(
    ("asked", "arrived"),
    [
        ("/v1/x", f"/v1/x?{WRITTEN}"),
        ("/v1/x?", f"/v1/x?{WRITTEN}"),
        ("/v1/x?a=1", f"/v1/x?a=1&{WRITTEN}"),
        (f"/v1/x?key={MINE}q", f"/v1/x?{WRITTEN}"),
        (f"/v1/x?a=%20b&key={MINE}q&c", f"/v1/x?a=%20b&{WRITTEN}&c"),
        (f"/v1/y/../x?key={MINE}q", f"/v1/x?{WRITTEN}"),
    ],
)
def test_the_secret_in_its_parameter(gate: Gate, raw: Raw, asked: str, arrived: str) -> None:
    assert target(gate, raw, asked)[0] == arrived
    assert gate.events[-1]["credential"] == "query" and gate.events[-1]["path"] == "/v1/x"


@pytest.mark.parametrize(
    "query",
    [
        "key=evil",
        f"key={OTHERS}",
        f"key={MINE}q&key={MINE}q",
        f"KEY={MINE}q",
        f"key={MINE}q;key=evil",
        "api_key=evil",
        f"k%65y={MINE}q",
        f"note={MINE}q",
    ],
)
def test_another_in_its_place(gate: Gate, raw: Raw, query: str) -> None:
    arrived, got = target(gate, raw, f"/v1/x?{query}")
    assert not arrived and b"credential-in-query" in got and b" 403 " in got


def test_the_secret_over_tls_and_with_a_body_that_is_read(gate: Gate, upstream: Upstream, tmp_path: Path) -> None:
    """The second question's answer carries the target too."""
    grants = (Grant("api.localhost", methods=("POST",), paths=("/v1/**",), port=upstream.port, private=True, credential="query"),)
    upstream.requests.clear()
    with running(tmp_path, upstream, grants, credentials={"query": QUERY}) as started:
        (tmp_path / "large").write_text(json.dumps({"note": LARGE}))
        for version in ("--http1.1", "--http2"):
            done = started.curl(
                f"https://api.localhost:{upstream.port}/v1/messages?a=1", version, *J, "--data-binary", f"@{tmp_path}/large"
            )
            assert done.stdout.endswith("[200]"), done
        assert [path for _, path, _, _ in upstream.requests] == [f"/v1/messages?a=1&{WRITTEN}"] * 2


def test_the_secret_is_told_to_nobody(gate: Gate, raw: Raw, capfd: pytest.CaptureFixture[str]) -> None:
    said = b""
    for asked in ("/v1/x", f"/v1/x?key={MINE}q", "/v1/x?key=evil", f"/v2/x?key={MINE}q", "/v1/%00"):
        said += target(gate, raw, asked)[1]
    told = said.decode("latin-1") + json.dumps(gate.events) + "".join(capfd.readouterr())
    assert SPECIAL not in told and WRITTEN not in told and SPECIAL.replace("%", "%25") not in told


def test_a_client_cannot_say_where_it_goes(gate: Gate, raw: Raw) -> None:
    raw.messages.clear()
    lines = f"GET http://query.localhost:{raw.port}/v1/x HTTP/1.1\r\nHost: query.localhost:{raw.port}\r\nx-stockade-target: /secret\r\nConnection: close\r\n\r\n"
    got = gate.send(gate.ports["http-proxy"], lines.encode(), 1)
    assert b"header-not-granted" in got and not raw.messages


parts = st.sampled_from(
    [
        "a=1",
        "b",
        "",
        f"key={MINE}q",
        "key=evil",
        "KEY=1",
        "c=%20%2F",
        "[x]={y}",
        ";",
        "token=1",
        "?",
        'd="<>',
        "%",
        "a=1#frag",
        WRITTEN,
        "é",
    ]
)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(parts, max_size=5), st.sampled_from(["/v1/x", "/v1//x", "/v1/%78", "/v1/x;p", "/v2/x"]))
@example([f"key={MINE}q", f"key={MINE}q"], "/v1/x")
@example([f"key={MINE}q", "a=1#frag"], "/v1/x")
def test_what_is_decided_is_what_arrives(gate: Gate, raw: Raw, queries: list[str], path: str) -> None:
    """INVARIANT: what arrives is what was asked, with the secret in place of the placeholder or at the end, once, and nothing else changed; or nothing arrives."""
    query = "&".join(queries)
    arrived, got = target(gate, raw, f"{path}?{query}" if queries else path)
    if not arrived:
        assert b" 200 " not in got[:20]
        return
    found, _, after = arrived.partition("?")
    asked = query.partition("#")[0].split("&") if query.partition("#")[0] else []
    expected = [WRITTEN if one == f"key={MINE}q" else one for one in asked]
    assert found in ("/v1/x", "/v1/x;p") and after.split("&") == (expected if WRITTEN in expected else [*expected, WRITTEN])
    assert after.count("key=") == 1 and MINE not in arrived
    assert gate.events[-1]["effect"] == "allow" and gate.events[-1]["path"] == found


def test_the_query_over_a_tunnel(gate: Gate, raw: Raw) -> None:
    """Plain HTTP out of a tunnel: another way in, the same writing."""
    raw.messages.clear()
    with socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 5) as connection:
        connection.sendall(f"CONNECT query.localhost:{raw.port} HTTP/1.1\r\nHost: query.localhost:{raw.port}\r\n\r\n".encode())
        assert b" 200 " in connection.recv(4096)
        connection.sendall(f"GET /v1/x?key={MINE}q HTTP/1.1\r\nHost: query.localhost:{raw.port}\r\nConnection: close\r\n\r\n".encode())
        assert b" 200 " in connection.recv(4096)
    assert raw.messages[0].line.split()[1].decode() == f"/v1/x?{WRITTEN}"
