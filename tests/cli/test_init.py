"""`stockade init`: a first policy by what is installed, which never takes the place of one that is there."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from policy.support import Places
from stockade.cli import main
from stockade.core import places as core_places
from stockade.policy.first import look, text


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    found = Places(tmp_path, monkeypatch)
    monkeypatch.setattr(core_places, "MANAGED_POLICY", str(tmp_path / "etc/stockade/policy.toml"))
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    (found.root / "bin").mkdir()
    monkeypatch.setenv("PATH", str(found.root / "bin"))
    monkeypatch.setattr("stockade.policy.clients.pip", lambda watch: [])
    monkeypatch.setattr("stockade.policy.clients.npm", lambda watch, cwd: [])
    return found


def install(places: Places, name: str) -> None:
    (places.root / "bin" / name).write_text("#!/bin/sh\ntouch ran\n")
    (places.root / "bin" / name).chmod(0o755)


def rules(places: Places, content: str) -> set[str]:
    """The presets of a policy's rules."""
    places.own.write_text(content)
    places.own.chmod(0o600)
    found = places.compile()
    assert not found.warnings
    return {grant.origin.preset for grant in found.policy.grants}


def test_it_writes_once_and_shows_what(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    said = capsys.readouterr()
    assert said.out == places.own.read_text() and f"wrote {places.own}" in said.err
    assert places.own.stat().st_mode & 0o777 == 0o600
    places.own.write_text("mine")
    assert main(["init"]) == 125 and places.own.read_text() == "mine"
    assert "exists already" in capsys.readouterr().err
    assert main(["init", "--print"]) == 0 and "version = 1" in capsys.readouterr().out


def test_it_follows_no_link(places: Places) -> None:
    places.own.symlink_to(places.root / "elsewhere")
    assert main(["init"]) == 125 and not (places.root / "elsewhere").exists()


def test_where_nothing_is_installed_it_changes_nothing(places: Places) -> None:
    before = places.compile().policy
    written = text(look(str(places.work)))
    assert rules(places, written) == set()
    assert places.compile().policy.limits == before.limits
    assert "No agent that stockade knows" in written


def test_it_names_the_agents_that_are_here_and_runs_none(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("claude", "codex"):
        install(places, name)
    monkeypatch.setenv("OPENAI_API_KEY", "a-secret-of-mine")
    assert main(["init", "--json"]) == 0
    said = capsys.readouterr().out
    found = json.loads(said)
    assert [(one["name"], one["ready"]) for one in found["agents"]] == [("claude", False), ("codex", True)]
    assert found["file"] == str(places.own) and found["text"] == places.own.read_text()
    assert "`stockade run claude`" in found["text"] and "gemini" not in found["text"]
    assert "a-secret-of-mine" not in said and not (places.work / "ran").exists()
    assert places.compile().policy.grants == ()  # an agent brings its own rules: nobody else gets them


def test_rules_for_the_indexes_that_clients_are_configured_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = Places(tmp_path, monkeypatch)
    monkeypatch.setattr(core_places, "MANAGED_POLICY", str(tmp_path / "etc/stockade/policy.toml"))
    monkeypatch.setenv("PIP_INDEX_URL", "https://someone:word@mirror.test/simple")
    (places.home / ".npmrc").write_text("registry=https://npm.mirror.test/\n")
    (places.work / ".npmrc").write_text("registry=https://evil.test/\n")  # a project's: does not count
    assert main(["init"]) == 0
    said = capsys.readouterr().out
    assert "mirror.test" in said and "npm.mirror.test" in said and "evil.test" not in said and "word" not in said.replace("password", "")
    grants = places.compile().policy.grants
    assert {grant.origin.preset for grant in grants} == {"pypi", "npm"} and {grant.host for grant in grants} == {
        "mirror.test",
        "npm.mirror.test",
    }
    assert all(grant.methods == ("GET", "HEAD") and grant.max_upload == 0 for grant in grants)


def test_every_example_in_it_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = Places(tmp_path, monkeypatch)
    (places.home / "datasets").mkdir()
    (places.root / "bin").mkdir()
    (places.home / ".npmrc").write_text("registry=https://npm.mirror.test/\n")
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.test/simple")
    monkeypatch.setenv("PATH", str(places.root / "bin"))
    for name in ("claude", "codex", "gemini"):
        install(places, name)
    lines = [re.sub(r"^# ?(?=\[|[a-z_]+ = )", "", line) for line in text(look(str(places.work))).splitlines()]
    places.own.write_text("\n".join(line for line in lines if not line.startswith("#")))
    places.own.chmod(0o600)
    for name, model in (("claude", "anthropic"), ("codex", "openai"), ("gemini", "gemini")):
        policy = places.compile(("agent", name)).policy
        assert {grant.origin.preset for grant in policy.grants} == {model, "pypi", "npm", ""}
        assert {one.name: one.source for one in policy.credentials}[model] == f"keyring:{model}/me"
