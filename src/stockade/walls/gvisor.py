"""The gVisor wall: a kernel of the guest's own, in user space, inside the view and the namespaces that bubblewrap makes.

`plan` is a pure function from what is wanted to bubblewrap's argument vector, the OCI configuration and what is mounted late; `open_box` carries it out, or
`warm` the part that every session of its kind needs, and `Guest.bind` the rest when somebody wants it. runsc is the first
process in bubblewrap's namespaces and sees nothing but itself, its scratch space and the guest's files, so whoever breaks out of gVisor stands in a sandbox
still. In the guest our own init (`native/inside.c`) is the first process, and starts commands on request as on the bubblewrap wall: gVisor takes
over the host's descriptors that it is handed (as standard input, by `runsc run -pass-fd`, and by SCM_RIGHTS on that socket).
"""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.core.values import Enforced
from stockade.walls import bubblewrap, door, late, launching, limits, native, root, seccomp, streams, system, view
from stockade.walls.guest import GuestBox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from stockade.core.values import Confinement, Limits, Overlay
    from stockade.walls import states
    from stockade.walls.door import Door

NAME = "gvisor"
ADDRESS = door.WIRE
OWN_KERNEL = True
LENDS = False
REPORTS = True
WIRE = "veth"
OVERHEAD = 0
USER = 0  # to whom the one user id of the user namespace belongs: on the host it is whoever runs us
ROOT = "/sandbox"  # the guest's root, as bubblewrap shows it to runsc
INIT = "/run/stockade-init"  # our program in the guest
# Its sockets there: of the host's descriptors runsc takes up the standard streams alone again when it restores a guest.
CONTROL, LATE = 0, 3
CONTAINER = "box"
MOST_BINDS = 400  # each is a mount of the guest's kernel and takes it about half a millisecond at the start
IMAGE = "/image"  # where runsc finds a checkpoint
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
    digest: str  # of runsc: SHA-256 in hexadecimal digits
    platform: str
    cover_sys_net: bool
    links: tuple[tuple[str, str], ...]
    etc: str
    step: str


@frozen
class Warm:
    """What a guest is before anybody wants it; the fields are described in launching.py. `command` is what bubblewrap executes but for descriptors."""

    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    data: tuple[str, ...]
    rlimits: tuple[tuple[int, int], ...]
    network: str
    bwrap: str
    digest: str  # of runsc
    command: tuple[str, ...]
    restores: bool = False
    overlays: tuple[Overlay, ...] = ()
    stages: tuple[str, ...] = ()
    held: tuple[()] = ()


@frozen
class Plan:
    """Everything `open_box` will do, as plain data."""

    warm: Warm
    late: late.Late
    enforced: tuple[Enforced, ...]

    @property
    def network(self) -> str:
        return self.warm.network

    @property
    def stages(self) -> tuple[str, ...]:
        return self.late.stages


def make_door(ports: tuple[int, ...]) -> Door:
    """A door as this wall's guests need it. Raises WallFailed."""
    return door.make(ports, WIRE)


def look(home: str) -> Host:
    """Find bubblewrap and a runsc that works here. Raises CannotEnforce (`bubblewrap.missing`, `gvisor.missing`, `gvisor.old`, `gvisor.boot`)."""
    from stockade.walls import runsc

    found = runsc.find()
    outer = bubblewrap.program()
    etc = system.etc(home, guest=ADDRESS)
    return Host(outer, found.path, found.digest, found.platform, found.sys_net_masked, system.links(), etc, native.STEP)


