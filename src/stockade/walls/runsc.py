"""gVisor's runsc: found, tried by booting a guest under a deadline, and remembered. On the path of every start on that wall: a known answer costs no process.

INVARIANT: a remembered answer is used only while every runsc on this machine looks the same (stat(2)), or the one that was tried has the same SHA-256; and
only for the kernel it booted on. That none works is never remembered: a machine may have been mended.
"""

from __future__ import annotations

import os
import time

from stockade.core import places
from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PROGRAMS = ("/usr/bin/runsc", "/usr/local/bin/runsc", "/usr/sbin/runsc")
OLDEST = 20240729  # the first release known to hold what this wall promises
PLATFORMS = ("systrap", "ptrace", "kvm")  # kvm last: where it does not work it may hang
DEADLINE = 10.0  # seconds that one boot may take
DOUBTED = 3600  # seconds for which an answer is kept that was found while a better platform did not answer in time
PROBE = 1  # of what is tried here, and of the entry's format
MEND = "stockade doctor --wall gvisor --fix"
_TRY = "`stockade doctor --wall gvisor` tries each part and says how to mend it."
# What runsc says of a network namespace that it takes for the host's: Linux shows /proc/sys/net/core/rmem_default in all of them by now.
_MISTAKEN = "cannot run with network enabled in root network namespace"


@frozen
class Found:
    """A runsc that boots here. `version` is its date (20240729); `sys_net_masked` says that /proc/sys/net has to be covered in its view; `digest` is the program's
    SHA-256 in hexadecimal digits, and "" while it is only tried.
    """

    path: str
    version: int
    platform: str
    sys_net_masked: bool
    digest: str = ""


@frozen
class Booted:
    """What a boot has shown: how long the one that worked took (seconds), and whether a platform before it failed for want of time alone."""

    found: Found
    took: float
    doubted: bool


def find() -> Found:
    """The runsc of this machine, and how it boots. Starts no process where that is known.

    Raises CannotEnforce: `gvisor.missing`, `gvisor.old`, `gvisor.boot`, `bubblewrap.missing`; StockadeError `place.unsafe` if somebody else can write
    to the cache.
    """
    seen = "; ".join(look for _, look in _present())
    around = f"{PROBE} {os.geteuid()} {os.uname().release}"
    entry = places.answer("runsc")
    kept = _kept(entry, around)
    if kept is not None and kept.seen == seen:
        return kept.found
    path, version = choose()
    digest = _digest(path)
    if kept is not None and (kept.found.digest, kept.found.path, kept.found.version) == (digest, path, version):
        found, until = kept.found, kept.until
    else:
        booted = boot(path, version)
        found, until = replace(booted.found, digest=digest), int(time.time()) + DOUBTED if booted.doubted else 0
    _keep(entry, around, _Kept(seen, found, until))
    return found


def choose() -> tuple[str, int]:
    """The first runsc that is new enough: (path, version). Raises CannotEnforce (as `find`)."""
    import re

    silent, old = [], []
    for path, _ in _present():
        _, said = _held(path, [], ["--version"])
        date = re.search(r"\b(20\d{6})\.\d", said)  # "release-20240729.0"; Debian's: "0.0~20240729.0"
        if date and int(date[1]) >= OLDEST:
            return path, int(date[1])
        if date:
            old.append(f"{path} is of {date[1]}")
        else:
            silent.append(f"{path} does not tell its version ({_last(said)})")
    if old:
        raise CannotEnforce(f"{', '.join(old + silent)}; the gVisor wall needs {OLDEST} or later", code="gvisor.old", hint=f"Run: {MEND}")
    raise CannotEnforce("; ".join(silent), code="gvisor.boot", hint=_TRY)


def boot(path: str, version: int) -> Booted:
    """Boot a guest that runs `true`, on each platform until one works, at first without covering /proc/sys/net.

    Raises CannotEnforce (`gvisor.boot`) with runsc's own last words if none does.
    """
    said: dict[str, str] = {}
    masked = doubted = False
    for platform in PLATFORMS:
        found = Found(path, version, platform, masked)
        began = time.monotonic()
        status, words = guest(found)
        if status and _MISTAKEN in words and not masked:
            masked = True
            found = Found(path, version, platform, masked)
            began = time.monotonic()
            status, words = guest(found)
        if status == 0:
            return Booted(found, time.monotonic() - began, doubted)
        doubted = doubted or status == 124
        said[platform] = _last(words) or f"status {status}"
    reasons = "; ".join(f"{platform}: {words}" for platform, words in said.items())
    raise CannotEnforce(f"{path} boots no guest here: {reasons}", code="gvisor.boot", hint=_TRY)


