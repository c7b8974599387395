"""Files of the workspace that are held read-only inside, and how one is changed from outside after a person has approved what it shall hold.

A held *file* is a mount of its own inode, a held *folder* one of the folder's: what is written here is seen inside at once, and stays read-only there. So a file that is there
is written in place: a rename would take the mount away with the name (mount_namespaces(7), kernel since 3.18), and what is new would be writable inside.

INVARIANT: what is written is what was held since the start, reached by descriptors without a link, still holding what was shown, and with one name only.
"""

from __future__ import annotations

import os
import stat

from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.frozen import frozen
from stockade.core.tools import wholesome
from stockade.core.values import Enforced
from stockade.walls.workspace.beneath import Directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LONGEST = 32 << 10  # bytes of a file that is asked about, as checks/protected.py has it
_FLAGS = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@frozen
class Hold:
    """What has to be held (as a View's `held`), and lines for the receipt."""

    held: tuple[str, ...]
    notes: tuple[Enforced, ...]


class Refused(StockadeError):
    """The file is not, or not any more, one that may be changed so. `code` is `file.*`."""


def hold(facts: dict[str, Any], patterns: Iterable[str]) -> Hold:
    """Plan what holds the files that `patterns` name (core/tools.py, FileRule), and note in `facts` what they are now.

    What does not exist cannot be held: it is reported when it appears, like any other file. Raises CannotEnforce (`workspace.file`) for what is no plain file or folder.
    """
    top, modes, notes, known = facts["top"], dict[str, str](), list[Enforced](), dict[str, tuple[int, int]]()
    for pattern in dict.fromkeys(patterns):
        folder, _, name = pattern.rpartition("/")
        rel, wanted = (folder, stat.S_IFDIR) if "*" in name else (pattern, stat.S_IFREG)
        parts = rel.split("/")
        above = ["/".join(parts[:end]) for end in range(1, len(parts))]
        kinds = [_kind(f"{top}/{one}") for one in (*above, rel)]
        wrong = any(kind not in (0, stat.S_IFDIR) for kind in kinds[:-1])
        if 0 in kinds and not wrong:
            notes.append(Enforced(pattern, "reported after the run", f"{rel} does not exist, so there is nothing to hold"))
            continue
        if wrong or kinds[-1] != wanted:
            message = f"{rel} in the workspace cannot be held: it has to be a {'folder' if '*' in name else 'file'}, and no symbolic link on the way"
            raise CannotEnforce(message, code="workspace.file", hint="Correct the rule [[file]], or leave it out.")
        if facts["mode"] == "rw":
            _owned(top, rel, wanted)
        found = os.lstat(f"{top}/{rel}")
        known[rel] = (found.st_dev, found.st_ino)
        modes = {**dict.fromkeys(above, "rw"), **modes, rel: "ro"}
        notes.append(Enforced(pattern, "read-only bind", "changed only as a person approves"))
    facts["asked"] = known
    held = [f"{mode}:{facts['target']}/{rel}" for rel, mode in modes.items()] if facts["mode"] == "rw" else []
    return Hold(tuple(held), tuple(notes))


def _owned(top: str, rel: str, kind: int) -> None:
    from stockade.walls.workspace import before

    for one in [rel] if kind == stat.S_IFREG else [f"{rel}/{name}" for name in os.listdir(f"{top}/{rel}")]:
        if _kind(f"{top}/{one}") == stat.S_IFREG:
            before.own(top, one)


def merged(*held: Iterable[str]) -> tuple[str, ...]:
    """Several lists of held paths as one: each once, read-only where one says so, parents before their children."""
    modes: dict[str, str] = {}
    for one in (one for each in held for one in each):
        path = one[3:]
        modes[path] = one[:2] if modes.get(path) != "ro" else "ro"
    return tuple(f"{mode}:{path}" for path, mode in sorted(modes.items(), key=lambda each: (each[0].count("/"), each[0])))


def look(facts: dict[str, Any], rel: str) -> bytes | None:
    """What the file at `rel` holds; None if it is not there, in a folder that is held. Raises Refused."""
    with _folder(facts, rel) as (folder, held):
        fd = _open(folder, rel, held, os.O_RDONLY)
        if fd < 0:
            return None
        try:
            return _content(fd, rel)
        finally:
            os.close(fd)


def put(facts: dict[str, Any], rel: str, before: bytes | None, after: bytes, aside: str, receipt: Callable[[], object]) -> None:
    """Have the file at `rel`, which holds `before` (None: is not there), hold `after` from now on. `aside` is a path of ours at which the first version lies meanwhile;
    `receipt` is called when nothing but the writing itself is left, and what it raises leaves the file as it is.

    Raises Refused: `file.changed` when it does not hold `before` any more, `file.disk` when it cannot be written; then it holds what it held, or `aside` is left.
    """
    with _folder(facts, rel) as (folder, held):
        fd = _open(folder, rel, held, os.O_RDWR)
        if fd < 0:
            if before is not None:
                raise _changed(rel)
            _make(folder, rel, after, receipt)
            return
        try:
            if before is None or _content(fd, rel) != before:
                raise _changed(rel)
            _rewrite(fd, rel, before, after, aside, receipt)
        finally:
            os.close(fd)


