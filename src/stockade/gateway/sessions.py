"""All sessions of one gate: who comes, which of them a question is about, and what each leaves behind when it goes. Runs in the brain's process.

A session is introduced by a message on a socket (SOCK_SEQPACKET) with descriptors: the line to its supervisor, then the sockets of its door in the order
in which its configuration, the first message on that line, lists them, and then those of its watch, which are no sockets. It ends when its supervisor
hangs up.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Mapping
from typing import Any

from stockade.gateway import broker
from stockade.gateway.apart import Apart
from stockade.gateway.brain import Brain
from stockade.gateway.certs import Authority
from stockade.gateway.config import READ, SEAT, SESSION_FACT
from stockade.gateway.flow import Asked, Judge
from stockade.gateway.line import Line
from stockade.gateway.questions import Answer, Buffered, begin
from stockade.gateway.rooms import MOST_SEATS, SEATS, Rooms

# Kinds of listeners that the doorman serves, and the socket behind each: the engine's, and for raw TCP our own.
STREAMS = {"http-proxy": "proxy", "http": "http", "https": "https", "tcp": "raw"}
MOST_SOCKETS = 64  # of one door
_SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  a type's name


class _Session:
    """One session while it lasts."""

    def __init__(self, line: Line, sockets: list[socket.socket], watch: list[int]) -> None:
        self.line, self.sockets, self.watch = line, sockets, watch
        self.name = ""
        self.brain: Brain | None = None
        self.opened = False
        self.datagrams: list[socket.socket] = []
        self.servers: list[asyncio.Server] = []

    def unwatch(self) -> None:
        """Close our copies of the watch's descriptors; may be called twice."""
        while self.watch:
            os.close(self.watch.pop())


