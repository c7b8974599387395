"""The agents that stockade knows: what each needs, what it keeps, and which of its own switches make no sense inside. One description an agent.

An agent's wishes are a policy layer of their own, `agent:NAME`: any other layer's single values replace them, denials and caps of all layers bind them. What
lies in a user's own settings of an agent never enters, not even in part: they may name hooks and servers that run commands, and hold tokens.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.core.values import GATE, Agent
from stockade.policy.paths import within
from stockade.policy.read import validate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.policy.files import Watch
    from stockade.policy.read import Document

_VISIBLE = ("/usr/", "/bin/", "/sbin/", "/lib/", "/lib64/")  # every sandbox sees these
TARGETS = {"x86_64": "linux-x64/vendor/x86_64-unknown-linux-musl", "aarch64": "linux-arm64/vendor/aarch64-unknown-linux-musl"}
_LINE = 256  # bytes of a script's first line that count (execve(2), "Interpreter scripts")


@frozen
class Login:
    """A way for an agent to log in: `variable` is its own name for the key, `preset` grants the requests it is for.

    `credential` names one of our own in place of the preset's ("" = the preset's).
    """

    variable: str
    preset: str
    credential: str = ""


@frozen
class Known:
    """An agent. `home` is the folder of its state, below the home inside, and `points` the variable that says so ("" = it looks nowhere else).

    `logins` come in the order in which they are preferred; `together`: all that are there, and not only the first. `seeds` are the files (name, text) of a
    new home. `variables` and `arguments` turn off what asks, updates, reports and builds a sandbox of its own. `passed` are the caller's variables that enter.
    `by` is the beginning of a command that starts its program (empty = it starts by itself). `asking` are the arguments in place of `arguments` where the policy has
    rules for tools: with a hook that asks the gate before each call (empty = it has none that stockade knows of). `native` is where its program proper may lie,
    from the folder of the script that npm installs: that script would only look for it, and wants Node, which is not in every root ("{}" = `TARGETS`).
    """

    name: str
    title: str
    home: str
    points: str
    logins: tuple[Login, ...]
    variables: tuple[tuple[str, str], ...] = ()
    arguments: tuple[str, ...] = ()
    seeds: tuple[tuple[str, str], ...] = ()
    passed: tuple[str, ...] = ()
    by: tuple[str, ...] = ()
    together: bool = False
    asking: tuple[str, ...] = ()
    native: tuple[str, ...] = ()


# A hook of an agent: hands what the agent says on standard input to the gate, and its answer back. Both agents take another exit status than 2, and an end by their own
# clock, for leave to go on; so every failure ends in a 2 with a reason, and nothing is waited for longer than they wait. An answer is one line: one that was cut has
# no end. Bash alone, which is where an agent's commands run as well: a machine without curl or Node is not without a hook.
HOOK = (
    r"""bash -c 'LC_ALL=C; call=$(cat); gate=${http_proxy#*//}; exec 3<>"/dev/tcp/${gate%:*}/${gate##*:}" && """
    f"""printf "POST http://{GATE}/tool HTTP/1.1\\r\\nhost: {GATE}\\r\\n"""
    r"""connection: close\r\ncontent-length: %d\r\n\r\n%s" "${#call}" "$call" >&3 && read -r -t 700 -u 3 _ status _ && [ "$status" = 202 ] && """
    r"""while read -r -t 9 -u 3 line && [ "${line%?}" ]; do :; done && read -r -t 9 -u 3 answer && printf "%s\n" "$answer"' || """
    """{ echo "stockade: the gate has not said that this tool may be called, so it may not (stockade log show --denied)" >&2; exit 2; }"""
)
_WAIT = 900  # seconds that an agent waits for its hook; a person has ten minutes at most, and the hook gives up before
_EVENTS = ("PreToolUse", "PermissionRequest")
_HANDLER = {"type": "command", "command": HOOK, "timeout": _WAIT}

# Claude Code asks about each key in its environment that it has not seen before, and a session's stand-in is always new; of one in a pipe it does not ask.
_BY_PIPE = """\
for word; do case $word in -p | --print) exec "$@" ;; esac; done
[ "$ANTHROPIC_API_KEY" ] || exec "$@"
key=$ANTHROPIC_API_KEY; unset ANTHROPIC_API_KEY
CLAUDE_CODE_API_KEY_FILE_DESCRIPTOR=3 exec "$@" 3<<.
$key
.
"""

