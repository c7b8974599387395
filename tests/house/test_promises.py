"""docs/promises.md: every promise has its row, and a row that is kept names tests that exist and can run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from house.tree import ROOT, text

ROW = re.compile(r"^\| ([MB]\d+) \| (.+?) \| (.+?) \|$", re.MULTILINE)
NAMED = re.compile(r"`([a-z_/]+\.py)::(\w+)`")
WANTED = [f"M{number}" for number in range(1, 39)] + [f"B{number}" for number in range(1, 17)]


def rows(page: str) -> list[tuple[str, str, str]]:
    return ROW.findall(page)


def functions(path: Path) -> set[str]:
    """Names of the test functions of a file, those in classes too."""
    nodes = ast.walk(ast.parse(text(path)))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")}


def wrong(proof: str) -> list[str]:
    """What is wrong with the last cell of a row: neither "not yet" nor tests that exist."""
    if proof == "not yet":
        return []
    named = NAMED.findall(proof)
    if not named:
        return [f"names no test: {proof}"]
    return [f"{file}::{name}" for file, name in named if not (path := ROOT / "tests" / file).exists() or name not in functions(path)]


def test_every_promise_has_one_row() -> None:
    assert [number for number, _, _ in rows(text(ROOT / "docs/promises.md"))] == WANTED


def test_what_is_kept_names_tests_that_exist() -> None:
    bad = {number: found for number, _, proof in rows(text(ROOT / "docs/promises.md")) if (found := wrong(proof))}
    assert not bad


def test_a_row_that_names_nothing_real_is_found() -> None:
    assert wrong("surely") and wrong("`house/test_promises.py::test_that_is_missing`") and wrong("`house/missing.py::test_x`")
    assert not wrong("`house/test_promises.py::test_every_promise_has_one_row`")
