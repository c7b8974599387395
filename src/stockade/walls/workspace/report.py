"""Rows of the report: which files changed that something executes later, with a short diff. Text from inside is made safe to print."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ROWS, DIFF_LINES, DIFF_BYTES, DIFFS_BYTES = 500, 60, 8 << 10, 256 << 10
HELD = 16 * DIFFS_BYTES  # characters of differences that are kept while it is looked: a sandbox can write any number of files


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


class Rows:
    """Collects rows against the contents before (`None` = was there, content not kept)."""

    def __init__(self, before: Mapping[str, bytes | None]) -> None:
        self.before = before
        self.changed = 0
        self.rows: list[dict[str, str]] = []
        self._seen: set[str] = set()
        self._held = 0

    @property
    def left_out(self) -> int:
        """How many rows `plain` does not give. INVARIANT: what is not listed is counted; otherwise files without end would hide one."""
        return max(0, len(self.rows) - ROWS)

    def add(self, rel: str, judged: tuple[str, str], content: bytes | None) -> None:
        """One file that was created or changed; no row if it holds what it held before."""
        self._seen.add(rel)
        known = rel in self.before
        old = self.before.get(rel)
        if known and old is not None and content == old:
            return
        if self._held > HELD:
            text = "(the report is long enough)"
        elif content is None:
            text = "(too large to show)"
        elif known and old is None:
            text = "(no content from before)"
        elif judged[1] == "is executable" and not known:
            text = ""
        else:
            text = diff(old or b"", content)
        self._held += len(text)
        self.rows.append(
            {"path": shown(rel), "change": "changed" if known else "written", "risk": judged[0], "why": judged[1], "diff": text}
        )

    def gone(self, absent: Callable[[str], bool]) -> None:
        """Rows for known files that are no longer there."""
        for rel in self.before:
            if rel not in self._seen and absent(rel):
                self.rows.append({"path": shown(rel), "change": "removed", "risk": "low", "why": "was executed by tools", "diff": ""})

    def plain(self) -> list[dict[str, str]]:
        """The rows, most dangerous first and then those nearest to the top, at most `ROWS`."""
        order = {"high": 0, "medium": 1, "low": 2}
        left, chosen = DIFFS_BYTES, sorted(self.rows, key=lambda row: (order[row["risk"]], row["path"].count("/"), row["path"]))[:ROWS]
        for row in chosen:
            left -= len(row["diff"])
            if left < 0:
                row["diff"] = "(the report is long enough)"
        return chosen
