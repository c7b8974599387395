"""Colours, only on a terminal and only if NO_COLOR is not set (no-color.org); and other people's lines, cut so that a terminal does not cut them.

A terminal goes on with a long line in the first column of the next one, where lines of ours begin: what somebody else wrote could look like one.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

_COLOURS = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
EFFECTS = {"allow": "green", "deny": "red"}  # anything between the two is yellow


class Paint:
    """Called with a text and a colour, gives what to write to `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self.on = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    def __call__(self, text: str, colour: str) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self.on else text


def room(most: int) -> int:
    """How many columns of somebody's line are shown at once on standard output, behind some of ours."""
    try:
        return max(20, min(most, (os.get_terminal_size(1).columns or 80) - 6))
    except OSError:
        return most


def pieces(line: str, columns: int) -> Iterator[str]:
    """A line in pieces of so many columns (Unicode Standard Annex 11: wide letters take two)."""
    from unicodedata import east_asian_width

    piece, used = "", 0
    for letter in line:
        wide = 1 if letter.isascii() or east_asian_width(letter) not in "WFA" else 2
        if used + wide > columns:
            yield piece
            piece, used = "", 0
        piece, used = piece + letter, used + wide
    yield piece
