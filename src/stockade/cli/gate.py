"""`stockade gate`: what the gate would decide and why, what it did decide, what running sessions ask of it, and the gate that they can share."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

from stockade.cli import log
from stockade.cli.paint import EFFECTS, Paint
from stockade.cli.run import OPTIONS, here, override
from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.core.frozen import plain, replace
from stockade.core.values import ALLOW

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.core.values import Grant, Origin
    from stockade.gateway.asking import Sent
    from stockade.session.predict import Prediction

KINDS = (
    "egress",
    "tool",
    "file",
    "mount",
    "ask",
    "dns",
    "connect",
    "credential",
    "gate",
    "session.revoke",
    "taint",
)  # of events that the gate's decisions are in
_TAIL = 10  # entries that --follow begins with, as tail(1)
_OTHERS = ("--receipt", "--tty", "--no-tty", "--json")  # options of `stockade run` that say nothing about the policy


def build_parser() -> argparse.ArgumentParser:
    """The parser of `stockade gate`."""
    parser = argparse.ArgumentParser(
        prog="stockade gate",
        description="Explain what the gate decides, show what it decided, watch what running sessions ask of it, or be the gate that they share.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str, more: str = "") -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=f"{text} {more}".strip())
        found.add_argument("--json", action="store_true", help="JSON on standard output")
        return found

    explain = command(
        "explain",
        "Say what the gate would decide about a request, by which rule in which line, and which rule would allow it.",
        "It is asked as a client behind the proxy asks, with HTTP/1.1. Nothing is sent, and no name is looked up. Exit status 0: "
        "allowed, 1: not allowed, 2: usage, 125: it could not be told.",
    )
    explain.usage = "stockade gate explain [options] [METHOD] URL"
    explain.add_argument(
        "words", nargs="+", metavar="URL", help="METHOD before it is GET if it is left out, or POST with a body; tcp://host:port is raw TCP"
    )
    explain.add_argument(
        "-H", "--header", metavar="'NAME: VALUE'", action="append", default=[],
        help="a header of the request; stockade-placeholder-NAME stands for what the sandbox holds for the credential NAME (may be repeated)",
    )  # fmt: skip
    body = explain.add_mutually_exclusive_group()
    body.add_argument("--data", metavar="TEXT|@FILE", help="the request's body, as it is; @- reads standard input")
    body.add_argument("--length", metavar="BYTES", type=log.count, default=0, help="only how long the body is")
    explain.add_argument(
        "--session", metavar="ID", default="", help="ask about the grants of this running session (the beginning is enough)"
    )
    for option, metavar, _, text in OPTIONS:
        if option not in _OTHERS and metavar:
            short = ["-p"] if option == "--policy" else []
            explain.add_argument(*short, option, metavar=metavar, action="append", default=[], help=f"as for `stockade run`: {text}")
        elif option not in _OTHERS:
            explain.add_argument(option, action="store_const", const=["1"], default=[], help=f"as for `stockade run`: {text}")

    decided = command("log", "Show what gates decided, oldest first: requests, names, keys, their starts and ends, and alarms.")
    decided.add_argument(
        "-f", "--follow", action="store_true", help=f"go on until Ctrl-C; begins with the last {_TAIL} unless -n says more"
    )
    decided.add_argument("--session", metavar="ID", default="", help="only this session (the beginning of its id is enough)")
    decided.add_argument("--denied", action="store_true", help="only what was denied")
    decided.add_argument("--host", metavar="NAME", default="", help="only what is about this host or a name below it")
    decided.add_argument("-n", "--limit", metavar="N", type=log.count, help="only the last N that match")
    decided.add_argument("--ledger", metavar="DIR", default="", help="the ledger's directory (default: yours)")

    top = command("top", "Watch the running sessions: what they ask, what is refused, how much leaves.", "q or Ctrl-C ends it.")
    top.add_argument("--interval", metavar="SECONDS", type=_seconds, default=2.0, help="time between two looks (default: 2)")
    top.add_argument("--once", action="store_true", help="look once, and print a plain table; also where standard output is no terminal")

    text = 'Be the gate of all sessions of this user whose policy says gate = "shared". They start one when they need it; this is for services.'
    serve = commands.add_parser("serve", help="be the gate that this user's sessions share", description=text)
    serve.add_argument(
        "--idle", metavar="SECONDS", type=float, default=0.0, help="end when no session has been there for so long (default: never)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade gate` with `argv` (without "gate"). 0: fine or allowed; 1: not allowed, or the ledger was tampered with; 2: usage."""
    parser = build_parser()
    options = parser.parse_args(argv)
    run: Callable[[Any], int] = {"explain": _explain, "log": _log, "top": _top, "serve": _serve}[options.command]
    try:
        return run(options)
    except StockadeError as error:
        if error.code in ("gate.url", "gate.header", "gate.body", "cli.usage"):
            error.exit_status = 2
        raise


