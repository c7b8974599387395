"""Reading the ledger's log as it grows: for people's eyes and for counting. Whether it is whole is record/verify.py's business."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from stockade.core.errors import StockadeError, Tampered
from stockade.record.ledger import LOG
from stockade.record.lines import MAX_LINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import BinaryIO

LARGEST = 1 << 53  # of a number that is taken from an event


class Reader:
    """The finished lines of the log in `directory`, each once and in order. Never waits for more."""

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, LOG)
        self._log: BinaryIO | None = None
        self._at = 0

    @property
    def found(self) -> bool:
        """Whether there was a log when it was last looked for."""
        return self._log is not None

    def lines(self) -> Iterator[bytes]:
        """What was finished since the last call, with its newlines; a line that is longer than any entry comes in pieces. When another file has taken the
        log's place, its lines follow.

        Raises StockadeError (`ledger.unreadable`), and Tampered (`ledger.truncated`) when the log became shorter than what was read.
        """
        while (log := self._open()) is not None:
            log.seek(self._at)
            while (line := log.readline(MAX_LINE + 2)).endswith(b"\n") or len(line) > MAX_LINE:
                self._at += len(line)
                yield line
            mine = os.fstat(log.fileno())
            if mine.st_size < self._at:
                message = f"the log became shorter than what was shown: {mine.st_size} bytes, not {self._at}"
                raise Tampered(message, code="ledger.truncated", hint="Run `stockade log verify`.")
            try:
                there = os.stat(self._path)
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino):
                return
            self.close()

    def _open(self) -> BinaryIO | None:
        if self._log is None:
            try:
                self._log, self._at = open(self._path, "rb"), 0
            except FileNotFoundError:
                return None
            except OSError as error:
                raise StockadeError(f"cannot read the ledger: {error}", code="ledger.unreadable") from error
        return self._log

    def close(self) -> None:
        """Let go of the file; may be called twice. The next call of `lines` begins anew."""
        if self._log is not None:
            self._log.close()
            self._log = None


def events(lines: Iterable[bytes], wanted: Iterable[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(session, event) of each of the ledger's lines that is about a session, or about one of those `wanted`. What is no event is left out."""
    names = None if wanted is None else {name.encode(): name for name in wanted}
    for line in lines:
        if names is not None and not any(name in line for name in names):  # most lines of an old ledger: not worth parsing
            continue
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        session = event.get("session") if isinstance(event, dict) else None
        if isinstance(session, str) and (names is None or session in names.values()):
            yield session, event


def number(value: object) -> float:
    """A number out of an event; 0 for what is none, or none of ours."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if -LARGEST < value < LARGEST else 0.0
