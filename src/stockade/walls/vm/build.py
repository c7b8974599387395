"""Building an image of a machine: Debian's packages by mmdebstrap, the root by mkfs.erofs, what it starts from by initrd.py. Nothing here is on the way of a sandbox.

mmdebstrap runs as root, or for an ordinary user in a user namespace (its mode "unshare"); in both apt checks what it fetches by the archive's key. The same packages,
tools, options and date give the same bytes. Sources: mmdebstrap(1), mkfs.erofs(1), https://reproducible-builds.org/specs/source-date-epoch/.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
from typing import TYPE_CHECKING

from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.frozen import frozen
from stockade.walls import debian, programs
from stockade.walls.vm import image, initrd, store
from stockade.walls.vm.image import File, Manifest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.walls.debian import Source
    from stockade.walls.vm.image import Image, Place

    Progress = Callable[[str], None]  # what is done now

SUITES = ("bookworm", "trixie")  # Debian 12 and 13: what is taken from the machine itself
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
TOOLS = {
    "mmdebstrap": "mmdebstrap",
    "mkfs.erofs": "erofs-utils",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "unshare": "util-linux",
}  # program: its package
# What an agent finds on a plain developer's machine. No daemons, and no systemd: the wall's own program is the first process.
PACKAGES = (
    "bash", "ca-certificates", "coreutils", "curl", "file", "findutils", "gawk", "git", "grep", "iproute2", "jq", "less", "make", "mount", "openssh-client", "patch", "procps",
    "python3", "ripgrep", "sed", "unzip", "xz-utils",
)  # fmt: skip
_LEFT_OUT = ("doc", "info", "lintian", "locale", "man")  # of /usr/share; licences stay
_UUID = "5a0c4ade-0000-4000-8000-000000000001"  # of the file system; it means nothing, and is the same each time
EROFS = (
    "mkfs.erofs",
    "--quiet",
    "-zlz4hc",
    "-x-1",
    "-U",
    _UUID,
    "--exclude-regex=^(dev|proc|run|sys|tmp)/",
)  # no times and names of this machine, no attributes
_OUT = "/tmp/stockade-build"
_CLEANING = 60.0  # seconds for mmdebstrap to remove its directory when a build is broken off
# What mmdebstrap says that people want to know; the last is when it runs our hook.
_STEPS = (
    "I: running apt-get update",
    "I: downloading",
    "I: extracting",
    "I: installing",
    "I: removing tempdir",
    "I: running --customize-hook",
)
_MADE = ("root.erofs", "packages", "linux.deb", "busybox.deb")
# Run by mmdebstrap when all is installed, with the root in $1. The file system is made here: only here do files belong to whom they should. apt's sources go,
# so that the same packages from another mirror are the same image; and what is mounted for the packages' scripts, so that it is the same for root and for others.
_HOOK = rf"""set -eu
root=$1
cd "$root"
out=$root{_OUT}
mkdir -m 755 "$out"
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
kernel=$(apt-cache show --no-all-versions linux-image-amd64 | sed -n 's/^Depends: \([^ ,]*\).*/\1/p')
(cd "$out" && apt-get -qq download "$kernel" busybox-static && mv linux-image-*.deb linux.deb && mv busybox-static_*.deb busybox.deb)
{{ chroot "$root" dpkg-query -W -f '${{Package}}=${{Version}}\n'; for one in linux busybox; do dpkg-deb -W --showformat '${{Package}}=${{Version}}\n' "$out/$one.deb"; done; }} >"$out/packages"
rm -rf "$root"/var/lib/apt/lists/* "$root"/etc/apt/sources.list "$root"/etc/apt/sources.list.d/* "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -f "$root"/etc/machine-id "$root"/var/lib/dbus/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf "$root"/etc/ssh/ssh_host_* "$root"/etc/*- "$root"/var/lib/dpkg/*-old
find "$root/var/cache" "$root/var/log" -type f -delete
find "$root/usr" -xdev -type f -perm /6000 -exec chmod a-s {{}} +
mkdir -p "$root/home" "$root/mnt" "$root/root" "$root/var/tmp"
: >"$root/etc/machine-id"
unshare --mount sh -euc 'for one in dev proc sys; do ! mountpoint -q $one || umount -l $one; done; touch -d "@$SOURCE_DATE_EPOCH" dev proc run sys tmp; exec "$@"' \
  sh {shlex.join(EROFS)} "-T$SOURCE_DATE_EPOCH" "$out/root.erofs" "$root"
chmod 644 "$out"/*
"""


@frozen
class Recipe:
    """How an image is made: the release, packages besides PACKAGES, where they come from, and the date of all files (seconds since 1970)."""

    suite: str
    extra: tuple[str, ...]
    sources: tuple[Source, ...]
    date: int

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(sorted({*PACKAGES, *self.extra}))

    @property
    def digest(self) -> str:
        """Of everything but mirrors, versions and the date."""
        from hashlib import sha256

        return sha256(repr((image.FORMAT, self.suite, self.packages, _LEFT_OUT, _HOOK, initrd.INIT, initrd.MODULES)).encode()).hexdigest()


def recipe(suite: str = "", extra: Sequence[str] = (), *, mirror: str = "", sources: str = "", date: str = "") -> Recipe:
    """The recipe for these options: a release (default: this machine's), packages, a mirror's address or a file of apt's sources (default: this machine's), an ISO date (UTC;
    default: today). Raises StockadeError (`cli.usage`, `vm.suite`, `vm.sources`).
    """
    if not suite:
        try:
            suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        except OSError:
            suite = ""
        if suite not in SUITES:
            raise StockadeError(
                "this machine is neither Debian 12 nor 13", code="vm.suite", hint=f"Say which to build: --suite {SUITES[-1]} --mirror URL"
            )
    for name in (suite, *extra):
        if not re.fullmatch(r"[a-z0-9][a-z0-9+.-]*", name):
            raise StockadeError(f"{name!r} names no release or package of Debian", code="cli.usage", hint="Such as: --include nodejs npm")
    return Recipe(suite, tuple(extra), _sources(suite, mirror, sources), _seconds(date))


def _sources(suite: str, mirror: str, file: str) -> tuple[Source, ...]:
    if mirror:
        if not debian.plain_address(mirror):
            raise StockadeError(
                f"{mirror!r} is no mirror's address, or there is a password in it",
                code="cli.usage",
                hint="It may be that of a date in an archive of all versions.",
            )
        signed = (("Signed-By", KEYRING),) if os.path.exists(KEYRING) else ()
        return (debian.Source((mirror,), (suite,), ("main",), (*signed, ("Check-Valid-Until", "no"))),)  # a date's own lists have expired
    found = debian.sources([file]) if file else debian.releases(debian.sources(), suite)
    if not found:
        what = f"{file} has no sources" if file else f"apt's sources here have no main archive of Debian's {suite}"
        raise StockadeError(what, code="vm.sources", hint="Name a mirror: --mirror URL; or a file as apt's own: --sources FILE")
    return tuple(found)


def _seconds(date: str) -> int:
    import datetime

    if not date:
        return int(time.time()) // 86400 * 86400
    try:
        when = datetime.datetime.fromisoformat(date)
    except ValueError as error:
        raise StockadeError(f"--date: {error}", code="cli.usage", hint="Such as 2026-01-31, or 2026-01-31T12:00:00+00:00.") from None
    return int((when if when.tzinfo else when.replace(tzinfo=datetime.UTC)).timestamp())


def require() -> None:
    """Raises CannotEnforce (`vm.tools`) where something is missing that builds."""
    lacking = sorted({package for program, package in TOOLS.items() if not shutil.which(program)})
    if platform.machine() != "x86_64":
        raise CannotEnforce(
            f"images are built for x86_64 so far, and this is {platform.machine()}", code="vm.tools", hint="Use another wall."
        )
    if os.geteuid() and not shutil.which("newuidmap"):
        lacking.append("uidmap")
    if lacking:
        hint = f"Debian: sudo apt install {' '.join(lacking)}   (or: stockade doctor --wall vm --fix)"
        raise CannotEnforce(f"building an image needs {', '.join(lacking)}", code="vm.tools", hint=hint)
    if os.geteuid() and not _subordinate():
        user = os.environ.get("USER") or str(os.geteuid())
        hint = f"sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}   (or let root build one for all: sudo {image.BUILD} --system)"
        raise CannotEnforce("an ordinary user needs subordinate user IDs to build an image, and you have none", code="vm.tools", hint=hint)


def _subordinate() -> bool:
    """Whether we have subordinate IDs, as newuidmap(1) finds them."""
    import pwd

    try:
        names = {str(os.geteuid()), pwd.getpwuid(os.geteuid()).pw_name}
    except KeyError:
        names = {str(os.geteuid())}
    for file in ("/etc/subuid", "/etc/subgid"):
        try:
            with open(file, encoding="utf-8", errors="replace") as lines:
                if not any(line.partition(":")[0] in names for line in lines):
                    return False
        except OSError:
            return False
    return True


def build(wanted: Recipe, place: Place, progress: Progress = lambda _: None) -> Image:
    """Build an image, give it its place there, and use it from now on. Nothing is left of it if that fails or is broken off; after kill -9 the next build
    removes what is here, and mmdebstrap's own directory may stay in TMPDIR.

    Raises StockadeError (`vm.tools`, `vm.build`, `vm.kernel`, `place.unsafe`, `place.unwritable`, `vm.key`) and OSError.
    """
    require()
    folder, lock = store.new(place)
    work = f"{folder}/work"
    try:
        os.mkdir(work, 0o700)
        with open(f"{work}/debian.sources", "w", encoding="utf-8") as file:
            file.write("\n".join(map(debian.written, wanted.sources)))
        _run(command(wanted, work), wanted.date, progress)
        progress("taking the kernel apart")
        kernel = initrd.kernel(_tree(f"{work}/linux.deb"))
        with _tree(f"{work}/busybox.deb") as tree:
            busybox = next((tree.extractfile(one) for one in tree if one.isreg() and one.name.endswith("/bin/busybox")), None)
            if busybox is None:
                raise StockadeError("there is no busybox in busybox-static", code="vm.build", hint="Please report it.")
            start = initrd.initrd(busybox.read(), dict(kernel.modules))
        for name, data in ((image.KERNEL, kernel.image), (image.INITRD, start)):
            with open(f"{folder}/{name}", "xb") as out:
                out.write(data)
        os.rename(f"{work}/root.erofs", f"{folder}/{image.ROOT}")
        with open(f"{work}/packages", encoding="ascii") as lines:
            packages = tuple(sorted(set(lines.read().split())))
        shutil.rmtree(work)
        files = tuple(File(name, _digest(f"{folder}/{name}"), os.path.getsize(f"{folder}/{name}")) for name in image.FILES)
        made = Manifest(image.FORMAT, wanted.suite, "x86_64", kernel.version, wanted.date, wanted.digest, files, _tools(), packages)
        progress("signing")
        return store.keep(place, folder, made)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # it has another name if it was kept
        fcntl.flock(lock, fcntl.LOCK_UN)
        os.close(lock)


def command(wanted: Recipe, work: str) -> list[str]:
    """The whole of what is run."""
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _LEFT_OUT]
    hooks = [_HOOK, *(f"download {_OUT}/{name} {shlex.quote(f'{work}/{name}')}" for name in _MADE)]
    return [
        *(() if os.geteuid() else ("unshare", "--mount")),  # as root it mounts things, which are to be gone with it whatever happens
        "mmdebstrap",
        f"--mode={'unshare' if os.geteuid() else 'root'}",
        "--variant=apt",
        "--architectures=amd64",
        f"--include={','.join(wanted.packages)}",
        '--aptopt=APT::Install-Recommends "false"',
        *options,
        "--dpkgopt=path-include=/usr/share/doc/*/copyright",
        *(f"--customize-hook={hook}" for hook in hooks),
        wanted.suite,
        "/dev/null",  # the root is thrown away: what is kept was downloaded out of it
        f"{work}/debian.sources",
    ]