def _explain(options: argparse.Namespace) -> int:
    from stockade.session import predict

    request = _request(options)
    given = [(option, key, getattr(options, option[2:].replace("-", "_"))) for option, _, key, _ in OPTIONS if option not in _OTHERS]
    if options.session:
        if used := [option for option, _, values in given if values]:
            raise _usage(f"{used[0]} does not go with --session", "A running session has its own policy.")
        found, where = predict.predict(predict.rules_of(_running(options.session)), request), f"session {options.session}"
        if ended := _ended(options.session):
            found = predict.closed(found, "gate.exit", f"The gate of this session has ended, and nothing leaves any more: {ended}.")
    else:
        policy, where = _policy(given), "`stockade run` here"
        found = predict.predict(predict.rules_for(policy), request)
        if error := predict.unavailable(policy, os.environ):
            found = predict.closed(found, error.code, f"The gate would not start, and nothing would leave: {error.message}.")
    if options.json:
        print(json.dumps(_plain(request, found)))
    else:
        _print(request, found, where)
    return 0 if found.effect == ALLOW else 1


def _policy(given: list[tuple[str, str, list[str]]]) -> Any:
    from stockade.policy.cached import load
    from stockade.session.trust import layer

    for option, _, values in given:
        if option in ("--policy", "--wall", "--workspace", "--mode") and len(values) > 1:
            raise _usage(f"{option} was given twice", "Give it once.")
    values_of = {option: values for option, _, values in given}
    file = next(iter(values_of["--policy"]), None)
    overrides = tuple(override(key, value) for _, key, values in given if key for value in values)
    project = None if values_of["--no-project"] else layer(here(), file)
    return load(here(), policy_file=file, overrides=overrides, project=project)


def _running(name: str) -> str:
    from stockade.cli.session import running

    return running(name).directory


def _ended(name: str) -> str:
    """Why the session's gate ended, "" if it did not: then it is not there any more to let anything out."""
    from stockade.record.reading import Reader
    from stockade.record.traffic import Board
    from stockade.session import kept

    board, session = Board(), kept.find(name).id
    with closing(Reader(places.state("ledger"))) as reader:
        board.add(reader.lines(), [session])
    return board.traffic[session].ended if session in board.traffic else ""


def _request(options: argparse.Namespace) -> Sent:
    from stockade.gateway.asking import sent

    *method, url = options.words
    if len(method) > 1:
        raise _usage(f"{len(options.words)} words are no [METHOD] URL", "stockade gate explain POST https://api.example.com/v1/x")
    headers = []
    for line in options.header:
        name, colon, value = line.partition(":")
        if not colon:
            raise _usage(f"{line[:100]!a} is no header", "Write -H 'name: value'.")
        headers.append((name, value))
    body, size = b"" if not options.length else None, options.length
    if options.data is not None:
        body, size = _data(options.data)
    verb = method[0] if method else "POST" if options.data is not None or options.length else "GET"
    return replace(sent(verb, url, tuple(headers), length=size, body=body), length=size)


