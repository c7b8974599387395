"""`stockade completion SHELL`: a completion script, made by shtab from the parsers themselves."""

from __future__ import annotations

import argparse

from stockade.core.errors import StockadeError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def build_parser() -> argparse.ArgumentParser:
    """`stockade completion`'s own parser."""
    parser = argparse.ArgumentParser(
        prog="stockade completion",
        description="Print a completion script. bash: stockade completion bash > ~/.local/share/bash-completion/completions/stockade",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def main(argv: Sequence[str]) -> int:
    """Print the script for the named shell."""
    shell = build_parser().parse_args(argv).shell
    from stockade.cli import build_parser as whole

    try:
        import shtab
    except ImportError as error:
        raise StockadeError("shtab is not installed", code="completion.missing", hint="pip install 'stockade[completion]'") from error
    print(shtab.complete(whole(), shell=shell))
    return 0
