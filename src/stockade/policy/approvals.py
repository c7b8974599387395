"""The [approvals] table of all layers, and the rules whose requests wait for a person's word."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.errors import PolicyError
from stockade.core.frozen import replace
from stockade.core.values import ASK, Asking

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.values import Grant
    from stockade.policy.model import EgressTable
    from stockade.policy.read import Document

_MORE_IS_STRICTER = ("canaries",)
_ANY = "*"
_NOT_WITH_ANY = ("git", "grpc", "websocket", "headers", "credential", "private", "secret", "after_secret")
_LONGEST = 600  # seconds: the engine does not wait longer for the brain (gateway/config.py)


def merge_approvals(documents: Sequence[Document], grants: Sequence[Grant], oversight: str, errors: list[PolicyError]) -> Asking:
    """How is asked. What one layer wrote, those below it can only tighten. Errors are collected."""
    asking = Asking()
    holders: dict[str, Document] = {}
    for one in documents:
        table = one.tables.approvals
        for name in type(table).model_fields if table is not None else ():
            value = getattr(table, name)
            if value is None:
                continue
            if value == 0 and name in ("timeout", "pending", "per_minute"):
                hint = "Nothing could ever be approved; a rule that nobody may approve is a denial."
                errors.append(
                    one.error(f"approvals.{name} = 0 leaves no room for a question", "approvals", name, code="policy.bad-value", hint=hint)
                )
                continue
            if name == "timeout" and value > _LONGEST:
                hint = "At most 10 min; whoever asked has given up by then."
                errors.append(one.error("nobody waits that long for an answer", "approvals", name, code="policy.bad-value", hint=hint))
                continue
            by = holders.get(name)
            if by is not None and _wider(name, value, getattr(asking, name)):
                where = by.origin("approvals", name)
                message = f"approvals.{name} = {value} is wider than {where.file}:{where.line} allows ({where.key})"
                hint = f"Allowed: {getattr(asking, name)}, or stricter. Only the owner of {where.file} can widen it."
                errors.append(one.error(message, "approvals", name, code="policy.capped", hint=hint))
                continue
            asking, holders[name] = replace(asking, **{name: value}), one
    if oversight == "none":
        for at in dict.fromkeys(grant.origin for grant in grants if grant.effect == ASK):
            message = 'this rule asks, and with oversight = "none" nobody is there who could be asked'
            hint = "Grant what is needed, or leave the rule out; what is not granted does not happen."
            errors.append(PolicyError(message, code="policy.nobody-to-ask", file=at.file, line=at.line, key=at.key, hint=hint))
    return asking


def _wider(name: str, value: int, than: int) -> bool:
    if name in _MORE_IS_STRICTER:
        return value < than
    if name == "refusals":  # 0 = never pauses
        return value == 0 < than or value > than > 0
    return value > than


def anywhere(table: EgressTable, one: Document, key: tuple[str | int, ...], errors: list[PolicyError]) -> None:
    """What a rule for any host may say: it asks, and nothing goes there but plain requests to public addresses."""
    if table.host != _ANY:
        return
    if table.effect != ASK:
        hint = 'Write effect = "ask": then a person is asked about hosts that no other rule names. What is not granted is refused without a rule.'
        errors.append(one.error('host = "*" needs effect = "ask"', *key, "host", code="policy.any-host", hint=hint))
    for name in sorted(table.model_fields_set & set(_NOT_WITH_ANY)) + ["scheme"] * (table.scheme == "tcp"):
        hint = "Name the host in a rule of its own: whoever is asked about a host that nobody knows cannot judge this as well."
        errors.append(one.error(f'{name} cannot stand with host = "*"', *key, name, code="policy.any-host", hint=hint))


def asks(grant: Grant, table: EgressTable, one: Document, key: tuple[str | int, ...], errors: list[PolicyError]) -> Grant:
    """The rule with what its table says about who may approve it."""
    if table.people is not None and grant.effect != ASK:
        hint = 'Write effect = "ask" as well: people says who may approve.'
        errors.append(one.error('people needs effect = "ask"', *key, "people", code="policy.people", hint=hint))
    return replace(grant, people=True) if table.people and grant.effect == ASK else grant
