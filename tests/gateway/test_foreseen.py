"""What `stockade gate explain` foresees is what the gate then does: the same event, the same rule. A disagreement in either direction fails."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.harness import PLACEHOLDER, Gate, Upstream, running
from stockade.core.frozen import replace
from stockade.core.values import ALLOW, DENY, BodyRule, Credential, Grant, Origin, Policy
from stockade.gateway import asking
from stockade.gateway.asking import Sent, sent
from stockade.session.predict import Prediction, Rules, predict

pytestmark = pytest.mark.wall

CANARY = "the-planted-string-of-this-test"


def policy(upstream: Upstream) -> Policy:
    port, plain = upstream.port, upstream.plain_port
    grants = (
        Grant("api.localhost", port, methods=("GET", "POST", "PUT", "HEAD"), paths=("/v1/**",), credential="own", max_upload=256 << 20),
        Grant("api.localhost", port, methods=("*",), paths=("/v1/admin/**",), effect=DENY, origin=Origin("policy.toml", 9)),
        Grant("api.localhost", port, methods=("POST",), paths=("/typed",), content_types=("application/json",), headers=("x-kind",)),
        Grant("api.localhost", port, methods=("POST",), paths=("/ruled",), body=(BodyRule("/model", ('"small"',)),), max_upload=1 << 20),
        Grant("api.localhost", port, paths=("/listed",), query="listed", parameters=("a", "b=1")),
        Grant("api.localhost", port, methods=("POST",), paths=("/push",), refs=("refs/heads/ok/**",), max_upload=1 << 20),
        Grant("api.localhost", port, paths=("/socket",), websocket=True),
        Grant("api.localhost", port, methods=("POST",), paths=("/a.Svc/Get",), query="none", grpc=True),
        Grant("api.localhost", port, paths=("/later",), not_before=1 << 36),
        Grant("api.localhost", port, paths=("/asked",), effect="ask"),
        Grant("open.localhost", plain, "http", paths=("/public/**",), query="none", max_upload=10),
        Grant("open.localhost", plain, "http", paths=("/*/two/",), headers=("x-kind: a", "anthropic-beta")),
        Grant("open.localhost", plain, "http", methods=("*",), paths=("/any/**",), max_upload=1 << 20),
    )
    marked = tuple(Grant(**{**one.__dict__, "private": True}) for one in grants)
    return Policy(grants=marked, credentials=(Credential("own", "env:KEY", "x-api-key", "{}"),))


@pytest.fixture(scope="module")
def rules(upstream: Upstream) -> Rules:
    return Rules(policy(upstream), {"own": PLACEHOLDER})


@pytest.fixture(scope="module")
def gate(engine_binary: str, upstream: Upstream, rules: Rules, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("gate"), upstream, rules.policy.grants) as started:
        yield started


@pytest.fixture(scope="module")
def planted(engine_binary: str, upstream: Upstream, rules: Rules, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("planted"), upstream, rules.policy.grants, canaries={"test": CANARY}) as started:
        yield started


def decided(events: list[dict[str, object]]) -> dict[str, object]:
    """The decision that counts: of a tunnel only where it was refused. {} = nobody was asked about the request."""
    found = [event for event in events if event["kind"] == "egress" and (event["method"] != "CONNECT" or event["effect"] == DENY)]
    assert len(found) <= 1, found
    return {name: value for name, value in found[0].items() if name != "session"} if found else {}


def agree(foreseen: Prediction, seen: dict[str, object], status: str) -> None:
    assert foreseen.event == seen
    assert (foreseen.effect == ALLOW) == (status in ("200", "501")), (foreseen, status)  # 501: from the upstream, which knows few methods
    if seen:
        assert foreseen.verdict.rule == seen["rule"]


PUSH = b"0" * 40 + b" " + b"1" * 40 + b" refs/heads/%s\0 report-status"


def pushing(ref: bytes) -> bytes:
    line = PUSH % ref
    return b"%04x" % (len(line) + 4) + line + b"0000PACK"


JSON = ("content-type: application/json",)
# (method, URL with A for api.localhost and its port and O for open.localhost and its, headers, body, rule that counts)
TABLE: list[tuple[str, str, tuple[str, ...], bytes, str]] = [
    ("GET", "https://A/v1/x?q=1", (), b"", "grant"),
    ("GET", "https://A/v1/x", (f"x-api-key: {PLACEHOLDER}",), b"", "grant"),
    ("HEAD", "https://A/v1/x", (), b"", "grant"),
    ("GET", "https://A/v1/x", ("x-api-key: sk-attacker",), b"", "foreign-credential"),
    ("GET", "https://A/v1/x", (f"x-api-key: {PLACEHOLDER}", "X-Api-Key: sk-attacker"), b"", "foreign-credential"),
    ("GET", "https://A/v1/x", ("authorization: Bearer attacker",), b"", "foreign-credential"),
    ("GET", "https://A/v1/x", ("cookie: a=b",), b"", "foreign-credential"),
    ("GET", "https://A/v1/x", ("x-callback-url: https://evil.test",), b"", "header-not-granted"),
    ("GET", "https://A/v1/x", ("x_callback_url: https://evil.test",), b"", "grant"),
    ("GET", "https://A/v1/x", ("x-stockade-session: other",), b"", "grant"),
    ("GET", "https://A/v1/x", ("host: open.localhost",), b"", "host-mismatch"),
    ("GET", "https://A/v1/x?api_key=1", (), b"", "credential-in-query"),
    ("DELETE", "https://A/v1/x", (), b"", "method-not-granted"),
    ("GET", "https://A/v1/admin/x", (), b"", "denied-by-rule"),
    ("GET", "https://A/v1/Admin/x", (), b"", "denied-by-rule"),
    ("GET", "https://A/v1/x/../admin/y", (), b"", "denied-by-rule"),
    ("GET", "https://A/v1/%61dmin//y", (), b"", "denied-by-rule"),
    ("GET", "https://A/v1/..;/x", (), b"", "path-not-granted"),
    ("GET", "https://A/v1/x/..;/y", (), b"", "grant"),
    ("GET", "https://A/v1/.%2e;/x", (), b"", "bad-path"),
    ("GET", "https://A/v1/{a|b}", (), b"", "grant"),
    ("GET", "https://A/v1/[a]", (), b"", "bad-path"),
    ("GET", "https://A/other", (), b"", "path-not-granted"),
    ("POST", "https://A/v1/messages", JSON, b'{"messages": []}', "grant"),
    ("POST", "https://A/v1/messages", JSON, b'{"messages": [], "mcp_servers": [{}]}', "server-side-action"),
    (
        "POST",
        "https://A/v1/messages",
        JSON,
        b'{"messages": ["' + b"x" * 100_000 + b'"], "tools": [{"type": "web_fetch_1"}]}',
        "server-side-action",
    ),
    ("POST", "https://A/v1/messages", (*JSON, "content-encoding: gzip"), b"{}", "credential-in-body"),
    ("POST", "https://A/v1/up", JSON, b"x" * 300_000, "grant"),
    ("POST", "https://A/v1/up", JSON, b'{"api_key": "sk-attacker"}', "credential-in-body"),
    ("POST", "https://A/v1/up", (), b'{"x": "' + b"x" * 100_000 + b'", "api_key": "sk-attacker"}', "credential-in-body"),
    ("POST", "https://A/v1/up", ("content-type: application/x-www-form-urlencoded",), b"token=attacker", "credential-in-body"),
    ("GET", f"https://A/v1/{PLACEHOLDER}", (), b"", "foreign-credential"),
    ("GET", "https://A/v1/x", (f"user-agent: {PLACEHOLDER}",), b"", "foreign-credential"),
    ("POST", "https://A/typed", JSON, b"{}", "grant"),
    ("POST", "https://A/typed", ("content-type: text/plain", "x-kind: b"), b"{}", "content-type-not-granted"),
    ("POST", "https://A/ruled", JSON, b'{"model": "small"}', "grant"),
    ("POST", "https://A/ruled", JSON, b'{"model": "large"}', "body-not-granted"),
    ("POST", "https://A/ruled", JSON, b'{"model": "small", "x": "' + b"x" * 100_000 + b'"}', "grant"),
    ("POST", "https://A/ruled", JSON, b'{"x": "' + b"x" * 100_000 + b'"}', "body-not-granted"),
    ("POST", "https://A/ruled", (), b"", "body-not-granted"),
    ("GET", "https://A/listed?a=2&b=1", (), b"", "grant"),
    ("GET", "https://A/listed?b=2", (), b"", "parameter-not-granted"),
    ("POST", "https://A/push", (), pushing(b"ok/x"), "grant"),
    ("POST", "https://A/push", (), pushing(b"main"), "ref-not-granted"),
    ("GET", "https://A/socket", (), b"", "websocket-only"),
    ("GET", "https://A/v1/x", ("connection: upgrade", "upgrade: websocket"), b"", "upgrade-not-granted"),
    ("POST", "https://A/a.Svc/Get", ("content-type: application/grpc",), b"12345", "grant"),
    ("POST", "https://A/a.Svc/Get", ("content-type: application/grpc",), b"", "grant"),
    ("POST", "https://A/a.Svc/Get", JSON, b"12345", "grpc-only"),
    ("GET", "https://A/later", (), b"", "not-yet"),
    ("GET", "https://A/asked", (), b"", "approval-needed"),
    ("GET", "https://evil.test/", (), b"", "host-not-granted"),
    ("GET", "https://127.0.0.1/", (), b"", "bare-ip"),
    ("GET", "https://[::1]/", (), b"", "bare-ip"),
    ("GET", "https://api.localhost/v1/x", (), b"", "host-not-granted"),
    ("GET", "http://A/v1/x", (), b"", "host-not-granted"),
    ("GET", "http://O/public/x", (), b"", "grant"),
    ("GET", "http://O/public/x?a", (), b"", "query-not-granted"),
    ("POST", "http://O/public/x", (), b"", "method-not-granted"),
    ("GET", "http://O/public/x", (), b"x" * 11, "upload-too-large"),
    ("GET", "http://O/one/two/", ("x-kind: a",), b"", "grant"),
    ("GET", "http://O/one/two/", ("x-kind: a, b",), b"", "header-value-not-granted"),
    ("GET", "http://O/one/two/", ("anthropic-beta: mcp-client-1",), b"", "header-value-not-granted"),
    ("GET", "http://evil.test/", (), b"", "host-not-granted"),
    ("GET", "https://A/v1/a%2Fb", (), b"", "malformed"),
    ("GET", "https://A/v1/a%5cb", (), b"", "malformed"),
]


def asked(upstream: Upstream, method: str, url: str, headers: tuple[str, ...], body: bytes, tmp_path: Path) -> tuple[Sent, list[str]]:
    """A request for `predict`, and as words for curl."""
    url = url.replace("//A/", f"//api.localhost:{upstream.port}/").replace("//O/", f"//open.localhost:{upstream.plain_port}/")
    words = ["--http1.1", "--path-as-is", "-g", "-X", method, "-o", "/dev/null", *(word for line in headers for word in ("-H", line))]
    if method == "HEAD":
        words.append("-I")
    if body:
        file = tmp_path / "body"
        file.write_bytes(body)
        words += ["--data-binary", f"@{file}", "-H", "expect:"]
        if not any(line.startswith("content-type:") for line in headers):
            words += ["-H", "content-type:"]
    named = tuple((name, value.strip()) for name, _, value in (line.partition(":") for line in headers))
    return sent(method, url, named, body=body), [*words, url]


@pytest.mark.parametrize(("method", "url", "headers", "body", "rule"), [row for row in TABLE if "connection: upgrade" not in row[2]])
def test_http2_is_told_alike(
    gate: Gate, upstream: Upstream, rules: Rules, tmp_path: Path, method: str, url: str, headers: tuple[str, ...], body: bytes, rule: str
) -> None:
    """But for upgrades, which HTTP/2 asks for in another way."""
    wanted, words = asked(upstream, method, url, headers, body, tmp_path)
    before = len(gate.events)
    done = gate.curl(words[-1], *(word if word != "--http1.1" else "--http2" for word in words[:-1]))
    agree(predict(rules, wanted), decided(gate.events[before:]), done.stdout.rpartition("[")[2][:3])


@pytest.mark.parametrize(("method", "url", "headers", "body", "rule"), TABLE)
def test_the_gate_does_what_was_foreseen(
    gate: Gate, upstream: Upstream, rules: Rules, tmp_path: Path, method: str, url: str, headers: tuple[str, ...], body: bytes, rule: str
) -> None:
    wanted, words = asked(upstream, method, url, headers, body, tmp_path)
    foreseen = predict(rules, wanted)
    assert foreseen.verdict.rule.partition(" ")[0] == rule, foreseen
    before = len(gate.events)
    *options, address = words
    done = gate.curl(address, *options)
    agree(foreseen, decided(gate.events[before:]), done.stdout.rpartition("[")[2][:3])


def exchange(gate: Gate, data: bytes) -> str:
    """The status of the one answer to some bytes at the proxy port, "" if there is none."""
    with socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 5) as connection:
        connection.sendall(data)
        return connection.recv(65536)[9:12].decode()


PIECES = [
    "public",
    "one",
    "two",
    "any",
    "..",
    ".",
    "%2e",
    *"////",
    "\\",
    ";",
    "%41",
    "%2F",
    "{",
    "|",
    "[",
    "%zz",
    "%c3",
    "...",
    "~",
    "%7C",
    "?",
    "?a=1",
    "*",
]
METHODS = ["GET", "GET", "GET", "POST", "HEAD", "DELETE", "PROPFIND"]
HEADERS = [
    *(
        "x-kind: a",
        "X-KIND: a,b",
        "x_kind: b",
        "x-envoy-original-path: /x",
        "x-stockade-way: tunnel",
        "x-stockade-upstream: 1",
        "x-forwarded-for: 1",
    ),
    *(
        "authorization: x",
        "cookie: a=b",
        "cookie: c=d",
        "te: trailers",
        "te: gzip",
        "keep-alive: 1",
        "connection: x-kind",
        "via: x",
        "x-forwarded-proto: https",
    ),
    *(
        "anthropic-beta: a",
        "anthropic-beta: web-fetch-1",
        "accept:",
        "accept: a",
        "accept: b",
        "user-agent:  x  ",
        "x-other: \xe9",
        "x-request-id: 1",
    ),
    *(
        "proxy-authorization: Basic eDp5",
        "forwarded: for=1",
        "expect: x",
        "upgrade: h2c",
        "upgrade: websocket",
        "content-type: a/b",
        "grpc-timeout: 1S",
    ),
]


def test_the_gate_does_what_was_foreseen_of_anything(gate: Gate, upstream: Upstream, rules: Rules) -> None:
    chance = random.Random(7)
    verdicts = set()
    for _ in range(400):
        method = chance.choice(METHODS)
        target = chance.choice(("/", "/", "/any/x", "/public/x")) + "".join(chance.choice(PIECES) for _ in range(chance.randint(0, 6)))
        lines = [chance.choice(HEADERS) for _ in range(chance.choice((0, 0, 0, 1, 2)))]
        body = b"x" * chance.choice((0, 0, 5, 20))
        host = f"open.localhost:{upstream.plain_port}"
        named = tuple((name, value) for name, _, value in (line.partition(":") for line in lines))
        foreseen = predict(rules, sent(method, f"http://{host}{target}", named, body=body))
        before = len(gate.events)
        head = [f"{method} http://{host}{target} HTTP/1.1", f"host: {host}", *lines, f"content-length: {len(body)}", "", ""]
        status = exchange(gate, "\r\n".join(head).encode("latin-1") + body)
        agree(foreseen, decided(gate.events[before:]), status)
        verdicts.add(foreseen.verdict.rule.partition(" ")[0])
    assert {"grant", "path-not-granted", "bad-path", "malformed", "header-not-granted", "upload-too-large"} <= verdicts


@pytest.mark.parametrize("method", [*sorted(asking.METHODS), "FOO", "get", "QUERY", "M-SEARCH", "PRI", "CONNECT"])
def test_the_methods_that_the_engine_knows(gate: Gate, upstream: Upstream, rules: Rules, method: str) -> None:
    host = f"open.localhost:{upstream.plain_port}"
    before = len(gate.events)
    status = exchange(gate, f"{method} http://{host}/any/x HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
    if method == "CONNECT":  # which asks for something else
        assert not predict(rules, sent(method, f"http://{host}/any/x")).event and status != "200"
    else:
        agree(predict(rules, sent(method, f"http://{host}/any/x")), decided(gate.events[before:]), status)


# The same with strings that are planted, which are looked for before anything else and make the gate read every body.
PLANTED: list[tuple[str, str, tuple[str, ...], bytes, str]] = [
    ("GET", "https://A/v1/x", (), b"", "grant"),
    ("POST", "https://A/v1/up", JSON, b"x" * 300_000, "grant"),
    ("GET", f"https://A/v1/{CANARY}", (), b"", "canary"),
    ("GET", "https://A/v1/x", (f"x-request-id: {CANARY}",), b"", "canary"),
    ("POST", "https://A/v1/up", JSON, f'{{"x": "{CANARY}"}}'.encode(), "canary"),
    ("POST", "https://A/v1/up", JSON, b"x" * 300_000 + CANARY.encode(), "canary"),
    ("GET", f"https://{CANARY}.test/", (), b"", "canary"),
]


@pytest.mark.parametrize(("method", "url", "headers", "body", "rule"), PLANTED)
def test_what_was_planted_is_foreseen(
    planted: Gate, upstream: Upstream, rules: Rules, tmp_path: Path, method: str, url: str, headers: tuple[str, ...], body: bytes, rule: str
) -> None:
    watching = replace(rules, policy=replace(rules.policy, canaries=(("test", CANARY),)))
    test_the_gate_does_what_was_foreseen(planted, upstream, watching, tmp_path, method, url, headers, body, rule)


def test_a_learning_gate_is_foreseen(engine_binary: str, upstream: Upstream, rules: Rules, tmp_path: Path) -> None:
    with running(tmp_path, upstream, rules.policy.grants, learning=True) as learning:
        for row in (("GET", "https://evil.test/x", (), b"", "host-not-granted"), ("GET", "https://A/v1/x", (), b"", "grant")):
            test_the_gate_does_what_was_foreseen(learning, upstream, replace(rules, learning=True), tmp_path, *row)


def test_revoked_grants_are_foreseen(engine_binary: str, upstream: Upstream, rules: Rules, tmp_path: Path) -> None:
    with running(tmp_path, upstream, rules.policy.grants) as gate:
        gate.revoke(0, 1)
        for row in (("GET", "https://A/v1/x", (), b"", "path-not-granted"), ("GET", "https://A/v1/admin/x", (), b"", "denied-by-rule")):
            test_the_gate_does_what_was_foreseen(gate, upstream, replace(rules, revoked=(0, 1)), tmp_path, *row)


def test_what_holds_after_a_secret_is_foreseen(engine_binary: str, upstream: Upstream, rules: Rules, tmp_path: Path) -> None:
    grants = (*rules.policy.grants, replace(rules.policy.grants[0], paths=("/after/**",), after_secret=True))
    tainted = replace(rules, policy=replace(rules.policy, grants=grants), tainted=True)
    with running(tmp_path, upstream, grants, tainted=True) as gate:
        for row in (("GET", "https://A/v1/x", (), b"", "after-secret"), ("GET", "https://A/after/x", (), b"", "grant")):
            test_the_gate_does_what_was_foreseen(gate, upstream, tainted, tmp_path, *row)


def test_a_key_that_signs_needs_no_secret_here() -> None:
    key = Credential("aws", "env:AWS_ACCESS_KEY_ID", services=("s3",), regions=("eu-west-1",))
    rules = Rules(Policy(grants=(Grant("s3.test", credential="aws"),), credentials=(key,)), {"aws": "stockade-placeholder-aws"})
    foreseen = predict(rules, sent("GET", "https://s3.test/bucket/x"))
    assert (foreseen.effect, foreseen.credential, foreseen.event["credential"]) == ("allow", "aws", "aws")
    assert "unread" not in str(foreseen)
