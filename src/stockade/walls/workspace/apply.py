"""Brings what waits in a session's layer to the host's folder, or the first versions of files back to it: one change at a time, each whole or not at all.

By descriptor on both sides, no link followed. A file is made beside its place and exchanged for what is there (renameat2(2)); what comes out has to be what was looked
at, or it is exchanged back: so whatever somebody writes meanwhile is not lost. Never brought: set-user-ID bits, devices, pipes, sockets.

INVARIANT: `receipt` is called before each effect, and what it raises leaves the place as it is.
"""

from __future__ import annotations

import errno
import os
import stat

from stockade.walls.workspace import defuse, guarded, waiting
from stockade.walls.workspace.beneath import EXCHANGE, Directory, copy_attributes, copy_whole
from stockade.walls.workspace.report import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from stockade.walls.workspace.waiting import Change, Known, Waiting

    # the change, and the SHA-256 of what is put there ("" = a folder, or nothing)
    Receipt = Callable[[Change, str], object]

REPLACED = ".stockade-replaced"  # ends the name of what had to make room


class Refused(Exception):
    """This one is not brought; the text says why."""


def chosen(found: Waiting, paths: Iterable[str], *, needed: bool = True) -> tuple[list[Change], list[str]]:
    """The changes at or below these paths of the workspace (all, if there are none), with the folders that are `needed` for them; and paths at which nothing waits."""
    wanted, empty, keys = [path.strip("/") for path in paths], [], set()
    if not wanted:
        return list(found.changes), []
    for path in wanted:
        hits = [
            one for one in found.changes for rel in (one.rel, shown(one.rel)) if path == "." or rel == path or rel.startswith(f"{path}/")
        ]
        keys |= {one.rel for one in hits}
        empty += [] if hits else [path]
    above = {rel[:end] for rel in keys for end, letter in enumerate(rel) if letter == "/"}
    if needed:
        keys |= {one.rel for one in found.changes if one.rel in above and one.what == "added" and one.kind == "folder"}
    return [one for one in found.changes if one.rel in keys], empty


