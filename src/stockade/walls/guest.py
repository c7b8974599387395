"""A box whose commands run under a kernel of the guest's own: it serves them once it was given its mounts, and its end is made from outside."""

from __future__ import annotations

import os

from stockade.walls import late, limits, native, streams
from stockade.walls.box import Box

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from stockade.walls.box import Child


class GuestBox(Box):
    """A box whose init is in a guest, where root may stop it. `root` is where places for its mounts are made in bubblewrap's view. It serves commands once `bind` has
    mounted what is wanted."""

    terminal_stays = True
    init_stops = True

    def __init__(self, sock: _socket.socket, pid: int, stderr: int, mounting: int, root: str) -> None:
        super().__init__(sock, pid, stderr)
        self._mounting = mounting  # leads to the guest's init, which waits on it
        self._root = root
        self._binder = 0
        self.prepared = False  # it waits for its mounts; may be seen after any `step`

    def rehearse(self) -> None:
        """Have the init run `true`, if it has one: the first command of a guest takes twice as long as the next. It says again that it waits (`prepared`) when
        that has ended. Raises WallFailed.
        """
        self.prepared = False
        try:
            os.write(self._mounting, native.note("T"))
        except OSError as error:
            raise self.failure() from error

    def bind(self, wanted: late.Late) -> None:
        """Mount what is wanted, once; does not wait. Raises CannotEnforce when a path cannot be opened as planned, WallFailed."""
        opened = late.pin(wanted)
        try:
            self.bind_opened(wanted, opened)
        finally:
            streams.close(opened)

    def bind_opened(self, wanted: late.Late, opened: list[int]) -> None:
        """The same with the descriptors of `late.pin`."""
        self._binder = late.bind(wanted, opened, self._mounting, self._root, self._stderr)
        self._let_go()  # if the helper fails, the guest's init sees the end of file, and ends

    def _let_go(self) -> None:
        if self._mounting >= 0:
            os.close(self._mounting)
            self._mounting = -1

    def _take(self, kind: str, ident: int, value: int, text: str, fds: list[int]) -> Child | None:
        self.prepared = self.prepared or kind == "P"
        if kind == "R" and self._binder:  # its work is done
            os.waitpid(self._binder, 0)
            self._binder = 0
        return super()._take(kind, ident, value, text, fds)

    def close(self) -> int:
        """End everything inside and wait until the kernel has done so; bubblewrap's wait status. May be called twice."""
        self._let_go()
        if self.pid:
            limits.end_below(self.pid)  # the guest's kernel is the first process there, or the process that has started it
        if self._binder:
            os.kill(self._binder, 9)  # SIGKILL; it may wait for a disk
            os.waitpid(self._binder, 0)
            self._binder = 0
        return super().close()
