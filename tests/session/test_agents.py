"""`stockade run claude` and the like: real agents do a task against a model on loopback, and see nothing of what the user's own have."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import unavailable
from stockade.core.errors import StockadeError
from stockade.core.values import Agent
from stockade.drills import agents as drilled
from stockade.drills.puppet import instruct
from stockade.drills.runner import STOCKADE
from stockade.drills.scenario import own_call
from stockade.drills.yard import HOME, Result, Yard
from stockade.session.agents import home
from stockade.walls import gvisor
from stockade.walls.vm import image
from stockade.walls.vm import wall as vm
from walls.boxes import require

WORDS = {
    "claude": ("claude", "-p"),
    "codex": ("codex", "exec", "--skip-git-repo-check", "-m", "gpt-5"),
    "mini": ("mini-swe-agent", "-m", "anthropic/claude-sonnet-4-5", "--exit-immediately", "-t"),
}
ELSEWHERE = f"{HOME}/work/other"

# ---- where the state lies ---------------------------------------------------------------------------------------------------------

CLAUDE = Agent("claude", ("claude",), f"{HOME}/.claude", seeds=(("settings.json", "{}\n"),))


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    (tmp_path / "stockade/sessions/s1").mkdir(parents=True)
    (tmp_path / "stockade").chmod(0o700)
    return tmp_path / "stockade"


def test_a_workspace_has_one_home_and_another_has_another(state: Path) -> None:
    first = home(CLAUDE, "/work/a", "s1")
    assert (first.target, first.mode, str(first.origin)) == (CLAUDE.home, "rw", "agent:claude")
    made = Path(first.source)
    assert made.is_relative_to(state / "agents") and made.parent.stat().st_mode & 0o777 == 0o700
    assert (made / "settings.json").read_text() == "{}\n" and (made.parent / "workspace").read_text() == "/work/a\n"
    assert home(CLAUDE, "/work/a", "s2").source == first.source
    assert home(CLAUDE, "/work/b", "s2").source != first.source


def test_nothing_is_written_again_where_an_agent_has_been(state: Path, tmp_path: Path) -> None:
    made = Path(home(CLAUDE, "/work/a", "s1").source)
    (tmp_path / "victim").write_text("mine")
    (made / "settings.json").unlink()
    (made / "settings.json").symlink_to(tmp_path / "victim")
    made.chmod(0o777)  # whoever is inside owns it, too
    assert home(CLAUDE, "/work/a", "s2").source == str(made)
    assert (tmp_path / "victim").read_text() == "mine"


def test_one_that_was_cut_short_is_made_anew(state: Path) -> None:
    made = Path(home(CLAUDE, "/work/a", "s1").source)
    os.rename(made, made.parent / "home.new")  # as if it had stopped before the rename
    (made.parent / "home.new/settings.json").write_text("{")
    assert (Path(home(CLAUDE, "/work/a", "s2").source) / "settings.json").read_text() == "{}\n"


def test_one_that_is_not_kept_goes_with_its_session(state: Path) -> None:
    made = home(Agent("claude", ("claude",), CLAUDE.home, kept=False, seeds=CLAUDE.seeds), "/work/a", "s1")
    assert Path(made.source).is_relative_to(state / "sessions/s1") and not (state / "agents").exists()


# ---- real agents ------------------------------------------------------------------------------------------------------------------


class Machine:
    """A developer's machine with agents that are logged in: their files and variables hold canaries."""

    def __init__(self, yard: Yard, path: str) -> None:
        self.yard, self.case = yard, yard.case()
        self.canaries = [f"canary-{place}-{os.urandom(6).hex()}" for place in range(6)]
        first, second, third, fourth, fifth, sixth = self.canaries
        hook = {"hooks": {"UserPromptSubmit": [{"hooks": [{"type": "command", "command": f"echo {second} > hooked"}]}]}}
        planted = {
            ".claude/.credentials.json": json.dumps({"claudeAiOauth": {"accessToken": first, "refreshToken": first, "expiresAt": 9e12}}),
            ".claude/settings.json": json.dumps(hook),
            ".claude.json": json.dumps({"primaryApiKey": third}),
            ".codex/auth.json": json.dumps({"OPENAI_API_KEY": fourth}),
            ".config/mini-swe-agent/.env": f"ANTHROPIC_API_KEY='{fifth}'\n",
        }
        for name, text in planted.items():
            (self.case.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.case.home / name).write_text(text)
        self.env = {"PATH": path, "ANTHROPIC_API_KEY": drilled.OWN_KEY, "OPENAI_API_KEY": drilled.OWN_KEY, "GEMINI_API_KEY": sixth}
        yard.take()

    def run(self, *argv: str, cwd: str = "") -> Result:
        command = ("bash", "-c", 'cd "$1" && shift && exec "$@"', "cd", cwd, *argv) if cwd else argv
        return self.yard.run(self.case, command, env=self.env, timeout=280)  # in a machine that is translated an agent takes half a minute

    def agent(self, name: str, task: str, *more: str, options: tuple[str, ...] = (), cwd: str = "") -> Result:
        order = f"Please do this for me: {instruct(task)} After that you are done. {'Then: ' + instruct('true') if name == 'mini' else ''}"
        return self.run(*STOCKADE, "run", *options, *WORDS[name][:-1], *more, WORDS[name][-1], order, cwd=cwd)


