"""The workspace: how it appears inside, and what happens to what was written there.

`prepare` runs before the start and costs a fixed number of system calls (but for the very first run in a workspace, which looks for hard
links); `View.finish` runs when every process of the sandbox is dead. In between and afterwards `stockade.walls.workspace.scan` looks at the
tree, behind the start and never in its way. The order in which a session uses this:

    view = prepare(...)            # its mounts and overlays are the workspace, whole
    view.started(time.time())      # just before the command
    scan.run(facts, ...)           # in a process of its own, once the command has lived a moment; not for mode "ro"
    ...                            # the command ends; the box is closed, every process in it is dead
    events = view.finish(confined)
    either: tell the scan, wait for its report for at most patience(facts, lasted) seconds, then let it go on by itself
    or, without a scan: report = view.look(lasted); if None, have `scan.compare` done behind the end
    cleanup.discard(session)       # unless an event says that something is kept there ("error", "failed", "kept_in")

HOT: on the path of every `stockade run`.
"""

from __future__ import annotations

import marshal
import os

from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.frozen import frozen
from stockade.core.values import Enforced, Mount, Overlay, Workspace
from stockade.walls import git
from stockade.walls.workspace.names import PROTECTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stockade.walls.workspace.hostgit import Confined

_KIND, _DIRECTORY, _REGULAR, _SYMLINK = 0o170000, 0o040000, 0o100000, 0o120000


@frozen
class View:
    """The workspace as the wall shall make it. Mounts are in order of depth, and go after the overlays whose targets they lie below.

    `held` is as in a Confinement. `facts` is plain data (marshal): what `finish` and the background scan need; also written to `<session>/facts`.
    """

    mounts: tuple[Mount, ...]
    overlays: tuple[Overlay, ...]
    held: tuple[str, ...]
    notes: tuple[Enforced, ...]
    facts: dict[str, Any]

    def started(self, when: float) -> None:
        """Say when the command starts (Unix seconds, just before it); the scan may be launched from then on."""
        self.facts["started"] = when
        _save(self.facts)

    def finish(self, confined: Confined) -> list[dict[str, Any]]:
        """Merge a no-delete layer, make the top of the workspace harmless, bring commits back; in review mode only say what waits. Returns ledger events, none
        if nothing happened.

        `confined(argv, stdout_fd, seconds) -> status` runs a program in the same view without network. Call it when the sandbox is dead, and
        before the scan is told so. Costs a few system calls when nothing was written to the git directory.
        """
        facts, events = self.facts, []
        if facts["mode"] == "review":
            from stockade.walls.workspace import review

            return review.events(facts)
        if facts["layer"] and os.listdir(f"{facts['layer']}/upper"):
            from stockade.walls.workspace import merge

            events.append(merge.merge(facts))
        before = facts["dotgit"]
        if (
            not facts["common"]
            and facts["mode"] != "ro"
            and (_shape(facts["top"]) != before or before[1] == _DIRECTORY or git.file_type(f"{facts['top']}/HEAD"))
        ):
            from stockade.walls.workspace import nested

            events += nested.top(facts)
        return [*events, *self.commits(confined)]

    def commits(self, confined: Confined) -> list[dict[str, Any]]:
        """Bring back what was committed in private layers; as `finish`, which does it unless commits wait for a person, too."""
        facts = self.facts
        events: list[dict[str, Any]] = []
        if facts["git"] or facts["nested"]:
            from stockade.walls.workspace import touched

            if facts["git"] and touched.links_changed(facts):
                from stockade.walls.workspace import nested

                events += nested.known_links(facts)
            for each in (*facts["nested"], facts):  # before the workspace's own repository names them
                if each["git"] and touched.repository(each["git"]):
                    from stockade.walls.workspace import bringback

                    events += bringback.bring_back_all({**facts, **each}, confined)
        return events

    def look(self, lasted: float) -> dict[str, Any] | None:
        """The look after the run, here and now, for a run of `lasted` seconds without a scan in the background: the event `workspace.report`.

        None when the workspace is too large for that, or was not written to.
        """
        facts = self.facts
        if facts["mode"] in UNTOUCHED or facts["files"] < 0 or (facts["files"] > SMALL and lasted < 10.0):
            return None
        from stockade.walls.workspace import scan

        return {**scan.compare(facts, scan.Baseline()), "session": facts["name"]}

    def pending(self) -> dict[str, Any]:
        """What the user is told where the scan goes on alone; the ledger gets what it finds."""
        return {"kind": "workspace.report", "session": self.facts["name"], "complete": False, "pending": True}


