"""[[tool]] of all layers, and the agents that are started so that they ask."""

from __future__ import annotations

import json
import subprocess
import tomllib
from pathlib import Path

import pytest

from policy.support import Places
from policy.test_agents import bin, program  # noqa: F401  a fixture
from stockade.core.errors import PolicyError
from stockade.core.tools import ToolRule
from stockade.core.values import GATE
from stockade.policy import agents
from stockade.policy.approvals import _LONGEST as ASKED_AT_MOST
from stockade.policy.problems import each

DENIES = '[[tool]]\nname = "Bash"\nmatch = { command = "rm *" }\neffect = "deny"'


def codes(places: Places, *overrides: tuple[str, str]) -> set[str]:
    with pytest.raises(PolicyError) as caught:
        places.compile(*overrides)
    return {error.code for error in each(caught.value)}


def test_rules_of_all_layers_add_up(places: Places) -> None:
    places.write(
        managed=DENIES,
        user=f'{DENIES}\n[[tool]]\nname = "mcp__*"\neffect = "ask"\npeople = true',
        project='[[tool]]\nname = "Bash"\neffect = "allow"',
    )
    found = places.compile().policy
    assert [(one.name, one.effect, one.people, one.match) for one in found.tools] == [
        ("Bash", "deny", False, (("command", "rm *"),)),
        ("Bash", "deny", False, (("command", "rm *"),)),
        ("mcp__*", "ask", True, ()),
        ("Bash", "allow", False, ()),
    ]
    assert str(found.tools[0].origin) == f"{places.managed}:2 (tool[0])"
    assert places.load() == places.load() == found  # the cache gives back the same
    assert all(type(one) is ToolRule for one in places.load().tools)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ('[[tool]]\nname = "Bash"', "policy.missing-key"),
        ('[[tool]]\nname = "a b"\neffect = "deny"', "policy.bad-value"),
        ('[[tool]]\nname = ""\neffect = "deny"', "policy.bad-value"),
        ('[[tool]]\nname = "Bash"\neffect = "never"', "policy.bad-value"),
        ('[[tool]]\nname = "Bash"\neffect = "deny"\nmatch = { command = 5 }', "policy.bad-type"),
        ('[[tool]]\nname = "Bash"\neffect = "deny"\nargs = "x"', "policy.unknown-key"),
        ('[[tool]]\nname = "Bash"\neffect = "deny"\npeople = true', "policy.people"),
        (f'[[egress]]\nhost = "{GATE}"', "policy.bad-value"),
        ('wall = "bubblewrap"\noversight = "none"\n[[tool]]\nname = "Bash"\neffect = "ask"', "policy.nobody-to-ask"),
    ],
)
def test_what_is_no_rule_is_an_error(places: Places, text: str, code: str) -> None:
    places.write(user=text)
    assert code in codes(places)


@pytest.mark.parametrize("name", [one.name for one in agents.KNOWN])
def test_an_agent_is_started_so_that_it_asks_or_not_at_all(places: Places, bin: Path, name: str) -> None:  # noqa: F811
    program(bin / name)
    without = places.compile(("agent", name)).policy.agent
    places.write(user=DENIES)
    described = agents.known(name)
    if not described.asking:
        assert codes(places, ("agent", name)) == {"policy.no-hook"}
        return
    asking = places.compile(("agent", name)).policy.agent
    assert without is not None and asking is not None and agents.HOOK not in json.dumps(without.argv)
    assert asking.argv[: len(described.by)] == described.by and asking.argv[-len(described.asking) :] == described.asking
    assert without.argv[-len(described.arguments) :] == described.arguments  # nobody else pays for it


def test_claude_asks_before_every_tool_whatever_its_other_settings_say() -> None:
    words = agents.known("claude").asking
    settings = json.loads(words[words.index("--settings") + 1])
    assert settings.pop("sandbox") == {"enabled": False} and settings.pop("disableAllHooks") is False
    handler = {"type": "command", "command": agents.HOOK, "timeout": 900}
    assert settings == {"hooks": {event: [{"matcher": "*", "hooks": [handler]}] for event in ("PreToolUse", "PermissionRequest")}}


def test_codex_asks_before_every_tool() -> None:
    described = agents.known("codex")
    assert described.asking[: len(described.arguments)] == described.arguments and described.asking[-1] == "--dangerously-bypass-hook-trust"
    values = described.asking[len(described.arguments) + 1 : -1 : 2]
    assert values[0] == "features.hooks=true"
    hooks = tomllib.loads("\n".join(values))["hooks"]
    handler = {"type": "command", "command": agents.HOOK, "timeout": 900}
    assert hooks == {event: [{"hooks": [handler]}] for event in ("PreToolUse", "PermissionRequest")}


def test_the_hook_is_what_a_shell_can_read() -> None:
    subprocess.run(["/bin/sh", "-n", "-c", agents.HOOK], check=True)
    inner = agents.HOOK.split("'")[1]
    assert len(agents.HOOK.split("'")) == 3  # one quoted script, which holds no quote itself
    subprocess.run(["/bin/bash", "-n", "-c", inner], check=True)
    assert agents._WAIT > 700 > ASKED_AT_MOST
