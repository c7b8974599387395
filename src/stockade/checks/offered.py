"""What is asked from inside about a folder that is not shown there: may it be? Pure."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

from stockade.core.asks import Asked, safe
from stockade.core.values import ASK, DENY, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.tools import MountRule

NO_RULE = "no-mount-rule"
_SECRET = re.compile(
    r"^\.env|^\.(aws|ssh|gnupg|netrc|npmrc|pypirc|docker|kube)$|\.(pem|key|p12|pfx|kdbx|keystore)$|^id_(rsa|dsa|ecdsa|ed25519)|secret|passw|credential|token",
    re.IGNORECASE,
)


class Unreadable(ValueError):
    """What came is no question about a mount."""

    rule = "bad-mount"


def read(body: bytes) -> str:
    """The path that is asked for: `{"path": "..."}`, as the policy writes it or as it would be seen inside. Raises Unreadable."""
    try:
        said = json.loads(body.decode())
    except (ValueError, RecursionError):
        said = None
    match said:
        case {"path": str(path), **rest} if not rest and 0 < len(path) <= 1000 and path.isprintable():
            return path
    raise Unreadable('a question about a mount is JSON: {"path": "~/datasets"}')


def decide(path: str, rules: Sequence[MountRule]) -> tuple[Verdict, MountRule | None]:
    """May somebody be asked to show this, and by which rule. Never raises."""
    for rule in rules:
        if path in (rule.written, rule.target):
            return Verdict(ASK, f"mount {rule.origin}", (f"{safe(path)} is shown only with a person's approval: {rule.origin}.",)), rule
    return Verdict(DENY, NO_RULE, (f"no rule lets anybody be asked to show {safe(path)}.",)), None


def question(number: int, rule: MountRule, identity: tuple[int, int], names: Sequence[str], more: bool, *, tainted: bool) -> Asked:
    """The question whether a folder is shown. `identity` is what it is on the disk, `names` are those at its top, and `more` says whether there are others.

    INVARIANT: no reviewer answers it.
    """
    facts = {"kind": "mount", "source": rule.source, "target": rule.target, "identity": identity}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    secrets = sorted(name for name in names if _SECRET.search(name))
    count = f"{len(names)}{' or more' if more else ''}"
    what = f"show the folder {safe(rule.source)} at {safe(rule.target)}, read-only, with all that is in it: {count} entries at its top"
    if secrets:
        what += f"; some look like secrets: {', '.join(safe(name) for name in secrets[:8])}"
    also = "whatever comes into this folder later, until the session ends"
    return Asked(
        number, "mount", what, digest, safe(f"mount {rule.target}"), also, str(rule.origin), "high" if secrets or tainted else "medium", False, tainted, True,
        reviewable=False,
    )  # fmt: skip
