"""Walls that leak: the bubblewrap wall with one thing wrong in each, so that every check of the conformance suite is seen to fail where it should.

`LEAKS` lists them, each with the checks that it must fail and some that it must still pass. A wall is `walls.leaky:NAME` with `_` for `-`, so that the suite's
helper process can import it too.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from struct import pack, unpack_from
from typing import Any

from stockade.core.errors import WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Enforced, Limits, Mount
from stockade.walls import bubblewrap, limits
from stockade.walls.box import Child
from stockade.walls.bubblewrap import Host, Plan
from stockade.walls.conformance import census
from stockade.walls.door import Door

# ---- in the plan ------------------------------------------------------------------------------------------------------------------


def words(plan: Plan, *change: tuple[tuple[str, ...], tuple[str, ...]], **more: Any) -> Plan:
    """The plan with runs of bubblewrap's arguments replaced; a run that is not there is an error, so that no leak is silently mended."""
    arguments = [*plan.arguments]
    for before, after in change:
        at = next(index for index in range(len(arguments)) if tuple(arguments[index : index + len(before)]) == before)
        arguments[at : at + len(before)] = after
    return replace(plan, arguments=tuple(arguments), **more)


def at_end(plan: Plan, *more: str, rule: str) -> Plan:
    """The plan with further arguments once everything else is mounted."""
    return words(plan, (("--remount-ro", "/", "--chdir"), (*more, "--remount-ro", "/", "--chdir")), rules=(*plan.rules, rule))


SHARED = os.path.join(tempfile.gettempdir(), f"stockade-leaky-{os.getpid()}")  # what boxes of one leaky wall share


def writable(plan: Plan) -> Plan:
    arguments = tuple("--bind-fd" if word == "--ro-bind-fd" else word for word in plan.arguments)
    return replace(plan, arguments=arguments, rules=tuple(rule.replace("ro:/mnt", "rw:/mnt") for rule in plan.rules))


def copied(plan: Plan) -> Plan:
    """Writable mounts are copies, with which every change is lost."""
    for path in plan.paths:
        shutil.copytree(path, f"{SHARED}{path}", symlinks=True, dirs_exist_ok=True)
    return replace(plan, paths=tuple(f"{SHARED}{path}" for path in plan.paths))


def with_devices(plan: Plan) -> Plan:
    at = plan.arguments.index("--bind-fd")
    return words(plan, (plan.arguments[at : at + 3], ("--dev-bind", plan.paths[0], plan.arguments[at + 2])))


def without_line(*rules: str) -> Callable[[Plan], Plan]:
    return lambda plan: replace(plan, enforced=tuple(line for line in plan.enforced if not line.rule.startswith(rules)))


def any_namespace(plan: Plan) -> Plan:
    """Only half of it: the filter is opened in `open_unfiltered`."""
    return words(plan, (("--disable-userns",), ()))


def without_pid_namespace(plan: Plan) -> Plan:
    return words(plan, (("--unshare-pid",), ()), (("--as-pid-1",), ()), (("--proc", "/proc"), ("--ro-bind", "/proc", "/proc")), landlock=0)


def shared_tmp(plan: Plan) -> Plan:
    os.makedirs(SHARED, exist_ok=True)
    return at_end(plan, "--bind", SHARED, "/tmp", rule="rw:/tmp")


# ---- instead of the plan ------------------------------------------------------------------------------------------------------------

type Planner = Callable[[Confinement, Host, str], Plan]


def host_network(wanted: Confinement, host: Host, stage: str) -> Plan:
    # Landlock keeps the host's abstract sockets out even so, where the kernel knows how.
    if wanted.network == "door":
        return bubblewrap.plan(wanted, host, stage=stage)
    return replace(bubblewrap.plan(wanted, host, dangerously_share_host_network=True), network="none", landlock=0)


def one_mount(wanted: Confinement, host: Host, stage: str) -> Plan:
    """The mounts are names below a single one."""
    top = os.path.dirname(wanted.mounts[0].source) if wanted.mounts else ""
    if not top:
        return bubblewrap.plan(wanted, host)
    plan = bubblewrap.plan(replace(wanted, mounts=(Mount(top, "/mnt/.all", "rw"),)), host)
    links = [word for mount in wanted.mounts for word in ("--symlink", f"/mnt/.all/{os.path.basename(mount.source)}", mount.target)]
    return at_end(plan, *links, rule="rw:/mnt")


