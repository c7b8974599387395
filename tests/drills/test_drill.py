"""Every attack, three ways, against `stockade run`: the proof behind docs/promises.md."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import unavailable
from stockade.cli import drill as command
from stockade.core.errors import StockadeError, WallFailed
from stockade.drills import agents
from stockade.drills.runner import SCENARIOS, Drill
from stockade.drills.scenario import Scenario
from stockade.drills.yard import Yard
from stockade.walls import gvisor
from stockade.walls.vm import wall as vm
from walls.boxes import require


@pytest.fixture(scope="module", params=["root" if os.geteuid() == 0 else "user"])
def drill(request: pytest.FixtureRequest) -> Iterator[Drill]:
    """As the yard's root where we are root, else as an ordinary user of its machine. (`make test` runs both, by running as both.)"""
    agent = agents.find("scripted")
    try:
        with Yard(keep=agent.keep) as yard:
            yield Drill(yard, agent, root=request.param == "root")
    except WallFailed as error:
        unavailable("yard", error.message)


def chosen() -> list[Scenario]:
    """All where we are no root; as root those that need it and every third of the others, drawn anew each time."""
    drawn = SCENARIOS if os.geteuid() else SCENARIOS[random.randrange(3) :: 3]
    return [item for item in SCENARIOS if item.root or item in drawn]


@pytest.mark.wall
@pytest.mark.timeout(600)
@pytest.mark.parametrize("item", chosen(), ids=lambda item: item.name)
def test_contained(drill: Drill, item: Scenario) -> None:
    """The attack works loose, fails confined, and the twin works. `stockade drill` and `stockade drill --as-root` run every variant of every one."""
    run = drill.run(item)
    assert run.verdict == "contained", run.note


# What a wall holds by itself rather than the gate behind it. All of the corpus on this wall: `stockade drill --wall gvisor`.
GUEST = (
    "phish-read-rule phish-egress-rule approved-domain tcp udp ipv6 icmp raw-socket abstract-socket unix-socket dns-exfil root-inside sensitive-reads "
    "system-writes-as-root symlink-mount-swap mount-ro workspace-no-delete only-declared host-processes inherited-descriptor environment keyring hard-link "
    "silent-loss left-behind git-hooks git-commondir user-namespace dangerous-syscalls fork-bomb memory-hog disk-fill signing-agent after-a-secret-file "
    "runs-later"
).split()


@pytest.mark.wall
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", random.sample(GUEST, len(GUEST) // 2 if os.geteuid() else 5))
def test_contained_with_a_kernel_of_its_own(drill: Drill, name: str) -> None:
    """Half of them where we are not root, where everything has to work without it, drawn anew each time; inside it is root in any case."""
    require(gvisor)
    guests = Drill(drill.yard, drill.agent, root=drill.root, wall="gvisor")
    run = guests.run(next(item for item in SCENARIOS if item.name == name))
    assert run.verdict == "contained", run.note


@pytest.mark.wall
@pytest.mark.timeout(600)
def test_the_agent_that_signs_is_drilled_in_a_machine_too() -> None:
    """What a machine has a way of its own for. All of the corpus there: `stockade drill --wall vm`."""
    require(vm)
    agent = agents.find("scripted")
    with Yard(keep=agent.keep, machines=True) as yard:
        run = Drill(yard, agent, wall="vm").run(next(item for item in SCENARIOS if item.name == "signing-agent"))
    assert run.verdict == "contained", run.note


@pytest.mark.wall
def test_a_sandbox_that_holds_nothing_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The drill itself can fail: with `env` for a sandbox everything gets out."""
    page = tmp_path / "report.html"
    status = command.main(["--only", "sensitive-reads", "--only", "tcp", "--runs", "1", "--under", "env", "--json", "--html", str(page)])
    result = json.loads(capsys.readouterr().out)
    assert (status, result["contained"]) == (1, False)
    assert {item["verdict"] for item in result["scenarios"]} == {"GOT OUT"}
    assert "GOT OUT" in page.read_text()


@pytest.mark.wall
def test_a_sandbox_that_runs_nothing_proves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "sensitive-reads", "--runs", "1", "--under", "false"]) == 3
    assert "broken" in capsys.readouterr().out


def test_listing_and_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert command.main(["--list", "--only", "M11"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["phish-read-rule", "phish-egress-rule"]
    assert command.main(["--list", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == len(SCENARIOS)
    for words, code in (
        (["--only", "nothing"], "drill.unknown"),
        (["--runs", "0"], "cli.usage"),
        (["--html", f"{tmp_path}/no/where"], "drill.report"),
    ):
        with pytest.raises(StockadeError) as caught:
            command.main(words)
        assert caught.value.code == code
