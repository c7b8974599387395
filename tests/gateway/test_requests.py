"""What passes the gate and what does not, with real clients, a real engine and an upstream that tells what reached it."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from gateway.harness import PLACEHOLDER, SECRET, Gate, Upstream, until
from stockade.gateway.engine import MITMPROXY

pytestmark = pytest.mark.wall


def status(gate: Gate, url: str, *options: str) -> str:
    done = gate.curl(url, *options)
    return done.stdout.rpartition("[")[2].rstrip("]")


@pytest.fixture
def api(upstream: Upstream) -> str:
    return f"https://api.localhost:{upstream.port}"


@pytest.fixture
def quiet(upstream: Upstream) -> Upstream:
    """The upstream, having forgotten what it saw."""
    upstream.requests.clear()
    return upstream


@pytest.mark.parametrize("header", [(), ("-H", f"x-api-key: {PLACEHOLDER}"), ("-H", f"X-Api-Key: {PLACEHOLDER}", "--http1.1")])
def test_own_credential_is_injected(gate: Gate, quiet: Upstream, api: str, header: tuple[str, ...]) -> None:
    assert status(gate, f"{api}/v1/x?q=1", *header) == "200"
    [(method, path, headers, _)] = quiet.requests
    assert (method, path) == ("GET", "/v1/x?q=1")
    assert [value for name, value in headers if name == "x-api-key"] == [SECRET]


def test_nothing_of_ours_goes_upstream_or_back(gate: Gate, quiet: Upstream, api: str) -> None:
    done = gate.curl(f"{api}/v1/x", "-i")
    [(_, _, headers, _)] = quiet.requests
    assert {name for name, _ in headers} <= {"host", "user-agent", "accept", "x-api-key"}
    assert "stockade" not in done.stdout and "envoy" not in done.stdout.lower()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (("-H", "x-api-key: sk-attacker"), "foreign-credential"),
        (("-H", "authorization: Bearer attacker"), "foreign-credential"),
        (("-H", f"authorization: Bearer {PLACEHOLDER}"), "foreign-credential"),
        (("-H", "x-goog-api-key: attacker"), "foreign-credential"),
        (("-H", "cookie: session=attacker"), "foreign-credential"),
        (("-H", f"x-api-key: {PLACEHOLDER}", "-H", "x-api-key: sk-attacker"), "foreign-credential"),
        (("-H", "x-api-key: sk-attacker", "-H", f"X-API-KEY: {PLACEHOLDER}"), "foreign-credential"),
        (("-u", "user:password"), "foreign-credential"),
        (("-H", "proxy-authorization: Basic eDp5"), "foreign-credential"),
        (("-H", "anthropic-beta: web-fetch-2025-09-10"), "header-not-granted"),
        (("-H", "x-callback-url: https://evil.test"), "header-not-granted"),
        (("-H", "x-forwarded-host: evil.test"), "header-not-granted"),
        (("-H", "x-http-method-override: DELETE"), "header-not-granted"),
        (("-X", "DELETE"), "method-not-granted"),
        (("-H", "Host: open.localhost"), "host-mismatch"),
        (("-H", "Host: 127.0.0.1"), "bare-ip"),
        (("-H", "Host: api.localhost:1"), "port-mismatch"),
    ],
)
@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_refused(gate: Gate, quiet: Upstream, api: str, options: tuple[str, ...], rule: str, version: str) -> None:
    done = gate.curl(f"{api}/v1/x", version, *options)
    assert done.stdout.endswith("[403]") and rule in done.stdout, done
    assert not quiet.requests


@pytest.mark.parametrize(
    "path",
    ["/v2/x", "/v1/../v2/x", "/v1/..%2fv2", "/v1/%2e%2e/v2", "/v1/..;/v2", "/v1/x%00", "/v1/%5c..", "/v1/a%252fb", "/v1/x?api_key=a", "/v1/x?Access-Token=a", "/v1/x?%6bey=a", "/v1"],
)  # fmt: skip
def test_refused_paths(gate: Gate, quiet: Upstream, api: str, path: str) -> None:
    assert status(gate, api + path, "--path-as-is") in ("403", "400")
    assert not quiet.requests


def test_what_is_matched_is_what_is_sent(gate: Gate, quiet: Upstream, api: str) -> None:
    for path in ("/v1/a/../b", "/v1//b", "/v1/./b", "/v1/%62"):
        assert status(gate, api + path, "--path-as-is") == "200"
    assert {path for _, path, _, _ in quiet.requests} == {"/v1/b"}


def test_a_client_cannot_speak_for_the_engine(gate: Gate, quiet: Upstream, api: str) -> None:
    forged = [
        f"x-stockade-{name}: forged"
        for name in ("session", "connect", "sni", "destination", "length", "scheme", "method", "way", "upstream")
    ]
    forged += [
        "x-stockade-upstream: 127.0.0.1:1",
        "x-envoy-original-dst-host: 127.0.0.1:1",
        "x-envoy-retry-on: 5xx",
        "x-envoy-internal: true",
    ]
    options = [part for header in forged for part in ("-H", header)]
    assert status(gate, f"{api}/v1/x", *options) == "200"
    [(_, _, headers, _)] = quiet.requests
    assert {name for name, _ in headers} <= {"host", "user-agent", "accept", "x-api-key"}


def test_userinfo_in_the_url_never_arrives(gate: Gate, quiet: Upstream, upstream: Upstream) -> None:
    assert status(gate, f"https://user:pw@api.localhost:{upstream.port}/v1/x") == "403"
    assert not quiet.requests


def test_ungranted_host_is_refused_at_connect_with_words(gate: Gate) -> None:
    got = gate.send(gate.ports["http-proxy"], b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 403") and b"host-not-granted" in got and b'host = "evil.test"' in got
    assert {"kind": "egress", "effect": "deny", "host": "evil.test", "method": "CONNECT"}.items() <= gate.events[-1].items()


@pytest.mark.parametrize(
    "target", ["127.0.0.1:443", "[::1]:443", "169.254.169.254:80", "api.localhost:22", "2130706433:443", "api.localhost.:443@evil:1"]
)
def test_other_targets_are_refused_at_connect(gate: Gate, target: str) -> None:
    got = gate.send(gate.ports["http-proxy"], f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    assert got.split()[1] in (b"403", b"400"), got


def tunnel(gate: Gate, upstream: Upstream, name: str = "api.localhost") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 60)
    connection.sendall(f"CONNECT {name}:{upstream.port} HTTP/1.1\r\nHost: {name}:{upstream.port}\r\n\r\n".encode())
    assert b" 200 " in connection.recv(4096)
    return connection


def test_two_tunnels_at_once_are_two(gate: Gate, upstream: Upstream) -> None:
    """A tunnel that stays open must not lend its target, or its session, to the next one: Envoy pools connections by what it can hash."""
    with tunnel(gate, upstream), tunnel(gate, upstream, "open.localhost") as second:
        trusting = ssl.create_default_context(cafile=str(gate.ca_file))
        with trusting.wrap_socket(second, server_hostname="open.localhost") as tls:
            tls.sendall(f"GET /public/x HTTP/1.1\r\nHost: open.localhost:{upstream.port}\r\nConnection: close\r\n\r\n".encode())
            assert tls.recv(4096).split()[1] == b"200"


@pytest.mark.parametrize(
    "data", [b"SSH-2.0-OpenSSH_9.2\r\n", b"\x00" * 64, b"EHLO x\r\n", bytes(range(256)), b"\x16\x03\x01\x00\x05junk!" * 20]
)
def test_other_protocols_in_a_tunnel_are_closed_and_nothing_is_dialled(gate: Gate, upstream: Upstream, data: bytes) -> None:
    before = upstream.connections
    with tunnel(gate, upstream) as connection:
        connection.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            got = connection.recv(4096)
            assert not got or got[:1] == b"\x15" or b" 400 " in got
    assert upstream.connections == before


def test_a_proxy_behind_the_proxy(gate: Gate, quiet: Upstream) -> None:
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    with tunnel(gate, quiet) as connection, context.wrap_socket(connection, server_hostname="api.localhost") as tls:
        tls.sendall(f"CONNECT api.localhost:{quiet.port} HTTP/1.1\r\nHost: api.localhost:{quiet.port}\r\n\r\n".encode())
        assert tls.recv(4096).split()[1] in (b"400", b"403", b"404")
    assert not quiet.requests


@pytest.mark.parametrize("name", ["open.localhost", "evil.test", None, "x" * 60 + ".api.localhost", "api.localhost.evil.test", "localhost"])
def test_another_name_in_tls_than_the_tunnels_is_closed_at_once(gate: Gate, quiet: Upstream, name: str | None) -> None:
    """Also one that is granted. It gets no certificate, so the engine keeps nothing for names that somebody makes up; and the ledger says so."""
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    context.check_hostname = False
    before, connections, started = len(gate.events), quiet.connections, time.monotonic()
    with tunnel(gate, quiet) as connection, pytest.raises((ssl.SSLError, ConnectionResetError)):
        context.wrap_socket(connection, server_hostname=name)
    assert time.monotonic() - started < 30 and quiet.connections == connections
    wanted = {"kind": "connect", "effect": "deny", "rule": "sni-mismatch", "host": name or "-"}
    assert until(lambda: any(wanted.items() <= event.items() for event in gate.events[before:]) or name in seen(gate)), gate.events[before:]


def seen(gate: Gate) -> list[object]:
    """Names that have been written down already: each once."""
    return [event.get("host") or None for event in gate.events if event["kind"] == "connect"]


def test_host_other_than_the_sni(gate: Gate, quiet: Upstream) -> None:
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    with tunnel(gate, quiet) as connection, context.wrap_socket(connection, server_hostname="api.localhost") as tls:
        tls.sendall(f"GET /public/x HTTP/1.1\r\nHost: open.localhost:{quiet.port}\r\nConnection: close\r\n\r\n".encode())
        assert b"host-mismatch" in tls.recv(65536)
    assert not quiet.requests


def test_a_tunnel_asked_for_in_capitals(gate: Gate, quiet: Upstream) -> None:
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    with tunnel(gate, quiet, "API.LocalHost") as connection, context.wrap_socket(connection, server_hostname="api.localhost") as tls:
        tls.sendall(f"GET /v1/x HTTP/1.1\r\nHost: API.localhost:{quiet.port}\r\nConnection: close\r\n\r\n".encode())
        assert b" 200 " in tls.recv(65536)


def test_a_strict_client_trusts_the_leaf(gate: Gate, quiet: Upstream) -> None:
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    with tunnel(gate, quiet) as connection, context.wrap_socket(connection, server_hostname="api.localhost") as tls:
        assert tls.version() == "TLSv1.3"


def test_plain_http_by_absolute_form_and_by_tunnel(gate: Gate, quiet: Upstream) -> None:
    url = f"http://open.localhost:{quiet.plain_port}/public/x"
    assert status(gate, url) == "200"
    assert status(gate, url, "--proxytunnel") == "200"
    assert status(gate, url.replace("public", "private")) == "403"
    assert len(quiet.requests) == 2


def test_an_old_client_connects_with_http_1_0(gate: Gate, quiet: Upstream) -> None:
    """As Python 3.11's urllib does, without a Host header."""
    got = gate.send(gate.ports["http-proxy"], f"CONNECT api.localhost:{quiet.port} HTTP/1.0\r\n\r\n".encode(), 1.0)
    assert got.split()[1] == b"200", got


