"""What the gate's parts have given up: tried by code that runs where theirs does, first without and then with it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.harness import Upstream, until
from stockade.gateway import enclose, engine
from stockade.gateway.config import bootstrap

pytestmark = pytest.mark.wall

# What code that has taken over a part would try. Prints the names of what worked.
TRIES = """
import os, socket, sys
place, port = sys.argv[2], int(sys.argv[3])
if sys.argv[1] != "loose":
    import json, select, subprocess
    from stockade.gateway import enclose
    own = place + "/own"
    parts = {"doorman": enclose.doorman, "brain": lambda: enclose.brain(own), "fallback": lambda: enclose.fallback(own)}
    parts[sys.argv[1]]()
def read_file(): open("/etc/passwd").read()
def write_file(): open(place + "/new", "w").write("x")
def list_folder(): os.listdir("/")
def start_program():
    pid = os.fork()
    if not pid:
        try: os.execv("/bin/true", ["true"])
        finally: os._exit(9)
    if os.waitpid(pid, 0)[1]: raise OSError
def connect(): socket.create_connection(("127.0.0.1", port), 5)
def listen():
    with socket.socket() as sock: sock.bind(("127.0.0.1", 0)); sock.listen()
def own_socket():
    with socket.socket(socket.AF_UNIX) as sock: sock.bind(place + f"/own/{sys.argv[1]}.sock")
def signal_others(): os.kill(os.getppid(), 0)
for attempt in (read_file, write_file, list_folder, start_program, connect, listen, own_socket, signal_others):
    try: attempt()
    except OSError: continue
    print(attempt.__name__)
"""
ALL = ["read_file", "write_file", "list_folder", "start_program", "connect", "listen", "own_socket", "signal_others"]


@pytest.mark.parametrize(
    ("part", "left"),
    [
        ("loose", ALL),
        ("doorman", []),
        ("brain", ["read_file", "list_folder", "connect", "own_socket", "signal_others"]),
        ("fallback", ["read_file", "list_folder", "connect", "own_socket"]),
    ],
)
def test_what_is_left(tmp_path: Path, part: str, left: list[str]) -> None:
    (tmp_path / "own").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv = [sys.executable, "-c", TRIES, part, str(tmp_path), str(server.getsockname()[1])]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == left, done.stderr


@pytest.mark.parametrize("enclosed", [False, True])
def test_the_engine_writes_no_file(
    engine_binary: str, upstream: Upstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enclosed: bool
) -> None:
    """The real engine, as it is started, told by its configuration to open a log."""
    own, log = tmp_path / "own", tmp_path / "access.log"
    own.mkdir()
    log.touch()  # a right to make files is not what is missing
    plan = bootstrap(directory=str(own), upstream_ca=str(upstream.ca))
    kind = "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog"
    plan["static_resources"]["listeners"][0]["access_log"] = [{"name": "file", "typed_config": {"@type": kind, "path": str(log)}}]
    (own / "envoy.json").write_text(json.dumps(plan))
    if not enclosed:
        monkeypatch.setattr(enclose, "engine", lambda *places: None)
    out, into = os.pipe()
    pid = engine.start(engine_binary, str(upstream.ca), str(own), into)
    os.close(into)
    ended: list[int] = []
    try:
        assert until(lambda: (own / "https.sock").exists() or bool(ended.append(os.waitpid(pid, os.WNOHANG)[0]) or ended[-1]), 15)
        assert (own / "https.sock").exists() is not enclosed
    finally:
        if not any(ended):
            os.kill(pid, 9)
            os.waitpid(pid, 0)
        os.close(out)
