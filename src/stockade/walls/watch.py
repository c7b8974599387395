"""Notices when something of a secret mount is opened (inotify(7)), before whoever opened it can say a word about it to anybody.

A watch belongs to an inode: it sees an opening through any mount of any namespace. The kernel queues the event before open(2), execve(2) or readdir(3)
returns, so whoever first takes over what a sandbox has sent and looks at the descriptors afterwards can know that it was sent without knowing the
secret. Nothing is ever waited for, and nobody needs a privilege.

A folder's watch covers the names in it. A file that has further names gets a watch of its own. A folder that is new has none yet, so its appearance
counts as an opening; so does whatever else happens there, and a queue that ran over (IN_Q_OVERFLOW).
"""

from __future__ import annotations

import ctypes
import errno
import os
from struct import unpack_from

from stockade.core.errors import CannotEnforce
from stockade.core.values import Enforced
from stockade.walls.git import file_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.core.values import Mount, Overlay

_ACCESS, _OPEN, _MOVED_FROM, _MOVED_TO, _CREATE, _OVERFLOW, _ISDIR = 0x1, 0x20, 0x40, 0x80, 0x100, 0x4000, 0x40000000
_MASK = _ACCESS | _OPEN | _MOVED_FROM | _MOVED_TO | _CREATE
MOST = 10_000  # watches of a session; each costs the kernel about a kilobyte, and holds an inode in memory
DEEPEST = 200  # folders below one another
_TRIES = 3
# File systems on which every opening and every new name comes from this kernel. Not: those that others change too (network, FUSE, a VM's host).
LOCAL = (
    "bcachefs", "btrfs", "erofs", "exfat", "ext2", "ext3", "ext4", "f2fs", "iso9660", "jfs", "nilfs2", "ntfs3", "overlay", "ramfs", "reiserfs",
    "squashfs", "tmpfs", "udf", "vfat", "xfs", "zfs",
)  # fmt: skip


def check(mounts: Sequence[Mount], overlays: Sequence[Overlay], top: str) -> None:
    """Refuse secret mounts whose content would be visible another way, where an opening could go unseen. `top` is the workspace's host path.

    Raises CannotEnforce (`secret.workspace`, `secret.overlap`).
    """
    for secret in mounts:
        if not secret.secret:
            continue
        source = secret.source
        if _within(top, source):
            _refuse(
                secret,
                f"the workspace {top} lies in it",
                "secret.workspace",
                "Mark the folders in it that are, each with a [[mount]] of its own.",
            )
        if _within(source, top) and (secret.mode != "ro" or file_type(source) == 0o040000):
            hint = 'In the workspace, mark single files, and mount them "ro"; a folder that is secret belongs outside of it.'
            _refuse(secret, "it is a part of the workspace, which is listed and searched all the time", "secret.workspace", hint)
        for overlay in overlays:
            if _within(overlay.lower, source) or not _covered(secret, overlay.lower, overlay.target):
                _refuse(secret, f"{overlay.target} shows it through an overlay", "secret.overlap", "Mount it somewhere else.")
        for other in mounts:
            # A second view of it, or of a part, is watched as well. From a wider one, a file could be moved or linked to where nobody watches.
            if not other.secret and not _covered(secret, other.source, other.target):
                hint = f"Mount it at {other.target}{source[len(other.source) :]}: it then covers what lies there."
                _refuse(secret, f"{other.target} shows it too", "secret.overlap", hint)


def _covered(secret: Mount, source: str, target: str) -> bool:
    """Whether, seen from a folder `source` shown at `target`, the secret is elsewhere, or exactly where its own mount lies on top of it."""
    if secret.source == source or not _within(secret.source, source):
        return True
    return secret.target == target + secret.source[len(source) :]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _refuse(mount: Mount, why: str, code: str, hint: str) -> None:
    raise CannotEnforce(
        f"reading {mount.source} cannot be noticed for certain: {why} ({mount.origin})", code=code, hint=f"{hint} Nothing was run."
    )


class _Changed(Exception):
    """A folder appeared while we looked."""


