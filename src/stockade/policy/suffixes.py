"""Names below which anyone can register one: the Public Suffix List (publicsuffix.org), as the package `publicsuffixlist` carries it. Asks nobody.

Both halves of the list count, registries and the companies that let anyone take a name below theirs: a grant for every name there is one for the attacker's.
Loaded only when a rule covers every name below another.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import publicsuffixlist

from stockade.core.errors import PolicyError

if TYPE_CHECKING:
    from stockade.policy.files import Watch


def shared(name: str, watch: Watch) -> str:
    """The public suffix that every name below `name` (a normal host name) would take in: `name` itself or one below it; "" if there is none.

    A top-level domain that the list does not have (`corp.internal`) is somebody's own network; below it nothing is shared. Raises PolicyError
    `policy.no-suffix-list` when the list cannot be read.
    """
    text = watch.program(publicsuffixlist.PSLFILE)
    if not text:
        raise PolicyError(
            f"the list of public suffixes cannot be read, so nobody can say whose names *.{name} covers",
            code="policy.no-suffix-list",
            hint=f"Install the package publicsuffixlist again: it lacks {publicsuffixlist.PSLFILE}. Or name each host.",
        )
    if _rules(text).is_public(name):
        return name
    return next((rule for rule in _suffixes(text) if rule.endswith(f".{name}")), "")


@lru_cache(1)
def _rules(text: str) -> publicsuffixlist.PublicSuffixList:
    return publicsuffixlist.PublicSuffixList(text)


@lru_cache(1)
def _suffixes(text: str) -> tuple[str, ...]:
    """Every suffix of the list in its xn-- form; `*.ck` is in it as `ck`. The format is publicsuffix.org's: one rule a line, up to the first space."""
    rules = (line.split()[0].lower().removeprefix("*.") for line in text.splitlines() if line.strip() and not line.startswith(("//", "!")))
    return tuple(rule if rule.isascii() else rule.encode("idna").decode() for rule in rules)
