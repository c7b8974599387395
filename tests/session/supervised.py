"""A supervisor in a process of its own: what `stockade run` does, without the policy room, so that it can be killed, starved and watched."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stockade.core.frozen import plain
from stockade.core.values import Policy
from stockade.walls.conformance import census
from stockade.walls.terminal import set_size
from walls.boxes import until

DRIVER = """
import json, os, sys
from stockade.core.errors import StockadeError
from stockade.core.values import Policy
from stockade.session import foreground
from stockade.cli import complain
policy, tty, before = json.loads(sys.argv[1])
exec(before)
try:
    end = foreground.run(Policy.from_plain(policy), sys.argv[2:], cwd=os.getcwd(), tty=tty)
except StockadeError as error:
    complain(error, as_json=True)
    sys.exit(error.exit_status)
if end.outcome: sys.stderr.write(f"stockade: the command was ended: {end.outcome}\\n")
sys.exit(end.code)
"""


def command(policy: Policy, argv: Sequence[str], *, tty: bool | None = False, before: str = "") -> list[str]:
    """The driver's argument vector; `before` is Python that runs first (to take something away from it)."""
    return [sys.executable, "-c", DRIVER, json.dumps([plain(policy), tty, before]), *argv]


@dataclass
class Place:
    """A workspace and our own directories, all below one temporary directory, and the environment that says so."""

    root: Path

    def __post_init__(self) -> None:
        self.work = self.root / "work"
        self.home = self.root / "home"
        self.work.mkdir()
        self.home.mkdir()

    @property
    def env(self) -> dict[str, str]:
        keep = {name: os.environ[name] for name in ("PATH", "LANG", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH") if name in os.environ}
        return {
            **keep,
            "HOME": str(self.home),
            "XDG_CACHE_HOME": CACHE or f"{self.root}/cache",
            "XDG_STATE_HOME": f"{self.root}/state",
            "TERM": "xterm",
        }

    @property
    def sessions(self) -> Path:
        return self.root / "state/stockade/sessions"

    def run(
        self,
        *argv: str,
        policy: Policy | None = None,
        stdin: bytes | None = None,
        before: str = "",
        timeout: float = 60,
        tty: bool | None = False,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end with pipes."""
        return subprocess.run(
            command(policy or Policy(), argv, before=before, tty=tty),
            cwd=self.work,
            env=self.env,
            input=stdin,
            capture_output=True,
            timeout=timeout,
        )

    def start(self, *argv: str, policy: Policy | None = None, before: str = "") -> subprocess.Popen[bytes]:
        """Start with pipes and do not wait."""
        return subprocess.Popen(
            command(policy or Policy(), argv, before=before),
            cwd=self.work, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ledger(self) -> list[dict[str, object]]:
        """Every event that was recorded."""
        events = []
        for path in sorted((self.root / "state/stockade/ledger").rglob("*")):
            if path.is_file():
                for line in path.read_bytes().splitlines():
                    try:
                        found = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(found, dict):
                        events.append(found.get("event", found))
        return events


CACHE = ""


def share_cache(path: str) -> None:
    """Compile the filters once for all tests of a process."""
    global CACHE
    CACHE = path


@contextmanager
def adopting() -> Iterator[None]:
    """Orphans of what we start become children of this process, so that none goes unseen; at the end they are waited for."""
    before = set(offspring())
    with census.adopting():
        yield
        assert until(lambda: set(offspring()) <= before, 10), offspring()


def offspring(top: int = 0) -> dict[int, str]:
    """Living processes below `top` (default: this one, and then those that we adopted and that are dead are reaped): pid and command line."""
    found = {}
    for pid in census.below(top) if top else census.living():
        try:
            found[pid] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


class Terminal:
    """A person at a terminal: the supervisor runs as the session leader of a real pty."""

    def __init__(
        self,
        place: Place,
        argv: Sequence[str],
        *,
        tty: bool | None = None,
        before: str = "",
        words: Sequence[str] = (),
        size: tuple[int, int] | None = None,
    ) -> None:
        self.seen = self.whole = b""  # what nobody has expected yet, and all that was read
        program = list(words) or command(Policy(), argv, tty=tty, before=before)
        self.pid, self.master = pty.fork()
        if self.pid == 0:
            try:
                if size is not None:
                    set_size(0, (size[1], size[0], 0, 0))
                os.chdir(place.work)
                os.execve(program[0], program, place.env)
            finally:
                os._exit(120)
        self.code: int | None = None

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def expect(self, pattern: str, seconds: float = 15) -> re.Match[bytes]:
        """Read until `pattern` appears; forgets what came before its end."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern.encode(), self.seen, re.DOTALL)):
            ready = select.select([self.master], [], [], max(0.0, deadline - time.monotonic()))[0]
            try:
                piece = os.read(self.master, 65536) if ready else b""
            except OSError:
                piece = b""
            if not piece:
                raise AssertionError(f"{pattern!r} did not appear; seen: {self.seen[-2000:]!r}")
            self.seen += piece
            self.whole += piece
        self.seen = self.seen[found.end() :]
        return found

    def drain(self) -> None:
        """Forget all that was shown until now."""
        while select.select([self.master], [], [], 0)[0] and os.read(self.master, 65536):
            pass
        self.seen = b""

    def modes(self) -> list[object]:
        import termios

        return termios.tcgetattr(self.master)

    def resize(self, columns: int, lines: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", lines, columns, 0, 0))

    def wait(self, seconds: float = 15) -> int:
        """The exit code; drains what is still written, as a terminal does."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                break
            assert time.monotonic() < deadline, f"still running; seen: {self.seen[-2000:]!r}"
            if self.master >= 0 and select.select([self.master], [], [], 0.02)[0]:
                try:
                    self.seen += os.read(self.master, 65536)
                except OSError:
                    time.sleep(0.02)
            elif self.master < 0:
                time.sleep(0.02)
        return self.code

    def hang_up(self) -> None:
        """The terminal vanishes."""
        os.close(self.master)
        self.master = -1

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        if self.master >= 0:
            os.close(self.master)
