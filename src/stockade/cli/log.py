"""`stockade log`: show, follow and verify the ledger."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import deque
from contextlib import closing
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

from stockade.cli.paint import EFFECTS, Paint
from stockade.core import places
from stockade.core.errors import EXIT_FAILED, StockadeError, Tampered
from stockade.record.reading import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import NoReturn

_POLL = 0.2  # seconds between two looks at a log that is being followed
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_FIRST = ("effect", "method", "url", "host", "port", "path", "name", "status", "rule")  # what people look for, in this order


def build_parser() -> argparse.ArgumentParser:
    """The parser of `stockade log`."""
    parser = argparse.ArgumentParser(prog="stockade log", description="Show, follow and verify what stockade decided, started and ended.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text)
        found.add_argument("--ledger", metavar="DIR", default="", help="the ledger's directory (default: yours)")
        found.add_argument("--json", action="store_true", help="JSON: one object a line")
        return found

    for name, text in (
        ("show", "Show entries of the ledger, oldest first."),
        ("follow", "Show entries as they are written, until Ctrl-C."),
    ):
        one = command(name, text)
        one.add_argument("--session", metavar="ID", default="", help="only this session (the beginning of its id is enough)")
        one.add_argument(
            "--kind",
            metavar="KIND",
            action="append",
            default=[],
            help="only events of this kind ('session' means all 'session.*'); may be repeated",
        )
        one.add_argument("--denied", action="store_true", help="only what was denied")
        one.add_argument("--host", metavar="NAME", default="", help="only what is about this host or a name below it")
        if name == "show":
            one.add_argument(
                "--since",
                metavar="WHEN",
                type=when,
                default=0.0,
                help="10m, 2h, 3d, a date (2026-01-31), a time (2026-01-31T08:00) or Unix seconds",
            )
            one.add_argument("--limit", metavar="N", type=count, default=0, help="only the last N that match")
        else:
            one.add_argument("--all", action="store_true", help="begin with what is there already")
    check = command("verify", "Check that nothing in the ledger was changed, added, removed or moved. Exit status 1 if something was.")
    check.add_argument("--key", metavar="KEY", default="", help="the verifier key that you kept (printed by this command)")
    check.add_argument("--checkpoint", metavar="FILE", default="", help="a checkpoint, or a file of them, that you kept elsewhere")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade log` with `argv` (without "log"). 0: fine, 1: tampered with or unreadable entries, 2: usage, 125: could not look."""
    options = build_parser().parse_args(argv)
    run: Callable[[Any], int] = {"show": _show, "follow": _follow, "verify": _verify}[options.command]
    return guarded(run, options, endless=options.command == "follow")


def guarded(run: Callable[[Any], int], options: argparse.Namespace, *, endless: bool) -> int:
    """Run a command that reads the ledger, and return its exit status. `endless`: Ctrl-C is how it is meant to end."""
    options.ledger = os.path.abspath(options.ledger or places.state("ledger"))
    try:
        status = run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return 0 if endless else 130
    except BrokenPipeError:  # `| head` has seen enough; python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StockadeError as error:
        status = 1 if isinstance(error, Tampered) else EXIT_FAILED
        if options.json:
            print(json.dumps({"ok": False, **error.plain()}))
        else:
            print(f"stockade: {safe(error.message)}" + (f"\n  {safe(error.hint)}" if error.hint else ""), file=sys.stderr)
        return status


def _show(options: argparse.Namespace) -> int:
    printer = Printer(options)
    with closing(Reader(options.ledger)) as reader:
        show(reader, printer, options.limit or None)
        if not reader.found:
            print(f"stockade: nothing is recorded in {safe(options.ledger)} yet", file=sys.stderr)
    return printer.status


def _follow(options: argparse.Namespace) -> int:
    with closing(Reader(options.ledger)) as reader:
        follow(reader, Printer(options), None if options.all else 0)


def show(reader: Reader, printer: Printer, last: int | None) -> None:
    """Print what is there and matches, or the last so many of it. Raises as `Reader.lines`."""
    if last == 0:
        deque(reader.lines(), 0)
        return
    found = printer.matching(reader.lines())
    for line, event in found if last is None else deque(found, last):
        printer.put(line, event)


def follow(reader: Reader, printer: Printer, last: int | None) -> NoReturn:
    """`show`, then what comes, for ever. Raises as `Reader.lines`, and BrokenPipeError when nobody reads any more."""
    show(reader, printer, last)
    while True:
        sys.stdout.flush()
        if not sys.stdout.isatty() and _closed(sys.stdout):
            raise BrokenPipeError
        time.sleep(_POLL)
        for line, event in printer.matching(reader.lines()):
            printer.put(line, event)


def _closed(stream: TextIO) -> bool:
    """Whether nobody reads the pipe any more: poll(2) reports POLLERR on it. Otherwise a quiet log would be followed for ever."""
    import select

    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


