"""What a sandbox leaves behind on the host: processes, descriptors, mounts, network interfaces and cgroups, counted before and after."""

from __future__ import annotations

import ctypes
import os
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stockade.walls.limits import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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
    found: dict[int, str] = {}
    waiting = _children(top)
    while waiting:
        pid = waiting.pop()
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                name, _, rest = file.read().partition(b"(")[2].rpartition(b")")
        except OSError:
            continue
        if rest.split()[0] in (b"Z", b"X"):
            continue
        found[pid] = name.decode("utf-8", "replace")
        waiting += _children(pid)
    return found


def known() -> set[int]:
    """Everything below this process, the dead too: they are somebody else's to wait for."""
    return {*below(os.getpid()), *_children(os.getpid())}


def more(known: set[int]) -> list[str]:
    """The names of the living processes below this one that are not in `known`; takes leave of the dead that are not, which we have adopted."""
    for pid in set(_children(os.getpid())) - known:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            pass
    return sorted({name for pid, name in below(os.getpid()).items() if pid not in known})


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        pass
    return found


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
    return {place for _, controllers, path in lines for place in (f"{ROOT}/{controllers}{path}", f"{ROOT}{path}") if os.path.isdir(place)}


def until(true: Callable[[], object], seconds: float) -> bool:
    """Wait until `true()` is, for at most so long; whether it became so."""
    late = time.monotonic() + seconds
    while not true():
        if time.monotonic() > late:
            return False
        time.sleep(0.02)
    return True
