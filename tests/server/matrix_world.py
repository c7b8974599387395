"""What the cells of the matrix share: one server outside, one gate, and sessions that are started when a cell first needs them. What runs inside is a loop that starts whatever a cell writes into
its workspace; what happens outside is kept to the byte; what sessions wrote down is read as it grows."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gateway.harness import Quiet, Served, certified
from session.supervised import Place, Terminal, command, share_cache
from session.test_reviewer import Model, reviewer
from stockade.checks import questions
from stockade.core.errors import StockadeError
from stockade.core.frozen import replace
from stockade.core.reviews import Reviewer, ReviewRule
from stockade.core.tools import MountRule, ToolRule
from stockade.core.values import Asking, Environment, Origin, Policy
from stockade.gateway.certs import Authority
from stockade.policy.agents import HOOK
from stockade.session import inbox, kept
from walls.boxes import scratch, until

os.environ["GRPC_VERBOSITY"] = "NONE"
import grpc

if TYPE_CHECKING:
    from server.matrix_requests import Request

PATIENCE = 40.0  # seconds that a cell waits for what has to come
QUICK = 3  # seconds after which a question expires where nobody is to answer it
TOOL = ToolRule("Bash", "ask", (("command", "deploy*"),), origin=Origin("p.toml", 3, "tool[0]"))

# The first process inside: starts what it is told, each as a group of its own, and ends one when it is told.
LOOP = """exec 9<>orders
while read -r -u 9 word name; do
  if [ $word = do ]; then setsid bash jobs/$name > out/$name 2>&1 & echo $! > pid/$name
  else kill -KILL -- -$(cat pid/$name); fi
done"""

# A supervisor that stands still as soon as such an event is on record, and before anything can come of it.
STOPS = """
import os, signal
from stockade.record import ledger
append = ledger.Ledger.append
def then_stop(self, event):
    done = append(self, event)
    if event["kind"] == {kind!r}:
        os.kill(os.getpid(), signal.SIGSTOP)
    return done
ledger.Ledger.append = then_stop
"""

# A program whose approver says what stands in a file, once it is there; told that nobody wants its answer any more, it answers all the same.
PROGRAM = """
import asyncio, json, os, sys
from stockade.core.values import Policy
from stockade.session import live
policy, say, before = json.loads(sys.argv[1])
exec(before)

async def approver(asked):
    while not os.path.exists(f"{say}/{asked.number}"):
        try:
            await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            pass
    with open(f"{say}/{asked.number}") as file:
        word = file.read()
    if word == "raise":
        raise RuntimeError(word)
    return {"once": "once", "session": "session", "refuse": False}.get(word, word)

async def main():
    async with live.open_session(Policy.from_plain(policy), cwd=os.getcwd(), approver=approver) as session:
        await session.exec(sys.argv[2:])