class Apply:
    """`rows` has one for each change: `path`, `change`, `result` ("applied", "conflict", "protected", "refused" or "failed"), `why`, and `replaced`: the name that what
    was there has now. `held` is what was made harmless, as in a report."""

    def __init__(
        self,
        facts: dict[str, Any],
        receipt: Receipt,
        *,
        overwrite: bool = False,
        protected: bool = False,
        upper: str = "",
        aside: bool = False,
    ) -> None:
        """`overwrite`: also where the host's file was changed meanwhile, which is then kept under another name (with `aside` always); `protected`: also what takes a
        person's word. `upper` as for `waiting.look`."""
        self.facts, self.receipt, self.overwrite, self.protected, self.aside = facts, receipt, overwrite, protected, aside
        self.upper = upper or f"{facts['layer']}/upper"
        self.rows: list[dict[str, str]] = []
        self.held: list[dict[str, str]] = []
        self.done: set[str] = set()

    def run(self, changes: Iterable[Change]) -> None:
        """Bring these. Raises OSError when the workspace or the layer is not there, and what `receipt` raises."""
        listed = list(changes)
        gone = sorted((one for one in listed if one.what == "removed"), key=lambda one: -one.rel.count("/"))
        rest = sorted((one for one in listed if one.what != "removed"), key=lambda one: one.rel.count("/"))
        with Directory.top(self.facts["top"]) as self.root, Directory.top(self.upper) as self.layer:
            for change in gone:
                self.one(change, self.remove)
            for change in rest:
                self.one(change, self.bring)
            for change in reversed(rest):  # at last, and from below: a folder may be closed to writing
                if change.kind == "folder" and change.key in self.done:
                    self.attributes(change)

    def one(self, change: Change, how: Callable[[Change, Directory, str], str]) -> None:
        result, why, replaced = "applied", "", ""
        if change.refused:
            result, why = "refused", change.refused
        elif not self.protected and (guard := self.guard(change)):
            result, why = "protected", guard
        elif change.conflict and not self.overwrite:
            result, why = "conflict", change.conflict
        else:
            parent, _, name = change.rel.rpartition("/")
            try:
                with self.root.walk_to(parent) as here:
                    replaced = how(change, here, name)
                self.done.add(change.key)
            except Refused as error:
                result, why = "conflict", str(error)
            except OSError as error:
                result, why = "failed", error.strerror or "failed"
        row = {"path": shown(change.rel), "change": change.what, "result": result, "why": why}
        self.rows.append({**row, "replaced": shown(replaced)} if replaced else row)

    def guard(self, change: Change) -> str:
        """Why it takes a person's word by now: what was brought before it may have made a git directory of its folder."""
        if self.aside:
            return ""
        parent, _, name = change.rel.rpartition("/")

        def content() -> bytes | None:
            with self.layer.walk_to(parent) as upper:
                return upper.read(name)

        link = change.after[6] if change.after else ""
        try:
            return guarded.why(self.facts, self.root, change.rel, stat.S_IFMT(change.after[0]) if change.after else 0, content, link)
        except OSError as error:
            return f"cannot be looked at: {error.strerror}"

    def remove(self, change: Change, here: Directory, name: str) -> str:
        if here.stat(name) is None:
            return ""
        if change.kind == "folder":
            self.receipt(change, "")
            try:
                os.rmdir(name, dir_fd=here.fd)
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise Refused("holds something that was not removed, or is no folder any more") from error
                raise
            return ""
        _expect(here.stat(name), change.before)
        self.receipt(change, "")
        temporary = _temporary()
        _rename(here, name, temporary)
        if not _is(here.stat(temporary), change.before):
            _rename(here, temporary, name)
            raise Refused("is being changed here")
        return self.let_go(change, here, temporary, name)

    def bring(self, change: Change, here: Directory, name: str) -> str:
        if guarded.becomes(here, name):
            self.held += defuse.directory(here, change.rel.rpartition("/")[0], 0.0, self.facts["top"])
        if change.kind == "folder":
            if change.what == "added":
                self.receipt(change, "")
                try:
                    os.mkdir(name, 0o700, dir_fd=here.fd)
                except FileExistsError as error:
                    if here.kind(name) != stat.S_IFDIR:
                        raise Refused("appeared here since") from error
            return ""
        temporary = _temporary()
        content = self.copy(change, here, temporary)
        try:
            self.receipt(change, content)
            if change.before is None:
                try:
                    _rename(here, temporary, name)
                except FileExistsError as error:
                    raise Refused("appeared here since") from error
                temporary = ""
                return ""
            _expect(here.stat(name), change.before)
            _exchange(here, temporary, name)
            if not _is(here.stat(temporary), change.before):
                _exchange(here, temporary, name)
                raise Refused("is being changed here")
            left, temporary = temporary, ""
            return self.let_go(change, here, left, name)
        finally:
            if temporary:
                os.unlink(temporary, dir_fd=here.fd)

    def copy(self, change: Change, here: Directory, temporary: str) -> str:
        """Make what the layer has under a name of ours; its SHA-256, of a link that of its text."""
        from hashlib import sha256

        parent, _, name = change.rel.rpartition("/")
        with self.layer.walk_to(parent) as upper:
            if change.kind == "link":
                text = upper.link_text(name)
                os.symlink(text, temporary, dir_fd=here.fd)
                return sha256(os.fsencode(text)).hexdigest()
            source = upper.open_file(name)
            try:
                if os.fstat(source).st_size > waiting.LARGEST:
                    raise OSError(errno.EFBIG, "too large", name)
                copy_whole(source, here, temporary)
            finally:
                os.close(source)
        made = os.open(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here.fd)
        try:
            return waiting.digest(made)
        finally:
            os.close(made)

    def let_go(self, change: Change, here: Directory, temporary: str, name: str) -> str:
        """What was there: removed, or kept under another name, which is given."""
        if self.aside or change.conflict:
            place = f"{name}{REPLACED}"
            for number in range(1, 1000):
                try:
                    _rename(here, temporary, place)
                    return place
                except FileExistsError:
                    place = f"{name}{REPLACED}.{number}"
            raise OSError(errno.EEXIST, f"what was there is {shown(temporary)} now: too many have made room", name)
        os.unlink(temporary, dir_fd=here.fd)
        return ""

    def attributes(self, change: Change) -> None:
        """Mode and attributes of a folder that was added or changed."""
        try:
            with self.layer.walk_to(change.rel) as inner, self.root.walk_to(change.rel) as there:
                if change.what == "changed":
                    self.receipt(change, "")
                copy_attributes(inner.fd, there.fd)
        except OSError as error:
            self.rows.append({"path": shown(change.rel), "change": change.what, "result": "failed", "why": f"its mode: {error.strerror}"})


def _temporary() -> str:
    return f".stockade-{os.getpid()}-{os.urandom(6).hex()}"


def _is(found: os.stat_result | None, wanted: Known | None) -> bool:
    """Whether it is the file or link that was looked at. A rename changes its ctime, nothing else."""
    return found is not None and wanted is not None and waiting.known(found)[:5] == wanted[:5]


def _expect(found: os.stat_result | None, wanted: Known | None) -> None:
    if not _is(found, wanted):
        raise Refused("is being changed here")


_UNKNOWN = (errno.EINVAL, errno.ENOSYS)  # a file system without these flags, a network one for example


def _rename(here: Directory, old: str, new: str) -> None:
    """Rename, never over another name. Raises FileExistsError, OSError."""
    try:
        here.rename(old, new)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        if here.stat(new) is not None:
            raise FileExistsError(errno.EEXIST, "is there", new) from error
        os.rename(old, new, src_dir_fd=here.fd, dst_dir_fd=here.fd)


def _exchange(here: Directory, temporary: str, name: str) -> None:
    try:
        here.rename(temporary, name, EXCHANGE)
    except OSError as error:
        if error.errno not in _UNKNOWN:
            raise
        old = _temporary()
        os.rename(name, old, src_dir_fd=here.fd, dst_dir_fd=here.fd)
        os.rename(temporary, name, src_dir_fd=here.fd, dst_dir_fd=here.fd)
        os.rename(old, temporary, src_dir_fd=here.fd, dst_dir_fd=here.fd)
