"""What a sandbox may use, and by which mechanism: cgroups where we may make them, else rlimits and a watchdog.

cgroup v2 (Documentation/admin-guide/cgroup-v2.rst) where the tree is delegated to us, v1 where we are its owner (root). `Usage` is read from /proc
of the sandbox's own process tree: every process in it descends from its init, and an orphan is adopted by that init.
"""

from __future__ import annotations

import os
import time

from stockade.core.frozen import frozen, replace
from stockade.core.values import Enforced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Limits
    from stockade.walls.contract import Wall

ROOT = "/sys/fs/cgroup"
STALE = 60.0  # seconds after which an empty group of ours is what a killed supervisor left
ENDING = 2.0  # seconds that the kernel may take to end what was killed
INTERVAL = 0.25  # seconds between two looks of the watchdog
TASKS, KERNEL_TASKS = 2, 128  # what gVisor (systrap) makes of a process, and has itself: threads of the host; more than was seen
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


class Groups:
    """The cgroups of one sandbox: directories of ours, `descriptors` of their process lists to join, `close()` removes them."""

    def __init__(self) -> None:
        self.directories: list[str] = []
        self.descriptors: list[int] = []
        self.held: set[str] = set()

    def killed(self) -> bool:
        """Whether the kernel has ended something because memory was used up (memory.events of v2, memory.oom_control of v1)."""
        for directory in self.directories:
            for name in ("memory.events", "memory.oom_control"):
                try:
                    with open(f"{directory}/{name}") as file:
                        if any(line.startswith("oom_kill ") and int(line.split()[1]) for line in file):
                            return True
                except OSError:
                    continue
        return False

    def close(self) -> None:
        """Remove the groups; what is still inside must have ended."""
        for fd in self.descriptors:
            os.close(fd)
        for directory in self.directories:
            try:
                os.rmdir(directory)
            except OSError:  # a process that is just ending: a later session sweeps empty groups
                pass
        for parent in {os.path.dirname(directory) for directory in self.directories}:
            _sweep(parent)
        self.descriptors, self.directories = [], []


# When we last looked through each parent: a program with hundreds of sessions must not do it at the end of each.
_swept: dict[str, float] = {}


def _sweep(parent: str) -> None:
    """Remove empty groups of sessions that were killed; a group with processes in it cannot be removed, and a young one may be about to get some."""
    if time.monotonic() - _swept.get(parent, -STALE) < STALE:
        return
    _swept[parent] = time.monotonic()
    for name in os.listdir(parent):
        if name.startswith("stockade-"):
            try:
                if time.time() - os.stat(f"{parent}/{name}").st_mtime > STALE:
                    os.rmdir(f"{parent}/{name}")
            except OSError:
                pass


def join(name: str, limits: Limits, own_kernel: bool = False) -> Groups:
    """Make what cgroups we may make for a sandbox called `name`; `held` says which limits ("processes", "memory") they hold.

    With `own_kernel` the guest's kernel counts the guest's processes, and the group what that kernel makes of them here.
    """
    groups = Groups()
    most = guest_tasks(limits) if own_kernel else limits.processes
    wanted: list[tuple[str, tuple[tuple[str, str, int], ...]]] = []
    try:
        with open("/proc/self/cgroup") as file:
            ours = {line.split(":")[1]: line.rstrip("\n").split(":", 2)[2] for line in file}
    except (OSError, IndexError):
        return groups
    if "" in ours and os.path.exists(f"{ROOT}/cgroup.controllers"):
        parent = os.path.dirname(f"{ROOT}{ours['']}")
        wanted.append((parent, (("processes", "pids.max", most), ("memory", "memory.max", limits.memory))))
    elif os.geteuid() == 0:
        # Below our own group, so that what holds us holds the sandbox too.
        wanted.append((f"{ROOT}/pids{ours.get('pids', '')}", (("processes", "pids.max", most),)))
        wanted.append((f"{ROOT}/memory{ours.get('memory', '')}", (("memory", "memory.limit_in_bytes", limits.memory),)))
    for parent, files in wanted:
        directory = f"{parent}/{name}"
        try:
            os.mkdir(directory)
        except OSError:
            continue
        groups.directories.append(directory)
        try:
            held = set()
            for rule, file_name, value in files:
                if value:
                    with open(f"{directory}/{file_name}", "w") as file:
                        file.write(str(value))
                    held.add(rule)
            # v1: a thread that moves itself skips the lock that moving a whole process takes, and with it 8 ms of waiting for RCU.
            # `launch` has one thread. In v2 only cgroup.procs moves into such a group.
            members = "cgroup.procs" if os.path.exists(f"{ROOT}/cgroup.controllers") else "tasks"
            groups.descriptors.append(os.open(f"{directory}/{members}", os.O_WRONLY | os.O_CLOEXEC))
            groups.held |= held
        except OSError:
            os.rmdir(groups.directories.pop())
    return groups


