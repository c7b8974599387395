"""The gate's process: doorman and engine as children, the brain here. If any of them ends, all end, and every door has nobody behind it.

Descriptor 3 is the socket on which sessions are introduced (gateway/sessions.py); when it is hung up, the gate is over.
Order of the start: doorman (before any secret), the engine (needs longest), then the imports of the brain.
"""

from __future__ import annotations

import os
import sys

from stockade.gateway import engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from stockade.gateway.flow import Judge

INTRODUCTIONS = 3
# Of connections that have not been taken yet: what comes beyond fails at once, whosever it is, and in a moment in which the brain is busy that may be many.
_BACKLOG = 4096
_ENGINE_DEADLINE = 20.0  # seconds until the engine must listen; mitmproxy takes some of them on a busy machine


def serve(judge: type[Judge], found: str, upstream_ca: str) -> NoReturn:
    """Be the gate until nobody can come any more, or a part ends. `judge` makes the one who decides, from a session's configuration; `found` is the
    engine as `engine.find` names it, `upstream_ca` a PEM file of the roots that it trusts. Never returns."""
    import _socket

    engine.harden()
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
    orders, obeyed = ours.detach(), theirs.detach()
    doorman = engine.fork(lambda: _doorman(obeyed, orders))
    os.close(obeyed)
    directory = ""
    children = [doorman]
    try:
        os.set_inheritable(INTRODUCTIONS, False)
        directory = _directory()
        log, output = os.pipe()
        children.append(_start_engine(found, upstream_ca, directory, output))
        os.close(output)
        _run(judge, directory, children, orders, log)
    except BaseException as error:
        _complain(f"{type(error).__name__}: {error}")
    finally:
        _end(children, directory, 1)


def _doorman(obeyed: int, orders: int) -> None:
    """In the child."""
    os.close(INTRODUCTIONS)
    os.close(orders)
    import json  # noqa: F401  what it imports later, now: afterwards it can read no file
    import resource  # noqa: F401  as above
    import select  # noqa: F401  as above
    import socket

    from stockade.gateway import doorman, enclose

    enclose.doorman()
    doorman.serve(socket.socket(fileno=obeyed))


def _directory() -> str:
    """A private directory for the Unix sockets; /tmp is private to the gate's own box."""
    path = f"/tmp/gate-{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(path, 0o700)
    return path


def _start_engine(found: str, upstream_ca: str, directory: str, output: int) -> int:
    if found == engine.MITMPROXY:
        return engine.start_fallback(upstream_ca, directory, output)

    import json

    from stockade.gateway.config import bootstrap

    path = f"{directory}/envoy.json"
    with open(path, "w") as file:
        json.dump(bootstrap(directory=directory, upstream_ca=upstream_ca), file)
    return engine.start(found, upstream_ca, directory, output)


def _run(judge: type[Judge], directory: str, children: list[int], orders: int, log: int) -> None:
    def leave(status: int) -> None:
        """At once: nothing is worth waiting for when a part is gone, or nobody can come any more."""
        _end(children, directory, status)

    import asyncio
    import contextlib
    import socket
    from concurrent.futures import ThreadPoolExecutor

    from stockade.gateway import enclose
    from stockade.gateway.certs import Authority
    from stockade.gateway.questions import Question
    from stockade.gateway.raw import Raw
    from stockade.gateway.resolve import THREADS
    from stockade.gateway.sessions import STREAMS, Log, Sessions, introductions

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(THREADS))  # for lookups of names, and nothing else
        for child in children:
            loop.add_reader(os.pidfd_open(child), leave, 1)
        listening: asyncio.Future[None] = loop.create_future()
        introduced = socket.socket(fileno=INTRODUCTIONS)

        def changed(count: int) -> None:
            with contextlib.suppress(OSError):  # whoever does not read it does not want to know
                introduced.send(str(count).encode())

        authority = Authority(f"stockade gate {os.urandom(4).hex()}")
        sessions = Sessions(judge, authority, directory, socket.socket(fileno=orders), listening, changed)
        introductions(introduced, sessions, lambda: leave(0))
        await loop.connect_read_pipe(lambda: Log(sessions), os.fdopen(log, "rb", buffering=0))
        await loop.create_unix_server(
            lambda: Question(sessions.authorise, unheard=sessions.unheard), f"{directory}/brain.sock", backlog=_BACKLOG
        )
        await loop.create_unix_server(
            lambda: Question(sessions.authorise, whole=True, unheard=sessions.unheard), f"{directory}/reader.sock"
        )
        await loop.create_unix_server(lambda: Question(sessions.overrun), f"{directory}/meter.sock", backlog=_BACKLOG)
        await loop.create_unix_server(lambda: Question(sessions.secret), f"{directory}/certificates.sock", backlog=_BACKLOG)
        await asyncio.start_unix_server(Raw(sessions).serve, f"{directory}/raw.sock", limit=1 << 16, backlog=_BACKLOG)
        await _listening([f"{directory}/{name}.sock" for name in STREAMS.values()])
        listening.set_result(None)
        await asyncio.Event().wait()

    engine.open_files()  # each session has a line and two sockets for DNS here
    enclose.brain(directory)
    asyncio.run(main())


async def _listening(paths: list[str]) -> None:
    """Wait until the engine listens on all its sockets."""
    import asyncio
    import socket

    async with asyncio.timeout(_ENGINE_DEADLINE):
        for path in paths:
            while True:
                with socket.socket(socket.AF_UNIX) as probe:
                    try:
                        probe.connect(path)
                        break
                    except OSError:
                        pass
                await asyncio.sleep(0.004)


def _complain(text: str) -> None:
    try:
        os.write(2, f"stockade gate: {text}\n".encode(errors="replace"))
    except OSError:
        sys.stderr = None


def _end(children: list[int], directory: str, status: int) -> NoReturn:
    for child in children:
        os.kill(child, 9)  # not reaped before we exit, so the number is still theirs
    try:
        for name in os.listdir(directory) if directory else ():
            os.unlink(f"{directory}/{name}")
        if directory:
            os.rmdir(directory)
    finally:
        os._exit(status)
