"""`stockade trust`: see what a project brings, and let it count or not."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import unicodedata
from typing import TYPE_CHECKING, Any

from stockade.cli.paint import Paint, pieces, room
from stockade.core import brought
from stockade.core.errors import StockadeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from stockade.checks.trust import Change
    from stockade.core.brought import Entry
    from stockade.session.trust import Trusted

LINES, WIDTH = 40, 150  # of one file in the question; `--show` shows all
_DIFFED = 2000  # lines of a file that are compared line by line
_BLANKS = "\u115f\u1160\u2800\u3164\uffa0"  # letters that look like nothing


def build_parser() -> argparse.ArgumentParser:
    """The parser of `stockade trust`."""
    parser = argparse.ArgumentParser(
        prog="stockade trust",
        description="Show what the project in a folder brings that tools obey without being asked, read by a confined process, and ask whether you trust it. "
        "Then its stockade.toml counts below your own policy, until any of it changes. Exit status 0: trusted, 1: not, 125: it could not be told.",
    )
    parser.add_argument(
        "path", nargs="?", default=".", metavar="PATH", help="the folder (default: the current one); not those below or above it"
    )
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--show", action="store_true", help="only show it, whole, and whether it is trusted")
    one.add_argument(
        "--digest", metavar="DIGEST", default="", help="trust it without asking if what it brings has exactly this digest (for scripts)"
    )
    one.add_argument("--revoke", action="store_true", help="trust it no longer; nothing of it is looked at")
    one.add_argument("--list", action="store_true", dest="listed", help="show which folders you trust; nothing of them is looked at")
    parser.add_argument("--json", action="store_true", help="JSON on standard output; nothing is asked")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade trust` with `argv` (without "trust"). 0: trusted (or revoked, or listed); 1: not trusted; 2: usage."""
    options = build_parser().parse_args(argv)
    if options.listed:
        return _list(options)
    path = os.path.realpath(options.path)
    return _revoke(options, path) if options.revoke else _trust(options, path)


def _list(options: argparse.Namespace) -> int:
    from stockade.session import trust

    found = trust.listing()
    if options.json:
        print(json.dumps([{"path": one.path, "when": one.when, "digest": digest(one.body)} for one in found], indent=2))
        return 0
    if not found:
        print("You trust no folder.")
    for one in found:
        print(f"{_day(one)}  {digest(one.body)[:16]}  {name(one.path)}")
    return 0


def _revoke(options: argparse.Namespace, path: str) -> int:
    from stockade.session import trust

    was = trust.revoke(path)
    if options.json:
        print(json.dumps({"path": path, "revoked": was}))
    else:
        print(f"{name(path)} is not trusted any more." if was else f"{name(path)} was not trusted.")
    return 0


def _trust(options: argparse.Namespace, path: str) -> int:
    from stockade.checks.trust import changes, objections
    from stockade.core.values import Origin
    from stockade.policy.paths import judge
    from stockade.session import trust

    judge(path, what="workspace", mode="ro", origin=Origin(), named=options.path)
    before = trust.kept(path)
    body = trust.look(path)
    now = brought.decode(body)
    changed = changes(before.entries, now) if before is not None else ()
    state = "untrusted" if before is None else "changed" if changed else "trusted"
    bad = objections(now)
    if options.digest:
        return _pinned(options, path, body)
    if options.json:
        print(json.dumps(_plain(path, state, body, now, changed, bad)))
        return 0 if state == "trusted" else 1
    paint = Paint(sys.stdout)
    hidden = sum(_print_entry(paint, entry, before, changed, whole=options.show) for entry in now)
    for one in changed:
        if one.how == "gone":
            print(f"\n{paint(name(one.name), 'bold')}  {paint('is gone', 'yellow')}")
    if not now and before is None:
        print(f"{name(path)} brings nothing that tools obey without being asked.")
        return 1 if options.show else 0
    print(f"\n{name(path)}: {_said(state, before)}. Digest of what it brings: {digest(body)}")
    if options.path != "." and os.path.abspath(options.path) != path:
        print(f"  {name(options.path)} is, or is reached through, a symbolic link; what is trusted is the folder it leads to.")
    if options.show or state == "trusted":
        return 0 if state == "trusted" else 1
    if bad:
        raise trust.refused(path, body, bad)
    return _asked(paint, path, body, hidden)


def _pinned(options: argparse.Namespace, path: str, body: bytes) -> int:
    from stockade.session import trust

    if options.digest.lower() != digest(body):
        trust.record("refused", path, body, by="digest")
        raise StockadeError(
            f"what {path} brings has the digest {digest(body)}, not the one that you named",
            code="trust.digest",
            hint="Nothing is trusted. See what it brings: stockade trust --show",
        )
    trust.grant(path, body, "digest")
    if options.json:
        print(json.dumps({"path": path, "state": "trusted", "digest": digest(body)}))
    else:
        print(f"{name(path)} is trusted.")
        _check(path)
    return 0


