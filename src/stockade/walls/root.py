"""The root directory of a guest with a kernel of its own: files of an image or a folder, ours on top of them, and a layer to write to.

The guest never sees files of an image directly, but through an overlay whose upper layer is a directory of the session's: our own files are there, and an
empty place for everything that is mounted. So no path is ever resolved through what an image holds (a link that leads to the host, say): each component of
each such place is a directory that we have just made. And what is written in spite of everything ends up there, and not in the cache. What
the guest may write goes into one file that gVisor keeps for it (`runsc --overlay2`), on a tmpfs of limited size or in the session's directory. On the vm wall
both directories are shown to the guest's kernel, which lays them and a tmpfs of its own over one another.
"""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Enforced, Origin, Overlay, Root
from stockade.walls import limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

LAYER = "/layer"  # where runsc finds the place for what the guest writes
STORE = "filestore"  # part of the name of runsc's file there, which it unlinks as soon as it is made
OURS = ("resolv.conf", "hosts", "hostname")  # of our /etc (walls/system.py): they take the place of an image's
PLACES = (
    "/proc",
    "/dev",
    "/sys",
    "/tmp",
    "/var/tmp",
    "/run",
)  # directories in every guest; all but the last are covered by its kernel's own
_LINKED = ("/bin/", "/sbin/", "/lib/", "/lib32/", "/lib64/", "/libx32/")  # often links in an image: a directory there would hide them


def refuse(root: Root, wall: str) -> None:
    """For a wall without such roots. Raises CannotEnforce (`root.wall`) for any but the usual."""
    if not root.usual:
        raise CannotEnforce(
            f"[root] is for guests with a kernel of their own, and the {wall} wall has none ({root.origin})",
            code="root.wall",
            hint='Write wall = "gvisor" or "vm" (or --wall gvisor), or leave [root] out.',
        )


def refuse_disk(root: Root, wall: str) -> None:
    """For a wall whose guests write to their root in memory at most. Raises CannotEnforce (`root.wall`)."""
    if root.writable == "disk":
        raise CannotEnforce(
            f'on the {wall} wall a root is written to in memory, and writable = "disk" cannot be had there ({root.origin})',
            code="root.wall",
            hint='Write writable = "memory", or wall = "gvisor". What has to be kept, or is large, goes into the workspace or a mount.',
        )


def refuse_mounts(tree: str, origin: Origin) -> None:
    """For a wall that binds `tree`, the real path of a folder, with all that is mounted in it. Raises CannotEnforce (`root.mounts`) if anything is: the host's /proc
    in a chroot, say."""
    with open("/proc/self/mountinfo", "rb") as file:  # proc_pid_mountinfo(5): the fifth field, in which a space is \\040
        places = [line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in file]
    inner = next((os.fsdecode(place) for place in places if place.startswith(os.fsencode(f"{tree}/"))), "")
    if inner:
        raise CannotEnforce(
            f"{inner} is mounted in the root {tree}, and would be shown with it ({origin})",
            code="root.mounts",
            hint="A root is one file system. Unmount what is in it; what a command needs is shown by [[mount]].",
        )


def refuse_saved(root: Root) -> None:
    """For a guest that is saved, or goes on where another was. Raises CannotEnforce (`checkpoint.root`) for any root but the usual: nobody has shown that what
    was written to it is saved, and the same below it then."""
    if not root.usual:
        raise CannotEnforce(
            f"a sandbox with a root of its own cannot be saved or restored ({root.origin})",
            code="checkpoint.root",
            hint="Leave [root] out for this; pausing works.",
        )


def prepare(wanted: Confinement, tree: str, etc: str, directory: str, *, folders: tuple[str, ...], files: tuple[str, ...]) -> Confinement:
    """`wanted` with its root prepared in the session's `directory`. `tree` is the real path of the root's files ("" = the host's /usr), `etc` a directory of our
    files (system.etc); `folders` and `files` are places inside that the wall needs. Raises CannotEnforce (`mount.target`), OSError.
    """
    if wanted.root.writable == "disk":
        os.mkdir(f"{directory}/layer", 0o700)
        wanted = replace(wanted, layer=f"{directory}/layer")
    if not tree:
        return wanted
    top = f"{directory}/root"
    for name in ("", "/work", "/shown"):
        os.mkdir(top + name, 0o700)
    upper = f"{top}/upper"
    for place in ("/etc", *PLACES, wanted.home, *folders, *(overlay.target for overlay in wanted.overlays)):
        _folder(upper, place)
    for mount in wanted.mounts:
        if mount.target.startswith(_LINKED):
            raise CannotEnforce(
                f"{mount.target} cannot be a mount in {wanted.root.image or tree}: it would hide what the root has there",
                code="mount.target",
                hint="Mount it somewhere else with `at`, for example /mnt/data.",
            )
        (_folder if os.path.isdir(mount.source) else _file)(upper, mount.target)
    for place in files:
        _file(upper, place)
    for name in OURS:
        with open(f"{etc}/{name}", "rb") as file:
            _file(upper, f"/etc/{name}", file.read())
    return replace(wanted, tree=Overlay(tree, upper, f"{top}/work", f"{top}/shown", wanted.root.origin))


