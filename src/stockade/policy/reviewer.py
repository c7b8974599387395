"""The [reviewer] table of all layers: who may answer in a person's place, and what.

INVARIANT: the highest layer that has one brings it, and those below can only take away: more denials, and that it approves nothing. A project has no say at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade.core.frozen import replace
from stockade.core.reviews import Reviewer, ReviewModel, ReviewRule
from stockade.core.values import ASK, Credential, Grant
from stockade.policy.kinds import split_url

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.core.errors import PolicyError
    from stockade.core.tools import ToolRule
    from stockade.policy.caps import Caps
    from stockade.policy.egress import Rules
    from stockade.policy.model import ReviewAllowTable, ReviewDenyTable, ReviewerTable
    from stockade.policy.read import Document

TIMEOUT = 20  # seconds
_LONGEST = 60
_QUESTION = 64 << 10  # bytes
_OF_A_MODEL = ("api", "model", "credential", "timeout", "private")


def merge_reviewer(documents: Sequence[Document], caps: Mapping[int, Caps], rules: Rules, errors: list[PolicyError]) -> Reviewer | None:
    """The reviewer that the layers leave, None if there is none. `rules` have been merged. Errors are collected."""
    found: Reviewer | None = None
    owner: Document | None = None
    for one in documents:
        table = one.tables.reviewer
        if table is None or one.layer == "project":  # refused elsewhere (project.py)
            continue
        deny = _rules(table.deny, one, "deny", errors)
        if owner is None and one.layer in ("managed", "user"):
            for key in ("allow", "url"):
                if getattr(table, key):
                    caps[id(one)].reviewer(one, key)
            allow = _rules(table.allow, one, "allow", errors)
            model = _model(table, one, caps[id(one)], rules, errors)
            found = Reviewer(allow, deny, model, table.approves is not False, one.origin("reviewer"))
            owner = one
            continue
        for key in ("allow", "url", *_OF_A_MODEL):
            if getattr(table, key) not in (None, ()):
                errors.append(_too_much(one, key, owner))
        found = found or Reviewer(origin=one.origin("reviewer"))
        if table.approves and not found.approves:
            errors.append(_too_much(one, "approves", owner))
        found = replace(found, deny=(*found.deny, *deny), approves=found.approves and table.approves is not False)
    return found


def unreviewed[Rule: (Grant, ToolRule)](rules: Sequence[Rule], documents: Sequence[Document]) -> tuple[Rule, ...]:
    """The rules, of which those ask a person that stand above the layer that has brought the reviewer: the administrator's questions are the administrator's."""
    managed = {one.name for one in documents if one.layer == "managed" and one.tables.reviewer is None}
    return tuple(replace(rule, unreviewed=True) if rule.effect == ASK and rule.origin.file in managed else rule for rule in rules)


def _too_much(one: Document, key: str, owner: Document | None) -> PolicyError:
    if owner is None:
        hint = "Write it into your own policy. This file can only add deny, and approves = false."
        return one.error(f"reviewer.{key} is not for this file to choose", "reviewer", key, code="policy.reviewer-here", hint=hint)
    where = owner.origin("reviewer")
    hint = f"What stands below {where.file} can only add deny, and approves = false."
    message = f"the reviewer is set up by {where.file}:{where.line}, and reviewer.{key} would change it"
    return one.error(message, "reviewer", key, code="policy.capped", hint=hint)


def _rules(
    tables: tuple[ReviewAllowTable, ...] | tuple[ReviewDenyTable, ...] | None, one: Document, name: str, errors: list[PolicyError]
) -> tuple[ReviewRule, ...]:
    rules = []
    for index, table in enumerate(tables or ()):
        said: dict[str, Any] = {key: value for key in type(table).model_fields if (value := getattr(table, key)) is not None}
        if not any(value not in ((), False) for value in said.values()):
            hint = "Say which: methods, hosts, risk, ..."
            message = "this rule says of no question that it is about it"
            errors.append(one.error(message, "reviewer", name, index, code="policy.reviewer", hint=hint))
        if any(value == () for value in said.values()):
            message = "an empty list is about nothing"
            errors.append(one.error(message, "reviewer", name, index, code="policy.reviewer", hint="Leave the key out to mean any."))
        rules.append(ReviewRule(**said))
    return tuple(rules)


def _model(table: ReviewerTable, one: Document, caps: Caps, rules: Rules, errors: list[PolicyError]) -> ReviewModel | None:
    """The model and, as with any rule of egress, all that may be sent to it."""

    def wrong(message: str, key: str, code: str, hint: str) -> None:
        errors.append(one.error(message, "reviewer", key, code=code, hint=hint))

    if table.url is None:
        for key in _OF_A_MODEL:
            if getattr(table, key) is not None:
                wrong(f"reviewer.{key} is about a model, and there is none", key, "policy.missing-key", "Write url = ... for the model.")
        return None
    for key in ("api", "model"):
        if getattr(table, key) is None:
            wrong(f"reviewer.{key} is missing", key, "policy.missing-key", 'Write api = "anthropic" or "openai", and model = its name.')
    seconds = TIMEOUT if table.timeout is None else table.timeout
    if not 0 < seconds <= _LONGEST:
        wrong(f"reviewer.timeout = {seconds}", "timeout", "policy.bad-value", "Between 1 s and 1 min; meanwhile nobody else is asked.")
    scheme, host, port, path = split_url(table.url)
    if scheme == "http" and not table.private:
        hint = "Use https; http is only for private names (private = true)."
        wrong("what is asked would go to the model unencrypted", "url", "policy.cleartext", hint)
    grant = Grant(
        host,
        port,
        "http" if scheme == "http" else "https",
        ("POST",),
        (path,),
        "none",
        credential=table.credential or "",
        private=bool(table.private),
        origin=one.origin("reviewer", "url"),
        content_types=("application/json",),
        max_upload=_QUESTION,
    )
    grant = caps.grant(grant, one, ("reviewer",), upload_written=False)
    rules.use(grant, one, ("reviewer",), rules.known, rules.written)
    credential: Credential | None = rules.known.get(grant.credential)
    if credential is not None and (credential.services or credential.query):
        wrong(f"the credential {credential.name} does not go into a header", "credential", "policy.reviewer", "Use one with a header.")
        return None
    return ReviewModel(table.api or "openai", table.url, table.model or "", seconds, grant, credential)
