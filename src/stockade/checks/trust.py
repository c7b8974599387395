"""May a project's own files count? Trust is given to the exact content of what it brings; whatever differs from that is not trusted."""

from __future__ import annotations

from stockade.core.brought import KINDS, REFUSED
from stockade.core.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal

    from stockade.core.brought import Entry


@frozen
class Change:
    """One file that is not as it was trusted."""

    name: str
    how: Literal["new", "gone", "changed"]


def changes(trusted: Iterable[Entry], now: Iterable[Entry]) -> tuple[Change, ...]:
    """What differs, in the order of what is there now, then what is gone. () exactly when both are the same."""
    before = {entry.name: entry for entry in trusted}
    after = {entry.name: entry for entry in now}
    found = [Change(name, "changed" if name in before else "new") for name, entry in after.items() if before.get(name) != entry]
    return (*found, *(Change(name, "gone") for name in before if name not in after))


def objections(entries: Iterable[Entry]) -> tuple[tuple[str, str], ...]:
    """(name, why) of everything that nobody can vouch for: with any of these a project cannot be trusted."""
    return tuple((entry.name, KINDS[entry.kind]) for entry in entries if entry.kind in REFUSED)
