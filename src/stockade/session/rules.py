"""From what a person has approved to rules that need no asking: the narrowest, shown as a difference to the user's policy before anything is written."""

from __future__ import annotations

import difflib
import json
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from stockade.checks.questions import key
from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.core.values import DENY
from stockade.policy import files
from stockade.policy.learn import Proposal, propose
from stockade.policy.read import parse
from stockade.record.reading import Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

APPROVED = "approved: "  # how the rule of a request begins that somebody let pass (gateway/brain.py)


@frozen
class Change:
    """What the user's policy would become. `asked` are rules of other files that go on asking, whatever yours says."""

    path: str
    before: str
    after: str
    proposals: tuple[Proposal, ...]
    asked: tuple[str, ...] = ()

    @property
    def diff(self) -> str:
        """A unified diff."""
        lines = difflib.unified_diff(
            self.before.splitlines(keepends=True), self.after.splitlines(keepends=True), self.path, f"{self.path} (proposed)"
        )
        return "".join(lines)


def proposed(session: str = "") -> Change:
    """Rules for what people have approved, in sessions whose id begins with `session`. Raises StockadeError (`approval.none`), PolicyError."""
    events = list(_events(session))
    people = _by_people(events)  # what a reviewer let pass is no wish of a person's
    approved = [
        {**event, "effect": DENY}
        for event in events
        if event["kind"] == "egress" and str(event.get("rule", "")).startswith(APPROVED) and (event["session"], key(event)) in people
    ]
    path = places.config("policy.toml")
    data = files.read(path, owner=os.geteuid())
    before = "" if data is None else data.decode()
    found = tuple(one for one in propose(approved) if one.rule not in before)
    if not found:
        message, hint = (
            "nothing was approved that a rule could say and none says yet",
            "stockade log show --kind answer lists what was answered.",
        )
        raise StockadeError(message, code="approval.none", hint=hint)
    day = time.strftime("%Y-%m-%d")
    rules = "\n".join(f"# approved {one.requests} time{'s' * (one.requests != 1)} until {day}\n{one.rule}" for one in found)
    after = f"{before.rstrip()}\n\n{rules}" if before.strip() else f"version = 1\n\n{rules}"
    parse(after.encode(), layer="user", name=path)
    others = dict.fromkeys(
        str(event["rule"])
        for event in events
        if event["kind"] == "ask" and event.get("action") == "egress" and not str(event["rule"]).startswith(f"{path}:")
    )
    return Change(path, before, after, found, tuple(others))


def write(change: Change) -> None:
    """Put the change in place, whole or not at all. Raises StockadeError (`policy.changed`, `policy.unwritable`)."""
    data = files.read(change.path, owner=os.geteuid())
    if ("" if data is None else data.decode()) != change.before:
        raise StockadeError(
            f"{change.path} has changed meanwhile", code="policy.changed", hint="Nothing was written; look at the difference again."
        )
    temporary = f"{change.path}.{os.getpid()}"
    try:
        places.private(os.path.dirname(change.path))
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w", encoding="utf-8") as file:
            file.write(change.after)
        os.replace(temporary, change.path)
    except OSError as error:
        with suppress(OSError):
            os.unlink(temporary)
        raise StockadeError(
            f"cannot write {change.path}: {error.strerror}", code="policy.unwritable", hint="Nothing was changed."
        ) from error


def _by_people(events: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """Sessions and keys of what a person has approved at least once."""
    keys = {(event["session"], event.get("ask")): str(event.get("key")) for event in events if event["kind"] == "ask"}
    said = [event for event in events if event["kind"] == "answer" and event.get("effect") == "allow" and event.get("by") == "person"]
    return {(event["session"], keys.get((event["session"], event.get("ask")), "")) for event in said}


def _events(session: str) -> Iterator[dict[str, Any]]:
    for line in Reader(places.state("ledger")).lines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(event, dict)
            and "session" in event
            and event.get("kind") in ("egress", "ask", "answer")
            and str(event.get("session", "")).startswith(session)
        ):
            yield event
