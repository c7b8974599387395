"""mitmproxy's protocol layers, narrowed to what a gate may do (mitmproxy 12, `mitmproxy.proxy.layers`). No I/O and no decision here.

What is different from mitmproxy's own: nothing is sent anywhere before an `Ask` was answered with an address; the ways in are fixed, not guessed; trailers
and answers that announce something else than was asked for end the connection; nothing is kept of what has passed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.connection import Connection, ConnectionState, Server
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers.http import DropStream, GetHttpConnection, HttpClient, HttpLayer, HTTPMode, HttpStream, SendHttp
from mitmproxy.proxy.layers.http._events import (
    RequestData,
    RequestProtocolError,
    RequestTrailers,
    ResponseData,
    ResponseEndOfMessage,
    ResponseHeaders,
    ResponseProtocolError,
)
from mitmproxy.proxy.layers.http._http1 import Http1Connection
from mitmproxy.proxy.layers.tcp import TCPLayer
from mitmproxy.proxy.layers.tls import ClientTLSLayer, ServerTLSLayer

from stockade.core.frozen import frozen
from stockade.gateway.config import MAX_BUFFERED, SHOWN_FIRST
from stockade.gateway.spelling import Malformed, Settled, settle

if TYPE_CHECKING:
    from mitmproxy.proxy.context import Context

    Commands = layer.CommandGenerator[None]

_MOST_UNREAD = 128 << 10  # bytes of a head, or of requests sent ahead of an answer


@frozen
class Answer:
    """What the brain said. `address` = allowed, and where to connect; `read` = first the whole body, for which it has a room of this name; neither = refused with
    `status` and `body`."""

    status: int = 503
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    address: tuple[str, int] | None = None
    read: str = ""


_TEXT = (("content-type", "text/plain; charset=utf-8"),)
UNDECIDED = Answer(503, _TEXT, b"stockade refused this request: the gate could not decide\n")


@dataclass
class Ask(commands.StartHook):
    """May this request leave? Whoever handles it writes `stream.answer`. `body` is what has come so far, all of it if `whole`."""

    stream: Stream
    body: bytes
    whole: bool


class Stream(HttpStream):
    """One request and its answer. `way` is how it came in, `connect` the target of the tunnel that it came by ("" = none)."""

    wanted: Settled

    def __init__(self, context: Context, stream_id: int, way: str, connect: str) -> None:
        super().__init__(context, stream_id)
        self.way, self.connect = way, connect
        self.answer = UNDECIDED
        self._whole = False

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        """mitmproxy's own check, and ours. Called as soon as a head is there."""
        if (yield from super().check_invalid(request)):
            return True
        if not request:
            return (yield from self._check_response())
        asked = self.flow.request
        if asked.method == "CONNECT":
            return False  # asked about in its own hook; a tunnel leads to more requests and to nothing else
        data = asked.data
        try:
            self.wanted = settle(
                data.http_version,
                data.method,
                data.path,
                scheme=data.scheme,
                authority=data.authority,
                headers=data.headers.fields,
                tls=self.way in ("https", "tunnel"),
            )
        except Malformed as error:
            yield from self.refuse(Answer(error.status, body=f"stockade refused this request: {error}\n".encode()), close=True)
            return True
        return False

    def _check_response(self) -> layer.CommandGenerator[bool]:
        response = self.flow.response
        if response is None:
            raise RuntimeError("an answer without one")
        upgraded = response.status_code == 101 and self.wanted.upgrade
        if response.status_code < 200 and not upgraded:
            yield commands.CloseConnection(self.context.server)
            yield from self.refuse(Answer(503, body=b"the server answered with something that was not asked for\n"), close=True)
            return True
        response.stream = not upgraded
        return False

    def state_consume_request_body(self, event: events.Event) -> Commands:
        """Hold the body until the request is decided; then send it on, and stream what follows."""
        if isinstance(event, RequestTrailers):
            return
        if isinstance(event, RequestData):
            self.request_body_buf += event.data
            yield from self._more()
            return
        if not self.answer.address:
            yield from self._ask()
            if self.answer.read and not self._whole:  # everything is there already
                self._whole = True
                yield from self._ask()
            if self.answer.read:  # this would go on for ever
                self.answer = UNDECIDED
            if not self.answer.address:
                yield from self.refuse(self.answer)
                return
        yield from super().state_consume_request_body(event)

    def _more(self) -> Commands:
        held, announced = len(self.request_body_buf), self.wanted.length
        if not (self._whole or announced is None or announced <= SHOWN_FIRST) and held >= SHOWN_FIRST:
            yield from self._ask()
            if self.answer.read:
                self._whole = True
            elif not self.answer.address:
                yield from self.refuse(self.answer)
                return
            else:
                body = bytes(self.request_body_buf)
                self.request_body_buf.clear()
                yield from self.start_request_stream()
                if self.client_state == self.state_stream_request_body:
                    yield from self.state_stream_request_body(RequestData(self.stream_id, body))
                return
        if max(held, announced or 0) > MAX_BUFFERED and (self._whole or announced is None):
            yield from self.refuse(Answer(413, body=b"stockade refused this request: the body has to be read, and is too large for that\n"))

    def state_stream_request_body(self, event: events.Event) -> Commands:
        """As mitmproxy does, without trailers: nobody has decided on them."""
        if not isinstance(event, RequestTrailers):
            yield from super().state_stream_request_body(event)

    def _ask(self) -> Commands:
        self.answer = UNDECIDED
        yield Ask(self, bytes(self.request_body_buf), self._whole or self.wanted.length is None)

    def handle_protocol_error(self, event: RequestProtocolError | ResponseProtocolError) -> Commands:
        """As mitmproxy does, without its message, which quotes what the server said."""
        if isinstance(event, ResponseProtocolError):
            event = ResponseProtocolError(event.stream_id, "the server's answer is not HTTP/1.1, or broke off", event.code)
        yield from super().handle_protocol_error(event)

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        """INVARIANT: the only way out. It needs an allow, and goes to the address that came with it."""
        address = self.answer.address
        if address is None:
            raise RuntimeError("not allowed")
        reply = yield GetHttpConnection(address, self.wanted.scheme == "https", None)
        connection, failure = reply
        if failure:
            reason = "its certificate is not for that name, or not from anybody trusted" if "verify" in failure else "it does not answer"
            yield from self.refuse(Answer(503, body=f"the server cannot be reached: {reason}\n".encode()))
            return False
        self.context.server = self.flow.server_conn = connection
        return True

    def refuse(self, answer: Answer, *, close: bool = False) -> Commands:
        """Answer ourselves. What still comes of the request is read for nothing, so that the client gets to read the answer (RFC 9112, section 9.6)."""
        self.request_body_buf.clear()
        self.client_state = self.server_state = self.state_errored
        self.flow.live = False
        head = http.Headers([(name.encode(), value.encode("latin-1")) for name, value in answer.headers or _TEXT])
        if close:
            head["connection"] = "close"
        response = http.Response.make(answer.status, answer.body, head)
        yield SendHttp(ResponseHeaders(self.stream_id, response, not answer.body), self.context.client)
        if answer.body and self.flow.request.method != "HEAD":
            yield SendHttp(ResponseData(self.stream_id, answer.body), self.context.client)
        yield DropStream(self.stream_id)
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)

    def flow_done(self) -> Commands:
        """After an upgrade bytes pass unread, both ways."""
        if self.flow.response is None or self.flow.response.status_code != 101:
            yield from super().flow_done()
            return
        self.child_layer = TCPLayer(self.context, ignore=True)  # without a flow, which would keep everything that passes
        self._handle_event = self.passthrough
        yield from self.child_layer.handle_event(events.Start())
        yield SendHttp(ResponseEndOfMessage(self.stream_id), self.context.client)


