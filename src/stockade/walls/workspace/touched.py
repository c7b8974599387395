"""Did the session write to its private git directory, or to a submodule's pointer? A few directory listings, no process.

HOT: on the path of every `stockade run`.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def repository(repo: dict[str, Any]) -> bool:
    """Whether anything was written into the private git directory (`facts["git"]`)."""
    upper = repo["upper"]
    try:
        found = os.lstat(f"{upper}/config")
    except OSError:
        return True
    if [found.st_ino, found.st_mtime_ns, found.st_size] != list(repo["config"]) or names(f"{upper}/logs"):
        return True
    return any(frozenset(names(f"{upper}/{rel}")) - frozenset(prepared) for rel, prepared in repo["prepared"].items())


def links_changed(facts: dict[str, Any]) -> bool:
    """Whether the workspace has submodules, whose pointers are worth a look: the host's `git status` goes into them."""
    return len(facts["git"]["prepared"]) > 1 or os.path.lexists(f"{facts['top']}/.gitmodules")


def names(path: str) -> list[str]:
    """The names in `path`, none if it is absent."""
    try:
        return os.listdir(path)
    except OSError:
        return []