def outside(limits: Limits, wall: Wall) -> Limits:
    """The limits as they hold around a sandbox of that wall: it may take some memory itself."""
    return replace(limits, memory=limits.memory and limits.memory + wall.OVERHEAD)


def guest_tasks(limits: Limits) -> int:
    """How many threads of the host a guest's processes and its kernel may come to; 0 = no limit."""
    return limits.processes and limits.processes * TASKS + KERNEL_TASKS


@frozen
class Usage:
    """What a sandbox uses now: processes, bytes of memory, seconds of CPU."""

    processes: int
    memory: int
    cpu: float


def usage(init: int, enough: int = 0, *, precise: bool = False) -> Usage:
    """Read the process tree below `init` (a host PID); stops counting once `enough` processes were seen. Processes that end meanwhile count as nothing.

    Pages that a fork shares count for each process, unless `precise`: then the kernel divides them (Pss of proc(5)), which costs it a walk of every
    page table.
    """
    waiting, seen, memory, ticks = [init], 0, 0, 0
    while waiting and (not enough or seen <= enough):
        pid = waiting.pop()
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                fields = file.read().rsplit(b") ", 1)[1].split()
            size = _shared_out(pid) if precise else _resident(pid)
            waiting += children(pid)
        except (OSError, ValueError, IndexError):
            continue
        seen += 1
        ticks += sum(int(value) for value in fields[11:15])  # utime, stime, cutime, cstime of proc(5)
        memory += size
    return Usage(seen, memory, ticks / TICKS)


