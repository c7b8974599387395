"""What a check is, and the list of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.walls.conformance.lab import Lab


@frozen
class Check:
    """One thing that a wall must do. `id` is "group.name", `about` what holds, `skips` the reasons for which it may be left out without counting as failed."""

    id: str
    about: str
    run: Callable[[Lab], None]
    skips: tuple[str, ...]

    @property
    def group(self) -> str:
        return self.id.partition(".")[0]


CHECKS: dict[str, Check] = {}


def check(ident: str, about: str, *skips: str) -> Callable[[Callable[[Lab], None]], Callable[[Lab], None]]:
    """Enter a function into the list. It raises Failed for what is wrong and Skipped for what cannot be checked here; every other error is a failure too."""

    def enter(function: Callable[[Lab], None]) -> Callable[[Lab], None]:
        if ident in CHECKS:
            raise ValueError(f"two checks are called {ident}")
        CHECKS[ident] = Check(ident, about, function, skips)
        return function

    return enter
