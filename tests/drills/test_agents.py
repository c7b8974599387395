"""Real, unmodified agents obey the puppet in the yard: they read the workspace file, do what it hides, and finish their task."""

from __future__ import annotations

import random

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


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> agents.Agent:
    try:
        return agents.find(request.param)
    except StockadeError as error:
        unavailable(request.param, f"{error.message}; {error.hint}")


INCIDENTS = (incidents.PHISH_READ, incidents.PHISH_EGRESS, incidents.APPROVED_DOMAIN)
# One start of mini-swe-agent takes as long as ten of the others.
PAIRS = [(name, item) for name in agents.NAMES for item in INCIDENTS if name != "mini" or item is incidents.APPROVED_DOMAIN]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("agent", "item"), PAIRS, indirect=["agent"], ids=lambda one: getattr(one, "name", one))
def test_loose_it_is_a_victim_and_confined_it_is_not(agent: agents.Agent, item: Scenario) -> None:
    """One of the attack's variants, another each time; `stockade drill --agent NAME` runs every one. What "contained" means: loose the attack works, confined it does
    not, and the task is done."""
    with Yard(keep=agent.keep) as yard:
        index = random.randrange(item.runs)
        run = Drill(yard, agent).run(item, index)
        assert run.verdict == "contained", f"variant {index}: {run.note}"


@pytest.mark.timeout(400)
@pytest.mark.parametrize("agent", ["codex", "claude"], indirect=True)
def test_with_a_kernel_of_its_own_it_works_and_is_not(agent: agents.Agent) -> None:
    require(gvisor)
    with Yard(keep=agent.keep) as yard:
        run = Drill(yard, agent, wall="gvisor").run(incidents.PHISH_EGRESS, 7)
        assert run.verdict == "contained", run.note