class Http(HttpLayer):
    """HTTP/1.1 from one client. `way` and `connect` as in `Stream`."""

    def __init__(self, context: Context, mode: HTTPMode, way: str, connect: str = "") -> None:
        super().__init__(context, mode)
        self.way, self.connect = way, connect

    def make_stream(self, stream_id: int) -> Commands:
        """A stream of our own kind."""
        self.streams[stream_id] = stream = Stream(self.context.fork(), stream_id, self.way, self.connect)
        yield from self.event_to_child(stream, events.Start())

    def _handle_event(self, event: events.Event) -> Commands:
        yield from super()._handle_event(event)
        if isinstance(event, events.ConnectionClosed):
            self._forget()
        if isinstance(event, events.DataReceived) and self._overfull(event.connection):
            yield commands.CloseConnection(event.connection)

    def _overfull(self, connection: Connection) -> bool:
        """Whether a peer sends a head without an end, or ever more requests ahead: mitmproxy would keep it all."""
        reader: object = self.connections.get(connection)
        while isinstance(reader, ServerTLSLayer | HttpClient):
            reader = getattr(reader, "child_layer", None)
        return isinstance(reader, Http1Connection) and reader.state != reader.passthrough and len(reader.buf) > _MOST_UNREAD

    def _forget(self) -> None:
        """mitmproxy keeps every connection that a client ever caused for as long as that client stays."""
        used = {stream.context.server for stream in self.streams.values()}
        for connection in [*self.connections]:
            over = isinstance(connection, Server) and connection.state is ConnectionState.CLOSED
            if over and connection not in used and connection not in self.waiting_for_establishment:
                del self.connections[connection]


class Secured(ClientTLSLayer):
    """TLS from the client. What does not begin as a ClientHello ends here, and so does one that never ends (RFC 8446, section 4)."""

    def receive_handshake_data(self, data: bytes) -> layer.CommandGenerator[tuple[bool, str | None]]:
        """As mitmproxy does, which believes any length that the client announces."""
        begun = bytes(self.recv_buffer[:6]) + data[:6]
        if not self.client_hello_parsed and (len(self.recv_buffer) > _MOST_UNREAD or begun[5:6] not in (b"", b"\x01")):
            return False, "no ClientHello"
        return (yield from super().receive_handshake_data(data))


class Closed(layer.Layer):
    """For what is neither TLS nor HTTP: nothing is dialled."""

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, events.Start):
            yield commands.CloseConnection(self.context.client)


def first(context: Context, way: str, data: bytes) -> layer.Layer | None:
    """What speaks on a connection that came by `way`."""
    if way == "proxy":
        return Http(context, HTTPMode.regular, way)
    if way == "http":
        return Http(context, HTTPMode.transparent, way)
    return _secured(context, way, data, "")


def inner(context: Context, connect: str, data: bytes) -> layer.Layer | None:
    """What speaks inside a tunnel, None = too little has come to tell: TLS, or plain HTTP for clients that tunnel it."""
    if data[:1] == b"\x16":
        return _secured(context, "tunnel", data, connect)
    line, ended, _ = data.partition(b"\n")
    if ended and line.rstrip(b"\r").endswith((b" HTTP/1.1", b" HTTP/1.0")):
        return Http(context, HTTPMode.transparent, "tunnel-plain", connect)
    return Closed(context) if ended or len(data) > _MOST_UNREAD or not data[:1].isalpha() else None


def _secured(context: Context, way: str, data: bytes, connect: str) -> layer.Layer | None:
    if not b"\x16\x03".startswith(data[:2]):
        return Closed(context)
    secured = Secured(context)
    secured.child_layer = Http(context, HTTPMode.transparent, way, connect)
    return secured
