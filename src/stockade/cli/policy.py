"""`stockade policy`: check, show and explain the rules."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from stockade.cli.commands import commands
from stockade.cli.paint import EFFECTS, Paint
from stockade.core import frozen, places
from stockade.core.errors import EXIT_FAILED, PolicyError, StockadeError
from stockade.core.values import ALLOW, Origin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from stockade.core.reviews import Reviewer
    from stockade.core.values import Grant, Policy, Signing, ToolRule, Verdict
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
        help='"POST https://api.example.com/v1/x", "GRPC https://api.example.com/package.Service/Method", "read ~/x", "write ~/x" or "tool Bash command=git push"',
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
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade policy` with `argv` (without "policy"). 0: fine, 1: wrong or denied, 2: usage, 125: could not tell."""
    options = build_parser().parse_args(argv)
    try:
        status = {"check": _check, "show": _show, "explain": _explain, "learn": _learn}[options.command](options)
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
    for text, origin in _shown(found):
        note = "" if origin is None else f"  # {origin}" + (f", preset {origin.preset}" if origin.preset else "")
        head, newline, rest = text.lstrip("\n").partition("\n")
        gap = "\n" if text.startswith("\n") else ""
        print(gap + _clean(head) + (paint(_clean(note), "dim") if note else "") + newline + _clean(rest))
    _mention_project(options, policy)
    return 0


def _shown(found: Compiled) -> list[tuple[str, Origin | None]]:
    """Lines of the merged policy with the origin of each."""
    from stockade.policy.caps import shown

    policy, written, built_in = found.policy, dict(found.origins), Origin()
    lines: list[tuple[str, Origin | None]] = []

    def single(key: str, text: str) -> None:
        lines.append((f"{key.rpartition('.')[2]} = {text}", written.get(key, built_in)))

    if policy.agent is not None:
        kept = "kept for this workspace" if policy.agent.kept else "gone afterwards"
        lines.append((f"# agent {policy.agent.name}, its state in {policy.agent.home}: private, {kept}", None))
        lines.append((f"# started as: {shlex.join(policy.agent.argv)}\n", None))
    single("wall", _quote(policy.wall))
    single("oversight", _quote(policy.oversight))
    single("gate", _quote(policy.gate))
    lines.append(("\n[workspace]", None))
    for name in ("path", "mode", "git", "scan"):
        single(f"workspace.{name}", _quote(getattr(policy.workspace, name)))
    for mount in policy.mounts:
        at = f"\nat = {_quote(mount.target)}" if mount.target != mount.source else ""
        lines.append((f"\n[[mount]]\npath = {_quote(mount.source)}{at}\nmode = {_quote(mount.mode)}", mount.origin))
    lines.append(("\n[limits]", None))
    for name, value in frozen.plain(policy.limits).items():
        text = shown(name, value)
        single(f"limits.{name}", text if text.isdigit() else _quote(text))
    if not policy.root.usual:
        lines.append(("\n[root]", None))
        for name in ("image", "path", "writable", "size"):
            value = getattr(policy.root, name)
            if value:
                single(f"root.{name}", _quote(shown("size", value) if name == "size" else value))
    lines.append(("\n[environment]", None))
    lines.append((f"pass = {_list(policy.environment.pass_names)}", None))
    for name, value in policy.environment.set_values:
        lines.append((f"set.{name} = {_quote(value)}", written.get(f"environment.set.{name}", built_in)))
    for grant in policy.grants:
        lines.append((_grant(grant), grant.origin))
    for one in policy.credentials:
        text = f"\n[credential.{one.name}]\nsource = {_quote(one.source)}"
        if one.services:
            profile = f", profile = {_quote(one.profile)}" if one.profile else ""
            text += f"\nsigv4 = {{ services = {_list(one.services)}, regions = {_list(one.regions)}{profile} }}"
        elif one.query:
            text += f"\nquery = {_quote(one.query)}"
        elif one.user:
            text += f"\nuser = {_quote(one.user)}"
        else:
            text += f"\nheader = {_quote(one.header)}\ntemplate = {_quote(one.template)}"
        lines.append((f"{text}\nenv = {_quote(one.env)}", one.origin))
    if policy.signing is not None:
        lines.append((_signing(policy.signing), policy.signing.origin))
    if policy.reviewer is not None:
        lines.append((_reviewer(policy.reviewer), policy.reviewer.origin))
    for name, text in policy.canaries:
        lines.append((f"\n[canary.{name}]\nvalue = {_quote(text)}", None))
    for rule in policy.tools:
        lines.append((_tool(rule), rule.origin))
    if not policy.grants:
        lines.append(("\n# no egress: nothing leaves the sandbox", None))
    return lines


