"""`stockade policy`: check, show and explain the rules."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from stockade.cli import policy_signed
from stockade.cli.commands import commands
from stockade.cli.paint import EFFECTS, Paint
from stockade.cli.written import shown
from stockade.core import frozen, places
from stockade.core.errors import EXIT_FAILED, PolicyError, StockadeError
from stockade.core.values import ALLOW, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.values import Policy, Verdict
    from stockade.policy.compile import Compiled


def build_parser() -> argparse.ArgumentParser:
    """The parser of `stockade policy`."""
    parser, command = commands(prog="stockade policy", description="Check, show and explain the rules of a sandbox.", json="print JSON")

    check = command("check", "Say whether the policy is valid, with warnings. Exit status 1 if it is not.")
    check.add_argument("file", nargs="?", metavar="FILE", help="a policy file, as `stockade run --policy FILE` would take it")
    check.add_argument("--no-project", action="store_true", help="without the stockade.toml of a project that you trust")
    check.add_argument("--managed", action="store_true", help="FILE is meant to become the managed policy")
    for one in (
        command("show", "Show the merged policy and where each part of it was written."),
        explain := command("explain", "Say what the policy says to a request or a path, by which rule. Exit status 0: allowed, 1: denied."),
    ):
        one.add_argument("--policy", metavar="FILE", help="a policy file on top of yours")
        one.add_argument("--no-project", action="store_true", help="without the stockade.toml of a project that you trust")
        one.add_argument("--agent", metavar="NAME", help="with what `stockade run NAME` adds: claude, codex, gemini, mini-swe-agent")
    explain.add_argument(
        "question",
        nargs="+",
        metavar="QUESTION",
        help='"POST https://api.example.com/v1/x", "GRPC https://api.example.com/package.Service/Method", "read ~/x", "write ~/x", "tool Bash command=git push" or "change .envrc"',
    )
    learn = command(
        "learn",
        "Run a command with your policy, refuse whatever that does not grant, and propose the narrowest rules for it. Nothing is applied.",
    )
    learn.add_argument("--policy", metavar="FILE", help="a policy file on top of yours")
    learn.add_argument("--no-project", action="store_true", help="without the stockade.toml of a project that you trust")
    learn.add_argument("--from-nothing", action="store_true", help="as if nothing were granted yet")
    learn.add_argument("--output", metavar="FILE", help="write the proposals to FILE, which must not exist")
    learn.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="-- COMMAND...", help="the command; its own output goes to standard error"
    )
    policy_signed.add_parsers(command)
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade policy` with `argv` (without "policy"). 0: fine, 1: wrong or denied, 2: usage, 125: could not tell."""
    options = build_parser().parse_args(argv)
    try:
        run = {
            "check": _check,
            "show": _show,
            "explain": _explain,
            "learn": _learn,
            "sign": policy_signed.sign,
            "fetch": policy_signed.fetch,
        }
        status = run[options.command](options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has seen enough; python would complain again when it closes stdout
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except StockadeError as error:
        if options.json:
            print(json.dumps({"ok": False, **error.plain()}))
        else:
            print(_clean(f"stockade: {_whole(error)}"), file=sys.stderr)
        return 1 if options.command == "check" else EXIT_FAILED


def _compile(options: argparse.Namespace, policy_file: str | None) -> Compiled:
    from stockade.policy.compile import compile_policy
    from stockade.session.trust import layer

    own = os.path.realpath(places.config("policy.toml"))
    same = policy_file is not None and os.path.realpath(policy_file) in (own, os.path.realpath(places.MANAGED_POLICY))
    project = None if options.no_project else layer(os.getcwd(), policy_file)
    overrides = (("agent", options.agent),) if getattr(options, "agent", None) else ()
    return compile_policy(os.getcwd(), policy_file=None if same else policy_file, overrides=overrides, project=project)


def _check(options: argparse.Namespace) -> int:
    if options.managed:
        from stockade.policy.compile import compile_policy

        if not options.file or not os.path.exists(options.file):
            raise PolicyError("--managed needs a FILE that exists", code="policy.no-file")
        found = compile_policy(os.getcwd(), managed=os.path.abspath(options.file), managed_owner=os.stat(options.file).st_uid)
    else:
        found = _compile(options, options.file)
    warnings = [*found.warnings, *_sources_missing(found.policy)]
    if options.json:
        print(json.dumps({"ok": True, "files": [path for path, _ in found.policy.sources], "warnings": [one.plain() for one in warnings]}))
        return 0
    paint = Paint(sys.stdout)
    for one in warnings:
        print(f"{paint('warning', 'yellow')}: {_clean(_whole(one))}")
    where = ", ".join(path for path, _ in found.policy.sources) or "no policy file, the defaults hold"
    print(f"{paint('ok', 'green')}: {_clean(where)}")
    _mention_project(options, found.policy)
    return 0


def _sources_missing(policy: Policy) -> list[PolicyError]:
    found = []
    lent = [policy.reviewer.model.credential] if policy.reviewer and policy.reviewer.model and policy.reviewer.model.credential else []
    for one in (*policy.credentials, *lent):
        kind, _, rest = one.source.partition(":")
        gone = ""
        if kind == "env" and not os.environ.get(rest):
            gone = f"{rest} is not set here"
        elif kind == "file" and not os.path.isfile(rest if rest.startswith("/") else places.home() + rest[1:]):
            gone = f"there is no file {rest}"
        if gone:
            where = one.origin
            message = f"the credential {one.name} has no value now: {gone}"
            hint = "Requests that need it will be refused."
            found.append(PolicyError(message, code="policy.no-secret", file=where.file, line=where.line, key=where.key, hint=hint))
    return found


def _mention_project(options: argparse.Namespace, policy: Policy) -> None:
    if (
        not options.no_project
        and os.path.lexists("stockade.toml")
        and os.path.abspath("stockade.toml") not in [path for path, _ in policy.sources]
    ):
        print("note: ./stockade.toml was not read: a project does not set its own rules. If you trust it: stockade trust")


def _show(options: argparse.Namespace) -> int:
    found = _compile(options, options.policy)
    policy = found.policy
    if options.json:
        origins = {key: frozen.plain(origin) for key, origin in found.origins}
        print(
            json.dumps(
                {"ok": True, "policy": frozen.plain(policy), "origins": origins, "warnings": [one.plain() for one in found.warnings]}
            )
        )
        return 0
    paint = Paint(sys.stdout)
    for text, origin in shown(found):
        note = "" if origin is None else f"  # {origin}" + (f", preset {origin.preset}" if origin.preset else "")
        head, newline, rest = text.lstrip("\n").partition("\n")
        gap = "\n" if text.startswith("\n") else ""
        print(gap + _clean(head) + (paint(_clean(note), "dim") if note else "") + newline + _clean(rest))
    _mention_project(options, policy)
    return 0


def _learn(options: argparse.Namespace) -> int:
    from stockade.policy.learn import propose
    from stockade.session import trust
    from stockade.session.foreground import run

    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        raise StockadeError("no command to learn from", code="cli.usage", hint="stockade policy learn -- COMMAND...")
    overrides = (("egress", "none"),) if options.from_nothing else ()
    policy = trust.policy(os.getcwd(), policy_file=options.policy, overrides=overrides, project=not options.no_project)
    try:
        output = os.open(options.output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600) if options.output else os.dup(1)
    except OSError as error:
        hint = "Name a new file, in a folder that exists."
        raise StockadeError(f"cannot write {options.output}: {error.strerror}", code="policy.unwritable", hint=hint) from error
    os.dup2(2, 1)  # the proposals are our output; the command's is not
    end = run(policy, words, cwd=os.getcwd(), tty=False, learning=True)
    found = propose(end.learned)
    with open(output, "w", encoding="utf-8") as out:
        if options.json:
            out.write(
                json.dumps({"ok": True, "exit": end.code, "session": end.session, "proposals": [frozen.plain(one) for one in found]}) + "\n"
            )
            return 0
        head = f"# What `{_clean(' '.join(words))[:200]}` asked for and was refused. Each rule grants it to everything that runs inside.\n"
        out.write(head if found else "# Nothing was refused: no rule is missing.\n")
        for one in found:
            out.write(f"\n# {one.requests} request{'s' * (one.requests != 1)}. Would allow: {one.allows}.\n")
            out.writelines(f"# Mind: {note}.\n" for note in one.notes)
            out.write(one.rule)
    return 0


def _explain(options: argparse.Namespace) -> int:
    question = " ".join(options.question).strip()
    verb, _, rest = question.partition(" ")
    found = _compile(options, options.policy)
    if verb in ("read", "write") and rest:
        from stockade.policy.visible import explain_path

        verdict, origin = explain_path("read" if verb == "read" else "write", rest.strip(), found.policy, os.getcwd())
    elif verb == "tool" and rest:
        from stockade.session.predict import predict_call

        name, _, given = rest.strip().partition(" ")
        argument, equals, text = given.strip().partition("=")
        verdict, origin = predict_call(found.policy, name, {argument: text} if equals else {})
    elif verb == "change" and rest:
        from stockade.session.predict import predict_change

        verdict, origin = predict_change(found.policy, rest.strip())
    elif "://" in rest:
        verdict, origin = _explain_request(verb, rest.strip(), found.policy)
    else:
        hint = 'Ask "POST https://api.example.com/v1/x", "read ~/x", "write ~/x", "tool Bash command=git push" or "change .envrc".'
        raise StockadeError(f"{question!r} is not a question that a policy answers", code="policy.question", hint=hint)
    if options.json:
        print(json.dumps({"ok": True, "question": question, **frozen.plain(verdict), "origin": frozen.plain(origin)}))
    else:
        _print_verdict(question, verdict, origin)
    return 0 if verdict.effect == ALLOW else 1


def _explain_request(method: str, url: str, policy: Policy) -> tuple[Verdict, Origin]:
    from stockade.gateway.asking import sent
    from stockade.session.predict import predict, rules_for

    found = predict(rules_for(policy), sent(method.upper(), url))
    return found.verdict, found.origin or Origin()


def _print_verdict(question: str, verdict: Verdict, origin: Origin) -> None:
    paint = Paint(sys.stdout)
    print(f"{paint(verdict.effect.upper(), EFFECTS.get(verdict.effect, 'yellow'))}  {_clean(question)}")
    print(_clean(f"  rule   {verdict.rule}"))
    default = "built-in: what no rule grants is denied" if verdict.effect != ALLOW else "built-in"
    via = f", preset {origin.preset}" if origin.preset else ""
    print(_clean(f"  where  {origin if origin.line or origin.file != 'built-in' else default}{via}"))
    for reason in verdict.reasons:
        if reason:
            print(_clean(f"  why    {reason}"))
    if verdict.grant:
        print("  The narrowest rule that would allow it, for " + _clean(places.config("policy.toml")) + ":\n")
        print(_clean("\n".join(f"    {line}" for line in verdict.grant.strip().splitlines())))


def _clean(text: str) -> str:
    """Text for a terminal: names in files must not move its cursor."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def _whole(error: StockadeError) -> str:
    return error.message + (f"\n  {error.hint}" if error.hint else "")
