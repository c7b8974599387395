"""A sandbox stands still, and goes on: every process of it is stopped from outside.

By SIGSTOP, which no process can catch, block or ignore (signal(7)), so that neither a privilege nor a cgroup is needed and a guest's kernel has no say: the
processes that it consists of are stopped like any others. What runs inside may see that time has passed, and a parent there that a child was stopped.
"""

from __future__ import annotations

import os
import signal
import time

from stockade.core.errors import WallFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Process = tuple[int, bytes]  # its number, and when it began: numbers come again

PATIENCE = 2.0  # seconds in which everything must stand still; it takes milliseconds
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