def _run(argv: Sequence[str], date: int, progress: Progress) -> None:
    surroundings = {**os.environ, "SOURCE_DATE_EPOCH": str(date), "LC_ALL": "C.UTF-8", "TZ": "UTC"}
    said: list[str] = []
    script = [line for line in _HOOK.split("\n") if line]  # mmdebstrap says all of a hook, which is no news
    child = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=surroundings, start_new_session=True
    )
    try:
        assert child.stdout is not None
        for raw in child.stdout:
            line = programs.printable(raw)
            if line and not line.startswith("I: ") and not any(line.endswith(one) for one in script):
                said = [*said[-8:], line]
            if line.startswith(_STEPS):
                progress("making the file system" if line.startswith(_STEPS[-1]) else line[3:].rstrip("."))
        status = child.wait()
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGTERM)  # all of it: it waits for what it has started, and removes what was made
            try:
                child.wait(_CLEANING)
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        if child.stdout is not None:
            child.stdout.close()
    if status:
        hint = "Its own words say what is wrong; most often a mirror or its lists. Nothing was kept."
        raise StockadeError(f"mmdebstrap ended with {status}: {'; '.join(said) or 'it said nothing'}", code="vm.build", hint=hint)


def _tree(package: str) -> tarfile.TarFile:
    """The files of a Debian package, of which nothing is unpacked onto the disk."""
    tree = f"{package}.tar"
    with open(tree, "xb") as out:
        done = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], stdin=subprocess.DEVNULL, stdout=out, check=False)
    if done.returncode:
        raise StockadeError(f"dpkg-deb cannot read {package}", code="vm.build", hint="Is the disk full?")
    return tarfile.open(tree)


def _tools() -> tuple[str, ...]:
    """What made it, whose versions make a difference."""
    _, said = programs.run(["dpkg-query", "-W", "-f", "${Package}=${Version}\n", "mmdebstrap", "erofs-utils"])
    return tuple(sorted(line for line in said.split("\n") if re.fullmatch(r"[a-z-]+=\S+", line)))


def _digest(path: str) -> str:
    from hashlib import file_digest

    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()