UNTOUCHED = ("ro", "review")  # modes in which a run writes nothing to the host's folder
SMALL = 1500  # files that are looked at in a few milliseconds
AT_MOST = 5.0  # seconds that the end of a session waits for a look


def prepare(workspace: Workspace, source: str, target: str, session: str, name: str, asked: tuple[str, ...] = ()) -> View:
    """Plan the workspace: host directory `source` (resolved), seen inside at `target`; `session` is a directory of ours for this run alone.

    `name` is the session's id, used in ref names; `asked` are the paths of files that are held and may be asked about (change.py). Raises CannotEnforce (a layout that
    cannot be kept private, no overlay, a file that cannot be held),
    StockadeError (`workspace.missing`).
    """
    if git.file_type(source) != _DIRECTORY or os.path.realpath(source) != source:
        raise StockadeError(
            f"the workspace {source} is not a directory", code="workspace.missing", hint="Name an existing folder, by its real path."
        )
    origin, mode = workspace.origin, workspace.mode
    mounts: list[Mount] = []
    overlays: list[Overlay] = []
    notes: list[Enforced] = []
    layer = ""
    if mode in ("review", "rw-no-delete"):
        layer = os.path.join(session, "layer")
        try:
            for part in (layer, f"{layer}/upper", f"{layer}/work"):
                os.mkdir(part, 0o700)
        except OSError as error:
            raise CannotEnforce(
                f"cannot make a layer in {layer}: {error.strerror}", code="workspace.layer", hint="Free some space."
            ) from error
        overlays.append(Overlay(source, f"{layer}/upper", f"{layer}/work", target, origin))
        notes.append(
            Enforced("workspace review", "overlay, not merged", "what is written waits for a person (stockade changes)")
            if mode == "review"
            else Enforced(
                "workspace rw-no-delete", "overlay, merged after the run", "deletions are not carried out, first versions are kept"
            )
        )
    else:
        mounts.append(Mount(source, target, mode, origin))
    view = git.prepare(source, target, workspace.git, session, origin, writable=mode != "ro", pin=mode == "rw")
    if mode == "rw":
        protected, missing = _protect(source, target, workspace)
        mounts += protected
        notes += missing
    mounts += view.mounts
    overlays += view.overlays
    notes += view.notes
    repository = view.repository
    facts: dict[str, Any] = {
        "name": name,
        "top": source,
        "target": target,
        "session": session,
        "started": 0.0,
        "mode": mode,
        "layer": layer,
        "common": repository.common if repository else "",
        "dotgit": _shape(source),
        "skip": [],
        "secrets": [],  # files that are secret mounts: to open one would count as the session's doing
        "files": -1,
        "git": view.facts(),
        "nested": [],  # the same four facts (top, target, common, git) of each repository below the top that has a private layer
    }
    if repository and repository.common.startswith(f"{source}/"):
        facts["skip"] = [repository.common[len(source) + 1 :]]
    held: tuple[str, ...] = ()
    if mode == "rw":
        nested, said = _looked(facts, workspace.scan)
        notes += said
        if nested:
            from stockade.walls.workspace.hold import Holding

            others = Holding(facts, nested, workspace)
            mounts += others.mounts
            overlays += others.overlays
            notes += others.notes
            held, facts["nested"] = others.held, others.nested
    if asked:
        from stockade.walls.workspace import change

        more = change.hold(facts, asked)
        held, notes = change.merged(held, more.held), [*notes, *more.notes]
    mounts = sorted({mount.target: mount for mount in mounts}.values(), key=lambda mount: mount.target.count("/"))
    facts["mounts"] = [(mount.source, mount.target, mount.mode) for mount in mounts]
    facts["overlays"] = [(overlay.lower, overlay.upper, overlay.work, overlay.target) for overlay in overlays]
    facts["held"] = list(held)
    return View(tuple(mounts), tuple(overlays), held, tuple(notes), facts)