def any_target(wanted: Confinement, host: Host, stage: str) -> Plan:
    return bubblewrap.plan(
        replace(
            wanted, mounts=tuple(mount if mount.target.startswith("/srv/") else replace(mount, target="/mnt/x") for mount in wanted.mounts)
        ),
        host,
    )


def anything(wanted: Confinement, host: Host, stage: str) -> Plan:
    mounts = tuple(mount if mount.mode == "ro" else replace(mount, mode="rw") for mount in wanted.mounts)
    return bubblewrap.plan(replace(wanted, mounts=mounts, network="none" if wanted.network != "door" else "door"), host, stage=stage)


def bare_layers(wanted: Confinement, host: Host, stage: str) -> Plan:
    layers = tuple(Mount(layer.lower, layer.target, "rw") for layer in wanted.overlays)
    return bubblewrap.plan(replace(wanted, overlays=(), mounts=(*wanted.mounts, *layers)), host, stage=stage)


def followed(wanted: Confinement, host: Host, stage: str) -> Plan:
    plan = bubblewrap.plan(wanted, host, stage=stage)
    return replace(plan, paths=tuple(os.path.realpath(path) for path in plan.paths))


def unlimited(*names: str) -> Planner:
    return lambda wanted, host, stage: bubblewrap.plan(
        replace(wanted, limits=replace(wanted.limits, **dict.fromkeys(names, 0))), host, stage=stage
    )


# ---- in the box -------------------------------------------------------------------------------------------------------------------


class Leaking:
    """A box of the bubblewrap wall with something wrong: what a subclass does not change is the box's own."""

    def __init__(self, inner: Any, wanted: Confinement) -> None:
        self.inner, self.wanted = inner, wanted

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


KEPT: list[Any] = []  # boxes whose `close` did nothing, to be closed after the test


class NeverClosed(Leaking):
    def close(self) -> int:
        KEPT.append(self.inner)
        return 0


class Patient(Leaking):
    """Waits for what a command has left behind."""

    def close(self) -> int:
        late = time.monotonic() + 3.1
        while self.inner.pid and len(census.below(self.inner.pid)) > 1 and time.monotonic() < late:
            time.sleep(0.05)
        return int(self.inner.close())


class NoPid(Leaking):
    pid = 0


class Unwatched(Leaking):
    """Nobody finds the processes below it, so that no watchdog mends what the wall forgot."""

    pid = 1 << 22


class Restless(Leaking):
    """A pause holds what is started from then on, and nothing else."""

    def pause(self) -> None:
        self.inner.paused = True


class PausedForGood(Leaking):
    def close(self) -> int:
        if not self.inner.paused:
            return int(self.inner.close())
        KEPT.append(self.inner)
        return 0


class NobodyLeft(Leaking):
    """In a pause also its init stands still, which would see that nobody holds the box any more."""

    def pause(self) -> None:
        self.inner.init_stops = True
        self.inner.pause()


class Quiet(Leaking):
    """Takes its own death for the end of every command."""

    def step(self, flags: int = 0) -> Child | None:
        try:
            return self.inner.step(flags)  # type: ignore[no-any-return]  # a box
        except WallFailed:
            for child in self.inner._children.values():
                child.status = 0
            return None


class Mangled(Leaking):
    def step(self, flags: int = 0) -> Child | None:
        child = self.inner.step(flags)
        if child is not None and child.status == 255 << 8:
            child.status = 1 << 8
        return child  # type: ignore[no-any-return]  # a box's


class SignalsAsStatus(Leaking):
    def step(self, flags: int = 0) -> Child | None:
        child = self.inner.step(flags)
        if child is not None and child.status and os.WIFSIGNALED(child.status):
            child.status = os.WTERMSIG(child.status) << 8
        return child  # type: ignore[no-any-return]  # a box's


class Deaf(Leaking):
    def signal(self, child: Child, number: int) -> None:
        pass


