"""What is asked from inside about a file that is held read-only: may it hold this from now on? Pure.

Laws (tests/checks/test_protected.py): a denial beats everything; neither order nor duplicates of rules matter; what no rule names is denied; and whoever approves has
been shown every line that changes, so that a change which is too long to be shown is not asked about.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from stockade.checks.tools import matches
from stockade.core.asks import Asked
from stockade.core.frozen import frozen
from stockade.core.tools import wholesome
from stockade.core.values import ASK, DENY, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.asks import Risk
    from stockade.core.tools import FileRule

NO_RULE = "no-file-rule"
LONGEST = 32 << 10  # bytes that a file may hold, before and after
MOST_LINES, MOST_SHOWN = 400, 12_000  # lines and characters of a difference that a person is asked to read
_PATH = re.compile(r"[ -\[\]-~]{1,1000}")  # visible ASCII without a backslash, so that it is shown as it is
_COMPARED = 200  # lines on either side that are compared one by one: it takes time that grows with their square
_CONTEXT = 3  # lines shown around a change


@frozen
class Change:
    """A change that is asked for: what `path` (relative to the workspace) shall hold, and its SHA-256 (hex)."""

    path: str
    content: bytes
    digest: str


class Unreadable(ValueError):
    """What came is no question about a file."""

    rule = "bad-file"


class Unshowable(ValueError):
    """Nobody can be shown what this would change. The text says why."""


def read(query: str, body: bytes) -> Change:
    """The change that is asked for: `query` is `path=...` and nothing else, percent-encoded (RFC 3986), `body` the whole new content. Raises Unreadable."""
    name, _, value = query.partition("=")
    path = unquote_to_bytes(value).decode("latin-1")
    if name != "path" or "&" in value or not _PATH.fullmatch(path) or not wholesome(path):
        raise Unreadable(
            "a question about a file has ?path= and the file's path in the workspace, in ASCII, without . and .., and nothing of git's"
        )
    if len(body) > LONGEST:
        raise Unreadable(f"a file that is asked about holds at most {LONGEST} bytes")
    return Change(path, body, hashlib.sha256(body).hexdigest())


def decide(path: str, rules: Sequence[FileRule]) -> tuple[Verdict, FileRule | None]:
    """May somebody be asked about a change to this file, and by which rule. Never raises."""
    fitting = sorted({rule for rule in rules if fits(rule.path, path)}, key=lambda rule: (str(rule.origin), rule.path))
    for effect, what in ((DENY, "may not be changed, by"), (ASK, "is changed only with a person's approval:")):
        for rule in fitting:
            if rule.effect == effect:
                return Verdict(effect, f"file {rule.origin}", (f"{path} {what} {rule.origin}.",)), rule
    return Verdict(DENY, NO_RULE, (f"no rule lets anybody be asked about {path}.",)), None


def fits(pattern: str, path: str) -> bool:
    """Whether a rule's path means this one. A `*` stands for text within a name."""
    folder, _, name = pattern.rpartition("/")
    there, _, file = path.rpartition("/")
    return folder == there and matches(name, file)


def question(number: int, path: str, before: bytes | None, after: bytes, rule: FileRule, why: str, *, tainted: bool, shown: bool) -> Asked:
    """The question about one change. `before` is None for a file that is not there; `why` says what obeys the file, "" = nothing known; with `shown` false
    nobody is going to look, and the difference is left out. Raises Unshowable.

    INVARIANT: its digest is of the path and of both contents, and no reviewer answers it.
    """
    lines, more, fewer = difference(before, after) if shown else ((), 0, 0)
    facts = {"kind": "file", "path": path, "before": None if before is None else hashlib.sha256(before).hexdigest()}
    digest = hashlib.sha256(json.dumps({**facts, "after": hashlib.sha256(after).hexdigest()}, sort_keys=True).encode()).hexdigest()
    new = "a new file, " if before is None else ""
    what = f"change the file {path}: {new}{more} lines more, {fewer} lines less, {len(after)} bytes then" + (f" ({why})" if why else "")
    also = "nothing else: this content, once"
    risk: Risk = "high" if why or tainted else "medium"
    return Asked(
        number, "file", what, digest, f"file {path}", also, str(rule.origin), risk, not why, tainted, True,
        reviewable=False, size=len(after), detail=lines,
    )  # fmt: skip


def difference(before: bytes | None, after: bytes) -> tuple[tuple[str, ...], int, int]:
    """A unified difference, every line of it as printable ASCII, and how many lines come and go. Raises Unshowable for what is no text, or too long to be read."""
    if b"\0" in after or b"\0" in (before or b""):
        raise Unshowable("it is no text")
    try:
        new = _lines(after.decode())
    except ValueError:
        raise Unshowable("it is no text in UTF-8") from None
    old = _lines((before or b"").decode("utf-8", "surrogateescape"))
    lines = [_plain(line) for line in _compared(old, new)]
    if len(lines) > MOST_LINES or sum(map(len, lines)) > MOST_SHOWN:
        message = (
            f"the difference is longer than {MOST_LINES} lines or {MOST_SHOWN} characters, and nobody approves what cannot be shown whole"
        )
        raise Unshowable(f"{message}: ask for less at once")
    return tuple(lines), sum(line[:1] == "+" for line in lines), sum(line[:1] == "-" for line in lines)


def _compared(old: list[str], new: list[str]) -> list[str]:
    """What comes and goes between two texts, in bounded time: what both begin and end with is set aside first."""
    start = 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    end = 0
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    first = max(0, start - _CONTEXT)
    stops = [len(side) - max(0, end - _CONTEXT) for side in (old, new)]
    one, two = old[first : stops[0]], new[first : stops[1]]
    head, gone, come, tail = old[first:start], old[start : len(old) - end], new[start : len(new) - end], old[len(old) - end : stops[0]]
    if max(len(gone), len(come)) <= _COMPARED:
        return [_placed(line, first) for line in [*difflib.unified_diff(one, two, n=_CONTEXT, lineterm="")][2:]]
    lines = [f"@@ -{first + 1},{len(one)} +{first + 1},{len(two)} @@"]
    return (
        lines
        + [f" {line}" for line in head]
        + [f"-{line}" for line in gone]
        + [f"+{line}" for line in come]
        + [f" {line}" for line in tail]
    )


def _placed(line: str, first: int) -> str:
    """A hunk's head, whose numbers count from the beginning of the file."""
    found = re.fullmatch(r"@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@", line)
    if found is None:
        return line
    return f"@@ -{int(found[1]) + first}{found[2] or ''} +{int(found[3]) + first}{found[4] or ''} @@"


def _lines(text: str) -> list[str]:
    """The lines of a file. Only a line feed ends one; a last one without it holds one instead, which no other can."""
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else [*lines[:-1], f"{lines[-1]}\n"]


def _plain(line: str) -> str:
    text = "".join(letter if " " <= letter <= "~" or letter == "\n" else letter.encode("unicode_escape").decode() for letter in line)
    return text.replace("\n", " [no line feed at the end]")
