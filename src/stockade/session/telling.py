"""Tells others what is asked and answered, beside the channels that answer: a webhook, and the user's desktop. Imported when there is something to tell.

INVARIANT: nobody waits for it, and nothing is decided by it. What it cannot tell is on record once.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

from stockade.core.asks import safe
from stockade.core.errors import StockadeError
from stockade.gateway.errand import Errand

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.core.asks import Answered, Asked
    from stockade.core.loop import Loop
    from stockade.session import Session
    from stockade.session.approvals import Listener

_LONGEST = 800  # characters of a text: whatever is in it, a line stays shorter than what a pipe takes whole


class Telling:
    """A listener of Questions: hands on to `listener` first, then to a process of its own (courier.py)."""

    def __init__(self, session: Session, loop: Loop, say: Callable[[str], None], listener: Listener) -> None:
        self._session, self._say, self._listener = session, say, listener
        self._errand: Errand | None = None
        self._failed = False
        self._asked: set[int] = set()  # what is answered without anybody having been asked is not told
        argv = [sys.executable, "-I", "-m", "stockade.session.courier"]
        told = session.policy.approvals
        setup = {"session": session.id, "webhook": told.webhook, "secret": told.webhook_secret, "notify": told.notify}
        try:
            self._errand = Errand(argv, os.environ, loop, self._hear)
        except OSError as error:
            self._fail(str(error))
        else:
            self._tell(setup)

    def hear(self, asked: Asked | None, answered: Answered | None) -> None:
        """Something is asked, or was answered."""
        self._listener(asked, answered)
        if asked is not None:
            self._asked.add(asked.number)
            self._tell({"kind": "asked", **self._facts(asked)})
        elif answered is not None and answered.asked.number in self._asked:
            self._asked.remove(answered.asked.number)
            facts = {name: getattr(answered, name) for name in ("outcome", "by", "channel", "scope", "seconds")}
            self._tell({"kind": "answered", **self._facts(answered.asked), "effect": "allow" if answered.allow else "deny", **facts})

    def _facts(self, asked: Asked) -> dict[str, Any]:
        """What is told of a question: as much as the ledger has, so neither a query nor anything of a body."""
        facts = {name: getattr(asked, name) for name in ("action", "risk", "reversible", "tainted", "people", "asked", "expires")}
        return {"ask": asked.number, "what": _short(asked.key), "rule": _short(asked.rule), **facts}

    def _tell(self, message: dict[str, Any]) -> None:
        if self._errand is not None and not self._errand.tell(json.dumps(message).encode() + b"\n"):
            self._fail("whoever tells it has ended, or does not keep up")

    def _hear(self, said: bytes) -> None:
        self._say(safe(said.decode("ascii", "replace").strip())[:300])

    def _fail(self, why: str) -> None:
        """What the courier would have written itself, could it be reached."""
        if self._failed:
            return
        self._failed = True
        try:
            self._session.record("approval.untold", to="courier", reason=why)
        except StockadeError:
            pass  # the answers cannot be written either, and are a no
        self._say(f"what is asked cannot be told elsewhere: {safe(why)}")

    def close(self) -> None:
        """Nothing more is told; what was handed over still is."""
        if self._errand is not None:
            self._errand.close()
            self._errand = None


def _short(text: str) -> str:
    text = safe(text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
