"""The agents that a drill can put before the puppet: our small scripted one, and real ones where they are installed.

Real agents are run unmodified; only their own settings are used: no telemetry, no updates, no asking, and their own sandbox off, since the question is
what holds when the agent's own defences do not.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.drills.yard import HOME
from stockade.policy import agents, files

OWN_KEY = "own-key-of-the-session"  # what the broker injects; the puppet must see it, the sandbox never
NAMES = ("scripted", "codex", "claude", "mini")


@dataclass(frozen=True)
class Agent:
    """How to start one agent on a task.

    `argv` has the placeholder TASK. `files` are put into its home (path below it -> text). `keep` are host directories it needs, read-only.
    `host` and `key_variable` say which API it calls and where it looks for its key; `shown` are paths of its home that it must see when confined.
    """

    name: str
    argv: tuple[str, ...]
    host: str
    key_variable: str
    files: Mapping[str, str] = field(default_factory=dict)
    keep: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    shown: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()  # what its client sends to the API beyond the common ones
    timeout: int = 60

    def command(self, task: str) -> list[str]:
        return [task if part == "TASK" else part for part in self.argv]


def directory() -> Path:
    """Where `scripts/agents` installs: $STOCKADE_AGENTS, or a folder beside the user's other programs.

    Not one of stockade's own places: those are never shown to a sandbox, and an agent must be.
    """
    data = os.environ.get("XDG_DATA_HOME") or f"{places.home()}/.local/share"
    return Path(os.environ.get("STOCKADE_AGENTS") or f"{data}/stockade-agents")


def find(name: str) -> Agent:
    """The agent called `name`. Raises StockadeError (`drill.agent`) if it is not installed."""
    if name == "scripted":
        source = Path(__file__).with_name("scripted.py").read_text()
        return Agent(
            "scripted",
            (inner_python(), f"{HOME}/.agent/scripted.py", "TASK"),
            "api.anthropic.com",
            "ANTHROPIC_API_KEY",
            files={".agent/scripted.py": source},
            keep=tuple(_prefixes(inner_python())),
            shown=(".agent",),
        )
    makers = {"codex": _codex, "claude": _claude, "mini": _mini}
    if name not in makers:
        raise StockadeError(f"no agent is called {name}", code="drill.agent", hint=f"Choose one of: {', '.join(NAMES)}.")
    return makers[name]()


def inner_python() -> str:
    """An interpreter for attacks and the scripted agent, preferably the system's: every sandbox shows /usr."""
    for path in ("/usr/bin/python3", shutil.which("python3") or "", sys.executable):
        if path and os.access(path, os.X_OK):
            return path
    return sys.executable


def _program(name: str, *inside: str) -> str:
    for path in [*(str(directory() / place) for place in inside), shutil.which(name) or ""]:
        if path and os.access(path, os.X_OK):
            return os.path.realpath(path)
    raise StockadeError(f"{name} is not installed", code="drill.agent", hint=f"Install it with: scripts/agents {name}")


def _codex() -> Agent:
    native = sorted(directory().glob("node_modules/@openai/codex-linux-*/vendor/*/*/codex"))
    program = str(native[0]) if native else _program("codex")
    settings = (
        'model = "gpt-5"\nmodel_provider = "drill"\napproval_policy = "never"\nsandbox_mode = "danger-full-access"\n'
        'check_for_update_on_startup = false\nweb_search = "disabled"\n\n[features]\nmulti_agent = false\n\n[analytics]\nenabled = false\n\n'
        '[model_providers.drill]\nname = "OpenAI"\nbase_url = "https://api.openai.com/v1"\nenv_key = "OPENAI_API_KEY"\nwire_api = "responses"\n'
        "supports_websockets = false\nrequest_max_retries = 1\nstream_max_retries = 1\n"
    )
    return Agent(
        "codex",
        (program, "exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "TASK"),
        "api.openai.com",
        "OPENAI_API_KEY",
        files={".codex/config.toml": settings},
        keep=tuple(_prefixes(program)),
        env={"CODEX_HOME": f"{HOME}/.codex"},
        headers=("originator", "session-id", "thread-id", "x-codex-beta-features", "x-codex-turn-metadata", "x-codex-window-id"),
        shown=(".codex",),
    )


def _claude() -> Agent:
    program = _program("claude", "node_modules/@anthropic-ai/claude-code/bin/claude.exe", "node_modules/.bin/claude")
    return Agent(
        "claude",
        (program, "-p", "TASK", "--allowedTools", "Bash", "--model", "claude-sonnet-4-5"),
        "api.anthropic.com",
        "ANTHROPIC_API_KEY",
        files={".claude.json": '{"hasCompletedOnboarding": true, "autoUpdates": false}\n', ".claude/settings.json": "{}\n"},
        keep=tuple(_prefixes(program)),
        env={
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_TELEMETRY": "1",
            "CLAUDE_CONFIG_DIR": f"{HOME}/.claude",
        },
        headers=("anthropic-beta", "anthropic-dangerous-direct-browser-access", "x-app", "x-claude-code-session-id"),
        shown=(".claude",),
    )


def _mini() -> Agent:
    program = _program("mini", "mini/bin/mini")
    return Agent(
        "mini",
        (program, "-y", "-t", "TASK", "-m", "anthropic/claude-sonnet-4-5", "--exit-immediately", "-o", "/tmp/mini.traj.json"),
        "api.anthropic.com",
        "ANTHROPIC_API_KEY",
        files={".mini/.env": ""},
        keep=tuple(_prefixes(program)),
        env={
            "MSWEA_CONFIGURED": "true",
            "MSWEA_GLOBAL_CONFIG_DIR": f"{HOME}/.mini",
            "MSWEA_COST_TRACKING": "ignore_errors",
            "MSWEA_SILENT_STARTUP": "1",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        },
        shown=(".mini",),
    )


def _prefixes(program: str) -> list[str]:
    """The host paths that a program outside /usr needs to see."""
    return agents.needed(os.path.realpath(program), files.Watch())
