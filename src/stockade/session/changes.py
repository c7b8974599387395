"""A change to a file that is held read-only, from the gate's question to the bytes on the disk. Imported when somebody asks for one.

INVARIANT: what is written is what was shown, to the file that was shown, after the ledger has question, answer and this.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from typing import TYPE_CHECKING

from stockade.checks import protected
from stockade.core.errors import StockadeError, WallFailed
from stockade.session import after
from stockade.walls.workspace import change, names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.core.asks import Asked
    from stockade.core.tools import FileRule
    from stockade.session import Session


class Change:
    """What the gate's `event` asks for. Raises StockadeError (`file.*`) for a file that cannot be asked about, WallFailed (`gate.protocol`) for an event that
    says two things."""

    def __init__(self, session: Session, event: Mapping[str, object], rule: FileRule) -> None:
        self._session, self._rule, self.path = session, rule, str(event.get("path", ""))
        try:
            self._after = b64decode(str(event.get("content", "")), validate=True)
        except ValueError:
            self._after = b""
        said = (event.get("digest"), event.get("length"))
        if (hashlib.sha256(self._after).hexdigest(), len(self._after)) != said or not protected.fits(rule.path, self.path):
            raise WallFailed("the gate asked about a file in two ways", code="gate.protocol", hint="The network stays closed.")
        self._before = change.look(session.view.facts, self.path)
        if self._before == self._after:
            raise StockadeError(f"{self.path} holds this already", code="file.same")

    def question(self, number: int, *, tainted: bool, shown: bool) -> Asked:
        """The question. Raises StockadeError (`file.unshown`) where nobody can be shown what would change."""
        judged = names.judge(self.path)
        why = judged[1] if judged is not None else ""
        try:
            return protected.question(number, self.path, self._before, self._after, self._rule, why, tainted=tainted, shown=shown)
        except protected.Unshowable as error:
            raise StockadeError(f"a change to {self.path} cannot be asked for: {error}", code="file.unshown") from error

    def carry_out(self, number: int) -> str:
        """Write it, as the answer to question `number`. Why it was not written, "" if it was. Raises StockadeError (`ledger.*`): it was not, then."""
        session, aside = self._session, f"{self._session.directory}/before-{number}"
        digests = [None if side is None else hashlib.sha256(side).hexdigest() for side in (self._before, self._after)]

        def receipt() -> None:
            session.record("file.write", ask=number, path=self.path, before=digests[0], after=digests[1])
            if self._before is not None:  # should we be killed now, whoever looks after our directory keeps what the file held
                after.keep(session.directory, [f"what {self.path} held before it was changed, in {aside}"])

        try:
            change.put(session.view.facts, self.path, self._before, self._after, aside, receipt)
        except change.Refused as error:
            if error.code == "file.torn":
                session.torn.append(error.message)
            session.record("file.refused", ask=number, path=self.path, code=error.code, reason=error.message)
            return error.message
        finally:
            if not session.torn:
                after.release(session.directory)
        return ""
