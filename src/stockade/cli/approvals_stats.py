"""`stockade approvals stats`: how often people are asked, and whether their answers still mean anything."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from stockade.cli import log
from stockade.cli.paint import Paint
from stockade.core import places
from stockade.core.frozen import plain

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Iterator

    from stockade.record.measures import Count, Measures, Share

_WIDTH = 24  # of a bar that stands for all
_EIGHTHS = " ▏▎▍▌▋▊▉"
_CLASSES = ("under 2 s", "2 to 5 s", "5 to 15 s", "15 s to 1 min", "longer")  # as measures.BINS


def add_parser(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add `stats` to a command's commands (cli/commands.py)."""
    parser = command(
        "stats",
        "Show how often people were asked, what they answered and how soon, and whether they noticed requests made up to be refused.",
    )
    parser.add_argument("--ledger", metavar="DIR", default="", help="the ledger's directory (default: yours)")
    parser.add_argument("--session", metavar="ID", default="", help="only this session (the beginning of its id is enough)")
    parser.add_argument(
        "--since",
        metavar="WHEN",
        type=log.when,
        default=0.0,
        help="only sessions in which something has happened since: 10m, 2h, 3d, a date (2026-01-31), a time (2026-01-31T08:00) or Unix seconds",
    )


def stats(options: argparse.Namespace) -> int:
    """Run it with the options of `add_parser`. 0: shown, also when nobody was asked anything; 1: the ledger was tampered with, 125: it could not be read."""
    return log.guarded(_stats, options, endless=False)


def _stats(options: argparse.Namespace) -> int:
    from stockade.record.measures import added, approvals
    from stockade.record.reading import Reader

    with closing(Reader(options.ledger)) as reader:
        sessions = added(reader.lines())
        if not reader.found and not options.json:
            print(f"Nothing is recorded in {log.safe(options.ledger)} yet.")
            return 0
    found = approvals(one for name, one in sessions.items() if name.startswith(options.session) and one.last >= options.since)
    if options.json:
        print(json.dumps(plain(found), indent=2))
        return 0
    for line in shown(found, Paint(sys.stdout), blocks=_can_show(_EIGHTHS)):
        print(line)
    return 0


def measured() -> Measures:
    """What your whole ledger says. Raises StockadeError (`ledger.*`)."""
    from stockade.record.measures import added, approvals
    from stockade.record.reading import Reader

    with closing(Reader(places.state("ledger"))) as reader:
        return approvals(added(reader.lines()).values())


def _can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def shown(found: Measures, paint: Callable[[str, str], str], *, blocks: bool = True) -> Iterator[str]:
    """The lines for a person. `blocks`: the output can show block characters."""
    work = f"{_number(found.sessions, 'session')}, {_hours(found.hours)} at work"
    if not found.asked:
        yield f"Nobody was asked anything: {work}." if found.sessions else "Nobody was asked anything: there is no such session."
    else:
        yield work
        for part in (_asked(found), _approved(found, blocks), _answered(found, blocks), _canaries(found, paint)):
            if part:
                yield ""
                yield paint(part[0], "bold")
                yield from part[1:]
    if found.unread:
        yield paint(f"{_number(found.unread, 'event')} about approvals could not be understood.", "yellow")


def _asked(found: Measures) -> list[str]:
    outcomes, seen = found.outcomes, found.baseline
    rate = "" if found.per_hour is None else f", {found.per_hour:.1f} an hour"
    rows = (
        (found.repeats, "again, what the session had asked before"),
        (outcomes.timed_out, "timed out, and denied by that"),
        (outcomes.withdrawn, "withdrawn before an answer"),
        (outcomes.open, "without an answer on record"),
        (found.reversals, "approved, and refused or revoked later"),
        (found.reviewed, "answered by a reviewer instead"),
        (outcomes.earlier, "covered by an earlier approval"),
        (outcomes.too_many, "denied without asking: too many"),
    )
    lines = [f"{'A person was asked ' + _number(found.prompts, 'time')}{rate}", *(f"  {count:4} {text}" for count, text in rows if count)]
    known = ((seen.commands, "commands"), (seen.connections, "connections"), (seen.writes, "files written"))
    less = "how many fewer it was is not known" if seen.cut is None else f"so {seen.cut:.0%} fewer, by what the ledger knows"
    return [
        *lines,
        "  With a question for every command, connection and file it would have been:",
        *(f"  {_count(one):>14}  {name}" for one, name in known),
        f"  {less}",
    ]


def _approved(found: Measures, blocks: bool) -> list[str]:
    risks = [(risk, one) for risk, one in found.by_risk.each() if one.rate is not None]
    if not risks:
        return []
    return [
        f"Approved: {_share(found.approved)}",
        *(f"  {risk:14}{_bar(one.rate or 0.0, blocks)}  {one.part} of {one.of}, {one.rate:.0%}" for risk, one in risks),
    ]


def _answered(found: Measures, blocks: bool) -> list[str]:
    times = found.times
    if times.median is None or times.p90 is None:
        return []
    rows = zip(_CLASSES, times.bins, strict=True)
    return [
        f"Answered: half within {_seconds(times.median)}, nine in ten within {_seconds(times.p90)}",
        *(f"  {name:14}{_bar(count / sum(times.bins), blocks)}  {count}" for name, count in rows),
    ]


def _canaries(found: Measures, paint: Callable[[str, str], str]) -> list[str]:
    seen = found.canaries
    if not seen.seeded:
        return []
    lines = [f"Requests made up to be refused, and refused: {_share(seen.vigilance)}"]
    if seen.missed:
        lines.append(paint(f"  {seen.missed:4} approved", "red"))
    if seen.reviewer.of:
        lines.append(f"Refused by the reviewer, which people were not shown: {_share(seen.reviewer)}")
    if seen.unanswered:
        lines.append(f"  {seen.unanswered:4} not answered by a person")
    return lines


def _bar(rate: float, blocks: bool) -> str:
    whole, eighths = divmod(round(rate * _WIDTH * 8), 8)
    return f"{'█' * whole + _EIGHTHS[eighths].strip():{_WIDTH}}" if blocks else f"{'#' * round(rate * _WIDTH):{_WIDTH}}"


def _count(count: Count) -> str:
    if count.whole:
        return str(count.least)
    return f"at least {count.least}" if count.least else "unknown"


def _share(found: Share) -> str:
    if found.rate is None:
        return "none was answered"
    return f"{found.part} of {found.of}, {found.rate:.0%} (95% interval: {found.low:.0%} to {found.high:.0%})"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.0f} minutes"


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


__all__ = ["add_parser", "measured", "shown", "stats"]
