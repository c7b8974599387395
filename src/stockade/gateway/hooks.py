"""What is asked of the gate itself, by its own name, and what it answers: may a tool be called, a file be changed, a folder be shown.

About tools these are the answers of Claude Code's and Codex's own protocol, which share these words (PreToolUse, PermissionRequest): the hook inside only carries bytes, so
that nothing there has to understand them, and what the gate says here is what the agent reads.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from stockade.core.frozen import frozen
from stockade.core.values import ALLOW, DENY

if TYPE_CHECKING:
    from typing import Any

    from stockade.core.values import Verdict

CALL = "/tool"  # where the gate is asked about a tool call
FILE = "/file"  # and where about a change to a file
MOUNT = "/mount"  # and where about a folder that is to be shown
LONGEST = {CALL: 1 << 20, FILE: 32 << 10, MOUNT: 4 << 10}  # bytes of such a question


@frozen
class Call:
    """A tool call that an agent asks about (checks/tools.py), where `event` is its own word for the question: what `digest` (SHA-256, hex) and `length` (characters)
    are of is its arguments, and `shown` their beginning. `place` is that of the rule that decides (-1 = none does). All texts are printable ASCII.
    """

    event: str
    tool: str
    digest: str
    length: int
    shown: str
    place: int


@frozen
class Change:
    """A change to a file that somebody inside asks for (checks/protected.py): its `path` in the workspace and the `content` that it shall have, in base64. `digest`
    (SHA-256, hex) and `length` (bytes) are of that. `place` as in a Call."""

    path: str
    content: str
    digest: str
    length: int
    place: int


@frozen
class Showing:
    """A folder that somebody inside asks for by this `path`, in printable ASCII (checks/offered.py). `place` as in a Call."""

    path: str
    place: int


def about(said: dict[str, Any]) -> Call | Change | Showing:
    """What is asked about, from its fields."""
    return Call(**said) if "event" in said else Change(**said) if "content" in said else Showing(**said)


def answer(call: Call, verdict: Verdict) -> bytes:
    """The answer to the question about a call. Leave that only comes of no rule's being there says nothing, and leaves an agent's own questions to it."""
    event, said = call.event, dict[str, object]()
    reason = " ".join(("stockade:", *verdict.reasons))
    if event == "PreToolUse" and verdict.effect != ALLOW:  # Codex takes no "allow" here, and needs none
        said = {"permissionDecision": DENY, "permissionDecisionReason": reason}
    elif event == "PermissionRequest" and verdict.effect != ALLOW:
        said = {"decision": {"behavior": DENY, "message": reason}}
    elif event == "PermissionRequest" and call.place >= 0:
        said = {"decision": {"behavior": ALLOW}}
    return json.dumps({"hookSpecificOutput": {"hookEventName": event, **said}} if said else {}).encode() + b"\n"


def done(about: Change | Showing, verdict: Verdict) -> bytes:
    """The answer to whoever asked for something to be done outside."""
    done, what = verdict.effect == ALLOW, "written" if isinstance(about, Change) else "mounted"
    return json.dumps({"path": about.path, what: done, "why": "" if done else " ".join(verdict.reasons)}).encode() + b"\n"
