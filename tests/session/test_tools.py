"""Rules for tool calls in a session: asked by an agent's hook, answered by people as any other question, and never mixed up with requests. Real agents at the end."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import pytest

from session.supervised import Place, Terminal, command
from session.test_agents import Machine, machine, yard  # noqa: F401  their fixtures
from session.test_approvals import asked, code, end, events, fresh, server, stockade, waiting  # noqa: F401  and fixtures
from stockade.core.asks import Asked
from stockade.core.errors import StockadeError
from stockade.core.frozen import replace
from stockade.core.tools import ToolRule
from stockade.core.values import Asking, Environment, Grant, Origin, Policy
from stockade.drills.puppet import instruct
from stockade.drills.runner import STOCKADE
from stockade.drills.yard import HOME
from stockade.policy.agents import HOOK
from stockade.session import inbox, live
from walls.boxes import until

# Asks about the call of a tool as an agent's hook does, and prints what it may.
CALL = """
call() {
    printf '{"hook_event_name":"PreToolUse","tool_name":"%s","tool_input":{"command":"%s"}}' "$1" "$2" | sh -c "$HOOK" > "said$3"
    if [ $? = 2 ]; then echo error; elif grep -q deny "said$3"; then echo deny; else echo allow; fi
}
"""


def policy(server: Any, **asking: int) -> Policy:  # noqa: F811
    return Policy(
        grants=(Grant("open.localhost", server.server_port, "http", ("GET", "POST"), effect="ask", private=True),),
        tools=(
            ToolRule("Bash", "ask", (("command", "git push*"),), origin=Origin("p.toml", 3, "tool[0]")),
            ToolRule("Deploy", "ask", people=True, origin=Origin("p.toml", 8, "tool[1]")),
            ToolRule("Write", "deny", origin=Origin("p.toml", 12, "tool[2]")),
        ),
        approvals=replace(Asking(), **asking),
    )


def start(place: Place, policy: Policy, script: str) -> Any:
    return place.start("/bin/bash", "-c", f"{CALL}\n{script}", "sh", policy=replace(policy, environment=Environment((), (("HOOK", HOOK),))))


@pytest.mark.wall
def test_a_call_waits_for_a_word_and_is_approved_as_it_was_shown(place: Place, server: Any) -> None:  # noqa: F811
    port = server.server_port
    request = f"curl -s -m 60 --noproxy '' -x http://127.0.0.1:3128 -o /dev/null -w '%{{http_code}}\\n' http://open.localhost:{port}/a"
    run = start(
        place,
        policy(server),
        f"call Bash ls; call Write x; call Bash 'git push'; call Bash 'git push'; call Bash 'git push -f'; {request}; call Deploy now",
    )
    try:
        assert until(lambda: len(waiting()) == 1, 20)
        (one,) = waiting()
        assert (one["action"], one["what"]) == ("tool", 'the tool Bash with {"command":"git push"}') and one["rule"] == "p.toml:3 (tool[0])"
        assert 'git push"}' in stockade(place).stdout
        assert stockade(place, "allow", one["session"], str(one["number"]), "--for-session").returncode == 0
        assert until(lambda: [two["number"] for two in waiting()] == [3], 20)  # the same again needs nobody, other arguments do
        (other,) = waiting()
        with pytest.raises(StockadeError):  # what was shown and approved before says nothing about it
            inbox.answer(inbox.waiting()[0], {**other, "digest": one["digest"]}, True, channel="inbox")
        assert stockade(place, "deny", other["session"]).returncode == 0
        egress = asked("/a")  # no approval of a call lets a request out
        assert (
            egress["action"] == "egress"
            and server.seen == []
            and stockade(place, "allow", egress["session"], str(egress["number"])).returncode == 0
        )
        assert until(lambda: [two["people"] for two in waiting()] == [True], 20)
        (one,) = waiting()
        assert "approval.people" in stockade(place, "allow", one["session"], str(one["number"]), "--for-session", "--json").stderr
        assert stockade(place, "allow", one["session"], str(one["number"])).returncode == 0
        assert run.communicate(timeout=20)[0].split() == [b"allow", b"deny", b"allow", b"allow", b"deny", b"200", b"allow"]
    finally:
        end(run)
    told = [(one["kind"], one.get("effect"), one.get("rule")) for one in events(place, "tool", "ask", "answer")]
    bash, people = "p.toml:3 (tool[0])", "p.toml:8 (tool[1])"
    assert [one for one in told if one[0] == "tool"] == [
        ("tool", "allow", "no-tool-rule"),
        ("tool", "deny", "tool p.toml:12 (tool[2])"),
        ("tool", "allow", f"approved: tool {bash}"),
        ("tool", "allow", f"approved: tool {bash}"),
        ("tool", "deny", f"tool {bash}"),
        ("tool", "allow", f"approved: tool {people}"),
    ]
    assert [one["outcome"] for one in events(place, "answer")] == ["approved", "earlier", "refused", "approved", "approved"]
    assert "git push" not in json.dumps(events(place, "tool", "ask", "answer"))  # arguments may hold secrets
    assert [(one["action"], one["key"][:10]) for one in events(place, "ask")][:2] == [("tool", "tool Bash ")] * 2


@pytest.mark.wall
def test_whoever_asks_without_end_asks_few(place: Place, server: Any) -> None:  # noqa: F811
    """A loop inside fills nobody's day: what is more than `pending` or `per_minute` is a no at once, and requests share the same bounds."""
    loop = 'for n in $(seq 12); do call Bash "git push $n" $n > out$n & done; wait; cat out*'
    run = start(place, policy(server, pending=2, per_minute=3, refusals=0), loop)
    try:
        assert until(lambda: len(events(place, "answer")) == 10, 30)
        shown = waiting()
        assert len(shown) == 2
        for one in shown:
            assert stockade(place, "deny", one["session"], str(one["number"])).returncode == 0
        assert run.communicate(timeout=30)[0].split() == [b"deny"] * 12
    finally:
        end(run)
    assert sorted(one["outcome"] for one in events(place, "answer")) == ["refused"] * 2 + ["too_many"] * 10


