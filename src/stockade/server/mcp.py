"""The server of `stockade tools`: the Model Context Protocol for one sandbox at a time, and on standard input and output (streamable.py has it over HTTP).

Source: the specification's revision 2025-06-18 (lifecycle, stdio, cancellation, tools). It decides nothing and runs nothing: a call becomes a command of a live session, or an error.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import deque
from contextlib import AsyncExitStack, suppress
from typing import TYPE_CHECKING, Any

from stockade import __version__
from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.server import rpc
from stockade.server.rpc import BAD_PARAMS, BUSY, INVALID, NO_METHOD, Call, Fault, Ident
from stockade.server.tools import TOOLS, Answer
from stockade.session.live import LiveSession, SessionEnded, open_session

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.core.values import Policy

    Send = Callable[[bytes], None]

REVISIONS = ("2025-06-18", "2025-03-26", "2024-11-05")  # of the protocol; what we use of them is the same in all
MOST = 64  # calls at once
BACKLOG = 4 << 20  # bytes of answers that nobody has read; nothing more is taken from a client meanwhile
PIECE = 64 << 10
INSTRUCTIONS = (
    "These tools work inside one stockade sandbox; nothing of them runs on the host. Commands start in the workspace, which outlives the sandbox; "
    "/tmp and the home inside do not. Where a tool says that the sandbox is gone, restart gives a new one."
)
ANEW = "Nothing was run on the host, and nothing will be. The tool `restart` starts a new sandbox: /tmp, the home inside and running commands are gone, the workspace stays."


class Sandbox:
    """The session that tools run in, and the one that comes after it. `tell` is given a line for people."""

    def __init__(self, policy: Policy, cwd: str, tell: Callable[[str], None]) -> None:
        self._policy, self._cwd, self._tell = policy, cwd, tell
        self._stack = AsyncExitStack()
        self._renewing = asyncio.Lock()
        self._opening: asyncio.Task[LiveSession] | None = None
        self._restarting: asyncio.Task[LiveSession] | None = None

    def begin(self) -> asyncio.Task[LiveSession]:
        """Start the first session, unless that was done."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(self._open())
        return self._opening

    async def _open(self) -> LiveSession:
        try:
            session = await self._stack.enter_async_context(open_session(self._policy, cwd=self._cwd))
        except StockadeError as error:
            self._tell(f"the sandbox could not be started: {error.message}")
            raise
        self._tell(f"session {session.id}: tools run in {session.workspace}")
        return session

    async def current(self) -> LiveSession:
        """The session, once it stands. Raises StockadeError: why there is none."""
        return await asyncio.shield(self.begin())

    async def restart(self) -> LiveSession:
        """Another session instead of this one, whatever has become of it. Raises StockadeError: why there is none now. Goes on to its end when it is cancelled.

        Whoever wants another one while one is being made gets that one: what is asked for and cancelled without end never piles up, and `close` waits for one at most.
        """
        if self._restarting is None or self._restarting.done():
            self._restarting = asyncio.ensure_future(self._restart())
        return await asyncio.shield(self._restarting)

    async def _restart(self) -> LiveSession:
        async with self._renewing:
            await asyncio.wait([self.begin()])
            await self._end()
            self._opening = None
            return await self.current()

    async def close(self) -> None:
        """End everything inside."""
        async with self._renewing:
            if self._opening is not None:
                self._opening.cancel()
                await asyncio.wait([self._opening])
                await self._end()

    async def _end(self) -> None:
        if self._opening is not None and not self._opening.cancelled():
            self._opening.exception()  # it was told when it happened
        try:
            await self._stack.aclose()
        except StockadeError as error:
            self._tell(f"the end of the session: {error.message}")


