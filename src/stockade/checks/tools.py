"""What an agent asks about a call of one of its tools, before it makes it: may it? Pure.

These rules are no wall. Whatever a tool does, it does inside; and whoever has taken over an agent can leave the question out. They are for an agent that means well
and does too much.

Laws (tests/checks/test_tools.py): a denial beats everything; what one file asks about, a rule of another file does not lift; neither order nor duplicates
of rules matter; a further denial never allows more; what no rule names is allowed.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from stockade.core.asks import Asked
from stockade.core.frozen import frozen
from stockade.core.tools import ToolRule
from stockade.core.values import ALLOW, ASK, DENY, Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Never

    from stockade.core.asks import Risk

EVENTS = ("PreToolUse", "PermissionRequest")
NO_RULE = "no-tool-rule"
_NAME = re.compile(r"[!-~]{1,200}")  # visible ASCII
_LARGE = 1500  # characters of arguments that are shown; of longer ones nobody has seen the end


@frozen
class Call:
    """A call of a tool. `event` is what the agent calls its question, `arguments` are (name, text) pairs: a string as it is, anything else as JSON.

    `shown` is all of them as JSON in printable ASCII, and `digest` (SHA-256, hex) is of the tool's name and of that.
    """

    event: str
    name: str
    arguments: tuple[tuple[str, str], ...]
    shown: str
    digest: str


class Unreadable(ValueError):
    """What came is no question about a tool call, or could be read in two ways."""

    rule = "bad-tool-call"


def read(body: bytes) -> Call:
    """The call that an agent's hook asks about: a JSON object with `hook_event_name`, `tool_name` and `tool_input` (an object), as Claude Code and Codex write it.
    Whatever else it holds is not looked at. Raises Unreadable."""
    try:
        said = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_never)
        match said:
            case {"hook_event_name": str(event), "tool_name": str(name), "tool_input": dict(given)} if event in EVENTS and _NAME.fullmatch(
                name
            ):
                shown = _json(given)
                arguments = tuple((key, value if isinstance(value, str) else _json(value)) for key, value in given.items())
                return Call(event, name, arguments, shown, hashlib.sha256(f"{name} {shown}".encode()).hexdigest())
    except Unreadable:
        raise
    except (ValueError, RecursionError):
        raise Unreadable("what is asked about a tool call is not readable as JSON") from None
    raise Unreadable("a tool call has a hook_event_name that is known, a tool_name without blanks and a tool_input that is an object")


def decide(call: Call, rules: Sequence[ToolRule]) -> tuple[Verdict, ToolRule | None]:
    """May the call be made, and by which rule. None: no rule is about it, and the wall holds whatever it does. A question is lifted only by a rule of the
    same file that allows, as with requests. Never raises."""
    fitting = sorted({rule for rule in rules if _fits(rule, call)}, key=_order)
    lifted = {rule.origin.file for rule in fitting if rule.effect == ALLOW}
    counting = [rule for rule in fitting if rule.effect != ASK or rule.origin.file not in lifted]
    for effect, what in ((DENY, "is denied by"), (ASK, "needs a person's approval:"), (ALLOW, "is allowed by")):
        for rule in counting:
            if rule.effect == effect:
                return Verdict(effect, f"tool {rule.origin}", (f"{call.name} {what} {rule.origin}.",)), rule
    return Verdict(ALLOW, NO_RULE), None


def question(number: int, event: Mapping[str, object], rule: ToolRule, *, tainted: bool) -> Asked:
    """The question about one call. `event` is the gate's, whose texts are printable ASCII (gateway/control.py).

    INVARIANT: neither its key nor its digest is ever that of a request (questions.py): an approval of one is none of the other.
    """
    name, given, length = str(event.get("tool", "")), str(event.get("asks", "")), int(str(event.get("length", 0)))
    key = f"tool {name} {event.get('digest', '')}"
    whole = length <= len(given)
    risk: Risk = "medium" if whole and not tainted else "high"
    facts = {field: value for field, value in event.items() if field not in ("session", "effect", "rule")}
    digest = hashlib.sha256(json.dumps({**facts, "kind": "tool"}, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    what = f"the tool {name} with {given}" + ("" if whole else f" and {length - len(given)} more characters, which are not shown")
    also = "the same call with the same arguments until the session ends"
    reviewable = not (rule.people or rule.unreviewed or tainted)
    return Asked(number, "tool", what, digest, key, also, str(rule.origin), risk, False, tainted, rule.people, reviewable=reviewable)


def matches(pattern: str, text: str) -> bool:
    """Whether all of `text` is as `pattern` says, where `*` is any text and everything else stands for itself. Each piece is looked for once: no text is long to try."""
    first, *rest = pattern.split("*")
    if not rest:
        return text == pattern
    *middle, last = rest
    at = len(first)
    if not text.startswith(first):
        return False
    for piece in middle:
        at = text.find(piece, at) + len(piece)
        if at < len(piece):
            return False
    return len(text) - at >= len(last) and text.endswith(last)


def beginning(call: Call) -> str:
    """As much of its arguments as a person is shown."""
    return call.shown[:_LARGE]


def _fits(rule: ToolRule, call: Call) -> bool:
    given = dict(call.arguments)
    return matches(rule.name, call.name) and all(name in given and matches(pattern, given[name]) for name, pattern in rule.match)


def _order(rule: ToolRule) -> tuple[object, ...]:
    """Which of several rules with the same effect is named: those first that leave the answer to the fewest, so that this never depends on the order."""
    return (not rule.people, not rule.unreviewed, str(rule.origin), rule.name, rule.match)


def _json(value: object) -> str:
    """One JSON text for each value, in printable ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).replace("\x7f", "\\u007f")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Unreadable("a name stands twice in what is asked about a tool call")
    return found


def _never(word: str) -> Never:
    raise Unreadable(f"{word} is no JSON")
