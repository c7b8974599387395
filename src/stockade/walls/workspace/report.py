"""Rows of the report: which files changed that something executes later, with a short diff. Text from inside is made safe to print."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

PART = 28 << 10  # characters of the lists in one event, escaped: the ledger takes 64 KiB
KEEP_FILE = 64 << 10  # bytes of a file that are kept to be shown
ROWS, DIFF_LINES, DIFF_BYTES, DIFFS_BYTES = 500, 60, 8 << 10, 256 << 10


def shown(text: str) -> str:
    """`text` without control characters and undecodable bytes (written as escapes), so that it cannot talk to a terminal or break JSON."""
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in clean)


def diff(before: bytes, after: bytes) -> str:
    """A unified diff, cut to a bounded length; a sentence instead when either side is not text."""
    import difflib  # imports re: not for a report without rows

    if b"\0" in before or b"\0" in after:
        return "(not text)"
    old, new = (side.decode("utf-8", "backslashreplace").splitlines()[:4000] for side in (before, after))
    lines = [shown(line.rstrip("\n")) for line in difflib.unified_diff(old, new, "before", "after", n=2, lineterm="")][2:]
    text = "\n".join(lines[:DIFF_LINES])[:DIFF_BYTES]
    return text + ("\n(cut)" if len(lines) > DIFF_LINES or len(text) == DIFF_BYTES else "")


def parts(*events: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The events as the ledger can hold them: it shortens what does not fit into a line (record/lines.py), and what is shortened would be whatever came last.

    The first part of one has everything but lists that are long; each further one has its number, and lists go on where the last part has ended.
    """
    for event in events:
        part = {name: [] if isinstance(value, list) else value for name, value in event.items()}
        number, room = 1, PART
        for name, row in ((name, row) for name, rows in event.items() if isinstance(rows, list) for row in rows):
            size = len(ascii(row)) + 8
            if size > room and room < PART:
                yield part
                number, room = number + 1, PART
                part = {name: event[name] for name in ("kind", "session") if name in event} | {"part": number}
            part.setdefault(name, []).append(row)
            room -= size
        yield part


class Rows:
    """Collects rows against the contents before (`None` = was there, content not kept)."""

    def __init__(self, before: Mapping[str, bytes | None]) -> None:
        self.before = before
        self.changed = 0
        self.rows: list[dict[str, str]] = []
        self.left_out = 0  # how many more there were. INVARIANT: what is not listed is counted; otherwise files without end would hide one.
        self._worst: tuple[int, int, str] | None = None  # what comes after it is not among those that are kept
        self._seen: set[str] = set()

    def add(self, rel: str, judged: tuple[str, str], content: bytes | None) -> None:
        """One file that was created or changed; no row if it holds what it held before."""
        known = rel in self.before
        if known:
            self._seen.add(rel)
        old = self.before.get(rel)
        if known and old is not None and content == old:
            return
        if self._worst and _order({"risk": judged[0], "path": shown(rel)}) > self._worst:
            self.left_out += 1
            return
        if content is None:
            text = "(too large to show)"
        elif known and old is None:
            text = "(no content from before)"
        elif judged[1] == "is executable" and not known:
            text = ""
        else:
            text = diff(old or b"", content)
        self.rows.append(
            {"path": shown(rel), "change": "changed" if known else "written", "risk": judged[0], "why": judged[1], "diff": text}
        )

        if len(self.rows) >= 4 * ROWS:  # there may be millions, each with its difference
            self._cut()

    def _cut(self) -> None:
        self.rows.sort(key=_order)
        self.left_out += max(0, len(self.rows) - ROWS)
        del self.rows[ROWS:]
        self._worst = _order(self.rows[-1]) if len(self.rows) == ROWS else None

    def gone(self, absent: Callable[[str], bool]) -> None:
        """Rows for known files that are no longer there."""
        for rel in self.before:
            if rel not in self._seen and absent(rel):
                self.rows.append({"path": shown(rel), "change": "removed", "risk": "low", "why": "was executed by tools", "diff": ""})

    def plain(self) -> list[dict[str, str]]:
        """The rows, most dangerous first and then those nearest to the top, at most `ROWS`."""
        self._cut()
        left = DIFFS_BYTES
        for row in self.rows:
            left -= len(row["diff"])
            if left < 0:
                row["diff"] = "(the report is long enough)"
        return self.rows


def _order(row: Mapping[str, str]) -> tuple[int, int, str]:
    """The most dangerous first, then those nearest to the top."""
    return ("high", "medium", "low").index(row["risk"]), row["path"].count("/"), row["path"]