_CLAUDE = ("--dangerously-skip-permissions", "--settings")
_CLAUDE_ASKING = {
    "sandbox": {"enabled": False},
    "disableAllHooks": False,  # whatever its other settings say
    "hooks": {event: [{"matcher": "*", "hooks": [_HANDLER]}] for event in _EVENTS},
}
_CODEX = (
    *("-c", 'approval_policy="never"', "-c", 'sandbox_mode="danger-full-access"'),
    *("-c", "check_for_update_on_startup=false", "-c", "features.in_app_updates=false"),
    *("-c", "analytics.enabled=false", "-c", "feedback.enabled=false"),
    # What is carried out elsewhere, which the gate refuses: a search by the model's server, connectors, a market of plugins.
    *("-c", 'web_search="disabled"', "-c", "features.apps=false", "-c", "features.plugins=false"),
    # Its own provider asks for a login of its own; one that is written here takes the key from the variable, where the stand-in is.
    *("-c", 'model_provider="stockade"', "-c", 'model_providers.stockade.name="OpenAI"'),
    *("-c", 'model_providers.stockade.base_url="https://api.openai.com/v1"', "-c", 'model_providers.stockade.env_key="OPENAI_API_KEY"'),
    *("-c", 'model_providers.stockade.wire_api="responses"', "-c", "model_providers.stockade.supports_websockets=false"),
)
# A text of JSON is one of TOML as well. It runs a hook only once a person has looked at it, or with this switch.
_CODEX_HANDLER = f'{{type="command",command={json.dumps(HOOK)},timeout={_WAIT}}}'
_ANTHROPIC, _OPENAI, _GEMINI = (Login(f"{name.upper()}_API_KEY", name) for name in ("anthropic", "openai", "gemini"))
_MINI = Known(
    "mini", "mini-swe-agent", ".config/mini-swe-agent", "MSWEA_GLOBAL_CONFIG_DIR",
    (_ANTHROPIC, _OPENAI),
    variables=(
        ("MSWEA_CONFIGURED", "true"),  # no first questions
        ("MSWEA_SILENT_STARTUP", "1"),
        ("MSWEA_COST_TRACKING", "ignore_errors"),
        ("LITELLM_LOCAL_MODEL_COST_MAP", "True"),  # else it fetches a table of prices at each start
    ),
    arguments=("--yolo",),
    passed=("MSWEA_MODEL_NAME",),
    together=True,
)  # fmt: skip
KNOWN: tuple[Known, ...] = (
    Known(
        "claude", "Claude Code", ".claude", "CLAUDE_CONFIG_DIR",
        (_ANTHROPIC, Login("CLAUDE_CODE_OAUTH_TOKEN", "anthropic", "claude-login")),
        variables=(
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            ("DISABLE_AUTOUPDATER", "1"),
            ("DISABLE_ERROR_REPORTING", "1"),
            ("DISABLE_TELEMETRY", "1"),
            ("IS_SANDBOX", "1"),  # without it root may not leave out its questions
        ),
        arguments=(*_CLAUDE, '{"sandbox":{"enabled":false}}'),
        asking=(*_CLAUDE, json.dumps(_CLAUDE_ASKING)),
        seeds=(
            (".claude.json", '{"hasCompletedOnboarding": true, "bypassPermissionsModeAccepted": true, "autoUpdates": false}\n'),
            ("settings.json", '{"skipDangerousModePermissionPrompt": true}\n'),
        ),
        passed=("ANTHROPIC_MODEL",),
        by=("/bin/sh", "-c", _BY_PIPE, "claude"),
    ),
    Known(
        "codex", "Codex", ".codex", "CODEX_HOME",
        (_OPENAI,),
        arguments=_CODEX,
        asking=(
            *(*_CODEX, "-c", "features.hooks=true"),  # whatever its own settings say
            *(word for event in _EVENTS for word in ("-c", f"hooks.{event}=[{{hooks=[{_CODEX_HANDLER}]}}]")),
            "--dangerously-bypass-hook-trust",
        ),
        native=("../node_modules/@openai/codex-{}/bin/codex", "../../codex-{}/bin/codex"),  # of its own, or beside it
    ),
    Known(
        "gemini", "Gemini CLI", ".gemini", "",
        (_GEMINI,),
        variables=(("GEMINI_SANDBOX", "false"), ("GEMINI_TELEMETRY_ENABLED", "false"), ("GEMINI_CLI_TRUST_WORKSPACE", "true")),
        arguments=("--yolo",),
        seeds=(
            (
                "settings.json",
                '{"general": {"enableAutoUpdate": false, "enableAutoUpdateNotification": false}, "privacy": {"usageStatisticsEnabled": false}, '
                '"security": {"auth": {"selectedType": "gemini-api-key"}}}\n',
            ),
        ),
        passed=("GEMINI_MODEL",),
    ),
    _MINI,
)  # fmt: skip
_NAMES = {**{one.name: one for one in KNOWN}, "mini-swe-agent": _MINI}
NAMES = tuple(sorted(_NAMES))


def known(name: str) -> Known:
    """The agent that the command `name` starts. Raises StockadeError (`agent.unknown`)."""
    if name not in _NAMES:
        hint = f"Known are {', '.join(NAMES)}. Any other program: stockade run -- {name}"
        raise StockadeError(f"stockade does not know an agent {name}", code="agent.unknown", hint=hint)
    return _NAMES[name]


def find(name: str, watch: Watch) -> str:
    """The program called `name` on the caller's PATH, resolved; "" if there is none. Relative entries of PATH do not count: they are the project's."""
    for folder in watch.env("PATH").split(":"):
        path = f"{folder}/{name}"
        if folder.startswith("/") and watch.note("real", path).startswith("100000:") and os.access(path, os.X_OK):
            return os.path.realpath(path)
    return ""


