"""Commands of a command: `stockade session list`, `stockade image pull`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def commands(
    prog: str, description: str, json: str = "JSON on standard output"
) -> tuple[argparse.ArgumentParser, Callable[[str, str], argparse.ArgumentParser]]:
    """The parser of `prog`, and what adds a command to it: its name, which goes to `command`, and what it does. Each has `--json`, with `json` as its help."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    added = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        found = added.add_parser(name, help=text, description=text)
        found.add_argument("--json", action="store_true", help=json)
        return found

    return parser, command