asyncio.run(main())
"""


@dataclass
class Outside:
    """Every server that a request may reach. `came` holds what came in, by the type of request, in order; `touched` how often anything was touched at all."""

    directory: Path
    receipts: Callable[[str, int], int]  # how many requests to this scheme and port were allowed by somebody until now, as the ledgers say
    inside: Callable[[str], list[bytes]]  # what of one folder, by its token, can be seen in any sandbox
    came: list[tuple[str, bytes]] = field(default_factory=list)
    touched: int = 0
    unreceipted: list[bytes] = field(default_factory=list)  # what came before it was on record that it may

    def __post_init__(self) -> None:
        authority = Authority("outside")
        self.roots = self.directory / "roots.pem"
        self.roots.write_text(authority.pem)
        self._counts: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._served = [Served(self._handler("http", "http")), Served(self._handler("star", "http"))]
        self._served += [Served(self._handler("https", "https"), certified(authority, self.directory, "api.localhost"))]
        self._raw = [self._listen(self._websocket), self._listen(self._tcp)]
        self._grpc = grpc.server(futures.ThreadPoolExecutor(4))
        self._grpc.add_generic_rpc_handlers((_Any(self),))
        pair = (authority.leaf_key.encode(), authority.leaf("grpc.localhost").encode())
        ports = [served.server_port for served in self._served] + [sock.getsockname()[1] for sock in self._raw]
        ports += [self._grpc.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))]
        self.ports = dict(zip(("http", "star", "https", "websocket", "tcp", "grpc"), ports, strict=True))
        self._grpc.start()

    def note(self, kind: str, scheme: str, data: bytes) -> None:
        """Something has come in."""
        with self._lock:
            at = (scheme, self.ports[kind])
            self._counts[at] = self._counts.get(at, 0) + 1
            self.came.append((kind, data))
            if self.receipts(*at) < self._counts[at]:
                self.unreceipted.append(data)

    def touch(self) -> None:
        with self._lock:
            self.touched += 1

    def with_token(self, kind: str, token: str) -> list[bytes]:
        """What came in of one request."""
        return [data for name, data in [*self.came] if name == kind and token.encode() in data]

    def calls(self, token: str) -> list[bytes]:
        """What was done by a call of a tool that was allowed."""
        lines = [line for path in self.directory.glob("work-*/called") for line in path.read_bytes().splitlines()]
        return [line for line in lines if line == token.encode()]

    def held(self, token: str) -> list[bytes]:
        """The lines of the files that are held, where the name or the line has it."""
        paths = self.directory.glob("work-*/held/*")
        lines = [f"{path.name} ".encode() + line for path in paths for line in path.read_bytes().splitlines(keepends=True)]
        return [line for line in lines if token.encode() in line]

    def _handler(self, kind: str, scheme: str) -> type[Quiet]:
        outside = self

        class Handler(Quiet):
            def setup(self) -> None:
                outside.touch()
                super().setup()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                outside.note(kind, scheme, f"{self.command} {self.path} ".encode() + body)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.send_header("connection", "close")
                self.end_headers()
                self.close_connection = True

        return Handler

    def _listen(self, talk: Callable[[socket.socket], None]) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    self.touch()
                    threading.Thread(target=one, args=(connection,), daemon=True).start()

        def one(connection: socket.socket) -> None:
            with contextlib.suppress(OSError), connection:
                connection.settimeout(PATIENCE)
                talk(connection)

        threading.Thread(target=serve, daemon=True).start()
        return listener

    def _websocket(self, connection: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1) or b"\r\n\r\n"
        path = head.split(b" ")[1]
        self.note("websocket", "http", path)
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        data = b""
        while piece := connection.recv(4096):
            data += piece
            if data.endswith(b"\n"):
                self.came.append(("websocket", path + b" " + data))
                connection.sendall(b"heard\n")

    def _tcp(self, connection: socket.socket) -> None:
        data = b""
        while not data.endswith(b"\n") and (piece := connection.recv(4096)):
            data += piece
        self.note("tcp", "tcp", data)
        connection.sendall(b"heard\n")

    def close(self) -> None:
        for served in self._served:
            served.close()
        for sock in self._raw:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._grpc.stop(0).wait()


class _Any(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Answers every method of one call and one answer."""

    def __init__(self, outside: Outside) -> None:
        self._outside = outside

    def service(self, details: Any) -> Any:
        self._outside.touch()

        def call(message: bytes, _: Any) -> bytes:
            self._outside.note("grpc", "https", f"{details.method} ".encode() + message)
            return b"heard"

        return grpc.unary_unary_rpc_method_handler(call)


class Ledgers:
    """Every event that any session has recorded, read as they come. `events` is in the order of each session."""

    def __init__(self, top: Path) -> None:
        self._top, self._read = top, {}  # type: ignore[var-annotated]
        self._lock = threading.RLock()
        self._events: list[dict[str, Any]] = []

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        with self._lock:
            for path in sorted(self._top.rglob("*")) if self._top.exists() else ():
                if not path.is_file():
                    continue
                with path.open("rb") as file:
                    file.seek(self._read.get(path, 0))
                    data = file.read()
                whole = data[: data.rfind(b"\n") + 1]
                self._read[path] = self._read.get(path, 0) + len(whole)
                for line in whole.splitlines():
                    with contextlib.suppress(ValueError):
                        found = json.loads(line)
                        if isinstance(found, dict):
                            self._events.append(found.get("event", found))
            return [one for one in self._events if not kinds or one.get("kind") in kinds]

    def allowed(self, scheme: str, port: int) -> int:
        """How many requests somebody's word let out until now."""
        return sum(approved(one) and (one.get("scheme"), one.get("port")) == (scheme, port) for one in self.events("egress"))


def approved(event: dict[str, Any]) -> bool:
    """Whether it is what an approval lets happen."""
    return event.get("effect") == "allow" and str(event.get("rule", "")).startswith("approved: ")


