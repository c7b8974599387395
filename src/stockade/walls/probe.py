"""Does the bubblewrap wall work on this machine? Found out by doing each part of it once, never by looking at a version table or a file's existence.

Every check is a small function that returns a `Check` and raises nothing. `bubblewrap_wall` runs them in order; what cannot be tried because
an earlier part is missing says so.
"""

from __future__ import annotations

import fcntl
import os
import re
import select
import shutil
import tempfile
import time
from typing import TYPE_CHECKING, Literal

from stockade.core import places
from stockade.core.errors import StockadeError, WallFailed
from stockade.core.frozen import frozen
from stockade.core.values import Confinement, Limits, Mount, Overlay
from stockade.walls import bubblewrap, door, limits, native, seccomp
from stockade.walls.box import NO_WAIT
from stockade.walls.programs import printable, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.walls.box import Box
    from stockade.walls.door import Door

DEADLINE = 5.0  # seconds that one box or program may take
OLDEST = (0, 8)  # bubblewrap with --disable-userns, --bind-fd and --add-seccomp-fd
NEEDED = ("--disable-userns", "--bind-fd", "--ro-bind-fd", "--add-seccomp-fd", "--args")
SYSCTL = "/proc/sys"
SMALL = Limits(processes=64, memory=1 << 30, open_files=1024, scratch=16 << 20, file_size=16 << 20)

type Need = Literal["required", "useful", "information"]


@frozen
class Check:
    """One thing that was tried. `seen` is what happened, `why` what it is for, `fix` the command that mends it (or advice where no command can).

    `need`: without a required one the wall does not work; without a useful one it works with less, and `seen` says with how much less.
    `packages` are Debian packages that mend it.
    """

    name: str
    ok: bool
    seen: str
    why: str
    fix: str = ""
    need: Need = "required"
    packages: tuple[str, ...] = ()

    @property
    def status(self) -> str:
        """ "ok", "missing", "degraded", or "information"."""
        if self.need == "information":
            return "information"
        return "ok" if self.ok else "missing" if self.need == "required" else "degraded"


def bubblewrap_wall() -> Iterator[Check]:
    """All checks of the default wall, each as soon as it is known."""
    yield own_directories()
    yield helper()
    program = bubblewrap_program()
    yield program
    yield filters()
    spaces, made = namespaces()
    yield spaces
    if made is None or not program.ok:
        lacking = "user namespaces" if made is None else "bubblewrap"
        yield Check("box", False, f"not tried: it needs {lacking}", "a whole sandbox has to run a command", "See above.")
    else:
        with tempfile.TemporaryDirectory(prefix="stockade-doctor-") as scratch:
            yield from box(made, os.path.realpath(scratch))
        yield overlays(made)
    if made is not None:
        made.close()
    yield leases()
    yield cgroups()
    yield git()


def own_directories() -> Check:
    """State and cache: ours alone, and writable."""
    why = "the ledger and the compiled filters must be out of everybody else's reach"
    try:
        for place in (places.state(), places.cache()):
            places.private(place.rstrip("/"))
            with tempfile.TemporaryFile(dir=place):
                pass
    except StockadeError as error:
        return Check("own directories", False, error.message, why, error.hint)
    except OSError as error:
        return Check("own directories", False, f"{place}: {error.strerror}", why, f"Free some space, or: chmod u+rwx {place}")
    return Check("own directories", True, f"{places.state()} and {places.cache()} are writable, and private", why)


def helper() -> Check:
    """The small native program starts."""
    why = "it makes the door, and is the first process of every sandbox"
    status, said = run([native.STEP])
    if status == 125 and "step" in said:
        return Check("native helper", True, "starts", why)
    fix = "sudo apt-get install -y gcc libc6-dev && pip install --force-reinstall --no-cache-dir stockade"
    return Check("native helper", False, f"{native.STEP}: {said or f'status {status}'}", why, fix, packages=("gcc", "libc6-dev"))


