"""File operations below a directory that a hostile program has written to: every step is by descriptor and follows no symbolic link.

The same guarantee as openat2(2) with RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS, which Python does not offer: a path is walked one component at a
time with O_NOFOLLOW, and ".." is refused, so a link planted or swapped at any moment leads nowhere.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
DEEPEST = 128  # levels of directories looked at; a shell or git hardly gets further, PATH_MAX being what it is
READ_AT_MOST = 256 << 10
COPY_AT_MOST = 16 << 30  # bytes of a hard-linked file that is replaced by a copy; the sandbox may make sparse ones of any size
NOREPLACE, EXCHANGE = 1, 2  # flags of renameat2(2)


class Directory:
    """An open directory. `with Directory.top(path) as top: ...`; every method takes a single name, never a path."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def top(cls, path: str) -> Directory:
        """Open `path` itself, which the caller vouches for. Raises OSError."""
        return cls(os.open(path, _DIRECTORY))

    def __enter__(self) -> Directory:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def down(self, name: str) -> Directory:
        """The directory `name` in here. Raises OSError (ENOTDIR or ELOOP for a symbolic link)."""
        return Directory(os.open(_single(name), _DIRECTORY, dir_fd=self.fd))

    def walk_to(self, rel: str) -> Directory:
        """The directory at the relative path `rel` ("" = a second handle on this one). Raises OSError."""
        here = Directory(os.open(".", _DIRECTORY, dir_fd=self.fd))
        for name in filter(None, rel.split("/")):
            try:
                below = here.down(name)
            finally:
                os.close(here.fd)
            here = below
        return here

    def names(self) -> list[str]:
        """All names in here."""
        return os.listdir(self.fd)

    def entries(self) -> Iterator[os.DirEntry[str]]:
        """Directory entries; their stat() does not follow links when asked with follow_symlinks=False."""
        with os.scandir(self.fd) as found:
            yield from found

    def stat(self, name: str) -> os.stat_result | None:
        """lstat of `name`, None when absent."""
        try:
            return os.stat(_single(name), dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return None

    def kind(self, name: str) -> int:
        """The file type bits (stat.S_IFREG, ...) of `name`, 0 when absent."""
        found = self.stat(name)
        return stat.S_IFMT(found.st_mode) if found else 0

    def read(self, name: str, limit: int = READ_AT_MOST) -> bytes | None:
        """Up to `limit` bytes of the regular file `name`; None if it is absent, no regular file, or longer."""
        try:
            fd = self.open_file(name)
        except OSError:
            return None
        try:
            data = b""
            while len(data) <= limit and (piece := os.read(fd, limit + 1 - len(data))):
                data += piece
        except OSError:
            return None
        finally:
            os.close(fd)
        return data if len(data) <= limit else None

    def open_file(self, name: str) -> int:
        """A descriptor for reading the regular file `name`; never blocks on a fifo. Raises OSError."""
        fd = os.open(_single(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=self.fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise OSError(22, "not a regular file", name)
        return fd

    def link_text(self, name: str) -> str:
        """Where the symbolic link `name` points, "" if it is none."""
        try:
            return os.readlink(_single(name), dir_fd=self.fd)
        except OSError:
            return ""

    def write_new(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """Create `name` with `data`; an existing one is replaced as a whole. Raises OSError."""
        temporary = f".stockade-{os.getpid()}-{os.urandom(6).hex()}"
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.fd)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
        finally:
            os.close(fd)
        os.rename(temporary, _single(name), src_dir_fd=self.fd, dst_dir_fd=self.fd)

    def rename(self, old: str, new: str, flags: int = NOREPLACE) -> None:
        """Rename within this directory: never over another name (NOREPLACE), or each to the other's place (EXCHANGE); renameat2(2).

        Raises OSError, FileExistsError among them; on a file system that knows no such flag, EINVAL (22) or ENOSYS (38).
        """
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).renameat2
        if call(self.fd, os.fsencode(_single(old)), self.fd, os.fsencode(_single(new)), flags):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), new)

    def set_aside(self, name: str, suffix: str = ".stockade-held") -> str:
        """Rename `name` to `name` + suffix (numbered when taken) and return the new name. Raises OSError.

        INVARIANT: whoever wrote here cannot prevent it, by having taken these names or by closing the folder to writing.
        """
        taken = (f"{name}{suffix}{more}" for more in ("", *(f".{number}" for number in range(1, 100)), f".{os.urandom(8).hex()}"))
        held = next(each for each in taken if self.stat(each) is None)
        try:
            os.rename(_single(name), held, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except PermissionError:
            self.unlock()
            os.rename(_single(name), held, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        return held

    def unlock(self) -> None:
        """Let its owner write in here, if whoever has the same rights has closed it. Raises OSError (EPERM) for somebody else's."""
        mode = stat.S_IMODE(os.fstat(self.fd).st_mode)
        if mode & stat.S_IRWXU != stat.S_IRWXU:
            os.fchmod(self.fd, mode | stat.S_IRWXU)


def _single(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in ("..",):
        raise OSError(22, "not a single name", name)
    return name


def copy_content(source: int, target: int, size: int) -> None:
    """Copy up to `size` bytes from one descriptor to another inside the kernel (reflinks where the file system has them)."""
    left = size
    while left > 0:
        try:
            done = os.copy_file_range(source, target, min(left, 1 << 30))
        except OSError:
            data = os.read(source, min(left, 1 << 20))
            done = os.write(target, data) if data else 0
        if not done:
            return
        left -= done


def copy_attributes(source: int, target: int) -> None:
    """Owner, mode, extended attributes and times from one open file to another; what the caller may not set is left as it is."""
    found = os.fstat(source)
    try:
        os.fchown(target, found.st_uid, found.st_gid)
    except OSError:
        pass
    os.fchmod(target, stat.S_IMODE(found.st_mode) & ~0o6000)
    for name in _xattrs(source):
        try:
            os.setxattr(target, name, os.getxattr(source, name))
        except OSError:
            continue
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))


def copy_whole(source: int, into: Directory, name: str, *, settled: bool = True) -> None:
    """Copy an open file to the new file `name` of `into`, with its attributes, whole (and on the disk, if `settled`) or not at all. Raises OSError."""
    size = os.fstat(source).st_size
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=into.fd)
    try:
        copy_content(source, target, size)
        if os.fstat(target).st_size != size:
            raise OSError(5, "not copied whole", name)
        copy_attributes(source, target)
        if settled:
            os.fsync(target)
    except BaseException:
        os.unlink(name, dir_fd=into.fd)
        raise
    finally:
        os.close(target)


