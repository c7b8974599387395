"""The command line. Each command group is one file that is imported when it is called, so that `stockade run` pays for nothing else."""

from __future__ import annotations

import os
import sys

from stockade.core.errors import EXIT_FAILED, StockadeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import NoReturn

COMMANDS = {
    "run": "run a command inside the wall",
    "tools": "serve tools over MCP to an agent loop outside; they work inside a sandbox",
    "init": "write a first policy by looking at what is installed",
    "policy": "check, show and explain policies",
    "trust": "see what a project brings, and let its own stockade.toml count or not",
    "log": "show, follow and verify the ledger of decisions",
    "gate": "explain what the gate decides, show what it decided, watch what sessions ask, be the shared one",
    "approvals": "what running sessions ask you, and your answers",
    "session": "list sessions, and bring back or discard what one that is over has left",
    "changes": "look at what sessions of mode review wrote, and bring it to the folder or drop it",
    "image": "pull images for the guest's root, and show and remove those that are here",
    "vm": "build images for machines, and show, choose and remove those that are here",
    "doctor": "what works on this machine, and how to mend what does not",
    "drill": "replay incidents and attacks, and show that they are contained",
    "completion": "print a completion script for bash, zsh or fish",
}


def main(argv: Sequence[str] | None = None) -> int:
    """The `stockade` command; returns its exit status (docs/cli.md). A program should `sys.exit` with it."""
    words = list(sys.argv[1:] if argv is None else argv)
    name = words[0] if words else "--help"
    as_json = "--json" in (words[: words.index("--")] if "--" in words else words)
    try:
        if name in COMMANDS:
            return int(__import__(f"stockade.cli.{name}", fromlist=["main"]).main(words[1:]))
        return _top(words)
    except StockadeError as error:
        complain(error, as_json=as_json)
        return error.exit_status
    except BrokenPipeError:  # the reader of our output left: `stockade log show | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        # INVARIANT: a bug of ours never exits with 0 and never runs anything; sandboxes end with this process.
        if os.environ.get("STOCKADE_TRACEBACK"):
            raise
        complain(
            StockadeError(
                f"{type(error).__name__}: {error}",
                code="bug",
                hint="This is a bug in stockade. STOCKADE_TRACEBACK=1 shows where; please report it.",
            ),
            as_json=as_json,
        )
        return EXIT_FAILED


def entry() -> NoReturn:
    """The console script: `main`, then leave without taking the interpreter apart, which would cost a tenth of a short run."""
    status = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # the reader left
            pass
    os._exit(status)


def complain(error: StockadeError, *, as_json: bool = False) -> None:
    """Write an error to standard error: what happened and why, then what to do next; with `as_json` one JSON object."""
    if as_json:
        import json

        text = json.dumps(error.plain())
    else:
        colour = os.isatty(2) and not os.environ.get("NO_COLOR")
        red, dim, off = ("\x1b[31m", "\x1b[2m", "\x1b[0m") if colour else ("", "", "")
        # What a sandbox or a file said may be quoted: no control characters reach the terminal.
        message, hint = (
            "".join(letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in said)
            for said in (error.message, error.hint)
        )
        text = f"{red}stockade: {message}{off}"
        if hint:
            text += f"\n{dim}  {hint}{off}"
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def build_parser() -> argparse.ArgumentParser:
    """The whole command line as one parser: for help, and for completion scripts."""
    import argparse
    from importlib import import_module

    from stockade import __version__

    parser = argparse.ArgumentParser(
        prog="stockade", description="Run AI agents without having to trust them: hard containment, provable on your machine."
    )
    parser.add_argument("--version", action="version", version=f"stockade {__version__}")
    groups = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        inner = import_module(f"stockade.cli.{name}").build_parser()
        groups.add_parser(name, help=text, parents=[inner], add_help=False, description=inner.description)
    return parser


def _top(words: Sequence[str]) -> int:
    """What is left when the first word is no command: help, the version, or a mistake with the nearest command."""
    from stockade import __version__

    if words[:1] == ["--version"]:
        print(f"stockade {__version__}")
        return 0
    lines = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
    usage = f"usage: stockade COMMAND ...\n\n{lines}\n\n`stockade COMMAND --help` tells more. First steps: stockade doctor, stockade init, then stockade run claude, or stockade run -- COMMAND.\n"
    if not words or words[0] in ("--help", "-h", "help"):
        sys.stdout.write(usage)
        return 0
    import difflib

    near = difflib.get_close_matches(words[0], COMMANDS, 1)
    hint = (
        f"Did you mean `stockade {near[0]}`?"
        if near
        else f"To run a program: stockade run -- {words[0]} ..."
        if words[0][:1] != "-"
        else "See stockade --help."
    )
    raise StockadeError(f"there is no command {words[0]!r}", code="cli.unknown", hint=hint)
