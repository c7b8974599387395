"""`stockade session`: what runs and may leave it, what sessions that are over have left behind, and what became harmless by another name."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from stockade.cli.commands import commands
from stockade.core.errors import StockadeError
from stockade.core.frozen import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.session.kept import Left

_ID = "a session's id, or the beginning of it"


def build_parser() -> argparse.ArgumentParser:
    """`stockade session`'s own parser."""
    parser, command = commands(
        prog="stockade session",
        description="List sessions, take grants back from one that runs or pause it, bring back or discard what one that is over has left.",
    )

    command("list", "Show the sessions that run or are paused, and those that are over and still hold something.")
    command("grants", "Show what may leave a running session, numbered, and what it may sign.").add_argument("id", metavar="ID", help=_ID)
    revoke = command(
        "revoke",
        "Take grants back from a running session, and cut its connections. Other sessions go on. What is taken back cannot be given again.",
    )
    revoke.add_argument("id", metavar="ID", help=_ID)
    revoke.add_argument(
        "--rule", metavar="N", type=int, action="append", default=[], help="only this grant; may be repeated (default: all)"
    )
    revoke.add_argument("--credential", metavar="NAME", default="", help="only the grants that use this credential")
    revoke.add_argument(
        "--token", metavar="TOKEN", default="", help="only this token and what was made from it; or the revocation id of one of its blocks"
    )
    revoke.add_argument("--signing", action="store_true", help="only what the session may sign")
    for name, text in (
        ("pause", "Let everything in a running session stand still. Its limits hold on, wall time too, and it can be ended."),
        ("resume", "Let a paused session go on."),
        ("recover", "Bring back commits and files of a session whose end was cut short, as its own end would have done."),
        ("discard", "Remove what a session that is over still holds. It cannot be undone."),
    ):
        command(name, text).add_argument("id", metavar="ID", help=_ID)
    release = command("release", "Give a file that was made harmless (NAME.stockade-held) its name back. Look into it first.")
    release.add_argument("path", metavar="PATH", help="the file or folder whose name ends in .stockade-held")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade session` with `argv` (without "session"). 0: done; 1: something could still not be brought back."""
    options = build_parser().parse_args(argv)
    run: Callable[[Any], int] = {
        "list": _list,
        "grants": _grants,
        "revoke": _revoke,
        "pause": _pause,
        "resume": _pause,
        "recover": _recover,
        "discard": _discard,
        "release": _release,
    }[options.command]
    return run(options)


def _list(options: argparse.Namespace) -> int:
    from stockade.session import kept
    from stockade.walls.workspace.report import shown

    found = kept.sessions()
    if options.json:
        print(json.dumps([plain(left) for left in found], indent=2))
        return 0
    if not found:
        print("No session runs, and none that is over holds anything.")
    for left in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(left.started)) if left.started else "-"
        print(f"{left.id}  {left.state:<8}{when}  {shown(left.workspace)}")
        for line in left.what:  # may name what the session has made
            print(f"    {shown(line)}")
    return 0


def running(name: str) -> Left:
    """The running session that `name` names. Raises StockadeError: `session.unknown`, `session.over`."""
    from stockade.session import kept

    left = kept.find(name)
    if not left.lives:
        raise StockadeError(
            f"{left.id} does not run any more", code="session.over", hint="Nothing of it runs that could be paused or lose a grant."
        )
    return left


def _grants(options: argparse.Namespace) -> int:
    from stockade.gateway.desk import ask

    answer = ask(running(options.id).directory, {"do": "grants"})
    found, signing = answer["grants"], answer["signing"]
    if options.json:
        print(json.dumps([*found, *([{"rule": "signing", **signing}] if signing else [])], indent=2))
        return 0
    if not found:
        print("Nothing may leave this session.")
    for one in found:
        grant = one["grant"]
        what = f"{','.join(grant['methods']) or 'raw'} {grant['scheme']}://{grant['host']}:{grant['port']} {' '.join(grant['paths'])}"
        with_key = f" with {grant['credential']}" if grant["credential"] else ""
        state = "revoked" if one["revoked"] else "off" if one["off"] else grant["effect"]
        print(f"{one['rule']:>3}  {state:<8}{what}{with_key}  ({one['from']})")
    if any(one["off"] for one in found):
        print("Something secret has come in: rules that are off do not hold after that.")
    if signing:
        what = f"{', '.join(signing['signing']['namespaces'])} with the key {signing['signing']['fingerprint']}"
        print(f"  -  {'revoked' if signing['revoked'] else 'sign':<8}{what}  ({signing['from']})")
    return 0


def _revoke(options: argparse.Namespace) -> int:
    from stockade.gateway.desk import ask

    directory, rules = running(options.id).directory, list(options.rule)
    if options.credential:
        found = ask(directory, {"do": "grants"})["grants"]
        named = [one["rule"] for one in found if one["grant"]["credential"] == options.credential]
        if not named:
            raise StockadeError(
                f"no grant of this session uses the credential {options.credential!r}",
                code="session.rule",
                hint="stockade session grants ID lists them.",
            )
        rules += named
    answer: dict[str, Any] = {"revoked": []}
    if options.signing:
        answer |= ask(directory, {"do": "revoke-signing"})
    if options.token:
        answer |= ask(directory, {"do": "revoke-token", "token": options.token})
    if rules or not (options.signing or options.token):
        answer |= ask(directory, {"do": "revoke", "rules": rules})
    if options.json:
        print(json.dumps(answer))
        return 0
    taken = ", ".join(map(str, answer["revoked"]))
    if taken:
        print(f"Taken back: {taken}. The session's connections were cut.")
    if answer.get("tokens"):
        print("Taken back: the token, and all that were made from it. The session's connections were cut.")
    if answer.get("signing"):
        print("Taken back: signing.")
    elif not taken and not answer.get("tokens"):
        print("Nothing was left to take back.")
    return 0


def _pause(options: argparse.Namespace) -> int:
    from stockade.gateway.desk import ask

    answer = ask(running(options.id).directory, {"do": options.command})
    if options.json:
        print(json.dumps(answer))
    elif answer["changed"]:
        print("Paused. stockade session resume lets it go on." if answer["paused"] else "It goes on.")
    else:
        print("It was paused already." if answer["paused"] else "It was not paused.")
    return 0


def _recover(options: argparse.Namespace) -> int:
    from stockade.cli import aftermath
    from stockade.session import after, kept

    events = kept.recover(options.id)
    left = after.left_by(events)
    if options.json:
        print(json.dumps({"events": events, "left": left}, indent=2))
        return 1 if left else 0
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    for line in aftermath.lines(events, colour=colour) or ["Nothing had to be brought back."]:
        print(line)
    return 1 if left else 0


def _discard(options: argparse.Namespace) -> int:
    from stockade.session import kept

    left = kept.discard(options.id)
    print(json.dumps(plain(left)) if options.json else f"Removed {left.directory}")
    return 0


def _release(options: argparse.Namespace) -> int:
    from stockade.walls.workspace import defuse

    folder, name = os.path.split(os.path.abspath(options.path))
    try:
        back = defuse.release(os.path.realpath(folder), name)
    except ValueError as error:
        raise StockadeError(
            str(error), code="session.release", hint="Name the file by what it is called now: NAME.stockade-held."
        ) from error
    except OSError as error:
        raise StockadeError(
            f"cannot rename {options.path}: {error.strerror}", code="session.release", hint="Look at the folder and its permissions."
        ) from error
    print(json.dumps({"path": f"{folder}/{back}"}) if options.json else f"{folder}/{back}")
    return 0
