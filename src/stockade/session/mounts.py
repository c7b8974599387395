"""A folder that is shown inside while the session runs, from the gate's question to the mount. Imported when somebody asks for one.

INVARIANT: what is mounted is the folder that was shown, read-only, after the ledger has question, answer and this.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING

from stockade.checks import offered
from stockade.core.errors import CannotEnforce, PolicyError, StockadeError, WallFailed
from stockade.policy.paths import judge
from stockade.walls import adding

if TYPE_CHECKING:
    from stockade.core.asks import Asked
    from stockade.core.tools import MountRule
    from stockade.session import Session

_MOST = 2000  # names that are looked at


class Showing:
    """A folder that is asked for. Raises StockadeError (`mount.*`) for one that cannot be shown now."""

    def __init__(self, session: Session, rule: MountRule) -> None:
        self._session, self._rule, self.path = session, rule, rule.target
        if rule.target in session.shown:
            raise StockadeError(f"{rule.target} is there already", code="mount.same")
        try:
            judge(rule.source, what="mount", mode="ro", origin=rule.origin)
            self._identity = adding.identity(rule.source)
            with os.scandir(rule.source) as found:
                names = [entry.name for entry in islice(found, _MOST + 1)]
        except (PolicyError, CannotEnforce, OSError) as error:
            raise StockadeError(f"{rule.written} cannot be shown: {error}", code="mount.source") from error
        self._names, self._more = names[:_MOST], len(names) > _MOST

    def question(self, number: int, *, tainted: bool) -> Asked:
        """The question."""
        return offered.question(number, self._rule, self._identity, self._names, self._more, tainted=tainted)

    def carry_out(self, number: int) -> str:
        """Mount it, as the answer to question `number`. Why it was not mounted, "" if it was. Raises StockadeError (`ledger.*`): it was not, then."""
        session, rule = self._session, self._rule
        session.record("mount.add", ask=number, source=rule.source, target=rule.target, mode="ro")
        try:
            if session.box.dead or not session.box.ready:
                raise WallFailed("the sandbox does not stand", code="mount.failed")
            judge(rule.source, what="mount", mode="ro", origin=rule.origin)
            adding.add(session.box.pid, rule.source, self._identity, rule.target)
        except (PolicyError, CannotEnforce, WallFailed) as error:
            session.record("mount.refused", ask=number, path=rule.target, code=error.code, reason=error.message)
            return error.message
        session.shown.append(rule.target)
        return ""
