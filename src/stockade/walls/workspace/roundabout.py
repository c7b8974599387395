"""What comes under a name that tools obey without any file of that name being written: a folder that was moved there, and what a link leads to."""

from __future__ import annotations

import os
import stat

from stockade.walls.workspace import known, names
from stockade.walls.workspace.report import KEEP_FILE, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from stockade.walls.workspace.beneath import Directory
    from stockade.walls.workspace.report import Rows

BEHIND = 20_000  # entries of folders that are looked at because a link leads there


class Moved:
    """Which folders were moved to where they are while the command ran: that changes the change time of the folder (inode(7)), and of nothing that it holds.

    A folder that was changed meanwhile, and that neither the baseline nor the last look at the workspace has seen there, counts as such.
    """

    def __init__(self, facts: dict[str, Any], before: dict[str, int], started: float, *, whole: bool) -> None:
        """`before` are the folders (path: inode) that a baseline has seen, of the `whole` workspace or of a part."""
        self._top = ""  # the last one that was moved; what lies below it follows it in a walk
        self._before, self._started = before, started
        last = None if facts["layer"] else known.folders(facts["top"])  # what comes from a layer is made anew, file by file
        self._last, self._blind = last or {}, bool(facts["layer"]) or not (last or whole)

    def moved(self, rel: str, here: Directory) -> bool:
        """Whether the folder at `rel`, the next one of a walk, was moved, or one above it."""
        if not rel or self._blind:
            return False
        if self._top and rel.startswith(f"{self._top}/"):
            return True
        found = os.fstat(here.fd)
        fresh = found.st_ctime >= self._started and found.st_ino not in (self._before.get(rel), self._last.get(rel))
        self._top = rel if fresh else ""
        return fresh


def behind(rows: Rows, root: Directory, top: str, link: str, judged: tuple[str, str], started: float, room: Iterator[int]) -> bool:
    """Rows for what changed behind a link that tools follow: they do not know it by its own name. False when there is more than is looked at."""
    place = os.path.realpath(os.path.join(top, link))
    rel = place[len(top) + 1 :]
    if not place.startswith(f"{top}/") or names.in_git(f"{rel}/"):
        return True
    from stockade.walls.workspace import scan

    parent, _, name = rel.rpartition("/")
    try:
        with root.walk_to(parent) as here:
            if here.kind(name) == stat.S_IFDIR:
                with here.down(name) as folder:
                    for inner, below, entries in scan.walk(folder, "", frozenset(), []):
                        for entry in entries:
                            if next(room, None) is None:
                                return False
                            path = f"{below}/{entry.name}" if below else entry.name
                            _alias(rows, inner, entry.name, f"{rel}/{path}", link, names.judge(f"{link}/{path}"), started)
            else:
                _alias(rows, here, name, rel, link, judged, started)
    except OSError:  # nothing is there
        pass
    return True


def _alias(rows: Rows, here: Directory, name: str, rel: str, link: str, judged: tuple[str, str] | None, started: float) -> None:
    found = here.stat(name)
    if judged is None or found is None or not stat.S_ISREG(found.st_mode) or found.st_ctime < started or names.judge(rel):
        return
    rows.add(rel, (judged[0], f"{judged[1]} (by the link {shown(link)})"), here.read(name, KEEP_FILE))
