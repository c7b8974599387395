"""Whatever part of the gate dies or falls silent, in the middle of anything: a refusal or an end, never a way out."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import threading
import time
from pathlib import Path

import pytest

from gateway.harness import Gate, Upstream, running

pytestmark = pytest.mark.wall


def gone(pid: int, within: float = 5.0) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("part", ["brain", "engine", "doorman"])
def test_one_dead_part_ends_all(carrier: str, upstream: Upstream, tmp_path: Path, part: str) -> None:
    with running(tmp_path, upstream, kind=carrier) as gate:
        parts = gate.children()
        assert set(parts) == {"brain", "engine", "doorman"}
        assert gate.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
        upstream.requests.clear()
        os.kill(parts[part], signal.SIGKILL)
        assert all(gone(pid) for pid in parts.values())
        assert gate.ended.wait(5)
        for _, sock in gate.listeners:
            sock.close()  # what the supervisor does with the door of a gate that has gone
        assert gate.curl(f"https://api.localhost:{upstream.port}/v1/x").returncode != 0
        assert not upstream.requests


def test_the_supervisor_hanging_up_ends_all_at_once(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream) as gate:
        parts = gate.children()
        gate.hang_up()
        assert gate.process.wait(1.0) == 0
        assert all(gone(pid, 1.0) for pid in parts.values())
        assert not list(Path("/tmp").glob(f"gate-{parts['brain']}-*"))


def test_no_part_leaves_a_core_dump(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream, kind=carrier) as gate:
        for pid in gate.children().values():
            [line] = [line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if line.startswith("Max core file size")]
            assert line.split()[4:6] == ["0", "0"]
            assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()


def test_a_silent_brain_refuses(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    """Stopped between the handshake and the request, the brain answers nothing: so nothing goes out."""
    with running(tmp_path, upstream) as gate:
        context = ssl.create_default_context(cafile=str(gate.ca_file))
        connection = socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 30)
        connection.sendall(f"CONNECT api.localhost:{upstream.port} HTTP/1.1\r\nHost: api.localhost:{upstream.port}\r\n\r\n".encode())
        connection.recv(4096)
        with context.wrap_socket(connection, server_hostname="api.localhost") as tls:
            upstream.requests.clear()
            brain = gate.children()["brain"]
            os.kill(brain, signal.SIGSTOP)
            try:
                tls.sendall(f"GET /v1/x HTTP/1.1\r\nHost: api.localhost:{upstream.port}\r\n\r\n".encode())
                assert tls.recv(4096).split()[1] == b"503"
            finally:
                os.kill(brain, signal.SIGCONT)
        assert not upstream.requests


@pytest.mark.parametrize("part", ["brain", "engine", "doorman"])
def test_killed_in_the_middle_of_a_download(engine_binary: str, upstream: Upstream, tmp_path: Path, part: str) -> None:
    with running(tmp_path, upstream) as gate:
        done: list[int] = []
        url = f"https://api.localhost:{upstream.port}/v1/big/{4 << 30}"
        caller = threading.Thread(target=lambda: done.append(gate.curl(url, "-o", "/dev/null").returncode))
        caller.start()
        time.sleep(0.6)
        os.kill(gate.children()[part], signal.SIGKILL)
        caller.join(5)
        assert done and done[0] != 0


def test_a_bad_configuration_is_told(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    gate = Gate(tmp_path, tmp_path / "no-such-ca.pem", (), kind=carrier)
    try:
        assert gate.ended.wait(10)
        assert not gate.ready.is_set()
        assert gate.process.wait(5) != 0
    finally:
        gate.close()
