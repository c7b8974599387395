"""What is protected in the workspace stays so when it is replaced on the host while a session runs (walls/workspace/again.py)."""

from __future__ import annotations

from stockade.core.errors import WallFailed
from stockade.core.loop import READ
from stockade.walls.workspace import again

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.loop import Loop
    from stockade.session import Session


class Holding:
    """From now until `close` holds anew what was replaced. What it raises ends the session: WallFailed (`hold.watch`, `hold.lost`), StockadeError (`ledger.*`).

    On walls with a kernel of its own nothing has to be done: that kernel's own mounts cover the names.
    """

    def __init__(self, session: Session, loop: Loop) -> None:
        self._session, self._loop = session, loop
        self._keeper: again.Keeper | None = None
        if session.wall.OWN_KERNEL or session.box.dead or not again.protected(session.confinement):
            return
        try:
            self._keeper = again.Keeper(session.confinement)
        except OSError as error:
            raise WallFailed(
                f"what is protected in the workspace cannot be watched: {error.strerror}",
                code="hold.watch",
                hint="sysctl fs.inotify.max_user_instances=1024, or end other sessions.",
            ) from error
        loop.watch(self._keeper.fileno(), READ, self._replaced)
        self._replaced(READ)  # it may have been before this

    def _replaced(self, _events: int) -> None:
        session, keeper = self._session, self._keeper
        lost = keeper.lost() if keeper is not None and not session.box.dead else []
        if lost:
            gone = again.hold(session.box.pid, lost)
            session.record("hold.again", paths=[path for path in lost if path not in gone], gone=gone)
            session.say(f"replaced on the host, and protected again: {', '.join(lost)}")

    def close(self) -> None:
        """May be called twice."""
        if self._keeper is not None:
            self._loop.forget(self._keeper.fileno())
            self._keeper.close()
            self._keeper = None