@pytest.mark.wall
def test_it_is_asked_in_the_terminal(place: Place, server: Any) -> None:  # noqa: F811
    given = replace(policy(server), environment=Environment((), (("HOOK", HOOK),)))
    script = f"{CALL}\ncall Bash 'git push'; call Bash 'git push'; read line; echo got $line"
    person = Terminal(place, (), words=command(given, ("/bin/bash", "-c", script), tty=None))
    try:
        person.expect("stockade asks: may this tool be called")
        person.expect('the tool Bash with ."command":"git push"')
        letters = code(person)
        person.type(f"{letters}\r")
        person.expect("allow\r\n")
        code(person)
        person.type("\r")
        person.expect("deny\r\n")
        person.type("on\r")
        person.expect("got on")
    finally:
        person.close()
    assert [(one["channel"], one["outcome"]) for one in events(place, "answer")] == [("terminal", "approved"), ("terminal", "refused")]


@pytest.mark.wall
def test_a_program_answers_and_a_reviewer_never_for_people(place: Place, server: Any) -> None:  # noqa: F811
    async def reviewer(one: Asked) -> Any:
        return "once" if one.action == "tool" and '"git push"' in one.what else False

    async def approver(one: Asked) -> Any:
        return "once" if one.people and one.what.startswith("the tool Deploy with") else None

    async def whole() -> list[bytes]:
        given = replace(policy(server, timeout=20), environment=Environment((), (("HOOK", HOOK),)))
        async with live.open_session(given, cwd=str(place.work), reviewer=reviewer, approver=approver) as session:
            script = f"{CALL}\ncall Bash 'git push'; call Bash 'git push -f'; call Deploy now"
            return (await session.exec(["/bin/bash", "-c", script], timeout=60)).stdout.split()

    assert asyncio.run(whole()) == [b"allow", b"deny", b"allow"]
    assert [one["by"] for one in events(place, "answer")] == ["reviewer", "reviewer", "person"]


