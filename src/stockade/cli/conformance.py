"""`stockade doctor --conformance WALL`: the suite that every wall must pass, run on one, also on somebody else's."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from stockade.cli.log import safe
from stockade.cli.paint import Paint
from stockade.walls import conformance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.walls.conformance import Outcome
    from stockade.walls.conformance.checks import Check

COLOURS = {"pass": "green", "fail": "red", "skip": "yellow"}


def run(name: str, only: Sequence[str], *, as_json: bool) -> int:
    """Check the wall called `name` and show each check as it is known; 0 when all speak for it, 1 otherwise.

    Raises StockadeError when there is no such wall or check, CannotEnforce when the wall cannot work on this machine at all.
    """
    wall = conformance.find(name)
    checks = conformance.chosen(only)
    bar, paint, found, group = Bar(len(checks)), Paint(sys.stdout), list["Outcome"](), ""
    for outcome in conformance.run(wall, only=only, progress=bar.show):
        found.append(outcome)
        bar.wipe()
        if not as_json:
            if outcome.group != group:
                group = outcome.group
                print(paint(group, "bold"), flush=True)
            print(row(outcome, paint), flush=True)
    ok = all(outcome.ok for outcome in found)
    if as_json:
        print(json.dumps(plain(wall.NAME, checks, found, ok), indent=2))
    else:
        print(f"\n{safe(wall.NAME)}: {summary(found, ok)}")
    return 0 if ok else 1


def row(outcome: Outcome, paint: Paint) -> str:
    """One check. What it was skipped for and does not declare counts as failed, and is shown so."""
    word = outcome.status if outcome.ok else "fail"
    text = f"  {paint(outcome.status.ljust(4), COLOURS[word])}  {outcome.check.partition('.')[2].ljust(18)}"
    if outcome.reason:
        return f"{text} {safe(outcome.reason)}"
    return f"{text} {paint(f'{outcome.seconds:.2f} s', 'dim')}"


def summary(found: Sequence[Outcome], ok: bool) -> str:
    """The last line."""
    passed, skipped = (sum(outcome.status == status for outcome in found) for status in ("pass", "skip"))
    wrong = [outcome.check for outcome in found if not outcome.ok]
    counts = f"{passed} of {len(found)} checks passed" + (f", {skipped} skipped" if skipped else "")
    return f"{counts}." if ok else f"{counts}. It does not hold: {', '.join(wrong)}."


def plain(name: str, checks: Sequence[Check], found: Sequence[Outcome], ok: bool) -> dict[str, object]:
    """The result as JSON-ready data. The shape is stable; `version` changes if it has to."""
    about = {check.id: check.about for check in checks}
    rows = [
        {
            "check": outcome.check, "group": outcome.group, "about": about[outcome.check], "status": outcome.status, "ok": outcome.ok,
            "reason": outcome.reason, "seconds": round(outcome.seconds, 3),
        }
        for outcome in found
    ]  # fmt: skip
    return {"version": 1, "ok": ok, "wall": name, "checks": rows}


class Bar:
    """Which check is under way, on standard error if that is a terminal."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._on = total, 0, sys.stderr.isatty()

    def show(self, check: Check) -> None:
        """Before a check begins."""
        if self._on:
            filled = 30 * self._done // self._total
            sys.stderr.write(f"\r\x1b[K[{'#' * filled}{'.' * (30 - filled)}] {self._done}/{self._total} {check.id}")
            sys.stderr.flush()
        self._done += 1

    def wipe(self) -> None:
        """Before a row is printed."""
        if self._on:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
