"""`stockade tools [options]`: tools for agent loops on the host, which work inside a sandbox, over MCP on standard input and output or over HTTP."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stockade.cli.run import OPTIONS, here, override
from stockade.core.errors import StockadeError
from stockade.core.notes import put

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.values import Policy

_OTHERS = ("--receipt", "--tty", "--no-tty", "--json")  # of `stockade run`, about its one command


def build_parser() -> argparse.ArgumentParser:
    """The options of `stockade run` that are about the sandbox."""
    parser = argparse.ArgumentParser(
        prog="stockade tools",
        description="Serve bash, read, write, edit, list, search and restart over MCP, on standard input and output or over HTTP. All of them work inside one sandbox, and nothing runs on the host.",
        epilog="For Claude Code: claude mcp add stockade -- stockade tools --wall vm. docs/tools.md has more.",
    )
    parser.add_argument(
        "--http",
        metavar="ADDRESS:PORT",
        nargs="?",
        const="127.0.0.1:0",
        help="serve over HTTP on loopback, a sandbox for each client (default: 127.0.0.1 and a port that is free)",
    )
    parser.add_argument(
        "--mcp-config",
        metavar="FILE",
        help="with --http: write what a client needs, the token too, to this file, which nobody else can read, and not to standard output",
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
    if options.mcp_config and not options.http:
        parser.error("--mcp-config goes with --http")

    from stockade.session import trust

    cwd = here()
    overrides = tuple(override(key, value) for option, _, key, _ in OPTIONS if key for value in given.get(option, ()))
    policy = trust.policy(cwd, policy_file=(given["--policy"] or [None])[0], overrides=overrides, project=not given["--no-project"])
    return _http(policy, cwd, options.http, options.mcp_config) if options.http else _stdio(policy, cwd, argv)


def _stdio(policy: Policy, cwd: str, argv: Sequence[str]) -> int:
    import asyncio

    from stockade.server.mcp import serve

    if os.isatty(0):
        words = " ".join(argv)
        sys.stderr.write(
            "stockade tools speaks MCP on standard input and output; a client starts it. For Claude Code, in this folder:\n"
            f"  claude mcp add stockade -- stockade tools {words}\n"
            "Take the client's own tools away, or it still has the host: docs/tools.md. Ctrl-D ends this server.\n"
        )
    stdin, stdout = os.dup(0), _taken()
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(nothing, 0)
    os.close(nothing)
    asyncio.run(serve(policy, cwd, stdin, stdout, _tell))
    return 0


def _http(policy: Policy, cwd: str, where: str, file: str | None) -> int:
    try:
        from stockade.server.streamable import Streamable
    except ImportError as error:
        raise StockadeError(
            f"serving over HTTP needs Starlette and uvicorn: {error}",
            code="cli.extra",
            hint="pip install 'stockade[web]', or: stockade tools, without --http",
        ) from error
    from stockade.server.bearer import place

    address, port = place(where)
    stdout, config = _taken(), b""

    def say(url: str, token: str) -> None:
        nonlocal config
        server = {"type": "http", "url": url, "headers": {"Authorization": f"Bearer {token}"}}
        config = json.dumps({"mcpServers": {"stockade": server}}).encode() + b"\n"
        _tell(f"tools are served at {url} until Ctrl-C; {f'what a client needs is in {file}' if file else 'for a client, with its token:'}")
        if not file:
            os.write(stdout, config)
            return
        try:
            put(file, config)
        except OSError as error:
            raise StockadeError(
                f"cannot write {file}: {error.strerror}",
                code="tools.file",
                hint="Name a file in a folder of yours, outside of the workspace.",
            ) from error

    try:
        Streamable(policy, cwd, address, port, say, _tell).run()
    finally:
        if file:  # somebody else may listen there next
            _remove(file, config)
    return 0


def _remove(file: str, content: bytes) -> None:
    """Remove a file that still holds what we wrote."""
    with suppress(OSError):
        if Path(file).read_bytes() == content:
            os.unlink(file)


def _taken() -> int:
    """A descriptor of what was standard output. INVARIANT: what is meant for the client alone is written there; whatever else is printed in this process goes to standard error."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    return stdout


def _tell(text: str) -> None:
    plain = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    sys.stderr.write(f"stockade: {plain}\n")
    sys.stderr.flush()
