"""A live sandbox and the commands in it: what every wall hands out once it stands."""

from __future__ import annotations

import os
import select

from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.walls import limits, native, terminal

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Mapping, Sequence


NO_WAIT = 0x40  # MSG_DONTWAIT of recv(2)


class Child:
    """A command in a box. `status` is None until it ended, then as of waitpid(2). `terminal` is the master of its PTY, or a socket that stands for it, or -1."""

    def __init__(self, ident: int, tty: bool = False) -> None:
        self.ident = ident
        self.tty = tty  # it asked for a terminal
        self.pid = 0  # in the sandbox's PID namespace
        self.status: int | None = None
        self.error = 0  # errno of a failed exec; negative when it was the working directory
        self.terminal = -1

    @property
    def exit_code(self) -> int:
        """As the shells count: the exit status, or 128 + the signal's number; 126 and 127 when it could not be executed."""
        if self.error:
            return 127 if self.error == 2 else 126
        if self.status is None:
            raise ValueError("the command is still running")
        return os.waitstatus_to_exitcode(self.status) if not os.WIFSIGNALED(self.status) else 128 + os.WTERMSIG(self.status)


class Box:
    """A live sandbox. Not thread-safe. `fileno()` is readable when `step()` has news; `close()` ends everything inside, at once."""

    terminal_stays = (
        False  # whether a terminal's master cannot be handed out of there (a guest with a kernel of its own): a socket stands for it then
    )

    init_stops = (
        False  # whether its init stands still in a pause; one that is ours goes on, so that closing, and our death, are noticed as ever
    )

    def __init__(self, sock: _socket.socket, pid: int, stderr: int) -> None:
        self._sock, self._stderr = sock, stderr
        self.pid = pid  # bubblewrap's, on the host; `init` is the sandbox's first process
        self.ready = False
        self.dead = False
        self.paused = False
        self.landlock = 0
        self._children: dict[int, Child] = {}
        self._next = 1
        self._stopped: frozenset[tuple[int, bytes]] = frozenset()
        self._process = -1
        try:
            # Of both: that bubblewrap was killed is seen also where it has left somebody behind, who holds the other end of the socket.
            self._news = select.epoll()
            self._news.register(sock.fileno(), select.EPOLLIN)
            if pid:
                self._process = os.pidfd_open(pid)
                self._news.register(self._process, select.EPOLLIN)
        except OSError:
            if pid:
                os.kill(pid, 9)  # SIGKILL
            Box.close(self)
            raise

    def fileno(self) -> int:
        return -1 if self._news.closed else self._news.fileno()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str = "/",
        stdin: int = -1,
        stdout: int = -1,
        stderr: int = -1,
        fds: Sequence[int] = (),
        tty: bool = False,
    ) -> Child:
        """Ask for a command to be started; does not wait. Descriptors 0-2 default to /dev/null; `fds` become 3, 4, ...; with `tty` the box makes a terminal.

        Raises WallFailed when the box is gone, ValueError for an empty argv, a NUL in a string, or a box that is paused.
        """
        if self.paused:
            raise ValueError("the box is paused")
        if not argv or any("\0" in word for word in (*argv, cwd, *env, *env.values())):
            raise ValueError("argv must not be empty, and no string may hold a NUL byte")
        if len(fds) > native.MAX_FDS - 4:  # with the blob and 0-2 they go in one message
            raise ValueError(f"at most {native.MAX_FDS - 4} descriptors can be handed over")
        blob = native.words([cwd, str(len(argv)), *argv, str(len(env)), *(f"{name}={value}" for name, value in env.items())])
        child, theirs = Child(self._next, tty), -1
        self._next += 1
        try:
            standard, flags = tuple(fd for fd in (stdin, stdout, stderr) if fd >= 0), 0
            nothing = (
                0 if tty else sum((fd < 0) << place for place, fd in enumerate((stdin, stdout, stderr)))
            )  # the sandbox's own /dev/null
            if tty and self.terminal_stays:
                child.terminal, theirs = native.stream_pair()
                standard, flags = (theirs,), native.TERMINAL | native.STAYS
            elif tty:
                standard, flags = (), native.TERMINAL
            native.request(self._sock, "X", child.ident, nothing, flags, fds=(blob, *standard, *fds))
        except OSError as error:
            self._last_words()
            raise self.failure() from error
        finally:
            os.close(blob)
            if theirs >= 0:
                os.close(theirs)
        self._children[child.ident] = child
        return child

    def lend(self, fd: int) -> None:
        """Only boxes of walls that lend have it (walls/contract.py)."""
        raise NotImplementedError

    def resize(self, child: Child, source: int, *, fewer: int = 0) -> None:
        """Give the command's terminal the window size of the terminal `source`, with so many `fewer` rows; nothing happens if either is none, or the
        command has ended."""
        size = terminal.size_of(source)
        if size is None or child.status is not None or child.error:
            return
        size = (max(1, size[0] - fewer), *size[1:])
        if not self.terminal_stays:
            terminal.set_size(child.terminal, size)
            return
        rows, columns = size[:2]
        try:
            native.request(self._sock, "W", child.ident, min(rows, 0x7FFF) << 16 | columns)
        except OSError:
            self.dead = True

    def signal(self, child: Child, number: int) -> None:
        """Send a signal to the command's process group; nothing happens if it ended. SIGCONT does not end a pause: it is not sent then."""
        if child.status is None and not child.error and not (self.paused and number == 18):
            try:
                native.request(self._sock, "K", child.ident, number)
            except OSError:
                self.dead = True

    def pause(self) -> None:
        """Stop every process of the sandbox until `resume`; nothing happens if it is paused. Raises WallFailed (`pause.restless`); it goes on then."""
        if not self.paused and self.pid:
            from stockade.walls import states

            self._stopped = states.stop(self.pid, first=self.init_stops)
            self.paused = True

    def resume(self) -> None:
        """Let what `pause` has stopped go on; what stood still before stays as it was. Nothing happens if the box is not paused."""
        if self.paused:
            from stockade.walls import states

            self.paused = False
            states.go_on(self.pid, self._stopped)

    def step(self, flags: int = 0) -> Child | None:
        """Take one note; returns the child it is about. Raises BlockingIOError when told not to block, WallFailed when the box broke."""
        note = self._note(flags)
        if note is None:
            self.dead = True
            raise self.failure()
        kind, ident, value, text, fds = note
        try:
            return self._take(kind, ident, value, text, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _note(self, flags: int) -> tuple[str, int, int, str, list[int]] | None:
        if not flags & NO_WAIT:
            self._news.poll()
        try:
            return native.receive(self._sock, NO_WAIT)
        except BlockingIOError:
            if not self._orphaned():
                raise
        try:
            return native.receive(self._sock, NO_WAIT)  # said in between
        except BlockingIOError:
            return None

    def _orphaned(self) -> bool:
        """Whether bubblewrap has ended, whatever may be left of what was in it."""
        return self.pid > 0 and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def _take(self, kind: str, ident: int, value: int, text: str, fds: list[int]) -> Child | None:
        """Act on one note; takes out of `fds` what it keeps. Whoever wrote it may be hostile."""
        child = self._children.get(ident)
        if kind == "E":
            self.dead = True
            raise native.failed(text, value)
        if kind == "R":
            # INVARIANT: from here on its processes end with bubblewrap. One that was killed before they were told so has left them behind.
            if self._orphaned():
                self.dead = True
                raise self.failure()
            self.ready, self.landlock = True, value
        elif child is None:
            pass
        elif kind == "S":
            child.pid = value
            if fds and child.tty and child.terminal < 0:  # never a descriptor that we did not ask for
                child.terminal = fds.pop()
        elif kind == "F":
            child.error = value or 1
            del self._children[ident]
        elif kind == "Q":
            if not os.WIFEXITED(value & 0xFFFF) and not os.WIFSIGNALED(value & 0xFFFF):
                self.dead = True
                raise WallFailed("the sandbox's init sent a malformed message", code="native.protocol", hint="The sandbox was ended.")
            child.status = value & 0xFFFF
            del self._children[ident]
        return child

    def wait(self, child: Child) -> int:
        """Block until `child` ended; its exit code."""
        while child.status is None and not child.error:
            self.step()
        return child.exit_code

    def _last_words(self) -> None:
        """Raise what init said before it left, if it said anything: why a step of the set-up failed."""
        try:
            while True:
                self.step(NO_WAIT)
        except BlockingIOError:
            pass

    def said(self) -> str:
        """What bubblewrap, and what it has started outside of any guest, wrote to standard error: lines, of its first 2000 bytes, without what does not print."""
        said = os.pread(self._stderr, 2000, 0).decode("utf-8", "replace").strip() if self._stderr >= 0 else ""
        return "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in said)

    def failure(self) -> StockadeError:
        """Why the box is gone, in bubblewrap's own words where it left any."""
        said = self.said().replace("\n", " ")
        if not self.ready and "overlay mount: " in said:
            return CannotEnforce(
                f"the layer that keeps what is written out of your folders cannot be made: {said}",
                code="workspace.overlay",
                hint="overlayfs does not take the file system of the state directory, or of the workspace, for a layer. Put XDG_STATE_HOME on ext4, xfs, btrfs or tmpfs; "
                'without layers there are `[workspace] mode = "rw"` and "ro", with `git = "ro"`.',
            )
        return WallFailed(
            f"the sandbox ended{': ' + said if said else ' before its command did'}",
            code="wall.died",
            hint="`stockade doctor` tries each part of the wall.",
        )

    def close(self) -> int:
        """End everything inside and wait until the kernel has done so; bubblewrap's wait status. May be called twice."""
        if self.pid:
            self._sock.shutdown(
                2
            )  # SHUT_RDWR: a process that our program has forked may hold this socket too, and close() alone would wait for it
            self._sock.close()  # its init sees the end of file and leaves; with it goes the PID namespace
            if self._process >= 0:
                self._news.close()
                if not _ended(
                    self._process
                ):  # INVARIANT: that it leaves is not up to what runs inside, which may have stopped a command of its before it was one
                    limits.end_below(self.pid)
                os.close(self._process)
            if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT).si_code != os.CLD_EXITED:  # type: ignore[union-attr]  # it is our child
                limits.end_orphans(self.pid)
            _, status = os.waitpid(self.pid, 0)
            self.pid, self.dead, self.paused = 0, True, False
            os.close(self._stderr)
            self._stderr = -1
            return status
        return 0


def _ended(process: int) -> bool:
    """Whether the process of this pidfd ends within the time that the kernel may take for it."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(limits.ENDING * 1000))
