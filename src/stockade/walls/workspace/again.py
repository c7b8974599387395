"""What is held read-only is held again when somebody on the host has put another file or folder in its place.

A read-only bind covers a name for as long as the name is the same: when the host renames another file over it, as editors and git do, the kernel takes the mount away in every
namespace (mount_namespaces(7), since 3.18), and what lies there then could be written to inside. inotify(7) tells of new names in the folders; a helper joins the sandbox's mount
namespace and holds what is there now.

Between the host's rename and that are some milliseconds, in which what runs inside can write to the new file; what it then holds is in the report after the run.
"""

from __future__ import annotations

import ctypes
import os
from struct import unpack_from

from stockade.core.errors import WallFailed
from stockade.walls import limits, native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stockade.core.values import Confinement

_MASK = 0x80 | 0x100 | 0x1000000 | 0x2000000  # IN_MOVED_TO, IN_CREATE, IN_ONLYDIR, IN_DONT_FOLLOW
READS = 16  # of 64 KiB of events in one turn
_OVERFLOW = 0x4000  # IN_Q_OVERFLOW


class Keeper:
    """Knows what is held read-only in a sandbox of the bubblewrap wall, and notices when it is another file or folder. `fileno()` is readable when `lost` should be asked."""

    def __init__(self, wanted: Confinement) -> None:
        """Raises OSError where there are no watches left."""
        self._known: dict[str, tuple[str, tuple[int, int]]] = {}  # path on the host: path inside, and what is there
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        try:
            for inside in protected(wanted):
                host = _outside(wanted, inside)
                if host and (now := _identity(host)):
                    self._known[host] = inside, now
            for folder in dict.fromkeys(os.path.dirname(host) for host in self._known):
                if self._libc.inotify_add_watch(self._inotify, os.fsencode(folder), _MASK) < 0:
                    raise OSError(ctypes.get_errno(), "inotify_add_watch", folder)
        except BaseException:
            os.close(self._inotify)
            raise

    @property
    def needed(self) -> bool:
        """Whether anything is held at all."""
        return bool(self._known)

    def fileno(self) -> int:
        return int(self._inotify)

    def lost(self) -> list[str]:
        """The paths inside that are to be held again. Those that are there no more are held when they come back."""
        names = self._news()
        found = []
        for host, (inside, before) in self._known.items():
            if names is not None and os.path.basename(host) not in names:
                continue
            now = _identity(host)
            if now and now != before:
                self._known[host] = inside, now
                found.append(inside)
        return found

    def _news(self) -> set[str] | None:
        """The names that are new; None: any may be."""
        names: set[str] | None = set()
        for _ in range(READS):
            try:
                data = os.read(self._inotify, 1 << 16)
            except BlockingIOError:
                return names
            place = 0
            while place < len(data):
                _, mask, _, length = unpack_from("iIII", data, place)
                if mask & _OVERFLOW:
                    names = None
                elif names is not None:
                    names.add(os.fsdecode(data[place + 16 : place + 16 + length].rstrip(b"\0")))
                place += 16 + length
        return None  # somebody makes names as fast as they are read; what is readable still is read in the next turn

    def close(self) -> None:
        """May be called twice."""
        if self._inotify >= 0:
            os.close(self._inotify)
            self._inotify = -1


def protected(wanted: Confinement) -> list[str]:
    """The paths inside that cannot be written to, in folders that can."""
    writable = tuple(f"{mount.target}/" for mount in wanted.mounts if mount.mode == "rw")
    shown = [mount.target for mount in wanted.mounts if mount.mode == "ro" and mount.target.startswith(writable)]
    return [*shown, *(held[3:] for held in wanted.held if held.startswith("ro:"))]


def _outside(wanted: Confinement, inside: str) -> str:
    """The path on the host of the name `inside`, "" if that is in a layer of the session's."""
    places = [(mount.target, mount.source) for mount in wanted.mounts] + [(overlay.target, "") for overlay in wanted.overlays]
    above = [(target, source) for target, source in places if inside.startswith(f"{target}/")]
    target, source = max(above, key=lambda each: len(each[0]), default=("", ""))
    return source + inside[len(target) :] if source else ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def hold(bwrap: int, paths: Sequence[str]) -> list[str]:
    """Hold these paths of the sandbox below a bubblewrap read-only from now on; those that cannot be (any more), which are gone or symbolic links by now.

    Raises WallFailed (`hold.lost`) when one that could be is not.
    """
    left = []
    for path in paths:
        if not _held(limits.init_of(bwrap), [f"ro:{path}"]):
            left.append(path)
    return left


def _held(init: int, paths: Iterable[str]) -> bool:
    blob, said = native.words(paths), os.memfd_create("said", os.MFD_CLOEXEC)
    try:
        pid = native.spawn(["hold", str(init), str(blob)], [blob], said)
        _, status = os.waitpid(pid, 0)
        words = os.pread(said, 500, 0).decode("utf-8", "replace")
    finally:
        os.close(blob)
        os.close(said)
    if status and not any(f": {os.strerror(number)}" in words for number in (2, 40)):  # ENOENT, ELOOP
        words = "".join(letter if letter.isprintable() else " " for letter in words)
        raise WallFailed(
            f"what is protected was replaced on the host, and cannot be protected again: {words}",
            code="hold.lost",
            hint="The sandbox was ended. Start it again: what is there now is protected from the start.",
        )
    return not status
