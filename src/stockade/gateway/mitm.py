"""The engine where there is no Envoy: mitmproxy's protocol layers (mitmproxy 12, `mitmproxy.proxy.server`) in Envoy's place, a process of its own between
doorman and brain that listens on the same sockets, asks the same questions and obeys the same answers. Slower, and HTTP/1.1 only.

    python -I -m stockade.gateway.mitm DIRECTORY ROOTS.pem

None of mitmproxy's own addons run and it has no master: its hooks are answered here, so one that fails refuses, where an addon that fails is skipped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import ssl
import sys
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import mitmproxy.ctx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from mitmproxy.addons.proxyserver import Proxyserver
from mitmproxy.addons.tlsconfig import TlsConfig
from mitmproxy.certs import Cert, CertStoreEntry
from mitmproxy.connection import Server
from mitmproxy.http import Headers, HTTPFlow, Response
from mitmproxy.options import Options
from mitmproxy.proxy import commands, events, layer, mode_specs, server
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers.http._hooks import HttpConnectHook, HttpRequestHeadersHook
from mitmproxy.proxy.layers.tls import TlsStartClientHook, TlsStartServerHook
from mitmproxy.utils.asyncio_utils import set_eager_task_factory

from stockade.gateway import enclose, engine
from stockade.gateway.config import ANSWER, ENGINE_HEADERS, READ, SEAT, UPSTREAM
from stockade.gateway.inquiry import Asker
from stockade.gateway.layers import UNDECIDED, Answer, Ask, Stream, first, inner
from stockade.gateway.proxy_protocol import greeting
from stockade.gateway.target import TARGET

if TYPE_CHECKING:
    from collections.abc import Callable

    from mitmproxy.proxy.context import Context
    from mitmproxy.tls import TlsData


_PARTS = (READ, SEAT, UPSTREAM, TARGET)  # of the brain's answer to an allowed request that are for us
_IDLE = 1800  # seconds, as the other engine
WAYS = ("proxy", "http", "https")
_GREETING = 15.0  # seconds for the doorman's header
_CONNECT = 10.0  # seconds until an upstream must have answered, TLS included
_FIRST = 30.0  # seconds until a client must have sent the head of its first request, through a tunnel or not
_MOST_AHEAD = 1 << 20  # bytes that a client may send while its request is being decided


class Leaf(TlsConfig):
    """mitmproxy's TLS settings, with our certificate: its own store would want a file for a key that must never be in one."""

    certstore: Any = SimpleNamespace(dhparams=None)

    def __init__(self, entry: CertStoreEntry | None = None) -> None:
        self._entry = entry

    def get_cert(self, conn_context: Context) -> CertStoreEntry:
        if self._entry is None:
            raise ValueError("no certificate")
        return self._entry


@lru_cache(256)
def _entry(chain: str, key: str) -> CertStoreEntry:
    private: Any = load_pem_private_key(key.encode(), None)
    return CertStoreEntry(Cert(x509.load_pem_x509_certificate(chain.encode())), private, None, [])


def settings(upstream_ca: str) -> Options:
    """mitmproxy's options. What could pass bytes that nobody judged is off. Raises OSError if the trusted roots cannot be read."""
    ssl.create_default_context(cafile=upstream_ca)  # mitmproxy itself would find out with the first connection
    options = Options()
    for addon in (Proxyserver(), TlsConfig()):
        addon.load(options)  # type: ignore[no-untyped-call]  # only to define their options
    options.update(
        confdir="/nonexistent",
        connection_strategy="lazy",
        http2=False,
        http3=False,
        rawtcp=False,
        ssl_verify_upstream_trusted_ca=upstream_ca,
        tcp_timeout=_IDLE,
        upstream_cert=False,
        validate_inbound_headers=True,
        websocket=False,  # mitmproxy would take messages apart and keep them
    )
    return options


