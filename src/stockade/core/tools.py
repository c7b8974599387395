"""What a policy says about calls of an agent's tools. Plain values."""

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
