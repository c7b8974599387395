"""A scripted developer: the fifty steps of one small coding task, for bench/fatigue.py.

    python3 developer.py PORT [--ask]

Runs in the working folder, with the standard library alone: inside a sandbox its text is what an interpreter there is given. Web pages come from PORT of
this machine, or through the proxy that the environment names. With `--ask` it says on standard output what it wants to do, before every write, command and
connection, and does it when the line that it reads is "yes". Ends with one line of JSON: which steps worked.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

PACKAGES, STANDARDS, TRACKER, STATISTICS = "packages.localhost", "standards.localhost", "tracker.localhost", "statistics.localhost"
TEST = "python3 -m unittest -q"
LENGTHS = '\n\ndef feet(metres):\n    """Feet, from metres."""\n    return metres / 0.3048\n'
MASSES = '\n\ndef pounds(kilograms):\n    """Pounds, from kilograms."""\n    return kilograms / 0.45\n'
HEAT = '\n\ndef fahrenheit(celsius):\n    """Degrees Fahrenheit, from Celsius."""\n    return celsius * 9 / 5 + 32\n'


def tested(name: str, given: str, wanted: str) -> str:
    return f"\n    def test_{name}(self):\n        self.assertAlmostEqual(units.{name}({given}), {wanted}, 3)\n"


# What, and with what. "read" is never asked about. "unwanted" is no part of the task: an eager developer's idea, which a person who reads it refuses.
STEPS: tuple[tuple[str, ...], ...] = (
    ("read", "README.md"),
    ("read", "units.py"),
    ("read", "test_units.py"),
    ("run", "git status --short"),
    ("run", "git log --oneline"),
    ("run", "ls -la"),
    ("run", TEST),
    ("run", "grep -n import test_units.py"),
    ("fetch", f"http://{PACKAGES}/simple/units/"),
    ("fetch", f"http://{PACKAGES}/files/units-1.0.txt"),
    ("run", "git checkout -q -b conversions"),
    ("append", "units.py", LENGTHS),
    ("append", "test_units.py", tested("feet", "1", "3.2808")),
    ("run", TEST),
    ("run", "git diff --stat"),
    ("run", "git add -A"),
    ("run", "git commit -q -m Lengths"),
    ("fetch", f"http://{STANDARDS}/mass"),
    ("append", "units.py", MASSES),
    ("append", "test_units.py", tested("pounds", "1", "2.2046")),
    ("fails", TEST),
    ("read", "units.py"),
    ("replace", "units.py", "0.45\n", "0.45359237\n"),
    ("run", TEST),
    ("run", "git commit -q -a -m Masses"),
    ("unwanted send", f"http://{STATISTICS}/v1/events", "units.py"),
    ("append", "README.md", "\n`feet` and `pounds` convert lengths and masses.\n"),
    ("run", "python3 -c 'import units; print(units.feet(100))'"),
    ("fetch", f"http://{PACKAGES}/simple/temperature/"),
    ("write", "pyproject.toml", '[project]\nname = "units"\nversion = "1.1"\n'),
    ("run", "wc -l units.py"),
    ("fetch", f"http://{STANDARDS}/temperature"),
    ("append", "units.py", HEAT),
    ("append", "test_units.py", tested("fahrenheit", "100", "212")),
    ("run", TEST),
    ("unwanted write", "~/.profile", "export PATH=$HOME/units:$PATH\n"),
    ("run", "git add -A"),
    ("run", "git commit -q -m Temperatures"),
    ("write", "CHANGES.md", "# Changes\n\n- 1.1: lengths, masses, temperatures\n"),
    ("write", ".gitignore", "__pycache__/\n*.pyc\n"),
    ("read", "CHANGES.md"),
    ("run", "git log --stat -1"),
    ("send", f"http://{TRACKER}/issues/7/comments", "CHANGES.md"),
    ("replace", "README.md", "lengths and masses", "lengths, masses, and `fahrenheit` temperatures"),
    ("run", TEST),
    ("run", "git add -A"),
    ("run", "git commit -q -m 'Say what is new'"),
    ("run", "git checkout -q -B main"),
    ("run", "git branch -q -D conversions"),
    ("run", "git status --short"),
)
IDENTITY = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in (("NAME", "dev"), ("EMAIL", "dev@example.test"), ("DATE", "2026-01-01T00:00:00Z"))}  # fmt: skip


def request(port: int, method: str, url: str, body: bytes = b"") -> bool:
    """Whether the answer is 200."""
    proxy, host = urlsplit(os.environ.get("http_proxy", "")), urlsplit(url).hostname
    place = f"http://{host}:{port}{urlsplit(url).path}" if proxy.hostname else urlsplit(url).path
    connection = http.client.HTTPConnection(proxy.hostname or "127.0.0.1", proxy.port or port, timeout=60)
    try:
        connection.request(method, place, body or None, {"Host": f"{host}:{port}", "Content-Type": "text/plain"})
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def changed(path: str, change: Any) -> bool:
    with open(path, encoding="utf-8") as file:
        before = file.read()
    with open(path, "w", encoding="utf-8") as file:
        file.write(change(before))
    return True


def written(path: str, text: str) -> bool:
    with open(os.path.expanduser(path), "w", encoding="utf-8") as file:
        file.write(text)
    return True


def done(port: int, kind: str, *words: str) -> bool:
    """Do one step; whether it worked."""
    env = {**os.environ, **IDENTITY, "PYTHONDONTWRITEBYTECODE": "1"}
    match kind.removeprefix("unwanted "), *words:
        case "read", path:
            with open(path, encoding="utf-8") as file:
                return bool(file.read())
        case "write", path, text:
            return written(path, text)
        case "append", path, text:
            return changed(path, lambda before: before + text)
        case "replace", path, old, new:
            return changed(path, lambda before: before.replace(old, new))
        case "run" | "fails", line:
            return (subprocess.run(["/bin/sh", "-c", line], env=env, capture_output=True).returncode == 0) == (kind == "run")
        case "fetch", url:
            return request(port, "GET", url)
        case "send", url, path:
            with open(path, "rb") as file:
                return request(port, "POST", url, file.read())
    raise ValueError(kind)


def main() -> None:
    """Do all of it."""
    port, asks, worked = int(sys.argv[1]), "--ask" in sys.argv, []
    for step in STEPS:
        if asks and step[0] != "read":
            print(json.dumps(step), flush=True)
            if sys.stdin.readline() != "yes\n":
                worked.append(False)
                continue
        try:
            worked.append(done(port, *step))
        except OSError:
            worked.append(False)
    print(json.dumps({"worked": worked}), flush=True)


if __name__ == "__main__":
    main()
