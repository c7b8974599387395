"""`stockade run [options] -- COMMAND...`, `stockade run [options] claude ...`: HOT. The options are one table; a plain loop reads it, and argparse is loaded only for help and mistakes."""

from __future__ import annotations

import os
import sys

from stockade.core.errors import EXIT_FAILED, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, StockadeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from stockade.core.values import Agent, Policy

# (option, metavar or "" for a flag, key of the override handed to the policy or "" for one of ours, help)
OPTIONS: tuple[tuple[str, str, str, str], ...] = (
    ("--policy", "FILE", "", "use this policy file on top of the user's and the administrator's"),
    ("--no-project", "", "", "leave the project's own stockade.toml out, also where you trust the folder; nothing of it is looked at"),
    ("--wall", "WALL", "wall", "bubblewrap, gvisor or vm"),
    ("--workspace", "DIR", "workspace.path", "the folder to work in (default: the current one)"),
    ("--mode", "MODE", "workspace.mode", "how the workspace is mounted: rw, ro, review or rw-no-delete"),
    ("--ro", "PATH[:AT]", "mount.ro", "also show PATH, read-only (may be repeated)"),
    ("--rw", "PATH[:AT]", "mount.rw", "also show PATH, writable (may be repeated)"),
    ("--image", "IMAGE", "root.image", "the guest's root: an image by its digest, registry/name@sha256:... (with --wall gvisor or vm)"),
    (
        "--agent",
        "NAME",
        "agent",
        "give what this agent needs: claude, codex, gemini, mini-swe-agent (`stockade run claude ...` does, and starts it)",
    ),
    ("--allow", "'METHOD URL'", "egress.allow", "let this request out, e.g. 'GET https://example.com/data/**' (may be repeated)"),
    (
        "--preset",
        "NAME",
        "egress.preset",
        "let out what a preset grants: pypi, npm, debian, github-read, anthropic, openai, gemini (may be repeated)",
    ),
    ("--sign", "PUBKEY", "signing.key", "sign commits made inside with this key, which stays in your ssh-agent (a .pub file)"),
    ("--env", "NAME[=VALUE]", "environment", "pass a variable, or set it (may be repeated)"),
    ("--limit", "NAME=VALUE", "limits", "e.g. memory=2GiB, wall_time=10min, processes=200 (may be repeated)"),
    ("--receipt", "FILE", "", "write what was asked for and what is enforced by which mechanism, as JSON"),
    ("--tty", "", "", "give the command a terminal of its own (default: when standard input and output are terminals)"),
    ("--no-tty", "", "", "use pipes even on a terminal"),
    ("--json", "", "", "report errors and the end as JSON on standard error"),
)
AGENTS = (
    "claude",
    "codex",
    "gemini",
    "mini",
    "mini-swe-agent",
)  # as policy/agents.py describes them, which is not loaded for other commands


