"""The first policy that `stockade init` writes, by what is installed here. Tests prove that it is valid, and what of it holds."""

from __future__ import annotations

from stockade.core.errors import PolicyError
from stockade.core.frozen import frozen
from stockade.core.values import Origin
from stockade.policy import agents, presets
from stockade.policy.files import Watch
from stockade.policy.model import EgressTable

_CLIENTS = (("pypi", "pip and uv"), ("npm", "npm"))
_HEAD = """\
# Your policy for stockade: what an AI agent may see, change and reach. Reference: docs/policy.md
# Everything that is commented out shows a default or an example. Check it with: stockade policy check
version = 1

# [workspace]
# path = "."               # where stockade is started
# mode = "rw"              # ro, rw, review (what is written waits until you apply it), or rw-no-delete

# More folders that are visible. Your home is not, unless you name a folder of it here.
# [[mount]]
# path = "~/datasets"
# mode = "ro"

# [limits]
# memory = "8 GiB"
# wall_time = "2 h"

# The network is closed. Each rule opens these methods on these paths of one host, and nothing else.
"""
_TAIL = """\
# [[egress]]
# host = "api.example.com"
# methods = ["GET"]
# paths = ["/v1/items/**"]
# credential = "example"
#
# [credential.example]     # the agent never sees it: the gate writes it into the request
# source = "keyring:example/me"   # or env:NAME, file:/path, command:program argument
# header = "authorization"
"""


@frozen
class FoundAgent:
    """An agent that is installed. `variable` is where its key would be looked for, `ready`: it is set, and `preset` grants the requests to its model."""

    name: str
    title: str
    program: str
    variable: str
    preset: str
    ready: bool


@frozen
class Found:
    """What is here: agents, presets whose client is configured (with the hosts they would grant), and presets that grant nothing here."""

    agents: tuple[FoundAgent, ...]
    presets: tuple[tuple[str, tuple[str, ...]], ...]


def look(cwd: str) -> Found:
    """Look at the caller's PATH, variables and clients' configuration. Runs nothing, and reads nothing in a project."""
    watch = Watch()
    installed = []
    for one in agents.KNOWN:
        if program := agents.find(one.name, watch):
            ready = next((login for login in one.logins if watch.note("set", login.variable)), None)
            login = ready or one.logins[0]
            installed.append(FoundAgent(one.name, one.title, program, login.variable, login.preset, ready is not None))
    usable = []
    for preset, _ in _CLIENTS:
        try:
            grants = presets.expand(EgressTable.model_validate({"preset": preset}), Origin(preset=preset), watch, cwd).grants
        except PolicyError:
            continue
        usable.append((preset, tuple(dict.fromkeys(grant.host for grant in grants))))
    return Found(tuple(installed), tuple(usable))


def text(found: Found) -> str:
    """The policy, as TOML."""
    parts = [_agent(one) for one in found.agents]
    if not found.agents:
        parts = [
            "# No agent that stockade knows is on your PATH (claude, codex, gemini, mini). For a program of your own that talks to a model:\n"
            '# [[egress]]\n# preset = "anthropic"     # with your key from ANTHROPIC_API_KEY added outside; also openai, gemini\n'
        ]
    usable = dict(found.presets)
    for preset, client in _CLIENTS:
        if hosts := usable.get(preset, ()):
            mind = "The name of a package that is asked for is a message to whoever runs that"
            parts.append(f'# Reads for {client}, from {", ".join(hosts)}. {mind}.\n[[egress]]\npreset = "{preset}"\n')
        else:
            parts.append(f'# [[egress]]\n# preset = "{preset}"          # reads for {client}, which is not here\n')
    return _HEAD + "\n".join([*parts, _TAIL])


def _agent(one: FoundAgent) -> str:
    form = "\n".join([f'# source = "keyring:{one.preset}/me"', *_form(one.preset)])
    return (
        f"# {one.title} is here. `stockade run {one.name}` brings rules for its model's API along (preset {one.preset}), and your key from\n"
        f"# {one.variable} is added outside. To keep the key elsewhere:\n# [credential.{one.preset}]\n{form}\n"
    )


def _form(preset: str) -> list[str]:
    header = {"anthropic": "x-api-key", "gemini": "x-goog-api-key"}.get(preset)
    variable = f"{preset.upper()}_API_KEY"
    return [*([f'# header = "{header}"'] if header else []), f'# env = "{variable}"']
