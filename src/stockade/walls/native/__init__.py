"""The host's side of `step`: start it, read its notes, send it requests. Layouts must match step.h."""

from __future__ import annotations

import _socket
import errno
import os
from struct import pack, unpack

from stockade.core.errors import WallFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

STEP = f"{os.path.dirname(os.path.abspath(__file__))}/step"
NOTE_SIZE = 64
MAX_FDS = 64
TERMINAL, STAYS = 1, 2  # flags of an exec request


def pair() -> tuple[_socket.socket, _socket.socket]:
    """Two ends of a SOCK_SEQPACKET Unix socket: messages keep their borders and carry descriptors (unix(7))."""
    return _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)


def credentials_pair() -> tuple[int, int]:
    """Descriptors of a pair like `pair`'s whose first end learns who writes to the second (SO_PASSCRED, unix(7))."""
    ours, theirs = pair()
    ours.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
    return ours.detach(), theirs.detach()


def stream_pair() -> tuple[int, int]:
    """Descriptors of a connected pair of Unix stream sockets."""
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    return ours.detach(), theirs.detach()


def spawn(arguments: Sequence[str], inherit: Iterable[int], stderr: int, stdin: int = -1) -> int:
    """Start `step` with an empty environment and only the descriptors in `inherit` beyond 0-2 (0 is `stdin`, or /dev/null); return its pid.

    Raises WallFailed (`native.missing`) when the program was not built.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0),
        (os.POSIX_SPAWN_DUP2, 0, 1),
        (os.POSIX_SPAWN_DUP2, stderr, 2),
    ]
    actions += [(os.POSIX_SPAWN_DUP2, stdin, 0)] if stdin >= 0 else []
    actions += [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in inherit]  # onto itself: clears close-on-exec
    try:
        return os.posix_spawn(STEP, ["step", *arguments], {}, file_actions=actions, setsigmask=(), setsigdef=range(1, 32))
    except OSError as error:
        raise missing(error) from error


def missing(error: OSError) -> WallFailed:
    """The error for a helper that cannot be opened or started."""
    return WallFailed(
        f"cannot start {STEP}: {error.strerror}",
        code="native.missing",
        hint="The small native helper was not built. Install gcc and libc6-dev, then install stockade again.",
    )


def receive(sock: _socket.socket, flags: int = 0) -> tuple[str, int, int, str, list[int]] | None:
    """One note: (kind, id, value, text, descriptors), or None at end of file. Descriptors come close-on-exec.

    Raises BlockingIOError when there is none and the socket does not block, WallFailed (`native.protocol`) for anything malformed.
    """
    space = _socket.CMSG_SPACE(4 * MAX_FDS)
    try:
        data, controls, message_flags, _ = sock.recvmsg(NOTE_SIZE + 1, space, flags | _socket.MSG_CMSG_CLOEXEC)
    except (
        ConnectionResetError
    ):  # the other end left with a request of ours unread; the kernel says so once, before what was said before that (unix(7))
        return receive(sock, flags)
    fds: list[int] = []
    for level, kind, value in controls:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += unpack(f"{len(value) // 4}i", value[: len(value) // 4 * 4])
    if not data:
        return None
    if len(data) != NOTE_SIZE or message_flags & _socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise WallFailed("the sandbox's init sent a malformed message", code="native.protocol", hint="The sandbox was ended.")
    kind_number, ident, number, text = unpack("=IIi52s", data)
    name = chr(kind_number) if kind_number < 128 else "?"
    return name, ident, number, text.split(b"\0", 1)[0].decode("ascii", "replace"), fds


def request(sock: _socket.socket, kind: str, ident: int, value: int = 0, flags: int = 0, fds: Sequence[int] = ()) -> None:
    """Send one request. Raises OSError when the sandbox is gone."""
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(fds)}i", *fds))] if fds else []
    sock.sendmsg([pack("=IIiI", ord(kind), ident, value, flags)], rights, _socket.MSG_NOSIGNAL)


def note(kind: str) -> bytes:
    """A note to a guest's init that waits for its mounts."""
    return pack("=IIi52s", ord(kind), 0, 0, b"")


def words(strings: Iterable[str]) -> int:
    """A file in memory that holds `strings`, each ended by a NUL as our program and bubblewrap read them; returns its descriptor."""
    return blob(b"".join(os.fsencode(word) + b"\0" for word in strings))


def blob(strings: bytes) -> int:
    """A sealed-in-memory file holding `strings`; returns its descriptor (memfd_create(2))."""
    fd = os.memfd_create("stockade", os.MFD_CLOEXEC)
    try:
        view = memoryview(strings)
        while view:
            view = view[os.write(fd, view) :]
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd


def failed(step: str, number: int) -> WallFailed:
    """The error for a set-up step that the kernel refused."""
    name = errno.errorcode.get(number, str(number))
    return WallFailed(
        f"setting up the sandbox failed at {step!r}: {os.strerror(number)} ({name})",
        code="wall.setup",
        hint="Nothing was run. `stockade doctor` says what this machine lacks.",
    )
