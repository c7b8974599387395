"""A terminal as far as a program can have it show something else than what is written next (DEC VT510, Programmer Information; Xterm Control Sequences): margins
and where lines count from, letters that are not shown or are others, lines in double width, text that is pushed aside, a status line, and sequences without an end."""

from __future__ import annotations

import re

_SEQUENCE = re.compile(r"\x1b(?:\[([<-?]?)([0-9;]*)([ -/]*)([@-~])|([#(])(.)|([78])|(\\)|([P\]_X^]))|([\x00-\x1f])|(.)", re.DOTALL)


class Screen:
    """What is seen of `columns` x `rows` after `feed`."""

    def __init__(self, columns: int = 80, rows: int = 24) -> None:
        self.columns, self.rows = columns, rows
        self.cells = [[" "] * columns for _ in range(rows)]
        self.double = [False] * rows
        self.status = [" "] * columns
        self.x = self.y = 0
        self.margins = (0, rows - 1)
        self.origin = self.inserts = self.hidden = self.graphic = self.in_status = self.in_string = False

    @property
    def shown(self) -> list[str]:
        """The lines that are seen, and the status line as the last one."""
        half = [row[: self.columns // 2] if double else row for row, double in zip(self.cells, self.double, strict=True)]
        return ["".join(row).rstrip() for row in (*half, self.status)]

    def feed(self, text: str) -> None:
        for found in _SEQUENCE.finditer(text):
            private, numbers, between, final, kind, charset, _, end, string, control, letter = found.groups()
            if self.in_string:
                self.in_string = not end and control not in ("\x18", "\x1a", "\x07")
            elif string:
                self.in_string = True
            elif final:
                self._control(private, [int(number or 0) for number in numbers.split(";")], between + final)
            elif kind == "#":
                self.double[self.y] = charset == "6"
            elif kind:
                self.graphic = charset == "0"
            elif control == "\r":
                self.x = 0
            elif control == "\n":
                self._down()
            elif letter and letter.isprintable():
                self._put("#" if self.graphic and letter.islower() else letter)

    def _control(self, private: str, numbers: list[int], final: str) -> None:
        first = numbers[0]
        top = self.margins[0] if self.origin else 0
        if final == "H":
            last = self.margins[1] if self.origin else self.rows - 1
            self.y, self.x = min(top + max(first, 1) - 1, last), max(numbers[1] if len(numbers) > 1 else 1, 1) - 1
        elif final == "r" and not private:
            bottom = numbers[1] if len(numbers) > 1 and numbers[1] else self.rows
            self.margins = (max(first, 1) - 1, bottom - 1)
            self.y, self.x = self.margins[0] if self.origin else 0, 0
        elif final in "hl" and private == "?" and first == 6:
            self.origin = final == "h"
            self.y, self.x = self.margins[0] if self.origin else 0, 0
        elif final in "hl" and not private and first == 4:
            self.inserts = final == "h"
        elif final == "m":
            for number in numbers:
                self.hidden = number == 8 or (self.hidden and number not in (0, 28))
        elif final == "K":
            (self.status if self.in_status else self.cells[self.y])[:] = [" "] * self.columns
        elif final == "J":
            self.cells = [[" "] * self.columns for _ in range(self.rows)]
        elif final == "$}":
            self.in_status = first == 1

    def _down(self) -> None:
        if self.in_status:
            return
        if self.y == self.margins[1]:
            del self.cells[self.margins[0]], self.double[self.margins[0]]
            self.cells.insert(self.margins[1], [" "] * self.columns)
            self.double.insert(self.margins[1], False)
        else:
            self.y = min(self.y + 1, self.rows - 1)

    def _put(self, letter: str) -> None:
        if self.x >= self.columns:
            self.x = 0
            self._down()
        row = self.status if self.in_status else self.cells[self.y]
        if self.inserts:
            row.insert(self.x, " ")
            del row[self.columns :]
        row[self.x] = " " if self.hidden else letter
        self.x += 1
