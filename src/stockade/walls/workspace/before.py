"""`[workspace] scan = "before"`: nothing starts until the tree has been looked at. Costs a walk; leaves no window.

Nested repositories are mounted read-only, with every folder on the way pinned as a mount point of its own (a mount point cannot be renamed,
a folder that merely contains one can); hard links that lead outside are broken.
"""

from __future__ import annotations

from stockade.core.errors import CannotEnforce
from stockade.core.values import Enforced, Mount
from stockade.walls.workspace import known, scan
from stockade.walls.workspace.beneath import Directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stockade.core.values import Workspace

MOUNTS_AT_MOST = 2000


def hold(facts: dict[str, Any], workspace: Workspace) -> tuple[list[Mount], list[Enforced]]:
    """Walk the workspace now; returns mounts and notes.

    Raises CannotEnforce when a link cannot be broken, a folder cannot be looked at, or there are too many nested repositories.
    """
    top, target, origin = facts["top"], facts["target"], workspace.origin
    skip = frozenset(facts["skip"])
    skipped: list[str] = []
    nested: list[str] = []
    with Directory.top(top) as root:
        inside: str | None = None
        for _, rel, entries in scan.walk(root, "", skip, skipped):
            if inside is not None and f"{rel}/".startswith(f"{inside}/"):
                continue  # below a repository that is read-only as a whole
            if rel and scan.looks_like_git(entries):
                inside = rel
                nested.append(rel)
            nested += [f"{rel}/.git" for entry in entries if rel and entry.name == ".git" and entry.is_file(follow_symlinks=False)]
            if rel and any(entry.name == ".git" and entry.is_symlink() for entry in entries):
                skipped.append(f"{rel}/.git")
    if skipped:
        raise _unseen(skipped)
    said = links(facts)
    pinned = sorted({"/".join(parts[:depth]) for rel in nested for parts in [rel.split("/")] for depth in range(1, len(parts))})
    if len(pinned) + len(nested) > MOUNTS_AT_MOST:
        raise CannotEnforce(
            f"{len(nested)} nested repositories are too many to mount one by one",
            code="workspace.scan",
            hint='Run in a smaller folder, or choose `[workspace] scan = "behind"` or `mode = "rw-no-delete"`.',
        )
    mounts = [Mount(f"{top}/{rel}", f"{target}/{rel}", "rw", origin) for rel in pinned]
    mounts += [Mount(f"{top}/{rel}", f"{target}/{rel}", "ro", origin) for rel in nested]
    return mounts, [
        Enforced("nested repositories", "read-only binds, made before the start", f"{len(nested)} found"),
        *said,
    ]


def links(facts: dict[str, Any]) -> list[Enforced]:
    """Look for hard links that lead outside and break them, now. Remembers the look. Raises CannotEnforce when that is not possible."""
    top = facts["top"]
    found = scan.baseline(top, frozenset(facts["skip"]), contents=False)
    if found.skipped:
        raise _unseen(found.skipped)
    failed = [row for row in scan.break_links(top, found, float("inf")) if not row["broken"]]
    if failed:
        raise CannotEnforce(
            f"{failed[0]['path']} is a hard link to a file outside the workspace and cannot be replaced by a copy: {failed[0].get('error', '')}",
            code="workspace.hard-link",
            hint="Free some space or make its folder writable; or copy the file yourself.",
        )
    known.save(top, found.count, scan.inside_links(found))
    return [Enforced("hard links", "broken before the start", f"{len(scan.outside_links(found))} led outside")]


def _unseen(skipped: list[str]) -> CannotEnforce:
    return CannotEnforce(
        f"cannot look at everything in the workspace: {', '.join(sorted(set(skipped))[:5])}",
        code="workspace.scan",
        hint="A hard link there could lead outside. Make these folders readable or remove them, or run in a smaller folder.",
    )