def _data(text: str) -> tuple[bytes, int]:
    """The body, or as much of it as a gate ever reads, and its size."""
    from stockade.gateway.config import MAX_BUFFERED

    if text[:1] != "@":
        data = text.encode("utf-8", "surrogateescape")
        return data, len(data)
    try:
        with open(0 if text == "@-" else text[1:], "rb", closefd=text != "@-") as file:
            data = file.read(MAX_BUFFERED + 1)
            return data, len(data) + sum(map(len, iter(lambda: file.read(1 << 20), b"")))
    except OSError as error:
        raise StockadeError(f"cannot read {text[1:]}: {error.strerror}", code="gate.body", hint="Name a file after the @.") from error


def _usage(message: str, hint: str) -> StockadeError:
    return StockadeError(message, code="cli.usage", hint=hint)


def _plain(request: Sent, found: Prediction) -> dict[str, Any]:
    grants = [
        {"covers": no is None, "rule": no.rule if no else "", "reason": no.reason if no else "", "narrowest": no.grant if no else ""}
        | {"effect": grant.effect, "origin": plain(grant.origin), "grant": plain(grant)}
        for grant, no in found.weighed
    ]
    return {
        "ok": True, "question": _question(request), **plain(found.verdict), "effect": found.effect,
        "origin": None if found.origin is None else plain(found.origin), "credential": found.credential, "name": found.named,
        "body": found.read, "grants": grants, "notes": list(found.notes), "event": found.event,
    }  # fmt: skip


def _question(request: Sent) -> str:
    return f"{request.method} {request.scheme}://{request.authority}{request.target}"


def _print(request: Sent, found: Prediction, where: str) -> None:
    paint, safe = Paint(sys.stdout), log.safe

    def line(name: str, text: str) -> None:
        print(f"  {paint(f'{name:<12}', 'dim')}{safe(text)}")

    print(f"{paint(found.effect.upper(), EFFECTS.get(found.effect, 'yellow'))}  {safe(_question(request))}")
    line("rule", found.verdict.rule)
    line(
        "where",
        _origin(found.origin) if found.origin else "built-in" + ("" if found.effect == ALLOW else ": what no rule grants is denied"),
    )
    for reason in found.verdict.reasons:
        line("why", reason)
    line("name", "exists inside, with an address of the gate's" if found.named else "does not exist inside: no rule names it")
    line("credential", f"{found.credential}, which the gate puts in" if found.credential else "none")
    line("body", found.read)
    if found.weighed:
        print(f"\n  {paint('Rules that name this host, the one that decides or comes nearest first:', 'dim')}\n")
    for grant, no in found.weighed:
        says = paint(f"{grant.effect:<6}", EFFECTS.get(grant.effect, "yellow") if no is None else "dim")
        print(f"    {says} {safe(_one_line(grant))}  {paint(safe(f'({_origin(grant.origin)})'), 'dim')}")
        print(f"           {safe(f'{no.rule}: {no.reason}' if no else 'covers this request')}")
    if found.verdict.grant:
        print(f"\n  The narrowest rule that would allow it, for {safe(places.config('policy.toml'))}:\n")
        print("\n".join(f"    {safe(text)}" for text in found.verdict.grant.strip().splitlines()))
    print()
    for note in (f"Decided as in {where}.", *found.notes):
        line("note", note)


def _origin(origin: Origin) -> str:
    return f"{origin}, preset {origin.preset}" if origin.preset else str(origin)


def _one_line(grant: Grant) -> str:
    return f"{','.join(grant.methods) or 'raw'} {grant.scheme}://{grant.host}:{grant.port} {' '.join(grant.paths)}".rstrip()


def _log(options: argparse.Namespace) -> int:
    options.kind = list(KINDS)
    return log.guarded(_follow if options.follow else _show, options, endless=options.follow)


