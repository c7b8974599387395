"""What waits in the layer of a session: every file that differs from the host's, and whether the host's is still what the session saw.

The layer is what a hostile program wrote: it is read by descriptor, no link is followed, nothing but plain files is opened, and there is a bound to everything.
What the host's folder held is noted at the first look, when the session ends (`base`); what was touched there since the session began has a change time of then or
later, which no program can set back (inode(7)). Source: the kernel's Documentation/filesystems/overlayfs.rst (whiteouts, opaque directories).
"""

from __future__ import annotations

import marshal
import os
import stat

from stockade.core.frozen import frozen
from stockade.walls.workspace import guarded, names
from stockade.walls.workspace.beneath import DEEPEST, Directory, alike, opaque, same
from stockade.walls.workspace.nested import SLACK, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    # mode with type, size, device, inode, mtime and ctime in ns, SHA-256 of a file or text of a link ("" = not known)
    Known = tuple[int, int, int, int, int, int, str]

MOST = 100_000  # entries that are looked at
LARGEST = 16 << 30  # bytes of a file that is brought; the sandbox may make sparse ones of any size
HASH_FILE, HASH_ALL = 64 << 20, 256 << 20  # bytes of the host's files that are hashed at the session's end: of one, of all
_KINDS = {stat.S_IFREG: "file", stat.S_IFLNK: "link", stat.S_IFDIR: "folder"}


@frozen
class Change:
    """One difference. `what` is "added", "changed" or "removed"; a file that became a folder is a removed and an added one.

    `kind` is "file", "link", "folder" or "other"; `before` is the host's now, `after` the layer's (without a digest). `conflict`: how the host's changed meanwhile;
    `guard`: why it takes a person's word (guarded.py); `refused`: why it cannot be brought. `risk` and `why`: who executes it later (names.py).
    """

    rel: str
    what: str
    kind: str
    before: Known | None
    after: Known | None
    conflict: str = ""
    guard: str = ""
    refused: str = ""
    risk: str = ""
    why: str = ""

    @property
    def key(self) -> str:
        return f"{self.what}:{self.rel}"


@frozen
class Waiting:
    """All of them, by path. `unread` are folders that could not be looked at; not `complete`: there are more than are looked at."""

    changes: tuple[Change, ...]
    unread: tuple[str, ...]
    complete: bool


def look(facts: dict[str, Any], upper: str = "") -> Waiting:
    """What waits in the session of these facts; or, with `upper`, how the files in that directory (`kept/`) differ from the host's.

    Raises OSError when the workspace, or the layer, is not there.
    """
    worker = _Look(facts, kept=bool(upper))
    with Directory.top(upper or f"{facts['layer']}/upper") as layer, Directory.top(facts["top"]) as worker.root:
        worker.folder(layer, worker.root, "", 0)
    if worker.base is None and not upper:
        _save(f"{facts['session']}/base", worker.seen)
    found = sorted(worker.changes, key=lambda change: (change.rel, change.what != "removed"))
    return Waiting(tuple(found), tuple(worker.unread), worker.left > 0)


def settle(facts: dict[str, Any], keys: set[str]) -> None:
    """Note that these changes (`Change.key`) were brought, or are not wanted. Raises OSError."""
    _save(f"{facts['session']}/settled", {**load(f"{facts['session']}/settled"), **dict.fromkeys(keys, True)})


def settled(facts: dict[str, Any]) -> set[str]:
    """The keys that were noted so."""
    return set(load(f"{facts['session']}/settled"))


def _save(path: str, data: dict[str, Any]) -> None:
    with open(f"{path}.new", "wb") as file:
        marshal.dump(data, file)
    os.replace(f"{path}.new", path)


def known(found: os.stat_result, mark: str = "") -> Known:
    return (found.st_mode, found.st_size, found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, mark)


def digest(fd: int) -> str:
    """SHA-256 of an open file, as hex."""
    from hashlib import sha256

    worker, offset = sha256(), 0
    while piece := os.pread(fd, 1 << 20, offset):
        worker.update(piece)
        offset += len(piece)
    return worker.hexdigest()