def _folder(upper: str, place: str) -> None:
    """A directory that every user of the guest may enter, whatever our umask is; nothing happens if there is one."""
    path = upper + place.rstrip("/")
    if not os.path.isdir(path):
        if place.strip("/"):
            _folder(upper, os.path.dirname(place))
        os.mkdir(path)
        os.chmod(path, 0o755)  # noqa: S103  # in a directory that is ours alone; it is what the guest sees


def _file(upper: str, place: str, content: bytes = b"") -> None:
    _folder(upper, os.path.dirname(place))
    with open(upper + place, "wb") as file:
        file.write(content)
        os.fchmod(file.fileno(), 0o644)


def check_prepared(wanted: Confinement) -> None:
    """Raises CannotEnforce (`root.unprepared`) if `prepare` was left out."""
    root = wanted.root
    if bool(root.image or root.path) != (wanted.tree is not None) or (root.writable == "disk") != bool(wanted.layer):
        raise CannotEnforce("the root of this guest was not prepared", code="root.unprepared", hint="This is a bug in stockade.")


def layer(wanted: Confinement) -> tuple[list[str], list[str]]:
    """For what the guest writes: bubblewrap's arguments ("@" stands for the descriptor of `wanted.layer`), and runsc's.

    Raises CannotEnforce (`root.unprepared`) if `prepare` was left out.
    """
    root = wanted.root
    check_prepared(wanted)
    if root.writable == "none":
        return [], ["--overlay2=none"]
    flag = [f"--overlay2=root:dir={LAYER}"]
    if root.writable == "disk":
        return ["--bind-fd", "@", LAYER], flag
    return [*(["--size", str(root.size)] if root.size else []), "--perms", "0700", "--tmpfs", LAYER], flag


def enforced(wanted: Confinement) -> Iterable[Enforced]:
    """The receipt's lines."""
    root = wanted.root
    name = root.image or root.path or "the host's /usr"
    yield Enforced("root", "read-only, below an overlay of ours" if wanted.tree else "read-only binds", name)
    if root.writable == "memory":
        held = f"tmpfs of {root.size} bytes" if root.size else "tmpfs without a limit of its own"
        yield Enforced("root layer", f"gVisor's overlay in a {held}; gone at the end", "counts as memory where a cgroup holds that")
    elif root.writable == "disk":
        held = f"watchdog every {limits.INTERVAL:g} s at {root.size} bytes" if root.size else "without a limit"
        detail = "what is written between two looks comes on top" if root.size else ""
        yield Enforced("root layer", f"gVisor's overlay in an unlinked file, {held}; gone at the end", detail)


class Watch:
    """Looks how much a guest has written to its layer on disk: the blocks of runsc's file, which has no name any more."""

    def __init__(self, root: Root) -> None:
        self._most = root.size if root.writable == "disk" else 0
        self._found = ""  # the file, as its process in /proc shows it
        self._missed = 0

    def exceeded(self, bwrap: int) -> str:
        """Whether it is more than its size, as a sentence, or "". `bwrap` is the sandbox's process on the host; the sandbox stands already.

        INVARIANT: what cannot be watched does not go on. (One look may fall into its end.)
        """
        if not self._most:
            return ""
        used = self._used()
        if used < 0:
            self._found = _store(limits.init_of(bwrap))
            used = self._used()
            self._missed = self._missed + 1 if used < 0 else 0
            if self._missed > 2:
                return "what it writes to its root cannot be watched any more"
        return f"more than {self._most >> 20} MiB written to the root" if used > self._most else ""

    def _used(self) -> int:
        try:
            return os.stat(self._found).st_blocks * 512 if self._found and STORE in os.readlink(self._found) else -1
        except OSError:
            return -1


def _store(pid: int) -> str:
    """Where a process below `pid` holds runsc's file, "" if none does (yet)."""
    waiting = [pid] if pid else []
    while waiting:
        process = waiting.pop()
        try:
            for fd in os.listdir(f"/proc/{process}/fd"):
                if os.readlink(f"/proc/{process}/fd/{fd}").startswith(f"{LAYER}/runsc-{STORE}"):
                    return f"/proc/{process}/fd/{fd}"
            waiting += limits.children(process)
        except OSError:
            continue
    return ""
