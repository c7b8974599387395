"""Finds the repositories that the host's git would go into by itself, and has them made harmless (`defuse`)."""

from __future__ import annotations

import errno
import marshal
import os

from stockade.walls.workspace import defuse
from stockade.walls.workspace.beneath import Directory
from stockade.walls.workspace.report import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Facts = dict[str, Any]

SLACK = 0.02  # seconds by which a file system's coarse clock may lag behind time.time()


def load(path: str) -> dict[str, Any]:
    """A marshalled mapping that we wrote, {} if it is not there yet."""
    try:
        with open(path, "rb") as file:
            data: dict[str, Any] = marshal.load(file)  # noqa: S302 - written by us, in a directory of ours
            return data
    except (OSError, EOFError, ValueError):
        return {}


def since(known: dict[str, Any], rel: str, here: Directory, started: float) -> float:
    """From when on changes in the git directory `here` count: the start of the run if it was there before, else the beginning of time."""
    found = os.fstat(here.fd)
    if known.get("complete"):
        return started if known["git"].get(rel) == found.st_ino else 0.0
    return started if found.st_ctime < started else 0.0


def gitlinks(facts: Facts, rels: list[str]) -> list[dict[str, str]]:
    """Defuse the repositories at these paths of the workspace. Raises OSError if one cannot be defused: nothing may then name it."""
    known = load(os.path.join(facts["session"], "baseline"))
    held: list[dict[str, str]] = []
    with Directory.top(facts["top"]) as root:
        for rel in rels:
            try:
                here = root.walk_to(rel)
            except OSError as error:  # absent, or below a symbolic link: git does not go in either
                if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                raise
            with here:
                held += _one(facts, known, root, here, rel)
    return [{key: shown(value) for key, value in row.items()} for row in held]


def _one(facts: Facts, known: dict[str, Any], root: Directory, here: Directory, rel: str) -> list[dict[str, str]]:
    started, top = facts["started"] - SLACK, facts["top"]
    held: list[dict[str, str]] = []
    if here.kind(".git") == 0o040000:
        with here.down(".git") as there:
            below = f"{rel}/.git".lstrip("/")
            return defuse.directory(there, below, since(known, below, there, started), top)
    held += defuse.pointer(here, rel, top, started, trusted=lambda place: bool(facts["common"]) and place.startswith(f"{facts['common']}/"))
    text = os.fsdecode(here.read(".git", 4096) or b"")
    target = text[8:].rstrip("\r\n") if text.startswith("gitdir: ") and "\0" not in text else here.link_text(".git")
    place = os.path.normpath(os.path.join(top, rel, target)) if target else ""
    if place.startswith(f"{top}/") and not (facts["common"] and f"{place}/".startswith(f"{facts['common']}/")):
        below = place[len(top) + 1 :]
        try:
            with root.walk_to(below) as there:
                held += defuse.directory(there, below, since(known, below, there, started), top)
        except FileNotFoundError:
            pass
    return held


def known_links(facts: Facts) -> list[dict[str, Any]]:
    """Defuse the submodules that the host's index already named; an event if something was held."""
    rels = load(os.path.join(facts["git"]["session"], "before")).get("", {}).get("gitlinks", [])
    try:
        return _event(gitlinks(facts, rels))
    except OSError as error:
        return _event([], _failed("a submodule", error))


def top(facts: Facts) -> list[dict[str, Any]]:
    """Defuse a repository that was made at the top of a workspace which had none, with a `.git` or in its bare form."""
    held: list[dict[str, str]] = []
    try:
        with Directory.top(facts["top"]) as root:
            if root.kind(".git"):
                held += gitlinks({**facts, "session": "/nonexistent"}, [""])
            elif defuse.is_git_directory(root):
                held += defuse.directory(root, ".", 0.0, facts["top"])
    except OSError as error:
        return _event(held, _failed(".git", error))
    return _event(held)


def _failed(path: str, error: OSError) -> list[dict[str, str]]:
    return [{"path": path, "error": error.strerror or "failed"}]


def _event(held: list[dict[str, str]], failed: list[dict[str, str]] | None = None) -> list[dict[str, Any]]:
    event = {"kind": "workspace.report", "complete": False, "held": held, "not_defused": failed or []}
    return [event] if held or failed else []