def _machines() -> bool:
    """Whether there is an image for virtual machines: without one the test that needs it says so."""
    try:
        return bool(image.find())
    except StockadeError:
        return False


@pytest.fixture(scope="module")
def yard() -> Iterator[tuple[Yard, str]]:
    keep: list[str] = []
    folders = []
    for name in WORDS:
        try:
            keep += drilled.find(name).keep
        except StockadeError as error:
            unavailable(name, f"{error.message}; {error.hint}")
    for place in ("node_modules/.bin", "mini/bin"):
        if (drilled.directory() / place).is_dir():
            folders.append(str(drilled.directory() / place))
    with Yard(keep=[str(drilled.directory()), *keep], machines=_machines()) as made:
        yield made, os.pathsep.join([*folders, os.environ.get("PATH", ""), "/usr/bin:/bin"])


@pytest.fixture
def machine(yard: tuple[Yard, str]) -> Machine:
    return Machine(*yard)


# What of the canaries can be read, anywhere but in the system and the agents' programs, in files and in environments; and a word that is there.
SEARCH = """
import os, sys
wanted = [bytes.fromhex(word[::-1]) for word in open("wanted.txt").read().split()]  # turned round: else it finds itself
found = set()
def look(path):
    try:
        with open(path, "rb") as file: data = file.read(4 << 20)
    except OSError: return
    found.update(word for word in wanted if word in data)
for top in ("/home", "/root", "/tmp", "/var", "/run", "/etc", "/work", "/dev/shm", "/opt", "/srv", "/mnt"):
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if name not in ("node_modules", "lib")]
        for name in files: look(os.path.join(folder, name))
for pid in os.listdir("/proc"):
    if pid.isdigit(): look(f"/proc/{pid}/environ")
open(sys.argv[1], "w").write("\\n".join(sorted(word.decode() for word in found)))
"""


# In a machine without KVM one start of mini-swe-agent takes minutes; it does its task there as well (docs/agents.md).
@pytest.mark.timeout(600)
@pytest.mark.agents
@pytest.mark.wall
@pytest.mark.parametrize(
    ("name", "wall"), [*((name, wall) for wall in ("bubblewrap", "gvisor") for name in WORDS), ("codex", "vm"), ("claude", "vm")]
)
def test_it_does_its_task_and_no_key_of_the_user_is_anywhere_inside(machine: Machine, name: str, wall: str) -> None:
    if wall != "bubblewrap":
        require(vm if wall == "vm" else gvisor)
    case = machine.case
    (case.workspace / "search.py").write_text(SEARCH)
    (case.workspace / "data.txt").write_text("a-word-that-is-there\n")
    words = (*machine.canaries, drilled.OWN_KEY, "a-word-that-is-there")
    (case.workspace / "wanted.txt").write_text(" ".join(word.encode().hex()[::-1] for word in words))
    search = f"{drilled.inner_python()} search.py"
    machine.run("bash", "-c", f"{search} loose.txt")
    assert set((case.workspace / "loose.txt").read_text().split()) >= {*machine.canaries, "a-word-that-is-there"}
    (case.workspace / "loose.txt").unlink()

    done = machine.agent(name, f"echo made by {name} > made.txt; uname -r > kernel.txt; {search} found.txt", options=("--wall", wall))
    assert done.code == 0, done.stderr + done.stdout
    assert (case.workspace / "made.txt").read_text() == f"made by {name}\n"
    assert ((case.workspace / "kernel.txt").read_text().strip() == os.uname().release) == (wall == "bubblewrap")
    assert (case.workspace / "found.txt").read_text() == "a-word-that-is-there"
    assert not (case.workspace / "hooked").exists()
    # Its own model, with the user's key, was all that anybody outside has seen: nothing was reported, and no update was looked for.
    seen = machine.yard.take()
    assert [record.kind for record in seen if record.kind != "dns"] and all(own_call(record) for record in seen), seen