def bubblewrap_program() -> Check:
    """bubblewrap runs, and has the options that the wall cannot do without."""
    why = "it builds the namespaces and mounts of the sandbox"
    fix = "sudo apt-get install -y bubblewrap"
    try:
        program = bubblewrap.look(places.home()).bwrap
    except StockadeError as error:
        return Check("bubblewrap", False, error.message, why, fix, packages=("bubblewrap",))
    _, said = run([program, "--version"])
    found = re.search(r"(\d+)\.(\d+)", said)
    _, options = run([program, "--help"])
    lacking = [option for option in NEEDED if option not in options]
    if found is None or (int(found[1]), int(found[2])) < OLDEST or lacking:
        seen = f"{program} says {said!r}{', lacks ' + ' '.join(lacking) if lacking else ''}; needed is {OLDEST[0]}.{OLDEST[1]} or later"
        return Check("bubblewrap", False, seen, why, fix, packages=("bubblewrap",))
    return Check("bubblewrap", True, f"{program} {found[0]}", why)


def filters() -> Check:
    """libseccomp compiles our filters (or they lie compiled in the cache)."""
    why = "the list of system calls that a sandbox may make"
    try:
        for fd in seccomp.filters():
            os.close(fd)
    except StockadeError as error:
        return Check("seccomp filters", False, error.message, why, "sudo apt-get install -y libseccomp2", packages=("libseccomp2",))
    return Check("seccomp filters", True, "compiled", why)


def namespaces() -> tuple[Check, Door | None]:
    """A door can be made: user and network namespace, AnyIP routes, listening sockets."""
    why = "the sandbox's namespaces, made without root, and its only way to the network"
    try:
        made = door.make()
    except WallFailed as error:
        seen, fix = userns_trouble(error.message)
        return Check("user namespaces", False, seen, why, fix), None
    return Check("user namespaces", True, f"a door with {len(made.sockets())} listening sockets was made", why), made


def userns_trouble(seen: str, root: str = SYSCTL) -> tuple[str, str]:
    """Why user namespaces are refused here, and what mends it. `seen` is the failure, `root` the directory of the sysctls."""

    def mend(setting: str, value: str) -> str:
        file = "/etc/sysctl.d/60-stockade.conf"
        return f"echo '{setting} = {value}' | sudo tee -a {file} && sudo sysctl -p {file}"

    if _sysctl(root, "user/max_user_namespaces") == "0":
        return f"{seen}; user.max_user_namespaces is 0", mend("user.max_user_namespaces", "15000")
    if _sysctl(root, "kernel/unprivileged_userns_clone") == "0":
        return f"{seen}; kernel.unprivileged_userns_clone is 0", mend("kernel.unprivileged_userns_clone", "1")
    if _sysctl(root, "kernel/apparmor_restrict_unprivileged_userns") == "1":
        profiles = "".join(
            f"profile {name} {path} flags=(unconfined) {{ userns, }}\\n"
            for name, path in (("stockade-step", native.STEP), ("stockade-bwrap", bubblewrap.PROGRAMS[0]))
        )
        fix = f"printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\n{profiles}' | sudo tee /etc/apparmor.d/stockade && sudo apparmor_parser -r /etc/apparmor.d/stockade"
        return f"{seen}; AppArmor restricts unprivileged user namespaces (kernel.apparmor_restrict_unprivileged_userns is 1)", fix
    if "ENOSPC" in seen:  # the limit of an enclosing namespace counts too, and cannot be read from here (namespaces(7))
        return (
            f"{seen}; the number of user namespaces is used up, or a surrounding sandbox allows none",
            f"Run stockade outside of that sandbox; or, if it is the number: {mend('user.max_user_namespaces', '15000')}",
        )
    if os.path.exists("/.dockerenv") or os.path.exists("/run/.containerenv"):
        return (
            f"{seen}; this is a container",
            "Start the container with: --security-opt seccomp=unconfined --security-opt apparmor=unconfined",
        )
    return (
        f"{seen}; no sysctl forbids it, so a surrounding sandbox or container does",
        "Run stockade outside of it, or let whoever made it allow user namespaces (Docker: --security-opt seccomp=unconfined).",
    )


