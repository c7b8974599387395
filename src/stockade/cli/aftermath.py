"""What the user is told after a run: what came back from git, what was made harmless, which new files other programs will execute."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

SHOWN = 20  # rows of each kind; the ledger has all of them
_RISK = {"high": 0, "medium": 1, "low": 2}


def lines(events: Iterable[dict[str, Any]], *, colour: bool) -> list[str]:
    """Lines for standard error, none when there is nothing to say. Names in events are already free of control characters."""
    bold, dim, off = ("\x1b[1m", "\x1b[2m", "\x1b[0m") if colour else ("", "", "")
    said: list[str] = []
    for event in events:
        if event["kind"] == "git.import":
            moved = [f"{ref['ref']} {ref['result']}" + (f" ({ref['why']})" if ref.get("why") else "") for ref in event.get("refs", ())]
            if moved:
                said.append(f"{bold}git:{off} " + ", ".join(moved[:SHOWN]))
        for note in event.get("notes", ()):
            said.append(f"{bold}git:{off} {note}")
        for problem in ("error", "failed", "kept_in"):
            if event.get(problem):
                said.append(f"{bold}workspace:{off} {problem.replace('_', ' ')}: {event[problem]}")
        for item in event.get("held", ())[:SHOWN]:
            said.append(f"{bold}made harmless:{off} {item['path']} {dim}({item['why']}; kept as {item['held']}){off}")
        for item in event.get("not_defused", ())[:SHOWN]:
            said.append(f"{bold}NOT made harmless:{off} {item['path'] if isinstance(item, dict) else item}")
        if event.get("pending"):
            said.append(f"{bold}workspace:{off} still being looked at {dim}(in a moment: stockade log show --kind workspace.report){off}")
        if event["kind"] == "workspace.review":
            said.append(f"{bold}review:{off} {event['said']} {dim}(stockade changes show {event['session']}; then apply or discard){off}")
        if event["kind"] == "workspace.merge":
            said += [f"{bold}{row['change']}:{off} {row['path']}" for row in event.get("rows", ())[:SHOWN]]
            continue
        rows = sorted(event.get("rows", ()), key=lambda row: (_RISK.get(row["risk"], 3), row["path"].count("/"), row["path"]))
        unlisted, unread = event.get("left_out", 0), event.get("not_looked_at", ())
        if rows:
            count = len(rows) + unlisted
            said.append(f"{bold}{count} file{'s' * (count != 1)} that other programs will execute later:{off}")
            said += [f"  {row['risk']:<7}{row['path']}  {dim}{row['why']}{off}" for row in rows[:SHOWN]]
            if len(rows) > SHOWN:
                said.append(f"  {dim}and {len(rows) - SHOWN} more: stockade log show --kind {event['kind']}{off}")
        if unlisted:
            said.append(
                f"{bold}{unlisted} of them are listed nowhere:{off} they are too many. Look through the folder before anything runs in it."
            )
        said += [f"{bold}NOT looked at:{off} {rel}" for rel in unread[:SHOWN]]
    return said


def tell(events: Iterable[dict[str, Any]]) -> None:
    """Write the lines to standard error."""
    text = lines(events, colour=os.isatty(2) and not os.environ.get("NO_COLOR"))
    if text:
        os.write(
            2, ("stockade: " + "\nstockade: ".join(text).replace("\nstockade:   ", "\n    ") + "\n").encode("utf-8", "backslashreplace")
        )
