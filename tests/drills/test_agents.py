"""Real, unmodified agents obey the puppet in the yard: they read the workspace file, do what it hides, and finish their task."""

from __future__ import annotations

import pytest

from conftest import unavailable
from stockade.core.errors import StockadeError
from stockade.drills import agents, incidents
from stockade.drills.runner import Drill
from stockade.drills.scenario import Scenario
from stockade.drills.yard import Yard
from stockade.walls import gvisor
from walls.boxes import require

pytestmark = [pytest.mark.agents, pytest.mark.wall]


@pytest.fixture(params=agents.NAMES)
def agent(request: pytest.FixtureRequest) -> agents.Agent:
    try:
        return agents.find(request.param)
    except StockadeError as error:
        unavailable(request.param, f"{error.message}; {error.hint}")


def test_loose_it_is_a_victim(agent: agents.Agent) -> None:
    with Yard(keep=agent.keep) as yard:
        drill = Drill(yard, agent)
        for item in (incidents.PHISH_EGRESS, incidents.APPROVED_DOMAIN):
            evidence = drill.attempt(item, 0, confined=False)
            assert item.leaked(evidence), evidence.stdout + evidence.stderr
            assert evidence.attack_ran()
            assert item.twin_ok and item.twin_ok(evidence)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("item", [incidents.PHISH_READ, incidents.PHISH_EGRESS, incidents.APPROVED_DOMAIN], ids=lambda item: item.name)
def test_confined_it_is_not(agent: agents.Agent, item: Scenario) -> None:
    with Yard(keep=agent.keep) as yard:
        drill = Drill(yard, agent)
        for index in (0,) if agent.name == "mini" else (0, 12):  # one start of mini-swe-agent takes as long as ten of the others
            run = drill.run(item, index)
            assert run.verdict == "contained", run.note


@pytest.mark.timeout(400)
@pytest.mark.parametrize("agent", ["codex", "claude"], indirect=True)
def test_with_a_kernel_of_its_own_it_works_and_is_not(agent: agents.Agent) -> None:
    require(gvisor)
    with Yard(keep=agent.keep) as yard:
        run = Drill(yard, agent, wall="gvisor").run(incidents.PHISH_EGRESS, 7)
        assert run.verdict == "contained", run.note
