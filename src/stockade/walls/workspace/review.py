"""`review`: what a run wrote waits in its layer. This says how much that is when the run is over, which files of it others execute later, and which commits wait."""

from __future__ import annotations

import os
import stat

from stockade.walls.workspace import difference, waiting
from stockade.walls.workspace.beneath import Directory
from stockade.walls.workspace.report import Rows, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stockade.walls.workspace.waiting import Change, Waiting

COMMITS = ".git"  # the key under which all commits of a session are settled, and the path that names them
REFS, DEEP = 500, 12  # refs that are listed, levels of folders that they may lie in


def events(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The event `workspace.review`, with the rows of a report; none if nothing waits. Never raises for what the sandbox made."""
    try:
        found = waiting.look(facts)
    except OSError as error:
        said = f"changes that cannot be looked at ({shown(str(error))}), in {facts['layer']}"
        return [{"kind": "workspace.review", "session": facts["name"], "said": said, "complete": False, "rows": []}]
    refs = commits(facts)
    if refs:
        from stockade.walls.workspace import bringback

        bringback.remember(facts, late=True)
    if not found.changes and not found.unread and not refs:
        return []
    count = {what: sum(one.what == what and one.kind != "folder" for one in found.changes) for what in ("added", "changed", "removed")}
    return [
        {
            "kind": "workspace.review",
            "session": facts["name"],
            "said": sentence(found, refs),
            **count,
            "complete": found.complete and not found.unread,
            "commits": [{"ref": shown(ref), "new": new} for ref, new in refs[:20]],
            "rows": report(facts, found),
            "not_looked_at": [shown(rel) for rel in found.unread[:100]],
        }
    ]


def sentence(found: Waiting, refs: list[tuple[str, str]]) -> str:
    """How much waits, in words."""
    count = [(sum(one.what == what and one.kind != "folder" for one in found.changes), what) for what in ("changed", "added", "removed")]
    folders = sum(one.kind == "folder" for one in found.changes)
    parts = [f"{number} file{'s' * (number != 1)} {what}" for number, what in count if number]
    if folders and not parts:
        parts.append(f"{folders} folder{'s' * (folders != 1)}")
    if found.unread or not found.complete:
        parts.append("what could not be looked at")
    if refs:
        parts.append(f"commits ({len(refs)} refs)")
    return ", ".join(parts) + " that wait"


def report(facts: dict[str, Any], found: Waiting) -> list[dict[str, str]]:
    """The files among them that somebody's host executes later, as rows of a report (report.py): path, change, risk, why and a short difference."""
    before: dict[str, bytes | None] = {}
    rows, removed = Rows(before), {one.rel for one in found.changes if one.what == "removed" and one.risk}
    with Directory.top(facts["top"]) as root, Directory.top(f"{facts['layer']}/upper") as layer:
        for one in found.changes:
            if not one.risk:
                continue
            if one.before is not None:
                before[one.rel] = content(root, one, new=False)
            if one.what != "removed":
                rows.add(one.rel, (one.risk, one.why), content(layer, one, new=True))
    rows.gone(removed.__contains__)
    return rows.plain()


def content(top: Directory, change: Change, *, new: bool, limit: int = 64 << 10) -> bytes | None:
    """What the file is, in the layer (`new`) or on the host; of a link its text. None if it is larger than `limit`, or not to be read."""
    parent, _, name = change.rel.rpartition("/")
    side = change.after if new else change.before
    try:
        with top.walk_to(parent) as here:
            if side and stat.S_ISLNK(side[0]):
                return f"-> {here.link_text(name)}\n".encode("utf-8", "surrogateescape")
            return here.read(name, limit)
    except OSError:
        return None


def compared(facts: dict[str, Any], change: Change, upper: str = "") -> difference.Difference | None:
    """The difference of one file or link; None if a side is not text, or larger than is compared."""
    sides: list[bytes | None] = []
    with Directory.top(facts["top"]) as root, Directory.top(upper or f"{facts['layer']}/upper") as layer:
        for new, side, top in ((False, change.before, root), (True, change.after, layer)):
            data = content(top, change, new=new, limit=difference.LARGEST) if side else None
            if side and (data is None or not difference.text(data)):
                return None
            sides.append(data)
    return difference.between(sides[0], sides[1], change.rel)


def commits(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Refs that a session's git directory has otherwise than the host's: (name, object id, of HEAD its text)."""
    repo = facts["git"]
    if not repo or COMMITS in waiting.settled(facts):
        return []
    found: list[tuple[str, str]] = []
    for rel in repo["prepared"]:
        place = f"{repo['upper']}/{rel}" if rel else repo["upper"]
        host = f"{repo['common']}/{rel}" if rel else repo["common"]
        for admin in ("", repo["admin"]) if repo["admin"] and not rel else ("",):
            try:
                with (
                    Directory.top(place) as root,
                    Directory.top(host) as theirs,
                    root.walk_to(admin) as here,
                    theirs.walk_to(admin) as there,
                ):
                    _refs(here, there, f"{rel}/" if rel else "", found)
            except OSError:
                continue
    return found


def _refs(here: Directory, there: Directory, prefix: str, found: list[tuple[str, str]]) -> None:
    for name in ("HEAD", "packed-refs", "reftable"):
        if here.kind(name) in (stat.S_IFREG, stat.S_IFDIR) and here.read(name) != (there.read(name) or b""):
            text = here.read(name, 4096) if name == "HEAD" else b""
            found.append((prefix + name, shown((text or b"").decode("utf-8", "backslashreplace").strip())))
    if here.kind("refs") == stat.S_IFDIR:
        with here.down("refs") as refs:
            _below(refs, there, "refs", prefix, found, 0)


def _below(here: Directory, host: Directory, rel: str, prefix: str, found: list[tuple[str, str]], depth: int) -> None:
    for name in sorted(here.names(), key=os.fsencode):
        path = f"{rel}/{name}"
        if len(found) >= REFS or depth > DEEP:
            return
        if here.kind(name) == stat.S_IFDIR:
            with here.down(name) as inner:
                _below(inner, host, path, prefix, found, depth + 1)
        elif here.kind(name) == stat.S_IFREG and not name.endswith(".lock"):
            new = here.read(name, 4096) or b""
            try:
                with host.walk_to(rel) as there:
                    old = there.read(name, 4096)
            except OSError:
                old = None
            if new != old:
                found.append((prefix + path, shown(new.decode("utf-8", "backslashreplace").strip())))
