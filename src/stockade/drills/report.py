"""What people see of a drill: the table, the summary, JSON, and one self-contained HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

from stockade.drills.runner import Row, Verdict, status

MEANING: dict[Verdict, str] = {
    "contained": "the attack works on the bare machine, fails in the sandbox, and honest work goes on",
    "GOT OUT": "the attack worked in the sandbox too",
    "broken": "the sandbox did not run the attack at all, so nothing is proved",
    "no control": "the attack does not work even on the bare machine, so nothing is proved",
    "twin failed": "the attack is contained, but so is the honest work",
}


def _fraction(pair: tuple[int, int]) -> str:
    return f"{pair[0]}/{pair[1]}" if pair[1] else "-"


def cells(row: Row) -> tuple[str, ...]:
    """One line of the table: attack, rows, layer, control, contained, twin, verdict."""
    return (
        row.scenario.name,
        " ".join(row.scenario.rows),
        row.scenario.layer,
        _fraction(row.count(lambda run: run.control)),
        _fraction(row.count(lambda run: run.contained and not run.broken)),
        _fraction(row.count(lambda run: run.twin)),
        row.verdict,
    )


HEADINGS = ("attack", "rows", "layer that holds", "loose", "contained", "twin", "verdict")


def table(rows: Sequence[Row], *, colour: bool) -> str:
    """The table as text; `colour` for a terminal."""
    lines = [HEADINGS, *map(cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    text = []
    for number, line in enumerate(lines):
        shown = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        if colour and number:
            tint = {"contained": "32", "GOT OUT": "1;31"}.get(line[-1], "33")
            shown = f"{shown[: len(shown) - len(line[-1])]}\x1b[{tint}m{line[-1]}\x1b[0m"
        elif colour:
            shown = f"\x1b[1m{shown}\x1b[0m"
        text.append(shown)
        if number:
            row = rows[number - 1]
            notes = sorted({run.note for run in row.runs if run.note})
            text += [f"    {note}" for note in notes[:3]]
    return "\n".join(text)


def summary(rows: Sequence[Row], subject: str) -> str:
    """The result in one or two sentences."""
    count = {verdict: sum(row.verdict == verdict for row in rows) for verdict in MEANING}
    runs = sum(len(row.runs) for row in rows)
    if status(rows) == 0:
        return (
            f"All {len(rows)} attacks contained in {runs} runs by {subject}; each one worked on the bare machine, and honest work went on."
        )
    parts = [f"{number} {verdict}" for verdict, number in count.items() if number]
    meanings = "".join(f"\n  {verdict}: {MEANING[verdict]}" for verdict, number in count.items() if number and verdict != "contained")
    return f"{len(rows)} attacks in {runs} runs against {subject}: {', '.join(parts)}.{meanings}"


def plain(rows: Sequence[Row], subject: str, agent: str) -> dict[str, Any]:
    """The whole result, ready for JSON."""
    return {
        "subject": subject,
        "agent": agent,
        "status": status(rows),
        "contained": all(row.verdict != "GOT OUT" for row in rows),
        "scenarios": [row.plain() for row in rows],
    }


_STYLE = """
:root { color-scheme: light dark; --bad: #c62828; --odd: #9a6700; --good: #1a7f37; --line: #8884; }
@media (prefers-color-scheme: dark) { :root { --bad: #ff7b72; --odd: #e3b341; --good: #56d364; } }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.4rem; } .sum { font-size: 1.1rem; } details { border-top: 1px solid var(--line); padding: .6rem 0; }
summary { cursor: pointer; display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; }
summary b { flex: 1 1 12rem; } summary span { font-size: .9rem; opacity: .85; } .v { font-weight: 600; opacity: 1 !important; }
.good { color: var(--good); } .bad { color: var(--bad); } .odd { color: var(--odd); }
pre { overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; border-left: 3px solid var(--line); padding-left: .8rem; font-size: .8rem; }
"""


def page(rows: Sequence[Row], subject: str, agent: str) -> str:
    """The report as one HTML file that loads nothing."""
    parts = []
    for row in rows:
        name, promises, layer, control, contained, twin, verdict = map(html.escape, cells(row))
        tone = {"contained": "good", "GOT OUT": "bad"}.get(row.verdict, "odd")
        notes = "".join(f"<p class={tone}>{html.escape(note)}</p>" for note in sorted({run.note for run in row.runs if run.note}))
        shown = row.scenario.attack[: max(1, len(row.runs))]
        attacks = "".join(f"<pre>{html.escape(attack)}</pre>" for attack in dict.fromkeys(shown))
        parts.append(
            f"<details{' open' if tone == 'bad' else ''}><summary><b>{name}</b><span>{promises}</span><span>{layer}</span>"
            f"<span>loose {control} · contained {contained} · twin {twin}</span><span class='v {tone}'>{verdict}</span></summary>"
            f"<p>{html.escape(row.scenario.about)}.</p>{notes}{attacks}</details>"
        )
    tone = {0: "good", 1: "bad"}.get(status(rows), "odd")
    legend = "".join(f"<li><b>{html.escape(verdict)}</b>: {html.escape(text)}</li>" for verdict, text in MEANING.items())
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
        f"<title>stockade drill</title><style>{_STYLE}</style><h1>stockade drill</h1>"
        f"<p class='sum {tone}'>{html.escape(summary(rows, subject)).replace(chr(10), '<br>')}</p><p>Agent: {html.escape(agent)}. "
        "Loose: on the bare machine, where the attack must work. Contained: in the sandbox. Twin: honest work of the same kind in the same sandbox.</p>"
        f"{''.join(parts)}<h2>Verdicts</h2><ul>{legend}</ul></html>\n"
    )


def dumps(rows: Sequence[Row], subject: str, agent: str) -> str:
    return json.dumps(plain(rows, subject, agent), indent=2)