def _asked(paint: Paint, path: str, body: bytes, hidden: int) -> int:
    """Ask whoever sits at the terminal."""
    from stockade.session import trust

    sys.stdout.flush()
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise StockadeError(
            "trust is given by a person at a terminal, and there is none",
            code="trust.no-terminal",
            hint=f"Look at it with --show. If it is what you expect: stockade trust --digest {digest(body)}",
        )
    import termios

    if hidden:
        print(paint(f"{hidden} lines are not shown here; `stockade trust --show` shows all.", "yellow"))
    print("With your trust its stockade.toml counts below your own policy, until any of these files changes.")
    termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)  # what was typed before the question is no answer to it
    try:
        answer = input(f"Trust {name(path)}? Type yes, or anything else for no: ")
    except EOFError:
        answer = ""
        print()
    if answer.strip().lower() != "yes":
        trust.record("refused", path, body, by="person")
        print("Not trusted. Nothing of it is read.")
        return 1
    trust.grant(path, body, "person")
    print("Trusted.")
    _check(path)
    return 0


def _check(path: str) -> None:
    """Say at once if the project's policy will stop the next start."""
    from stockade.policy.compile import compile_policy
    from stockade.session import trust

    try:
        compile_policy(path, project=trust.layer(path))
    except StockadeError as error:
        print(f"But a start in this folder will stop: {text(error.message)}")


def _said(state: str, before: Trusted | None) -> str:
    if before is None:
        return "not trusted"
    return f"trusted since {_day(before)}" if state == "trusted" else f"changed since you trusted it on {_day(before)}"


def _day(one: Trusted) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(one.when))


def digest(body: bytes) -> str:
    """What trust is pinned to: SHA-256 of what a project brings."""
    from stockade.policy import files

    return files.digest(body)


def _plain(
    path: str, state: str, body: bytes, now: tuple[Entry, ...], changed: tuple[Change, ...], bad: tuple[tuple[str, str], ...]
) -> dict[str, Any]:
    from stockade.walls.workspace.names import why

    how = {one.name: one.how for one in changed}
    files = [
        {
            "name": one.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
            "kind": brought.KINDS[one.kind],
            "why": why(one.name),
            "change": how.get(one.name, ""),
            "text": one.content.decode("utf-8", "backslashreplace"),
        }
        for one in now
    ]
    gone = [one.name for one in changed if one.how == "gone"]
    return {"path": path, "state": state, "digest": digest(body), "files": files, "gone": gone, "refused": dict(bad)}


def _print_entry(paint: Paint, entry: Entry, before: Trusted | None, changed: tuple[Change, ...], *, whole: bool) -> int:
    """Print one entry, `whole` or as far as it has to be looked at; how many lines were left out."""
    from stockade.walls.workspace.names import why

    how = next((one.how for one in changed if one.name == entry.name), "")
    kind = "" if entry.kind == "f" else f"  ({brought.KINDS[entry.kind]})"
    mark = f"  {paint(how, 'yellow')}" if how else ""
    print(f"\n{paint(name(entry.name), 'bold')}  {why(entry.name)}{kind}{mark}")
    old = next((one for one in before.entries if one.name == entry.name), None) if before is not None else None
    if before is not None and not how and not whole:
        return 0  # as it was trusted
    compared = old is not None and bool(how) and not whole
    lines = list(_diff(old.content, entry.content) if old is not None and compared else _lines(entry.content))
    shown = lines if whole else lines[:LINES]
    for line in shown:
        colour = {"+": "green", "-": "red"}.get(line[:1], "") if compared else ""
        print("  \N{BOX DRAWINGS LIGHT VERTICAL} " + (paint(line, colour) if colour else line))
    if len(shown) < len(lines):
        print(f"  \N{BOX DRAWINGS LIGHT VERTICAL} ... {len(lines) - len(shown)} more lines")
    if not entry.content.isascii():
        print("  (not all letters are ASCII: what looks familiar may be something else)")
    return len(lines) - len(shown)


def _lines(content: bytes) -> Iterator[str]:
    """A file's text for a terminal, long lines continued: nothing is hidden at their ends."""
    if b"\0" in content:
        yield f"(not text, {len(content)} bytes)"
        return
    for line in content.split(b"\n") if not content.endswith(b"\n") else content[:-1].split(b"\n"):
        spelled = text(line.decode("utf-8", "backslashreplace"))
        yield from pieces(spelled, room(WIDTH))


def _diff(before: bytes, after: bytes) -> Iterator[str]:
    import difflib

    old, new = list(_lines(before)), list(_lines(after))
    if max(len(old), len(new)) > _DIFFED:
        yield from new
        return
    yield from list(difflib.unified_diff(old, new, n=2, lineterm=""))[2:]


def name(path: str) -> str:
    """A path for a terminal, in ASCII: a name that only looks like another shows itself."""
    return "".join(c if c.isascii() and c.isprintable() and c != "\\" else _escaped(c) for c in path)


def text(said: str) -> str:
    """Text for a terminal: control and format characters, marks that combine with others, and letters that look like nothing are spelled out."""
    return "".join(
        c if c == "\t" or c.isprintable() and c not in _BLANKS and not unicodedata.category(c).startswith("M") else _escaped(c)
        for c in said
    ).expandtabs(4)


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape", "surrogatepass").decode("ascii")


__all__ = ["build_parser", "main"]
