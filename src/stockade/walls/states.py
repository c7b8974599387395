"""A sandbox stands still, and goes on; or what it is at a moment is saved, and another goes on from there.

It stands still by SIGSTOP, which no process can catch, block or ignore (signal(7)), so that neither a privilege nor a cgroup is needed and a guest's kernel has no say: the
processes that it consists of are stopped like any others. What runs inside may see that time has passed, and a parent there that a child was stopped.

Saving is done by the guest's own kernel (`runsc checkpoint`), asked by a process that is held by what holds that kernel. So only a guest can be saved.
"""

from __future__ import annotations

import os
import signal
import time

from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.walls import limits, native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Process = tuple[int, bytes]  # its number, and when it began: numbers come again

PATIENCE = 2.0  # seconds in which everything must stand still; it takes milliseconds
FILES = ("checkpoint.img", "pages.img", "pages_meta.img")  # what runsc 20240729 writes
_STILL = frozenset(b"TtZX")  # stopped, traced and stopped, dead (proc_pid_stat(5))
_WAITS = ord("D")  # in the kernel, where no signal reaches it: it is stopped before it runs on


def stop(bwrap: int, *, first: bool) -> frozenset[Process]:
    """Stop the processes below a bubblewrap, parents before children; `first` says whether also the first of them, the sandbox's init.

    Returns those that did not stand still before. Raises WallFailed (`pause.restless`) when some do not within `PATIENCE`; all go on then.
    """
    stopped: set[Process] = set()
    late = time.monotonic() + PATIENCE
    before: set[int] | None = None
    while True:
        quiet, seen = True, set()
        for process, states in _below(bwrap, first):
            if states is None:  # it has just ended, and its children are somebody else's now
                quiet = False
                continue
            seen.add(process[0])
            moving = states - _STILL
            if not moving:
                continue
            # Sent again each time: whoever is not stopped yet can have made it go on.
            quiet = quiet and moving == {_WAITS} and process in stopped
            try:
                os.kill(process[0], signal.SIGSTOP)
            except ProcessLookupError:
                quiet = False
                continue
            stopped.add(process)
        if quiet and seen == before:  # twice the same: nobody was missed who changed parents meanwhile
            return frozenset(stopped)
        if time.monotonic() > late:
            go_on(bwrap, frozenset(stopped))
            raise WallFailed(
                f"the sandbox does not stand still within {PATIENCE:g} s",
                code="pause.restless",
                hint="It was not paused and goes on. End it, if it must not run.",
            )
        before = seen
        time.sleep(0.001)


def go_on(bwrap: int, stopped: frozenset[Process]) -> None:
    """Let the processes that `stop` has stopped go on, children before parents: a parent then finds no child stopped."""
    for process, _ in reversed([*_below(bwrap, True)]):
        if process in stopped:
            try:
                os.kill(process[0], signal.SIGCONT)
            except ProcessLookupError:
                pass


def _below(bwrap: int, first: bool) -> Iterator[tuple[Process, frozenset[int] | None]]:
    """The processes below a bubblewrap, parents before children, with the states of their threads; None for one that has ended meanwhile."""
    waiting = [(child, first) for child in _threads(bwrap)[1]]
    for pid, wanted in waiting:
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                process = pid, file.read().rpartition(b") ")[2].split()[19]
            states, children = _threads(pid)
        except (OSError, IndexError):
            yield (pid, b""), None
            continue
        waiting += [(child, True) for child in children]
        if wanted:
            yield process, states


def _threads(pid: int) -> tuple[frozenset[int], list[int]]:
    """The states of a process' threads, and the processes that they have made. Raises OSError when it ends meanwhile."""
    states, children = set(), []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/stat", "rb") as file:
                state = file.read().rpartition(b") ")[2][0]
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                children += [int(child) for child in file.read().split()]
        except (FileNotFoundError, ProcessLookupError):  # a thread that ends runs until then
            state = ord("R")
        states.add(state)
    if not states:
        raise ProcessLookupError(pid)
    return frozenset(states), children


def parts(bwrap: int) -> tuple[int, ...]:
    """Descriptors (pidfd_open(2)) of the processes without which what stands below a bubblewrap is no guest: its kernel, and who opens its files. Each is readable
    once that has ended. runsc ends the guest by itself then, but not while it stands still. Raises WallFailed (`wall.died`) when one is gone by now.
    """
    try:
        children = limits.children(limits.init_of(bwrap))
    except FileNotFoundError:
        children = []
    found: list[int] = []
    for pid in children:
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if file.read(1):  # what runsc has started; orphans of the guest's kernel have no arguments left
                    found.append(os.pidfd_open(pid))
        except (FileNotFoundError, ProcessLookupError):
            continue
    if len(found) < 2:
        for fd in found:
            os.close(fd)
        raise lost()
    return tuple(found)


def lost(why: str = "") -> WallFailed:
    """The error for a guest of which a part has ended."""
    what = why or "its kernel, or the process that opens its files, is gone"
    return WallFailed(f"the sandbox ended: {what}", code="wall.died", hint="`stockade doctor` tries each part of the wall.")


def unable(wall: str) -> CannotEnforce:
    """The error for a wall that cannot save what runs in it."""
    return CannotEnforce(
        f"the {wall} wall cannot save or restore what runs in it: its processes are the host kernel's",
        code="checkpoint.wall",
        hint='Use the gVisor wall: wall = "gvisor". Pausing works on both.',
    )


class Saving:
    """A guest on its way into a directory: `fileno()` is readable once it is there, or has failed; then `done` says which."""

    def __init__(self, bwrap: int, directory: int, words: Sequence[str], filters: Sequence[int]) -> None:
        """`words` are what to run in the namespaces of the sandbox below `bwrap`; takes `filters` over. Raises WallFailed."""
        self._said = os.memfd_create("checkpoint", os.MFD_CLOEXEC)
        try:
            arguments = ["enter", str(limits.init_of(bwrap)), str(directory), *map(str, filters), "--", *words]
            self._pid = native.spawn(arguments, [directory, *filters], self._said)
            self._process = os.pidfd_open(self._pid)
        except BaseException:
            os.close(self._said)
            raise
        finally:
            for fd in filters:
                os.close(fd)

    def fileno(self) -> int:
        return self._process

    def done(self) -> None:
        """Wait for the end. Raises StockadeError (`checkpoint.held`) when something in there cannot be saved, WallFailed (`checkpoint.failed`)."""
        os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
        # One that was killed has left whom it waited for, in its group; the number is nobody else's until the last of them is waited for. A PID namespace does not
        # end before everybody in it was, and we may be who adopts it.
        try:
            os.killpg(self._pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        _, status = os.waitpid(self._pid, 0)
        try:
            while True:
                os.waitpid(-self._pid, 0)
        except ChildProcessError:
            pass
        said = os.pread(self._said, 1 << 16, 0).decode("utf-8", "replace")
        os.close(self._process)
        os.close(self._said)
        if status == 0:
            return
        if "is not savable" in said:
            raise StockadeError(
                "a process inside still holds a stream of a command, which ends outside and cannot be saved",
                code="checkpoint.held",
                hint="End the command and what it left in the background, or start that with its three streams redirected inside. The session goes on.",
            )
        words = "".join(letter if letter.isprintable() else " " for letter in said.partition("goroutine ")[0])[:300].strip()
        raise WallFailed(
            f"the guest could not be saved: {words or f'status {status}'}", code="checkpoint.failed", hint="Nothing is left of it."
        )