class Server:
    """Answers the messages of one client, each by the `send` that came with it, which is given whole lines. Calls of tools run beside one another."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._calls: dict[Ident, asyncio.Task[None]] = {}
        self._changing = asyncio.Lock()  # an edit reads a file and then writes it

    @property
    def running(self) -> int:
        """How many calls of tools run."""
        return len(self._calls)

    def take(self, message: Call | Fault, send: Send) -> asyncio.Task[None] | None:
        """Act upon one message, and give the call of a tool that it has started, which is answered when that ends (or not at all: it was cancelled). Never raises, and never waits."""
        try:
            if isinstance(message, Fault):
                raise message
            if message.ident is None:
                self._notified(message)
            elif message.method == "tools/call":
                return self._call(message, message.ident, send)
            else:
                send(rpc.result(message.ident, _said(message)))
        except Fault as fault:
            ident = message.ident if fault.ident is None else fault.ident
            send(rpc.error(Fault(fault.code, str(fault), ident)))
        return None

    def _notified(self, message: Call) -> None:
        if message.method == "notifications/initialized":
            self._sandbox.begin()  # not before the client was answered: a first start can take seconds
        wanted = message.params.get("requestId")
        if message.method == "notifications/cancelled" and isinstance(wanted, str | int) and not isinstance(wanted, bool):
            call = self._calls.pop(wanted, None)  # it may be over already
            if call is not None:
                call.cancel()

    def _call(self, message: Call, ident: Ident, send: Send) -> asyncio.Task[None]:
        name = message.params.get("name")
        if not isinstance(name, str) or name not in TOOLS:
            raise Fault(BAD_PARAMS, f"there is no tool {str(name)[:100]!r}; there are: {', '.join(TOOLS)}")
        arguments = TOOLS[name].arguments(message.params.get("arguments", {}))
        if ident in self._calls:
            raise Fault(INVALID, "a call with this id is running")
        if len(self._calls) >= MOST:
            raise Fault(BUSY, f"{MOST} calls are running already; wait for one of them")
        task = asyncio.ensure_future(self._answer(ident, name, arguments, send))
        self._calls[ident] = task
        task.add_done_callback(lambda done: self._calls.pop(ident) if self._calls.get(ident) is done else None)
        return task

    async def _answer(self, ident: Ident, name: str, arguments: dict[str, Any], send: Send) -> None:
        try:
            answer = await self._run(name, arguments)
        except Fault as fault:
            send(rpc.error(Fault(fault.code, str(fault), ident)))
            return
        except StockadeError as error:
            gone = isinstance(error, SessionEnded | WallFailed | CannotEnforce)
            answer = Answer((f"{error.message} ({error.code}). {error.hint} {ANEW if gone else ''}".strip(),), True)
        except Exception as error:  # INVARIANT: a bug of ours is an error of this call; it runs nothing, and the next call is answered
            answer = Answer((f"a bug in stockade, please report it: {type(error).__name__}: {error}",), True)
        send(rpc.result(ident, {"content": [{"type": "text", "text": text} for text in answer.blocks], "isError": answer.failed}))

    async def _run(self, name: str, arguments: dict[str, Any]) -> Answer:
        run = TOOLS[name].run
        if run is None:
            session = await self._sandbox.restart()
            return Answer((f"a new sandbox stands: session {session.id}, workspace {session.workspace}",))
        session = await self._sandbox.current()
        if name not in ("write", "edit"):
            return await run(session, **arguments)
        async with self._changing:
            return await run(session, **arguments)

    async def close(self) -> None:
        """End all calls, unanswered."""
        calls = [*self._calls.values()]
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def _said(message: Call) -> dict[str, Any]:
    """The answer to what asks for no tool to be run. Raises Fault."""
    match message.method:
        case "initialize":
            wanted = message.params.get("protocolVersion")
            return {
                "protocolVersion": wanted if wanted in REVISIONS else REVISIONS[0],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "stockade", "version": __version__},
                "instructions": INSTRUCTIONS,
            }
        case "ping":
            return {}
        case "tools/list":
            return {"tools": [tool.described(name) for name, tool in TOOLS.items()]}
        case _:
            raise Fault(NO_METHOD, f"there is no method {message.method[:100]!r}")


class Output:
    """Writes to a descriptor without ever holding up the loop, which watches over the sandbox. `gone` is called when nobody reads any more."""

    def __init__(self, fd: int, gone: Callable[[], None], drained: Callable[[], None]) -> None:
        self._fd, self._gone, self._drained = fd, gone, drained
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self.size = 0
        if not os.isatty(fd):  # a terminal's is everybody's
            os.set_blocking(fd, False)

    def send(self, line: bytes) -> None:
        """Write a line, now or when there is room."""
        self._waiting.append(memoryview(line))
        self.size += len(line)
        if len(self._waiting) == 1:
            self._write()
            if self._waiting:
                self._loop.add_writer(self._fd, self._write)

    def _write(self) -> None:
        while self._waiting:
            try:
                count = os.write(self._fd, self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self._waiting.clear()
                self._gone()
                break
            self.size -= count
            if count < len(self._waiting[0]):
                self._waiting[0] = self._waiting[0][count:]
            else:
                self._waiting.popleft()
        self._loop.remove_writer(self._fd)
        self._drained()


async def serve(policy: Policy, cwd: str, stdin: int, stdout: int, tell: Callable[[str], None]) -> None:
    """Serve until the input ends, nobody reads the output, or SIGTERM, SIGINT or SIGHUP. Everything inside has ended then."""
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, over.set)
    lines = rpc.Lines()

    def receive() -> None:
        try:
            data = os.read(stdin, PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(stdin)
            over.set()
        for message in lines.feed(data):
            server.take(message, output.send)
        if output.size > BACKLOG:
            loop.remove_reader(stdin)

    def listen() -> None:
        if not over.is_set():
            with suppress(FileExistsError):
                loop.add_reader(stdin, receive)

    output = Output(stdout, over.set, listen)
    sandbox = Sandbox(policy, cwd, tell)
    server = Server(sandbox)
    try:
        try:
            listen()
        except PermissionError as error:  # epoll(7) knows no regular files
            raise StockadeError(
                "standard input has to be a pipe, a socket or a terminal",
                code="tools.input",
                hint="An MCP client starts this server by itself.",
            ) from error
        await over.wait()
    finally:
        loop.remove_reader(stdin)
        await server.close()
        await sandbox.close()
