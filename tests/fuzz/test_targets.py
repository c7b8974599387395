"""Each fuzz target on what is kept, on what hypothesis makes up, and on a product with a fault in it. For longer, and guided by coverage: scripts/fuzz."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fuzz.harness import TARGETS, inputs, load
from house.tree import ROOT, text

KEPT = [pytest.param(name, data, id=f"{name}-{why}") for name in TARGETS for why, data in load(name).KEPT.items()]


@pytest.mark.parametrize(("name", "data"), KEPT)
def test_what_is_kept(name: str, data: bytes) -> None:
    load(name).one(data)


@pytest.mark.parametrize("name", TARGETS)
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_whatever_comes(name: str, data: st.DataObject) -> None:
    target = load(name)
    target.one(data.draw(inputs(target)))


@pytest.mark.parametrize("name", TARGETS)
def test_a_planted_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target = load(name)
    monkeypatch.setattr(*target.FAULT)
    failed = 0
    for data in target.KEPT.values():
        try:
            target.one(data)
        except Exception:
            failed += 1
    assert failed


@pytest.mark.parametrize("name", TARGETS)
def test_each_opens_with_its_invariant(name: str) -> None:
    assert (ast.get_docstring(ast.parse(text(ROOT / f"tests/fuzz/{name}.py"))) or "").startswith("INVARIANT: ")


def test_an_unknown_target_is_answered_with_the_known_ones() -> None:
    done = subprocess.run([sys.executable, "-m", "fuzz.run", "nothing"], cwd=ROOT / "tests", capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and all(name in done.stderr for name in TARGETS)
