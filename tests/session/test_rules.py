"""A rule that is written into the user's policy: whole or not at all."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from stockade.core.errors import StockadeError
from stockade.session import rules
from stockade.session.rules import Change


def test_a_rule_that_does_not_fit_on_the_disk_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\n")
    policy.chmod(0o600)
    change = Change(str(policy), "version = 1\n", "version = 1\n" + "# more\n" * 2000, ())
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(StockadeError) as caught:
            rules.write(change)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.code == "policy.unwritable"
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"policy.toml": "version = 1\n"}
    rules.write(change)
    assert policy.read_text() == change.after and len(list(tmp_path.iterdir())) == 1
