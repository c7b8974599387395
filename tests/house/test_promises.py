"""docs/promises.md: every promise has its row, and a row that is kept names tests that exist and can run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from house.tree import ROOT, text
from stockade.drills.runner import SCENARIOS

ROW = re.compile(r"^\| ([MB]\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
NAMED = re.compile(r"`([a-z_/]+\.py)::(\w+)`")
DRILL = re.compile(r"`drill:([a-z0-9-]+)`")
WANTED = [f"M{number}" for number in range(1, 39)] + [f"B{number}" for number in range(1, 17)]


def rows(page: str) -> list[tuple[str, str, str]]:
    return ROW.findall(page)


def functions(path: Path) -> set[str]:
    """Names of the test functions of a file, those in classes too."""
    nodes = ast.walk(ast.parse(text(path)))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")}


def wrong(proof: str) -> list[str]:
    """What is wrong with the last cell of a row: neither "not yet" nor tests and drills that exist."""
    if proof == "not yet":
        return []
    named, drilled = NAMED.findall(proof), DRILL.findall(proof)
    if not named and not drilled:
        return [f"names no test: {proof}"]
    known = {item.name for item in SCENARIOS}
    return [f"drill:{name}" for name in drilled if name not in known] + [
        f"{file}::{name}" for file, name in named if not (path := ROOT / "tests" / file).exists() or name not in functions(path)
    ]


def test_every_promise_has_one_row() -> None:
    assert [number for number, _, _ in rows(text(ROOT / "docs/promises.md"))] == WANTED


def test_what_is_kept_names_tests_that_exist() -> None:
    bad = {number: found for number, _, proof in rows(text(ROOT / "docs/promises.md")) if (found := wrong(proof))}
    assert not bad


def test_a_row_that_names_nothing_real_is_found() -> None:
    assert wrong("surely") and wrong("`house/test_promises.py::test_that_is_missing`") and wrong("`house/missing.py::test_x`")
    assert wrong("`drill:never-heard-of`")
    assert not wrong("`house/test_promises.py::test_every_promise_has_one_row` `drill:tcp`")


def test_a_row_names_every_drill_that_is_about_it() -> None:
    named = {number: set(DRILL.findall(proof)) for number, _, proof in rows(text(ROOT / "docs/promises.md"))}
    missing = {item.name: row for item in SCENARIOS for row in item.rows if named[row] and item.name not in named[row]}
    assert not missing
