"""What may be asked from inside, of all layers: [[tool]], [[file]], and mounts with the effect "ask"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.errors import PolicyError
from stockade.core.tools import FileRule, MountRule, ToolRule
from stockade.core.values import ASK

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stockade.core.values import MountMode
    from stockade.policy.caps import Caps
    from stockade.policy.model import MountTable
    from stockade.policy.read import Document


def merge_tools(documents: Sequence[Document], oversight: str, errors: list[PolicyError]) -> tuple[ToolRule, ...]:
    """All rules of all layers: the strictest counts (checks/tools.py), so a layer can only narrow what those above it say. Errors are collected."""
    found = []
    for one in documents:
        for index, table in enumerate(one.tables.tool):
            key = ("tool", index)
            if table.people is not None and table.effect != ASK:
                hint = 'Write effect = "ask" as well: people says who may approve.'
                errors.append(one.error('people needs effect = "ask"', *key, "people", code="policy.people", hint=hint))
            if table.effect == ASK and oversight == "none":
                message = 'this rule asks, and with oversight = "none" nobody is there who could be asked'
                hint = "Deny it, or leave the rule out; the wall holds whatever the tool does."
                errors.append(one.error(message, *key, code="policy.nobody-to-ask", hint=hint))
            found.append(ToolRule(table.name, table.effect, tuple(sorted(table.match.items())), bool(table.people), one.origin(*key)))
    return tuple(dict.fromkeys(found))


def merge_files(
    documents: Sequence[Document], oversight: str, caps: Mapping[int, Caps], mode: MountMode, errors: list[PolicyError]
) -> tuple[FileRule, ...]:
    """All rules of all layers: a denial counts, wherever it stands (checks/protected.py). `mode` is the workspace's. Errors are collected."""
    found = []
    for one in documents:
        for index, table in enumerate(one.tables.file):
            key = ("file", index)
            if table.effect == ASK:
                caps[id(one)].files(one, key)
            if table.effect == ASK and oversight == "none":
                message = 'this rule asks, and with oversight = "none" nobody is there who could be asked'
                errors.append(
                    one.error(message, *key, code="policy.nobody-to-ask", hint='Write effect = "deny": then it is held read-only.')
                )
            if mode in ("review", "rw-no-delete"):
                hint = 'There, no change reaches your disk during the run: leave the rule out, or choose mode = "rw".'
                errors.append(one.error(f'no file is held in a workspace with mode = "{mode}"', *key, code="policy.file", hint=hint))
            found.append(FileRule(table.path, table.effect, one.origin(*key)))
    return tuple(dict.fromkeys(found))


def offer(
    table: MountTable, one: Document, key: tuple[str | int, ...], rule: MountRule, offers: dict[str, MountRule], errors: list[PolicyError]
) -> bool:
    """Whether this mount is one that has to be asked for; it is in `offers` then, by its target. Errors are collected."""
    if table.effect != ASK:
        if by := offers.get(rule.target):
            hint = f"Leave it out; or change {by.origin.file}, if it is yours."
            errors.append(one.error(f"{rule.target} is asked for, says {by.origin}", *key, code="policy.capped", hint=hint))
        return False
    for name, wrong in (("mode", table.mode not in (None, "ro")), ("secret", bool(table.secret))):
        if wrong:
            hint = "What is asked for is read-only, and nothing secret: mount it from the start."
            errors.append(one.error(f'{name} cannot stand with effect = "ask"', *key, name, code="policy.mount-asked", hint=hint))
    offers[rule.target] = rule
    return True


def asked_mounts(offers: Mapping[str, MountRule], oversight: str, errors: list[PolicyError]) -> tuple[MountRule, ...]:
    """The mounts that have to be asked for. Errors are collected."""
    for at in [rule.origin for rule in offers.values()] if oversight == "none" else ():
        message, hint = (
            'this mount is asked for, and with oversight = "none" nobody is there who could be asked',
            "Mount it, or leave it out.",
        )
        errors.append(PolicyError(message, code="policy.nobody-to-ask", file=at.file, line=at.line, key=at.key, hint=hint))
    return tuple(offers.values())
