"""Other repositories in the workspace, from the first moment of a run: private layers for a few, read-only for the rest.

Every folder on the way to one is held as a mount point of its own: a mount point cannot be renamed, a folder that merely contains one can.
Sources: gitrepository-layout(5), mount_namespaces(7).
"""

from __future__ import annotations

from stockade.core.errors import CannotEnforce
from stockade.core.values import Enforced
from stockade.walls import git

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from stockade.core.values import Mount, Overlay, Workspace

LAYERS = 4  # repositories that get a private layer; each costs a start some two milliseconds
AT_MOST = 4000  # paths held in place; each costs some 10 microseconds
_DIRECTORY, _SYMLINK = 0o040000, 0o120000


class Holding:
    """What the repositories at `rels` (paths of git directories and of `.git` files below the workspace) need. Same fields as a View's.

    `nested` has the facts of each private layer. Raises CannotEnforce when there are too many, or a layer cannot be made.
    """

    def __init__(self, facts: dict[str, Any], rels: Iterable[str], workspace: Workspace) -> None:
        self.mounts: list[Mount] = []
        self.overlays: list[Overlay] = []
        self.notes: list[Enforced] = []
        self.nested: list[dict[str, Any]] = []
        self._facts, self._workspace = facts, workspace
        layered, fixed = self._sorted(rels)
        if len(layered) > LAYERS or workspace.git == "ro":
            fixed += layered
            layered = []
        for rel in layered:
            if not self._layer(rel):
                fixed.append(rel)
        on_the_way = {above for rel in (*layered, *fixed) for above in _above(rel)}
        if len(on_the_way) + len(fixed) > AT_MOST:
            raise CannotEnforce(
                f"{len(layered) + len(fixed)} nested repositories are too many to hold one by one",
                code="workspace.nested",
                hint='Run in a smaller folder, or choose `[workspace] mode = "rw-no-delete"`.',
            )
        held = [*((rel, "rw") for rel in on_the_way), *((rel, "ro") for rel in fixed)]
        held.sort(key=lambda each: each[0].count("/"))
        self.held = tuple(f"{mode}:{facts['target']}/{rel}" for rel, mode in held)
        if layered or fixed:
            self.notes.append(
                Enforced(
                    "nested repositories",
                    "private layers and read-only binds",
                    f"{len(self.nested)} in private layers, {len(fixed)} read-only (to commit in one of these, run in its own folder)",
                )
            )

    def _sorted(self, rels: Iterable[str]) -> tuple[list[str], list[str]]:
        """(`.git` directories, everything else) of what is there, without what lies in another one or in the workspace's own."""
        top, covered = self._facts["top"], set(self._facts["skip"])
        layered: list[str] = []
        fixed: list[str] = []
        folders: dict[str, bool] = {}  # whether each folder on the way is a real one
        for rel in sorted(set(rels)):
            above = _above(rel)
            if not covered.isdisjoint(above):
                continue
            kind = git.file_type(f"{top}/{rel}")
            for folder in above:
                if folder not in folders:
                    folders[folder] = git.file_type(f"{top}/{folder}") == _DIRECTORY
            if not kind:
                continue
            if kind == _SYMLINK or not all(map(folders.__getitem__, above)):
                self.notes.append(Enforced(f"git {rel}", "made harmless after the run", "a symbolic link cannot be held in place"))
                continue
            if kind == _DIRECTORY:
                covered.add(rel)
            (layered if kind == _DIRECTORY and rel.endswith("/.git") else fixed).append(rel)
        return layered, fixed

    def _layer(self, rel: str) -> bool:
        """Give the repository whose git directory is `rel` a private layer; False for one that is no plain repository."""
        facts, below = self._facts, rel[: -len("/.git")]
        top, target = f"{facts['top']}/{below}", f"{facts['target']}/{below}"
        try:
            repository, _ = git.find(top)
        except CannotEnforce:
            repository = None
        if repository is None:
            return False
        session = f"{facts['session']}/nested/{len(self.nested)}"
        view = git.prepare(top, target, "private", session, self._workspace.origin)
        self.mounts += view.mounts
        self.overlays += view.overlays
        self.notes += view.notes
        self.nested.append({"top": top, "target": target, "common": repository.common, "skip": [".git"], "git": view.facts()})
        return True


def _above(rel: str) -> list[str]:
    """Every folder on the way to the relative path `rel`."""
    return [rel[:end] for end, letter in enumerate(rel) if letter == "/"]
