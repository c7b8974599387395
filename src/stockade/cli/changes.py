"""`stockade changes`: what sessions of mode `review` wrote and nobody has brought to the folder yet, and first versions that `rw-no-delete` kept."""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
import time
from typing import TYPE_CHECKING, Any

from stockade.cli.commands import commands
from stockade.cli.paint import Paint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.session.kept import Left
    from stockade.session.review import Held
    from stockade.walls.workspace.difference import Difference
    from stockade.walls.workspace.waiting import Change

_SESSION = re.compile(r"s\d{8}(-\d{0,6}(-[0-9a-f]{0,8})?)?\Z")
_WHICH = "the session's id or its beginning (default: the only one that holds changes of this folder), then paths of the workspace (default: all)"


def build_parser() -> argparse.ArgumentParser:
    """`stockade changes`'s own parser."""
    parser, command = commands(
        prog="stockade changes",
        description="Look at what a session of mode review wrote, bring it to the folder or drop it; and bring back first versions that rw-no-delete kept.",
    )
    command("list", "Show the sessions that hold changes or first versions of files (also without a word).")
    show = command("show", "Show the differences, and which files other programs will execute later.")
    show.add_argument("--stat", action="store_true", help="only names and numbers of lines")
    apply = command("apply", "Bring changes to the folder: all of them and then the commits, or those at PATHs; .git means the commits.")
    apply.add_argument(
        "--overwrite",
        action="store_true",
        help="also where the file was changed here meanwhile, which then gets a name ending in .stockade-replaced",
    )
    apply.add_argument(
        "--protected",
        action="store_true",
        help="also files that are read-only in other modes, and what git would execute: look at them first",
    )
    restore = command(
        "restore", "Bring first versions of files back that rw-no-delete kept; what is there now gets a name ending in .stockade-replaced."
    )
    for one in (show, apply, restore):
        one.add_argument("words", metavar="[SESSION] [PATH]", nargs="*", help=_WHICH)
    drop = command("discard", "Drop what a session holds, or only the changes at PATHs. It cannot be undone.")
    drop.add_argument("session", metavar="SESSION", help="the session's id, or the beginning of it")
    drop.add_argument("words", metavar="PATH", nargs="*", help="paths of the workspace (default: all)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade changes` with `argv` (without "changes"). 0: done; 1: something was not brought."""
    words = list(argv)
    if all(word == "--json" for word in words):
        words.insert(0, "list")
    options = build_parser().parse_args(words)
    run: Callable[[Any], int] = {"list": _list, "show": _show, "apply": _bring, "restore": _bring, "discard": _discard}[options.command]
    return run(options)


def _chosen(options: argparse.Namespace) -> tuple[Left, list[str]]:
    """The session that is meant, and paths relative to its workspace."""
    from stockade.cli.run import here
    from stockade.session import review

    words = list(options.words)
    name = getattr(options, "session", "") or (words.pop(0) if words and _SESSION.match(words[0]) else "")
    left = review.find(name, os.path.realpath(here()) if not name else "")
    return left, [_path(word, left.workspace) for word in words]


def _path(word: str, top: str) -> str:
    path = os.path.normpath(word)
    if path == top:
        return "."
    return path[len(top) + 1 :] if path.startswith(f"{top}/") else path


def _list(options: argparse.Namespace) -> int:
    from stockade.core.errors import StockadeError
    from stockade.session import review

    paint, rows = Paint(sys.stdout), list[dict[str, Any]]()
    for left in review.sessions():
        row: dict[str, Any] = {"id": left.id, "workspace": left.workspace, "started": left.started, "directory": left.directory}
        try:
            held = review.held(left)
            rows.append({**row, "what": "first versions" if held.first else "changes", "count": len(held.found.changes), "said": held.said})
        except StockadeError as error:
            rows.append({**row, "what": "unknown", "count": 0, "said": error.message})
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    if not rows:
        print("Nothing waits, and no first versions are kept.")
    for row in rows:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["started"]))
        print(f"{paint(row['id'], 'bold')}  {when}  {_safe(row['workspace'])}\n    {_safe(row['said'])}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from stockade.session import review

    left, paths = _chosen(options)
    held = review.held(left)
    changes, commits = review.select(held, paths)
    if options.json:
        print(json.dumps(_plain(held, changes, commits), indent=2))
        return 0
    paint = Paint(sys.stdout)
    print(paint(f"{left.id}  {_safe(left.workspace)}: {held.said}", "bold"))
    for change in changes:
        for line in _stat(held, change, paint) if options.stat else _whole(held, change, paint):
            print(line)
    for ref, new in held.refs if commits else ():
        print(f"{paint('commit:', 'bold')} {_safe(ref)} {new}")
    for rel in held.found.unread:
        print(paint(f"not looked at: {_safe(rel)}", "red"))
    if not held.found.complete:
        print(paint("There is more than is looked at.", "red"))
    rows = [change for change in changes if change.risk]
    if rows:
        print(paint(f"\n{len(rows)} of them other programs execute or follow later:", "bold"))
        order = {"high": 0, "medium": 1, "low": 2}
        for change in sorted(rows, key=lambda one: (order[one.risk], one.rel)):
            print(f"  {change.risk:<7}{_safe(change.rel)}  {paint(change.why, 'dim')}")
    print(paint(f"\nstockade changes {'restore' if held.first else 'apply'} {left.id} [PATH...], or discard", "dim"))
    return 0


def _whole(held: Held, change: Change, paint: Paint) -> list[str]:
    lines = [paint(_title(change), "bold"), *(paint(f"  ! {note}", "yellow") for note in _notes(change))]
    if change.kind not in ("file", "link"):
        return lines
    found = held.compared(change)
    if found is None:
        return [*lines, f"  not text, or too large to show: {_sizes(change)}"]
    for line in found.lines:
        colour = {"+": "green", "-": "red", "@": "dim"}.get(line[:1], "")
        lines.append(paint(line, colour) if colour else line)
    return lines


def _stat(held: Held, change: Change, paint: Paint) -> list[str]:
    found = held.compared(change) if change.kind in ("file", "link") else None
    count = f"+{found.added} -{found.removed}" if found else _sizes(change) if change.kind == "file" else ""
    return [f"  {_title(change)}  {count}", *(paint(f"    ! {note}", "yellow") for note in _notes(change))]


def _title(change: Change) -> str:
    modes = ""
    if change.what == "changed" and change.before and change.after and change.kind != "link":
        old, new = (stat.S_IMODE(side[0]) for side in (change.before, change.after))
        modes = f" (mode {old:o} -> {new & 0o777:o})" if (old ^ new) & 0o777 else ""
    elif change.what == "added" and change.after and change.kind in ("file", "folder") and change.after[0] & 0o002:
        modes = f" (mode {stat.S_IMODE(change.after[0]):o}: everybody can write to it)"
    return f"{change.what} {change.kind}: {_safe(change.rel)}{modes}"


def _notes(change: Change) -> list[str]:
    notes = []
    if change.conflict:
        notes.append(f"conflict: it {change.conflict}; --overwrite brings it all the same")
    if change.guard:
        notes.append(f"{change.guard}; --protected brings it all the same")
    if change.refused:
        notes.append(change.refused)
    return notes


def _sizes(change: Change) -> str:
    sizes = [str(side[1]) for side in (change.before, change.after) if side and stat.S_ISREG(side[0])]
    return f"{' -> '.join(sizes)} bytes"


def _plain(held: Held, changes: Sequence[Change], commits: bool) -> dict[str, Any]:
    def side(one: Any) -> dict[str, Any] | None:
        return {"mode": f"{one[0]:o}", "size": one[1]} if one else None

    def row(change: Change) -> dict[str, Any]:
        found: Difference | None = held.compared(change) if change.kind in ("file", "link") else None
        return {
            "path": _safe(change.rel),
            **{name: getattr(change, name) for name in ("what", "kind", "conflict", "guard", "refused", "risk", "why")},
            "before": side(change.before),
            "after": side(change.after),
            "diff": "\n".join(found.lines) if found else None,
            "added": found.added if found else None,
            "removed": found.removed if found else None,
        }

    return {
        "session": held.left.id,
        "workspace": held.left.workspace,
        "what": "first versions" if held.first else "changes",
        "changes": [row(change) for change in changes],
        "commits": [{"ref": ref, "new": new} for ref, new in held.refs] if commits else [],
        "not_looked_at": [_safe(rel) for rel in held.found.unread],
        "complete": held.found.complete,
    }


def _bring(options: argparse.Namespace) -> int:
    from stockade.cli import aftermath
    from stockade.session import review

    left, paths = _chosen(options)
    if options.command == "restore":
        events = review.restore(left, paths)
    else:
        events = review.apply(left, paths, overwrite=options.overwrite, protected=options.protected)
    rows = events[0]["rows"]
    failed = [row for row in rows if row["result"] != "applied"]
    torn = any(event.get("error") for event in events)
    stays = not paths and any(event["kind"] == "workspace.review" for event in events)  # what could not be looked at, for example
    if options.json:
        print(json.dumps(events, indent=2))
        return 1 if failed or torn or stays else 0
    paint = Paint(sys.stdout)
    for row in rows:
        if row["result"] == "applied":
            aside = f"  (what was there is {row['replaced']} now)" if row.get("replaced") else ""
            print(f"{paint(row['change'], 'green')}: {row['path']}{aside}")
        else:
            print(f"{paint(f'NOT brought ({row["result"]})', 'red')}: {row['path']}: {row['why']}")
    for line in aftermath.lines([{**event, "rows": []} for event in events], colour=paint.on):
        print(line)
    kinds = {row["result"] for row in failed}
    if "conflict" in kinds:
        print(
            "  A file that was changed here meanwhile stays: look at it, then apply it with --overwrite (yours is kept beside it), or discard it."
        )
    if "refused" in kinds:
        print("  What is never brought waits until you discard it.")
    if "protected" in kinds:
        print("  What is protected, or what git executes, takes --protected: look at it with stockade changes show first.")
    return 1 if failed or torn or stays else 0


def _discard(options: argparse.Namespace) -> int:
    from stockade.session import review

    left, paths = _chosen(options)
    gone = review.drop(left, paths)
    if options.json:
        print(json.dumps({"session": left.id, "paths": gone}))
    else:
        print(f"Dropped: {', '.join(gone)}" if gone else f"Removed {left.directory}")
    return 0


def _safe(text: str) -> str:
    from stockade.walls.workspace.report import shown

    return shown(text)