def _tool(rule: ToolRule) -> str:
    match = ", ".join(f"{_quote(name)} = {_quote(pattern)}" for name, pattern in rule.match)
    text = f"\n[[tool]]\nname = {_quote(rule.name)}" + (f"\nmatch = {{ {match} }}" if match else "") + f"\neffect = {_quote(rule.effect)}"
    return text + ("\npeople = true" if rule.people else "")


def _signing(signing: Signing) -> str:
    from stockade.policy.units import show_duration

    text = f"\n[signing]\nkey = {_quote(signing.file)}\nnamespaces = {_list(signing.namespaces)}"
    text += f"\nuses = {signing.uses}" if signing.uses else ""
    return text + (f"\nrate = {_quote(f'{signing.rate} per {show_duration(signing.rate_seconds)}')}" if signing.rate else "")


def _reviewer(found: Reviewer) -> str:
    from stockade.policy.units import show_duration

    text = "\n[reviewer]" + ("" if found.approves else "\napproves = false")
    if model := found.model:
        text += f"\nurl = {_quote(model.url)}\napi = {_quote(model.api)}\nmodel = {_quote(model.name)}"
        text += (
            f"\ncredential = {_quote(model.credential.name)}" if model.credential else ""
        ) + f"\ntimeout = {_quote(show_duration(model.timeout))}"
    for name, rules in (("allow", found.allow), ("deny", found.deny)):
        for rule in rules:
            said = [f"{key} = {_list(getattr(rule, key))}" for key in ("methods", "hosts", "risk") if getattr(rule, key)]
            said += [f"{key} = true" for key in ("reversible", "tainted") if getattr(rule, key)]
            said += [f"max_size = {rule.max_size}"] if rule.max_size >= 0 else []
            text += f"\n{name} = {{ {', '.join(said)} }}"
    return text


def _grant(grant: Grant) -> str:
    from stockade.policy.units import show_duration, show_size

    text = f"\n[[egress]]\nhost = {_quote(grant.host)}\nport = {grant.port}\nscheme = {_quote(grant.scheme)}"
    text += f"\ngrpc = {_list([path[1:] for path in grant.paths])}" if grant.grpc else ""
    http = grant.scheme != "tcp" and not grant.grpc
    text += f"\nmethods = {_list(grant.methods)}\npaths = {_list(grant.paths)}" if http else ""
    if grant.effect != ALLOW:
        return f'{text}\neffect = "{grant.effect}"'
    if http:
        text += f"\nparameters = {_list(grant.parameters)}" if grant.query == "listed" else f"\nquery = {_quote(grant.query)}"
    if grant.headers:
        text += f"\nheaders = {_list(grant.headers)}"
    if grant.credential:
        text += f"\ncredential = {_quote(grant.credential)}"
    if grant.private:
        text += "\nprivate = true"
    if grant.content_types:
        text += f"\ncontent_types = {_list(grant.content_types)}"
    for rule in grant.body:
        said = f", values = [{', '.join(rule.values)}]" if rule.values else ", absent = true" if rule.absent else ""
        said += f", most = {rule.most}" if rule.most >= 0 else ""
        text += f"\nbody = {{ pointer = {_quote(rule.pointer)}{said} }}"
    if grant.credential_fields and not grant.grpc:
        text += f"\ncredential_fields = {_list(grant.credential_fields)}"
    if grant.websocket:
        text += "\nwebsocket = true"
    if grant.refs:
        text += f"\nrefs = {_list(grant.refs)}"
    if grant.uses:
        text += f"\nuses = {grant.uses}"
    if grant.rate:
        text += f"\nrate = {_quote(f'{grant.rate} per {show_duration(grant.rate_seconds)}')}"
    for name in ("not_before", "not_after"):
        if moment := getattr(grant, name):
            text += f"\n{name} = {datetime.fromtimestamp(moment, UTC).isoformat()}"
    for name in ("secret", "after_secret"):
        if getattr(grant, name):
            text += f"\n{name} = true"
    if grant.max_download:
        text += f"\nmax_download = {_quote(show_size(grant.max_download))}"
    if grant.upload_budget:
        text += f"\nupload_budget = {_quote(show_size(grant.upload_budget))}"
    return f"{text}\nmax_upload = {_quote(show_size(grant.max_upload))}"


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
    elif "://" in rest:
        verdict, origin = _explain_request(verb, rest.strip(), found.policy)
    else:
        hint = 'Ask "POST https://api.example.com/v1/x", "read ~/x", "write ~/x" or "tool Bash command=git push".'
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


def _quote(value: Any) -> str:
    return json.dumps(str(value), ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
    return "[" + ", ".join(_quote(value) for value in values) + "]"