@pytest.mark.parametrize(
    "lines",
    [
        "GET https://api.localhost:{port}/v1/x HTTP/1.1\r\nHost: api.localhost:{port}",
        "GET http://evil.test/ HTTP/1.1\r\nHost: open.localhost:{plain}",
        "GET http://127.0.0.1:{plain}/public/x HTTP/1.1\r\nHost: open.localhost:{plain}",
        "GET ftp://open.localhost:{plain}/public/x HTTP/1.1\r\nHost: open.localhost:{plain}",
        "GET /public/x HTTP/1.1\r\nHost: open.localhost:{plain}\r\nHost: evil.test",
        "GET /public/x HTTP/1.1",
        "GET /secret HTTP/1.0\r\nHost: open.localhost:{plain}",
        "GET /public/x HTTP/1.0",
        "CONNECT evil.test:443 HTTP/1.0",
        "GET /public/x HTTP/1.1\r\nHost: open.localhost:{plain}\r\nUpgrade: websocket\r\nConnection: Upgrade",
        "GET /public/x HTTP/1.1\r\nHost : open.localhost:{plain}",
        "GET /public/x HTTP/1.1\r\nHost: open.localhost:{plain}\r\nX-A: a\x00b",
        "GET /public/x\x00 HTTP/1.1\r\nHost: open.localhost:{plain}",
        "GET /public/x HTTP/1.1\r\n Host: open.localhost:{plain}",
        "TRACE /public/x HTTP/1.1\r\nHost: open.localhost:{plain}",
    ],
)
def test_proxy_tricks(gate: Gate, quiet: Upstream, lines: str) -> None:
    data = lines.format(port=quiet.port, plain=quiet.plain_port).encode("latin-1") + b"\r\n\r\n"
    got = gate.send(gate.ports["http-proxy"], data, 1.0)
    assert not got or got.split()[1] in (b"400", b"403", b"404", b"426"), got
    assert not quiet.requests