def _sysctl(root: str, name: str) -> str:
    try:
        with open(f"{root}/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""


def box(made: Door, scratch: str) -> Iterator[Check]:
    """A whole sandbox under a deadline: it runs `true`, a forbidden call is refused, Landlock is on, the keyrings are hidden."""
    whole = "a whole sandbox has to run a command"
    began = time.monotonic()
    try:
        wanted = Confinement(mounts=(Mount(scratch, scratch, "rw"),), network="door", limits=SMALL, home="/home/user")
        one = bubblewrap.open_box(bubblewrap.plan(wanted, bubblewrap.look(wanted.home)), made)
    except StockadeError as error:
        yield Check("box", False, error.message, whole, error.hint)
        return
    try:
        code, said = inside(one, ["true"])
        if code:
            yield Check("box", False, f"`true` inside gave status {code}: {said}", whole, "stockade log show tells more; please report it.")
            return
        yield Check("box", True, f"ran `true` inside, {(time.monotonic() - began) * 1000:.0f} ms", whole)
        yield _landlock(one.landlock)
        yield _seccomp(one)
        yield _keyrings(one)
    except StockadeError as error:
        if "landlock" in error.message:
            yield _landlock(0)
        yield Check("box", False, error.message, whole, "Mend what is listed above first." if "landlock" in error.message else error.hint)
    finally:
        one.close()


def _landlock(abi: int) -> Check:
    why = "a second, independent lock on files; scopes signals and abstract sockets on newer kernels"
    if abi >= bubblewrap.LANDLOCK:
        return Check("Landlock", True, f"ABI {abi}, as the sandbox's first process reports it", why)
    active = _sysctl("/sys/kernel/security", "lsm")
    fix = "Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK, and `landlock` first in the kernel parameter lsm="
    if active:
        fix = (
            f"sudo sed -i 's/^GRUB_CMDLINE_LINUX=\"/&lsm=landlock,{active} /' /etc/default/grub && sudo update-grub && sudo reboot  # {fix}"
        )
    return Check("Landlock", False, "this kernel offers none", why, fix)


def _seccomp(one: Box) -> Check:
    why = "a filter that is loaded but lets everything pass would be worth nothing"
    _, status = inside(one, ["/bin/cat", "/proc/self/status"])
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    code, said = inside(one, ["unshare", "--user", "true"])
    held = facts.get("Seccomp") == "2" and facts.get("NoNewPrivs") == "1" and int(facts.get("CapEff", "1"), 16) == 0
    tried = (
        "unshare(2) inside: refused"
        if code and code != 127
        else "unshare(1) is not installed"
        if code == 127
        else "unshare(2) inside: WORKED"
    )
    seen = f"{facts.get('Seccomp_filters', '?')} filters on, no capabilities; {tried}"
    ok = held and code != 0
    return Check(
        "seccomp holds", ok, seen if ok else f"{seen}; {said}", why, "" if ok else "Please report this: the wall does not hold here."
    )


def _keyrings(one: Box) -> Check:
    why = "the kernel keeps secrets of your login session in keyrings, and a sandbox inherits them unless it gets its own"
    if not os.path.exists("/proc/keys"):
        return Check("keyrings", True, "this kernel has none", why)
    code, said = inside(one, ["/bin/cat", "/proc/keys"])
    ok = code != 0
    return Check(
        "keyrings",
        ok,
        "hidden: /proc/keys cannot be read inside" if ok else f"visible inside: {said[:80]}",
        why,
        "" if ok else "Please report this.",
    )


def overlays(made: Door) -> Check:
    """overlayfs in a user namespace, on the file system of our state directory: what keeps `.git` private."""
    why = "inside, `.git` is a private layer, so that commits work and hooks never reach the host"
    fix = (
        'export XDG_STATE_HOME=DIR with DIR on ext4, xfs, btrfs or tmpfs; or in the policy, [workspace] git = "ro": no commits inside then'
    )
    scratch = ""
    try:
        scratch = tempfile.mkdtemp(prefix="doctor-", dir=places.private(places.state().rstrip("/")))
        scratch = os.path.realpath(scratch)
        for name in ("lower", "upper", "work", "stage", "stage/0"):
            os.mkdir(f"{scratch}/{name}", 0o700)
        with open(f"{scratch}/lower/old", "w") as file:
            file.write("as before")
        layer = Overlay(f"{scratch}/lower", f"{scratch}/upper", f"{scratch}/work", "/mnt/layer")
        wanted = Confinement(overlays=(layer,), network="door", limits=SMALL, home="/home/user")
        one = bubblewrap.open_box(bubblewrap.plan(wanted, bubblewrap.look(wanted.home), stage=f"{scratch}/stage"), made)
        try:
            code, said = inside(one, ["/bin/sh", "-c", "cd /mnt/layer && cat old && echo new > old"])
        finally:
            one.close()
        with open(f"{scratch}/lower/old") as file:
            untouched = file.read() == "as before"
        if code or not untouched:
            return Check("overlayfs", False, said or "the lower layer was written to", why, fix, "useful")
    except (OSError, StockadeError) as error:
        return Check("overlayfs", False, str(error), why, fix, "useful")
    finally:
        if scratch:
            _discard(scratch)
    return Check("overlayfs", True, "a private layer took a write, the layer below did not", why)


def _discard(scratch: str) -> None:
    try:
        os.chmod(f"{scratch}/work/work", 0o700)  # overlayfs leaves it closed
    except OSError:
        pass
    shutil.rmtree(scratch, ignore_errors=True)


def leases() -> Check:
    """A write lease on the file system of the state directory."""
    why = "the gate's certificate is made when somebody first opens it; without leases the gate starts with every run"
    try:
        with tempfile.NamedTemporaryFile(dir=places.private(places.state().rstrip("/"))) as file:
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_WRLCK)
            fcntl.fcntl(file.fileno(), fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, StockadeError) as error:
        fix = "export XDG_STATE_HOME=DIR with DIR on a local file system (ext4, xfs, btrfs, tmpfs)"
        return Check("file leases", False, f"{error}: every run starts the gate at once, some 0.3 s more", why, fix, "useful")
    return Check("file leases", True, "granted", why, need="useful")