class Engine:
    """All connections of all sessions. `directory` holds the brain's sockets; `said` is told of each name in TLS that was refused, and of rooms that are free."""

    def __init__(self, directory: str, upstream_ca: str, said: Callable[[str], object]) -> None:
        self._brain, self._certificates = (Asker(f"{directory}/{name}.sock") for name in ("brain", "certificates"))
        self._reader = Asker(f"{directory}/reader.sock", float(ANSWER.rstrip("s")))
        self._said = said
        self.options = settings(upstream_ca)
        mitmproxy.ctx.options = self.options  # where its TLS settings look for them

    async def serve(self, way: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end. It begins with the doorman's word on whose it is and where it wanted to go."""
        try:
            async with asyncio.timeout(_GREETING):
                session, name, address, port, number = await greeting(reader)
        except (OSError, ValueError, KeyError, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            writer.transport.abort()
            return
        connection = Connection(self, reader, writer, way, session, name, (address, port), number)
        patience = asyncio.get_running_loop().call_later(_FIRST, connection.hurry)
        try:
            await connection.handle_client()
        except asyncio.CancelledError:
            pass  # how a cut ends it
        finally:
            patience.cancel()
            connection.cut()
            connection.leave()

    async def decide(self, ask: Ask, connection: Connection) -> Answer:
        """Ask the brain about a request; on an allow, write into the flow what was decided."""
        stream, wanted = ask.stream, ask.stream.wanted
        facts = connection.facts(stream.way, stream.connect, wanted.method, wanted.scheme, wanted.length)
        asker = self._reader if ask.whole else self._brain
        if not ask.whole:
            connection.leave()  # the request before this one is over
        answer, added, target, seat = _understood(*await asker.ask(wanted.target, (*wanted.headers, *facts), ask.body))
        if answer.address is not None:
            kept = [(name, value) for name, value in wanted.headers if name not in added]
            request = stream.flow.request = stream.flow.request.copy()  # the client's side goes on with what the client said
            data = request.data
            data.host, data.port = answer.address
            data.method, data.scheme = wanted.method.encode(), wanted.scheme.encode()
            data.authority, data.path = b"", (target or wanted.target).encode()
            data.headers = Headers([(name.encode(), value.encode("latin-1")) for name, value in (*kept, *added.items(), *wanted.framing)])
            connection.permitted.add((answer.address, wanted.scheme == "https"))
        connection.room, connection.seat = answer.read or connection.room, seat
        return answer

    async def decide_connect(self, flow: HTTPFlow, connection: Connection) -> None:
        """May this tunnel be opened? Nothing is dialled for it in any case."""
        authority = flow.request.data.authority.decode("latin-1")
        if {"content-length", "transfer-encoding"} & {name.lower() for name in flow.request.headers}:
            flow.response = _refusal(400, [], b"a CONNECT has no body\n")
            return
        facts = connection.facts("proxy", "", "CONNECT", "", 0)
        status, headers, body = await self._brain.ask("/", (("host", authority), *facts))
        if status != 200:
            flow.response = _refusal(status, _for_client(headers), body)

    async def certificate(self, name: str) -> CertStoreEntry:
        """A leaf for a name that the connection may ask for."""
        _, _, body = await self._certificates.ask("/", (("host", "brain"),), json.dumps({"resource_names": [name]}).encode())
        (found,) = json.loads(body)["resources"]
        pair = found["tls_certificate"]
        return _entry(pair["certificate_chain"]["inline_string"], pair["private_key"]["inline_string"])

    def refused_name(self, session: str, name: str) -> None:
        """A connection was closed because of the name in its TLS greeting: a line for the ledger (gateway/sessions.py reads it)."""
        self._said(json.dumps({"session": session, "name": name or "-"}))

    def left(self, room: str, seat: str) -> None:
        """A request is over that had this seat, and whose body had this room ("" = none): a line for the brain (gateway/sessions.py reads it)."""
        self._said(json.dumps({"room": room, "seat": seat}))


def _understood(status: int, headers: list[tuple[str, str]], body: bytes) -> tuple[Answer, dict[str, str], str, str]:
    """The brain's answer, the headers that it adds to the request, the path and query that it puts in place of the request's own, and the request's seat ("" = none).

    Raises ValueError, KeyError for one that this engine cannot carry out.
    """
    if status != 200:
        return Answer(status, tuple(_for_client(headers)), body), {}, "", ""
    said = {name: value for name, value in headers if name in _PARTS}
    added = {name: value for name, value in headers if not name.startswith(ENGINE_HEADERS)}
    others = [name for name, _ in headers if name.startswith(ENGINE_HEADERS) and name not in ("content-length", *_PARTS)]
    if others or len(said) + len(added) + 1 != len(headers):
        raise ValueError("an answer that this engine cannot carry out")
    if said.get(READ):
        return Answer(read=said[READ]), {}, "", ""
    host, _, port = said[UPSTREAM].rpartition(":")
    return Answer(200, address=(host.strip("[]"), int(port))), added, said.get(TARGET, ""), said.get(SEAT, "")


def _for_client(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name in ("content-type", "x-stockade-rule")]


def _refusal(status: int, headers: list[tuple[str, str]], body: bytes) -> Response:
    said = [*headers, ("connection", "close")]
    return Response.make(status, body, Headers([(name.encode(), value.encode("latin-1")) for name, value in said]))


class Connection(server.LiveConnectionHandler):
    """One connection of a session, and those upstream that it causes. `destination` is where it wanted to go, `name` what that was given out for, `number` what
    the doorman calls it."""

    def __init__(
        self,
        carrying: Engine,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
        session: str,
        name: str,
        destination: tuple[str, int],
        number: str,
    ) -> None:
        super().__init__(reader, writer, carrying.options, mode_specs.ProxyMode.parse("regular"))
        self.client.peername, self.client.sockname = ("127.0.0.1", 0), destination  # for mitmproxy's messages, which nobody reads
        self._engine, self._way, self._session, self._name, self._destination = carrying, way, session, name, destination
        self.permitted: set[tuple[tuple[str, int], bool]] = set()  # addresses that the brain returned, and whether with TLS
        self._ended = self._spoken = False
        self._number = number
        self.room = self.seat = ""  # that the body of the request on it takes, and it itself
        self._deciding = 0
        self._asking: asyncio.Future[Answer] | None = None
        self._ahead = 0
        self._decided = asyncio.Event()
        context = self.layer.context
        if way == "proxy":
            self.layer = modes.HttpProxy(context)
        else:
            context.server.address = destination
            self.layer = modes.TransparentProxy(context)

    def facts(self, way: str, connect: str, method: str, scheme: str, length: int | None) -> tuple[tuple[str, str], ...]:
        """What gateway/config.py has Envoy say, of this connection and a request on it."""
        host, port = self._destination
        return (
            ("x-stockade-session", self._session),
            ("x-stockade-connect", f"CONNECT {connect}" if connect else "-"),
            ("x-stockade-sni", self.client.sni or "-"),
            ("x-stockade-destination", f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
            ("x-stockade-connection", f"{self._number} HTTP/1.1"),
            ("x-stockade-length", str(length) if length is not None else "-"),
            ("x-stockade-body", "shown"),  # a body in chunks is asked about when all of it is there
            ("x-stockade-scheme", scheme),
            ("x-stockade-method", method),
            ("x-stockade-way", way),
        )

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """INVARIANT: a hook that fails lets nothing pass. A request is refused, everything else ends the connection."""
        try:
            with self.timeout_watchdog.disarm():
                await self._answer(hook)
        except Exception as error:
            sys.stderr.write(f"stockade gate: {type(error).__name__} while deciding; refused\n")
            if isinstance(hook, HttpConnectHook):
                hook.flow.response = _refusal(UNDECIDED.status, [], UNDECIDED.body)
            elif not isinstance(hook, Ask):  # whose answer stays what it is until there is one: undecided
                self.cut()

    async def _answer(self, hook: commands.StartHook) -> None:
        match hook:
            case Ask():
                self._deciding += 1
                self._decided.clear()
                try:
                    self._asking = asyncio.ensure_future(self._engine.decide(hook, self))
                    hook.stream.answer = await self._asking
                finally:
                    self._deciding -= 1
                    if not self._deciding:
                        self._ahead = 0
                        self._decided.set()
            case HttpRequestHeadersHook():
                self._spoken = True
            case HttpConnectHook():
                await self._engine.decide_connect(hook.flow, self)
            case layer.NextLayerHook():
                self._next(hook.data)
            case TlsStartClientHook():
                await self._greet(hook.data)
            case TlsStartServerHook():
                self._verify(hook.data)

    def _next(self, choice: layer.NextLayer) -> None:
        context, data = choice.context, choice.data_client()
        tunnel = context.layers[-1]
        if isinstance(tunnel, Stream):
            choice.layer = inner(context, tunnel.flow.request.data.authority.decode("latin-1"), data)
        else:
            choice.layer = first(context, self._way, data)

    async def _greet(self, data: TlsData) -> None:
        """End TLS for the one name that this connection may ask for: that of the tunnel, or the one for which its address was given out."""
        tunnel = next((one for one in data.context.layers if isinstance(one, Stream)), None)
        expected = tunnel.flow.request.data.authority.decode("latin-1").lower().rpartition(":")[0] if tunnel else self._name
        name = (self.client.sni or "").lower()
        if not name or name != expected:
            self._engine.refused_name(self._session, name)
            self.cut()
            return
        Leaf(await self._engine.certificate(name)).tls_start_client(data)

    def _verify(self, data: TlsData) -> None:
        """The upstream must show a certificate for the name that was granted: the client's SNI, which the brain has compared with everything else."""
        name = (self.client.sni or "").lower().removesuffix(".")
        if not name or not isinstance(data.conn, Server):
            raise ValueError("no name to verify")
        data.conn.sni, data.conn.alpn_offers = name, (b"http/1.1",)
        Leaf().tls_start_server(data)

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """INVARIANT: nothing is dialled but an address that the brain returned for a request on this connection."""
        upstream = command.connection
        if self._ended or (upstream.address, upstream.tls) not in self.permitted:
            sys.stderr.write("stockade gate: an address that nobody checked; not dialled\n")
            self.cut()
            return
        patience = asyncio.get_running_loop().call_later(_CONNECT, self._give_up, upstream)
        try:
            await super().open_connection(command)
        finally:
            patience.cancel()

    def leave(self) -> None:
        """The request that was on it is over; may be called twice."""
        if self.room or self.seat:
            self._engine.left(self.room, self.seat)
            self.room = self.seat = ""

    def hurry(self) -> None:
        """Close a connection on which nothing has been asked."""
        if not self._spoken:
            self.cut()

    def _give_up(self, upstream: Server) -> None:
        io = self.transports.get(upstream)
        if io and io.handler and not (upstream.connected and (upstream.tls_established or not upstream.tls)):
            io.handler.cancel()

    async def server_event(self, event: events.Event) -> None:
        """Nothing happens any more after a cut, and whoever reports something ends."""
        if self._ended:
            raise asyncio.CancelledError
        if isinstance(event, events.ConnectionClosed) and event.connection is self.client and self._asking is not None:
            self._asking.cancel()  # nobody waits for it
        if self._deciding and isinstance(event, events.DataReceived) and event.connection is self.client:
            self._ahead += len(event.data)
        await super().server_event(event)

    async def drain_writers(self) -> None:
        """Called between two reads. A client does not get far ahead of a decision: what it sends meanwhile is held in memory."""
        await super().drain_writers()  # type: ignore[no-untyped-call]  # mitmproxy states no types here
        if self._ahead > _MOST_AHEAD and self._deciding:
            await self._decided.wait()

    def log(self, message: str, level: int = logging.INFO, exc_info: Any = None) -> None:
        """Nothing is logged: messages hold what was sent. An error is mitmproxy's word that its layers are in no known state."""
        if level >= logging.ERROR:
            kind = exc_info[0].__name__ if isinstance(exc_info, tuple) else type(sys.exception()).__name__
            sys.stderr.write(f"stockade gate: {kind} in the engine; connection closed\n")
            self.cut()

    def cut(self) -> None:
        """Close everything now. Idempotent."""
        self._ended = True
        self._decided.set()
        for io in [*self.transports.values()]:
            if isinstance(io.writer, asyncio.StreamWriter):
                io.writer.transport.abort()
            if io.handler:
                asyncio.get_running_loop().call_soon(io.handler.cancel)


def main(directory: str, upstream_ca: str) -> None:
    """Serve until somebody ends this process, as the gate does when it ends."""
    engine.harden()
    logging.getLogger("mitmproxy").setLevel(logging.CRITICAL + 1)  # its messages hold what was sent
    engine.open_files()
    asyncio.run(_listen(directory, upstream_ca))


async def _listen(directory: str, upstream_ca: str) -> None:
    carrying = Engine(directory, upstream_ca, lambda line: os.write(1, f"{line}\n".encode()))
    enclose.fallback(directory)
    with set_eager_task_factory():  # as mitmproxy itself runs
        for way in WAYS:
            await asyncio.start_unix_server(partial(carrying.serve, way), f"{directory}/{way}.sock", backlog=4096)
        await asyncio.Event().wait()


if __name__ == "__main__":
    try:
        main(sys.argv[1], sys.argv[2])
    except Exception as error:
        sys.exit(f"stockade gate: mitmproxy: {type(error).__name__}: {error}")