def guest(found: Found) -> tuple[int, str]:
    """Boot the smallest guest once: (exit status, what runsc said). 124 when it took too long; nothing of it is left then."""
    import json

    from stockade.walls import system, view

    namespaces: list[dict[str, str]] = [{"type": name} for name in ("pid", "mount", "ipc", "uts")]
    namespaces.append({"type": "network", "path": "/proc/self/ns/net"})  # an empty one, which bubblewrap has made
    configuration = {
        "ociVersion": "1.0.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "env": [], "cwd": "/"},
        "root": {"path": "/sandbox", "readonly": True},
        "linux": {"namespaces": namespaces},
    }
    shown = ["--tmpfs", "/tmp", "--tmpfs", "/state", "--dir", "/sandbox", *view.base(system.links(), "/sandbox")[0]]
    for name in ("proc", "dev", "sys", "tmp"):
        shown += ["--dir", f"/sandbox/{name}"]
    if found.sys_net_masked:
        shown += ["--tmpfs", "/proc/sys/net"]
    if found.platform == "kvm":
        shown += ["--dev-bind-try", "/dev/kvm", "/dev/kvm"]
    words = ["--root=/state", f"--platform={found.platform}", "--network=sandbox", "--ignore-cgroups", "--overlay2=none"]
    return _held(found.path, shown, [*words, "run", "-bundle", "/bundle", "probe"], json.dumps(configuration).encode())


def _held(path: str, shown: Sequence[str], words: Sequence[str], configuration: bytes = b"{}") -> tuple[int, str]:
    """Run runsc as the first process of a bubblewrap's namespaces, as the wall does: (exit status, what was said). 124 when it took too long."""
    import subprocess

    from stockade.walls import bubblewrap, limits
    from stockade.walls.programs import printable

    base = ["--unshare-user", "--uid", "0", "--gid", "0", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net"]
    base += [
        "--cap-add",
        "ALL",
        "--as-pid-1",
        "--die-with-parent",
        "--clearenv",
        "--ro-bind",
        path,
        "/runsc",
        "--proc",
        "/proc",
        "--dev",
        "/dev",
    ]
    program = bubblewrap.program()
    said, bundle = os.memfd_create("said", os.MFD_CLOEXEC), os.memfd_create("config.json", os.MFD_CLOEXEC)
    try:
        os.pwrite(bundle, configuration, 0)
        command = [program, *base, *shown, "--ro-bind-data", str(bundle), "/bundle/config.json", "--", "/runsc", *words]
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=[bundle])
        try:
            status = child.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            return 124, f"no answer within {DEADLINE:g} s"
        finally:
            if child.poll() is None:
                limits.end_below(child.pid)
                child.kill()
                child.wait()
        size = os.fstat(said).st_size
        return status, printable(os.pread(said, 4000, max(0, size - 4000)))
    finally:
        os.close(said)
        os.close(bundle)


def _last(said: str) -> str:
    """The last line of what a program said, of a bearable length."""
    return said.strip().rpartition("\n")[2][:300]


def _present() -> list[tuple[str, str]]:
    """Each runsc on this machine, and what it looks like: that changes whenever it is replaced. Raises CannotEnforce (`gvisor.missing`)."""
    present = []
    for path in PROGRAMS:
        try:
            found = os.stat(path)
        except OSError:
            continue
        if found.st_mode & 0o170000 == 0o100000 and os.access(path, os.X_OK):
            present.append((path, f"{path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"))
    if not present:
        raise CannotEnforce(
            f"gVisor's runsc is not installed (looked for {', '.join(PROGRAMS)})", code="gvisor.missing", hint=f"Run: {MEND}"
        )
    return present


def _digest(path: str) -> str:
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- the entry: lines of text, so that reading it takes no parser --------------------------------------------------------------


@frozen
class _Kept:
    seen: str
    found: Found
    until: int  # seconds since 1970; 0: as long as nothing changes


def _kept(entry: str, around: str) -> _Kept | None:
    """The answer that was found under the same circumstances; None if there is none, it is too old, or not what we wrote."""
    try:
        fd = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with open(fd, "rb") as file:
        status = os.fstat(fd)
        if status.st_uid != os.geteuid() or status.st_mode & 0o022 or status.st_mode & 0o170000 != 0o100000:
            return None
        lines = file.read(10_000).decode("utf-8", "replace").split("\n")
    if len(lines) != 9 or lines[0] != around or lines[8]:
        return None
    _, seen, digest, path, version, platform, masked, until, _ = lines
    try:
        kept = _Kept(seen, Found(path, int(version), platform, masked == "1", digest), int(until))
    except ValueError:
        return None
    known = path in PROGRAMS and platform in PLATFORMS and masked in ("0", "1") and kept.found.version >= OLDEST
    return kept if known and (kept.until == 0 or kept.until > time.time()) else None


def _keep(entry: str, around: str, kept: _Kept) -> None:
    """Write the answer whole or not at all. A full disk costs speed, nothing else."""
    found = kept.found
    lines = (around, kept.seen, found.digest, found.path, found.version, found.platform, int(found.sys_net_masked), kept.until)
    temporary = f"{entry}.{os.getpid()}.{os.urandom(4).hex()}"
    if not entry:
        return
    try:
        opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(opened, "w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in lines))
        os.replace(temporary, entry)
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            return
