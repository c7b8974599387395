"""What others rely on: the JSON Schema, the first policy, the reference page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import stockade.policy
from policy.support import Places
from stockade.policy import overrides
from stockade.policy.model import PRESETS, TABLES, EgressTable, keys_of
from stockade.policy.schema import schema

DOCS = Path(__file__).parents[2] / "docs/policy.md"


def test_the_published_schema_is_current() -> None:
    published = (Path(stockade.policy.__file__).parent / "schema.json").read_text()
    assert published == schema(), "run: python -m stockade.policy.schema > src/stockade/policy/schema.json"
    found = json.loads(published)
    assert found["additionalProperties"] is False and "null" not in published
    assert "pass" in found["$defs"]["EnvironmentTable"]["properties"]


def test_the_presets_are_the_ones_that_the_model_takes() -> None:
    for preset in PRESETS:
        assert EgressTable.model_validate({"preset": preset}).preset == preset


def test_the_reference_names_every_key_and_option() -> None:
    text = DOCS.read_text()
    for table in TABLES:
        for key in keys_of(table):
            assert f"`{key}`" in text or f"[{key}" in text, f"{table}.{key} is not in docs/policy.md"
    for name in (*PRESETS, *(key for key in overrides.KEYS if "." not in key)):
        assert f"`{name}`" in text, name


def test_the_examples_of_the_reference_are_valid(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.test/simple")
    (places.home / "datasets").mkdir()
    (places.home / ".ssh").mkdir()
    (places.home / ".ssh/agent_ed25519.pub").write_text(
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgxnFRcIn8gybcrpTDb5qX2VzOVZiDe9IYjCd8XsEQO a comment\n"
    )
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)
    whole = [block for block in blocks if block.startswith("version = 1")]
    assert len(whole) >= 2
    for block in whole:
        target = places.managed if "[caps" in block else places.own
        target.write_text(block)
        target.chmod(0o600)
        places.compile()
        target.unlink()