def spawning(change: Callable[..., tuple[Sequence[str], dict[str, Any]]]) -> type[Leaking]:
    """A box that starts something else than it was told: `change(box, argv, **named)` gives what."""

    class Spawning(Leaking):
        def spawn(self, argv: Sequence[str], **named: Any) -> Child:
            argv, named = change(self.inner, argv, **named)
            return self.inner.spawn(argv, **named)  # type: ignore[no-any-return]  # a box

    return Spawning


def filtered(box: Any, argv: Sequence[str], *, stdout: int = -1, **named: Any) -> tuple[Sequence[str], dict[str, Any]]:
    """The last byte of the output is lost."""
    if stdout < 0:
        return argv, named
    reader, writer = os.pipe()
    filters.append(subprocess.Popen(["head", "-c", "-1"], stdin=reader, stdout=stdout))
    os.close(reader)
    os.set_inheritable(writer, False)
    closing.append(writer)
    return argv, {**named, "stdout": writer}


filters: list[subprocess.Popen[bytes]] = []
closing: list[int] = []


class Filtered(Leaking):
    def spawn(self, argv: Sequence[str], **named: Any) -> Child:
        argv, named = filtered(self.inner, argv, **named)
        try:
            return self.inner.spawn(argv, **named)  # type: ignore[no-any-return]  # a box
        finally:
            while closing:
                os.close(closing.pop())


class Outside(Leaking):
    """Runs what lies in a mount on the host."""

    def spawn(self, argv: Sequence[str], **named: Any) -> Child:
        if not any("/mnt/w/id" in word for word in argv):
            return self.inner.spawn(argv, **named)  # type: ignore[no-any-return]  # a box
        source = self.wanted.mounts[0].source
        done = subprocess.run([word.replace("/mnt/w", source) for word in argv], stdout=named["stdout"], stderr=named["stderr"])
        return self.inner.spawn(["/bin/sh", "-c", f"exit {done.returncode}"], env={})  # type: ignore[no-any-return]  # a box


def afresh(box: Any, argv: Sequence[str], **named: Any) -> tuple[Sequence[str], dict[str, Any]]:
    box.wait(box.spawn(["/bin/sh", "-c", "rm -rf /tmp/* /home/user/*"], env={"PATH": "/usr/bin:/bin"}))
    return argv, named


