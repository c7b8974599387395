"""What an agent adds to a policy: a layer below all others, found on this machine, and never a file of the user's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from policy.support import Places
from stockade.cli.run import AGENTS
from stockade.core.errors import PolicyError, StockadeError
from stockade.core.values import ALLOW, DENY
from stockade.policy import agents
from stockade.policy.files import Watch

KEYS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "CLAUDE_CODE_OAUTH_TOKEN")


@pytest.fixture
def bin(places: Places, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH, with nothing in it."""
    folder = places.root / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    return folder


def program(path: Path, first: str = "#!/bin/sh") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{first}\n")
    path.chmod(0o755)
    return path


def test_the_command_line_knows_the_same_names() -> None:
    assert AGENTS == agents.NAMES


@pytest.mark.parametrize("name", [one.name for one in agents.KNOWN])
def test_each_is_a_layer_that_says_where_its_rules_come_from(places: Places, bin: Path, name: str) -> None:
    program(bin / name)
    found = places.compile(("agent", name))
    assert not found.warnings
    assert {str(grant.origin) for grant in found.policy.grants} == {f"agent:{name} (egress[0].preset)"}
    assert all(grant.effect == ALLOW and grant.credential for grant in found.policy.grants)
    agent = found.policy.agent
    assert agent is not None and agent.kept and agent.home.startswith(f"{places.home}/") and str(bin / name) in agent.argv
    described = agents.known(name)
    assert set(described.variables) <= set(found.policy.environment.set_values)
    assert not described.points or dict(found.policy.environment.set_values)[described.points] == agent.home
    assert [mount.mode for mount in found.policy.mounts] == ["ro"]


def test_nobody_else_has_it(places: Places, bin: Path) -> None:
    program(bin / "claude")
    policy = places.compile(("wall", "bubblewrap")).policy
    assert policy.agent is None and not policy.grants and not policy.mounts and not policy.credentials


def test_both_names_of_one_agent(places: Places, bin: Path) -> None:
    program(bin / "mini-swe-agent")
    assert places.compile(("agent", "mini-swe-agent")).policy.agent == agents.layer("mini-swe-agent", [], Watch())[1]


def test_other_layers_values_take_the_place_of_its(places: Places, bin: Path) -> None:
    program(bin / "claude")
    places.write(
        user='[environment]\nset = { DISABLE_TELEMETRY = "0" }\n[[egress]]\nhost = "api.anthropic.com"\npaths = ["/**"]\neffect = "deny"\n'
    )
    policy = places.compile(("agent", "claude")).policy
    assert dict(policy.environment.set_values)["DISABLE_TELEMETRY"] == "0"
    assert {grant.effect for grant in policy.grants} == {ALLOW, DENY}  # a denial beats every allow of any layer


@pytest.mark.parametrize(
    ("caps", "what"),
    [
        ("egress_hosts = ['*.corp.test']", "the host api.anthropic.com"),
        ("mounts = ['{work}']", "the path"),
        ("egress_methods = ['GET']", "the method POST"),
    ],
)
@pytest.mark.parametrize("layer", ["managed", "user"])
def test_caps_of_any_layer_bind_it_and_say_so(places: Places, bin: Path, caps: str, what: str, layer: str) -> None:
    program(bin / "claude")
    places.write(**{layer: f"[caps]\n{caps.format(work=places.work)}\n"})
    with pytest.raises(PolicyError) as caught:
        places.compile(("agent", "claude"))
    assert caught.value.code == "policy.capped" and what in caught.value.message and caught.value.file == "agent:claude"
    assert f"{places.managed if layer == 'managed' else places.own}:3" in caught.value.message


def test_where_nothing_may_be_written_its_state_is_not_kept(places: Places, bin: Path) -> None:
    program(bin / "claude")
    places.write(managed="[caps]\nmodes = ['ro']\n")
    agent = places.compile(("agent", "claude")).policy.agent
    assert agent is not None and not agent.kept


