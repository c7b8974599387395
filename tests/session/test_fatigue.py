"""The same work with a question for everything and under stockade (bench/fatigue.py), and that the comparison can fail."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from random import Random
from typing import Any

import pytest

from gateway.harness import require_engine
from house.tree import ROOT
from walls.boxes import require

BENCH = ROOT / "bench/fatigue.py"


@pytest.fixture
def fatigue() -> Any:
    """The bench as a module of its own for each test."""
    spec = importlib.util.spec_from_file_location("fatigue_under_test", BENCH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wall() -> None:
    require()
    require_engine()


@pytest.mark.wall
def test_the_same_work_with_far_fewer_questions(wall: None) -> None:
    done = subprocess.run([sys.executable, str(BENCH), "--json"], capture_output=True, text=True, timeout=110)
    found = json.loads(done.stdout)
    assert (done.returncode, found["ok"], found["same_work"], found["missing"], found["unwanted"]) == (0, True, True, [], []), done.stderr
    assert (found["steps"], found["everything"], found["stockade"]) == (50, 45, 3) and found["cut"] >= 0.84


@pytest.mark.wall
def test_work_that_the_policy_stops_is_not_the_same(wall: None, fatigue: Any) -> None:
    fatigue.ASKED = fatigue.ASKED[:1]
    found = fatigue.replay()
    assert not found["ok"] and not found["same_work"] and [step[0] for step in found["missing"]] == ["send"]


@pytest.mark.wall
def test_what_the_policy_lets_happen_unwanted_is_noticed(wall: None, fatigue: Any) -> None:
    fatigue.GRANTED += (f'host = "{fatigue.STATISTICS}"\nmethods = ["POST"]\npaths = ["/**"]\n',)
    found = fatigue.replay()
    assert not found["ok"] and found["unwanted"] == [("POST", fatigue.STATISTICS, "/v1/events")]


def test_an_approver_lets_through_what_a_policy_never_grants(fatigue: Any) -> None:
    """Made-up requests only: the drill's attacks are run by tests of their own (drills/test_drill.py)."""
    fatigue.bad_attacks = lambda runs: {"tried": 20, "got_out": 0, "attacks": 1}
    found = fatigue.approver(0.93, 1, 400, 5)
    alone = found["requests"]["approvals_alone"]
    assert found["ok"] and found["requests"]["got_out"] == found["requests"]["asked"] == 0 and alone["low"] < 0.93 < alone["high"]
    assert fatigue.approver(0.0, 1, 400, 5)["requests"]["approvals_alone"]["part"] == 0
    fatigue.bad_attacks = lambda runs: {"tried": 20, "got_out": 1, "attacks": 1}
    assert not fatigue.approver(0.93, 1, 400, 5)["ok"]


def test_a_policy_that_grants_what_must_be_refused_is_noticed(fatigue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stockade.checks import lures
    from stockade.core.values import Grant

    careless = [Grant("api.examp1e.com", paths=("/**",), methods=("*",), max_upload=1 << 40)]
    monkeypatch.setattr(lures, "lure", lambda *_: lures.Lure("api.examp1e.com", 443, "https", "POST", "/v1/x", 9, "why"))
    fatigue._grants = lambda: careless
    assert fatigue.bad_requests(3, Random(1))["got_out"] == 3
