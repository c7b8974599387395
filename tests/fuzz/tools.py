"""INVARIANT: whatever an agent says about a tool call, it is one call with a name in visible ASCII and arguments in printable ASCII, or a ValueError that names its rule; a
denial for every tool denies it, and its question is the same however its JSON was spaced."""

from __future__ import annotations

import json

from stockade.checks import tools
from stockade.core.tools import ToolRule
from stockade.core.values import DENY, Origin

WORDS = (
    b'{"hook_event_name":"PreToolUse"', b'"tool_name":"Bash"', b'"tool_name":"mcp__a__b"', b'"tool_input":{', b'"command":"ls"', b'"command":', b"}", b"},", b",", b":",
    b'"PermissionRequest"', b"null", b"true", b"1e9", b"-0", b"NaN", b"[", b"]", b"\\u001b", b"\\ud800", b"\x7f", b"\xc3\xa9", b" ", b"\n",
)  # fmt: skip
_BASH = b'{"hook_event_name":"PreToolUse","tool_name":"Bash","tool_input":'
KEPT = {
    "a call": _BASH + b'{"command":"git push","timeout":5}}',
    "the other question": b'{"hook_event_name":"PermissionRequest","tool_name":"Write","tool_input":{"file_path":"/a","content":""},"cwd":"/"}',
    "half a surrogate pair": _BASH + b'{"command":"\\ud800"}}',
    "a character that terminals take for an order": _BASH + b'{"command":"\x7f\\u001b[2J"}}',
    "a name that stands twice": _BASH + b'{"command":"ls","command":"rm"}}',
    "a tool that stands twice": b'{"hook_event_name":"PreToolUse","tool_name":"Read","tool_input":{},"tool_name":"Bash"}',
    "a name that looks like another": '{"hook_event_name":"PreToolUse","tool_name":"B\u0430sh","tool_input":{}}'.encode(),
    "nesting": _BASH + b"[" * 60000,
    "a number with more digits than Python converts": _BASH + b'{"n":' + b"9" * 5000 + b"}}",
    "a number that is too large for one": _BASH + b'{"n":1e999}}',
    "no number": _BASH + b'{"n":Infinity}}',
}
FAULT = ("stockade.checks.tools._once", dict)
_ALL = ToolRule("*", DENY, (), False, Origin("user.toml", 1, "tool[0]"))


def one(data: bytes) -> None:
    try:
        call = tools.read(data)
    except ValueError as error:
        assert getattr(error, "rule", "") == "bad-tool-call" and f"{error}".isprintable()
        return
    assert call.event in tools.EVENTS and call.name.isascii() and call.name.isprintable() and 0 < len(call.name) <= 200
    assert call.shown.isascii() and call.shown.isprintable() and len(tools.beginning(call)) <= 1500
    assert tools.decide(call, (_ALL,))[0].effect == DENY
    names: list[str] = []
    json.loads(data, object_pairs_hook=lambda pairs: names.extend(name for name, _ in pairs) or dict(pairs))
    given = json.loads(call.shown)
    again = json.dumps({"tool_input": given, "tool_name": call.name, "hook_event_name": call.event}, indent=1).encode()
    assert tools.read(again) == call or len(given) > 1  # then in another order
    assert tools.read(again).digest == call.digest and names.count("tool_name") == 1 + _within(given, "tool_name")


def _within(value: object, name: str) -> int:
    """How often a name stands in a value."""
    if isinstance(value, dict):
        return sum((key == name) + _within(item, name) for key, item in value.items())
    return sum(_within(item, name) for item in value) if isinstance(value, list) else 0
