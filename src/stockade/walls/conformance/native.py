"""The control: the same probes without any wall, so that a failure inside means something."""

from __future__ import annotations

import os
import select
import subprocess
from typing import TYPE_CHECKING

from stockade.walls.box import NO_WAIT, Child
from stockade.walls.conformance import probes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class Native:
    """Looks like a box and confines nothing: runs a probe on the host, in a throwaway directory.

    INVARIANT: it starts `/bin/sh -c PROBE sh ARGUMENTS...` where PROBE is a text of `probes.py`, and refuses every other command with ValueError: no
    caller can run a program of its own through this class, and nothing but the conformance suite uses it. It is no wall and no fallback.
    """

    def __init__(self, place: str) -> None:
        """`place` is the throwaway directory in which probes run."""
        self.pid, self.ready, self.dead, self.paused, self.landlock = 0, True, False, False, 0  # there is no process that it is in
        self._place = place
        self._news = select.epoll()
        self._running: dict[int, tuple[Child, subprocess.Popen[bytes]]] = {}
        self._next = 1

    def fileno(self) -> int:
        return self._news.fileno()

    def lend(self, fd: int) -> None:
        raise ValueError("the control lends nothing")

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str = "/",
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        fds: Sequence[int] = (),
        tty: bool = False,
    ) -> Child:
        """Start a probe. `cwd` is not looked at. Raises ValueError for anything but a probe, for descriptors and for a terminal."""
        if tuple(argv[:2]) != ("/bin/sh", "-c") or len(argv) < 4 or argv[2] not in probes.ALL or argv[3] != "sh" or fds or tty:
            raise ValueError("the control runs the suite's own probes and nothing else")
        streams = [fd if fd >= 0 else subprocess.DEVNULL for fd in (stdin, stdout, stderr)]
        process = subprocess.Popen(
            argv, env=dict(env), cwd=self._place, stdin=streams[0], stdout=streams[1], stderr=streams[2],
            start_new_session=True, close_fds=False,  # what is inheritable is inherited: a control shows just that
        )  # fmt: skip
        child = Child(self._next)
        self._next += 1
        child.pid = process.pid
        watched = os.pidfd_open(process.pid)
        self._news.register(watched, select.EPOLLIN)
        self._running[watched] = child, process
        return child

    def signal(self, child: Child, number: int) -> None:
        """Send a signal to the probe's process group."""
        if child.status is None:
            os.killpg(child.pid, number)

    def resize(self, child: Child, source: int, *, fewer: int = 0) -> None:
        """There is no terminal: nothing happens."""

    def pause(self) -> None:
        """The control is never paused. Raises NotImplementedError."""
        raise NotImplementedError

    def resume(self) -> None:
        """It never is: nothing happens."""

    def step(self, flags: int = 0) -> Child | None:
        """Take the news of one probe that ended."""
        ended = self._news.poll(0 if flags & NO_WAIT else -1, 1)
        if not ended:
            raise BlockingIOError
        child, process = self._running.pop(ended[0][0])
        _, child.status = os.waitpid(child.pid, 0)
        process.returncode = child.exit_code  # what waitpid(2) said cannot be asked for twice
        os.close(ended[0][0])
        return child

    def wait(self, child: Child) -> int:
        """Block until `child` ended; its exit code."""
        while child.status is None:
            self.step()
        return child.exit_code

    def close(self) -> int:
        """End all probes that still run. May be called twice."""
        for child, _ in [*self._running.values()]:
            os.killpg(child.pid, 9)
            self.wait(child)
        self._news.close()
        self.dead = True
        return 0
