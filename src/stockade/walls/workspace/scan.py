"""Walks a workspace behind the start of a command: nested repositories, hard links that lead outside, and what tools will execute later.

Nothing here delays a start. The process runs at the lowest priority, takes a baseline while the command works, waits for the command's end,
then makes new and changed repositories harmless, breaks remaining hard links, and reports.
"""

from __future__ import annotations

import marshal
import os
import stat
import time

from stockade.walls.workspace import defuse, known, names, nested, roundabout
from stockade.walls.workspace.beneath import DEEPEST, Directory, break_link
from stockade.walls.workspace.report import KEEP_FILE, Rows, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Facts = dict[str, Any]

ALWAYS = float("inf")  # a time after all that there is
KEEP_ALL = 8 << 20  # bytes of content kept for diffs, of all files


class Baseline:
    """What was there: `git` maps a git directory to its inode, `files` a known name to its content, `links` an inode to its links found.

    `repositories` are all git directories, `pointers` are `.git` files and `linked` symbolic links of that name, both below the top. `folders` has the inode of each folder.

    INVARIANT: what has changed since the command was `started` is neither in `git`, `folders` nor `files`: it is not taken for what was there. The command may be quicker
    than this look; and change times are the kernel's, which nobody inside can set back (inode(7)).
    """

    def __init__(self, started: float = ALWAYS) -> None:
        self.started = started
        self.git: dict[str, int] = {}
        self.folders: dict[str, int] = {}
        self.repositories: list[str] = []
        self.pointers: list[str] = []
        self.linked: list[str] = []
        self.files: dict[str, bytes | None] = {}
        self.links: dict[tuple[int, int], tuple[int, list[str]]] = {}
        self.kept = self.count = 0
        self.complete = False
        self.skipped: list[str] = []

    def plain(self) -> dict[str, Any]:
        return {"git": self.git, "complete": self.complete}

    def note_repository(self, here: Directory, rel: str, entries: list[os.DirEntry[str]]) -> None:
        """Note the directory at `rel`, and whether it is a git directory or has a `.git` that is none."""
        status = os.fstat(here.fd)
        gitish = looks_like_git(entries)
        if gitish:
            self.repositories.append(rel)
        if status.st_ctime < self.started:  # else it may have been moved here a moment ago, with all that it holds
            if len(self.folders) <= known.FOLDERS:
                self.folders[rel] = status.st_ino
            if gitish or named_git(rel):
                self.git[rel] = status.st_ino
        for entry in entries:
            if rel and entry.name == ".git" and not entry.is_dir(follow_symlinks=False):
                (self.linked if entry.is_symlink() else self.pointers).append(f"{rel}/.git")

    def nested(self) -> list[str]:
        """Every git directory and `.git` file below the top."""
        return [*filter(None, self.repositories), *self.pointers]


def walk(
    here: Directory, rel: str, skip: frozenset[str], skipped: list[str], depth: int = 0
) -> Iterator[tuple[Directory, str, list[os.DirEntry[str]]]]:
    """Every directory below `here` as (open directory, relative path, its entries), parents first. Follows no link.

    `skip` are relative paths left out. Directories that cannot be opened or lie too deep are added to `skipped`.
    """
    try:
        entries = list(here.entries())
    except OSError:
        skipped.append(rel or ".")
        return
    yield here, rel, entries
    for entry in entries:
        below = f"{rel}/{entry.name}" if rel else entry.name
        if below in skip or not entry.is_dir(follow_symlinks=False):
            continue
        if depth >= DEEPEST:
            skipped.append(below)
            continue
        try:
            inner = here.down(entry.name)
        except OSError:
            found = here.stat(entry.name)
            if found is not None and stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                skipped.append(below)  # somebody else's that we cannot open, the sandbox cannot open either
            continue
        with inner:
            yield from walk(inner, below, skip, skipped, depth + 1)


def looks_like_git(entries: list[os.DirEntry[str]]) -> bool:
    """Whether a directory with these entries is one that git would take for a git directory."""
    found = {entry.name for entry in entries}
    return "HEAD" in found and ({"objects", "refs"} <= found or "commondir" in found)


def named_git(rel: str) -> bool:
    """Whether the directory is one that `git init` would make a git directory of, with all that it holds already."""
    return rel.rpartition("/")[2] == ".git"


