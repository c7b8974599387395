"""The engine's side of a question, where the engine is not Envoy: HTTP/1.1 over the brain's Unix sockets (gateway/questions.py is the other side)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_PATIENCE = 20.0  # seconds for an answer, as the other engine has; where a person may be asked it has that of gateway/config.py
_MOST_IDLE = 64  # connections kept for the next question

type Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Asker:
    """Asks on one socket, any number of questions at once."""

    def __init__(self, path: str, patience: float = _PATIENCE) -> None:
        self._path, self._patience = path, patience
        self._idle: list[Stream] = []

    async def ask(self, target: str, headers: Iterable[tuple[str, str]], body: bytes = b"") -> tuple[int, list[tuple[str, str]], bytes]:
        """Status, headers in lower case and body of the answer. Raises OSError, TimeoutError, ValueError, IncompleteReadError: there is none then."""
        headers = tuple(headers)
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), f"content-length: {len(body)}", "", ""]
        async with asyncio.timeout(self._patience):
            reader, writer = stream = self._idle.pop() if self._idle else await asyncio.open_unix_connection(self._path)
            try:
                writer.write("\r\n".join(lines).encode("latin-1") + body)
                await writer.drain()
                answer = await _read(reader)
            except BaseException:
                writer.transport.abort()  # what comes next on it would be the answer to this question
                raise
        # After a question about an upgrade the brain hangs up: its parser expects another protocol to follow.
        if len(self._idle) < _MOST_IDLE and not any(name == "upgrade" for name, _ in headers):
            self._idle.append(stream)
        else:
            writer.close()
        return answer


async def _read(reader: asyncio.StreamReader) -> tuple[int, list[tuple[str, str]], bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")[:-2]
    headers = []
    for line in lines:
        name, _, value = line.partition(":")
        headers.append((name.lower(), value.strip()))
    (length,) = (int(value) for name, value in headers if name == "content-length")
    return int(first.split()[1]), headers, await reader.readexactly(length)
