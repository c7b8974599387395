"""What a running session's user may ask of it at its desk (gateway/desk.py). Imported when somebody does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade.core.frozen import plain

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.session import Session
    from stockade.session.gate import GateKeeper


def obey(keeper: GateKeeper, session: Session, order: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
    """Carry out one order; `answer` is called once, now or later. Raises StockadeError for a no, ValueError for what is no order.

    INVARIANT: an order narrows, or answers what was asked.
    """
    signer = session.signer
    match order:
        case {"do": "grants", **rest} if not rest:
            answer({"grants": keeper.grants(), "signing": signer.plain() if signer is not None else None})
        case {"do": "revoke-signing", **rest} if not rest:
            answer({"revoked": [], "signing": signer is not None and signer.revoke()})
        case {"do": "pause", **rest} if not rest:
            answer({"paused": True, "changed": session.pause()})
        case {"do": "resume", **rest} if not rest:
            answer({"paused": False, "changed": session.resume()})
        case {"do": "asks", **rest} if not rest:
            answer(keeper.questions.plain())
        case {
            "do": "answer",
            "ask": int(number),
            "digest": str(digest),
            "allow": bool(allow),
            "scope": str(scope),
            "channel": str(channel),
            **rest,
        } if not rest:
            answer(plain(keeper.questions.answer(number, digest, allow, channel=channel[:32], scope=scope)))
        case {"do": "disapprove", "key": str(key), **rest} if not rest:
            keeper.questions.revoke(key)
            answer({"revoked": [key]})
        case {"do": "rules", **rest} if not rest:
            answer(keeper.rules())
        case {"do": "revoke-token", "token": str(token), **rest} if not rest:
            keeper.revoke_token(token, answer)
        case {"do": "revoke", "rules": list(rules), **rest} if not rest and all(type(rule) is int for rule in rules):
            signing = {"signing": True} if not rules and signer is not None and signer.revoke() else {}
            keeper.revoke(rules, lambda said: answer({**said, **signing}))
        case _:
            raise ValueError("it is of no known kind")
