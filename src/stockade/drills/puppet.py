"""The puppet model: a server that obeys whatever text it reads.

It stands for the worst model there is. Any text it is given (a prompt, a file that a tool printed, a page) may hold marks made by
`instruct`; the puppet asks the agent to run each of them, in the order read, through the agent's own shell tool, and then stops.
It keeps no state between requests: everything it needs is in the conversation that the agent sends back.
"""

from __future__ import annotations

import base64
import http.server
import itertools
import json
from collections.abc import Callable
from typing import Any

from stockade.drills import wire

_serials = itertools.count(1)
SUBMIT = "COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT"  # mini-swe-agent ends when a command prints this


def instruct(command: str) -> str:
    """A mark that the puppet obeys wherever it reads it. Encoded, so that no quoting on the way can change it."""
    return f"[[run:{base64.urlsafe_b64encode(command.encode()).decode()}]]"


def orders(text: str) -> list[str]:
    """The commands that a text orders, in order, each once."""
    found = dict.fromkeys(wire.MARK.findall(text))
    commands = []
    for mark in found:
        try:
            commands.append(base64.urlsafe_b64decode(mark).decode())
        except ValueError:  # half a mark, cut off by an agent that shortens output
            continue
    return commands


def answer(talk: wire.Conversation) -> wire.Reply:
    """What the puppet says next."""
    wanted = orders(talk.text)
    if SUBMIT in talk.text:
        wanted.append(f"echo {SUBMIT}")
    if talk.shell is None or talk.calls >= len(wanted):
        return wire.Reply("The task is done.")
    return wire.Reply(f"Step {talk.calls + 1} of the task.", wanted[talk.calls])


class PuppetHandler(http.server.BaseHTTPRequestHandler):
    """One connection to the puppet. `record` gets every request: method, path, headers (as sent, in order), body."""

    protocol_version = "HTTP/1.1"
    timeout = 30
    record: Callable[[str, str, list[tuple[str, str]], bytes], None] = staticmethod(lambda *_: None)

    def log_message(self, format: str, *args: Any) -> None:
        pass  # a drill prints its own table

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass  # trailers
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _send(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _stream(self, chunks: list[bytes]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("cache-control", "no-cache")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            self.wfile.write(f"{len(chunk):x}\r\n".encode() + chunk + b"\r\n")
        self.wfile.write(b"0\r\n\r\n")

    def do_GET(self) -> None:
        self.record(self.command, self.path, list(self.headers.items()), self._body())
        if self.path.split("?")[0].endswith("/models"):
            self._send(200, {"object": "list", "data": [{"id": "puppet", "object": "model", "type": "model"}], "has_more": False})
        else:
            self._send(404, {"type": "error", "error": {"type": "not_found_error", "message": "the puppet has nothing here"}})

    do_HEAD = do_GET
    do_DELETE = do_GET

    def do_POST(self) -> None:
        body = self._body()
        self.record(self.command, self.path, list(self.headers.items()), body)
        path = self.path.split("?")[0]
        if path.endswith("/messages/count_tokens"):
            return self._send(200, {"input_tokens": 8})
        if path.endswith("/files"):
            return self._send(
                200, {"id": f"file_{next(_serials):08d}", "type": "file", "object": "file", "filename": "upload", "size_bytes": len(body)}
            )
        dialect = wire.dialect_of(self.path)
        if dialect is None:
            return self._send(404, {"type": "error", "error": {"type": "not_found_error", "message": "the puppet has nothing here"}})
        try:
            talk = wire.read(dialect, json.loads(body))
        except (ValueError, TypeError, AttributeError, AssertionError):
            return self._send(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "the puppet cannot read this"}})
        whole = wire.write(talk, answer(talk), next(_serials))
        return self._stream(wire.events(talk, whole)) if talk.stream else self._send(200, whole)

    do_PUT = do_POST
    do_PATCH = do_POST