class _Look:
    root: Directory

    def __init__(self, facts: dict[str, Any], *, kept: bool) -> None:
        self.facts, self.kept = facts, kept
        self.since = int((facts["started"] - SLACK) * 1e9)
        self.skip = frozenset((*facts["skip"], *facts.get("covered", ())))
        self.settled = settled(facts) if not kept else set()
        path = f"{facts['session']}/base"
        self.base: dict[str, Known | None] | None = load(path) if os.path.exists(path) and not kept else None
        self.seen: dict[str, Known | None] = {}
        self.changes: list[Change] = []
        self.unread: list[str] = []
        self.left, self.hashing = MOST, HASH_ALL

    def folder(self, upper: Directory, host: Directory | None, rel: str, depth: int, hides: bool = False) -> None:
        """Everything in a folder of the layer; `host` is the same place on the host, if that is a folder, too. `hides`: what is on the host only was removed,
        as in an opaque folder and all below it."""
        listed = upper.names()
        hides = hides or (bool(rel) and opaque(upper))
        for name in sorted(listed, key=os.fsencode):
            below = f"{rel}/{name}" if rel else name
            if below in self.skip:
                continue
            self.left -= 1
            if self.left <= 0:
                return
            try:
                self.entry(upper, host, name, below, depth, hides)
            except OSError:
                self.unread.append(below)
        if host is not None and hides:
            moved = self.meanwhile(rel, known(os.fstat(host.fd)))
            for name in sorted(set(host.names()) - set(listed), key=os.fsencode):
                self.gone(host, name, f"{rel}/{name}", depth, moved)

    def entry(self, upper: Directory, host: Directory | None, name: str, rel: str, depth: int, hides: bool) -> None:
        found = upper.stat(name)
        if found is None:
            return
        now = self.at(host, name, rel)
        kind, there = stat.S_IFMT(found.st_mode), stat.S_IFMT(now[0]) if now else 0
        if kind == stat.S_IFCHR and found.st_rdev == 0:  # a whiteout
            if now and host is not None:
                self.gone(host, name, rel, depth, "")
            return
        if kind == stat.S_IFDIR:
            self.inner(upper, host, name, rel, depth, now, hides)
            return
        conflict = self.meanwhile(rel, now)
        if there == stat.S_IFDIR and host is not None:
            self.gone(host, name, rel, depth, "")
            now = None
        if now and host is not None and self.equal(upper, host, name, kind, there):
            return
        after = known(found, upper.link_text(name) if kind == stat.S_IFLNK else "")
        refused = "" if kind in _KINDS else "neither file, folder nor link: it is never brought"
        if kind == stat.S_IFREG and found.st_size > LARGEST:
            refused = f"larger than {LARGEST >> 30} GiB: copy it yourself"
        self.add(Change(rel, "changed" if now else "added", _KINDS.get(kind, "other"), now, after, conflict, refused=refused), upper, name)

    def inner(self, upper: Directory, host: Directory | None, name: str, rel: str, depth: int, now: Known | None, hides: bool) -> None:
        """A folder of the layer."""
        with upper.down(name) as inner:
            after = known(os.fstat(inner.fd))
            merged = now is not None and stat.S_ISDIR(now[0])
            if not merged or host is None:
                if now and host is not None:
                    self.gone(host, name, rel, depth, "")
                if not self.kept:
                    self.add(Change(rel, "added", "folder", None, after, self.meanwhile(rel, now) if now else ""), upper, name)
            if depth >= DEEPEST:
                self.unread.append(rel)
            elif not merged or host is None:
                self.folder(inner, None, rel, depth + 1)
            else:
                with host.down(name) as there:
                    if not self.kept and not alike(inner.fd, there.fd):
                        moved = self.meanwhile(rel, now, entries=False)
                        self.add(Change(rel, "changed", "folder", now, after, moved), upper, name)
                    self.folder(inner, there, rel, depth + 1, hides)

    def gone(self, host: Directory, name: str, rel: str, depth: int, moved: str) -> None:
        """Something of the host that the session removed; of a folder all that is in it. `moved`: a folder above is another one by now."""
        self.left -= 1
        if self.left <= 0 or rel in self.skip:
            return
        now = self.at(host, name, rel)
        if now is None:
            return
        conflict = moved or self.meanwhile(rel, now)
        kind = stat.S_IFMT(now[0])
        if kind == stat.S_IFDIR:
            try:
                with host.down(name) as there:
                    if depth >= DEEPEST:
                        raise OSError(40, "too deep")
                    for each in sorted(there.names(), key=os.fsencode):
                        self.gone(there, each, f"{rel}/{each}", depth + 1, conflict)
            except OSError:
                self.unread.append(rel)
        self.add(Change(rel, "removed", _KINDS.get(kind, "other"), now, None, conflict), None, name)

    def add(self, change: Change, upper: Directory | None, name: str) -> None:
        if change.key in self.settled:
            return
        kind = change.after[0] if change.after else 0

        def content() -> bytes | None:
            return upper.read(name) if upper is not None else None

        link = change.after[6] if change.after and change.kind == "link" else ""
        guard = guarded.why(self.facts, self.root, change.rel, stat.S_IFMT(kind), content, link) if not self.kept else ""
        risk, why = _judged(self.facts["top"], change, kind, link)
        self.changes.append(
            Change(change.rel, change.what, change.kind, change.before, change.after, change.conflict, guard, change.refused, risk, why)
        )

    def at(self, host: Directory | None, name: str, rel: str) -> Known | None:
        """What is there on the host now. At the first look it is noted, and hashed as far as that goes."""
        found = host.stat(name) if host is not None else None
        if found is None or host is None:
            self.seen.setdefault(rel, None)
            return None
        mark = host.link_text(name) if stat.S_ISLNK(found.st_mode) else ""
        if self.base is None and not self.kept and stat.S_ISREG(found.st_mode) and found.st_size <= min(HASH_FILE, self.hashing):
            self.hashing -= found.st_size
            mark = _digest_of(host, name)
            later = host.stat(name)
            mark = mark if later is not None and known(later) == known(found) else ""  # of this content, not of one that was just written
        now = known(found, mark)
        self.seen[rel] = now
        was = (self.base or {}).get(rel)
        if was and now[:6] == was[:6]:
            return was
        if was and not mark and was[6] and now[1] == was[1]:
            now = known(found, _digest_of(host, name))
        return now

    def meanwhile(self, rel: str, now: Known | None, *, entries: bool = True) -> str:
        """How what is at `rel` on the host changed since the session began, "" if it did not. `entries`: of a folder, also what it holds while the session ran."""
        if self.kept:
            return ""
        was = self.seen.get(rel, now) if self.base is None else self.base.get(rel)
        if was is None or now is None:
            return "" if was == now else "appeared here since" if was is None else "was removed here since"
        folder = stat.S_ISDIR(now[0])
        if was[5] >= self.since and (entries or not folder):
            return "was changed here while the session ran"
        if folder:
            return "" if stat.S_ISDIR(was[0]) and was[2:4] == now[2:4] and (entries or was[0] == now[0]) else "was changed here since"
        same_file = was[:6] == now[:6] or (bool(was[6]) and was[0] == now[0] and was[6] == now[6])
        return "" if same_file else "was changed here since"

    def equal(self, upper: Directory, host: Directory, name: str, kind: int, there: int) -> bool:
        if kind != there or kind not in (stat.S_IFREG, stat.S_IFLNK):
            return False
        if kind == stat.S_IFLNK:
            return upper.link_text(name) == host.link_text(name)
        source = upper.open_file(name)
        try:
            return same(source, host, name)
        finally:
            os.close(source)


def _digest_of(host: Directory, name: str) -> str:
    try:
        fd = host.open_file(name)
    except OSError:
        return ""
    try:
        return digest(fd)
    finally:
        os.close(fd)


def _judged(top: str, change: Change, mode: int, link: str) -> tuple[str, str]:
    """The risk of a change, and who executes it later or where it leads; ("", "") if nobody and nowhere."""
    judged = names.judge(change.rel, mode)
    if change.kind == "folder" or (change.what == "removed" and not judged):
        return "", ""
    if change.what == "removed":
        return "low", "was executed by tools"
    if judged is None and change.kind == "link":
        place = os.path.normpath(os.path.join(top, os.path.dirname(change.rel), link))
        if place != top and not place.startswith(f"{top}/"):
            return "medium", "leads out of the folder"
    return judged or ("", "")
