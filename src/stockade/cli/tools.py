"""`stockade tools [options]`: tools for an agent loop on the host, which work inside one sandbox, over MCP on standard input and output."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from stockade.cli.run import OPTIONS, here, override

if TYPE_CHECKING:
    from collections.abc import Sequence

_OTHERS = ("--receipt", "--tty", "--no-tty", "--json")  # of `stockade run`, about its one command


def build_parser() -> argparse.ArgumentParser:
    """The options of `stockade run` that are about the sandbox."""
    parser = argparse.ArgumentParser(
        prog="stockade tools",
        description="Serve bash, read, write, edit, list, search and restart over MCP on standard input and output. All of them work inside one sandbox, and nothing runs on the host.",
        epilog="For Claude Code: claude mcp add stockade -- stockade tools --wall vm. docs/tools.md has more.",
    )
    for option, metavar, _, text in OPTIONS:
        if option not in _OTHERS and metavar:
            parser.add_argument(option, metavar=metavar, action="append", default=[], help=f"as for `stockade run`: {text}")
        elif option not in _OTHERS:
            parser.add_argument(option, action="store_true", help=f"as for `stockade run`: {text}")
    return parser


def main(argv: Sequence[str]) -> int:
    """Serve until the client leaves. Raises StockadeError when the policy is wrong: then nothing was served."""
    parser = build_parser()
    options = parser.parse_args(argv)
    given = {option: getattr(options, option[2:].replace("-", "_")) for option, *_ in OPTIONS if option not in _OTHERS}
    for single in ("--policy", "--wall", "--workspace", "--mode", "--image", "--agent", "--sign"):
        if len(given[single]) > 1:
            parser.error(f"{single} was given twice")

    import asyncio

    from stockade.server.mcp import serve
    from stockade.session import trust

    cwd = here()
    overrides = tuple(override(key, value) for option, _, key, _ in OPTIONS if key for value in given.get(option, ()))
    policy = trust.policy(cwd, policy_file=(given["--policy"] or [None])[0], overrides=overrides, project=not given["--no-project"])
    if os.isatty(0):
        words = " ".join(argv)
        sys.stderr.write(
            "stockade tools speaks MCP on standard input and output; a client starts it. For Claude Code, in this folder:\n"
            f"  claude mcp add stockade -- stockade tools {words}\n"
            "Take the client's own tools away, or it still has the host: docs/tools.md. Ctrl-D ends this server.\n"
        )
    # INVARIANT: the protocol alone is written to what was standard output; whatever else is printed in this process goes to standard error.
    stdin, stdout = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.close(nothing)
    asyncio.run(serve(policy, cwd, stdin, stdout, _tell))
    return 0


def _tell(text: str) -> None:
    plain = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    sys.stderr.write(f"stockade: {plain}\n")
    sys.stderr.flush()
