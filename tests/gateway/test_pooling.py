"""Connections to servers are kept and used again: by the session that they were made for, by no other, and so that nobody who does not read holds up anybody else."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.harness import Upstream, running, until
from stockade.core.values import Grant
from stockade.gateway.certs import Authority
from stockade.gateway.envoy import typed

pytestmark = pytest.mark.wall

HOST = "api.localhost"
BIG = 24 << 20  # bytes: more than the engine takes of a stream that nobody reads


class Two:
    """A server that speaks HTTP/2 only: another Envoy with ready answers."""

    def __init__(self, directory: Path, binary: str) -> None:
        authority = Authority("two")
        self.ca, big = directory / "two-ca.pem", directory / "big"
        self.ca.write_text(authority.pem)
        with big.open("wb") as file:
            file.truncate(BIG)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = self.plain_port = free.getsockname()[1]
        routes = [
            {"match": {"path": "/v1/big"}, "direct_response": {"status": 200, "body": {"filename": str(big)}}},
            {"match": {"path": "/v1/small"}, "direct_response": {"status": 200, "body": {"inline_string": "small"}}},
        ]
        manager = typed(
            "envoy.filters.network.http_connection_manager",
            "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            stat_prefix="two",
            codec_type="HTTP2",
            http_filters=[typed("envoy.filters.http.router", "extensions.filters.http.router.v3.Router")],
            route_config={
                "max_direct_response_body_size_bytes": BIG,
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}],
            },
        )
        leaf = {"certificate_chain": {"inline_string": authority.leaf(HOST)}, "private_key": {"inline_string": authority.leaf_key}}
        tls = typed(
            "tls",
            "extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            common_tls_context={"tls_certificates": [leaf], "alpn_protocols": ["h2"]},
        )
        address = {"socket_address": {"address": "127.0.0.1", "port_value": self.port}}
        listener = {"name": "two", "address": address, "filter_chains": [{"filters": [manager], "transport_socket": tls}]}
        config = directory / "two.json"
        config.write_text(json.dumps({"static_resources": {"listeners": [listener]}}))
        argv = [binary, "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--use-dynamic-base-id", "-l", "error"]
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        assert until(self._listens, 20)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def two(engine_binary: str, tmp_path: Path) -> Iterator[Two]:
    server = Two(tmp_path, engine_binary)
    yield server
    server.close()


def granted(port: int) -> tuple[Grant, ...]:
    return (Grant(HOST, port, paths=("/v1/**",), methods=("GET",), private=True),)


def test_a_session_uses_its_connections_again_and_never_anothers(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    """Whichever way it comes: each request here comes on a new connection."""
    url = f"https://{HOST}:{upstream.port}/v1/x"
    with running(tmp_path, upstream, granted(upstream.port)) as gate, gate.visited("s-other", granted(upstream.port)) as other:
        made = []
        for guest in (gate, other, gate, other, gate):
            before = upstream.connections
            assert guest.curl(url).stdout.endswith("[200]")
            made.append(upstream.connections - before)
        assert made == [1, 1, 0, 0, 0]


def test_who_does_not_read_holds_up_no_other(two: Two, tmp_path: Path) -> None:
    with running(tmp_path, two, granted(two.port)) as gate, contextlib.ExitStack() as stack:  # type: ignore[arg-type]  # it has a `ca` and ports

        def ask(path: str) -> http.client.HTTPResponse:
            """The answer to a request on a connection of its own: nothing but its head has been read."""
            context = ssl.create_default_context(cafile=str(gate.ca_file))
            connection = http.client.HTTPSConnection("127.0.0.1", gate.ports["http-proxy"], timeout=20, context=context)
            stack.callback(connection.close)
            connection.set_tunnel(HOST, two.port)
            connection.request("GET", path)
            return connection.getresponse()

        idle = [ask("/v1/big") for _ in range(6)]
        assert ask("/v1/small").read() == b"small"
        assert len(idle[0].read()) == BIG  # and what was begun goes on
