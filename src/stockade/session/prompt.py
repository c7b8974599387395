"""A question in the user's terminal while a program runs inside on a terminal of its own. Imported when there is a first question.

The program's output is held while the question stands, in the top lines, and its input is ours; afterwards the cursor is where it was and the program is told to
draw again. INVARIANT: a question is approved only by three letters that were drawn for it, where all of it was in sight. A habit of pressing "y", keys that were
typed before it was shown, and what a terminal answers to sequences that the program has sent (its title, where the cursor is) say no, or nothing.
"""

from __future__ import annotations

import os
import textwrap
import time
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError
from stockade.core.loop import READ
from stockade.session.plainly import LEGIBLE, UNBOUND
from stockade.walls import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.core.asks import Answered, Asked
    from stockade.core.loop import Loop
    from stockade.walls.streams import Pump

LETTERS = "abcdefghjkmnpqrtuvwxyz"  # no i, l, o: and no s, which stands for the session
DEAF = 0.4  # seconds in which nobody can have read a question yet
_TRIES = 3
_MAY = {"egress": "this leave", "tool": "this tool be called", "file": "this file be changed", "mount": "this be shown inside"}
_RESTORE, _HOME, _PLAIN, _BOLD = "\x1b8", "\x1b[1;1H", "\x1b[0m", "\x1b[0;1m"
_CLEAR = "\x1b#5\x1b[0m\x1b[2K"  # in single width: of a line in double width half is cut off
_BEGIN = f"{UNBOUND}\x1b[?6l{LEGIBLE}{_HOME}"


def _wrapped(line: str, columns: int) -> list[str]:
    """A line in as many as the terminal needs. Nothing of it is dropped: blanks at its end stand there too. What goes on does not begin where lines begin."""
    return textwrap.wrap(line, max(8, columns - 1), drop_whitespace=False, break_on_hyphens=False, subsequent_indent="    ") or [""]


class Prompt:
    """Asks one question at a time, oldest first. `answer(asked, allow, scope)` hands on what was typed; `redraw` makes the program inside draw again."""

    def __init__(self, loop: Loop, pumps: list[Pump], answer: Callable[[Asked, bool, str], object], redraw: Callable[[], None]) -> None:
        self._loop, self._pumps, self._answer, self._redraw = loop, pumps, answer, redraw
        self._queue: list[Asked] = []
        self._shown: Asked | None = None
        self._code = self._typed = ""
        self._since = 0.0
        self._tries = self._lines = self._timer = 0
        self._whole = True  # whether all that has to be seen before a yes is in sight

    def hear(self, asked: Asked | None, answered: Answered | None) -> None:
        """A listener of Questions: something is asked, or was answered, here or elsewhere."""
        if asked is not None:
            self._queue.append(asked)
        if answered is not None:
            self._queue = [one for one in self._queue if one.number != answered.asked.number]
            if self._shown is not None and self._shown.number == answered.asked.number:
                self._leave()
        if self._shown is None and self._queue:
            self._show(self._queue.pop(0))

    def close(self) -> None:
        """Ask nothing more."""
        self._queue = []
        if self._shown is not None:
            self._leave()

    def _show(self, asked: Asked) -> None:
        import termios

        self._shown, self._typed, self._tries = asked, "", _TRIES
        self._code = "".join(LETTERS[byte % len(LETTERS)] for byte in os.urandom(3))
        for pump in self._pumps:
            pump.hold()
        try:
            termios.tcflush(0, termios.TCIFLUSH)
        except termios.error:
            pass  # it is gone; so is whoever could have answered
        self._since = time.monotonic()
        self._loop.watch(0, READ, self._key)
        self._write(_BEGIN)
        self._draw()

    def _draw(self) -> None:
        asked = self._shown
        if asked is None:
            return
        rows, columns, _, _ = terminal.size_of(1) or (24, 80, 0, 0)
        rows, columns = rows or 24, columns or 80
        left = max(0, round(asked.expires - time.time()))
        session = "" if asked.people else f"; {self._code}s for {asked.also}"
        text = [
            f"stockade asks: may {_MAY.get(asked.action, 'this happen')}?   risk: {asked.risk}   rule: {asked.rule}"
            + ("   something secret was read" if asked.tainted else ""),
            f"  {asked.what}",
            *asked.detail,
            *([f"  {asked.review}"] if asked.review else []),
            f"Type {self._code} and Enter to allow it once{session}. Enter alone refuses. {left // 60}:{left % 60:02}  > {self._typed}",
        ]
        lines = [part for line in text for part in _wrapped(line, columns)]
        self._whole = len(lines) <= rows - 1
        if not self._whole:  # nothing is approved of which something was not in sight: the program chooses what stands in the middle
            hint = f"All of it, and how to allow it: stockade approvals. Enter refuses. {left // 60}:{left % 60:02}  > {self._typed}"
            lines = [part for line in (*text[:-1], hint) for part in _wrapped(line, columns)]
        if len(lines) > rows - 1:  # never without how to answer, and never as if that were all
            last = lines[-(rows // 2) :]
            lines = [*lines[: rows - 2 - len(last)], "[...] all of it: stockade approvals", *last]
        drawn = [f"{_CLEAR}{_BOLD}{line}{_PLAIN}" for line in lines] + [_CLEAR] * max(0, self._lines - len(lines))
        self._write(_HOME + "\r\n".join(drawn[: rows - 1]) + f"\x1b[{len(lines)};{len(lines[-1]) + 1}H")
        self._lines = len(lines)
        self._loop.cancel(self._timer)
        self._timer = self._loop.later(1.0, self._draw)

    def _leave(self) -> None:
        self._shown = None
        self._loop.cancel(self._timer)
        self._loop.forget(0)
        self._write(_HOME + "\r\n".join([_CLEAR] * self._lines) + _RESTORE)
        self._lines = 0
        for pump in self._pumps:
            pump.go_on()
        self._redraw()

    def _key(self, _events: int) -> None:
        try:
            data = os.read(0, 256)
        except OSError:
            data = b""
        asked = self._shown
        if asked is None:
            return
        if not data:  # nobody is there: somebody elsewhere may answer, until its time is over
            self._loop.forget(0)
            return
        if time.monotonic() - self._since < DEAF:
            return
        for letter in data.decode("latin-1"):
            if letter in "\r\n":
                self._entered(asked)
                return
            if letter in "\x03\x1b":  # Ctrl-C; Esc, and whatever else begins with it
                self._typed = ""
                if letter == "\x03":
                    self._say(asked, False, "once")
                return
            if letter in "\x7f\b":
                self._typed = self._typed[:-1]
            elif letter.isascii() and letter.isprintable() and len(self._typed) < 16:
                self._typed += letter
        self._draw()

    def _entered(self, asked: Asked) -> None:
        typed, self._typed = self._typed.strip(), ""
        if typed == self._code and self._whole:
            self._say(asked, True, "once")
        elif typed == f"{self._code}s" and self._whole and not asked.people:
            self._say(asked, True, "session")
        elif not typed or self._tries <= 1:
            self._say(asked, False, "once")
        else:
            self._tries -= 1
            self._draw()

    def _say(self, asked: Asked, allow: bool, scope: str) -> None:
        try:
            self._answer(asked, allow, scope)
        except StockadeError as error:
            if error.code != "approval.gone":
                raise
        if self._shown is asked:  # its time was over
            self._leave()
            self.hear(None, None)

    @staticmethod
    def _write(text: str) -> None:
        try:
            os.write(1, text.encode("ascii", "backslashreplace"))
        except OSError:
            pass  # a terminal that is gone; the question stands until its time is over
