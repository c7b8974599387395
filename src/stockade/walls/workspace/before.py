"""The look at a whole workspace before anything starts: at its first run, and at every run with `[workspace] scan = "before"`."""

from __future__ import annotations

import os

from stockade.core.errors import CannotEnforce
from stockade.core.values import Enforced
from stockade.walls.workspace import known, scan
from stockade.walls.workspace.beneath import Directory, break_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def own(top: str, rel: str) -> None:
    """Give a file that is going to be held no other name, by which it could be written to. Raises CannotEnforce (`workspace.hard-link`)."""
    try:
        if os.lstat(f"{top}/{rel}").st_nlink > 1:
            parent, _, name = rel.rpartition("/")
            with Directory.top(top) as root, root.walk_to(parent) as here:
                break_link(here, name)
    except OSError as error:
        raise CannotEnforce(
            f"{rel} has another name (a hard link), by which it could be written to, and cannot be replaced by a copy: {error.strerror}",
            code="workspace.hard-link",
            hint="Free some space or make its folder writable; or copy the file yourself.",
        ) from error


def look(facts: dict[str, Any], *, strict: bool) -> list[Enforced]:
    """Find nested repositories, find hard links that lead outside and break them, and remember what was found.

    Raises CannotEnforce when a link cannot be broken or a folder cannot be looked at; with `strict` also for a `.git` that cannot be held.
    """
    top = facts["top"]
    found = scan.baseline(top, frozenset(facts["skip"]), contents=False)
    unseen = [*found.skipped, *(found.linked if strict else ())]
    if unseen:
        raise CannotEnforce(
            f"cannot look at everything in the workspace: {', '.join(sorted(set(unseen))[:5])}",
            code="workspace.scan",
            hint="A hard link or a repository there could not be held. Make these folders readable, replace links named .git, or run in a "
            "smaller folder.",
        )
    failed = [row for row in scan.break_links(top, found, float("inf")) if not row["broken"]]
    if failed:
        raise CannotEnforce(
            f"{failed[0]['path']} is a hard link to a file outside the workspace and cannot be replaced by a copy: {failed[0].get('error', '')}",
            code="workspace.hard-link",
            hint="Free some space or make its folder writable; or copy the file yourself.",
        )
    known.save(top, found.count, scan.inside_links(found), found.nested(), found.folders)
    return [Enforced("hard links", "broken before the start", f"{len(scan.outside_links(found))} led outside")]