@pytest.mark.parametrize(
    "lines",
    [
        "GET http://user:pw@open.localhost:{plain}/public/x HTTP/1.1\r\nHost: open.localhost:{plain}",
        "GET http://open.localhost:{plain}/public/x HTTP/1.1\r\nHost: evil.test",
        "GET /public/x HTTP/1.1\r\nHost: open.localhost:{plain}\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\nConnection: Upgrade, HTTP2-Settings",
        "GET /public/x HTTP/1.1\r\nHost: open.localhost:{plain}\r\nx_api_key: attacker",
    ],
)
def test_what_the_engine_drops_never_arrives(gate: Gate, quiet: Upstream, lines: str) -> None:
    data = lines.format(plain=quiet.plain_port).encode() + b"\r\n\r\n"
    gate.send(gate.ports["http-proxy"], data, 1.0)
    for _, path, headers, _ in quiet.requests:
        assert path == "/public/x" and headers == [("host", f"open.localhost:{quiet.plain_port}")]


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 6\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 6",
        "Content-Length: 6\r\nContent-Length: 5",
        "Content-Length: +6",
        "Content-Length: 6, 6",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    ],
)
def test_smuggling(gate: Gate, quiet: Upstream, framing: str) -> None:
    """However the two ends could disagree about where a body ends, the second request is never seen by the upstream without a decision."""
    head = f"POST /public/x HTTP/1.1\r\nHost: open.localhost:{quiet.plain_port}\r\n{framing}\r\n\r\n"
    gate.send(gate.ports["http-proxy"], head.encode() + b"0\r\n\r\nGET /secret HTTP/1.1\r\nHost: open.localhost\r\n\r\n", 1.0)
    assert not [path for _, path, _, _ in quiet.requests if path != "/public/x"]


