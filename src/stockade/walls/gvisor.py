"""The gVisor wall: a kernel of the guest's own, in user space, inside the view and the namespaces that bubblewrap makes.

`plan` is a pure function from what is wanted to bubblewrap's argument vector and the OCI configuration; `open_box` carries it out. runsc is the first
process in bubblewrap's namespaces and sees nothing but itself, its scratch space and the guest's files, so whoever breaks out of gVisor stands in a sandbox
still. In the guest our own init (`native/step.c inside`) is the first process, and starts commands on request as on the bubblewrap wall: gVisor takes
over the host's descriptors that it is handed (`runsc run -pass-fd`, and SCM_RIGHTS on that socket).
"""

from __future__ import annotations

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.core.values import Enforced
from stockade.walls import bubblewrap, door, launching, limits, native, seccomp, system, view
from stockade.walls.box import Box

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from stockade.core.values import Confinement, Limits, Overlay
    from stockade.walls.door import Door

NAME = "gvisor"
ADDRESS = door.WIRE
OWN_KERNEL = True
USER = 0  # to whom the one user id of the user namespace belongs: on the host it is whoever runs us
ROOT = "/sandbox"  # the guest's root, as bubblewrap shows it to runsc
INIT = "/run/stockade-init"  # our program in the guest
CONTROL = 3  # its descriptor there: a limit of open files may be small
CONTAINER = "box"
MOST_BINDS = 150  # each is a mount of the guest's kernel, and beyond some 200 runsc 20240729 does not start
EVENTS, TRACE = "/events", "/bundle/trace.json"  # where runsc finds the socket that it reports to, and what to report
# What root may do in the guest, to the guest's kernel alone: Docker's default set without CAP_NET_RAW, whose sockets runsc refuses by itself.
CAPABILITIES = (
    "CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP",
    "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
)  # fmt: skip


@frozen
class Host:
    """What `plan` has to know about this machine. Gathered by `look`."""

    bwrap: str
    runsc: str
    platform: str
    cover_sys_net: bool
    links: tuple[tuple[str, str], ...]
    etc: str
    step: str


@frozen
class Plan:
    """Everything `open_box` will do, as plain data; the fields are described in launching.py. `command` is what bubblewrap executes but for descriptors."""

    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    data: tuple[str, ...]
    overlays: tuple[Overlay, ...]
    stages: tuple[str, ...]
    held: tuple[str, ...]
    rlimits: tuple[tuple[int, int], ...]
    network: str
    bwrap: str
    command: tuple[str, ...]
    enforced: tuple[Enforced, ...]


def make_door(ports: tuple[int, ...]) -> Door:
    """A door as this wall's guests need it. Raises WallFailed."""
    return door.make(ports, wired=True)


def look(home: str) -> Host:
    """Find bubblewrap and a runsc that works here. Raises CannotEnforce (`bubblewrap.missing`, `gvisor.missing`, `gvisor.old`, `gvisor.boot`)."""
    from stockade.walls import runsc

    found = runsc.find()
    outer = bubblewrap.program()
    etc = system.etc(home, guest=ADDRESS)
    return Host(outer, found.path, found.platform, found.sys_net_masked, system.links(), etc, native.STEP)