def baseline(
    top: str,
    skip: frozenset[str],
    ended: Callable[[], bool] = lambda: False,
    *,
    contents: bool = True,
    closed: frozenset[str] = frozenset(),
    started: float = ALWAYS,
) -> Baseline:
    """Look at everything once. Stops early, incomplete, when `ended()`. Without `contents` no file is opened, and those in `closed` never.

    `started` is when a command may have begun to change things (Unix seconds), if it has.
    """
    found = Baseline(started)
    with Directory.top(top) as root:
        for here, rel, entries in walk(root, "", skip, found.skipped):
            if ended():
                return found
            found.note_repository(here, rel, entries)
            for entry in entries:
                path = f"{rel}/{entry.name}" if rel else entry.name
                _remember(found, here, path, entry, contents and path not in closed)
    found.complete = True
    return found


def _remember(found: Baseline, here: Directory, rel: str, entry: os.DirEntry[str], contents: bool) -> None:
    if not entry.is_file(follow_symlinks=False):
        return
    found.count += 1
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return
    if status.st_nlink > 1 and _ours_to_write(status):
        found.links.setdefault((status.st_dev, status.st_ino), (status.st_nlink, []))[1].append(rel)
    if contents and names.judge(rel) and not names.in_git(rel):
        content = here.read(entry.name, KEEP_FILE) if found.kept < KEEP_ALL else None
        now = here.stat(entry.name)  # after it was read: what is older than the start then was so while it was read
        if now is not None and now.st_ctime < found.started:
            found.kept += len(content or b"")
            found.files[rel] = content


def _ours_to_write(status: os.stat_result) -> bool:
    """Whether a program with our user id could write to the file, after a chmod perhaps."""
    return os.geteuid() in (0, status.st_uid) or bool(status.st_mode & 0o022)


def outside_links(found: Baseline) -> list[str]:
    """Files of which some hard link lies outside the workspace (or where nobody looked), or where it is held in the next run: in a repository, or protected."""
    return [rel for nlink, rels in found.links.values() for rel in (rels if len(rels) < nlink else _free(found, rels))]


def inside_links(found: Baseline) -> list[tuple[int, int]]:
    """(device, inode) of files all of whose links lie inside."""
    return [key for key, (nlink, rels) in found.links.items() if len(rels) >= nlink and not _free(found, rels)]


def _free(found: Baseline, rels: list[str]) -> list[str]:
    """Those of a file's names by which it could be written to, although it is held by another one."""
    held = {*found.repositories, *(rel for rel, _ in names.PROTECTED)} - {""}
    free = [rel for rel in rels if held.isdisjoint([rel, *(rel[:end] for end, letter in enumerate(rel) if letter == "/")])]
    return free if len(free) < len(rels) else []


def break_links(top: str, found: Baseline, started: float) -> list[dict[str, object]]:
    """Break every link that leads outside; one row each: path, broken, and whether it was written to since `started`."""
    rows: list[dict[str, object]] = []
    for rel in outside_links(found):
        row: dict[str, object] = {"path": shown(rel), "broken": False, "written": False}
        parent, _, name = rel.rpartition("/")
        try:
            with Directory.top(top) as root, root.walk_to(parent) as here:
                status = here.stat(name)
                row["written"] = status is not None and status.st_mtime >= started
                row["broken"] = break_link(here, name)
        except OSError as error:
            row["error"] = error.strerror or "failed"
        rows.append(row)
    return rows


def compare(facts: Facts, before: Baseline) -> dict[str, Any]:
    """Look again after the command's end: defuse what is new, break links, and return the event `workspace.report`."""
    top, started = facts["top"], facts["started"] - nested.SLACK
    after, known = Baseline(), before.plain()
    rows, held, errors = Rows(before.files if before.complete else {}), [], []
    moved, links_to = roundabout.Moved(facts, before.folders, started, whole=before.complete), list[tuple[str, tuple[str, str]]]()
    with Directory.top(top) as root:
        for here, rel, entries in walk(root, "", frozenset(facts["skip"]), after.skipped):
            after.note_repository(here, rel, entries)
            since = 0.0 if moved.moved(rel, here) else started
            if rel and (looks_like_git(entries) or named_git(rel)):
                try:
                    held += defuse.directory(here, rel, nested.since(known, rel, here, started), top)
                except OSError as error:
                    errors.append({"path": shown(rel), "error": error.strerror or "failed"})
            if any(entry.name == ".git" for entry in entries) and rel:
                try:
                    held += defuse.pointer(here, rel, top, started, trusted=lambda place: _ours(facts, place))
                except OSError as error:
                    errors.append({"path": shown(f"{rel}/.git"), "error": error.strerror or "failed"})
            for entry in entries:
                path = f"{rel}/{entry.name}" if rel else entry.name
                judged = _look(after, rows, here, path, entry, since)
                if judged is not None and entry.is_symlink():
                    links_to.append((path, judged))
        room = iter(range(roundabout.BEHIND))
        after.skipped += [path for path, judged in links_to if not roundabout.behind(rows, root, top, path, judged, started, room)]
    rows.gone(lambda path: _absent(top, path))
    links = [] if facts["layer"] else break_links(top, after, started)
    _keep(facts, after, links, after.folders)
    return {
        "kind": "workspace.report",
        "complete": before.complete and not after.skipped,
        "baseline": before.complete,
        "files": after.count,
        "changed": rows.changed,
        "rows": rows.plain(),
        **({"left_out": rows.left_out} if rows.left_out else {}),
        "held": [{key: shown(value) for key, value in row.items()} for row in held],
        "not_defused": errors,
        "links": links[:500],
        "not_looked_at": [shown(rel) for rel in after.skipped[:100]],
    }