def _show(options: argparse.Namespace) -> int:
    from stockade.record.reading import Reader

    printer = Decisions(options)
    with closing(Reader(options.ledger)) as reader:
        log.show(reader, printer, options.limit)
        if not reader.found:
            print(f"stockade: nothing is recorded in {log.safe(options.ledger)} yet", file=sys.stderr)
    return printer.status


def _follow(options: argparse.Namespace) -> int:
    from stockade.record.reading import Reader

    with closing(Reader(options.ledger)) as reader:
        log.follow(reader, Decisions(options), _TAIL if options.limit is None else options.limit)


class Decisions(log.Printer):
    """Prints each decision in words: when, whose, what was said, about what, and why."""

    def text(self, event: dict[str, Any]) -> str:
        said, about = _in_words(event)
        colour = EFFECTS.get(said, "red" if said == "ALARM" else "yellow")
        whose = log.safe(str(event.get("session", "")))
        return f"{log.clock(event.get('time', 0))}  {whose:25}  {self.paint(log.safe(f'{said:<6}'), colour)}  {log.safe(about)}"


def _in_words(event: dict[str, Any]) -> tuple[str, str]:
    """What was said, in one word, and about what."""

    def of(name: str) -> str:
        value = event.get(name, "")
        return value if isinstance(value, str) else json.dumps(value)

    kind = of("kind")
    what = (
        f"{of('method')} {_place(event)}".strip()
        if kind == "egress"
        else of("what")
        if kind == "ask"
        else f"{kind} {of('tool') or of('path')}"
        if kind in ("tool", "file", "mount")
        else f"{of('type')} {of('name')}"
        if kind == "dns"
        else of("host")
    )
    if event.get("canary"):
        return "ALARM", f"{of('canary')} was about to leave with {what}; it was stopped"
    if kind == "egress":
        size = f"  {of('length')} bytes" if event.get("length") else ""
        key = f"  with {of('credential')}" if event.get("credential") else ""
        whose = "  for the reviewer" if event.get("by") == "reviewer" else ""
        return of("effect"), f"{what}  {of('rule')}{size}{key}{whose}"
    if kind in ("ask", "tool", "file", "mount"):
        return of("effect") or kind, f"{what}  {of('rule')}"
    if kind == "dns":
        return of("effect"), f"name {what}"
    if kind == "connect":
        return of("effect"), f"certificate for {what}  {of('rule')}"
    if kind == "credential":
        return "key", f"{of('name')} is put in for the first time"
    if kind == "taint":
        return "taint", f"{of('mount')} was opened, which is secret: only rules that hold after that are left"
    if kind == "session.revoke":
        rules = event.get("rules")
        return "revoke", f"rules {', '.join(map(str, rules)) if isinstance(rules, list) else of('rules')} are taken back"
    return (
        "gate",
        f"starts for {of('why')}{' (shared)' * (of('gate') == 'shared')}"
        if kind == "gate.start"
        else f"ends: {of('reason')} ({of('code')})",
    )


def _place(event: dict[str, Any]) -> str:
    scheme, host, port = event.get("scheme"), event.get("host", ""), event.get("port")
    usual = {"https": 443, "http": 80}.get(str(scheme))
    where = f"{host}:{port}" if port and port != usual else str(host)
    path = "" if event.get("method") == "CONNECT" else f"{event.get('path', '')}{'?...' if event.get('query') else ''}"
    return f"{scheme}://{where}{path}" if scheme else where + path


def _top(options: argparse.Namespace) -> int:
    from stockade.cli import top

    return top.run(options.interval, once=options.once, as_json=options.json)


def _serve(options: argparse.Namespace) -> int:
    from stockade.session.shared import serve

    serve(options.idle, lambda text: print(f"stockade gate: {text}", file=sys.stderr, flush=True))
    return 0


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from 0.1 to 3600")
    return value
