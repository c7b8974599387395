"""`stockade init`: a first policy, by what is installed here."""

from __future__ import annotations

import argparse
import json
import os
import sys
from typing import TYPE_CHECKING

from stockade.cli.paint import Paint
from stockade.core import frozen, places
from stockade.core.errors import StockadeError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.policy.first import Found


def build_parser() -> argparse.ArgumentParser:
    """The parser of `stockade init`."""
    parser = argparse.ArgumentParser(
        prog="stockade init",
        description="Write a first policy to your configuration, by which agents and package clients are here. Runs none of them, never overwrites.",
    )
    parser.add_argument("--print", action="store_true", dest="to_stdout", help="print it, and write nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: Sequence[str]) -> int:
    """Write it; 0, or StockadeError (`policy.exists`, `policy.unwritable`)."""
    options = build_parser().parse_args(argv)
    from stockade.policy.first import look, text

    found = look(os.getcwd())
    written = text(found)
    path = "" if options.to_stdout else _write(written)
    if options.json:
        print(
            json.dumps(
                {"ok": True, "file": path, "text": written, "agents": [frozen.plain(one) for one in found.agents], "presets": found.presets}
            )
        )
        return 0
    print(written, end="")
    if path:
        _say(path, found)
    return 0


def _write(content: str) -> str:
    path = places.config("policy.toml")
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        hint = "Edit it, or see what would be written today with: stockade init --print"
        raise StockadeError(f"{path} exists already", code="policy.exists", hint=hint) from None
    except OSError as error:
        raise StockadeError(f"cannot write {path}: {error.strerror}", code="policy.unwritable", hint="Make the folder writable.") from error
    with open(opened, "w", encoding="utf-8") as file:
        file.write(content)
    return path


def _say(path: str, found: Found) -> None:
    """What to do next, beside the policy itself."""
    paint = Paint(sys.stderr)
    lines = [paint(f"wrote {path}", "green") + ": the lines above without a # hold from now on"]
    for one in found.agents:
        key = "" if one.ready else f" (before: export {one.variable}=..., which stays outside)"
        lines.append(f"start {one.title}: stockade run {one.name}{key}")
    print("\n".join(lines), file=sys.stderr)
