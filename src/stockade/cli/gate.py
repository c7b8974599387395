"""`stockade gate`: the gate that sessions of one user share."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """`stockade gate`'s own parser."""
    parser = argparse.ArgumentParser(prog="stockade gate", description="The gate that everything passes which leaves a sandbox.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    text = 'Be the gate of all sessions of this user whose policy says gate = "shared". They start one when they need it; this is for services.'
    serve = commands.add_parser("serve", help="be the gate that this user's sessions share", description=text)
    serve.add_argument(
        "--idle", metavar="SECONDS", type=float, default=0.0, help="end when no session has been there for so long (default: never)"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run `stockade gate` with `argv` (without "gate"). 0: it has ended as it was asked to."""
    options = build_parser().parse_args(argv)
    from stockade.session.shared import serve

    serve(options.idle, lambda text: print(f"stockade gate: {text}", file=sys.stderr, flush=True))
    return 0
