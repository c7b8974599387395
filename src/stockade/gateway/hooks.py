"""What an agent's hook prints: the answers of Claude Code's and Codex's own protocol, which share these words (PreToolUse, PermissionRequest).

The hook inside only carries bytes, so that nothing there has to understand them: what the gate says here is what the agent reads.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from stockade.core.values import ALLOW, DENY

if TYPE_CHECKING:
    from stockade.core.values import Verdict
    from stockade.gateway.flow import Call


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
