"""A page that is served for real, with questions that no session asks: they are kept and answered by the session's own state machine."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from stockade.checks.approvals import Approvals
from stockade.core.asks import Answered, Asked
from stockade.core.errors import StockadeError
from stockade.core.frozen import plain, replace
from stockade.core.values import Asking
from stockade.record.measures import added, approvals
from stockade.server.serve import Server
from stockade.session.inbox import Waiting
from walls.boxes import until


class Questions:
    """What two sessions ask. As session/inbox.py, without the sessions."""

    def __init__(self) -> None:
        self.fresh()

    def fresh(self) -> None:
        self.sessions = {name: Approvals(replace(Asking(), timeout=600, refusals=0)) for name in ("first-session", "second-session")}
        self.answered: list[Answered] = []

    def ask(self, key: str = "GET https://api.example.test/a", session: str = "first-session", **facts: Any) -> Asked:
        machine = self.sessions[session]
        number = machine.take()
        said = {"what": key, "digest": f"{number:064}", "also": "the same until the session ends", "rule": "policy.toml:3", **facts}
        assert machine.ask(Asked(number, "egress", key=key, **said), time.time()) is None
        return machine.pending[number]

    def elsewhere(self, asked: Asked, allow: bool, session: str = "first-session") -> None:
        """Another channel is sooner."""
        self.sessions[session].answer(asked.number, asked.digest, allow, by="person", channel="terminal", now=time.time())

    def waiting(self) -> list[Waiting]:
        found = []
        for name, machine in self.sessions.items():
            machine.expire(time.time())
            asks = tuple({key: value for key, value in plain(one).items() if key != "trap"} for one in [*machine.pending.values()])
            found.append(Waiting(name, "/nowhere", "/home/me/work", asks, tuple(machine.standing)))
        return [one for one in found if one.asks or one.standing]

    def answer(self, one: Waiting, asked: dict[str, Any], allow: bool, *, channel: str, scope: str = "once") -> dict[str, Any]:
        machine = self.sessions[one.session]
        done = machine.answer(asked["number"], asked["digest"], allow, by="person", channel=channel, now=time.time(), scope=scope)  # type: ignore[arg-type]
        self.answered.append(done)
        return plain(done)

    def revoke(self, one: Waiting, key: str) -> None:
        if self.sessions[one.session].revoke(key) is None:
            raise StockadeError("nothing was approved", code="approval.gone")


class Served:
    """The page on a port of its own, in a thread."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions
        self.links: list[str] = []
        self.server = Server(questions, lambda: approvals(added([]).values()), self.links.append)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        assert until(lambda: bool(self.links))
        self.port = urlsplit(self.links[0]).port or 0
        self.room = urlsplit(self.links[0]).path
        self.base = f"http://127.0.0.1:{self.port}{self.room}"

    def enter(self) -> str:
        """What the cookie header of a browser is that came by the link."""
        return self.get(self.links[-1].removeprefix(self.base), {"sec-fetch-site": "none"}).headers["set-cookie"].partition(";")[0]

    def get(self, path: str, headers: dict[str, str]) -> Said:
        return self.call("GET", f"{self.room}{path}", headers)

    def call(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None, address: str = "127.0.0.1") -> Said:
        """One request, with just these headers (and host and length, unless they are among them)."""
        connection = http.client.HTTPConnection(address, self.port, timeout=20)
        try:
            connection.putrequest(method, path, skip_host="host" in headers, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body is not None and "content-length" not in headers and "transfer-encoding" not in headers:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            stream = answer.headers.get_content_type() == "text/event-stream"
            return Said(answer.status, dict(answer.headers), answer.readline() if stream else answer.read())
        finally:
            connection.close()

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


class Said:
    """An answer."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, {name.lower(): value for name, value in headers.items()}, body


@contextmanager
def serving() -> Iterator[Served]:
    served = Served(Questions())
    try:
        yield served
    finally:
        served.close()