def key(event: dict[str, Any]) -> str:
    """What an effect's question has as its key."""
    if event["kind"] in ("file", "mount"):
        return f"{event['kind']} {event['path']}"
    return f"tool {event['tool']} {event['digest']}" if event["kind"] == "tool" else questions.key(event)


def digest(event: dict[str, Any]) -> str:
    """The digest of the question about what this is the receipt of."""
    if event["kind"] == "file.write":
        facts = {"kind": "file", **{name: event[name] for name in ("path", "before", "after")}}
    else:
        found = os.stat(event["source"])
        facts = {"kind": "mount", "source": event["source"], "target": event["target"], "identity": (found.st_dev, found.st_ino)}
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def wrong(events: list[dict[str, Any]]) -> list[str]:
    """What of one session's events, in their order, nobody allowed: an effect needs an answer of its own before it that allows, to a question about just that; and an answer that nobody gave needs an
    approval for the session that holds. What the supervisor does itself it does by a person's word for once, after a receipt that names the question and has its digest."""
    asked: dict[int, dict[str, Any]] = {}
    answered: set[int] = set()
    leave: dict[str, int] = {}  # by key: how many effects may still follow
    standing: set[str] = set()
    mine: set[int] = set()  # what people have approved once, and nothing was done by yet
    done: list[str] = []  # keys of what the supervisor has on record as about to be done
    found = []
    for event in events:
        if event["kind"] == "ask":
            asked[event["ask"]] = event
        elif event["kind"] == "answer":
            about = asked.get(event["ask"])
            if about is None or event["ask"] in answered:
                found.append(f"an answer to nothing: {event}")
                continue
            answered.add(event["ask"])
            if event["effect"] == "allow":
                if event["outcome"] not in ("approved", "earlier") or (event["outcome"] == "earlier" and about["key"] not in standing):
                    found.append(f"nobody said so: {event}")
                leave[about["key"]] = leave.get(about["key"], 0) + 1
                if about.get("action") in ("file", "mount"):
                    if (event["by"], event["scope"], event["outcome"]) != ("person", "once", "approved"):
                        found.append(f"not theirs to say: {event}")
                    mine.add(event["ask"])
                if event["scope"] == "session" and event["outcome"] == "approved":
                    standing.add(about["key"])
        elif event["kind"] == "approval.revoke":
            standing.discard(event["key"])
        elif event["kind"] in ("file.write", "mount.add"):
            if event["ask"] not in mine or digest(event) != asked[event["ask"]]["digest"]:
                found.append(f"nobody allowed just this: {event}")
            mine.discard(event["ask"])
            done.append(asked[event["ask"]]["key"])
        elif event["kind"] in ("egress", "tool", "file", "mount") and approved(event):
            if event["kind"] in ("file", "mount"):
                if key(event) not in done:
                    found.append(f"it was done before its receipt: {event}")
                else:
                    done.remove(key(event))
            leave[key(event)] = leave.get(key(event), 0) - 1
            if leave[key(event)] < 0:
                found.append(f"nobody allowed it: {event}")
    return found


@dataclass
class Job:
    """Something that runs inside."""

    session: Session
    name: str

    @property
    def path(self) -> Path:
        return self.session.work / "out" / self.name

    def result(self) -> str:
        """What it printed, once it is done."""
        assert until(lambda: self.text().endswith("done\n"), PATIENCE), (self.text(), self.session.world.recent())
        return self.text()

    def text(self) -> str:
        return self.path.read_text(errors="replace") if self.path.exists() else ""

    def kill(self) -> None:
        """Its client gives up."""
        self.session.order(f"stop {self.name}")