class Printer:
    """Chooses and prints entries."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.session: str = options.session
        self.kinds: list[str] = options.kind
        self.since: float = getattr(options, "since", 0.0)
        self.denied: bool = options.denied
        self.host: str = options.host.lower()
        self.json: bool = options.json
        self.paint = Paint(sys.stdout)
        self.status = 0

    def matching(self, entries: Iterator[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
        for entry in entries:
            line = entry.removesuffix(b"\n")
            try:
                event = json.loads(line)
                if not isinstance(event, dict):
                    raise ValueError("not an object")
                stamp = float(event.get("time", 0))
            except (ValueError, TypeError, RecursionError, OverflowError):
                if not self.status:
                    print("stockade: the log holds lines that stockade did not write: run `stockade log verify`", file=sys.stderr)
                self.status = 1
                continue
            kind = str(event.get("kind", ""))
            if stamp < self.since or not str(event.get("session", "")).startswith(self.session):
                continue
            if self.kinds and not any(kind == wanted or kind.startswith(wanted + ".") for wanted in self.kinds):
                continue
            if self.denied and event.get("effect") != "deny":
                continue
            if self.host and not _about(event, self.host):
                continue
            yield line, event

    def put(self, line: bytes, event: dict[str, Any]) -> None:
        if self.json:
            own = line.isascii() and line.decode("ascii").isprintable()  # as every line of ours is: its bytes are what the tree covers
            sys.stdout.write(line.decode("ascii") + "\n" if own else json.dumps(event) + "\n")
            return
        sys.stdout.write(self.text(event) + "\n")

    def text(self, event: dict[str, Any]) -> str:
        """The event as one line for people, without anything that a terminal could act on."""
        event = dict(event)
        index, session, kind = (event.pop(name, "") for name in ("index", "session", "kind"))
        words = [
            clock(event.pop("time", 0)),
            f"{safe(str(index)):>6}",
            f"{safe(str(session))[:8]:8}",
            self.paint(f"{safe(str(kind)):16}", "bold"),
        ]
        for name in (*_FIRST, *event):
            if name in event:
                words.append(self._detail(name, event.pop(name)))
        return " ".join(words).rstrip()

    def _detail(self, name: str, value: object) -> str:
        text = safe(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        if name == "effect":
            return self.paint(text, EFFECTS.get(text, "yellow"))
        if isinstance(value, str) and (not text or " " in text or '"' in text):
            text = '"' + text.replace('"', '\\"') + '"'
        return f"{safe(name)}={text}"


def _about(event: dict[str, Any], host: str) -> bool:
    """Whether the event is about this host, or a name below it."""
    name = event.get("host") or (event.get("name") if event.get("kind") == "dns" else "")
    name = name.lower().partition(":")[0] if isinstance(name, str) else ""  # a place that was refused may still have its port
    return name == host or name.endswith(f".{host}")


def safe(text: str) -> str:
    """`text` with everything that a terminal could act on spelled out: control and escape characters, direction marks, lone surrogates.

    A backslash is doubled, so that nothing inside a sandbox can fake an escape.
    """
    if text.isascii() and text.isprintable() and "\\" not in text:
        return text
    return "".join(c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode("ascii") for c in text)


def clock(stamp: object) -> str:
    try:
        return datetime.fromtimestamp(float(stamp)).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]  # type: ignore[arg-type]  # what is no number is caught below
    except (ValueError, TypeError, OverflowError, OSError):
        return "(no valid time)        "


def when(text: str) -> float:
    """Unix seconds of what --since takes."""
    try:
        if text[-1:] in _UNITS and text[:-1].replace(".", "", 1).isdecimal():
            return time.time() - float(text[:-1]) * _UNITS[text[-1]]
        if text.replace(".", "", 1).isdecimal():
            return float(text)
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no time: use 10m, 2h, 3d, 2026-01-31, 2026-01-31T08:00 or Unix seconds") from error


def count(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of entries")
    return int(text[:12])


def _verify(options: argparse.Namespace) -> int:
    from stockade.record.verify import verify

    kept = ""
    if options.checkpoint:
        try:
            with open(options.checkpoint, encoding="utf-8", errors="replace") as file:
                kept = "\n\n".join(file.read().strip().split("\n\n")[-2:]) + "\n"  # the last one, if it is a whole file of them
        except OSError as error:
            raise StockadeError(f"cannot read the checkpoint: {error}", code="ledger.unreadable") from error
    meter = _Meter()
    try:
        report = verify(options.ledger, key=options.key, checkpoint=kept, progress=meter)
    finally:
        meter.clear()
    unsigned = report.entries - report.signed
    if options.json:
        names = ("entries", "length", "root", "checkpoints", "signed", "key")
        found = {name: getattr(report, name) for name in names}
        print(
            json.dumps(
                {"ok": True, **found, "unsigned": unsigned, "unsigned_since": report.unsigned_since or None, "notes": list(report.notes)}
            )
        )
        return 0
    if not report.entries:
        print(f"nothing is recorded in {safe(options.ledger)} yet")
        return 0
    print(f"fine: {report.entries} entries, {report.length} bytes, root {report.root}")
    if report.checkpoints:
        print(f"signed: the first {report.signed}, by {report.checkpoints} checkpoints with the key {safe(report.key)}")
    if unsigned:
        print(f"not signed yet: the last {unsigned}, since {clock(report.unsigned_since)}. A skilled change of these would not be found.")
    for note in report.notes:
        print(f"note: {note}")
    return 0


class _Meter:
    """Progress on a terminal, for what takes longer than a second."""

    def __init__(self) -> None:
        self.on = sys.stderr.isatty()
        self.next = time.monotonic() + 1.0
        self.shown = False

    def __call__(self, done: int, whole: int) -> None:
        now = time.monotonic()
        if self.on and now >= self.next:
            self.next, self.shown = now + 0.2, True
            print(f"\rverifying: {100 * done // max(whole, 1)}%", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