class Watch:
    """Watches the `secret` ones of `mounts` from now until `close`. INVARIANT: once something happened, one of `descriptors` is readable for ever."""

    def __init__(self, mounts: Sequence[Mount]) -> None:
        """Raises CannotEnforce (`secret.*`) when not all of it can be watched."""
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._latch = -1
        self._targets: dict[int, str] = {}
        self.enforced: tuple[Enforced, ...] = ()
        for _ in range(_TRIES):
            self.close()
            try:
                self._begin([mount for mount in mounts if mount.secret])
                return
            except _Changed:
                continue
            except BaseException:
                self.close()
                raise
        self.close()
        raise CannotEnforce(
            "a secret mount cannot be watched: folders appear in it faster than they can be looked at",
            code="secret.changing",
            hint="Wait until whatever writes there is done, and start again. Nothing was run.",
        )

    @property
    def descriptors(self) -> tuple[int, int]:
        """What becomes readable, in time, when something was opened. They can be handed to another process; nobody else may read from them."""
        return self._inotify, self._latch

    def fileno(self) -> int:
        return self._inotify

    def seen(self) -> str:
        """Where, inside, something was opened (or all of it, joined by commas). Call it when the descriptor is readable; what it says afterwards means nothing."""
        os.eventfd_write(self._latch, 1)  # first: whoever looks meanwhile must not find silence
        found = dict.fromkeys(self._targets.get(watch, "") for watch, _ in self._events())
        return ", ".join(target for target in found if target) or ", ".join(dict.fromkeys(self._targets.values()))

    def close(self) -> None:
        """May be called twice. Descriptors handed over live on."""
        for fd in (self._inotify, self._latch):
            if fd >= 0:
                os.close(fd)
        self._inotify = self._latch = -1

    def _begin(self, mounts: Sequence[Mount]) -> None:
        self._targets = {}
        self._inotify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._inotify < 0:
            raise self._failed(mounts[0], mounts[0].source)
        self._latch = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        lines = []
        for mount in mounts:
            before = len(self._targets)
            self._look(mount)
            count = len(self._targets) - before
            detail = f"{count} watches; an opening is known before what was read can leave"
            lines.append(Enforced(f"secret {mount.target}", "inotify, asked by the doorman for each piece", detail))
        self.enforced = tuple(lines)

    def _look(self, mount: Mount) -> None:
        from stockade.walls.launching import pinned

        fd = pinned(mount.source)
        try:
            self._local(mount, fd, mount.source)
            if file_type(f"/proc/self/fd/{fd}/.") != 0o040000:
                self._add(mount, fd, mount.source)
            else:
                self._walk(mount, fd, mount.source, os.fstat(fd).st_dev, 0)
        except OSError as error:
            raise self._failed(mount, error.filename or mount.source, error.errno or 0) from error
        finally:
            os.close(fd)

    def _walk(self, mount: Mount, pin: int, path: str, device: int, depth: int) -> None:
        if depth > DEEPEST:
            _refuse(mount, f"{path} lies too deep", "secret.too-much", "Mark a smaller folder.")
        here = os.open(f"/proc/self/fd/{pin}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._add(mount, here, path)  # before its names are read: one that is added meanwhile is an event
            with os.scandir(here) as entries:
                found = [
                    entry for entry in entries if entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_nlink > 1
                ]
            for entry in found:
                try:
                    inner = os.open(entry.name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
                except FileNotFoundError:
                    continue
                try:
                    self._entry(mount, inner, f"{path}/{entry.name}", device, depth)
                finally:
                    os.close(inner)
            self._settle()
        finally:
            os.close(here)

    def _entry(self, mount: Mount, fd: int, path: str, device: int, depth: int) -> None:
        status = os.fstat(fd)
        if status.st_mode & 0o170000 == 0o040000:
            if status.st_dev != device:
                self._local(mount, fd, path)
            self._walk(mount, fd, path, status.st_dev, depth + 1)
        elif status.st_mode & 0o170000 == 0o100000:
            self._add(mount, fd, path)  # opened by another name, it is no event of this folder

    def _add(self, mount: Mount, fd: int, path: str) -> None:
        if len(self._targets) >= MOST:
            hint = f"At most {MOST} folders and files with several names can be watched; mark a smaller folder."
            _refuse(mount, f"{path} and what lies around it are too many folders", "secret.too-much", hint)
        watch = self._libc.inotify_add_watch(self._inotify, f"/proc/self/fd/{fd}".encode(), _MASK)
        if watch < 0:
            raise self._failed(mount, path)
        self._targets.setdefault(watch, mount.target)

    def _local(self, mount: Mount, fd: int, path: str) -> None:
        kind = _file_system(fd)
        if kind not in LOCAL:
            hint = "Copy it to a local file system (ext4, xfs, btrfs, tmpfs and the like)."
            _refuse(mount, f"{path} is on {kind}, where files appear that this kernel is not told of", "secret.unseen", hint)

    def _settle(self) -> None:
        """Forget the events that our own looking has made. Raises _Changed when there is one that is somebody else's."""
        for _, mask in self._events():
            if mask & _OVERFLOW or (mask & _ISDIR and mask & (_CREATE | _MOVED_TO)):
                raise _Changed

    def _events(self) -> Iterator[tuple[int, int]]:
        """(watch, mask) of what is queued (struct inotify_event)."""
        while True:
            try:
                data = os.read(self._inotify, 1 << 16)
            except BlockingIOError:
                return
            place = 0
            while place < len(data):
                watch, mask, _, length = unpack_from("iIII", data, place)
                place += 16 + length
                yield watch, mask

    def _failed(self, mount: Mount, path: str, number: int = 0) -> CannotEnforce:
        number = number or ctypes.get_errno()
        hint = {
            errno.EMFILE: "Too many inotify instances: sysctl fs.inotify.max_user_instances=1024, or end other sessions.",
            errno.ENOSPC: "Too many inotify watches: sysctl fs.inotify.max_user_watches=1048576, or mark a smaller folder.",
            errno.EACCES: "What cannot be read cannot be watched: make it readable, or mark only what is.",
        }.get(number, "Mark a smaller folder, or none.")
        return CannotEnforce(
            f"cannot watch {path}, which is secret: {os.strerror(number)} ({mount.origin})",
            code="secret.watch",
            hint=f"{hint} Nothing was run.",
        )


def _file_system(fd: int) -> str:
    """The type of the file system that an open file lies on, as in /proc/self/mountinfo (proc(5))."""
    with open(f"/proc/self/fdinfo/{fd}") as file:
        ident = next(line.split()[1] for line in file if line.startswith("mnt_id:"))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.split(" ", 1)[0] == ident:
                return line.partition(" - ")[2].split()[0]
    return "an unknown file system"
