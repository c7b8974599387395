"""`stockade approvals`: what running sessions ask a person, the answers, what was approved and still holds, and what the answers are worth."""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from stockade.cli import approvals_stats
from stockade.cli.commands import commands
from stockade.cli.paint import Paint, pieces, room
from stockade.core.asks import lesson, safe
from stockade.core.errors import StockadeError
from stockade.core.frozen import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.session.inbox import Waiting

COLOURS = {"low": "green", "medium": "yellow", "high": "red"}


def build_parser() -> argparse.ArgumentParser:
    """`stockade approvals`'s own parser."""
    parser, command = commands(
        prog="stockade approvals",
        description="Show what running sessions ask you, and answer. Without a command: inbox on a terminal, else list; --web is the same as web.",
    )
    command("inbox", "A full screen of what is asked, as it comes.")
    web = command("web", "A page for your browser on this machine, until Ctrl-C. The link that is shown lets one browser in, once.")
    web.add_argument("--port", metavar="N", type=_port, default=0, help="on this port of 127.0.0.1 (default: one that is free)")
    command("list", "Show what waits for an answer, and what was approved for a session and still holds.")
    for name, text in (("allow", "Let what is asked happen, once."), ("deny", "Refuse it.")):
        one = command(name, text)
        one.add_argument("id", metavar="ID", help="the session's id, or the beginning of it")
        if name == "deny":
            one.add_argument("ask", metavar="N", type=int, nargs="?", default=0, help="which question (default: the only one)")
        else:  # by its number, which no other gets: the only one could be another than a moment ago
            one.add_argument("ask", metavar="N", type=int, help="which question, as the list shows it")
            one.add_argument("--for-session", action="store_true", help="and every repetition until the session ends")
    revoke = command("revoke", "Take back what was approved for a session.")
    revoke.add_argument("id", metavar="ID", help="the session's id, or the beginning of it")
    revoke.add_argument("key", metavar="WHAT", nargs="?", default="", help="which approval, as the list shows it (default: all)")
    rule = command("rule", "Show rules that would allow without asking what you have approved, as a difference to your policy.")
    rule.add_argument("--session", metavar="ID", default="", help="only what was approved in this session, or in those whose id begins so")
    rule.add_argument("--write", action="store_true", help="put them into your policy")
    approvals_stats.add_parser(command)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade approvals` with `argv` (without "approvals")."""
    words = ["web" if word == "--web" and not at else word for at, word in enumerate(argv)]
    if not words or words == ["--json"]:
        words = ["inbox" if not words and sys.stdin.isatty() and sys.stdout.isatty() and find_spec("textual") else "list", *words]
    options = build_parser().parse_args(words)
    run: Callable[[Any], int] = {
        "inbox": _inbox,
        "web": _web,
        "list": _list,
        "allow": _answer,
        "deny": _answer,
        "revoke": _revoke,
        "rule": _rule,
        "stats": approvals_stats.stats,
    }[options.command]
    return run(options)


def _inbox(_: argparse.Namespace) -> int:
    try:
        from stockade.cli.inbox import Inbox
    except ImportError as error:
        raise StockadeError(
            f"the full screen needs Textual: {error}", code="cli.extra", hint="pip install 'stockade[tui]', or: stockade approvals list"
        ) from error
    app = Inbox()
    app.run()
    return app.return_code or 0


def _port(text: str) -> int:
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 1024 to 65535")
    return int(text)


def _web(options: argparse.Namespace) -> int:
    try:
        from stockade.server.serve import Server
    except ImportError as error:
        raise StockadeError(
            f"the page needs Starlette and uvicorn: {error}",
            code="cli.extra",
            hint="pip install 'stockade[web]', or: stockade approvals list",
        ) from error
    from stockade.session import inbox

    texts = ["What your sessions ask is at this address, until Ctrl-C:", "It was opened. For another browser:"]

    def say(link: str) -> None:
        text = texts.pop(0) if len(texts) > 1 else texts[0]
        try:
            print(json.dumps({"link": link}) if options.json else f"{text}\n  {link}", flush=True)
        except BrokenPipeError:  # whoever reads has the link it wanted
            pass

    try:
        Server(inbox, approvals_stats.measured, say, options.port).run()
    except KeyboardInterrupt:  # how it is meant to end
        pass
    return 0


def _list(options: argparse.Namespace) -> int:
    from stockade.session import inbox

    found = inbox.waiting()
    if options.json:
        print(json.dumps([plain(one) for one in found], indent=2))
        return 0
    if not found:
        print("Nothing waits for an answer, and nothing was approved that still holds.")
    paint = Paint(sys.stdout)
    for one in found:
        print(paint(f"{one.session}  {safe(one.workspace)}", "bold"))
        for asked in one.asks:
            for line in shown(asked, paint):
                print(f"  {line}")
        for key in one.standing:
            print(f"    approved until the session ends: {safe(key)}")
    return 0


def shown(asked: dict[str, Any], paint: Paint) -> list[str]:
    """A question as a person reads it."""
    left, columns = max(0, round(asked["expires"] - time.time())), room(1 << 20)
    what, *more = pieces(safe(asked["what"]), max(20, columns - 24))
    lines = [f"{asked['number']:>3}  {paint(asked['risk'], COLOURS[asked['risk']])}  {left // 60}:{left % 60:02} left  {what}"]
    lines += [f"       {piece}" for piece in more]
    lines += [f"     | {piece}" for line in asked["detail"] for piece in pieces(safe(line), max(20, columns - 3))]
    facts = [f"asked by {safe(asked['rule'])}"]
    if asked["tainted"]:
        facts.append("something secret was read")
    facts.append("can be undone" if asked["reversible"] else "cannot be undone")
    lines.append(f"     {'; '.join(facts)}")
    if asked["review"]:
        lines.append(f"     {safe(asked['review'])}")
    lines.append("     once at a time" if asked["people"] else f"     --for-session: {safe(asked['also'])}")
    return lines


def _session(name: str) -> Waiting:
    from stockade.cli.session import running
    from stockade.session import inbox

    return inbox.of(running(name))


def _answer(options: argparse.Namespace) -> int:
    from stockade.session import inbox

    one = _session(options.id)
    asks = [asked for asked in one.asks if options.ask in (0, asked["number"])]
    if len(asks) != 1:
        what = f"no question {options.ask}" if options.ask else f"{len(asks)} questions" if asks else "no question"
        raise StockadeError(
            f"{one.session} has {what} that {'waits' if len(asks) < 2 else 'wait'}",
            code="approval.gone" if not asks else "approval.which",
            hint="stockade approvals list shows what waits; name its number.",
        )
    scope = "session" if getattr(options, "for_session", False) else "once"
    if not options.json:
        for line in shown(asks[0], Paint(sys.stdout)):
            print(line)
    done = inbox.answer(one, asks[0], options.command == "allow", channel="inbox", scope=scope)
    if options.json:
        print(json.dumps(done))
    elif done["outcome"] == "canary":
        print(told(done))
    elif done["failed"]:
        print(f"Allowed, and not done: {safe(done['failed'])}")
    else:
        print("Allowed." if done["allow"] else "Refused.")
    return 1 if done["failed"] else 0


def told(done: dict[str, Any]) -> str:
    """What a person reads after answering a canary (Answered, as a dictionary)."""
    return safe(lesson(done["asked"]["trap"], done["caught"]))


def _revoke(options: argparse.Namespace) -> int:
    from stockade.session import inbox

    one = _session(options.id)
    keys = [key for key in one.standing if options.key in ("", key)]
    if not keys:
        raise StockadeError("nothing that was approved holds", code="approval.gone", hint="stockade approvals list shows what does.")
    for key in keys:
        inbox.revoke(one, key)
    print(json.dumps({"revoked": keys}) if options.json else "\n".join(f"Taken back: {safe(key)}" for key in keys))
    return 0


def _rule(options: argparse.Namespace) -> int:
    from stockade.session import rules

    change = rules.proposed(options.session)
    if options.write:
        rules.write(change)
    if options.json:
        print(json.dumps({**plain(change), "diff": change.diff, "written": options.write}))
        return 0
    print(change.diff, end="")
    for one in change.proposals:
        print(f"\nIt would allow {safe(one.allows)}.")
        for note in one.notes:
            print(f"  {safe(note)}")
    for rule in change.asked:
        print(f"\nThis goes on asking, since it stands in another file: {safe(rule)}")
    print(f"\nWritten to {change.path}." if options.write else "\n--write puts it there.")
    return 0