class Session:
    """One running session of some kind. `terminal` is its user's, if it has one; `say` where its program's approver reads."""

    def __init__(self, world: World, kind: str, *, quick: bool = False, stops: str = "") -> None:
        self.world, self.work = world, world.place.root / f"work-{uuid.uuid4().hex[:8]}"
        for name in ("jobs", "out", "pid", "held"):
            (self.work / name).mkdir(parents=True)
        os.mkfifo(self.work / "orders")
        self.say = world.place.root / f"say-{self.work.name}"
        self.say.mkdir()
        corner = copy.copy(world.place)
        corner.work = self.work
        policy, before = world.policy(kind, quick), STOPS.format(kind=stops) if stops else ""
        argv = ("/bin/bash", "-c", LOOP)
        self.terminal: Terminal | None = None
        self.run: subprocess.Popen[bytes] | None = None
        if kind == "terminal":
            self.terminal = Terminal(corner, (), words=command(policy, argv, tty=None, before=before))
            self.terminal.resize(300, 40)
        elif kind == "program":
            from stockade.core.frozen import plain

            words = [sys.executable, "-c", PROGRAM, json.dumps([plain(policy), str(self.say), before]), *argv]
            self.run = subprocess.Popen(words, cwd=self.work, env=corner.env, stdin=subprocess.DEVNULL, stdout=world.log, stderr=world.log)
        else:
            words = command(policy, argv, before=before)
            self.run = subprocess.Popen(words, cwd=self.work, env=corner.env, stdin=subprocess.DEVNULL, stdout=world.log, stderr=world.log)
        self._left: Any = None
        assert until(self._found, PATIENCE), self.ended
        self.id = str(self._left.id)

    def _found(self) -> bool:
        found = [left for left in kept.sessions() if left.workspace == str(self.work) and left.lives]
        self._left = found[0] if found else None
        return bool(found)

    @property
    def pid(self) -> int:
        return self.terminal.pid if self.terminal is not None else self.run.pid if self.run is not None else 0

    @property
    def ended(self) -> bool:
        """Whether its supervisor is gone."""
        if self.run is not None:
            return self.run.poll() is not None
        assert self.terminal is not None
        if self.terminal.code is None:
            pid, status = os.waitpid(self.terminal.pid, os.WNOHANG)
            self.terminal.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.terminal.code is not None

    @property
    def stopped(self) -> bool:
        """Whether its supervisor stands still."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [one for one in self.world.ledgers.events(*kinds) if one.get("session") == self.id]

    def order(self, line: str) -> None:
        pipes: list[int] = []

        def open_there() -> bool:
            with contextlib.suppress(OSError):  # nobody reads it: not yet, or not any more (fifo(7))
                pipes.append(os.open(self.work / "orders", os.O_WRONLY | os.O_NONBLOCK))
            return bool(pipes)

        assert until(open_there, PATIENCE), (self.id, self.ended, self.world.recent())
        with open(pipes[0], "w") as pipe:
            pipe.write(f"{line}\n")

    def do(self, script: str) -> Job:
        """Have it run inside. What its terminal has shown until now is forgotten."""
        if self.terminal is not None:
            self.terminal.drain()
        return self._do(script)

    def _do(self, script: str) -> Job:
        job = Job(self, uuid.uuid4().hex[:8])
        (self.work / "jobs" / job.name).write_text(f"{script}\necho done\n")
        self.order(f"do {job.name}")
        return job

    def look(self, token: str) -> Job | None:
        """Have somebody inside write down what the folders with this token hold; None if nobody is inside any more."""
        lists = f'for one in /srv/*{token}*/*; do if [ -e "$one" ]; then name=${{one%/*}}; echo "${{name##*/}} $(cat "$one")"; fi; done'
        return None if self.ended else self._do(lists)

    def waiting(self) -> list[dict[str, Any]]:
        """What it asks now."""
        try:
            return list(inbox.of(self._left).asks)
        except StockadeError:
            return []

    def asked(self, *but: int) -> dict[str, Any]:
        """The one question that waits, once it does, beside those with these numbers."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [one for one in self.waiting() if one["number"] not in but]
            return bool(found)

        assert until(there, PATIENCE), self.world.recent()
        (one,) = found
        return one

    def desk(self, asked: dict[str, Any], allow: bool, scope: str = "once") -> str:
        """Answer it by another way: "" or why not."""
        try:
            inbox.answer(inbox.of(self._left), asked, allow, channel="other", scope=scope)
        except StockadeError as error:
            return error.code
        return ""

    def take_back(self, what: str) -> None:
        inbox.revoke(inbox.of(self._left), what)

    def answer_to(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What became of a question, once that is on record."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found[:] = [one for one in self.events("answer") if one["ask"] == asked["number"]]
            return bool(found)

        assert until(there, PATIENCE), (asked, self.world.recent())
        return found[0]

    def close(self) -> None:
        if self.terminal is not None:
            self.terminal.close()
        if self.run is not None:
            self.run.kill()
            self.run.wait()


class World:
    """All of it. `people` is where nobody but people is asked: the full screen, the page and the command line answer there."""

    def __init__(self, root: Path, folders: int = 0) -> None:
        self.place = Place(root)
        self.tokens = [f"t{uuid.uuid4().hex[:10]}" for _ in range(folders)]  # those that are left
        self._offers = tuple(self._offer(token + more) for token in self.tokens for more in ("", "x"))
        share_cache(f"{scratch()}/xdg_cache_home")
        self._patch = pytest.MonkeyPatch()
        self.ledgers = Ledgers(root / "state/stockade/ledger")
        self.outside = Outside(root, self.ledgers.allowed, self._inside)
        for name, value in self.place.env.items():
            self._patch.setenv(name, value)
        self.log = (root / "log").open("wb")
        self.judge = Model("openai")
        words = [sys.executable, "-m", "stockade", "gate", "serve"]
        env = {**self.place.env, "SSL_CERT_FILE": str(self.outside.roots)}
        self._gate = subprocess.Popen(words, env=env, stdout=self.log, stderr=self.log)
        assert until((root / "state/stockade/gate/hall").exists, PATIENCE), self._gate.poll()
        self._sessions: dict[tuple[str, bool], Session] = {}
        self._single: list[Session] = []
        self.expected: dict[str, tuple[Request, int]] = {}  # how often each token's request has to have happened, in the end

    def _offer(self, token: str) -> MountRule:
        """A folder that can be asked for."""
        from server.matrix_requests import offer

        source = self.place.root.resolve() / "offered" / token
        source.mkdir(parents=True)
        (source / "file").write_text(f"body-{token}\n")
        return offer(str(source), token)

    def _inside(self, token: str) -> list[bytes]:
        """What is seen of it in all sandboxes, line by line."""
        jobs = [job for one in (*self._sessions.values(), *self._single) if (job := one.look(token)) is not None]
        return [line.encode() for job in jobs for line in job.result().splitlines(keepends=True)[:-1]]

    def policy(self, kind: str, quick: bool) -> Policy:
        from server.matrix_requests import FILE, REQUESTS

        grants = tuple(grant for one in REQUESTS.values() for grant in one.grants(self.outside.ports))
        given = Policy(
            grants=grants,
            tools=(TOOL,),
            files=(FILE,),
            offers=self._offers,
            approvals=replace(Asking(), timeout=QUICK if quick else 100, per_minute=10_000, refusals=0),
            environment=Environment((), (("HOOK", HOOK),)),
        )
        judges = {
            "rules": Reviewer(allow=(ReviewRule(),)),
            "rules that refuse": Reviewer(deny=(ReviewRule(),)),
            "model": reviewer(self.place.root, self.judge.served.server_port, timeout=60),
        }
        return replace(given, gate="shared", reviewer=judges.get(kind))

    def session(self, kind: str, *, quick: bool = False) -> Session:
        """One that cells share."""
        found = self._sessions.get((kind, quick))
        if found is None or found.ended:
            found = self._sessions[kind, quick] = Session(self, kind, quick=quick)
        return found

    @contextlib.contextmanager
    def single(self, kind: str, *, stops: str = "") -> Iterator[Session]:
        """One that a cell ends. `stops`: it stands still as soon as an event of this kind is on record."""
        self._single.append(Session(self, kind, stops=stops))
        try:
            yield self._single[-1]
        finally:
            self._single[-1].close()

    def calm(self) -> None:
        """Nothing is left waiting for the next cell, whatever has become of this one."""
        for one in self._sessions.values():
            for asked in one.waiting():
                one.desk(asked, False)

    def recent(self) -> list[dict[str, Any]]:
        """For whoever reads why a test failed."""
        return self.ledgers.events()[-12:]

    def close(self) -> list[str]:
        """End it all. What was wrong in any session."""
        found = [line for one in (*self._sessions.values(), *self._single) for line in wrong(one.events())]
        found += [f"it came before its receipt: {data!r}" for data in self.outside.unreceipted]
        for token, (request, times) in self.expected.items():  # also of what came late
            happened = request.effects(self.outside, token)
            found += [] if sorted(happened) == sorted(request.sent(token) * times) else [f"{token}: {happened} instead of {times}"]
        for one in self._sessions.values():
            one.close()
        self._gate.send_signal(signal.SIGTERM)
        self._gate.wait(20)
        self.judge.served.close()
        self.outside.close()
        self.log.close()
        self._patch.undo()
        return found