class Sessions:
    """The sessions of this gate. `orders` goes to the doorman, `listening` is done when the engine listens, `changed` is told how many sessions there are."""

    def __init__(
        self,
        judge: type[Judge],
        authority: Authority,
        directory: str,
        orders: socket.socket,
        listening: asyncio.Future[None],
        changed: Callable[[int], None],
    ) -> None:
        self._judge, self._authority, self._directory, self._orders, self._listening = judge, authority, directory, orders, listening
        self._changed = changed
        self._sessions: dict[str, _Session] = {}
        self._rooms, self._seats, self._apart = Rooms(), Rooms(SEATS, MOST_SEATS), Apart()
        self._tasks: set[asyncio.Task[None]] = set()

    async def introduce(self, fds: list[int]) -> None:
        """Take a session in: its line, and the sockets of its door."""
        watch = [fd for fd in fds if not stat.S_ISSOCK(os.fstat(fd).st_mode)]
        line, *door = (socket.socket(fileno=fd) for fd in fds if fd not in watch)

        def revoke(places: list[int], tokens: list[str]) -> None:
            if session.brain is not None:
                session.brain.revoke(places, tokens)

        def taint() -> None:
            if session.brain is not None:
                session.brain.taint()

        session = _Session(Line(lambda config: self._begin(session, config), lambda: self._end(session), revoke, taint), door, watch)
        line.setblocking(False)
        await asyncio.get_running_loop().create_connection(lambda: session.line, sock=line)
        session.line.tell({"ca": self._authority.pem})

    def _begin(self, session: _Session, config: dict[str, Any]) -> None:
        try:
            self._admit(session, config)
        except Exception as error:  # a configuration that cannot be served ends this session, and no other
            session.line.fail(f"{type(error).__name__}: {error}")

    def _admit(self, session: _Session, config: dict[str, Any]) -> None:
        name = config["session"]
        if (
            not isinstance(name, str)
            or name in self._sessions
            or not 0 < len(name) < 200
            or len(config["listeners"]) != len(session.sockets)
            or config["watch"] != len(session.watch)
        ):
            raise ValueError("the configuration does not fit")
        secrets = {key: broker.writer(item) for key, item in config["credentials"].items()}
        session.brain = Brain(
            name,
            self._judge(config),
            session.line,
            secrets,
            lambda secret, spare: self._cut(session, secret, spare),
            lambda address, host: self._order({"name": host, "address": address, "session": name}),
            self._rooms,
            self._seats,
            self._apart,
            float(config.get("patience", 0)),
        )
        session.name = name
        self._sessions[name] = session
        self._changed(len(self._sessions))
        begin(self._tasks, self._open(session, [item["kind"] for item in config["listeners"]]))

    async def _open(self, session: _Session, kinds: list[str]) -> None:
        """Let connections in, as soon as the engine listens."""
        try:
            await asyncio.shield(self._listening)
            brain, paths, streams = session.brain, [], []
            if brain is None or session.name not in self._sessions:
                return
            for sock, kind in zip(session.sockets, kinds, strict=True):
                if kind in STREAMS:
                    paths.append(f"{self._directory}/{STREAMS[kind]}.sock")
                    streams.append(sock)
                elif kind == "dns-udp":
                    brain.serve_datagrams(sock)
                    session.datagrams.append(sock)
                elif kind == "dns-tcp":
                    session.servers.append(await asyncio.start_server(brain.serve_stream, sock=sock, limit=1 << 17))
                else:
                    raise ValueError(f"no such kind of listener: {kind}")
            order = {"open": session.name, "paths": paths, "watch": len(session.watch)}
            self._order(order, [*(sock.fileno() for sock in streams), *session.watch])
            session.opened = True
            session.unwatch()
            for sock in streams:
                sock.close()
            session.line.tell({"ready": True})
        except Exception as error:
            session.line.fail(f"{type(error).__name__}: {error}")

    def _end(self, session: _Session) -> None:
        """Its supervisor is gone: nothing of the session stays."""
        for sock in session.datagrams:
            asyncio.get_running_loop().remove_reader(sock.fileno())
        for server in session.servers:
            server.close()
        for sock in session.sockets:
            sock.close()
        session.unwatch()
        if session.brain is not None:
            session.brain.end()
        if self._sessions.get(session.name) is session:
            del self._sessions[session.name]
            if session.opened:
                self._order({"close": session.name})
            self._changed(len(self._sessions))

    def _cut(self, session: _Session, secret: bool, spare: str) -> None:
        """End every connection of a session but `spare`. `secret`: all, and let the doorman watch no more, since the narrower rules are in force."""
        if session.opened:
            self._order({"taint": session.name} if secret else {"cut": session.name, "spare": spare})
        elif secret:  # before that there is nothing to cut, and then nothing to watch
            session.unwatch()

    def _order(self, order: dict[str, object], fds: list[int] | None = None) -> None:
        """Tell the doorman. It obeys in order, and before it touches another byte."""
        socket.send_fds(self._orders, [json.dumps(order).encode()], fds or [])

    def brain(self, name: str) -> Brain | None:
        """The brain of a session, None if there is no such session."""
        session = self._sessions.get(name)
        return session.brain if session is not None else None

    async def authorise(self, asked: Asked) -> Answer:
        """ext_authz: hand the question to the brain of the session that it is about."""
        brain = self._asked(asked)
        if brain is None:
            return 403, [("content-type", "text/plain"), ("x-stockade-rule", "session")], b"stockade refused this request: no session\n"
        return await brain.authorise(asked)

    async def overrun(self, asked: Asked) -> Answer:
        """The meter's question (gateway/meter.py). A session that is gone has no connections either."""
        brain = self._asked(asked)
        return await brain.overrun(asked) if brain else (403, [], b"")

    def _asked(self, asked: Asked) -> Brain | None:
        named = [value for key, value in asked.headers if key == SESSION_FACT]
        return self.brain(named[0]) if len(named) == 1 else None

    async def secret(self, asked: Asked) -> Answer:
        """SDS over REST: a leaf for each name asked for. Only names that some session may ask for get here (gateway/sni.py)."""
        names = [str(name)[:256] for name in json.loads(asked.body).get("resource_names", [])][:8]
        key = {"inline_string": self._authority.leaf_key}
        resources = [
            {
                "@type": _SECRET,
                "name": name,
                "tls_certificate": {"certificate_chain": {"inline_string": self._authority.leaf(name)}, "private_key": key},
            }
            for name in names
        ]
        reply = {"version_info": "1", "type_url": _SECRET, "resources": resources}
        return 200, [("content-type", "application/json")], json.dumps(reply).encode()

    def unheard(self, answer: Answer) -> None:
        """The engine did not wait for this answer: the room or seat that it gives is not used."""
        for name, value in answer[1]:
            if name in (READ, SEAT):
                self.left({"room" if name == READ else "seat": value})

    def left(self, line: Mapping[str, object]) -> None:
        """A request is over that had this seat, or whose body had this room."""
        self._rooms.give_back(str(line.get("room")))
        self._seats.give_back(str(line.get("seat")))

    async def refused_name(self, line: Mapping[str, object]) -> None:
        """The engine closed a connection because of the name in its TLS greeting."""
        brain = self.brain(str(line.get("session")))
        if brain is not None:
            await brain.refused_name(str(line.get("name") or "-"))


class Log(Buffered):
    """Reads what the engine writes: a line of JSON for each connection that it closed because of a name, and for each request that is over and had a room."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._incoming = b""
        self._tasks: set[asyncio.Task[None]] = set()

    def data_received(self, data: bytes) -> None:
        *lines, self._incoming = (self._incoming + data).split(b"\n")
        for line in lines:
            try:
                found = json.loads(line)
            except ValueError:
                sys.stderr.write("stockade gate: the engine wrote a line that is not JSON\n")
                continue
            if isinstance(found, dict) and not {"room", "seat"}.isdisjoint(found):
                self._sessions.left(found)
            elif isinstance(found, dict) and len(self._tasks) < 1024:
                begin(self._tasks, self._sessions.refused_name(found))


def introductions(sock: socket.socket, sessions: Sessions, gone: Callable[[], None]) -> None:
    """Take in whoever is introduced on `sock`; `gone` when nobody can come any more. Call it when the loop runs."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def ready() -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(sock, 64, MOST_SOCKETS + 1)
        except BlockingIOError:
            return
        except OSError:  # hung up without having read what we said (unix(7), ECONNRESET)
            data, fds, flags = b"", [], 0
        if not data:
            loop.remove_reader(sock.fileno())
            gone()
        elif flags & socket.MSG_CTRUNC or not fds:
            for fd in fds:
                os.close(fd)
        else:
            begin(tasks, sessions.introduce(fds))

    loop.add_reader(sock.fileno(), ready)


__all__ = ["STREAMS", "Log", "Sessions", "introductions"]