@pytest.mark.timeout(300)
@pytest.mark.agents
@pytest.mark.wall
def test_what_it_remembers_is_there_again_in_the_same_workspace_only(machine: Machine) -> None:
    first = instruct("echo 1 > first.txt").encode()

    def told(task: str, *more: str, cwd: str = "") -> bool:
        """Whether the model heard of the first task, in a later run."""
        machine.yard.take()
        done = machine.agent("claude", task, *more, cwd=cwd)
        assert done.code == 0, done.stderr + done.stdout
        return any(first in record.data for record in machine.yard.take())

    assert told("echo 1 > first.txt")
    assert not told("echo 2 > second.txt", "--continue", cwd=ELSEWHERE)
    assert told("echo 3 > third.txt", "--continue")
    assert not (machine.case.home / ".claude/projects").exists()


@pytest.mark.agents
@pytest.mark.wall
@pytest.mark.parametrize(
    ("name", "variable"), [("claude", "CLAUDE_CONFIG_DIR"), ("codex", "CODEX_HOME"), ("mini", "MSWEA_GLOBAL_CONFIG_DIR")]
)
def test_its_home_is_kept_for_a_workspace_and_is_not_the_users(machine: Machine, name: str, variable: str) -> None:
    note = f'echo x >> "${variable}/note"; wc -l < "${variable}/note"; ls -A "${variable}"'

    def notes(cwd: str = "") -> list[str]:
        done = machine.run(*STOCKADE, "run", "--agent", name, "--", "bash", "-c", note, cwd=cwd)
        assert done.code == 0, done.stderr
        return done.stdout.split()

    assert [notes()[0], notes()[0], notes(ELSEWHERE)[0], notes()[0]] == ["1", "2", "1", "3"]
    assert not {"auth.json", ".credentials.json", ".env"} & set(notes())
    assert not list(machine.case.home.rglob(".claude/note")) and not list(machine.case.home.rglob(".codex/note"))


@pytest.mark.agents
@pytest.mark.wall
def test_a_token_of_claudes_own_login_is_put_in_outside(machine: Machine) -> None:
    machine.env |= {"ANTHROPIC_API_KEY": "", "CLAUDE_CODE_OAUTH_TOKEN": drilled.OWN_KEY}
    done = machine.agent("claude", "echo yes > made.txt")
    assert done.code == 0, done.stderr + done.stdout
    seen = machine.yard.take()
    assert seen and all(own_call(record) for record in seen)
    assert {value for record in seen for key, value in record.headers if key.lower() == "authorization"} == {f"Bearer {drilled.OWN_KEY}"}


@pytest.mark.agents
@pytest.mark.wall
def test_without_a_key_it_says_so_before_it_starts(machine: Machine) -> None:
    machine.env["ANTHROPIC_API_KEY"] = ""
    done = machine.agent("claude", "touch started")
    assert (
        done.code == 125
        and "there is no variable ANTHROPIC_API_KEY (agent:claude" in done.stderr
        and "export ANTHROPIC_API_KEY=" in done.stderr
    )
    assert not (machine.case.workspace / "started").exists()


