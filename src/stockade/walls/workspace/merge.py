"""`rw-no-delete`: writes of the run wait in a layer of their own and are merged here, when the sandbox is dead. Nothing that existed is lost.

New files appear, changed files are replaced after their first version was copied to the session's directory, deletions are not carried out. Mode and
attributes of folders that existed stay, too; a file's times alone are no version of it and just follow.
Works by descriptor on both sides and follows no link. What the host's git would execute is merged under a name ending in `.stockade-held`.
Source: the kernel's Documentation/filesystems/overlayfs.rst (whiteouts, opaque directories).
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess

from stockade.walls.workspace import defuse, gitconfig, guarded
from stockade.walls.workspace.beneath import DEEPEST, Directory, alike, copy_attributes, copy_whole, opaque, same
from stockade.walls.workspace.names import PROTECTED
from stockade.walls.workspace.report import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ROWS = 1000
_GUARDED = frozenset(rel for rel, _ in PROTECTED)
_GIT_EXECUTES = frozenset(("hooks", "commondir", "config.worktree"))


def merge(facts: dict[str, Any]) -> dict[str, Any]:
    """Merge the layer of this run into the workspace; returns the event `workspace.merge`. Can be run again after an interruption.

    Never raises for what the sandbox made: `failed` lists what stayed in the layer, and why.
    """
    worker = _Merge(facts)
    kept = os.path.join(facts["session"], "kept")
    os.makedirs(kept, 0o700, exist_ok=True)
    with Directory.top(f"{facts['layer']}/upper") as upper, Directory.top(facts["top"]) as host, Directory.top(kept) as store:
        worker.store = store
        worker.directory(upper, host, "")
    return {
        "kind": "workspace.merge",
        **worker.counts,
        "rows": worker.rows,
        "held": worker.held,
        "failed": worker.failed,
        "kept_in": kept,
        "layer": f"{facts['layer']}/upper" if worker.failed else "",
    }


class _Merge:
    store: Directory

    def __init__(self, facts: dict[str, Any]) -> None:
        self.top: str = facts["top"]
        self.common: str = facts["common"]
        self.skip = frozenset(facts["skip"])
        self.counts = {"created": 0, "changed": 0, "not_deleted": 0, "not_changed": 0}
        self.rows: list[dict[str, str]] = []
        self.held: list[dict[str, str]] = []
        self.failed: list[dict[str, str]] = []

    def say(self, change: str, rel: str) -> None:
        self.counts[change] += 1
        if len(self.rows) < ROWS:
            self.rows.append({"path": shown(rel), "change": change.replace("_", " ")})

    def directory(self, upper: Directory, host: Directory, rel: str, hides: bool = False) -> None:
        """Merge everything in `upper` into `host`, which is the same place. `hides`: it lies in an opaque folder, so that what is on the host only was removed."""
        hides = hides or (bool(rel) and opaque(upper))
        for name in sorted(set(host.names()) - set(upper.names())) if hides else ():
            self.say("not_deleted", f"{rel}/{name}")
        for name in upper.names():
            below = f"{rel}/{name}" if rel else name
            if below in self.skip:
                continue
            try:
                self.entry(upper, host, name, below, hides)
            except OSError as error:
                self.failed.append({"path": shown(below), "error": error.strerror or "failed"})

    def entry(self, upper: Directory, host: Directory, name: str, rel: str, hides: bool) -> None:
        found = upper.stat(name)
        if found is None:
            return
        if stat.S_ISCHR(found.st_mode) and found.st_rdev == 0:
            if host.kind(name):
                self.say("not_deleted", rel)
            return
        if "/" in rel and guarded.becomes(
            host, name
        ):  # INVARIANT: before the folder is one that the host's git would take for a git directory
            self.held += defuse.directory(host, rel.rpartition("/")[0], 0.0, self.top)
        place = self.harmless_name(upper, host, name, rel, found)
        if rel in _GUARDED and host.kind(name):
            raise OSError(1, "protected: changes stay in the layer", rel)
        if stat.S_ISDIR(found.st_mode):
            self.folder(upper, host, name, place, rel, hides)
        elif stat.S_ISREG(found.st_mode):
            self.file(upper, host, name, place, rel)
        elif stat.S_ISLNK(found.st_mode):
            self.link(upper, host, name, place, rel)
        else:
            raise OSError(22, "neither file, folder nor link", rel)

    def harmless_name(self, upper: Directory, host: Directory, name: str, rel: str, found: os.stat_result) -> str:
        """`name`, or the name under which it is held back because the host's git would execute or follow it."""
        why = ""
        if name == ".git" and not stat.S_ISDIR(found.st_mode):
            why = "leads to another repository" if "/" in rel and host.kind(name) else self.wayward(upper, rel)
        elif name in _GIT_EXECUTES and self.gitish(host, rel):
            why = "git runs or follows it"
        elif name == "config" and self.gitish(host, rel):
            data = upper.read(name)
            try:
                bad = data is None or any(gitconfig.safe(pair) is None for pair in gitconfig.entries(data))
            except (ValueError, OSError, subprocess.SubprocessError):
                bad = True
            why = "sets what git would execute" if bad else ""
        elif rel.endswith("/objects/info/alternates"):
            why = "borrows objects from elsewhere"
        if not why:
            return name
        self.held.append({"path": shown(rel), "held": name + defuse.HELD, "why": why})
        return name + defuse.HELD

    def wayward(self, upper: Directory, rel: str) -> str:
        def ours(place: str) -> bool:
            return bool(self.common) and place.startswith(f"{self.common}/")

        return defuse.wayward(upper, ".git", rel.rpartition("/")[0], self.top, ours)

    @staticmethod
    def gitish(host: Directory, rel: str) -> bool:
        return "/" in rel and defuse.is_git_directory(host)

    def folder(self, upper: Directory, host: Directory, name: str, place: str, rel: str, hides: bool) -> None:
        if rel.count("/") >= DEEPEST:
            raise OSError(errno.ELOOP, "nested too deep", rel)
        with upper.down(name) as inner:
            kind = host.kind(place)
            if kind == stat.S_IFDIR:
                with host.down(place) as there:
                    self.directory(inner, there, rel, hides)
                    if not alike(inner.fd, there.fd):
                        self.say("not_changed", rel)
                return
            if kind:
                self.keep(host, place, rel)
            # INVARIANT: a new folder gets its name only when what it holds is harmless
            temporary = f".stockade-{os.getpid()}-{os.urandom(6).hex()}"
            os.mkdir(temporary, 0o700, dir_fd=host.fd)
            with host.down(temporary) as there:
                self.directory(inner, there, rel)
                if defuse.is_git_directory(there):
                    self.held += defuse.directory(there, rel, 0.0, self.top)
                if there.kind(".git") and there.kind(".git") != stat.S_IFDIR:
                    self.held += defuse.pointer(there, rel, self.top, 0.0)
                copy_attributes(inner.fd, there.fd)
            if kind:
                os.unlink(place, dir_fd=host.fd)
            os.rename(temporary, place, src_dir_fd=host.fd, dst_dir_fd=host.fd)

    def file(self, upper: Directory, host: Directory, name: str, place: str, rel: str) -> None:
        kind = host.kind(place)
        source = upper.open_file(name)
        try:
            if kind == stat.S_IFREG and same(source, host, place):
                _same_time(source, host, place)
                return
            if kind == stat.S_IFDIR:
                raise OSError(21, "a folder became a file: the folder stays", rel)
            if kind:
                self.keep(host, place, rel)
            temporary = f".stockade-{os.getpid()}-{os.urandom(6).hex()}"
            copy_whole(source, host, temporary)
            os.rename(temporary, place, src_dir_fd=host.fd, dst_dir_fd=host.fd)
        finally:
            os.close(source)
        self.say("changed" if kind else "created", rel)

    def link(self, upper: Directory, host: Directory, name: str, place: str, rel: str) -> None:
        target, kind = upper.link_text(name), host.kind(place)
        if kind == stat.S_IFLNK and host.link_text(place) == target:
            return
        if kind == stat.S_IFDIR:
            raise OSError(21, "a folder became a link: the folder stays", rel)
        if name == ".git":
            raise OSError(1, "a .git that is a link stays in the layer", rel)
        if kind:
            self.keep(host, place, rel)
        temporary = f".stockade-{os.getpid()}-{os.urandom(6).hex()}"
        os.symlink(target, temporary, dir_fd=host.fd)
        os.rename(temporary, place, src_dir_fd=host.fd, dst_dir_fd=host.fd)
        self.say("changed" if kind else "created", rel)

    def keep(self, host: Directory, name: str, rel: str) -> None:
        """Copy the first version to the session's directory. INVARIANT: raises before anything is replaced when it cannot."""
        here = self.store.walk_to("")
        try:
            for part in rel.split("/")[:-1]:
                if not here.kind(part):
                    os.mkdir(part, 0o700, dir_fd=here.fd)
                below = here.down(part)
                os.close(here.fd)
                here = below
            last = rel.rpartition("/")[2]
            if here.kind(last):
                return  # an interrupted merge has kept it already
            if host.kind(name) == stat.S_IFLNK:
                os.symlink(host.link_text(name), last, dir_fd=here.fd)
                return
            source = host.open_file(name)
            try:
                temporary = f".stockade-{os.urandom(6).hex()}"
                copy_whole(source, here, temporary)
                os.rename(temporary, last, src_dir_fd=here.fd, dst_dir_fd=here.fd)
            finally:
                os.close(source)
        finally:
            os.close(here.fd)


def _same_time(source: int, host: Directory, name: str) -> None:
    found = os.fstat(source)
    there = host.stat(name)
    if there is not None and there.st_mtime_ns != found.st_mtime_ns:
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=host.fd, follow_symlinks=False)