def layer(name: str, documents: Sequence[Document], watch: Watch) -> tuple[Document, Agent]:
    """What the agent `name` wishes for on this machine, as a layer, and how it is started; `documents` are the other layers.

    Raises StockadeError (`agent.unknown`, `agent.missing`), PolicyError (`policy.no-hook` where rules for tools stand and it has nothing to ask by).
    """
    agent = known(name)
    ruled = next((one for one in documents if one.tables.tool), None)
    if ruled is not None and not agent.asking:
        hint = f"Its tools can do no more than the wall lets them. Without these rules, as any other command: stockade run -- {name}"
        raise ruled.error(
            f"stockade knows no way for {agent.title} to ask before it calls a tool", "tool", code="policy.no-hook", hint=hint
        )
    program = find(name, watch)
    if not program:
        hint = f"Install it so that a shell here finds it. If it is somewhere inside the sandbox only: stockade run -- {name}"
        raise StockadeError(f"{name} ({agent.title}) is not on your PATH", code="agent.missing", hint=hint)
    argv, needed = _start(_native(agent, program, watch), watch)
    home = f"{places.inside()}/{agent.home}"
    values: dict[str, Any] = {
        "version": 1,
        "environment": {"pass": list(agent.passed), "set": {**dict(agent.variables), **({agent.points: home} if agent.points else {})}},
        "mount": [{"path": path, "mode": "ro"} for path in needed],
        "egress": [],
        "credential": {},
    }
    for login in _logins(agent, documents, watch):
        values["egress"].append({"preset": login.preset, **({"credential": login.credential} if login.credential else {})})
        if login.credential:
            values["credential"][login.credential] = {"source": f"env:{login.variable}"}
    document = validate(values, layer="agent", name=f"agent:{agent.name}", lines={})
    return document, Agent(agent.name, (*agent.by, *argv, *(agent.arguments if ruled is None else agent.asking)), home, seeds=agent.seeds)


def _logins(agent: Known, documents: Sequence[Document], watch: Watch) -> list[Login]:
    """The logins to use: those that a policy has a credential for, or whose variable is set; the first where there is none, so that the start says what lacks."""
    written = {name for one in documents for name in one.tables.credential}
    found = [one for one in agent.logins if (one.credential or one.preset) in written or watch.note("set", one.variable)]
    return (found if agent.together else found[:1]) or list(agent.logins[:1])


def _native(agent: Known, program: str, watch: Watch) -> str:
    """What the resolved script `program` would start, and find by itself; `program` if that is not there."""
    target = TARGETS.get(os.uname().machine, "")
    for place in agent.native if target and "/node_modules/" in program else ():
        path = os.path.normpath(f"{os.path.dirname(program)}/{place.format(target)}")
        if watch.note("real", path).startswith("100000:") and os.access(path, os.X_OK):
            return os.path.realpath(path)
    return program


def _start(program: str, watch: Watch) -> tuple[tuple[str, ...], list[str]]:
    """How to start a resolved program inside, and which host paths it needs there. A script that wants its interpreter looked for has it found here."""
    try:
        with open(program, "rb") as file:
            first = file.read(_LINE).partition(b"\n")[0]
    except OSError:
        first = b""  # it may be executable only; then it is no script
    watch.note("stat", program)
    words = first[2:].decode("utf-8", "replace").split() if first.startswith(b"#!") else []
    if not words or os.path.basename(words[0]) != "env":
        return (program,), needed(program, watch)
    words = [word for word in words[1:] if word != "-S"]
    interpreter = find(words[0], watch) if words else ""
    if not interpreter:
        hint = "Install it so that a shell here finds it."
        raise StockadeError(
            f"{program} needs {' '.join(words) or 'an interpreter'}, which is not on your PATH", code="agent.missing", hint=hint
        )
    return (interpreter, *words[1:], program), list(dict.fromkeys([*needed(program, watch), *needed(interpreter, watch)]))


def needed(program: str, watch: Watch) -> list[str]:
    """The host paths that a resolved program outside /usr needs to see: its package, its virtual environment with the Python below it, or the file alone."""
    if program.startswith(_VISIBLE):
        return []
    for parent in (os.path.dirname(program), *_parents(program)):
        if os.path.basename(parent) == "node_modules":
            return [parent]
        if settings := watch.text(f"{parent}/pyvenv.cfg"):
            base = dict(line.split(" = ", 1) for line in settings.splitlines() if " = " in line).get("home", "")
            real = os.path.realpath(base) if base.startswith("/") else "/usr/bin"
            return [parent] if f"{real}/".startswith(_VISIBLE) else [parent, os.path.dirname(real)]
    prefix, folder = os.path.split(os.path.dirname(program))
    home = os.path.realpath(places.home())
    # An interpreter has its library beside its bin (pyenv, nvm); a prefix that many programs share is not shown for one of them.
    shared = within(home, prefix) or prefix in (f"{home}/.local", "/opt")
    return [prefix if folder == "bin" and not shared else program]


def _parents(path: str) -> list[str]:
    found = []
    while (path := os.path.dirname(path)) != "/":
        found.append(path)
    return found