def build_parser() -> argparse.ArgumentParser:
    """The same table as an argparse parser."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="stockade run",
        usage="stockade run [options] -- COMMAND...\n       stockade run [options] AGENT [its arguments]",
        description="Run COMMAND inside the wall. Without a policy: the current folder is writable, the rest of your home invisible, nothing leaves.",
        epilog="Exit status: the command's own; 125 stockade refused or failed, 126 not executable, 127 not found, 128+N ended by signal N.",
    )
    for option, metavar, _, text in OPTIONS:
        if metavar:
            parser.add_argument(option, metavar=metavar, action="append", help=text)
        else:
            parser.add_argument(option, action="store_true", help=text)
    parser.add_argument("command", nargs="*", metavar="COMMAND", help="the command and its arguments, after --")
    return parser


def parse(argv: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """({option: values}, command). Options end at `--` or at the first word that is none. Raises StockadeError (`cli.usage`)."""
    table = {option: metavar for option, metavar, _, _ in OPTIONS}
    given: dict[str, list[str]] = {}
    index = 0
    while index < len(argv):
        word = argv[index]
        index += 1
        if word == "--":
            break
        if word[:1] != "-":
            index -= 1
            break
        option, equals, value = word.partition("=")
        if option in ("-h", "--help"):
            build_parser().print_help()
            raise SystemExit(0)
        if option not in table:
            import difflib

            near = difflib.get_close_matches(option, table, 1)
            raise StockadeError(
                f"stockade run has no option {option}",
                code="cli.usage",
                hint=f"Did you mean {near[0]}?" if near else "stockade run --help lists them; options of the command itself go after --.",
            )
        if not table[option]:
            if equals:
                raise StockadeError(f"{option} takes no value", code="cli.usage", hint=f"Write {option} alone.")
            value = "1"
        elif not equals:
            if index >= len(argv) or argv[index] == "--":
                raise StockadeError(f"{option} needs a value", code="cli.usage", hint=f"{option} {table[option]}")
            value = argv[index]
            index += 1
        given.setdefault(option, []).append(value)
    command = list(argv[index:])
    if not command:
        raise StockadeError("no command to run", code="cli.usage", hint="stockade run [options] -- COMMAND...")
    for single in ("--policy", "--wall", "--workspace", "--mode", "--image", "--agent", "--sign", "--receipt"):
        if len(given.get(single, ())) > 1:
            raise StockadeError(f"{single} was given twice", code="cli.usage", hint="Give it once.")
    if "--tty" in given and "--no-tty" in given:
        raise StockadeError("--tty and --no-tty contradict each other", code="cli.usage", hint="Give one of them.")
    return given, command


def main(argv: Sequence[str]) -> int:
    """Run the command; returns its exit status, or ours."""
    given, command = parse(argv)
    from stockade.session import trust
    from stockade.session.foreground import run

    cwd = here()
    named = False  # a known agent by its own name, without `--`
    if command[0] in AGENTS and argv[: len(argv) - len(command)][-1:] != ["--"]:
        named = given.setdefault("--agent", command[:1]) == command[:1]
    overrides = tuple(override(key, value) for option, _, key, _ in OPTIONS if key for value in given.get(option, ()))
    policy = trust.policy(cwd, policy_file=given.get("--policy", [None])[0], overrides=overrides, project="--no-project" not in given)
    if policy.agent is not None:
        if named:
            command[:1] = policy.agent.argv
        if os.isatty(2) and "--json" not in given:
            sys.stderr.write(f"stockade: {_given(policy, policy.agent)}\n")
    tty = True if "--tty" in given else False if "--no-tty" in given else None
    end = run(policy, command, cwd=cwd, tty=tty, receipt=given.get("--receipt", [""])[0])
    if "--json" in given:
        import json

        report = {"exit": end.code, "outcome": end.outcome, "session": end.session, "refused": end.refused, "events": end.events}
        if policy.agent is not None:
            report["agent"] = {"name": policy.agent.name, "argv": policy.agent.argv, "home": policy.agent.home, "kept": policy.agent.kept}
        sys.stderr.write(json.dumps(report) + "\n")
        return end.code
    if end.events:
        from stockade.cli.aftermath import tell

        tell(end.events)
        from stockade.session.after import REVIEW, left_by

        if left_by(event for event in end.events if event["kind"] != REVIEW):
            sys.stderr.write(
                f"stockade: this session holds something for you: stockade session list (then recover or discard {end.session})\n"
            )
    if end.refused:
        sys.stderr.write(
            f"stockade: {end.refused} request{'s' * (end.refused != 1)} refused: stockade log show --session {end.session} --kind egress\n"
        )
    if end.outcome:
        sys.stderr.write(f"stockade: the command was ended: {end.outcome}\n")
    elif end.missing:
        what = "not found inside the sandbox" if end.code == EXIT_NOT_FOUND else "not executable inside the sandbox"
        sys.stderr.write(f"stockade: {command[0]}: {what}\n")
        if end.code in (EXIT_NOT_FOUND, EXIT_NOT_EXECUTABLE):
            sys.stderr.write(f"  {inside(policy, command[0])}\n")
    return end.code


def inside(policy: Policy, command: str) -> str:
    """What there is inside, and how the command would be."""
    if policy.agent is None and command in AGENTS:
        return f"stockade run {command}, without --, shows its installation inside, and what else it needs (docs/agents.md)."
    from stockade.session.confine import wall_of

    root = policy.root.image or policy.root.path
    if root or wall_of(policy).NAME != "vm":
        return f"Inside are {root or '/usr'}, the workspace and what the policy mounts: a program elsewhere needs --ro DIR."
    what = "Inside are the machine's own image, the workspace and what the policy mounts, and nothing of the host's /usr."
    return f"{what} A package of Debian's: stockade vm build --include PACKAGE; a program elsewhere needs --ro DIR."


def _given(policy: Policy, agent: Agent) -> str:
    """In one line what the agent has by its own rules."""
    hosts = ", ".join(dict.fromkeys(grant.host for grant in policy.grants if grant.origin.file == f"agent:{agent.name}"))
    home = "kept for this workspace" if agent.kept else "gone afterwards"
    return f"{agent.name}: reaches {hosts or 'nothing'} by its own rules, its state is private and {home} (stockade policy show --agent {agent.name})"


def override(key: str, value: str) -> tuple[str, str]:
    """The policy's setting that an option's value means (policy/overrides.py)."""
    if key == "environment":
        return ("environment.set" if "=" in value else "environment.pass", value)
    if key == "limits":
        name, _, amount = value.partition("=")
        return (f"limits.{name}", amount)
    return key, value


def here() -> str:
    """The current folder. Raises StockadeError (`workspace.missing`) when it is gone."""
    try:
        return os.getcwd()
    except OSError as error:
        raise StockadeError(
            "the current folder does not exist any more",
            code="workspace.missing",
            hint="Go to an existing folder, or name one with --workspace.",
        ) from error


__all__ = ["EXIT_FAILED", "build_parser", "main", "parse"]
