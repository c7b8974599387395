"""Unified diffs of what a sandbox wrote: whatever the texts are, the work is bounded and the lines are safe to print."""

from __future__ import annotations

from stockade.core.frozen import frozen
from stockade.walls.workspace.report import shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST = 4 << 20  # bytes of a side of which a difference is made
COMPARED = 1500  # differing lines of a side that are matched with each other; beyond it all of them count as replaced
CONTEXT = 3


@frozen
class Difference:
    """Lines as `diff -u` has them, without a newline each, and how many were added and removed."""

    lines: tuple[str, ...]
    added: int
    removed: int


def text(data: bytes) -> bool:
    """Whether it is text as far as git would say so: no NUL in the first 8000 bytes (gitattributes(5))."""
    return b"\0" not in data[:8000]


def between(before: bytes | None, after: bytes | None, path: str) -> Difference:
    """From `before` to `after` (None: there is no file) of the file at `path`. Lines end at a newline and nothing else; what is not printable is escaped."""
    old, new = _lines(before), _lines(after)
    head = 0
    while head < min(len(old), len(new)) and old[head] == new[head]:
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    changes = [
        (head + i1, head + i2, head + j1, head + j2)
        for i1, i2, j1, j2 in _changes(old[head : len(old) - tail], new[head : len(new) - tail])
    ]
    if not changes:
        return Difference((), 0, 0)
    name = shown(path)
    lines = [f"--- {f'a/{name}' if before is not None else '/dev/null'}", f"+++ {f'b/{name}' if after is not None else '/dev/null'}"]
    hunk: list[tuple[int, int, int, int]] = []
    for change in changes:
        if hunk and change[0] - hunk[-1][1] > 2 * CONTEXT:
            lines += _hunk(old, new, hunk)
            hunk = []
        hunk.append(change)
    lines += _hunk(old, new, hunk)
    return Difference(tuple(lines), sum(one[3] - one[2] for one in changes), sum(one[1] - one[0] for one in changes))


def _lines(data: bytes | None) -> list[bytes]:
    """Each with its newline, which the last one may lack."""
    if not data:
        return []
    found = [line + b"\n" for line in data.split(b"\n")]
    return found[:-1] if data.endswith(b"\n") else [*found[:-1], found[-1][:-1]]


def _changes(old: Sequence[bytes], new: Sequence[bytes]) -> list[tuple[int, int, int, int]]:
    if not old and not new:
        return []
    if len(old) > COMPARED or len(new) > COMPARED:
        return [(0, len(old), 0, len(new))]
    from difflib import SequenceMatcher

    return [(i1, i2, j1, j2) for tag, i1, i2, j1, j2 in SequenceMatcher(None, old, new).get_opcodes() if tag != "equal"]


def _hunk(old: Sequence[bytes], new: Sequence[bytes], changes: Sequence[tuple[int, int, int, int]]) -> list[str]:
    start, end = max(0, changes[0][0] - CONTEXT), min(len(old), changes[-1][1] + CONTEXT)
    first = start + changes[0][2] - changes[0][0]
    lines, at, more = [], start, 0
    for i1, i2, j1, j2 in changes:
        lines += [_line(" ", line) for line in old[at:i1]]
        lines += [_line("-", line) for line in old[i1:i2]]
        lines += [_line("+", line) for line in new[j1:j2]]
        at, more = i2, more + (j2 - j1) - (i2 - i1)
    lines += [_line(" ", line) for line in old[at:end]]
    spans = ((start, end - start), (first, end - start + more))
    return ["@@ -{} +{} @@".format(*(_span(*span) for span in spans)), *(piece for line in lines for piece in line.split("\n"))]


def _span(start: int, count: int) -> str:
    return f"{start + 1 if count else start},{count}" if count != 1 else f"{start + 1}"


def _line(mark: str, line: bytes) -> str:
    if not line.endswith(b"\n"):
        return f"{mark}{_shown(line)}\n\\ No newline at end of file"
    return mark + _shown(line[:-1])


def _shown(line: bytes) -> str:
    return "\t".join(shown(piece) for piece in line.decode("utf-8", "backslashreplace").split("\t"))