def _keep(facts: Facts, found: Baseline, links: list[dict[str, object]], folders: dict[str, int] | None = None) -> None:
    """Remember a complete look for the next start: what it found can be held from the first moment then."""
    if facts["mode"] == "rw" and not found.skipped and all(row["broken"] for row in links):
        known.save(facts["top"], found.count, inside_links(found), found.nested(), folders)


def _ours(facts: Facts, place: str) -> bool:
    commons = [common for common in (facts["common"], *(each["common"] for each in facts["nested"])) if common]
    return any(place.startswith((f"{common}/worktrees/", f"{common}/modules/")) for common in commons)


def _absent(top: str, rel: str) -> bool:
    parent, _, name = rel.rpartition("/")
    try:
        with Directory.top(top) as root, root.walk_to(parent) as here:
            return here.stat(name) is None
    except OSError:
        return True


def _look(after: Baseline, rows: Rows, here: Directory, rel: str, entry: os.DirEntry[str], started: float) -> tuple[str, str] | None:
    """Note one entry, with a row if tools obey it and it is new; who obeys it."""
    if entry.is_dir(follow_symlinks=False):
        return None
    after.count += 1
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    if status.st_nlink > 1 and stat.S_ISREG(status.st_mode) and _ours_to_write(status):
        after.links.setdefault((status.st_dev, status.st_ino), (status.st_nlink, []))[1].append(rel)
    old = status.st_ctime < started
    if names.in_git(rel) or (old and not stat.S_ISLNK(status.st_mode)):
        return None
    judged = names.judge(rel, status.st_mode)
    if old:
        return judged
    rows.changed += 1
    if judged is not None and stat.S_ISREG(status.st_mode):
        rows.add(rel, judged, here.read(entry.name, KEEP_FILE))
    elif judged is not None:
        rows.add(rel, judged, f"-> {here.link_text(entry.name)}\n".encode("utf-8", "surrogateescape"))
    return judged


def run(facts: Facts, wait_for_end: Callable[[], None], ended: Callable[[], bool], emit: Callable[[dict[str, Any]], None]) -> None:
    """The whole life of the background process. `emit` gets `workspace.baseline` once, then `workspace.report`."""
    began = time.monotonic()
    for each in (*facts["nested"], facts):
        if each["git"]:
            from stockade.walls.workspace import bringback

            bringback.remember(each)
    if facts["mode"] == "review":  # the run changes nothing here; what it does waits in a layer (waiting.py)
        return
    started = facts["started"] - nested.SLACK
    before = baseline(facts["top"], frozenset(facts["skip"]), ended, closed=frozenset(facts["secrets"]), started=started)
    path = os.path.join(facts["session"], "baseline")
    with open(f"{path}.new", "wb") as file:
        marshal.dump(before.plain(), file)
    os.replace(f"{path}.new", path)
    links = break_links(facts["top"], before, started) if before.complete and facts["mode"] == "rw" else []
    if before.complete:
        _keep(facts, before, links)
    emit(
        {
            "kind": "workspace.baseline",
            "complete": before.complete,
            "files": before.count,
            "nested": len(before.git),
            "links": links[:500],
            "seconds": round(time.monotonic() - began, 4),
        }
    )
    wait_for_end()
    began = time.monotonic()
    report = compare(facts, before)
    emit({**report, "seconds": round(time.monotonic() - began, 4)})
