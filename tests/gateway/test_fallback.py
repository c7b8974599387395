"""The engine where there is no Envoy: what goes wrong around it and in it lets nothing pass. What it has in common with Envoy is tested with both.

In the first half the engine runs in the test's own loop, and behind the brain's sockets sits one that says what the test wants, since no honest brain fails in these ways.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import ssl
import subprocess
import sys
import tempfile
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import CoroutineType
from typing import Any
from unittest import mock

import pytest

from conftest import unavailable
from gateway.harness import Gate, Upstream, running
from stockade.core.errors import CannotEnforce
from stockade.gateway import engine
from stockade.gateway.certs import Authority
from stockade.gateway.config import MAX_BUFFERED, READ, UPSTREAM
from stockade.gateway.flow import Asked
from stockade.gateway.proxy_protocol import proxy_header
from stockade.gateway.questions import Question

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # mitmproxy imports all its addons, and what they import is not ours to mend
    try:
        from mitmproxy.utils.asyncio_utils import set_eager_task_factory

        from stockade.gateway import mitm
    except ImportError as error:
        unavailable("mitmproxy", str(error))

HOST = "open.localhost"
Said = tuple[int, list[tuple[str, str]], bytes]


@dataclass
class Brain:
    """Says what the test tells it to. `asked` holds every question about a request, `names` those for a certificate."""

    reply: Callable[[Asked], Awaitable[Said]]
    authority: Authority = field(default_factory=lambda: Authority("test"))
    asked: list[Asked] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    broken: bool = False

    async def authorise(self, asked: Asked) -> Said:
        self.asked.append(asked)
        if dict(asked.headers)["x-stockade-method"] == "CONNECT" and not self.broken:
            return 200, [], b""
        return await self.reply(asked)

    async def secret(self, asked: Asked) -> Said:
        if self.broken:
            raise RuntimeError("no leaf")
        (name,) = json.loads(asked.body)["resource_names"]
        self.names.append(name)
        pair = {
            "certificate_chain": {"inline_string": self.authority.leaf(name)},
            "private_key": {"inline_string": self.authority.leaf_key},
        }
        return 200, [], json.dumps({"resources": [{"tls_certificate": pair}]}).encode()


@dataclass
class Place:
    """An engine between a doorman and a brain of the test's, and an upstream: `heads` holds one entry for each connection to it, the last head that came;
    `said` what the engine wrote for the ledger."""

    directory: str
    brain: Brain
    upstream: int
    heads: list[bytes]
    said: list[str]
    connections: list[Any]
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def think(self, _: Asked) -> Said:
        """A brain that does not come to a decision."""
        await self.over.wait()
        raise TimeoutError

    async def connect(self, way: str = "proxy", name: str = "") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_unix_connection(f"{self.directory}/{way}.sock")
        writer.write(proxy_header("s-test", ("127.0.0.1", 1), ("198.18.0.1", 443), name))
        return reader, writer

    async def ask(self, data: bytes, wait: float = 3.0) -> bytes:
        """Send bytes; what comes back until the end or until it has been quiet for `wait` seconds."""
        reader, writer = await self.connect()
        got = b""
        with contextlib.suppress(OSError, TimeoutError):
            writer.write(data)
            while more := await asyncio.wait_for(reader.read(65536), wait):
                got += more
                if b"\r\n\r\n" in got and len(got.partition(b"\r\n\r\n")[2]) >= _length(got):
                    break
        writer.close()
        return got

    def get(self, *lines: str, method: str = "GET", path: str = "/x") -> bytes:
        return "\r\n".join([f"{method} http://{HOST}:{self.upstream}{path} HTTP/1.1", f"Host: {HOST}", *lines, "", ""]).encode()

    async def allow(self, _: Asked) -> Said:
        return 200, [(UPSTREAM, f"127.0.0.1:{self.upstream}")], b""


def _length(answer: bytes) -> int:
    found = [line for line in answer.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return int(found[0].split(b":")[1]) if found else 1 << 30


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@contextlib.asynccontextmanager
async def place(says: bytes = OK, *, hang: bool = False, once: bool = False) -> AsyncIterator[Place]:
    heads: list[bytes] = []
    talking: set[asyncio.StreamWriter] = set()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(b"")
        talking.add(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while not hang:
                heads[-1] = await reader.readuntil(b"\r\n\r\n")
                writer.write(says)
                await writer.drain()
                if once:
                    writer.close()
                    return
            while await reader.read(1 << 20):
                pass
        writer.close()

    class Seen(mitm.Connection):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            made.connections.append(self)

    with tempfile.TemporaryDirectory() as directory, mock.patch.object(mitm, "Connection", Seen):
        served = await asyncio.start_server(upstream, "127.0.0.1", 0)
        port = served.sockets[0].getsockname()[1]
        made = Place(directory, Brain(lambda asked: made.allow(asked)), port, heads, [], [])
        servers, loop = [served], asyncio.get_running_loop()
        for name, reply in (("brain", made.brain.authorise), ("reader", made.brain.authorise), ("certificates", made.brain.secret)):
            asking = partial(Question, reply, whole=name == "reader")
            servers.append(await loop.create_unix_server(asking, f"{directory}/{name}.sock"))
        carrying = mitm.Engine(directory, "/etc/ssl/certs/ca-certificates.crt", made.said.append)
        for way in mitm.WAYS:
            servers.append(await asyncio.start_unix_server(partial(carrying.serve, way), f"{directory}/{way}.sock"))
        try:
            yield made
        finally:
            for server in servers:
                server.close()
            for writer in talking:
                writer.transport.abort()
            for connection in made.connections:
                connection.cut()
            made.over.set()
            await asyncio.sleep(0.1)
            for asker in (carrying._brain, carrying._reader, carrying._certificates):
                for _, writer in asker._idle:
                    writer.transport.abort()
            await asyncio.sleep(0.05)
            left = [task for task in asyncio.all_tasks() if isinstance(task.get_coro(), CoroutineType)]
            names = [task.get_coro().__qualname__ for task in left]  # type: ignore[union-attr]  # a coroutine has one
            assert not [name for name in names if "run.<locals>" not in name and "body" not in name], names


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        with set_eager_task_factory():
            await asyncio.wait_for(body(), 30)

    asyncio.run(whole())


def test_what_is_allowed_goes_exactly_where_the_brain_said() -> None:
    """The control, and the pin: the request names another port than the address that came with the allow."""

    async def body() -> None:
        async with place() as there, place() as other:
            got = await there.ask(there.get().replace(str(there.upstream).encode(), str(other.upstream).encode()))
            assert got.startswith(b"HTTP/1.1 200") and len(there.heads) == 1 and not other.heads

    run(body)


@pytest.mark.parametrize(
    "said",
    [
        RuntimeError("the brain"),
        (200, [], b""),
        (200, [(UPSTREAM, "nowhere")], b""),
        (200, [(UPSTREAM, "")], b""),
        (200, [(READ, "1"), (UPSTREAM, "0.0.0.0:1")], b""),
        (200, [(UPSTREAM, "127.0.0.1:UP"), (UPSTREAM, "127.0.0.1:UP")], b""),
        (200, [(UPSTREAM, "127.0.0.1:UP"), ("x-stockade-more", "1")], b""),
    ],
    ids=["raises", "no address", "no number", "empty", "reads for ever", "two addresses", "another header"],
)
def test_an_answer_that_cannot_be_carried_out_refuses(said: Exception | Said, capfd: pytest.CaptureFixture[str]) -> None:
    async def body() -> None:
        async with place() as there:

            async def reply(_: Asked) -> Said:
                if isinstance(said, Exception):
                    raise said
                return said[0], [(name, value.replace("UP", str(there.upstream))) for name, value in said[1]], said[2]

            there.brain.reply = reply
            got = await there.ask(there.get("X-Mark: what-the-client-said"))
            assert got.startswith(b"HTTP/1.1 503") and b"could not decide" in got and not there.heads
            there.brain.reply = there.allow
            assert (await there.ask(there.get())).startswith(b"HTTP/1.1 200")

    run(body)
    assert "what-the-client-said" not in capfd.readouterr().err


def test_a_brain_that_fails_opens_no_tunnel_and_no_handshake() -> None:
    async def body() -> None:
        async with place() as there:
            connect = f"CONNECT {HOST}:{there.upstream} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()
            reader, writer = await there.connect()
            writer.write(connect)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            there.brain.broken = True
            context = ssl.create_default_context()
            with pytest.raises(OSError):
                await writer.start_tls(context, server_hostname=HOST, ssl_handshake_timeout=5)
            writer.close()

            async def reply(_: Asked) -> Said:
                raise RuntimeError

            there.brain.reply = reply
            assert (await there.ask(connect)).startswith(b"HTTP/1.1 503") and not there.heads

    run(body)


@pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: chunked"])
def test_a_connect_has_no_body(field: str) -> None:
    async def body() -> None:
        async with place() as there:
            got = await there.ask(f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}\r\n{field}\r\n\r\n".encode())
            assert got.startswith(b"HTTP/1.1 400") and not there.brain.asked

    run(body)


@pytest.mark.parametrize("size", [0, 1 << 20])
def test_what_is_decided_after_the_doorman_has_cut_the_connection_goes_nowhere(size: int) -> None:
    async def body() -> None:
        async with place() as there:
            go = asyncio.Event()

            async def reply(asked: Asked) -> Said:
                await go.wait()
                return await there.allow(asked)

            there.brain.reply = reply
            _, writer = await there.connect()
            writer.write(there.get(f"Content-Length: {size}", method="POST") + bytes(min(size, 100_000)))
            while not there.brain.asked:
                await asyncio.sleep(0.01)
            writer.transport.abort()
            await asyncio.sleep(0.1)
            go.set()
            await asyncio.sleep(0.3)
            assert not there.heads

    run(body)


def test_a_cut_while_it_dials_ends_that_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real, dialled = asyncio.open_connection, asyncio.Event()

    async def body() -> None:
        async with place() as there:

            async def slow(*where: Any, **more: Any) -> Any:
                dialled.set()
                await asyncio.sleep(0.3)
                return await real(*where, **more)

            monkeypatch.setattr(asyncio, "open_connection", slow)
            _, writer = await there.connect()
            writer.write(there.get())
            await dialled.wait()
            writer.transport.abort()
            await asyncio.sleep(0.6)
            assert not there.heads

    run(body)


@pytest.mark.parametrize("header", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\0", bytes(400)])
def test_only_the_doorman_is_heard(header: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mitm, "_GREETING", 0.3)

    async def body() -> None:
        async with place() as there:
            reader, writer = await asyncio.open_unix_connection(f"{there.directory}/proxy.sock")
            writer.write(header)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 3) == b""
            assert not there.brain.asked and not there.connections
            writer.close()

    run(body)


@pytest.mark.parametrize(
    ("way", "given_out_for", "sni", "passes"),
    [
        ("https", HOST, HOST, True),
        ("https", HOST, "other.localhost", False),
        ("https", "", HOST, False),
        ("https", "", None, False),
        ("proxy", "", HOST, True),
        ("proxy", HOST, "other.localhost", False),
        ("proxy", "", None, False),
    ],
)
def test_tls_is_ended_only_for_the_name_that_the_connection_may_ask_for(
    way: str, given_out_for: str, sni: str | None, passes: bool
) -> None:
    async def body() -> None:
        async with place() as there:
            reader, writer = await there.connect(way, given_out_for)
            if way == "proxy":
                writer.write(f"CONNECT {HOST}:443 HTTP/1.1\r\n\r\n".encode())
                await reader.readuntil(b"\r\n\r\n")
            context = ssl.create_default_context(cadata=there.brain.authority.pem)
            context.check_hostname = False
            try:
                await writer.start_tls(context, server_hostname=sni, ssl_handshake_timeout=5)
            except OSError:
                assert not passes
            else:
                assert passes
            assert there.brain.names == ([sni] if passes else [])
            assert [json.loads(line) for line in there.said] == ([] if passes else [{"session": "s-test", "name": sni or "-"}])
            writer.close()

    run(body)


def test_an_address_that_the_brain_did_not_return_is_not_dialled() -> None:
    """Should mitmproxy ever want to connect on its own: the last gate before a socket is made."""
    from mitmproxy.connection import Server as To
    from mitmproxy.proxy.commands import OpenConnection

    async def body() -> None:
        async with place() as there:
            reader, writer = await there.connect()
            while not there.connections:
                await asyncio.sleep(0.01)
            (connection,) = there.connections
            connection.permitted.add((("127.0.0.1", there.upstream), True))
            await connection.open_connection(OpenConnection(To(address=("127.0.0.1", there.upstream))))  # the same address, but without TLS
            assert await reader.read() == b"" and not there.heads
            writer.close()

    run(body)


def test_a_client_gets_no_further_than_a_little_ahead_of_a_decision() -> None:
    """What is sent while the brain thinks is held in memory, so it must be little."""

    async def body() -> None:
        async with place() as there:
            there.brain.reply = there.think
            _, writer = await there.connect()
            writer.write(there.get(f"Content-Length: {1 << 28}", method="POST"))
            sent = 0
            with contextlib.suppress(TimeoutError):
                while sent < 1 << 26:
                    writer.write(bytes(1 << 16))
                    sent += 1 << 16
                    await asyncio.wait_for(writer.drain(), 0.5)
            assert there.brain.asked and sent < 16 << 20  # of which most is in the kernel's buffers
            (connection,) = there.connections
            assert connection._ahead < 2 << 20
            writer.transport.abort()

    run(body)


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET http://open.localhost/ HTTP/1.1\r\n", b"x-more: %s\r\n" % (b"a" * 1000)),
        (b"GET " + b"/" * 10, b"/" * 1000),
        (b"GET http://open.localhost/ HTTP/1.1\r\nHost: open.localhost\r\n\r\n", b"GET http://open.localhost/ HTTP/1.1\r\n\r\n" * 30),
        (b"CONNECT open.localhost:443 HTTP/1.1\r\n\r\n", b"G" * 1000),
        (b"CONNECT open.localhost:443 HTTP/1.1\r\n\r\n\x16\x03\x01\x00\x04\x01\xff\xff\xff", b"\x16\x03\x01\x03\xe8" + bytes(1000)),
    ],
    ids=["headers", "target", "requests ahead", "a word in a tunnel", "ClientHello"],
)
def test_what_never_ends_is_ended(start: bytes, more: bytes) -> None:
    async def body() -> None:
        async with place() as there:
            there.brain.reply = there.think
            _, writer = await there.connect()
            sent = 0
            with contextlib.suppress(OSError):
                writer.write(start)
                await asyncio.sleep(0.2)
                while sent < 8 << 20:
                    writer.write(more)
                    sent += len(more)
                    await writer.drain()
                    await asyncio.sleep(0)
            assert sent < 8 << 20 and not there.heads
            writer.close()

    run(body)


@pytest.mark.parametrize(
    ("says", "status"),
    [
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", b"503"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK, b"503"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok", b"502"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nok", b"502"),
        (b"HTTP/1.1 200 OK\r\n" + b"x-more: " + b"a" * (256 << 10), b"502"),
        (b"SSH-2.0-x\r\n\r\n", b"502"),
    ],
    ids=["upgrade", "early hints", "two lengths", "two framings", "endless head", "not HTTP"],
)
def test_an_answer_that_is_none(says: bytes, status: bytes) -> None:
    async def body() -> None:
        async with place(says) as there:
            got = await there.ask(there.get() + there.get())
            assert got.split()[1] == status, got
            assert got.count(b"HTTP/1.1 ") == 1 and len(there.heads) == 1

    run(body)


def test_an_upstream_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with place(hang=True) as there:
            reader, writer = await there.connect()
            writer.write(f"CONNECT {HOST}:{there.upstream} HTTP/1.1\r\n\r\n".encode())
            await reader.readuntil(b"\r\n\r\n")
            context = ssl.create_default_context(cadata=there.brain.authority.pem)
            await writer.start_tls(context, server_hostname=HOST)
            writer.write(f"GET /x HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
            assert answer.startswith(b"HTTP/1.1 503") and len(there.heads) == 1
            writer.close()

    monkeypatch.setattr(mitm, "_CONNECT", 0.3)
    run(body)


@pytest.mark.parametrize("start", [b"", b"GET http://open.localhost/ HTTP/1.1\r\n", b"CONNECT open.localhost:443 HTTP/1.1\r\n\r\n"])
def test_a_client_that_asks_for_nothing_is_given_up_and_one_that_did_is_not(start: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body() -> None:
        async with place() as there:
            silent, writer = await there.connect()
            writer.write(start)
            reader, other = await there.connect()
            other.write(there.get())
            assert b" 200 " in await reader.readuntil(b"\r\n\r\nok")
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(silent.read(), 5)
            other.write(there.get())
            assert b" 200 " in await asyncio.wait_for(reader.readuntil(b"\r\n\r\nok"), 5)
            writer.close()
            other.close()

    monkeypatch.setattr(mitm, "_FIRST", 0.5)
    run(body)


def test_trailers_end_the_connection_before_anything_is_sent(capfd: pytest.CaptureFixture[str]) -> None:
    """mitmproxy cannot carry them over HTTP/1.1 and says so by failing, which leaves its layers in no known state."""

    async def body() -> None:
        async with place() as there:
            head = there.get("Transfer-Encoding: chunked", method="POST")
            reader, writer = await there.connect()
            writer.write(head + b"5\r\nhello\r\n0\r\nX-Secret: what-the-client-said\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 3) == b"" and not there.heads
            writer.close()
            assert (await there.ask(head + b"5\r\nhello\r\n0\r\n\r\n")).startswith(b"HTTP/1.1 200")

    run(body)
    said = capfd.readouterr().err
    assert "connection closed" in said and "what-the-client-said" not in said


def test_a_long_body_comes_with_its_beginning_and_is_read_whole_when_the_brain_wants_that() -> None:
    async def body() -> None:
        async with place() as there:
            size = 300_000

            async def reply(asked: Asked) -> Said:
                return await there.allow(asked) if asked.whole else (200, [(READ, "1"), (UPSTREAM, "0.0.0.0:1")], b"")

            there.brain.reply = reply
            got = await there.ask(there.get(f"Content-Length: {size}", method="POST") + b"x" * size)
            first, second = there.brain.asked
            assert got.startswith(b"HTTP/1.1 200") and not first.whole and 64 << 10 <= len(first.body) < size and len(second.body) == size
            too_much = there.get(f"Content-Length: {MAX_BUFFERED + 1}", method="POST") + b"x" * (128 << 10)
            assert (await there.ask(too_much)).startswith(b"HTTP/1.1 413") and len(there.brain.asked) == 3

    run(body)


def test_upstream_connections_that_are_over_are_forgotten() -> None:
    """Over one connection of the client's, to a server that hangs up after each answer without saying so first."""
    from mitmproxy.connection import Server as To

    async def body() -> None:
        async with place(once=True) as there:
            reader, writer = await there.connect()
            for number in range(20):
                writer.write(there.get())
                assert b" 200 " in await reader.readuntil(b"\r\n\r\nok"), number
                await asyncio.sleep(0.03)
            gc.collect()
            kept = [one for one in gc.get_objects() if type(one) is To and one.address == ("127.0.0.1", there.upstream)]
            assert len(there.heads) == 20 and len(kept) < 4
            writer.close()

    run(body)


