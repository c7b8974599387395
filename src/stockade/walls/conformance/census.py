"""What a sandbox leaves behind on the host: processes, descriptors, mounts, network interfaces and cgroups, counted before and after."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stockade.core.frozen import frozen
from stockade.walls.limits import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator

_SET, _GET = 36, 37  # PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER of prctl(2)


@contextmanager
def adopting() -> Iterator[None]:
    """Whatever loses its parent below this process becomes a child of this process meanwhile, so that nothing goes unseen."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = ctypes.c_int(0)
    libc.prctl(_GET, ctypes.byref(before), 0, 0, 0)
    libc.prctl(_SET, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_SET, before.value, 0, 0, 0)


def below(top: int) -> dict[int, str]:
    """The living processes below `top`, without itself: host PID and name."""
    return {pid: process.name for pid, process in _below(top).items() if not process.dead}


def known() -> set[int]:
    """Everything below this process, the dead too: they are somebody else's to wait for."""
    return {*_below(os.getpid())}


def living(known: Collection[int] = ()) -> dict[int, str]:
    """The living processes below this one that are not in `known`; takes leave of the dead that are not, which we have adopted."""
    found = {}
    for pid, process in _below(os.getpid()).items():
        if pid in known:
            continue
        if process.dead and process.parent == os.getpid():
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    continue
            except ChildProcessError:
                continue
        elif process.dead:
            continue
        found[pid] = process.name  # one that is dead and cannot be waited for yet has threads that still end
    return found


def more(known: set[int]) -> list[str]:
    """The names of `living`."""
    return sorted({*living(known).values()})


@frozen
class _Process:
    parent: int
    dead: bool
    name: str


def _below(top: int) -> dict[int, _Process]:
    every = _every()
    children: dict[int, list[int]] = {}
    for pid, process in every.items():
        children.setdefault(process.parent, []).append(pid)
    found: dict[int, _Process] = {}
    waiting = [top]
    while waiting:
        fresh = [pid for pid in children.get(waiting.pop(), ()) if pid not in found and pid != top]
        found |= {pid: every[pid] for pid in fresh}
        waiting += fresh
    return found


def _every() -> dict[int, _Process]:
    """Every process that can be seen, by the parent that it names: the lists of children are whole only while those stand still (proc_pid_task(5)).

    They are read one after the other. Where somebody's parent is missing it has ended meanwhile, and whoever has its children now may have been read before. So
    all are read again, unless the same are without a parent again, which are hidden from us then (hidepid of proc(5)).
    """
    before: set[int] | None = None
    while True:
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
            try:
                with open(f"/proc/{pid}/stat", "rb") as file:
                    name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
                    state, parent = rest.split()[:2]
            except (OSError, ValueError):
                continue
            found[pid] = _Process(int(parent), state in (b"Z", b"X"), name.decode("utf-8", "replace"))
        orphans = {pid for pid, process in found.items() if process.parent and process.parent not in found}
        if not orphans or orphans == before:
            return found
        before = orphans


def descriptors() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))


def mounts() -> set[str]:
    """The mounts of this process' mount namespace (proc_pid_mountinfo(5)), without the numbers that change."""
    with open("/proc/self/mountinfo") as file:
        return {" ".join(line.split()[3:]) for line in file}


def interfaces() -> set[str]:
    """The network interfaces of this process' network namespace: an end of a wire to a sandbox is one (veth(4))."""
    return {name for _, name in socket.if_nameindex()}


def groups(pids: Iterable[int]) -> set[str]:
    """The cgroups (directories) that these processes are in and this one is not (cgroups(7): a line `number:controllers:path` of /proc/PID/cgroup)."""
    return {place for pid in pids for place in _groups(pid)} - _groups(os.getpid())


def _groups(pid: int) -> set[str]:
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return set()
    found = [(controllers, path) for _, controllers, path in lines if path != "/"]  # where everybody is who has just ended
    return {place for controllers, path in found for place in (f"{ROOT}/{controllers}{path}", f"{ROOT}{path}") if os.path.isdir(place)}


def until(true: Callable[[], object], seconds: float) -> bool:
    """Wait until `true()` is, for at most so long; whether it became so."""
    late = time.monotonic() + seconds
    while not true():
        if time.monotonic() > late:
            return False
        time.sleep(0.02)
    return True