def resume(session: str) -> View:
    """The view of a session whose supervisor died before `finish`, from the facts it saved. Raises OSError, ValueError, EOFError."""
    with open(f"{session}/facts", "rb") as file:
        facts = marshal.load(file)  # noqa: S302 - written by us, in a directory of ours
    mounts = tuple(Mount(source, target, mode) for source, target, mode in facts["mounts"])
    return View(mounts, tuple(Overlay(*paths) for paths in facts["overlays"]), tuple(facts["held"]), (), facts)


def patience(facts: dict[str, Any], lasted: float) -> float:
    """Seconds that a session which lasted `lasted` seconds waits for the scan at its end; then the scan goes on alone. A small workspace is looked at in a moment,
    which a busy machine may take its time for; for a large one it is a tenth of what the session took.
    """
    small = 0 <= facts["files"] <= SMALL
    return AT_MOST if small else min(AT_MOST, 0.1 * lasted)


def _looked(facts: dict[str, Any], scan: str) -> tuple[list[str], list[Enforced]]:
    """The repositories below the top as far as they are known, and notes. The first run in a workspace looks at all of it before it starts."""
    from stockade.walls.workspace import known

    top = facts["top"]
    last = known.load(top)
    new_link, fresh = known.glance(top, last) if last is not None and scan == "behind" else (True, [])
    if new_link:
        from stockade.walls.workspace import before

        said = before.look(facts, strict=scan == "before")
        last, fresh = known.load(top), []
    else:
        said = [
            Enforced("hard links", "known from the last look, scan behind the start", "one added since, below the top folder, has a window")
        ]
    if scan == "behind":
        said.append(
            Enforced("new repositories", "scan behind the start", "made harmless after the run; until then as writable as any file")
        )
    facts["files"] = last["files"] if last else -1
    return [*(last["nested"] if last else ()), *fresh], said


def _protect(source: str, target: str, workspace: Workspace) -> tuple[list[Mount], list[Enforced]]:
    """Read-only mounts for the files at the top that tools execute and nobody edits, where they exist: a fixed number of lstat calls."""
    mounts: list[Mount] = []
    notes: list[Enforced] = []
    pinned: set[str] = set()
    for rel, why in PROTECTED:
        kind = git.file_type(f"{source}/{rel}")
        if not kind:
            continue
        parent, slash, _ = rel.partition("/")
        if kind == _SYMLINK or (slash and git.file_type(f"{source}/{parent}") != _DIRECTORY):
            notes.append(Enforced(rel, "reported after the run", f"a symbolic link cannot be made read-only; {why}"))
            continue
        if slash and parent not in pinned:  # else the folder could be renamed away, and the mount with it
            pinned.add(parent)
            mounts.append(Mount(f"{source}/{parent}", f"{target}/{parent}", "rw", workspace.origin))
        if kind == _REGULAR and os.lstat(f"{source}/{rel}").st_nlink > 1:
            from stockade.walls.workspace import before

            before.own(source, rel)
        mounts.append(Mount(f"{source}/{rel}", f"{target}/{rel}", "ro", workspace.origin))
        notes.append(Enforced(rel, "read-only bind", why))
    return mounts, notes


def _shape(top: str) -> tuple[int, int]:
    """Inode and type of the `.git` at `top`; zeros when there is none."""
    try:
        found = os.lstat(f"{top}/.git")
    except OSError:
        return (0, 0)
    return (found.st_ino, found.st_mode & _KIND)


def _save(facts: dict[str, Any]) -> None:
    fd = os.open(f"{facts['session']}/facts", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, marshal.dumps(facts))
    finally:
        os.close(fd)
