"""What can be done to files in each mode, on each wall, and what is on the host afterwards: the table that test_modes.py runs by and compares with. Pure.

modes.json holds what the runs showed; `STOCKADE_WRITE_DOCS=1 pytest tests/session/test_modes.py` records it anew and writes docs/modes.md from it.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

WALLS = ("bubblewrap", "gvisor", "vm")
RECORDED = Path(__file__).with_name("modes.json")
DOCUMENT = Path(__file__).parents[2] / "docs/modes.md"

# In modes.c each has a function. Every one of them finds files in a folder of its own (`prepare`).
OPERATIONS = {
    "create": "create a file",
    "mkdir": "create a folder",
    "overwrite": "write over the beginning of a file",
    "append": "append",
    "truncate": "`truncate`",
    "o_trunc": "open with `O_TRUNC`, write something shorter",
    "mmap": "write through a shared mapping",
    "punch-hole": "`fallocate`, punching a hole",
    "fallocate": "`fallocate`, making room",
    "copy_file_range": "`copy_file_range` onto a file",
    "hard-link-write": "write to a file with two names",
    "rename": "rename a file",
    "rename-over": "rename a file over another",
    "new-over": "rename a new file over another (what editors do)",
    "exchange": "`renameat2` with `RENAME_EXCHANGE`",
    "rename-folder": "rename a folder",
    "mv-folder": "`mv` a folder: a rename, or else a copy",
    "unlink": "remove a file",
    "rmdir": "remove an empty folder",
    "rm-r": "remove a folder with a file in it",
    "folder-to-file": "replace a folder by a file",
    "file-to-folder": "replace a file by a folder",
    "link": "make a hard link",
    "link-out": "make a hard link to a file outside",
    "symlink": "make a symbolic link",
    "symlink-replaced": "replace a symbolic link",
    "symlink-out": "make a symbolic link that leads out, and write through it",
    "through-link": "write through a symbolic link that leads out",
    "through-relative": "the same with `..`",
    "o_tmpfile": "`O_TMPFILE`, then give it a name",
    "mknod-char": "`mknod`, a character device",
    "mknod-block": "`mknod`, a block device",
    "mknod-whiteout": "`mknod`, a whiteout (character device 0:0)",
    "mkfifo": "`mknod`, a named pipe",
    "socket": "bind a Unix socket",
    "chmod": "`chmod`",
    "set-user-id": "`chmod` with set-user-ID",
    "set-group-id": "`chmod` with set-group-ID",
    "chmod-folder": "`chmod` of a folder",
    "xattr": "add an extended attribute (`user.`)",
    "xattr-changed": "change one",
    "xattr-removed": "remove one",
    "xattr-folder": "add one to a folder",
    "xattr-new-folder": "add one to a new folder",
    "utimes": "set a file's times",
    "flock": "`flock`",
}
NEVER = (
    "link-out",
    "symlink-out",
    "through-link",
    "through-relative",
    "mknod-char",
    "mknod-block",
    "mknod-whiteout",
    "set-user-id",
    "set-group-id",
)
HARMLESS = ("flock",)  # changes nothing
ALWAYS = (
    "create", "mkdir", "overwrite", "append", "truncate", "o_trunc", "rename", "rename-over", "new-over", "mv-folder", "unlink", "rmdir", "rm-r", "folder-to-file",
    "file-to-folder", "link", "symlink", "symlink-replaced", "hard-link-write", "chmod", "chmod-folder", "utimes", "flock",
)  # fmt: skip

State = dict[str, "File"]


class File(NamedTuple):
    """What is at a path; of folders the number of names and the size are not told, of links the mode is not."""

    kind: int
    mode: int
    names: int
    size: int
    crc: int
    target: str
    attributes: str  # "?" where there are none at all
    dated: bool  # whether its time is the one that `utimes` sets

    def like(self, other: File | None, *, names: bool = True, dated: bool = True) -> bool:
        """Whether the other is the same, as far as both can be told."""
        if other is None:
            return False
        mine = self._replace(attributes=other.attributes) if "?" in (self.attributes, other.attributes) else self
        return mine._replace(names=self.names if names else other.names, dated=self.dated if dated else other.dated) == other


def prepare(folder: Path, outside: Path) -> None:
    """The files that the operation `folder.name` finds: two, and what it alone is about."""
    folder.mkdir(parents=True)
    (folder / "old").write_text("first version\n" * 600)  # more than two pages
    (folder / "old").chmod(0o640)
    os.setxattr(folder / "old", "user.first", b"1")
    (folder / "other").write_text("other\n")
    match folder.name:
        case "rename-folder" | "mv-folder" | "rm-r" | "folder-to-file" | "chmod-folder" | "xattr-folder":
            (folder / "dir").mkdir()
            (folder / "dir/deep").write_text("deep\n")
        case "rmdir":
            (folder / "empty").mkdir()
        case "hard-link-write":
            (folder / "twin").write_text("two names\n")
            os.link(folder / "twin", folder / "twin2")
        case "symlink-replaced":
            (folder / "link").symlink_to("old")
        case "through-link":
            (folder / "out").symlink_to(outside)
        case "through-relative":
            (folder / "up").symlink_to(os.path.relpath(outside, folder))


def look(top: Path) -> State:
    """As modes.c looks, by the host."""
    found = {}
    for path in sorted(top.rglob("*")):
        one = path.lstat()
        file, link = stat.S_ISREG(one.st_mode), stat.S_ISLNK(one.st_mode)
        names = [] if link else [name for name in os.listxattr(path) if name.startswith("user.")]
        found[str(path.relative_to(top))] = File(
            stat.S_IFMT(one.st_mode),
            0 if link else stat.S_IMODE(one.st_mode),
            one.st_nlink if file else 1,
            one.st_size if file else 0,
            zlib.crc32(path.read_bytes()) if file else 0,
            os.readlink(path) if link else "",
            "".join(f"{name}={os.getxattr(path, name).decode()} " for name in names),
            file and int(one.st_mtime) == 1_000_000_000,
        )
    return found


def seen(row: Mapping[str, Any]) -> State:
    """What a line of modes.c says."""
    return {name: File(*one[:7], bool(one[7])) for name, one in row["seen"].items()}


def same(one: State, two: State, *, names: bool = True) -> bool:
    """Whether they tell of the same files."""
    return one.keys() == two.keys() and all(file.like(two[name], names=names) for name, file in one.items())


def kept_inside(before: State, inside: State, host: State) -> bool:
    """Whether only new pipes and sockets are missing on the host: they hold nothing, and a kernel of the guest's own may keep them to itself."""
    less = {name: file for name, file in inside.items() if name in before or not (stat.S_ISFIFO(file.kind) or stat.S_ISSOCK(file.kind))}
    return less.keys() != inside.keys() and same(less, host)


