"""Each check of the conformance suite fails on a wall that leaks just there. It is the suite that is tried here, whoever runs it."""

from __future__ import annotations

import re

import pytest

from stockade.walls.conformance import CHECKS
from walls import boxes, leaky
from walls.test_conformance import outcomes, own_places  # noqa: F401 - a fixture that every test uses

SHORT = 3.0  # seconds that a command may take on a wall that leaks: some wait for what never comes


@pytest.mark.wall
@pytest.mark.parametrize("leak", leaky.LEAKS, ids=lambda leak: leak.name)
def test_a_leak_fails_the_checks_that_are_about_it_and_no_others(leak: leaky.Leak) -> None:
    boxes.require()
    if leak.by_root is not None and (why := leaky.refused(leak.by_root)):
        pytest.skip(why)
    try:
        found = outcomes(leaky.Leaky(leak), *leak.fails, *leak.passes, patience=SHORT)
    finally:
        leaky.clean()
    assert {*found} == {*leak.fails, *leak.passes}
    skipped = {name for name, outcome in found.items() if outcome.status == "skip"}
    assert all(found[name].declared for name in skipped), found
    failed = {name: outcome.reason for name, outcome in found.items() if outcome.status == "fail"}
    assert {*failed} == {*leak.fails} - skipped, failed
    # By what the check has seen, and not because the wall or the check broke down.
    assert not [reason for reason in failed.values() if re.match(r"\w+(Failed|Enforce|Error)\b", reason)], failed
    if not failed:
        pytest.skip("; ".join(found[name].reason for name in skipped))


def test_every_check_is_failed_by_a_leak() -> None:
    assert {name for leak in leaky.LEAKS for name in leak.fails} == {*CHECKS}
