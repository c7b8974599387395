"""A program of ours that runs beside a session and holds nobody up: it takes lines, and says some. What cannot be handed over at once is not handed over."""

from __future__ import annotations

import os
from select import PIPE_BUF
from typing import TYPE_CHECKING

from stockade.core.loop import READ, Loop

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_ended: list[int] = []  # those that were let go, and may not have been waited for


class Errand:
    """Started at once, in a session of its own (setsid(2)), so that no signal of the terminal reaches it. `heard` is called with what it has said, as it comes."""

    def __init__(self, argv: list[str], environment: Mapping[str, str], loop: Loop, heard: Callable[[bytes], None]) -> None:
        self._loop, self._heard = loop, heard
        theirs, self._into = os.pipe2(os.O_CLOEXEC)
        self._said, other = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._into, False)
        actions = [
            (os.POSIX_SPAWN_DUP2, theirs, 0),
            (os.POSIX_SPAWN_DUP2, other, 1),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        try:
            self._pid = os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True, setsigdef=range(1, 32), setsigmask=())
        except OSError:
            os.close(self._into)
            os.close(self._said)
            raise
        finally:
            os.close(theirs)
            os.close(other)
        loop.watch(self._said, READ, self._hear)

    def tell(self, line: bytes) -> bool:
        """Hand over one line, whole or not at all (pipe(7): up to PIPE_BUF bytes). False: it is too long, or there is no room, or nobody is there any more."""
        if len(line) > PIPE_BUF:
            return False
        try:
            return os.write(self._into, line) == len(line)
        except OSError:
            return False

    def _hear(self, _events: int) -> None:
        said = os.read(self._said, 4096)
        if said:
            self._heard(said)
        else:
            self._loop.forget(self._said)

    def close(self) -> None:
        """Hand over nothing more. It finishes what it has, and ends by itself; nobody waits for it."""
        self._loop.forget(self._said)
        os.close(self._into)
        os.close(self._said)
        _ended.append(self._pid)
        for pid in [*_ended]:
            try:
                over = os.waitpid(pid, os.WNOHANG)[0] == pid
            except ChildProcessError:
                over = True
            if over:
                _ended.remove(pid)


def run(argv: Sequence[str], seconds: float) -> str:
    """Run a program to its end with nothing to read and nowhere to write. "" when it ended well, else why not."""
    import subprocess

    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else f"{argv[0]} ended with status {done.returncode}"
