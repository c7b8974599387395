"""The bubblewrap wall: rootless namespaces, seccomp and Landlock around a command.

`plan` is a pure function from what is wanted to the whole argument vector; `open_box` carries it out. Inside, our own init (`native/inside.c`)
applies Landlock and then starts commands on request, so that every command of one box sees the same /tmp, home and processes.
"""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.core.values import Enforced, Limits
from stockade.walls import door, launching, seccomp, system, view
from stockade.walls.box import Box

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.core.values import Confinement, Overlay
    from stockade.walls.door import Door

NAME = "bubblewrap"
ADDRESS = door.LOOPBACK
OWN_KERNEL = False
LENDS = False
REPORTS = False
WIRE = ""
OVERHEAD = 0
USER = -1
PROGRAMS = ("/usr/bin/bwrap", "/usr/local/bin/bwrap", "/bin/bwrap")
# procfs files that show the host and that its root may read without any capability; those that we cannot read ourselves need no mask.
MASKED = (
    "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/kpagecount", "/proc/kpageflags", "/proc/kpagecgroup", "/proc/slabinfo",
    "/proc/vmallocinfo", "/proc/pagetypeinfo",
)  # fmt: skip
LANDLOCK = 1  # the oldest Landlock ABI that a box needs (Linux 5.13); a newer kernel's further rights are used as well


@frozen
class Host:
    """What `plan` has to know about this machine. Gathered by `look`."""

    bwrap: str
    links: tuple[tuple[str, str], ...]
    etc: str
    masked: tuple[str, ...]


@frozen
class Plan:
    """Everything `open_box` will do, as plain data.

    The fields that are of every start are described in launching.py; `rules` are Landlock's.
    """

    arguments: tuple[str, ...]
    paths: tuple[str, ...]
    overlays: tuple[Overlay, ...]
    stages: tuple[str, ...]
    held: tuple[str, ...]
    rules: tuple[str, ...]
    landlock: int
    rlimits: tuple[tuple[int, int], ...]
    network: str
    bwrap: str
    enforced: tuple[Enforced, ...]
    data: tuple[str, ...] = ()


def make_door(ports: tuple[int, ...]) -> Door:
    """A door as this wall's sandboxes need it. Raises WallFailed."""
    return door.make(ports)


def program() -> str:
    """Where bubblewrap is. Raises CannotEnforce (`bubblewrap.missing`) with the command that installs it."""
    for found in PROGRAMS:
        if os.access(found, os.X_OK):
            return found
    raise CannotEnforce(
        f"bubblewrap is not installed (looked for {', '.join(PROGRAMS)})",
        code="bubblewrap.missing",
        hint="Debian: sudo apt install bubblewrap",
    )


def look(home: str) -> Host:
    """Find bubblewrap and the host's layout. Raises CannotEnforce (`bubblewrap.missing`) with the command that installs it."""
    return Host(program(), system.links(), system.etc(home), tuple(path for path in MASKED if os.access(path, os.R_OK)))


