"""The bubblewrap wall: rootless namespaces, seccomp and Landlock around a command.

`plan` is a pure function from what is wanted to the whole argument vector; `open_box` carries it out. Inside, our own init (`native/step.c inside`)
applies Landlock and then starts commands on request, so that every command of one box sees the same /tmp, home and processes.
"""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce, WallFailed
from stockade.core.frozen import frozen
from stockade.core.values import Enforced, Limits
from stockade.walls import native, seccomp, system
from stockade.walls.box import Box

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.values import Confinement, Overlay
    from stockade.walls.door import Door

NAME = "bubblewrap"
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

    `arguments` go to bubblewrap; "@N" in them stands for the descriptor of `paths[N]` (opened without following a final symlink). `overlays` are
    mounted at the paths in `stages` before, and each of `held` ("ro:PATH", "rw:PATH") is made a mount of itself afterwards. `rules` are
    Landlock's. `rlimits` are (resource, value) pairs of setrlimit(2).
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
    arguments = ["--unshare-user", "--disable-userns", "--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    if wanted.network == "none" and not dangerously_share_host_network:
        arguments.append("--unshare-net")
    size = ["--size", str(wanted.limits.scratch)] if wanted.limits.scratch else []
    arguments += ["--cap-drop", "ALL", "--as-pid-1", "--clearenv", "--hostname", system.HOSTNAME, "--ro-bind", "/usr", "/usr"]
    rules = ["ro:/usr", "ro:/etc"]
    for target, path in host.links:
        if target == path:  # not merged: a directory of its own
            arguments += ["--ro-bind", path, path]
            rules.append(f"ro:{path}")
        else:
            arguments += ["--symlink", target, path]
    # /proc/sys belongs to the real root: a sandbox run by root could set core_pattern without any capability, were it not read-only.
    arguments += ["--ro-bind", host.etc, "/etc", "--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys"]
    arguments += ["--dev", "/dev", *size, "--perms", "1777", "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    for path in host.masked:  # an unreadable file: an error is honest, an empty one would be a lie
        arguments += ["--ro-bind", "/dev/null", path]
    for path in ("/tmp", "/var/tmp"):
        arguments += [*size, "--perms", "1777", "--tmpfs", path]
    arguments += ["--perms", "0755", "--dir", "/run", *size, "--perms", "0700", "--tmpfs", wanted.home]
    rules += [f"rw:{path}" for path in ("/tmp", "/var/tmp", "/dev", wanted.home)]

    paths: list[str] = []
    stages = tuple(f"{stage}/{index}" for index in range(len(wanted.overlays)))
    binds: list[tuple[str, list[str], str]] = []
    for index, overlay in enumerate(wanted.overlays):
        binds.append((overlay.target, ["--bind", stages[index], overlay.target], f"rw:{overlay.target}"))
    for mount in wanted.mounts:
        check_target(mount.target)
        if mount.mode not in ("ro", "rw"):
            raise CannotEnforce(
                f"{mount.target}: {mount.mode} is offered for the workspace only",
                code="mount.mode",
                hint="Mount this folder ro, or make it the workspace.",
            )
        paths.append(mount.source)
        verb = "--ro-bind-fd" if mount.mode == "ro" else "--bind-fd"
        binds.append((mount.target, [verb, f"@{len(paths) - 1}", mount.target], f"{mount.mode}:{mount.target}"))
    # Parents before children, so that a mount is never hidden by one above it; the order of equals is the policy's.
    for _, words, rule in sorted(binds, key=lambda item: item[0].count("/") if item[0] != "/" else 0):
        arguments += words
        rules.append(rule)
    arguments += ["--remount-ro", "/", "--chdir", "/"]
    rules.append("ro:/")  # a read-only tmpfs of ours; what lies in it is listed above
    network = "host" if dangerously_share_host_network else wanted.network
    return Plan(
        arguments=tuple(arguments),
        paths=tuple(paths),
        overlays=wanted.overlays,
        stages=stages,
        held=wanted.held,
        rules=tuple(dict.fromkeys(rules)),
        landlock=LANDLOCK,
        rlimits=rlimits(wanted.limits),
        network=network,
        bwrap=host.bwrap,
        enforced=enforced(wanted, network),
    )


RESERVED = ("/", "/usr", "/etc", "/proc", "/dev", "/sys", "/bin", "/sbin", "/lib", "/lib64")


def check_target(target: str) -> None:
    """Raises CannotEnforce (`mount.target`) for a place inside that must stay ours, or a path that is not absolute and plain."""
    if not target.startswith("/") or os.path.normpath(target) != target or "\0" in target:
        raise CannotEnforce(
            f"a mount target must be an absolute, plain path, not {target!r}", code="mount.target", hint="Write it without `..` or `//`."
        )
    if target in RESERVED or target.startswith(("/proc/", "/dev/", "/sys/")):
        raise CannotEnforce(
            f"{target} inside the sandbox belongs to the wall",
            code="mount.target",
            hint="Mount it somewhere else with `at`, for example /mnt/data.",
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
    lines += [Enforced(f"mount {mount.target}", "read-only bind" if mount.mode == "ro" else "bind", mount.mode) for mount in wanted.mounts]
    lines += [Enforced(f"overlay {overlay.target}", "overlayfs, private upper layer") for overlay in wanted.overlays]
    fixed = [held[3:] for held in wanted.held if held.startswith("ro:")]
    if fixed:
        lines.append(
            Enforced("held in place", "read-only binds, and one for each folder on the way", f"{len(fixed)}: {', '.join(fixed[:20])}")
        )
    return tuple(lines)


def open_box(plan: Plan, door: Door | None = None, cgroups: Sequence[int] = ()) -> Box:
    """Start the sandbox of `plan` and return without waiting for it; the first `step()` tells whether it stands.

    `door` must be given exactly when the plan's network is "door"; `cgroups` are descriptors of cgroup.procs files to join.
    Raises CannotEnforce when a path cannot be opened as planned, WallFailed when the helper cannot be started.
    """
    if (plan.network == "door") != (door is not None):
        raise WallFailed("the plan's network and the door do not match", code="wall.network", hint="This is a bug in stockade.")
    opened: list[int] = []
    ours, theirs = native.pair()
    try:
        launch: list[str] = ["launch"]
        joined: list[int] = []
        if door is not None:
            joined = [door.user, door.network]
            launch += [f"user={door.user}", f"net={door.network}"]
        elif plan.overlays or plan.held:
            raise CannotEnforce(
                "an overlay or a held path needs the door's user namespace", code="overlay.network", hint="This is a bug in stockade."
            )
        for overlay, stage in zip(plan.overlays, plan.stages, strict=True):
            triple = [pinned(path) for path in (overlay.lower, overlay.upper, overlay.work)]
            opened += triple
            launch.append(f"overlay={triple[0]}:{triple[1]}:{triple[2]}:{stage}")
        holding = -1
        if plan.held:
            wait, holding = native.credentials_pair()
            opened += [wait, holding, native.blob(b"".join(os.fsencode(word) + b"\0" for word in plan.held))]
            launch.append(f"hold={opened[-1]}:{wait}")
        inherit = [*joined, *opened, *cgroups]
        launch += [f"cgroup={fd}" for fd in cgroups]
        launch += [f"rlimit={resource}:{value}" for resource, value in plan.rlimits]
        kept = [pinned(path) for path in plan.paths]
        opened += kept
        filters = seccomp.filters()
        opened += filters
        try:
            step = os.open(native.STEP, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise native.missing(error) from error
        opened.append(step)
        words = [str(kept[int(word[1:])]) if word[:1] == "@" else word for word in plan.arguments]
        words += ["--add-seccomp-fd", str(filters[0]), "--add-seccomp-fd", str(filters[1])]
        inner = [f"/proc/self/fd/{step}", "inside", str(theirs.fileno()), str(plan.landlock), str(holding), *plan.rules]
        arguments = native.blob(b"".join(os.fsencode(word) + b"\0" for word in words))
        opened.append(arguments)
        keep = [*kept, *filters, step, arguments, theirs.fileno(), *([holding] if plan.held else [])]
        launch += [f"keep={fd}" for fd in keep]
        stderr = os.memfd_create("bwrap", os.MFD_CLOEXEC)
        try:
            pid = native.spawn([*launch, "--", plan.bwrap, "--args", str(arguments), *inner], [*inherit, *keep], stderr)
        except BaseException:
            os.close(stderr)
            raise
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        for fd in opened:
            os.close(fd)
    return Box(ours, pid, stderr)


def pinned(path: str) -> int:
    """A descriptor (O_PATH) that pins `path` as it was judged: no component may be a symlink by now (openat2 is not in Python; O_PATH, then compare).

    Raises CannotEnforce (`mount.source`, `mount.symlink`).
    """
    try:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CannotEnforce(
            f"cannot open {path}: {error.strerror}", code="mount.source", hint="It must exist before the start; nothing was run."
        ) from error
    # O_PATH with O_NOFOLLOW opens a final symlink itself (open(2)), under its own name.
    if os.readlink(f"/proc/self/fd/{fd}") != path or os.fstat(fd).st_mode & 0o170000 == 0o120000:
        os.close(fd)
        raise CannotEnforce(
            f"{path} is reached through a symbolic link",
            code="mount.symlink",
            hint="Name the real path; links are resolved once, before they are judged.",
        )
    return fd