def plan(wanted: Confinement, host: Host, *, stage: str = "") -> Plan:
    """bubblewrap's arguments and the OCI configuration for `wanted` on `host`; does no I/O. `stage` is an existing directory in which overlays are put
    together. Raises CannotEnforce for a mount that would hide or expose what must not be.
    """
    if wanted.network not in ("none", "door"):
        raise CannotEnforce(f"there is no network {wanted.network!r}", code="network.kind", hint='It is "none" or "door".')
    mounted = late.plan(wanted, stage)
    if len(mounted.binds) > MOST_BINDS:
        raise CannotEnforce(
            f"the gVisor wall can show or hold {MOST_BINDS} paths, and {len(mounted.binds)} are wanted: mounts, and repositories below the workspace",
            code="gvisor.mounts",
            hint="Make a smaller folder the workspace, mount less, or use the bubblewrap wall.",
        )
    if wanted.image:
        root.refuse_saved(wanted.root)
    layer, layered = root.layer(wanted)
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
    paths: list[str] = []
    if wanted.events:
        from stockade.walls import events

        arguments += ["--ro-bind-data", f"={len(data)}", TRACE, "--ro-bind-fd", f"@{len(paths)}", EVENTS]
        data.append(events.configuration(EVENTS))
        paths.append(wanted.events)
    if wanted.image:
        arguments += ["--ro-bind-fd", f"@{len(paths)}", IMAGE]
        paths.append(wanted.image)
    if wanted.layer:
        layer = [f"@{len(paths)}" if word == "@" else word for word in layer]
        paths.append(wanted.layer)
    arguments += layer
    if wanted.tree is not None:
        arguments += ["--ro-bind", wanted.tree.target, ROOT, "--ro-bind", host.step, ROOT + INIT]
    else:
        base, _ = view.base(host.links, ROOT)
        arguments += ["--perms", "0755", "--tmpfs", ROOT, *base, "--ro-bind", host.etc, f"{ROOT}/etc"]
        arguments += ["--perms", "0755", "--dir", f"{ROOT}/run", "--ro-bind", host.step, ROOT + INIT]
        # Mount points: gVisor mounts its own file systems there, and what is under them is never seen.
        for place in ("/proc", "/dev", "/sys", "/tmp", "/var/tmp", wanted.home, late.GUEST):
            arguments += ["--dir", ROOT + place]
    arguments += ["--perms", "0755", "--tmpfs", late.BELOW, "--remount-ro", ROOT, "--remount-ro", "/", "--chdir", "/"]
    network = "sandbox" if wanted.network == "door" else "none"
    # directfs: the guest's files without a second process on the way; what it opens is what bubblewrap shows.
    command = ["/runsc", "--root=/state", f"--platform={host.platform}", f"--network={network}", "--ignore-cgroups", *layered]
    command += ["--net-disconnect-ok"]  # a checkpoint cuts connections: with one that cannot be cut there would be none
    command += ["--host-uds=open"] if wanted.sockets else []
    command += [f"--pod-init-config={TRACE}"] if wanted.events else []
    prepared = Warm(
        arguments=tuple(arguments),
        paths=tuple(paths),
        data=tuple(data),
        overlays=(wanted.tree,) if wanted.tree is not None else (),
        stages=(wanted.tree.target,) if wanted.tree is not None else (),
        rlimits=((4, 0), *(((6, limits.guest_tasks(wanted.limits)),) if wanted.limits.processes else ())),  # no core dumps; RLIMIT_NPROC
        network=wanted.network,
        bwrap=host.bwrap,
        digest=host.digest,
        command=(*command, *(("restore", f"-image-path={IMAGE}") if wanted.image else ("run",)), "-bundle", "/bundle"),
        restores=bool(wanted.image),
    )
    return Plan(prepared, mounted, enforced(wanted, host))


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
    # Nobody in the guest but its init sees this, and only until everything wanted is in its place (late.py).
    mounts.append({"destination": late.GUEST, "type": "bind", "source": late.BELOW, "options": ["rbind", "nosuid", "nodev", "rw"]})
    process = {
        "user": {"uid": 0, "gid": 0},
        "args": [INIT, "inside", str(CONTROL), "0", "-1", "guest", str(LATE), late.GUEST],
        "env": [],
        "cwd": "/",
        "capabilities": {
            name: [*CAPABILITIES, "CAP_SYS_ADMIN"] for name in ("bounding", "effective", "permitted")
        },  # the last until it has mounted
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
            "root": {"path": ROOT, "readonly": wanted.root.writable == "none"},
            "hostname": system.HOSTNAME,
            "mounts": mounts,
            "linux": {"namespaces": namespaces},
        }
    )


def shape(plan: Plan) -> str:
    """What two sandboxes have in common of which one can go on where the other was saved: mounts, limits, kind of network, runsc's own options (SHA-256)."""
    import hashlib

    options = [word for word in plan.warm.command if word.startswith("--")]
    binds = [part for mode, target in plan.late.binds for part in (mode[:4], target)]  # how, of what kind ("@", "/" or nothing), and where
    return hashlib.sha256("\0".join((plan.warm.data[0], plan.network, *options, "", *binds)).encode(errors="surrogateescape")).hexdigest()


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
    return (*lines, *root.enforced(wanted), *view.enforced(wanted))


class Guest(GuestBox):
    """A guest of gVisor's, which can be saved and go on."""

    def hail(self) -> None:
        """Ask the init whether it stands: one that was saved and goes on has said so in another life. Raises WallFailed."""
        try:
            native.request(self._sock, "H", 0)
        except OSError as error:
            raise self.failure() from error

    def save(self, directory: int) -> states.Saving:
        """Start to write all of the guest into `directory` (a descriptor): its memory, and what its kernel knows. The guest goes on meanwhile and afterwards.

        What it holds of the host, descriptors that were given to `spawn`, cannot be saved; its connections to the door are cut. Raises WallFailed.
        """
        from stockade.walls import states

        words = ["/runsc", "--root=/state", "checkpoint", "-image-path=.", "-compression=none", "-leave-running", CONTAINER]
        return states.Saving(self.pid, directory, words, seccomp.kernel_filters())


def waits(_plan: Plan) -> str:
    """Nothing: `open_box` returns at once."""
    return ""


def open_box(plan: Plan, door: Door | None = None, cgroups: Sequence[int] = ()) -> Guest:
    """Start the sandbox of `plan` and return without waiting for it; the first `step()` tells whether it stands.

    `door` must be one of `make_door`, and be given exactly when the plan's network is "door"; `cgroups` are descriptors of cgroup.procs files to join.
    Raises CannotEnforce when a path cannot be opened as planned, WallFailed when the helper cannot be started.
    """
    opened = late.pin(plan.late)
    try:
        box = warm(plan.warm, door, cgroups)
        try:
            box.bind_opened(plan.late, opened)
            if plan.warm.restores:
                box.hail()
        except BaseException:
            box.close()
            raise
        return box
    finally:
        streams.close(opened)


def warm(prepared: Warm, door: Door | None = None, cgroups: Sequence[int] = ()) -> Guest:
    """Start a sandbox that waits for its mounts: its init does, or runsc where it goes on from a checkpoint, whose kernel opens again what it had mounted. Arguments and
    errors as `open_box`.
    """
    ours, theirs = native.credentials_pair()

    def inner(step: int, _control: int, _holding: int) -> list[str]:
        shared = [f"/proc/self/fd/{step}", "mounted" if prepared.restores else "late", str(theirs), late.BELOW, *prepared.command]
        return [*shared, *([] if prepared.restores else [f"-pass-fd={theirs}:{LATE}"]), CONTAINER]

    try:
        return Guest(*launching.start(prepared, door, cgroups, seccomp.kernel_filters, inner, (theirs,), standard=True), ours, ROOT)
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