def test_one_that_is_not_installed_is_refused(places: Places, bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(places.work / "claude")
    (bin / "claude").mkdir()
    (bin / "codex").write_text("not executable")
    monkeypatch.setenv("PATH", f".::{bin}")  # what a project brings is not what the user has installed
    for name in ("claude", "codex"):
        with pytest.raises(StockadeError) as caught:
            places.compile(("agent", name))
        assert caught.value.code == "agent.missing" and f"stockade run -- {name}" in caught.value.hint
    with pytest.raises(StockadeError) as caught:
        places.compile(("agent", "clod"))
    assert caught.value.code == "agent.unknown"


def test_what_it_needs_of_its_installation(places: Places, bin: Path) -> None:
    home = places.home

    def needs(path: Path) -> list[str]:
        return agents.needed(str(path), Watch())

    assert needs(Path("/usr/bin/env")) == []
    assert needs(program(home / ".local/bin/claude")) == [str(home / ".local/bin/claude")]  # not ~/.local, where keyrings are
    assert needs(program(home / "bin/claude")) == [str(home / "bin/claude")]
    assert needs(program(home / ".local/share/claude/versions/2.1")) == [str(home / ".local/share/claude/versions/2.1")]
    assert needs(program(home / ".nvm/v22/lib/node_modules/@x/cli/cli.js")) == [str(home / ".nvm/v22/lib/node_modules")]
    assert needs(program(home / ".nvm/v22/bin/node")) == [str(home / ".nvm/v22")]
    mini = program(home / ".local/share/uv/tools/mini/bin/mini")
    (mini.parents[1] / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.12\n")
    assert needs(mini) == [str(mini.parents[1])]
    (mini.parents[1] / "pyvenv.cfg").write_text(f"home = {home}/.pyenv/3.12/bin\n")
    assert needs(mini) == [str(mini.parents[1]), f"{home}/.pyenv/3.12"]


def test_an_installation_that_is_the_whole_home_is_refused(places: Places, bin: Path) -> None:
    program(places.home / "bin/mini")
    (places.home / "pyvenv.cfg").write_text("home = /usr/bin\n")
    (bin / "mini").symlink_to(places.home / "bin/mini")
    with pytest.raises(PolicyError) as caught:
        places.compile(("agent", "mini"))
    assert caught.value.code == "policy.forbidden-path" and caught.value.file == "agent:mini"


@pytest.mark.parametrize("line", ["#!/usr/bin/env node", "#! /usr/bin/env -S node"])
def test_a_script_is_started_by_the_interpreter_that_the_user_has(places: Places, bin: Path, line: str) -> None:
    script = program(places.home / ".nvm/v22/lib/node_modules/gemini/index.js", line)
    node = program(places.home / ".nvm/v22/bin/node")
    (bin / "gemini").symlink_to(script)
    with pytest.raises(StockadeError, match="needs node, which is not on your PATH"):
        places.compile(("agent", "gemini"))
    (bin / "node").symlink_to(node)
    policy = places.compile(("agent", "gemini")).policy
    assert policy.agent is not None and policy.agent.argv[:2] == (str(node), str(script))
    assert [mount.source for mount in policy.mounts] == [str(places.home / ".nvm/v22/lib/node_modules"), str(places.home / ".nvm/v22")]


@pytest.mark.parametrize("scope", ["@openai", "@openai/codex/node_modules/@openai"])
def test_codex_of_npm_needs_no_node(places: Places, bin: Path, scope: str) -> None:
    modules = places.home / ".nvm/v22/lib/node_modules"
    script = program(modules / "@openai/codex/bin/codex.js", "#!/usr/bin/env node")
    native = modules / scope / f"codex-{agents.TARGETS[os.uname().machine]}/bin/codex"
    (bin / "codex").symlink_to(script)
    (bin / "node").symlink_to(program(places.home / ".nvm/v22/bin/node"))

    def found() -> tuple[str, list[str]]:
        policy = places.load(("agent", "codex"))
        assert policy.agent is not None
        return policy.agent.argv[0], [mount.source for mount in policy.mounts]

    by_node = str(places.home / ".nvm/v22/bin/node")
    assert found() == (by_node, [str(modules), str(places.home / ".nvm/v22")])
    native.mkdir(parents=True)
    assert found()[0] == by_node
    native.rmdir()
    program(native)
    assert found() == (str(native), [str(next(one for one in native.parents if one.name == "node_modules"))])
    (bin / "node").unlink()
    assert found()[0] == str(native)
    native.chmod(0o644)
    places.write(user="[environment]\n")  # a policy of another digest is compiled anew
    with pytest.raises(StockadeError, match="needs node"):
        found()


def test_codex_looks_for_nothing_outside_of_a_package(places: Places, bin: Path) -> None:
    program(bin.parent / f"codex-{agents.TARGETS[os.uname().machine]}/bin/codex")
    (bin / "codex").symlink_to(program(places.root / "one/bin/codex"))
    agent = places.compile(("agent", "codex")).policy.agent
    assert agent is not None and agent.argv[0] == str(places.root / "one/bin/codex")


def keys(places: Places, name: str) -> list[tuple[str, str]]:
    return [(one.name, one.source) for one in places.compile(("agent", name)).policy.credentials]


def test_which_key_it_uses(places: Places, bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("claude", "mini"):
        program(bin / name)
    own, login = ("anthropic", "env:ANTHROPIC_API_KEY"), ("claude-login", "env:CLAUDE_CODE_OAUTH_TOKEN")
    assert keys(places, "claude") == keys(places, "mini") == [own]  # of which the start then says that it is not there
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "x")
    assert keys(places, "claude") == [login]
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert keys(places, "claude") == [own]
    assert keys(places, "mini") == [own, ("openai", "env:OPENAI_API_KEY")]
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    places.write(user='[credential.anthropic]\nsource = "keyring:anthropic/me"\nheader = "x-api-key"\n')
    assert keys(places, "claude") == [("anthropic", "keyring:anthropic/me")]


def test_the_cache_notices_what_it_depends_on_and_holds_nothing_of_a_key(
    places: Places, bin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = program(bin / "claude")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "a-key")
    before = places.load(("agent", "claude"))
    assert places.load(("agent", "claude")) == before == places.compile(("agent", "claude")).policy
    witnesses = places.compile(("agent", "claude")).witnesses
    assert ("set", "ANTHROPIC_API_KEY", "1") in witnesses and ("env", "ANTHROPIC_API_KEY") not in [one[:2] for one in witnesses]
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    monkeypatch.setenv("CLAUDE_CODE_OAUTH_TOKEN", "x")
    assert [one.name for one in places.load(("agent", "claude")).credentials] == ["claude-login"]
    first.unlink()
    program(bin / "other")
    first.symlink_to(bin / "other")
    found = places.load(("agent", "claude")).agent
    assert found is not None and str(bin / "other") in found.argv
