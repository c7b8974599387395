"""gRPC through the gate, with the client and the server that everybody uses (grpcio): all four kinds of calls, by a grant for them and by no other."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gateway.harness import PLACEHOLDER, SECRET, Gate, running
from stockade.core.values import Grant
from stockade.gateway.certs import Authority

os.environ["GRPC_VERBOSITY"] = "NONE"  # it logs every connection that ends, and here many do
import grpc

pytestmark = pytest.mark.wall
HOST, KEYED = "open.localhost", "api.localhost"
MOST = 100_000  # bytes of a call, both ways
PIECE = 10_000


@dataclass
class Server:
    """A gRPC server, once with TLS and once without. `calls` holds (method, metadata), `received` the bytes of all messages of the last stream."""

    directory: Path
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    received: int = 0

    def __post_init__(self) -> None:
        authority = Authority("grpc upstream")
        self.ca = self.directory / "grpc-ca.pem"
        self.ca.write_text(authority.pem)
        pairs = [(authority.leaf_key.encode(), authority.leaf(name).encode()) for name in (HOST, KEYED)]
        self._servers, self.ports = [], []
        for pair in (*pairs, None):
            server = grpc.server(futures.ThreadPoolExecutor(8))
            server.add_generic_rpc_handlers((self._handlers(),))
            port = (
                server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
                if pair
                else server.add_insecure_port("127.0.0.1:0")
            )
            server.start()
            self._servers.append(server)
            self.ports.append(port)
        self.tls, self.keyed, self.plain = self.ports

    def _handlers(self) -> grpc.GenericRpcHandler:
        def note(name: str, context: Any) -> None:
            self.calls.append((name, dict(context.invocation_metadata())))

        def unary(message: bytes, context: Any) -> bytes:
            note("Unary", context)
            context.set_trailing_metadata((("x-trailer", "came through"),))
            return message[::-1]

        def down(message: bytes, context: Any) -> Iterator[bytes]:
            note("Down", context)
            for _ in range(int(message)):
                yield bytes(PIECE)

        def up(messages: Iterator[bytes], context: Any) -> bytes:
            note("Up", context)
            self.received = 0
            for message in messages:
                self.received += len(message)
            return b"%d" % self.received

        def talk(messages: Iterator[bytes], context: Any) -> Iterator[bytes]:
            note("Talk", context)
            for message in messages:
                yield b"echo " + message

        kinds = {
            "Unary": grpc.unary_unary_rpc_method_handler(unary),
            "Secret": grpc.unary_unary_rpc_method_handler(unary),
            "Down": grpc.unary_stream_rpc_method_handler(down),
            "Up": grpc.stream_unary_rpc_method_handler(up),
            "Talk": grpc.stream_stream_rpc_method_handler(talk),
        }
        return grpc.method_handlers_generic_handler("demo.Talks", kinds)

    def close(self) -> None:
        for server in self._servers:
            server.stop(0).wait()


@dataclass
class Scene:
    gate: Gate
    server: Server

    @contextlib.contextmanager
    def channel(self, tls: bool = True, host: str = HOST) -> Iterator[grpc.Channel]:
        """A client that knows the proxy."""
        options = [("grpc.http_proxy", f"http://127.0.0.1:{self.gate.ports['http-proxy']}"), ("grpc.enable_retries", 0)]
        options += [("grpc.use_local_subchannel_pool", 1)]  # else a new channel may get the connection that was just cut
        if tls:
            port = self.server.keyed if host == KEYED else self.server.tls
            credentials = grpc.ssl_channel_credentials(self.gate.ca_file.read_bytes())
            channel = grpc.secure_channel(f"{host}:{port}", credentials, options)
        else:
            channel = grpc.insecure_channel(f"{host}:{self.server.plain}", options)
        with channel:
            yield channel

    def refused(self, channel: grpc.Channel, path: str, **options: Any) -> str:
        """What a client reads that asks for what is not granted."""
        before = len(self.server.calls)
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(path)(b"x", timeout=10, **options)
        assert len(self.server.calls) == before
        assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
        return str(caught.value.details())


@pytest.fixture(scope="module")
def scene(engine_binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    server = Server(tmp_path_factory.mktemp("grpc"))
    calls = tuple(f"/demo.Talks/{name}" for name in ("Unary", "Down", "Up", "Talk"))
    shape: dict[str, Any] = {"methods": ("POST",), "query": "none", "private": True, "max_upload": MOST, "max_download": MOST}
    grants = (
        Grant(HOST, server.tls, paths=calls, grpc=True, headers=("x-listed-bin",), **shape),
        Grant(HOST, server.plain, "http", paths=calls, grpc=True, **shape),
        Grant(KEYED, server.keyed, paths=("/demo.Talks/*",), grpc=True, credential="own", **shape),
        Grant(HOST, server.tls, paths=("/demo.Talks/Secret",), **shape),  # the same method, not as gRPC
    )
    with running(tmp_path_factory.mktemp("gate"), server, grants) as gate:  # type: ignore[arg-type]  # it has a `ca`
        yield Scene(gate, server)
    server.close()


@pytest.mark.parametrize("tls", [True, False])
def test_all_four_kinds_of_calls_work(scene: Scene, tls: bool) -> None:
    with scene.channel(tls) as channel:
        answer, call = channel.unary_unary("/demo.Talks/Unary").with_call(b"abc", timeout=10)
        assert answer == b"cba" and ("x-trailer", "came through") in call.trailing_metadata()
        assert len(list(channel.unary_stream("/demo.Talks/Down")(b"3", timeout=10))) == 3
        assert channel.stream_unary("/demo.Talks/Up")(iter([b"a", b"bc"]), timeout=10) == b"3"
        outgoing: queue.Queue[bytes | None] = queue.Queue()
        incoming = channel.stream_stream("/demo.Talks/Talk")(iter(outgoing.get, None), timeout=10)
        for number in range(3):  # each is sent only after the answer to the one before it
            outgoing.put(b"%d" % number)
            assert next(incoming) == b"echo %d" % number
        outgoing.put(None)
        assert list(incoming) == []


@pytest.mark.parametrize("tls", [True, False])
def test_other_methods_of_a_granted_service_are_refused_and_the_client_reads_why(scene: Scene, tls: bool) -> None:
    with scene.channel(tls) as channel:
        for path in ("/demo.Talks/Other", "/demo.Others/Unary", "/demo.Talks/unary", "/demo.Talks/Unary/"):
            assert scene.refused(channel, path)
        said = scene.refused(channel, "/demo.Talks/Other")
        assert "path-not-granted" in said and 'grpc = ["demo.Talks/Other"]' in said


def test_a_method_that_is_granted_otherwise_is_not_granted_as_grpc(scene: Scene) -> None:
    with scene.channel() as channel:
        assert "upload-too-large" in scene.refused(channel, "/demo.Talks/Secret")


def test_what_is_granted_as_grpc_is_not_granted_otherwise(scene: Scene) -> None:
    for options in (("-H", "content-type: application/json"), ("-H", "content-type: application/grpc-web"), ()):
        done = scene.gate.curl(f"https://{HOST}:{scene.server.tls}/demo.Talks/Unary", "--http2", "-d", "x", *options)
        assert done.stdout.endswith("[403]") and "grpc-only" in done.stdout


def test_a_body_that_says_what_it_is_not_is_searched_all_the_same(scene: Scene) -> None:
    """Only a call that announces no length streams unread, and only by a grant for calls."""
    before = len(scene.server.calls)
    scene.gate.events.clear()
    address = f"https://{HOST}:{scene.server.tls}/demo.Talks/Secret"
    scene.gate.curl(address, "--http2", "-d", '{"api_key": "sk-attacker"}', "-H", "content-type: application/grpc")
    assert scene.gate.events[-1]["rule"] == "credential-in-body" and len(scene.server.calls) == before
    scene.gate.curl(address, "--http2", "-d", "harmless", "-H", "content-type: application/grpc")
    assert scene.gate.events[-1]["effect"] == "allow"


def test_metadata_is_judged_as_any_header(scene: Scene) -> None:
    with scene.channel() as channel:
        call = channel.unary_unary("/demo.Talks/Unary")
        assert call(b"x", timeout=10, metadata=(("x-listed-bin", b"\x00\xff"),)) == b"x"
        assert scene.server.calls[-1][1]["x-listed-bin"] == b"\x00\xff"
        for name, value in (("x-other-bin", b"a file"), ("x-other", "a file"), ("grpc-trace-bin", b"x")):
            assert "header-not-granted" in scene.refused(channel, "/demo.Talks/Unary", metadata=((name, value),))
        assert "foreign-credential" in scene.refused(channel, "/demo.Talks/Unary", metadata=(("authorization", "Bearer attacker"),))


def test_the_credential_is_added_outside(scene: Scene) -> None:
    with scene.channel(host=KEYED) as channel:
        assert channel.unary_unary("/demo.Talks/Secret")(b"x", timeout=10, metadata=(("x-api-key", PLACEHOLDER),)) == b"x"
        assert scene.server.calls[-1][1]["x-api-key"] == SECRET
        assert "foreign-credential" in scene.refused(channel, "/demo.Talks/Secret", metadata=(("x-api-key", "attacker"),))


@pytest.mark.parametrize("tls", [True, False])
def test_what_a_call_sends_is_bounded_while_it_streams(scene: Scene, tls: bool) -> None:
    with scene.channel(tls) as channel:
        call = channel.stream_unary("/demo.Talks/Up")
        assert call(iter([bytes(PIECE)] * 9), timeout=10) == b"%d" % (9 * PIECE)
        scene.gate.events.clear()
        with pytest.raises(grpc.RpcError) as caught:
            call(iter([bytes(PIECE)] * 200), timeout=10)
        assert caught.value.code() not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert scene.server.received <= MOST
    with scene.channel(tls) as channel, pytest.raises(grpc.RpcError):  # in one piece
        channel.unary_unary("/demo.Talks/Unary")(bytes(2 * MOST), timeout=10)
    events = [event for event in scene.gate.events if event["effect"] == "deny"]
    assert {(event["rule"], event["path"]) for event in events} == {
        ("upload-too-large", "/demo.Talks/Up"),
        ("upload-too-large", "/demo.Talks/Unary"),
    }
    with scene.channel(tls) as channel:  # and the session goes on
        assert channel.unary_unary("/demo.Talks/Unary")(b"x", timeout=10) == b"x"


def test_what_a_call_brings_in_is_bounded_while_it_streams(scene: Scene) -> None:
    with scene.channel() as channel:
        call = channel.unary_stream("/demo.Talks/Down")
        assert sum(map(len, call(b"9", timeout=10))) == 9 * PIECE
        got = 0
        with pytest.raises(grpc.RpcError) as caught:
            for message in call(b"200", timeout=10):
                got += len(message)
        assert got <= MOST and caught.value.code() not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert scene.gate.events[-1]["rule"] == "download-too-large"


def test_taking_the_grant_back_ends_a_call_that_runs(engine_binary: str, tmp_path: Path, scene: Scene) -> None:
    grants = (Grant(HOST, scene.server.tls, methods=("POST",), paths=("/demo.Talks/*",), query="none", private=True, grpc=True),)
    with running(tmp_path, scene.server, grants) as gate, Scene(gate, scene.server).channel() as channel:  # type: ignore[arg-type]
        outgoing: queue.Queue[bytes | None] = queue.Queue()
        incoming = channel.stream_stream("/demo.Talks/Talk")(iter(outgoing.get, None), timeout=10)
        outgoing.put(b"1")
        assert next(incoming) == b"echo 1"
        began = time.monotonic()
        threading.Thread(target=gate.revoke, args=(0,)).start()
        with pytest.raises(grpc.RpcError) as caught:
            next(incoming)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE and time.monotonic() - began < 9
        outgoing.put(None)
        with pytest.raises(grpc.RpcError):
            channel.unary_unary("/demo.Talks/Unary")(b"x", timeout=5)
