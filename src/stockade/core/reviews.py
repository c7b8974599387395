"""What a policy says about an automatic reviewer: rules over what a question says of itself, and a model that is asked about the rest. Plain values."""

from __future__ import annotations

from stockade.core.frozen import frozen
from stockade.core.values import Credential, Grant, Origin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal, Self


@frozen
class ReviewRule:
    """Which questions it is about: those for which all of this holds. () and False say nothing.

    `hosts` are patterns as in a Grant, `risk` those of core/asks.py; `reversible` only what can be undone, `tainted` only after something secret was opened;
    `max_size` is the most bytes of body (-1 = any).
    """

    methods: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    risk: tuple[str, ...] = ()
    reversible: bool = False
    tainted: bool = False
    max_size: int = -1


@frozen
class ReviewModel:
    """A model behind a URL. `grant` is all that whoever asks it may send, with `credential` (None = without one); `timeout` in seconds."""

    api: Literal["anthropic", "openai"]
    url: str
    name: str
    timeout: int
    grant: Grant
    credential: Credential | None = None

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """Rebuild it from `frozen.plain`. Only for data that we validated and wrote ourselves."""
        own = data["credential"]
        lists = {name: tuple(value) for name, value in own.items() if isinstance(value, list)} if own else {}
        credential = Credential(**{**own, **lists, "origin": Origin(**own["origin"])}) if own else None
        return cls(**{**data, "grant": Grant.from_plain(data["grant"]), "credential": credential})


@frozen
class Reviewer:
    """Who answers in a person's place. A denial beats an approval, and the `model` is asked about what no rule decides.

    It approves nothing unless `approves`, and nothing that a rule with `unreviewed` asks about (Grant).
    """

    allow: tuple[ReviewRule, ...] = ()
    deny: tuple[ReviewRule, ...] = ()
    model: ReviewModel | None = None
    approves: bool = True
    origin: Origin = Origin()

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Self:
        """As ReviewModel.from_plain."""

        def rule(item: dict[str, Any]) -> ReviewRule:
            facts: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in item.items()}
            return ReviewRule(**facts)

        rules = {name: tuple(map(rule, data[name])) for name in ("allow", "deny")}
        model = ReviewModel.from_plain(data["model"]) if data["model"] else None
        return cls(**{**data, **rules, "model": model, "origin": Origin(**data["origin"])})