class _folder:
    """The folder of a file, open, and whether all of it is held; in it and on the way no link and no git directory."""

    def __init__(self, facts: dict[str, Any], rel: str) -> None:
        self.facts, self.rel = facts, rel
        self.here: Directory | None = None

    def __enter__(self) -> tuple[Directory, tuple[int, int] | None]:
        known, rel = self.facts.get("asked", {}), self.rel
        *folders, _ = rel.split("/")
        if not wholesome(rel) or "\0" in rel:
            raise Refused(f"{rel!a} is no path of a file that may be changed", code="file.path")
        above = "/".join(folders)
        if rel not in known and above not in known:
            message = f"{rel} was not there when the session began, nor was a folder for it, so that nothing holds it: it can be written as any file"
            raise Refused(message, code="file.free", hint="What is new is reported after the run.")
        try:
            here = Directory.top(self.facts["top"])
            try:
                _no_repository(here, rel)
                for name in folders:
                    below = here.down(name)
                    os.close(here.fd)
                    here = below
                    _no_repository(here, rel)
                found = os.fstat(here.fd)
                if rel not in known and (found.st_dev, found.st_ino) != known[above]:
                    raise _changed(above)
            except BaseException:
                os.close(here.fd)
                raise
        except OSError as error:
            raise Refused(f"the folder of {rel} cannot be reached: {error.strerror}", code="file.path") from error
        self.here = here
        return here, known.get(rel)

    def __exit__(self, *exc: object) -> None:
        if self.here is not None:
            os.close(self.here.fd)


def _no_repository(folder: Directory, rel: str) -> None:
    """Raises Refused for a folder that the host's git takes for a git directory (gitrepository-layout(5))."""
    if all(folder.stat(name) is not None for name in ("HEAD", "objects", "refs")):
        raise Refused(f"{rel} lies in a git directory, which is never written to from inside", code="file.git")


def _open(folder: Directory, rel: str, held: tuple[int, int] | None, how: int) -> int:
    """A descriptor of the file, -1 if there is none. Raises Refused for anything but the plain file that was held."""
    name = rel.rpartition("/")[2]
    try:
        fd = os.open(name, how | _FLAGS, dir_fd=folder.fd)
    except FileNotFoundError:
        if held is not None:
            raise _changed(rel) from None
        return -1
    except OSError as error:
        raise Refused(f"{rel} cannot be opened: {error.strerror}", code="file.path") from error
    found = os.fstat(fd)
    why = ""
    if not stat.S_ISREG(found.st_mode):
        why = "is no plain file"
    elif found.st_nlink != 1:
        why = f"has {found.st_nlink} names (hard links), and all of them would change"
    elif found.st_mode & 0o6000:
        why = "runs with somebody's rights (set-user-ID)"
    elif found.st_size > LONGEST:
        why = f"holds more than {LONGEST} bytes"
    if why or (held is not None and (found.st_dev, found.st_ino) != held):
        os.close(fd)
        raise Refused(f"{rel} {why}", code="file.kind") if why else _changed(rel)
    return fd


def _content(fd: int, rel: str) -> bytes:
    data = b""
    while piece := os.pread(fd, LONGEST + 1 - len(data), len(data)):
        data += piece
    if len(data) > LONGEST:
        raise _changed(rel)
    return data


def _make(folder: Directory, rel: str, after: bytes, receipt: Callable[[], object]) -> None:
    """A new file, whole or not at all, and never in place of another (open(2), O_TMPFILE)."""
    try:
        fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=folder.fd)
    except OSError as error:
        raise _disk(rel, error) from error
    try:
        _write(fd, after)
        receipt()
        os.link(f"/proc/self/fd/{fd}", rel.rpartition("/")[2], dst_dir_fd=folder.fd, follow_symlinks=True)
        os.fsync(folder.fd)
    except FileExistsError as error:
        raise _changed(rel) from error
    except OSError as error:
        raise _disk(rel, error) from error
    finally:
        os.close(fd)


def _rewrite(fd: int, rel: str, before: bytes, after: bytes, aside: str, receipt: Callable[[], object]) -> None:
    try:
        kept = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            _write(kept, before)
        finally:
            os.close(kept)
    except OSError as error:
        raise _disk(rel, error) from error
    try:
        receipt()
    except BaseException:
        os.unlink(aside)
        raise
    try:
        _write(fd, after)
    except OSError as error:
        try:
            _write(fd, before)
        except OSError:
            message = f"{rel} could not be written, and now holds a part of it: {error.strerror}. What it held is in {aside}"
            raise Refused(message, code="file.torn", hint="Free some space and copy it back.") from error
        os.unlink(aside)
        raise _disk(rel, error) from error
    os.unlink(aside)


def _write(fd: int, data: bytes) -> None:
    """`data` and nothing more, on the disk when this returns."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], done)
    os.ftruncate(fd, len(data))
    os.fsync(fd)


def _kind(path: str) -> int:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except OSError:
        return 0


def _changed(rel: str) -> Refused:
    return Refused(f"{rel} was changed or replaced meanwhile, and is not what it was", code="file.changed", hint="Ask again.")


def _disk(rel: str, error: OSError) -> Refused:
    return Refused(f"{rel} could not be written and holds what it held: {error.strerror}", code="file.disk")