def comes_to(name: str, error: int, before: State, inside: State, host: State) -> str:
    """What an operation in `ro` or `rw` comes to. Raises AssertionError for what must not be: an error that changes something, and a change that is only seen inside."""
    if error:
        assert same(inside, before) and same(host, before), f"{name}: an error, but something has changed"
        return f"refused: {errno.errorcode[error]}"
    if kept_inside(before, inside, host):
        return "only inside"
    assert same(inside, host), f"{name}: inside {inside}, on the host {host}"
    return "done" if not same(before, host) or name in HARMLESS else "no effect, no error"


def comes_to_without_loss(name: str, error: int, before: State, inside: State, host: State, kept: State, said: set[str]) -> str:
    """The same in `rw-no-delete`: all that existed is where it was, or in `kept`; all that is new or changed is on the host, or in what the report has `said`."""
    if error:
        return comes_to(name, error, before, inside, host)
    if not said and kept_inside(before, inside, host):
        return "only inside"
    for path, file in before.items():
        places = (host.get(path), kept.get(path))
        assert any(file.like(there, names=False, dated=False) for there in places), f"{name}: {path} is lost: {file}, {places}"
    for path, file in inside.items():
        if not file.like(before.get(path), names=False):
            assert file.like(host.get(path), names=False) or path in said, f"{name}: {path} has vanished"
    for path in before.keys() - inside.keys():
        assert path not in host or {path, path.partition("/")[0]} & said, f"{name}: {path} is there still, and nobody said so"
    if same(inside, host, names=False):
        if same(before, host) and name not in HARMLESS:
            return "no effect, no error"
        return ", ".join(["done", *["first kept"] * bool(kept), *["names apart"] * (not same(inside, host))])
    new = any(not file.like(before.get(path), names=False) for path, file in inside.items())
    if same(before, host, names=False):
        return "left out, said" if new else "stays, said"
    return "stays, said, first kept" if kept else "stays, said"