def cgroups() -> Check:
    """Whether the kernel itself can hold the limits on processes and memory."""
    why = "limits on the sum of processes and memory, held by the kernel"
    groups = limits.join(f"stockade-doctor-{os.getpid()}", SMALL)
    held = sorted(groups.held)
    groups.close()
    if {"memory", "processes"} <= set(held):
        return Check("cgroups", True, "memory and processes are held by cgroups", why, need="useful")
    seen = f"{' and '.join(held) or 'nothing'} held by cgroups; the rest by rlimits and a watchdog every {limits.INTERVAL:g} s"
    fix = 'systemd-run --user --scope -p "Delegate=memory pids" -- stockade run -- COMMAND'
    return Check("cgroups", False, seen, why, fix, "useful")


def git() -> Check:
    """git on the host."""
    why = "brings back as data what was committed inside"
    status, said = run(["git", "--version"])
    if status:
        fix = "sudo apt-get install -y git"
        return Check("git", False, said or "not found", why, fix, "useful", ("git",))
    return Check("git", True, said, why, need="useful")


def inside(one: Box, argv: Sequence[str]) -> tuple[int, str]:
    """Run a command in a box under the deadline: (exit code, what it said, printable). Raises WallFailed when the box broke or took too long."""
    said = os.memfd_create("doctor", os.MFD_CLOEXEC)
    try:
        child = one.spawn(argv, env={"PATH": "/usr/bin:/bin"}, stdout=said, stderr=said)
        late = time.monotonic() + DEADLINE
        poll = select.poll()
        poll.register(one.fileno(), select.POLLIN)
        while child.status is None and not child.error:
            left = late - time.monotonic()
            if left <= 0:
                raise WallFailed(
                    f"the sandbox did not answer within {DEADLINE:g} s", code="wall.slow", hint="Is the machine very busy? Try again."
                )
            poll.poll(left * 1000)
            try:
                one.step(NO_WAIT)
            except BlockingIOError:
                continue
        return child.exit_code, printable(os.pread(said, 4000, 0))
    finally:
        os.close(said)