def plan(wanted: Confinement, host: Host, *, stage: str = "") -> Plan:
    """bubblewrap's arguments and the OCI configuration for `wanted` on `host`; does no I/O. `stage` is an existing directory in which overlays are put
    together. Raises CannotEnforce for a mount that would hide or expose what must not be.
    """
    if wanted.network not in ("none", "door"):
        raise CannotEnforce(f"there is no network {wanted.network!r}", code="network.kind", hint='It is "none" or "door".')
    shown = view.shown(wanted, stage, ROOT)
    base, _ = view.base(host.links, ROOT)
    arguments = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    if wanted.network == "none":  # otherwise the user namespace is the door's, which `step launch` has joined
        arguments += ["--unshare-user", "--uid", "0", "--gid", "0", "--unshare-net"]
    arguments += ["--cap-add", "ALL", "--as-pid-1", "--die-with-parent", "--clearenv", "--hostname", system.HOSTNAME, "--proc", "/proc"]
    arguments += ["--tmpfs", "/proc/sys/net"] if host.cover_sys_net else []
    arguments += ["--ro-bind-data", "=1", "/proc/meminfo"] if wanted.limits.memory else []
    arguments += ["--dev", "/dev", *(["--dev-bind", "/dev/kvm", "/dev/kvm"] if host.platform == "kvm" else [])]
    arguments += ["--tmpfs", "/tmp", "--perms", "0700", "--tmpfs", "/state", "--ro-bind", host.runsc, "/runsc"]
    arguments += ["--ro-bind-data", "=0", "/bundle/config.json"]
    data = [configuration(wanted), *([f"MemTotal: {wanted.limits.memory >> 10} kB\n"] if wanted.limits.memory else [])]
    paths = list(shown.paths)
    if wanted.events:
        from stockade.walls import events

        arguments += ["--ro-bind-data", f"={len(data)}", TRACE, "--ro-bind-fd", f"@{len(paths)}", EVENTS]
        data.append(events.configuration(EVENTS))
        paths.append(wanted.events)
    arguments += ["--perms", "0755", "--tmpfs", ROOT]
    arguments += [*base, "--ro-bind", host.etc, f"{ROOT}/etc"]
    arguments += ["--perms", "0755", "--dir", f"{ROOT}/run", "--ro-bind", host.step, ROOT + INIT]
    # Mount points: gVisor mounts its own file systems there, and what is under them is never seen.
    for place in ("/proc", "/dev", "/sys", "/tmp", "/var/tmp", wanted.home):
        arguments += ["--dir", ROOT + place]
    arguments += [*shown.arguments, "--remount-ro", ROOT, "--remount-ro", "/", "--chdir", "/"]
    network = "sandbox" if wanted.network == "door" else "none"
    # directfs: the guest's files without a second process on the way; what it opens is what bubblewrap shows. No overlay: /tmp and home are enough to write.
    command = ["/runsc", "--root=/state", f"--platform={host.platform}", f"--network={network}", "--ignore-cgroups", "--overlay2=none"]
    command += ["--host-uds=open"] if wanted.sockets else []
    command += [f"--pod-init-config={TRACE}"] if wanted.events else []
    return Plan(
        arguments=tuple(arguments),
        paths=tuple(paths),
        data=tuple(data),
        overlays=wanted.overlays,
        stages=shown.stages,
        held=tuple(f"{held[:3]}{ROOT}{held[3:]}" for held in wanted.held),
        rlimits=((4, 0), *(((6, limits.guest_tasks(wanted.limits)),) if wanted.limits.processes else ())),  # no core dumps; RLIMIT_NPROC
        network=wanted.network,
        bwrap=host.bwrap,
        command=(*command, "run", "-bundle", "/bundle"),
        enforced=enforced(wanted, host),
    )


def configuration(wanted: Confinement) -> str:
    """The OCI runtime configuration (config.json of the OCI runtime specification, section "Configuration") of a guest."""
    import json

    size = [f"size={wanted.limits.scratch}"] if wanted.limits.scratch else []
    mounts: list[dict[str, Any]] = [{"destination": "/proc", "type": "proc", "source": "proc"}]
    private = (("/tmp", "1777"), ("/var/tmp", "1777"), ("/dev/shm", "1777"), (wanted.home, "0700"))
    mounts += [
        {"destination": path, "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev", f"mode={mode}", *size]}
        for path, mode in private
    ]
    binds = [(overlay.target, "rw") for overlay in wanted.overlays]
    # runsc cannot mount a socket: it is part of the root, as bubblewrap shows it.
    binds += [(mount.target, mount.mode) for mount in wanted.mounts if mount.target not in wanted.sockets]
    # gVisor renames from a mount namespace in which what bubblewrap holds is a directory like any other, so its own kernel has to know of each such path.
    binds += [(held[3:], held[:2]) for held in wanted.held]
    if len(binds) > MOST_BINDS:
        raise CannotEnforce(
            f"the gVisor wall can show or hold {MOST_BINDS} paths, and {len(binds)} are wanted: mounts, and repositories below the workspace",
            code="gvisor.mounts",
            hint="Make a smaller folder the workspace, mount less, or use the bubblewrap wall.",
        )
    for target, mode in sorted(binds, key=lambda bind: view.depth(bind[0])):
        options = ["rbind", "nosuid", "nodev", mode]
        mounts.append({"destination": target, "type": "bind", "source": ROOT + target, "options": options})
    process = {
        "user": {"uid": 0, "gid": 0},
        "args": [INIT, "inside", str(CONTROL), "0", "-1", "guest"],
        "env": [],
        "cwd": "/",
        "capabilities": {name: list(CAPABILITIES) for name in ("bounding", "effective", "permitted")},
        "noNewPrivileges": True,
        "rlimits": [{"type": name, "hard": value, "soft": value} for name, value in rlimits(wanted.limits)],
    }
    namespaces = [{"type": name} for name in ("pid", "mount", "ipc", "uts")]
    if wanted.network == "door":
        namespaces.append({"type": "network", "path": "/proc/self/ns/net"})  # which `step launch` has joined
    return json.dumps(
        {
            "ociVersion": "1.0.0",
            "process": process,
            "root": {"path": ROOT, "readonly": True},
            "hostname": system.HOSTNAME,
            "mounts": mounts,
            "linux": {"namespaces": namespaces},
        }
    )


