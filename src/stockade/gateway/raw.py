"""Raw TCP to a named host and port: asked about once, then carried in both directions. Nothing is parsed but the doorman's own header.

Bytes towards the outside are counted as they pass, so a grant's `max_upload` (of one connection) and `upload_budget` hold to the byte; planted strings are looked
for in them. Revoking cuts the connection at the doorman.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from stockade.gateway.apart import Undecided
from stockade.gateway.proxy_protocol import greeting

if TYPE_CHECKING:
    from stockade.core.values import Grant
    from stockade.gateway.brain import Brain
    from stockade.gateway.sessions import Sessions

_CHUNK = 1 << 16
_OVERLAP = 256  # bytes of what went before, so that a planted string is also found across two pieces
_PATIENCE = 10.0  # seconds for the header, and for a connection to the outside
_QUIET = 60.0  # seconds that outside may be silent after inside has ended


class Raw:
    """Serves the connections that the doorman hands over on the gate's own socket for them."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, to its end. Whatever goes wrong closes it."""
        ends = [writer]
        try:
            async with asyncio.timeout(_PATIENCE):
                session, name, _, port, connection = await greeting(reader)
            brain, ahead = self._sessions.brain(session), _Ahead(reader)
            found = await brain.raw(name, port, connection, ahead.end) if brain is not None else None
            if brain is None or found is None:
                return
            grant, address = found
            async with asyncio.timeout(_PATIENCE):
                host, _, number = address.rpartition(":")
                incoming, outside = await asyncio.open_connection(host.strip("[]"), int(number), limit=_CHUNK)
            ends.append(outside)
            outside.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await _Carrying(ahead, writer, incoming, outside, brain, grant).run()
        except* (OSError, ValueError, KeyError, Undecided, asyncio.IncompleteReadError):  # TimeoutError is an OSError
            for end in ends:
                end.transport.abort()
        finally:
            for end in ends:
                end.close()


class _Ahead:
    """What comes from inside, of which some may be read before anything is to be done with it: only so can be seen that whoever sends it is gone."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader, self._read = reader, b""

    async def end(self) -> None:
        """Return at the end of what comes, which nobody can tell from the end of whoever sent it. Never if that is more than a few pieces: they are not held."""
        while len(self._read) < _CHUNK:
            if not (data := await self._reader.read(_CHUNK)):
                return
            self._read += data
        await asyncio.Event().wait()

    async def read(self, most: int) -> bytes:
        """The next bytes, b"" at the end."""
        data, self._read = self._read[:most], self._read[most:]
        return data or await self._reader.read(most)


class _Carrying:
    """Both directions of one connection."""

    def __init__(
        self,
        reader: _Ahead,
        writer: asyncio.StreamWriter,
        incoming: asyncio.StreamReader,
        outside: asyncio.StreamWriter,
        brain: Brain,
        grant: Grant,
    ) -> None:
        self._reader, self._writer, self._incoming, self._outside, self._brain, self._grant = (
            reader,
            writer,
            incoming,
            outside,
            brain,
            grant,
        )
        self._came = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as both:
            down = both.create_task(self._down())
            await self._up()
            while not down.done():  # inside has said all it will, or is gone: outside is heard as long as it says something
                before = self._came
                await asyncio.wait({down}, timeout=_QUIET)
                if not down.done() and self._came == before:
                    raise TimeoutError

    async def _down(self) -> None:
        while data := await self._incoming.read(_CHUNK):
            self._came += len(data)
            self._writer.write(data)
            await self._writer.drain()
        self._writer.write_eof()

    async def _up(self) -> None:
        sent, before = 0, b""
        while data := await self._reader.read(_CHUNK):
            sent += len(data)
            if not await self._brain.may_send(self._grant, sent, data, before):
                raise ConnectionAbortedError
            before = (before + data)[-_OVERLAP:]
            self._outside.write(data)
            await self._outside.drain()
        self._outside.write_eof()
