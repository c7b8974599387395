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

_BOUNDS = ("timeout", "pending", "per_minute", "refusals", "canaries")
_TOLD = ("webhook", "webhook_secret", "notify")
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
        for name in _BOUNDS if table is not None else ():
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
    asking = _told(documents, asking, errors)
    if oversight == "none":
        for at in dict.fromkeys(grant.origin for grant in grants if grant.effect == ASK):
            message = 'this rule asks, and with oversight = "none" nobody is there who could be asked'
            hint = "Grant what is needed, or leave the rule out; what is not granted does not happen."
            errors.append(PolicyError(message, code="policy.nobody-to-ask", file=at.file, line=at.line, key=at.key, hint=hint))
    return asking


def _told(documents: Sequence[Document], asking: Asking, errors: list[PolicyError]) -> Asking:
    """Who is told what is asked: that is for the user and the administrator to say, and the administrator's webhook stays. Errors are collected."""
    by: Document | None = None
    for one in documents:
        table = one.tables.approvals
        given = [name for name in _TOLD if table is not None and getattr(table, name) is not None]
        if table is None or not given:
            continue
        if one.layer not in ("managed", "user"):
            hint = "Write it into your own policy; nobody else says who learns what you are asked."
            errors.append(one.error(f"approvals.{given[0]} does not count here", "approvals", given[0], code="policy.told", hint=hint))
            continue
        if (table.webhook is None) != (table.webhook_secret is None):
            hint = "Nothing is sent that its receiver could not check. Write both, or neither."
            errors.append(one.error("webhook and webhook_secret belong together", "approvals", given[0], code="policy.told", hint=hint))
            continue
        if table.webhook is not None and by is not None:
            message = f"{by.name} names a webhook already"
            errors.append(
                one.error(message, "approvals", "webhook", code="policy.capped", hint=f"Only the owner of {by.name} can change it.")
            )
            continue
        if table.webhook is not None:
            by, asking = one, replace(asking, webhook=table.webhook, webhook_secret=table.webhook_secret)
        if table.notify is not None:
            asking = replace(asking, notify=table.notify)
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