def inheriting(box: Any, argv: Sequence[str], **named: Any) -> tuple[Sequence[str], dict[str, Any]]:
    held = [int(name) for name in os.listdir("/proc/self/fd")]
    return argv, {**named, "fds": [fd for fd in held if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}") and os.get_inheritable(fd)]}


def without_nul(
    box: Any, argv: Sequence[str], *, env: dict[str, str], cwd: str = "/", **named: Any
) -> tuple[Sequence[str], dict[str, Any]]:
    plain = {name.replace("\0", ""): value.replace("\0", "") for name, value in env.items()}
    return [word.replace("\0", "") for word in argv] or ["true"], {**named, "env": plain, "cwd": cwd.replace("\0", "")}


# ---- in its start and its door ------------------------------------------------------------------------------------------------------


def open_unfiltered(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
    """With seccomp filters that allow everything."""

    def filters() -> tuple[int, ...]:
        found = [os.memfd_create("allow", os.MFD_CLOEXEC) for _ in range(2)]
        for fd in found:
            os.write(fd, pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))  # BPF_RET SECCOMP_RET_ALLOW
            os.lseek(fd, 0, os.SEEK_SET)
        return tuple(found)

    return bubblewrap.open_box(plan, door, cgroups, filters=filters)


def open_regardless(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
    """Whether plan and door match or not."""
    return bubblewrap.open_box(replace(plan, network="none" if door is None else "door"), door, cgroups)


def open_wasting(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
    wasted.append(os.open("/dev/null", os.O_RDONLY))
    return bubblewrap.open_box(plan, door, cgroups)


wasted: list[int] = []


def open_leaving(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
    """And start something that stays."""
    subprocess.Popen(["setsid", "sleep", "8.08"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return bubblewrap.open_box(plan, door, cgroups)


# Only root can leave these on the host. Their names tell `clean` of which test process they are: some are made by the suite's helper.
TOKEN = os.environ.setdefault("STOCKADE_LEAKY", str(os.getpid()))
WIRE, PLACE, GROUP = f"lk{TOKEN}x", f"/run/lk{TOKEN}", f"stockade-leaky-{TOKEN}-"


def mounted() -> None:
    os.makedirs(PLACE, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "stockade-leaky", tempfile.mkdtemp(dir=PLACE)], check=True, stderr=subprocess.DEVNULL)


def named() -> None:
    """A network namespace that has a name, which keeps it (ip-netns(8))."""
    os.makedirs(PLACE, exist_ok=True)
    file, path = tempfile.mkstemp(dir=PLACE)
    os.close(file)
    subprocess.run(["unshare", f"--net={path}", "true"], check=True, stderr=subprocess.DEVNULL)


def wired() -> None:
    wire(f"{WIRE}{os.urandom(2).hex()}")


def grouped() -> limits.Groups:
    groups = limits.join(f"{GROUP}{os.urandom(4).hex()}", Limits())
    if not groups.directories:
        raise PermissionError("no cgroup can be made here")
    return groups


def leaving(make: Callable[[], None]) -> Callable[[Plan, Door | None, Sequence[int]], Any]:
    """And leave that behind."""

    def opened(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
        make()
        return bubblewrap.open_box(plan, door, cgroups)

    return opened


def open_grouped(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
    """In a further cgroup that nobody removes."""
    groups = grouped()
    try:
        return bubblewrap.open_box(plan, door, [*cgroups, *groups.descriptors])
    finally:
        for fd in groups.descriptors:
            os.close(fd)


def wire(name: str, *, remove: bool = False) -> None:
    """Make a veth(4) pair, one end of it called `name`, or remove it (rtnetlink(7)). Raises OSError."""

    def attribute(kind: int, data: bytes) -> bytes:
        return pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)

    new, delete, request, acknowledge, create = 16, 17, 0x1, 0x4, 0x600
    body = pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, name.encode() + b"\0") + attribute(18, attribute(1, b"veth"))
    head = pack("=IHHII", 16 + len(body), delete if remove else new, request | acknowledge | (0 if remove else create), 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.send(head + body)
        if error := -unpack_from("=i", netlink.recv(4096), 16)[0]:
            raise OSError(error, os.strerror(error))


def left_by_root() -> None:
    """Remove it."""
    for name in census.interfaces():
        if name.startswith(WIRE):
            wire(name, remove=True)
    for line in census.mounts():
        if (path := line.split()[1]).startswith(f"{PLACE}/"):
            subprocess.run(["umount", path], check=True)
    shutil.rmtree(PLACE, ignore_errors=True)
    for parent, names, _ in os.walk(limits.ROOT):
        for name in names:
            if name.startswith(GROUP):
                os.rmdir(f"{parent}/{name}")


def refused(make: Callable[[], object]) -> str:
    """Why it cannot be left here, or ""."""
    try:
        made = make()
    except (OSError, subprocess.CalledProcessError) as error:
        return f"this cannot be left on the host: {error}"
    finally:
        left_by_root()
    for fd in made.descriptors if isinstance(made, limits.Groups) else ():
        os.close(fd)
    return ""


def open_ungrouped(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
    return bubblewrap.open_box(plan, door)


doors: list[Door] = []  # of the wall whose boxes all go through the first


def make_remembered(ports: tuple[int, ...]) -> Door:
    doors.append(bubblewrap.make_door(ports))
    return doors[-1]


def open_at_first_door(plan: Plan, door: Door | None, cgroups: Sequence[int]) -> Any:
    return bubblewrap.open_box(plan, door and next(made for made in doors if made.user >= 0), cgroups)


def make_crossed(ports: tuple[int, ...]) -> Door:
    made = bubblewrap.make_door(ports)
    made.listeners = dict(zip(ports, reversed(made.listeners.values()), strict=True))
    return made


def make_wide(ports: tuple[int, ...]) -> Door:
    made = bubblewrap.make_door((*ports, 8443))
    wasted.append(made.listeners.pop(8443))
    return made


def make_stuck(ports: tuple[int, ...]) -> Door:
    """A door whose listeners live on when it is shut."""
    made = bubblewrap.make_door(ports)
    wasted.extend(os.dup(fd) for fd in made.listeners.values())
    return made


others: set[int] = set()  # processes that there were before the wall was made


def clean() -> None:
    """Undo what the leaks have left in this process."""
    while KEPT:
        KEPT.pop().close()
    while wasted:
        os.close(wasted.pop())
    while filters:
        filters.pop().wait()
    for pid in {*census.below(os.getpid())} - others:  # boxes that stand still and that nobody holds
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    census.until(lambda: not {*census.below(os.getpid())} - others, 5)
    with suppress(ChildProcessError):  # what the checks have adopted of boxes that stayed
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    left_by_root()
    doors.clear()
    shutil.rmtree(SHARED, ignore_errors=True)


# ---- the list ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Leak:
    """A leaky wall: the bubblewrap wall but for what is given here. `fails` are the checks that it must fail, `passes` some that it must not."""

    name: str
    fails: Sequence[str]
    passes: Sequence[str] = ("lifecycle.opens",)
    change: Callable[[Plan], Plan] = lambda plan: plan
    planner: Planner = lambda wanted, host, stage: bubblewrap.plan(wanted, host, stage=stage)
    box: type[Leaking] = Leaking
    opener: Callable[[Plan, Door | None, Sequence[int]], Any] = bubblewrap.open_box
    door: Callable[[tuple[int, ...]], Door] = bubblewrap.make_door
    own_kernel: bool = False
    user: int = -1
    by_root: Callable[[], object] | None = None  # what makes the leak, if only root can


class Leaky:
    """The wall of a leak, by the contract of walls/contract.py."""

    NAME, ADDRESS = "leaky", bubblewrap.ADDRESS

    def __init__(self, leak: Leak) -> None:
        self._leak = leak
        others.update(census.below(os.getpid()))
        self.OWN_KERNEL, self.OVERHEAD, self.USER = leak.own_kernel, 0, leak.user
        self.__name__ = f"{__name__}:{leak.name.replace('-', '_')}"
        self._wanted: dict[int, Confinement] = {}
        self._plans: list[Plan] = []

    def look(self, home: str) -> Host:
        return bubblewrap.look(home)

    def plan(self, wanted: Confinement, host: Host, *, stage: str = "") -> Plan:
        made = self._leak.change(self._leak.planner(wanted, host, stage))
        self._plans.append(made)  # so that no other gets its id
        self._wanted[id(made)] = wanted
        return made

    def make_door(self, ports: tuple[int, ...]) -> Door:
        return self._leak.door(ports)

    def open_box(self, plan: Plan, door: Door | None = None, cgroups: Sequence[int] = ()) -> Any:
        return self._leak.box(self._leak.opener(plan, door, cgroups), self._wanted[id(plan)])


def through_a_shell(box: Any, argv: Sequence[str], **named: Any) -> tuple[Sequence[str], dict[str, Any]]:
    return ["/bin/sh", "-c", 'exec "$0" "$@"', *argv] if argv else argv, named


def one_by_one(box: Any, argv: Sequence[str], **named: Any) -> tuple[Sequence[str], dict[str, Any]]:
    return ["/usr/bin/flock", "/tmp/one-by-one", *argv], named


def leader_only(box: Any, argv: Sequence[str], **named: Any) -> tuple[Sequence[str], dict[str, Any]]:
    return argv, named


def set_to(**fixed: Any) -> type[Leaking]:
    """A box that starts every command with these, whatever was asked for."""
    return spawning(lambda box, argv, **named: (argv, {**named, **fixed}))


def env_of(more: Callable[[], dict[str, str]]) -> type[Leaking]:
    return spawning(lambda box, argv, *, env, **named: (argv, {**named, "env": {**more(), **env}}))


host_tmp = tempfile.gettempdir()
LEAKS = (
    Leak("no-pid", ["lifecycle.opens"], ["exec.exit-codes"], box=NoPid),
    Leak("any-door", ["lifecycle.door-mismatch"], opener=open_regardless),
    Leak("follows-links", ["lifecycle.bad-source"], planner=followed),
    Leak("never-closed", ["lifecycle.close", "lifecycle.self-harm", "exec.timeout", "cleanup.close"], ["exec.stdin"], box=NeverClosed),
    Leak("restless", ["lifecycle.pause"], ["lifecycle.pause-close"], box=Restless),
    Leak("paused-for-good", ["lifecycle.pause-close"], ["lifecycle.pause", "lifecycle.close"], box=PausedForGood),
    Leak("quiet-death", ["lifecycle.death"], box=Quiet),
    Leak("wastes-descriptors", ["lifecycle.again", "cleanup.close"], opener=open_wasting),
    Leak("mangled-status", ["exec.exit-codes"], ["exec.signals"], box=Mangled),
    Leak("signals-as-status", ["exec.signals"], ["exec.exit-codes"], box=SignalsAsStatus),
    Leak("through-a-shell", ["exec.missing-program", "exec.not-executable", "exec.environment"], ["exec.arguments"], box=spawning(through_a_shell)),
    Leak("one-place", ["exec.working-directory"], box=set_to(cwd="/")),
    Leak("stripped-words", ["exec.arguments"], box=spawning(lambda box, argv, **named: ([word.strip() for word in argv], named))),
    Leak("more-environment", ["exec.environment"], ["isolation.environment"], box=env_of(lambda: {"MORE": "1"})),
    Leak("host-environment", ["exec.environment", "isolation.environment"], box=env_of(lambda: dict(os.environ))),
    Leak("drops-nul", ["exec.nul"], box=spawning(without_nul)),
    Leak("another-user", ["exec.user"], user=4711),
    Leak("no-stdin", ["exec.stdin", "exec.large-streams", "exec.at-once"], box=set_to(stdin=-1)),
    Leak("last-byte", ["exec.large-streams", "exec.small-writes", "exec.stdin"], ["exec.exit-codes"], box=Filtered),
    Leak("one-stream", ["exec.streams-apart", "exec.small-writes"], box=spawning(lambda box, argv, *, stdout=-1, **named: (argv, {**named, "stdout": stdout, "stderr": stdout}))),
    Leak("one-by-one", ["exec.at-once"], box=spawning(one_by_one)),
    Leak("patient", ["exec.background"], box=Patient),
    Leak("deaf", ["exec.signal-group"], ["exec.timeout"], box=Deaf),
    Leak("afresh", ["exec.one-place"], box=spawning(afresh)),
    Leak("no-descriptors", ["exec.descriptors"], box=set_to(fds=())),
    Leak("no-terminal", ["exec.terminal"], box=set_to(tty=False)),
    Leak("read-only-tmp", ["files.private"], change=lambda plan: at_end(plan, "--remount-ro", "/tmp", rule="ro:/tmp")),
    Leak("writable-etc", ["files.system"], change=lambda plan: at_end(plan, "--tmpfs", "/etc", rule="rw:/etc")),
    Leak("host-tmp", ["files.host-hidden", "mounts.symlinks"], change=lambda plan: at_end(plan, "--bind", host_tmp, host_tmp, rule=f"rw:{host_tmp}")),
    Leak("shared-tmp", ["files.apart", "files.ephemeral"], ["files.private"], change=shared_tmp),
    Leak("writable-mounts", ["mounts.read-only", "mounts.nested"], ["mounts.read-write"], change=writable),
    Leak("copied-mounts", ["mounts.read-write"], ["mounts.read-only"], change=copied),
    Leak("one-mount", ["mounts.hard-links"], planner=one_mount),
    Leak("devices", ["mounts.devices"], ["mounts.set-id"], change=lambda plan: with_devices(plan) if "--bind-fd" in plan.arguments else plan),
    Leak("set-id", ["mounts.set-id"], ["mounts.devices"], box=Outside),
    Leak("any-target", ["mounts.targets"], planner=any_target),
    Leak("bare-layers", ["mounts.overlay"], planner=bare_layers),
    Leak("holds-nothing", ["mounts.held"], change=lambda plan: replace(plan, held=())),
    Leak("any-processes", ["limits.processes"], ["limits.open-files"], planner=unlimited("processes"), box=Unwatched, opener=open_ungrouped),
    Leak("any-memory", ["limits.memory", "limits.memory-together"], ["limits.open-files"], planner=unlimited("memory"), box=Unwatched, opener=open_ungrouped),
    Leak("any-cpu-time", ["limits.cpu-time"], ["limits.file-size"], planner=unlimited("cpu_time"), box=Unwatched),
    Leak("any-file-size", ["limits.file-size"], ["limits.scratch"], planner=unlimited("file_size")),
    Leak("any-open-files", ["limits.open-files"], ["limits.file-size"], planner=unlimited("open_files")),
    Leak("any-scratch", ["limits.scratch"], ["limits.file-size"], planner=unlimited("scratch")),
    Leak("host-network", ["network.none", "network.boxes-apart", "network.unix"], ["network.door"], planner=host_network),
    Leak("crossed-door", ["network.door"], door=make_crossed),
    Leak("wide-door", ["network.door-only"], ["network.door"], door=make_wide),
    Leak("one-door", ["network.doors-apart"], ["network.door-only"], door=make_remembered, opener=open_at_first_door),
    Leak("stuck-door", ["network.door-shut"], ["network.door"], door=make_stuck),
    Leak("host-proc", ["isolation.processes"], ["isolation.signals"], change=lambda plan: words(plan, (("--proc", "/proc"), ("--ro-bind", "/proc", "/proc")))),
    Leak("host-pids", ["isolation.processes", "isolation.signals"], ["isolation.environment"], change=without_pid_namespace),
    Leak("keys", ["isolation.keyrings"], change=lambda plan: words(plan, (("--ro-bind", "/dev/null", "/proc/keys"), ()))),
    Leak("inherits", ["isolation.descriptors"], ["exec.stdin"], box=spawning(inheriting)),
    Leak("claims-a-kernel", ["isolation.kernel"], ["isolation.processes"], own_kernel=True),
    Leak("namespaces", ["isolation.namespaces"], change=any_namespace, opener=open_unfiltered),
    Leak("settings", ["isolation.kernel-settings"], change=lambda plan: words(plan, (("--ro-bind", "/proc/sys", "/proc/sys"), ()), landlock=0)),
    Leak("ipc", ["isolation.ipc"], change=lambda plan: words(plan, (("--unshare-ipc",), ()))),
    Leak("no-line", ["receipt.rules"], ["receipt.mounts"], change=without_line("files")),
    Leak("no-mount-lines", ["receipt.mounts"], ["receipt.rules"], change=without_line("mount ")),
    Leak("one-network-line", ["receipt.network"], ["receipt.rules"], change=lambda plan: replace(plan, enforced=(*without_line("network")(plan).enforced, Enforced("network", "door")))),
    Leak("false-limit", ["receipt.limits"], ["receipt.rules"], change=lambda plan: replace(plan, enforced=(*plan.enforced, Enforced("limit memory", "cgroup memory", str(Limits().memory))))),
    Leak("anything", ["receipt.refusals"], ["receipt.mounts"], planner=anything),
    Leak("nobody-left", ["cleanup.kill-paused"], ["cleanup.kill"], box=NobodyLeft),
    Leak("leaves-a-mount", ["cleanup.close", "cleanup.kill"], opener=leaving(mounted), by_root=mounted),
    Leak("leaves-a-namespace", ["cleanup.close", "cleanup.kill"], opener=leaving(named), by_root=named),
    Leak("leaves-a-wire", ["cleanup.close", "cleanup.kill"], opener=leaving(wired), by_root=wired),
    Leak("leaves-a-cgroup", ["cleanup.close", "cleanup.kill"], opener=open_grouped, by_root=grouped),
    Leak("leaves-a-process", ["cleanup.close", "cleanup.kill", "cleanup.kill-paused", "cleanup.kill-early"], ["receipt.rules"], opener=open_leaving),
)  # fmt: skip
BY_NAME = {leak.name: leak for leak in LEAKS}


def __getattr__(name: str) -> Leaky:
    """The wall of the leak called `name`."""
    try:
        return Leaky(BY_NAME[name.replace("_", "-")])
    except KeyError:
        raise AttributeError(name) from None
