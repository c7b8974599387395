"""A gate that is there to learn what would be asked: it looks at every request, and lets out nothing that is not granted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.harness import Upstream, running
from stockade.core.values import Grant
from walls.boxes import require

pytestmark = pytest.mark.wall


def test_it_sees_method_and_path_and_nothing_leaves(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    grants = (Grant("api.localhost", paths=("/v1/**",), port=upstream.port, private=True),)
    with running(tmp_path, upstream, grants, learning=True) as gate:
        before = upstream.connections
        done = gate.curl(f"https://open.localhost:{upstream.port}/public/x?q=1", "-d", "data")
        assert done.stdout.endswith("[403]") and "host-not-granted" in done.stdout
        assert gate.curl(f"https://other.localhost:{upstream.port}/p", "--http2").stdout.endswith("[403]")
        assert gate.curl(f"http://open.localhost:{upstream.plain_port}/p").stdout.endswith("[403]")
        assert upstream.connections == before
        seen = [
            (one["method"], one["host"], one.get("path"), one.get("query"))
            for one in gate.events
            if one["kind"] == "egress" and one["effect"] == "deny"
        ]
        assert ("POST", "open.localhost", "/public/x", 1) in seen and ("GET", "other.localhost", "/p", 0) in seen
        assert gate.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")


@pytest.mark.parametrize("target", ["127.0.0.1:443", "[::1]:443", "evil..test:443", "user@evil.test:443"])
def test_what_is_no_name_is_still_refused_at_connect(engine_binary: str, upstream: Upstream, tmp_path: Path, target: str) -> None:
    with running(tmp_path, upstream, (), learning=True) as gate:
        got = gate.send(gate.ports["http-proxy"], f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        assert got.startswith((b"HTTP/1.1 403", b"HTTP/1.1 400"))


def test_the_command_proposes_and_applies_nothing(engine_binary: str, tmp_path: Path) -> None:
    require()
    work = tmp_path / "work"
    work.mkdir()
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    learn = [sys.executable, "-m", "stockade", "policy", "learn"]
    script = "echo spoken; curl -s -o /dev/null -d x https://api.example.com/v1/x; exit 3"
    done = subprocess.run([*learn, "--json", "--", "sh", "-c", script], cwd=work, env=env, capture_output=True, text=True, timeout=60)
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["exit"] == 3 and "spoken" in done.stderr
    assert [(one["requests"], 'paths = ["/v1/x"]' in one["rule"]) for one in found["proposals"]] == [(1, True)]
    assert not (tmp_path / ".config").exists()
    out = tmp_path / "proposed.toml"
    words = [*learn, "--from-nothing", "--output", str(out), "--", "sh", "-c", script]
    assert subprocess.run(words, cwd=work, env=env, capture_output=True, timeout=60).stdout == b""
    out.write_text("version = 1\n" + out.read_text())
    assert subprocess.run([*learn[:-1], "check", str(out)], cwd=work, env=env, capture_output=True).returncode == 0
    assert subprocess.run(words, cwd=work, env=env, capture_output=True, timeout=60).returncode == 125  # it exists by now
