"""The [[tool]] tables of all layers: what agents may call their tools for, where they ask."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.tools import ToolRule
from stockade.core.values import ASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.errors import PolicyError
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