def comes_to_once_applied(name: str, error: int, before: State, inside: State, waiting: State, host: State, said: set[str]) -> str:
    """The same in `review`: until it is applied the host's folder, `waiting`, is as it was; then all that was seen inside is there, or in what `apply` has `said`."""
    assert same(waiting, before), f"{name}: {waiting} before anything was applied"
    if error:
        return comes_to(name, error, before, inside, host)
    if not said and kept_inside(before, inside, host):
        return "only inside"
    less = {path: file for path, file in inside.items() if path not in said}
    undated = {path: file._replace(dated=False) for path, file in less.items()}
    assert same(undated, {path: file._replace(dated=False) for path, file in host.items()}, names=False), (
        f"{name}: inside {inside}, on the host {host}"
    )
    if same(before, host, names=False):
        return (
            "left out, said" if said else "done" if name in HARMLESS else "left out" if not same(before, inside) else "no effect, no error"
        )
    return ", ".join(["waits", *["names apart"] * (not same(less, host))])


def recorded() -> dict[str, dict[str, dict[str, str]]]:
    """Wall, mode, operation: what it comes to."""
    found: dict[str, dict[str, dict[str, str]]] = json.loads(RECORDED.read_text())
    return found


MODES = ("workspace ro", "mount ro", "workspace rw", "mount rw", "workspace rw-no-delete", "workspace review")
COLUMNS = {"`ro`": MODES[:2], "`rw`": MODES[2:4], "`rw-no-delete`": MODES[4:5], "`review`": MODES[5:]}


def cell(table: Mapping[str, Mapping[str, Mapping[str, str]]], modes: tuple[str, ...], operation: str) -> str:
    """What an operation comes to in modes that are called the same, and where walls differ."""
    by_wall = {}
    for wall in WALLS:
        each = dict.fromkeys(table[wall][mode][operation] for mode in modes)
        by_wall[wall] = (
            next(iter(each)) if len(each) == 1 else "; ".join(f"{mode.split()[0]}: {table[wall][mode][operation]}" for mode in modes)
        )
    texts = dict.fromkeys(by_wall.values())
    if len(texts) == 1:
        return next(iter(texts))
    return "<br>".join(f"{', '.join(wall for wall in WALLS if by_wall[wall] == text)}: {text}" for text in texts)


def document() -> str:
    """docs/modes.md."""
    table = recorded()
    lines = [
        "# What can be done to files in each mode",
        "",
        "Made from what the runs of `tests/session/test_modes.py` showed (`STOCKADE_WRITE_DOCS=1 .venv/bin/python -m pytest tests/session/test_modes.py` makes it anew), and checked by each.",
        "On every [wall](walls.md), for every mode of the [workspace](workspace.md) and of a `[[mount]]`, a program does everything below, each in a folder of its own; what it saw is compared",
        "with what is on the host when the session has ended. One cell stands for all walls, for workspace and mount, where nothing else is said. `rw-no-delete` and `review` are",
        "for the workspace alone.",
        "",
        "- **done**: allowed, and on the host just as it was seen inside.",
        "- **refused**: an error inside, and everything is as it was.",
        "- **first kept**: what was there before is in the session's directory (`kept/`), which `stockade session list` shows.",
        "- **stays**: what was to be removed or renamed is on the host still, as before; what is new is there, too. The report says so.",
        "- **left out**: not brought to the host, where all is as it was. Where it is said, the report (or `stockade changes`) names it; files stay in the session's directory.",
        "  In `review` times alone are no change.",
        "- **waits**: on the host all is as it was, until `stockade changes apply`; then it is just as it was seen inside.",
        "- **names apart**: on the host, names of one file become files of their own.",
        "- **only inside**: the guest's kernel keeps it to itself; pipes and sockets hold nothing that could be lost.",
        "- **no effect, no error**: allowed inside by a kernel that takes the host's refusal for nothing; nothing has changed inside either.",
        "",
        "| operation | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    lines += [
        f"| {text} | " + " | ".join(cell(table, modes, name) for modes in COLUMNS.values()) + " |" for name, text in OPERATIONS.items()
    ]
    return "\n".join([*lines, ""])
