"""What a person, or a reviewer in its place, is asked; and what was answered. Plain values: the gate's side, the channels and the ledger share them."""

from __future__ import annotations

from stockade.core.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    Risk = Literal["low", "medium", "high"]
    Scope = Literal["once", "session"]
    Outcome = Literal["approved", "refused", "timed_out", "withdrawn", "too_many", "earlier", "canary"]


@frozen
class Asked:
    """One question. `number` is the session's own, from 1; `what` is the canonical text of what is asked, and `digest` the SHA-256 of all of it (hex).

    `key` is what a repetition shares, and what an approval for the session covers; `also` says in words what else that would allow. `rule` is where the rule
    stands that asks. `people`: no reviewer may answer; `reviewable`: one may approve it. `asked` (when somebody was shown it) and `expires` are Unix seconds.
    `trap` is why a canary must be refused, "" for a real question. `method`, `host` and `size` (bytes it sends, -1 = unknown) are for rules. `review` is what an
    automatic reviewer said that left it to a person: hostile text, as printable ASCII. `detail` are the lines of what does not fit one, such as a difference: all of
    it, as printable ASCII.
    """

    number: int
    action: str
    what: str
    digest: str
    key: str
    also: str = ""
    rule: str = ""
    risk: Risk = "medium"
    reversible: bool = False
    tainted: bool = False
    people: bool = False
    asked: float = 0.0
    expires: float = 0.0
    trap: str = ""
    reviewable: bool = True
    method: str = ""
    host: str = ""
    size: int = -1
    review: str = ""
    detail: tuple[str, ...] = ()


@frozen
class Answered:
    """What became of a question. `by` is "person", "reviewer" or "rule"; `channel` where it was answered; `seconds` how long that took.

    `allow` is never true for a canary: then `caught` says whether somebody approved it. `failed` is why something that was allowed could not be done ("" = nothing failed).
    """

    asked: Asked
    allow: bool
    outcome: Outcome
    by: Literal["person", "reviewer", "rule"]
    channel: str = ""
    scope: Scope = "once"
    seconds: float = 0.0
    caught: bool = False
    failed: str = ""
    pause: bool = False  # that many refusals in a row are a sign: the session is to stand still


def lesson(trap: str, caught: bool) -> str:
    """What a person reads after answering a canary."""
    return f"That was a test, and nothing of it was done: {trap} {'You let it pass.' if caught else 'You saw it.'}"


def safe(text: str) -> str:
    """What comes from a sandbox is shown as printable ASCII, and as nothing else: no control characters, no letters that look like others, none that turn a line around."""
    return text.encode("ascii", "backslashreplace").decode() if text.isprintable() else ascii(text)[1:-1]
