"""The gate's process: doorman and Envoy as children, the brain here. If any of them ends, all end, and the door has nobody behind it.

Descriptor 3 is the line to the supervisor, 4 and up are the door's sockets in the order of `listeners` in the configuration.
Order of the start: doorman (before any secret), Envoy (needs longest), then the imports of the brain, whose CA certificate is sent before Envoy is up.
"""

from __future__ import annotations

import os
import sys

from stockade.gateway import engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from stockade.gateway.flow import Judge

CONTROL = 3
FIRST_LISTENER = 4
STREAMS = {"http-proxy": "proxy", "http": "http", "https": "https"}
_ENGINE_DEADLINE = 10.0  # seconds until Envoy must listen


def serve(judge: type[Judge]) -> NoReturn:
    """Be the gate until the supervisor hangs up or a part ends. `judge` makes the one who decides from the configuration. Never returns."""
    engine.harden()
    told, tell = os.pipe()
    doorman = engine.fork(lambda: _doorman(told, tell))
    os.close(told)
    directory = ""
    children = [doorman]
    try:
        config = _first_line()
        directory = _directory()
        listeners = [(FIRST_LISTENER + number, item["kind"]) for number, item in enumerate(config["listeners"])]
        for descriptor in (CONTROL, tell, *(fd for fd, _ in listeners)):
            os.set_inheritable(descriptor, False)
        children.append(_start_engine(config, directory))
        _run(config, judge, directory, children, tell, listeners)
    except BaseException as error:
        _complain(f"{type(error).__name__}: {error}")
    finally:
        _end(children, directory, 1)


def _doorman(told: int, tell: int) -> None:
    """In the child: wait for the word that the engine listens, then serve."""
    os.close(CONTROL)
    os.close(tell)
    import json

    from stockade.gateway import doorman

    with os.fdopen(told, "rb", buffering=0) as pipe:
        order = json.loads(pipe.readline())
        doorman.serve(order["session"], {int(fd): path for fd, path in order["listeners"].items()}, pipe.fileno())


def _first_line() -> dict[str, Any]:
    """The configuration, byte by byte so that nothing after it is swallowed; it may be large, so in chunks while no newline can be in them."""
    import json
    import socket

    line = bytearray()
    with socket.socket(fileno=os.dup(CONTROL)) as control:
        control.setblocking(True)
        while not line.endswith(b"\n"):
            peeked = control.recv(1 << 16, socket.MSG_PEEK)
            if not peeked:
                raise EOFError("the supervisor hung up before it sent the configuration")
            end = peeked.find(b"\n") + 1
            line += control.recv(end or len(peeked))
    config = json.loads(line)
    if not isinstance(config, dict):
        raise ValueError("the configuration is not an object")
    return config


def _directory() -> str:
    """A private directory for the Unix sockets; /tmp is private to the gate's own box."""
    path = f"/tmp/gate-{os.getpid()}-{os.urandom(4).hex()}"
    os.mkdir(path, 0o700)
    return path


def _start_engine(config: dict[str, Any], directory: str) -> int:
    import json

    from stockade.gateway.config import bootstrap

    injected = tuple(credential["header"] for credential in config["credentials"].values())
    plan = bootstrap(directory=directory, upstream_ca=config["upstream_ca"], injected=injected)
    path = f"{directory}/envoy.json"
    with open(path, "w") as file:
        json.dump(plan, file)
    return engine.start(config["envoy"], path)


def _run(
    config: dict[str, Any],
    judge: type[Judge],
    directory: str,
    children: list[int],
    tell: int,
    listeners: list[tuple[int, str]],
) -> None:
    def leave(status: int) -> None:
        """At once: nothing is worth waiting for when a part or the supervisor is gone."""
        _end(children, directory, status)

    from stockade.gateway.certs import Authority

    authority = Authority(config["session"])
    os.write(CONTROL, b'{"ca":' + _quoted(authority.pem) + b"}\n")

    import asyncio
    import json
    import socket

    from stockade.gateway import broker, doorman
    from stockade.gateway.brain import Brain, Ledger, Question

    serving = False

    def cut() -> None:
        if serving:  # before that there is no connection, and the doorman waits for its first order
            os.write(tell, doorman.CUT)

    async def main() -> None:
        nonlocal serving
        loop = asyncio.get_running_loop()
        ledger = Ledger(lambda: leave(0), lambda positions: brain.revoke(positions))
        await loop.create_connection(lambda: ledger, sock=socket.socket(fileno=CONTROL))
        for child in children:
            watch = os.pidfd_open(child)
            loop.add_reader(watch, leave, 1)
        secrets = {name: (item["header"].lower(), broker.written(item)) for name, item in config["credentials"].items()}
        brain = Brain(config["session"], judge(config), ledger, authority, secrets, cut)
        await loop.create_unix_server(lambda: Question(brain.authorise), f"{directory}/brain.sock")
        await loop.create_unix_server(lambda: Question(brain.authorise, whole=True), f"{directory}/reader.sock")
        await loop.create_unix_server(lambda: Question(brain.secret), f"{directory}/certificates.sock")
        streams = {}
        for descriptor, kind in listeners:
            if kind in STREAMS:
                streams[descriptor] = f"{directory}/{STREAMS[kind]}.sock"
            elif kind == "dns-udp":
                brain.serve_datagrams(socket.socket(fileno=descriptor))
            elif kind == "dns-tcp":
                await asyncio.start_server(brain.serve_stream, sock=socket.socket(fileno=descriptor), limit=1 << 17)
            else:
                raise ValueError(f"no such kind of listener: {kind}")
        await _listening(sorted(set(streams.values())))
        os.write(tell, json.dumps({"session": config["session"], "listeners": streams}).encode() + b"\n")
        serving = True
        for descriptor in streams:
            os.close(descriptor)
        ledger.tell({"ready": True})
        await asyncio.Event().wait()

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
        os.write(CONTROL, b'{"failed":' + _quoted(text[:500]) + b"}\n")
    except OSError:
        sys.stderr = None


def _quoted(text: str) -> bytes:
    import json

    return json.dumps(text).encode()


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