def test_pipelined_requests_are_each_decided(gate: Gate, quiet: Upstream) -> None:
    one = f"GET /{{}} HTTP/1.1\r\nHost: open.localhost:{quiet.plain_port}\r\n\r\n"
    got = gate.send(gate.ports["http-proxy"], (one.format("public/a") + one.format("secret") + one.format("public/b")).encode(), 1.5)
    assert got.count(b"HTTP/1.1 200") == 2 and got.count(b"HTTP/1.1 403") == 1
    assert [path for _, path, _, _ in quiet.requests] == ["/public/a", "/public/b"]


def test_private_address_without_leave(gate: Gate, quiet: Upstream) -> None:
    done = gate.curl(f"https://other.localhost:{quiet.port}/public/x")
    assert done.stdout.endswith("[403]") and "address-not-public" in done.stdout
    assert not quiet.requests


def test_an_upstream_with_another_names_certificate(gate: Gate, quiet: Upstream) -> None:
    """Upstream TLS is verified against the granted name: here the server shows the certificate of api.localhost."""
    assert status(gate, f"https://wrong.localhost:{quiet.port}/public/x") == "503"
    assert not quiet.requests


def test_http2_to_the_sandbox(gate: Gate, api: str, carrier: str) -> None:
    """The fallback speaks HTTP/1.1 only, and says so in the handshake, so that a client that would rather have HTTP/2 comes along."""
    done = gate.curl(f"{api}/v1/x", "--http2", "-o", "/dev/null", "-w", "%{http_version}")
    assert done.stdout.endswith("1.1" if carrier == MITMPROXY else "2"), done


def test_streams_arrive_as_they_are_sent(gate: Gate, upstream: Upstream) -> None:
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    arrivals = []
    with tunnel(gate, upstream) as connection, context.wrap_socket(connection, server_hostname="api.localhost") as tls:
        tls.sendall(f"GET /v1/stream HTTP/1.1\r\nHost: api.localhost:{upstream.port}\r\n\r\n".encode())
        got = b""
        while b"data: 4" not in got:
            got += tls.recv(65536)
            arrivals.append(time.monotonic())
    assert arrivals[-1] - arrivals[0] > 0.5 and len(arrivals) >= 4


