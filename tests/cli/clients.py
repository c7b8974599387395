"""What clients of `stockade tools` do, over pipes and over HTTP. The server is a process of its own; what it wrote for people is in the file `said` of its place."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from session.supervised import Place, offspring, share_cache
from walls.boxes import require, scratch, until

PATIENCE = 120  # seconds for whatever has to come
HELLO = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "0"}}


def fresh(root: Path) -> Place:
    require()
    share_cache(f"{scratch()}/xdg_cache_home")
    return Place(root)


def start(place: Place, *options: str, before: str = "", **pipes: int) -> subprocess.Popen[bytes]:
    """The server; `before` is Python that runs in it first."""
    words = ["-m", "stockade", "tools"]
    if before:
        words = ["-c", f"import sys\n{before}\nfrom stockade.cli import main\nsys.exit(main(['tools', *sys.argv[1:]]))"]
    with (place.root / "said").open("ab") as said:
        return subprocess.Popen([sys.executable, *words, *options], cwd=place.work, env=place.env, stderr=said, **pipes)


class Client(ABC):
    """Answers are kept by their id. `server` is the process."""

    def __init__(self, place: Place, server: subprocess.Popen[bytes]) -> None:
        self.place, self.server, self.last = place, server, 0
        self.seen: dict[object, dict[str, Any]] = {}

    @abstractmethod
    def send(self, message: dict[str, Any]) -> None:
        """Send a message and do not wait for its answer."""

    @abstractmethod
    def wait(self, ident: object) -> None:
        """Wait until there is an answer to a request, or none will come."""

    @abstractmethod
    def close(self) -> int:
        """End the server; its exit status."""

    def begin(self, method: str, **params: object) -> int:
        """Send a request; its id."""
        self.last += 1
        self.send({"jsonrpc": "2.0", "id": self.last, "method": method, "params": params})
        return self.last

    def answer(self, ident: object) -> dict[str, Any]:
        """The answer to a request, whichever come before."""
        self.wait(ident)
        assert ident in self.seen, f"no answer to {ident}; " + (self.place.root / "said").read_text()
        return self.seen.pop(ident)

    def keep(self, line: bytes) -> None:
        """Keep what was answered. It has to be a message."""
        message = json.loads(line)
        assert message["jsonrpc"] == "2.0" and line.isascii()
        self.seen[message["id"]] = message

    def ask(self, method: str, **params: object) -> dict[str, Any]:
        return self.answer(self.begin(method, **params))

    def start(self, name: str, **arguments: object) -> int:
        return self.begin("tools/call", name=name, arguments=arguments)

    def end(self, ident: int) -> tuple[bool, str]:
        """(failed, all text) of a call."""
        found = self.answer(ident)["result"]
        return found["isError"], "\n".join(block["text"] for block in found["content"])

    def call(self, name: str, **arguments: object) -> tuple[bool, str]:
        return self.end(self.start(name, **arguments))

    def good(self, name: str, **arguments: object) -> str:
        failed, text = self.call(name, **arguments)
        assert not failed, text
        return text

    def cancel(self, ident: object) -> None:
        self.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": ident, "reason": "enough"}})


def processes(client: Client, command: str, count: int = 1) -> list[int]:
    """Wait until so many processes below the server run a command; their numbers."""
    found: list[int] = []

    def there() -> bool:
        found[:] = [pid for pid, line in offspring(client.server.pid).items() if line.startswith(command)]
        return len(found) == count

    assert until(there, PATIENCE), offspring(client.server.pid)
    return found


class Piped(Client):
    """Over standard input and output. Every line of the server has to be a message."""

    def __init__(self, place: Place, *options: str, before: str = "") -> None:
        super().__init__(place, start(place, *options, before=before, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        assert self.server.stdout
        self.lines = lines(self.server.stdout.fileno())
        self.hello = self.ask("initialize", **HELLO)
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def write(self, data: bytes) -> None:
        assert self.server.stdin
        self.server.stdin.write(data)
        self.server.stdin.flush()

    def send(self, message: object) -> None:
        self.write(json.dumps(message).encode() + b"\n")

    def wait(self, ident: object) -> None:
        while ident not in self.seen and (line := next(self.lines, b"")):
            self.keep(line)

    def close(self) -> int:
        assert self.server.stdin and self.server.stdout
        self.server.stdin.close()
        try:
            return self.server.wait(PATIENCE)
        finally:
            self.server.kill()
            self.server.wait()
            self.server.stdout.close()


def lines(fd: int) -> Iterator[bytes]:
    """The lines that come out of a pipe, until it ends or none has come for long."""
    held = b""
    while select.select([fd], [], [], PATIENCE)[0] and (piece := os.read(fd, 1 << 16)):
        *whole, held = (held + piece).split(b"\n")
        yield from whole


class Said:
    """An answer of HTTP."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.status, self.headers, self.body = answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()

    @property
    def messages(self) -> list[bytes]:
        """What was answered, in a stream of events or by itself."""
        if not self.headers.get("content-type", "").startswith("text/event-stream"):
            return [self.body] if self.body else []
        return [line.removeprefix(b"data: ") for line in self.body.split(b"\n") if line.startswith(b"data: ")]


