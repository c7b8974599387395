"""What a policy says about what is asked from inside: calls of an agent's tools, changes to protected files, mounts. Plain values."""

from __future__ import annotations

from stockade.core.frozen import frozen
from stockade.core.values import Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Self

    from stockade.core.values import Effect


@frozen
class ToolRule:
    """What an agent's tool calls are answered (checks/tools.py). In `name` and in each pattern of `match`, (argument, pattern), `*` is any text.

    `people`: a call that is asked about may be approved by a person only, once at a time. `unreviewed`: as of a Grant.
    """

    name: str
    effect: Effect
    match: tuple[tuple[str, str], ...] = ()
    people: bool = False
    origin: Origin = Origin()
    unreviewed: bool = False

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """As `Grant.from_plain`."""
        match = tuple((name, pattern) for name, pattern in data["match"])
        return cls(data["name"], data["effect"], match, data["people"], Origin(**data["origin"]), data["unreviewed"])


def wholesome(path: str) -> bool:
    """Whether a relative path stays below where it begins, and names nothing that git would obey, on whatever file system."""
    return all(
        part not in ("", ".", "..") and part.lower().partition(":")[0].rstrip(" .") not in (".git", "git~1") for part in path.split("/")
    )


@frozen
class FileRule:
    """Files of the workspace that are held read-only inside (walls/workspace/change.py). With the effect "ask" a person may approve a change, with "deny" nobody.

    `path` is relative to the workspace, its last segment a pattern in which `*` is any text: then all of the folder is held. Only people ever approve one.
    """

    path: str
    effect: Effect
    origin: Origin = Origin()

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """As `Grant.from_plain`."""
        return cls(data["path"], data["effect"], Origin(**data["origin"]))


@frozen
class MountRule:
    """A folder of the host, `source` (resolved), that is not shown inside until a person approves it: read-only then, at `target`, until the session ends. `written` is how
    the policy names it. It always asks, and only people ever approve it."""

    source: str
    target: str
    written: str
    origin: Origin = Origin()
    effect: Effect = "ask"

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """As `Grant.from_plain`."""
        return cls(**{**data, "origin": Origin(**data["origin"])})


def rules_inside(data: dict[str, Any]) -> dict[str, Any]:
    """The rules of all these kinds in a policy's plain data, by their fields. Only for data that we validated and wrote ourselves."""
    return {
        "tools": tuple(ToolRule.from_plain(item) for item in data["tools"]),
        "files": tuple(FileRule.from_plain(item) for item in data["files"]),
        "offers": tuple(MountRule.from_plain(item) for item in data["offers"]),
    }
