"""`stockade drill`: replay the incidents and attacks in a throwaway yard, and show what is contained and by which layer."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """The options of `stockade drill`."""
    parser = argparse.ArgumentParser(
        prog="stockade drill",
        description="Replay incidents and attacks three ways: loose in a throwaway yard, where each must succeed; confined, where it must not; "
        "and its honest twin, confined, which must. Nothing leaves this machine.",
        epilog="Exit status: 0 all contained; 1 something got out; 3 nothing got out, but a control or a twin failed; 125 the drill could not run.",
    )
    parser.add_argument(
        "--agent",
        default="scripted",
        choices=("scripted", "codex", "claude", "mini"),
        help="who carries out the incidents (default: scripted)",
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME|ROW", help="only this attack, or this row such as M11 (may be repeated)"
    )
    parser.add_argument("--runs", type=int, metavar="N", help="at most N runs of each attack (default: every variant; the incidents 25)")
    parser.add_argument("--wall", default="", help="the wall to test (default: what `stockade run` chooses)")
    parser.add_argument("--as-root", action="store_true", help="as root of the yard's machine, not as an ordinary user")
    parser.add_argument(
        "--under", default="", metavar="COMMAND", help="test another sandbox: its command line, to which the attack's is appended"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--html", metavar="FILE", help="write a report, one file that loads nothing")
    parser.add_argument("--list", action="store_true", help="list the attacks and stop")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the drill; returns the exit status described above. Raises StockadeError where the drill itself cannot run."""
    args = build_parser().parse_args(argv)
    from stockade.core.errors import StockadeError
    from stockade.drills import agents, report, runner
    from stockade.drills.yard import Yard

    scenarios = runner.chosen(args.only)
    if not scenarios:
        raise StockadeError(
            f"no attack is called {', '.join(args.only)}", code="drill.unknown", hint="`stockade drill --list` names them and their rows."
        )
    if args.runs is not None and args.runs < 1:
        raise StockadeError("--runs must be at least 1", code="cli.usage", hint="Leave it out for every variant.")
    if args.list:
        return _list(scenarios, as_json=args.json)
    if args.html:
        _check_writable(args.html)
    agent = agents.find(args.agent)
    subject = args.under or f"stockade{f' ({args.wall})' if args.wall else ''}"
    rows: list[runner.Row] = []
    with Yard(keep=agent.keep, machines=args.wall == "vm") as yard:
        drill = runner.Drill(yard, agent, under=shlex.split(args.under), root=args.as_root, wall=args.wall)
        total, done = runner.total_runs(scenarios, args.runs), 0
        for row, _ in runner.play(drill, scenarios, args.runs):
            done += 1
            if not rows or rows[-1] is not row:
                rows.append(row)
            _progress(done, total, row.scenario.name)
    _progress(0, 0, "")
    if args.html:
        with open(args.html, "w", encoding="utf-8") as file:
            file.write(report.page(rows, subject, agent.name))
    if args.json:
        print(report.dumps(rows, subject, agent.name))
    else:
        print(report.table(rows, colour=sys.stdout.isatty() and not os.environ.get("NO_COLOR")))
        print(f"\n{report.summary(rows, subject)}")
    return runner.status(rows)


def _list(scenarios: Sequence[object], *, as_json: bool) -> int:
    import json

    from stockade.drills.scenario import Scenario

    items = [item for item in scenarios if isinstance(item, Scenario)]
    if as_json:
        print(
            json.dumps(
                [{"name": item.name, "rows": item.rows, "layer": item.layer, "about": item.about, "attack": item.attack} for item in items]
            )
        )
        return 0
    width = max(len(item.name) for item in items)
    for item in items:
        print(f"{item.name.ljust(width)}  {' '.join(item.rows):<12}  {item.about}")
    return 0


def _check_writable(path: str) -> None:
    """Before minutes of work, not after. Raises StockadeError (`drill.report`)."""
    from stockade.core.errors import StockadeError

    try:
        with open(path, "a", encoding="utf-8"):
            pass
    except OSError as error:
        raise StockadeError(
            f"cannot write {path}: {error.strerror}", code="drill.report", hint="Choose another file for --html."
        ) from error


def _progress(done: int, total: int, name: str) -> None:
    """A bar on a terminal; nothing elsewhere. `total` 0 wipes it."""
    if not sys.stderr.isatty():
        return
    if total:
        filled = 30 * done // total
        sys.stderr.write(f"\r\x1b[K[{'#' * filled}{'.' * (30 - filled)}] {done}/{total} {name}")
    else:
        sys.stderr.write("\r\x1b[K")
    sys.stderr.flush()
