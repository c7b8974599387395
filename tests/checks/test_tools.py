"""Rules for tool calls, by their laws; what is asked about one, and that an approval of one is never one of a request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks import tools
from stockade.checks.questions import question as about_request
from stockade.core.frozen import replace
from stockade.core.tools import ToolRule
from stockade.core.values import ALLOW, ASK, DENY, Grant, Origin


def call(name: str = "Bash", event: str = "PreToolUse", **given: Any) -> tools.Call:
    return tools.read(json.dumps({"hook_event_name": event, "tool_name": name, "tool_input": given, "cwd": "/work"}).encode())


def rule(name: str, effect: Any, file: str = "user.toml", people: bool = False, **match: str) -> ToolRule:
    return ToolRule(name, effect, tuple(sorted(match.items())), people, Origin(file, 3, f"tool.{name}"))


NAMES = st.sampled_from(["Bash", "Read", "mcp__github__delete", "mcp__github__read"])
RULES = st.builds(
    rule,
    st.sampled_from(["*", "Bash", "mcp__*", "mcp__*__read", "B*h", "Write"]),
    st.sampled_from([ALLOW, ASK, DENY]),
    st.sampled_from(["managed.toml", "user.toml"]),
    st.booleans(),
)
SETS = st.lists(RULES, max_size=6)


@given(NAMES, SETS, st.randoms())
def test_neither_order_nor_duplicates_matter(name: str, rules: list[ToolRule], random: Any) -> None:
    mixed = [*rules, *rules[:2]]
    random.shuffle(mixed)
    assert tools.decide(call(name), mixed) == tools.decide(call(name), rules)


@given(NAMES, SETS)
def test_a_denial_beats_a_question_and_that_a_leave(name: str, rules: list[ToolRule]) -> None:
    verdict, by = tools.decide(call(name), rules)
    fitting = [one for one in rules if tools.decide(call(name), [one])[1] is not None]
    lifting = {one.origin.file for one in fitting if one.effect == ALLOW}
    asking = [one for one in fitting if one.effect == ASK and one.origin.file not in lifting]
    denied = any(one.effect == DENY for one in fitting)
    assert verdict.effect == (DENY if denied else ASK if asking else ALLOW)
    assert (by is None) == (not fitting) and (by is None or by in fitting)
    assert verdict.rule == (f"tool {by.origin}" if by is not None else tools.NO_RULE)


@given(NAMES, SETS, SETS)
def test_a_file_below_only_narrows(name: str, rules: list[ToolRule], more: list[ToolRule]) -> None:
    strict = {ALLOW: 0, ASK: 1, DENY: 2}
    below = [replace(one, origin=Origin("project.toml")) for one in more]
    before, after = (tools.decide(call(name), some)[0].effect for some in (rules, [*rules, *below]))
    assert strict[after] >= strict[before]


def test_what_is_for_people_stays_for_people() -> None:
    for rules in ([rule("Bash", ASK, "a.toml"), rule("*", ASK, "b.toml", people=True)], [rule("*", ASK, people=True), rule("Bash", ASK)]):
        _, by = tools.decide(call(), rules)
        assert by is not None and by.people
    for kept in (
        replace(rule("*", ASK, "z.toml"), unreviewed=True),
        rule("*", ASK, "z.toml", people=True),
    ):  # and who may answer is not widened by another file
        _, by = tools.decide(call(), [rule("Bash", ASK, "a.toml"), kept])
        assert by == kept and not tools.question(1, {"tool": "Bash"}, kept, tainted=False).reviewable


@pytest.mark.parametrize(
    ("match", "fits"),
    [
        ({"command": "git push*"}, True),
        ({"command": "*push --force*"}, True),
        ({"command": "git push --force"}, False),  # it goes on
        ({"command": "*origin main"}, True),
        ({"command": "push*"}, False),
        ({"command": "git*main*main"}, False),  # the last word counts once
        ({"command": "*", "timeout": "5000"}, True),  # what is no text is compared as JSON
        ({"command": "*", "timeout": "5"}, False),
        ({"path": "*"}, False),  # there is none
        ({"env": '{"A":"1"}'}, True),
    ],
)
def test_arguments_are_compared_whole(match: dict[str, str], fits: bool) -> None:
    given = call(command="git push --force\norigin main", timeout=5000, env={"A": "1"})
    assert (tools.decide(given, [rule("Bash", DENY, **match)])[0].effect == DENY) is fits


@given(st.text("ab*", max_size=8), st.text("ab", max_size=12))
def test_a_pattern_is_any_text_for_each_star(pattern: str, text: str) -> None:
    import re

    assert tools.matches(pattern, text) is (re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), text, re.DOTALL) is not None)


def test_many_stars_on_a_long_text_take_no_time() -> None:
    assert not tools.matches("*a" * 40 + "*b", "a" * 500_000)  # tried one after the other it would not end


@pytest.mark.parametrize(
    "said",
    [
        b"", b"[]", b"null", b"{", b"\xff", b'"' + b"x" * 70000, b"[" * 70000, b"9" * 5000,
        b'{"hook_event_name":"PreToolUse","tool_name":"Bash"}',
        b'{"hook_event_name":"PreToolUse","tool_name":"Bash","tool_input":[]}',
        b'{"hook_event_name":"Stop","tool_name":"Bash","tool_input":{}}',
        b'{"hook_event_name":"PreToolUse","tool_name":"","tool_input":{}}',
        b'{"hook_event_name":"PreToolUse","tool_name":"a b","tool_input":{}}',
        b'{"hook_event_name":"PreToolUse","tool_name":"Read","tool_name":"Bash","tool_input":{}}',
        b'{"hook_event_name":"PreToolUse","tool_name":"Bash","tool_input":{"command":"ls","command":"rm"}}',
        b'{"hook_event_name":"PreToolUse","tool_name":"Bash","tool_input":{"n":NaN}}',
        json.dumps({"hook_event_name": "PreToolUse", "tool_name": "B\u0430sh", "tool_input": {}}).encode(),
    ],
    ids=lambda said: ascii(said[:40]),
)  # fmt: skip
def test_what_is_no_question_or_two_is_an_error(said: bytes) -> None:
    with pytest.raises(tools.Unreadable) as caught:
        tools.read(said)
    assert caught.value.rule == "bad-tool-call"


def asked(given: tools.Call, by: ToolRule, tainted: bool = False) -> Any:
    event = {
        "kind": "tool",
        "session": "s",
        "effect": ASK,
        "rule": "r",
        "tool": given.name,
        "digest": given.digest,
        "length": len(given.shown),
    }
    return tools.question(1, {**event, "asks": tools.beginning(given)}, by, tainted=tainted)


def test_a_person_reads_what_is_called_and_with_what() -> None:
    by = rule("Bash", ASK, people=True)
    found = asked(call(command="rm -rf \x1b[2J\x7f\u202e"), by)
    assert found.what == 'the tool Bash with {"command":"rm -rf \\u001b[2J\\u007f\\u202e"}' and found.what.isprintable()
    assert (found.action, found.risk, found.people, found.rule) == ("tool", "medium", True, str(by.origin))
    assert "rm" not in found.key  # which the ledger keeps
    long = asked(call(command="x" * 5000 + "evil"), by)
    assert "evil" not in long.what and long.what.endswith("more characters, which are not shown") and long.risk == "high"


def test_other_arguments_are_another_question() -> None:
    by = rule("*", ASK)
    calls = [
        call(command="ls"),
        call(command="ls "),
        call("Bosh", command="ls"),
        call(command="x" * 5000 + "a"),
        call(command="x" * 5000 + "b"),
    ]
    assert len({asked(one, by).key for one in calls}) == len({asked(one, by).digest for one in calls}) == len(calls)
    assert asked(call(command="ls", event="PermissionRequest"), by).key == asked(call(command="ls"), by).key  # of the same call


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30), st.sampled_from(["GET", "TOOL", "tool"]))
def test_an_approval_of_a_call_is_never_one_of_a_request(text: str, method: str) -> None:
    """Whatever the sandbox chooses as names, hosts and paths: the keys begin differently, and the digest is of the kind as well."""
    about_tool = asked(call(text), rule("*", ASK))
    event = {"kind": "egress", "scheme": "https", "host": text, "port": 443, "method": method, "path": f"/{text}", "length": 0}
    for scheme in ("https", "tcp"):
        other = about_request(1, {**event, "scheme": scheme}, Grant("*", effect=ASK), tainted=False)
        assert other.key != about_tool.key and other.digest != about_tool.digest and other.action != about_tool.action