# What a whole gate does, in its own process.


@pytest.mark.wall
def test_memory_does_not_grow_with_what_has_passed(upstream: Upstream, tmp_path: Path) -> None:
    """A body, an answer, a connection with its certificate: nothing is kept of them."""

    def resident(gate: Gate) -> int:
        lines = Path(f"/proc/{gate.children()['engine']}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))

    with running(tmp_path, upstream, kind=engine.MITMPROXY) as gate:
        urls = [f"https://api.localhost:{upstream.port}/v1/x{number}" for number in range(150)]

        def ask() -> None:
            argv = ["curl", "-sS", "--cacert", str(gate.ca_file), "-x", f"http://127.0.0.1:{gate.ports['http-proxy']}", "-d", "x" * 60_000]
            done = subprocess.run([*argv, *urls], capture_output=True, timeout=60)
            assert done.stdout.count(b'"path"') == len(urls), done.stderr

        ask()
        before = resident(gate)
        for _ in range(2):
            ask()
        assert resident(gate) - before < 6 << 20


@pytest.mark.wall
def test_no_key_is_ever_in_a_file(upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "TMPDIR", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(name, str(home))
    with running(tmp_path, upstream, kind=engine.MITMPROXY) as gate:
        assert gate.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
        assert not list(home.rglob("*"))
        assert all(file.is_socket() for file in Path("/tmp").glob(f"gate-{gate.process.pid}-*/*"))


def test_which_engine_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(CannotEnforce) as caught:
        engine.find()
    assert caught.value.code == "gate.no-engine" and "stockade[gate]" in caught.value.hint and "stockade[mitm]" in caught.value.hint
    (tmp_path / "mitmproxy/proxy").mkdir(parents=True)
    (tmp_path / "mitmproxy/proxy/server.py").touch()
    assert engine.find() == engine.MITMPROXY
    (tmp_path / "envoy/_bin").mkdir(parents=True)
    (tmp_path / "envoy/_bin/envoy").touch(0o755)
    assert engine.find() == str(tmp_path / "envoy/_bin/envoy")