def break_link(here: Directory, name: str) -> bool:
    """Replace the regular file `name` by a copy of its own if it has other names, atomically, with mode, times and attributes. False if it has none any more.

    Raises OSError when it cannot be done (no space, no permission): it is then still the same file by all its names.
    """
    source = here.open_file(name)
    temporary = f".stockade-{os.getpid()}-{os.urandom(6).hex()}"
    try:
        before = os.fstat(source)
        if before.st_nlink < 2:
            return False
        if before.st_size > COPY_AT_MOST:
            raise OSError(27, "too large to copy", name)
        copy_whole(source, here, temporary, settled=False)
        now = here.stat(name)
        if now is None or (now.st_dev, now.st_ino) != (before.st_dev, before.st_ino):
            return False  # replaced meanwhile: what is there now is another file
        os.rename(temporary, name, src_dir_fd=here.fd, dst_dir_fd=here.fd)
        return True
    finally:
        os.close(source)
        try:
            os.unlink(temporary, dir_fd=here.fd)
        except OSError:
            pass


def same(source: int, host: Directory, name: str) -> bool:
    """Whether `name` holds the same bytes, mode and attributes already."""
    other = host.open_file(name)
    try:
        if os.fstat(source).st_size != os.fstat(other).st_size or not alike(source, other):
            return False
        offset = 0
        while piece := os.pread(source, 1 << 20, offset):
            if piece != os.pread(other, 1 << 20, offset):
                return False
            offset += len(piece)
        return True
    finally:
        os.close(other)


def alike(one: int, two: int) -> bool:
    """Whether two open files have the same mode (but for what is never brought back of it) and the same attributes that users set."""
    return (os.fstat(one).st_mode ^ os.fstat(two).st_mode) & 0o777 == 0 and user_attributes(one) == user_attributes(two)


def opaque(upper: Directory) -> bool:
    """Whether a folder of an overlay's upper layer hides what lies below it, all the way down (Documentation/filesystems/overlayfs.rst)."""
    try:
        return os.getxattr(upper.fd, "user.overlay.opaque") == b"y"
    except OSError:
        return False


def user_attributes(fd: int) -> dict[str, bytes]:
    """The extended attributes of an open file that a program without rights can set: `user.` and access lists (xattr(7), acl(5))."""
    return {name: os.getxattr(fd, name) for name in _xattrs(fd) if name.startswith(("user.", "system.posix_acl_"))}


def _xattrs(fd: int) -> list[str]:
    try:
        return [name for name in os.listxattr(fd) if not name.startswith(("user.overlay.", "trusted.", "security.capability"))]
    except OSError:
        return []