def rlimits(wanted: Limits) -> tuple[tuple[str, int], ...]:
    """Per-process limits that the guest's kernel holds (POSIX names, as the OCI specification wants them)."""
    found = (
        ("RLIMIT_CPU", wanted.cpu_time), ("RLIMIT_FSIZE", wanted.file_size), ("RLIMIT_DATA", wanted.memory), ("RLIMIT_NPROC", wanted.processes),
        ("RLIMIT_NOFILE", wanted.open_files),
    )  # fmt: skip
    return (("RLIMIT_CORE", 0), *((name, value) for name, value in found if value))


def enforced(wanted: Confinement, host: Host) -> tuple[Enforced, ...]:
    """The receipt's lines for what this wall holds by itself."""
    lines = [
        Enforced("kernel", "gVisor (runsc)", f"platform {host.platform}; inside bubblewrap's namespaces"),
        Enforced("processes", "gVisor's own process table", "ends with its supervisor"),
        Enforced("privileges", "root of the guest alone", "outside: one user id of a user namespace, and nothing of the host in view"),
        Enforced("system calls", "answered by gVisor", "of the host's kernel only what runsc's own seccomp filters and ours allow"),
        Enforced(
            "files", "gVisor over bubblewrap's view", f"{len(wanted.mounts)} mounts, {len(wanted.overlays)} overlays, private home and /tmp"
        ),
        Enforced("environment", "explicit list", ", ".join(name for name, _ in wanted.environment)),
        Enforced("descriptors", "a socket to our init; pipes of our own"),
        Enforced("network", {"none": "none", "door": "door: netstack on a wire to the gate's listeners, no route beyond"}[wanted.network]),
    ]
    if wanted.events:
        lines.append(
            Enforced("visibility", "gVisor's trace points", "exec, clone, connect, bind and attempts at more, to the ledger as they happen")
        )
    return (*lines, *view.enforced(wanted))


class GuestBox(Box):
    """A box whose init is in a guest, where root may stop it: its end is made from outside."""

    terminal_stays = True

    def close(self) -> int:
        """End everything inside and wait until the kernel has done so; bubblewrap's wait status. May be called twice."""
        if self.pid:
            limits.end_below(self.pid)  # runsc is the first process there
        return super().close()


def open_box(plan: Plan, door: Door | None = None, cgroups: Sequence[int] = ()) -> Box:
    """Start the sandbox of `plan` and return without waiting for it; the first `step()` tells whether it stands.

    `door` must be one of `make_door`, and be given exactly when the plan's network is "door"; `cgroups` are descriptors of cgroup.procs files to join.
    Raises CannotEnforce when a path cannot be opened as planned, WallFailed when the helper cannot be started.
    """

    def inner(step: int, control: int, holding: int) -> list[str]:
        wait = [f"/proc/self/fd/{step}", "held", str(holding)] if plan.held else []
        return [*wait, *plan.command, f"-pass-fd={control}:{CONTROL}", CONTAINER]

    return GuestBox(*launching.start(plan, door, cgroups, seccomp.kernel_filters, inner))