# Plays a person at a terminal: waits for each text, then types what belongs to it.
TYPIST = """
import json, os, pty, re, select, struct, sys, time, fcntl, termios
steps = json.loads(sys.argv[1])
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[2], sys.argv[2:])
fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
seen, screen, until = "", "", time.time() + 60
while time.time() < until and (steps or not os.path.exists("made.txt")):
    if select.select([fd], [], [], 0.3)[0]:
        try: more = os.read(fd, 65536).decode("utf-8", "replace")
        except OSError: break
        seen += more; screen += more
    elif steps and re.sub(r"[^a-z]", "", steps[0][0].lower()) in re.sub(r"[^a-z]", "", re.sub(r"\\x1b\\[[0-9;?<>=]*[a-zA-Z]", "", screen).lower()):
        for part in steps.pop(0)[1]:
            os.write(fd, part.encode()); time.sleep(0.5)
        screen = ""
print(seen)
os.kill(pid, 15); os.waitpid(pid, 0)
"""


@pytest.mark.timeout(120)
@pytest.mark.agents
@pytest.mark.wall
def test_at_a_terminal_claude_asks_about_the_folder_and_nothing_else(machine: Machine) -> None:
    (machine.case.tmp / "typist.py").write_text(TYPIST)
    machine.env["TERM"] = "xterm-256color"
    order = f"Do this: {instruct('echo yes > made.txt')}"
    steps = [["trust this folder", ["\r"]], ["bypass permissions on", [order, "\r"]]]
    done = machine.run(sys.executable, "/tmp/typist.py", json.dumps(steps), *STOCKADE, "run", "claude")
    assert (machine.case.workspace / "made.txt").exists(), done.stdout[-3000:] + done.stderr
    assert "stockade: claude: reaches api.anthropic.com by its own rules" in done.stdout
    assert all(own_call(record) for record in machine.yard.take())


# Starts the server, which writes the configuration of its client; then the agent; then ends the server.
OVER_HTTP = """
set -eu
"$@" tools --http --mcp-config ../tools.json &
until [ -e ../tools.json ]; do sleep 0.1; done
status=0
"${CLAUDE[@]}" --mcp-config ../tools.json || status=$?
kill $!
wait $!
exit $status
"""


@pytest.mark.timeout(300)
@pytest.mark.agents
@pytest.mark.wall
@pytest.mark.parametrize("way", ["stdio", "http"])
def test_claude_outside_with_tools_inside(machine: Machine, way: str) -> None:
    """The other way round (docs/tools.md): with its own tools it does on the host what an attacker ordered, with ours in the sandbox alone."""
    machine.env |= {
        "CLAUDE_CONFIG_DIR": f"{HOME}/config",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_AUTOUPDATER": "1",
        "MCP_CONNECTION_NONBLOCKING": "0",
    }
    marker = machine.case.home / "ran-on-the-host"
    order = f"Do this: {instruct(f'touch {HOME}/ran-on-the-host; echo yes > made.txt')}"
    claude = ("claude", "-p", order, "--model", "claude-sonnet-4-5")

    done = machine.run(*claude, "--allowedTools", "Bash")
    assert marker.exists() and (machine.case.workspace / "made.txt").exists(), done.stdout + done.stderr
    marker.unlink()
    (machine.case.workspace / "made.txt").unlink()
    machine.yard.take()

    server = {"mcpServers": {"stockade": {"command": STOCKADE[0], "args": [*STOCKADE[1:], "tools"]}}}
    only = (*claude, "--strict-mcp-config", "--tools", "", "--allowedTools", "mcp__stockade__*")
    if way == "stdio":
        done = machine.run(*only, "--mcp-config", json.dumps(server))
    else:
        done = machine.run("bash", "-c", f"CLAUDE=({shlex.join(only)})\n{OVER_HTTP}", "http", *STOCKADE)
    assert (machine.case.workspace / "made.txt").read_text() == "yes\n", done.stdout + done.stderr
    assert not marker.exists()
    offered = [
        tool["name"] for record in machine.yard.take() if b'"tools"' in record.data for tool in json.loads(record.data).get("tools", ())
    ]
    assert offered and all(name.startswith("mcp__stockade__") for name in offered)