def children(pid: int) -> list[int]:
    """The processes that a process has made and not waited for, by any of its threads (proc_pid_task(5)). Raises OSError when it has ended."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        try:
            with open(f"/proc/{pid}/task/{task}/children", "rb") as file:
                found += map(int, file.read().split())
        except (FileNotFoundError, ProcessLookupError):  # a thread that ends hides nobody else's
            continue
    return found


def _resident(pid: int) -> int:
    with open(f"/proc/{pid}/statm", "rb") as file:
        _, resident, shared, *_ = file.read().split()
    return (int(resident) - int(shared)) * PAGE


def _shared_out(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return next(int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss:"))
    except (OSError, StopIteration):  # init hides its memory from everybody
        return _resident(pid)


def left(limits: Limits, held: set[str], own_kernel: bool = False) -> Limits | None:
    """The limits that somebody has to look at, None if a kernel holds them all."""
    processes = 0 if own_kernel or "processes" in held else limits.processes
    watched = replace(limits, processes=processes, memory=0 if "memory" in held else limits.memory)
    return watched if watched.processes or watched.memory or watched.cpu_time else None


def exceeded(init: int, limits: Limits, held: set[str], own_kernel: bool = False) -> str:
    """Look at the tree below `init` once; which limit it exceeds, as a sentence, or "". With `own_kernel` the guest's memory is memory that its kernel shares
    with the guest's processes, and what counts is every page of it.
    """
    watched = left(limits, held, own_kernel)
    if watched is None:
        return ""
    used = usage(init, watched.processes, precise=own_kernel and watched.memory > 0)
    if not own_kernel and 0 < watched.memory < used.memory:
        used = usage(init, watched.processes, precise=True)
    return over(watched, used, held)


def init_of(bwrap: int) -> int:
    """The host PID of the sandbox's init: bubblewrap's only child. 0 while there is none."""
    try:
        with open(f"/proc/{bwrap}/task/{bwrap}/children") as file:
            return int((file.read().split() or ["0"])[0])
    except OSError:
        return 0


def end_below(bwrap: int) -> None:
    """Kill the first process below a bubblewrap: with it goes everything in its PID namespace (pid_namespaces(7))."""
    if first := init_of(bwrap):
        try:
            os.kill(first, 9)
        except ProcessLookupError:
            pass


def end_orphans(bwrap: int) -> None:
    """Kill what a bubblewrap that was killed has left, and wait until it is gone; nobody may have waited for it yet.

    Its first process dies with it only once everything is mounted (`--die-with-parent`). Until then it is found by its session: bubblewrap leads one, which that
    process never leaves, and the number is nobody else's while either is there (setsid(2)).
    """
    import select
    import signal

    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        if pid == bwrap or _session(pid) != bwrap:
            continue
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if _session(pid) == bwrap:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                poll = select.poll()
                poll.register(process, select.POLLIN)
                poll.poll(ENDING * 1000)
        except ProcessLookupError:
            pass
        finally:
            os.close(process)


def _session(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[3])
    except (OSError, ValueError, IndexError):
        return 0


def over(limits: Limits, used: Usage, held: set[str]) -> str:
    """Which limit is exceeded, as a sentence, or "" if none. Limits that a cgroup holds are left to the kernel."""
    if limits.processes and "processes" not in held and used.processes > limits.processes:
        return f"more than {limits.processes} processes"
    if limits.memory and "memory" not in held and used.memory > limits.memory:
        return f"more than {limits.memory >> 20} MiB of memory"
    if limits.cpu_time and used.cpu > limits.cpu_time:
        return f"more than {limits.cpu_time} s of CPU time"
    return ""


def enforced(limits: Limits, held: set[str], own_kernel: bool = False) -> tuple[Enforced, ...]:
    """The receipt's lines for the limits."""
    root = os.geteuid() == 0
    watchdog = f"watchdog every {INTERVAL:g} s"
    if own_kernel:
        return _lines(
            limits,
            ("RLIMIT_NPROC of the guest" + (", cgroup pids around its kernel" if "processes" in held else "")),
            "cgroup memory" if "memory" in held else watchdog,
            f"RLIMIT_CPU of the guest for each process + {watchdog}",
            " of the guest",
        )
    return _lines(
        limits,
        "cgroup pids" if "processes" in held else watchdog if root else f"RLIMIT_NPROC + {watchdog}",
        "cgroup memory" if "memory" in held else f"RLIMIT_DATA for each process + {watchdog}",
        f"RLIMIT_CPU for each process + {watchdog}",
    )


def _lines(limits: Limits, processes: str, memory: str, cpu: str, whose: str = "") -> tuple[Enforced, ...]:
    rows = (
        ("processes", limits.processes, processes),
        ("memory", limits.memory, memory),
        ("cpu time", limits.cpu_time, cpu),
        ("file size", limits.file_size, f"RLIMIT_FSIZE{whose}"),
        ("open files", limits.open_files, f"RLIMIT_NOFILE{whose} for each process"),
        ("output", limits.output, "counted by the supervisor"),
        ("wall time", limits.wall_time, "supervisor's timer"),
        ("scratch", limits.scratch, "size of each private tmpfs"),
    )
    return tuple(Enforced(f"limit {name}", mechanism, str(value)) for name, value, mechanism in rows if value)
