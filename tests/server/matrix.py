"""The table of what is asked, where, and what becomes of it: every cell is run (test_matrix.py) or excused here with a reason. Pure.

`python tests/server/matrix.py` prints docs/approvals-matrix.md.
"""

from __future__ import annotations

import itertools
import random
from typing import NamedTuple

# A new type of request is a line here and an entry in matrix_requests.py.
REQUESTS = {
    "https": "HTTPS with a body",
    "http": "plain HTTP",
    "star": 'a host that no rule names (`host = "*"`)',
    "websocket": "a WebSocket",
    "grpc": "a gRPC call",
    "tcp": "raw TCP",
    "tool": "an agent's call of a tool, by its hook",
    "file": "a change to a file that is held read-only: what has happened is what the file holds",
    "mount": "a folder that is shown only when it was asked for: what has happened is what is seen inside",
}
CHANNELS = {
    "terminal": "the lines in the terminal, in a real PTY",
    "inbox": "the full screen, in a real PTY",
    "page": "the page, in Chromium",
    "command": "`stockade approvals allow` and `deny`",
    "program": "a program's `approver`",
    "rules": "an automatic reviewer's rules",
    "model": "an automatic reviewer's model (scripted)",
}
OUTCOMES = {
    "once": "allowed once: it happens, whole, and the same again is asked again (a folder that is there already: refused)",
    "session": "allowed for the session: the same again needs nobody, something else does, and it can be taken back",
    "refused": "refused",
    "expired": "nobody answers in time",
    "vanished": "the channel is killed while it is asked",
    "garbage": "the channel answers what is no answer, or its code fails",
    "contradicted": "another channel says the opposite in the same moment",
    "left": "the client gives up before the answer",
    "stale": "the answer is about an earlier question",
    "killed": "the session is killed between the last receipt, of the answer or of what it lets be done, and its effect",
}

ANY = "*"
FOR_PEOPLE = "only people approve it, so no reviewer is asked (test_no_reviewer_is_asked_about_it_and_nobody_for_longer_than_once)"
# (request, channel, outcome, why there is no such cell). The first that fits counts.
EXCUSED = (
    ("file", "rules", ANY, FOR_PEOPLE),
    ("file", "model", ANY, FOR_PEOPLE),
    ("mount", "rules", ANY, FOR_PEOPLE),
    ("mount", "model", ANY, FOR_PEOPLE),
    ("file", ANY, "session", "an approval is for one content, once: a yes for the session is refused (the same test)"),
    ("mount", ANY, "session", "once shown, it is there until the session ends: a yes for the session is refused (the same test)"),
    (ANY, "rules", "session", "a reviewer approves nothing for longer than once: its rules have no word for it"),
    (ANY, "model", "session", "a reviewer approves nothing for longer than once: a model's form has no word for it"),
    (ANY, "rules", "expired", "what its rules leave undecided is asked elsewhere, and is those cells"),
    (ANY, "rules", "vanished", "rules are no process: they are gone only when the session is"),
    (ANY, "rules", "garbage", "rules say one of three words (property tests in tests/checks/test_reviewing.py)"),
    (ANY, "rules", "contradicted", "rules have answered before anybody else is shown the question"),
    (ANY, "rules", "left", "rules have answered before the client can leave"),
    (ANY, "rules", "stale", "rules see one question and answer it at once"),
)


class Cell(NamedTuple):
    """One combination, by the names above."""

    request: str
    channel: str
    outcome: str

    @property
    def excuse(self) -> str:
        """Why it cannot exist, "" if it is run."""
        fits = (why for *names, why in EXCUSED if all(name in (ANY, own) for name, own in zip(names, self, strict=True)))
        return next(fits, "")

    def __str__(self) -> str:
        return "-".join(self)


def product() -> list[Cell]:
    """All cells, excused ones too."""
    return [Cell(*names) for names in itertools.product(REQUESTS, CHANNELS, OUTCOMES)]


def cells() -> list[Cell]:
    """Every cell that can exist."""
    return [cell for cell in product() if not cell.excuse]


def pairs(cell: Cell) -> set[tuple[str, str]]:
    """The pairs of values of different axes that it covers."""
    return set(itertools.combinations(cell, 2))


def selection(seed: int) -> list[Cell]:
    """Few cells, pseudo-random by `seed`, that cover every pair of values that any cell covers: each next one covers the most of what is left."""
    left = cells()
    random.Random(seed).shuffle(left)
    wanted = set().union(*map(pairs, left))
    chosen = []
    while wanted:
        best = max(left, key=lambda cell: len(pairs(cell) & wanted))
        chosen.append(best)
        left.remove(best)
        wanted -= pairs(best)
    return chosen


def document() -> str:
    """docs/approvals-matrix.md."""
    whys = list(dict.fromkeys(why for *_, why in EXCUSED))
    lines = [
        "# What is asked, where, and what becomes of it",
        "",
        "Made by `python tests/server/matrix.py > docs/approvals-matrix.md` from the table that the tests run by, and checked to be current. Each cell stands for a test from end to end: a",
        "program in a sandbox, the gate, a server outside and the channel are real. Every one of them compares, byte by byte, what has happened with what was approved, and with the",
        "ledger: an effect only after an `answer` that allows, whose question has that very digest; never wider, never twice; and a refusal names its rule.",
        "",
        "By default a part is run that covers every pair of two values, other cells each time; `STOCKADE_MATRIX=full` runs all, `STOCKADE_MATRIX=SEED` one part again:",
        "`STOCKADE_MATRIX=full .venv/bin/python -m pytest tests/server/test_matrix.py`.",
        "",
        "What is asked:",
        "",
        *(f"- `{name}`: {text}" for name, text in REQUESTS.items()),
        "",
        "What becomes of it, by where it is asked. `all`: with each of these requests; a number: there is no such cell, or none with that request, for that reason.",
        "",
        "| | " + " | ".join(f"`{name}`" for name in CHANNELS) + " |",
        "|---" * (len(CHANNELS) + 1) + "|",
    ]
    for outcome, text in OUTCOMES.items():
        row = [f"`{outcome}`: {text}"]
        for channel in CHANNELS:
            excused = [cell for cell in (Cell(request, channel, outcome) for request in REQUESTS) if cell.excuse]
            marks = {cell: whys.index(cell.excuse) + 1 for cell in excused}
            but = ", ".join(f"`{cell.request}` {mark}" for cell, mark in marks.items())
            none = " ".join(str(mark) for mark in sorted(set(marks.values())))
            row.append(none if len(excused) == len(REQUESTS) else f"all but {but}" if but else "all")
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "Where it is asked:", "", *(f"- `{name}`: {text}" for name, text in CHANNELS.items())]
    lines += ["", "Why some cells cannot exist:", "", *(f"{number}. {why}" for number, why in enumerate(whys, 1)), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(document(), end="")
