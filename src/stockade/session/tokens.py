"""Which token somebody means who takes one back."""

from __future__ import annotations

from stockade.checks.tokens import Tokens
from stockade.core.errors import StockadeError


def name(session: str, key: str, token: str) -> str:
    """The name of the last block of `token`, which is one of this session or the name of a block already. `key` is the session's public one.

    Raises StockadeError (`session.token`) for anything else.
    """
    try:
        return Tokens(session, key).name(token)
    except ValueError as error:
        if key and len(token) == 128 and set(token) <= set("0123456789abcdef"):  # an Ed25519 signature
            return token
        hint = "Give the whole token (stockade-placeholder-...), or a revocation id of biscuit: 128 hexadecimal digits."
        raise StockadeError(str(error), code="session.token", hint=hint) from None
