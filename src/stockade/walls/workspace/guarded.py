"""What must not get into a folder of the host unless a person says so: files that are protected during a run, and what the host's git would execute or follow.

The same rules as for direct writes: names.py has the list, defuse.py and gitconfig.py what git obeys. Looks at the host by descriptor and follows no link.
Sources: gitrepository-layout(5), githooks(5), git-config(1).
"""

from __future__ import annotations

import os
import stat
import subprocess

from stockade.walls.workspace import defuse, gitconfig
from stockade.walls.workspace.names import PROTECTED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from stockade.walls.workspace.beneath import Directory

_SECOND = ("commondir", "config.worktree")
_MAKES = ("HEAD", "objects", "refs", "commondir")  # what makes a folder a git directory


def why(facts: dict[str, Any], root: Directory, rel: str, kind: int, content: Callable[[], bytes | None], link: str) -> str:
    """Why something at `rel` of the workspace (open as `root`) may not be put there, changed or removed without more words; "" if it may.

    `kind` is its file type, 0 = it is removed; `content` reads a file, `link` is the text of a link.
    """
    *folders, name = rel.split("/")
    here = root.walk_to("")
    try:
        listed = _protected(rel)
        for part in folders:
            gitish = defuse.is_git_directory(here)
            if gitish and part == "hooks":
                return "git runs these programs"
            if gitish and not kind:
                return "is part of a repository"
            try:
                below = here.down(part)
            except OSError:  # not there (yet): what makes a git directory of it is looked at when it does
                return _by_name(facts, rel, kind, content, link)
            os.close(here.fd)
            here = below
        gitish, there = defuse.is_git_directory(here), here.kind(name)
        if listed and there:
            return f"protected: {listed}"
        if gitish and name == "hooks":
            return "git runs these programs"
        if not kind and (gitish or (name == ".git" and there)):
            return "is part of a repository"
        if name == ".git" and there and not (stat.S_ISDIR(there) and stat.S_ISDIR(kind)):
            return "leads git to another repository"
        if name in _SECOND and (gitish or becomes(here, name)):
            return "sends git to another config"
        if gitish and name == "config" and not (kind and _harmless(content())):
            return "sets what git would execute"
        return _by_name(facts, rel, kind, content, link)
    finally:
        os.close(here.fd)


def becomes(here: Directory, name: str) -> bool:
    """Whether the folder becomes a git directory by getting something of this name."""
    if name not in _MAKES or defuse.is_git_directory(here):
        return False
    there = {each for each in _MAKES if each == name or here.kind(each)}
    return "HEAD" in there and ({"objects", "refs"} <= there or "commondir" in there)


def _protected(rel: str) -> str:
    return next((reason for path, reason in PROTECTED if rel == path or rel.startswith(f"{path}/")), "")


def _harmless(data: bytes | None) -> bool:
    try:
        return data is not None and all(gitconfig.safe(pair) is not None for pair in gitconfig.entries(data))
    except (ValueError, OSError, subprocess.SubprocessError):
        return False


def _by_name(facts: dict[str, Any], rel: str, kind: int, content: Callable[[], bytes | None], link: str) -> str:
    if not kind:
        return ""
    if f"/{rel}".endswith("/objects/info/alternates"):
        return "borrows objects from elsewhere"
    if rel.rpartition("/")[2] == ".git" and not stat.S_ISDIR(kind):
        text = content() if stat.S_ISREG(kind) else b""
        if text is None or b"\0" in text:  # longer than one that git makes, or with an end that only git sees
            return "leads git to another repository"
        target = os.fsdecode(text[8:]).rstrip("\r\n") if text.startswith(b"gitdir: ") else link
        above = rel.rpartition("/")[0]
        place = os.path.normpath(os.path.join(facts["top"], above, target))
        ours = bool(facts["common"]) and place.startswith(f"{facts['common']}/")  # a working tree that was added
        if target and not ours and (not os.path.isdir(place) or defuse.leads_out(target, above, facts["top"], None)):
            return "leads git to another repository"  # also one that is not there yet: it could become a link that leads out
    return ""
