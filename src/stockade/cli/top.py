"""The table of `stockade gate top`: what running sessions ask of their gates, drawn again and again."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from stockade.cli.log import safe
from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.record.reading import Reader
from stockade.record.traffic import Board, Traffic
from stockade.session import kept

if TYPE_CHECKING:
    from stockade.session.kept import Left

_HEAD = ("SESSION", "AGE", "ALLOWED", "/S", "REFUSED", "/S", "UP", "BUSIEST HOST", "LAST DECISION", "COMMAND")
_RIGHT = (1, 2, 3, 4, 5, 6)  # columns of numbers
_WIDEST = (25, 8, 9, 7, 9, 7, 10, 32, 48, 60)


class Watch:
    """The running sessions of this user, and what the ledger says of them."""

    def __init__(self, interval: float) -> None:
        """Reads the ledger from its beginning. `interval` in seconds is how far back what is recent begins."""
        while True:
            names = [left.id for left in _running()]
            self._reader, self._board = Reader(places.state("ledger")), Board()
            self._board.begin(time.time() - interval)
            self._board.add(self._reader.lines(), names)
            # Who began meanwhile may have written what was left out. Whoever begins from here on writes behind the place up to which we have read:
            # a session has its directory before it writes.
            if {left.id for left in _running()} <= {*names}:
                return
            self._reader.close()

    def look(self) -> list[dict[str, Any]]:
        """A row for each session, oldest first, with what came since the last look."""
        self._board.add(self._reader.lines())
        found, now = _running(), time.time()
        self._board.keep(left.id for left in found)
        rows = [_row(left, self._board.traffic.get(left.id) or Traffic(), self._board.rates(left.id, now), now) for left in found]
        self._board.begin(now)
        return rows


def run(interval: float, *, once: bool, as_json: bool) -> int:
    """Show the table until somebody leaves it, or once. As JSON: an object a line."""
    watch = Watch(interval)
    if as_json:
        while True:
            sys.stdout.write(json.dumps({"ok": True, "time": time.time(), "sessions": watch.look()}) + "\n")
            sys.stdout.flush()
            if once:
                return 0
            try:
                time.sleep(interval)
            except KeyboardInterrupt:
                return 0
    if once or not sys.stdout.isatty():
        print("\n".join(line.rstrip() for line in table(watch.look())))
        return 0
    try:
        import curses
    except ImportError as error:
        raise StockadeError("this Python has no curses", code="gate.terminal", hint="stockade gate top --once prints one table.") from error
    for number in (signal.SIGTERM, signal.SIGHUP):  # the terminal is given back as it was, as after Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        curses.wrapper(_draw, watch, interval)
    except KeyboardInterrupt:
        pass
    except curses.error as error:
        hint = "Is TERM right? stockade gate top --once prints one table."
        raise StockadeError(f"cannot draw on this terminal: {error}", code="gate.terminal", hint=hint) from error
    return 0


def _draw(screen: Any, watch: Watch, interval: float) -> None:
    import curses

    try:
        curses.curs_set(0)
    except curses.error:  # this terminal cannot hide its cursor
        pass
    rows, due = watch.look(), time.monotonic() + interval
    while True:
        height, width = screen.getmaxyx()
        screen.erase()
        for number, line in enumerate(["", *table(rows)][:height]):
            attribute = curses.A_BOLD if number == 1 else 0
            screen.insnstr(number, 0, line, width, attribute)
        title = f"{len(rows)} sessions   {time.strftime('%H:%M:%S')}   every {interval:g} s   q ends"
        screen.insnstr(0, 0, title, width, curses.A_DIM)
        screen.refresh()
        screen.timeout(max(0, int((due - time.monotonic()) * 1000)))
        key = screen.getch()
        if key in (ord("q"), ord("Q"), 27):
            return
        if key == -1:  # nobody pressed anything: it is time
            rows, due = watch.look(), time.monotonic() + interval


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as lines of text, the head first. Everything in it is fit for a terminal."""
    cells = [_HEAD, *map(_cells, rows)]
    widths = [min(limit, max(len(row[column]) for row in cells)) for column, limit in enumerate(_WIDEST)]

    def cell(column: int, text: str) -> str:
        text = text if len(text) <= widths[column] else text[: widths[column] - 3] + "..."
        return text.rjust(widths[column]) if column in _RIGHT else text.ljust(widths[column])

    lines = ["  ".join(cell(column, text) for column, text in enumerate(row)) for row in cells]
    return lines if rows else [*lines, "No session runs."]


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    last = row["last"]
    said = f"{last['effect']} {last['method']} {last['host']}{last['path']} {last['rule']}" if last else "-"
    said = f"the gate has ended: {row['ended']}" if row["ended"] else said
    return tuple(
        map(
            safe,
            (
                row["session"], _age(row["age"]), str(row["allowed"]), f"{row['allowed_per_second']:.1f}", str(row["refused"]),
                f"{row['refused_per_second']:.1f}", _size(row["up"]), row["busiest"] or "-", said, shlex.join(row["command"]) or "-",
            ),
        )
    )  # fmt: skip


def _row(left: Left, traffic: Traffic, rates: tuple[float, float], now: float) -> dict[str, Any]:
    started = traffic.started or left.started
    last = {name: str(traffic.last.get(name, "")) for name in ("effect", "method", "host", "path", "rule")} if traffic.last else None
    return {
        "session": left.id, "command": list(traffic.command), "workspace": left.workspace, "started": started,
        "age": max(0.0, now - started) if started else 0.0, "allowed": traffic.allowed, "refused": traffic.refused,
        "allowed_per_second": round(rates[0], 3), "refused_per_second": round(rates[1], 3), "up": traffic.up, "busiest": traffic.busiest,
        "last": {**last, "time": traffic.last.get("time")} if last else None, "ended": traffic.ended,
    }  # fmt: skip


def _running() -> list[Left]:
    return [left for left in kept.sessions() if left.lives]


def _age(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 86400:
        return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def _size(count: int) -> str:
    size, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and units[1:]:
        size, _ = size / 1024, units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "B" else f"{size:.1f} {units[0]}"