def memory(gate: Gate) -> int:
    """Peak resident bytes of all parts."""
    lines = [line for pid in gate.children().values() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


def test_large_bodies_pass_in_bounded_memory(gate: Gate, quiet: Upstream, api: str, tmp_path: Path) -> None:
    size = 64 << 20
    status(gate, f"{api}/v1/x")
    before = memory(gate)
    done = gate.curl(f"{api}/v1/big/{size}", "-o", "/dev/null", "-w", "%{size_download}")
    assert done.stdout.endswith(str(size)), done
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(size)
    assert status(gate, f"{api}/v1/up", "-T", str(big)) == "200"
    assert quiet.requests[-1][3] == size
    assert memory(gate) - before < 24 << 20


def test_uploads_of_unknown_length_are_measured(gate: Gate, quiet: Upstream, api: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(3 << 20))
    chunked = ("-H", "transfer-encoding: chunked", "--http1.1", "-X", "POST", "--data-binary", f"@{body}", "-H", "expect:")
    assert status(gate, f"{api}/v1/up", *chunked) == "200"
    assert quiet.requests[-1][3] == 3 << 20
    done = gate.curl(f"https://open.localhost:{quiet.port}/public/x", *chunked, "-X", "GET")
    assert done.stdout.endswith("[403]") and "upload-too-large" in done.stdout
    assert len(quiet.requests) == 1


def test_more_than_the_gate_buffers_is_refused(gate: Gate, quiet: Upstream, api: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    with body.open("wb") as file:
        file.truncate(40 << 20)
    chunked = ("-H", "transfer-encoding: chunked", "-X", "POST", "-T", str(body))
    assert status(gate, f"{api}/v1/up", "--http1.1", *chunked) == "413"  # the answer arrives although the upload was cut off
    assert status(gate, f"{api}/v1/up", "--http2", *chunked) != "200"
    assert not quiet.requests


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/%6dessages", "/v1/Messages", "/v1//messages", "/v1/x/../messages", "/v1/messages?beta=true"]
)
@pytest.mark.parametrize("how", [(), ("-H", "transfer-encoding: chunked")])
def test_server_side_fetch_in_a_body(gate: Gate, quiet: Upstream, api: str, path: str, how: tuple[str, ...]) -> None:
    body = json.dumps({"messages": [], "tools": [{"type": "web_fetch_20250910"}]})
    done = gate.curl(api + path, "--path-as-is", "--json", body, *how)
    assert done.stdout.endswith("[403]") and "server-side-action" in done.stdout
    assert not quiet.requests


def test_a_benign_body_passes_whole(gate: Gate, quiet: Upstream, api: str) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "x" * (2 << 20)}]})
    done = gate.curl(f"{api}/v1/messages", "--json", "@-")
    assert done.returncode == 0
    import subprocess

    argv = ["curl", "-sS", "-m", "10", "--cacert", str(gate.ca_file), "-x", f"http://127.0.0.1:{gate.ports['http-proxy']}"]
    sent = subprocess.run([*argv, "--json", "@-", f"{api}/v1/messages"], input=body, capture_output=True, text=True)
    assert json.loads(sent.stdout)["length"] == len(body)


def test_a_compressed_body_is_refused_where_bodies_are_read(gate: Gate, quiet: Upstream, api: str) -> None:
    done = gate.curl(f"{api}/v1/messages", "--data-binary", "{}", "-H", "content-encoding: gzip")
    assert done.stdout.endswith("[403]") and "compressed" in done.stdout


def test_no_effect_before_the_receipt(gate: Gate, quiet: Upstream, api: str) -> None:
    status(gate, f"{api}/v1/x")
    quiet.requests.clear()
    gate.hold.set()
    try:
        caller = threading.Thread(target=gate.curl, args=(f"{api}/v1/held", "-m", "3"))
        caller.start()
        time.sleep(1.0)
        assert not quiet.requests
        caller.join()
    finally:
        gate.hold.clear()
    assert not quiet.requests


def test_no_secret_in_events(gate: Gate, api: str) -> None:
    gate.curl(f"{api}/v1/x?token=sk-someones", "-H", "x-api-key: sk-attacker")
    text = json.dumps(gate.events)
    assert SECRET not in text and "sk-someones" not in text and "sk-attacker" not in text