def plan(wanted: Confinement, host: Host, *, stage: str = "", dangerously_share_host_network: bool = False) -> Plan:
    """The whole argument vector for `wanted` on `host`; does no I/O. `stage` is an existing directory in which overlays are put together.

    `dangerously_share_host_network` is for the gate's own box, which reaches upstream; no policy can ask for it.
    Raises CannotEnforce for a mount that would hide or expose what must not be.
    """
    if wanted.network not in ("none", "door"):
        raise CannotEnforce(f"there is no network {wanted.network!r}", code="network.kind", hint='It is "none" or "door".')
    if wanted.image:
        from stockade.walls import states

        raise states.unable(NAME)
    if not wanted.root.usual:
        from stockade.walls import root

        root.refuse(wanted.root, NAME)
    arguments = ["--unshare-user", "--disable-userns", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    if wanted.network == "none" and not dangerously_share_host_network:
        arguments.append("--unshare-net")
    size = ["--size", str(wanted.limits.scratch)] if wanted.limits.scratch else []
    arguments += ["--cap-drop", "ALL", "--as-pid-1", "--clearenv", "--hostname", system.HOSTNAME]
    base, rules = view.base(host.links)
    arguments += base
    # /proc/sys belongs to the real root: a sandbox run by root could set core_pattern without any capability, were it not read-only.
    arguments += ["--ro-bind", host.etc, "/etc", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    arguments += ["--dev", "/dev", *size, "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for path in host.masked:  # an unreadable file: an error is honest, an empty one would be a lie
        arguments += ["--ro-bind", "/dev/null", path]
    for path in ("/tmp", "/var/tmp"):
        arguments += [*size, "--perms", "1777", "--tmpfs", path]
    arguments += ["--perms", "0755", "--dir", "/run", *size, "--perms", "0700", "--tmpfs", wanted.home]
    rules += [f"rw:{path}" for path in ("/tmp", "/var/tmp", "/dev", wanted.home)]

    shown = view.shown(wanted, stage)
    arguments += shown.arguments
    rules += shown.rules
    arguments += ["--remount-ro", "/", "--chdir", "/"]
    rules.append("ro:/")  # a read-only tmpfs of ours; what lies in it is listed above
    network = "host" if dangerously_share_host_network else wanted.network
    return Plan(
        arguments=tuple(arguments),
        paths=shown.paths,
        overlays=wanted.overlays,
        stages=shown.stages,
        held=wanted.held,
        rules=tuple(dict.fromkeys(rules)),
        landlock=LANDLOCK,
        rlimits=rlimits(wanted.limits),
        network=network,
        bwrap=host.bwrap,
        enforced=enforced(wanted, network),
    )


def rlimits(limits: Limits) -> tuple[tuple[int, int], ...]:
    """Per-process limits of setrlimit(2). RLIMIT_NPROC counts within the sandbox's own user namespace (Linux 5.14)."""
    wanted = ((0, limits.cpu_time), (1, limits.file_size), (2, limits.memory), (6, limits.processes), (7, limits.open_files))
    return ((4, 0), *((resource, value) for resource, value in wanted if value))  # no core dumps: they would land in the workspace


def enforced(wanted: Confinement, network: str) -> tuple[Enforced, ...]:
    """The receipt's lines for what this wall holds by itself."""
    lines = [
        Enforced("processes", "pid namespace, own init", "ends with its supervisor"),
        Enforced("privileges", "user namespace, no capabilities, no_new_privs", "user namespaces inside: refused"),
        Enforced(
            "system calls", "seccomp allowlist (libseccomp), two filters", "no namespaces, keyrings, io_uring, bpf, TIOCSTI, foreign ABIs"
        ),
        Enforced("keyring", "fresh session keyring; keyctl refused by seccomp"),
        Enforced(
            "files", "mount namespace + Landlock", f"{len(wanted.mounts)} mounts, {len(wanted.overlays)} overlays, private home and /tmp"
        ),
        Enforced("environment", "explicit list", ", ".join(name for name, _ in wanted.environment)),
        Enforced("descriptors", "close_range; only pipes or a terminal of our own"),
        Enforced(
            "network",
            {"none": "empty network namespace", "door": "door: no route, listeners of the gate only", "host": "host (the gate itself)"}[
                network
            ],
        ),
    ]
    return (*lines, *view.enforced(wanted))


def waits(_plan: Plan) -> str:
    """Nothing: `open_box` returns at once."""
    return ""


def open_box(
    plan: Plan, door: Door | None = None, cgroups: Sequence[int] = (), *, filters: Callable[[], tuple[int, ...]] = seccomp.filters
) -> Box:
    """Start the sandbox of `plan` and return without waiting for it; the first `step()` tells whether it stands.

    `door` must be given exactly when the plan's network is "door"; `cgroups` are descriptors of cgroup.procs files to join.
    `filters` opens the seccomp programs. Raises CannotEnforce when a path cannot be opened as planned, WallFailed when the helper cannot be started.
    """

    def inner(step: int, control: int, holding: int) -> list[str]:
        return [f"/proc/self/fd/{step}", "inside", str(control), str(plan.landlock), str(holding), *plan.rules]

    return Box(*launching.start(plan, door, cgroups, filters, inner))