class Remote(Client):
    """Over HTTP: a session of its own, with a server of its own or `beside` another. Requests that have to wait do so in threads."""

    def __init__(self, place: Place, *options: str, before: str = "", beside: Remote | None = None) -> None:
        self.file = place.root / "client.json"
        if beside is None:
            super().__init__(place, start(place, "--http", "--mcp-config", str(self.file), *options, before=before))
            assert until(lambda: self.file.exists() or self.server.poll() is not None, PATIENCE) and self.server.poll() is None
        else:
            super().__init__(place, beside.server)
        self.config = json.loads((beside or self).file.read_text())["mcpServers"]["stockade"]
        self.port = urlsplit(self.config["url"]).port or 0
        self.token = self.config["headers"]["Authorization"]
        self.came, self.threads = threading.Condition(), 0
        self.session = ""
        self.hello, self.session = self.opened()
        self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def opened(self) -> tuple[dict[str, Any], str]:
        """A new session: what the server says of itself, and the session's id."""
        said = self.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": HELLO}, mcp_session_id="")
        assert said.status == 200, said.body
        return json.loads(said.body), said.headers["mcp-session-id"]

    def headers(self, **other: str) -> dict[str, str]:
        """Those of a request that counts; "" leaves one out."""
        usual = {
            "host": f"127.0.0.1:{self.port}",
            "authorization": self.token,
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-protocol-version": "2025-06-18",
            "mcp-session-id": self.session,
            **{name.replace("_", "-"): value for name, value in other.items()},
        }
        return {name: value for name, value in usual.items() if value}

    def post(self, message: object, **headers: str) -> Said:
        return self.request(
            "POST", "/mcp", self.headers(**headers), message if isinstance(message, bytes) else json.dumps(message).encode()
        )

    def request(self, method: str, path: str, headers: dict[str, str], body: bytes = b"", address: str = "127.0.0.1") -> Said:
        """One request, with just these headers, and a length unless they say otherwise."""
        connection = http.client.HTTPConnection(address, self.port, timeout=PATIENCE)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if "content-length" not in headers and "transfer-encoding" not in headers:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            return Said(connection.getresponse())
        finally:
            connection.close()

    def connected(self, sent: bytes = b"") -> socket.socket:
        """A connection on which so much was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall(sent)
        return connection

    def send(self, message: dict[str, Any]) -> None:
        if "id" not in message:
            assert self.post(message).status == 202
            return
        self.threads += 1
        threading.Thread(target=self._wait, args=(message,)).start()

    def _wait(self, message: object) -> None:
        found: list[bytes] = []
        try:
            found = self.post(message).messages
        except (OSError, http.client.HTTPException):  # the server was ended
            pass
        finally:
            with self.came:
                for line in found:
                    self.keep(line)
                self.threads -= 1
                self.came.notify_all()

    def wait(self, ident: object) -> None:
        with self.came:
            self.came.wait_for(lambda: ident in self.seen or not self.threads, PATIENCE)

    def close(self) -> int:
        self.server.send_signal(signal.SIGTERM)
        try:
            return self.server.wait(PATIENCE)
        finally:
            self.server.kill()
            self.server.wait()