# ---- real agents ------------------------------------------------------------------------------------------------------------------

RULES = """
version = 1

[[tool]]
name = "Bash"
match = { command = "*never.txt*" }
effect = "deny"

[[tool]]
name = "Bash"
match = { command = "*perhaps*" }
effect = "ask"
"""
# What an agent that wants to be rid of its hooks writes into its settings, in one run for the next.
OFF = {
    "claude": """mkdir .claude; for place in "$CLAUDE_CONFIG_DIR/settings.json" .claude/settings.json .claude/settings.local.json
        do echo '{"disableAllHooks": true, "hooks": {"PreToolUse": []}}' > "$place"; done""",
    "codex": "printf '[features]\\nhooks = false\\n' > \"$CODEX_HOME/config.toml\"",
}
# Answers whatever is asked, by what it reads; a line for each.
PERSON = """
import json, subprocess, sys, time
stockade = sys.argv[1:]
while True:
    said = subprocess.run([*stockade, "approvals", "list", "--json"], capture_output=True, text=True)
    for session in json.loads(said.stdout) if said.returncode == 0 else ():
        for one in session["asks"]:
            print(one["what"], flush=True)
            word = "allow" if "perhaps-yes" in one["what"] else "deny"
            subprocess.run([*stockade, "approvals", word, session["session"], str(one["number"])], stdout=sys.stderr)
    time.sleep(0.2)
"""


@pytest.mark.timeout(200)
@pytest.mark.agents
@pytest.mark.wall
@pytest.mark.parametrize("name", ["claude", "codex"])
def test_a_real_agent_asks_before_each_call(machine: Machine, name: str) -> None:  # noqa: F811
    case = machine.case
    (case.home / ".config/stockade").mkdir(parents=True, exist_ok=True)
    (case.home / ".config/stockade/policy.toml").write_text(RULES)
    (case.tmp / "person.py").write_text(PERSON)
    made = ("plain.txt", "never.txt", "perhaps-yes.txt", "perhaps-no.txt")
    assert machine.run(*STOCKADE, "run", "--agent", name, "--", "bash", "-c", OFF[name]).code == 0
    order = f"Please do this for me: {' '.join(instruct(f'echo done > {one}') for one in made)} After that you are done."
    words = {"claude": ("claude", "-p"), "codex": ("codex", "exec", "--skip-git-repo-check", "-m", "gpt-5")}[name]
    script = 'python=$1; shift; "$python" /tmp/person.py "${@:1:4}" > /tmp/asked.txt & person=$!; "$@"; code=$?; kill $person; exit $code'
    done = machine.run("bash", "-c", script, "sh", sys.executable, *STOCKADE, "run", *words, order)
    assert done.code == 0, done.stderr + done.stdout
    assert [one for one in made if (case.workspace / one).exists()] == ["plain.txt", "perhaps-yes.txt"]
    asked = (case.tmp / "asked.txt").read_text().splitlines()
    assert [line.startswith('the tool Bash with {"command":"echo done > perhaps-') for line in asked] == [True, True], asked
    said = [
        json.loads(line)
        for path in case.home.rglob("ledger/*")
        if path.is_file()
        for line in path.read_bytes().splitlines()
        if b'"tool"' in line
    ]
    policy = f"tool {HOME}/.config/stockade/policy.toml"
    assert [(one["effect"], one["rule"]) for one in said if one["kind"] == "tool" and one["tool"] == "Bash"] == [
        ("allow", "no-tool-rule"),
        ("deny", f"{policy}:4 (tool[0])"),
        ("allow", f"approved: {policy}:9 (tool[1])"),
        ("deny", f"{policy}:9 (tool[1])"),
    ]
    # What the agent read is why, so that its model can go on in another way.
    told = b"".join(record.data for record in machine.yard.take())
    assert b"stockade: Bash is denied by" in told and b"nobody approved it." in told
