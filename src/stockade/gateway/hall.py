"""Where sessions' supervisors meet a gate that several of them share: a Unix socket in a directory that only its user can enter (unix(7)).

A supervisor sends one message with descriptors, its line and its door's sockets, and gets one back when the gate has been told.
"""

from __future__ import annotations

import os
import socket
from struct import unpack

from stockade.core.errors import StockadeError

NAME = "hall"
WELCOME = b"welcome"
MOST_SOCKETS = 64
_PATIENCE = 5.0  # seconds that either side waits for the other


class Hall:
    """Listens in `directory` (an open descriptor, kept by the caller) until `close`. Single user: one `receive` at a time."""

    def __init__(self, directory: int) -> None:
        self._address = _address(directory)
        try:
            os.unlink(self._address)  # of one that was killed; whoever calls us holds the lock on the directory
        except FileNotFoundError:
            pass
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.bind(self._address)
        self._sock.listen(256)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        return self._sock.fileno()

    def receive(self) -> tuple[socket.socket, list[int]] | None:
        """The next caller and its descriptors; None for nobody, or somebody who is not our user or says nothing that we understand."""
        try:
            caller, _ = self._sock.accept()
        except OSError:
            return None
        caller.settimeout(_PATIENCE)
        fds: list[int] = []
        try:
            if _uid(caller) in (0, os.geteuid()):
                _, fds, flags, _ = socket.recv_fds(caller, 64, MOST_SOCKETS)
                if fds and not flags & socket.MSG_CTRUNC:
                    return caller, fds
        except OSError:
            pass
        for fd in fds:
            os.close(fd)
        caller.close()
        return None

    def close(self) -> None:
        """Receive nobody any more."""
        os.unlink(self._address)
        self._sock.close()


def welcome(caller: socket.socket) -> None:
    """Tell a caller that the gate has its descriptors."""
    try:
        caller.send(WELCOME, socket.MSG_NOSIGNAL)
    except OSError:
        pass  # it did not wait; its line is hung up then


def call(directory: int, fds: list[int]) -> bool:
    """Hand a session's descriptors to the gate that receives in `directory`; False if there is none. Raises StockadeError (`gate.foreign`) for another
    user's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(_PATIENCE)
        try:
            sock.connect(_address(directory))
            if _uid(sock) not in (0, os.geteuid()):
                hint = "Nothing was handed over. Look at who can write to the directory of stockade's state."
                raise StockadeError("the shared gate belongs to another user", code="gate.foreign", hint=hint)
            socket.send_fds(sock, [b"session"], fds, socket.MSG_NOSIGNAL)
            return sock.recv(64) == WELCOME
        except OSError:
            return False


def start(argv: list[str], environment: dict[str, str], directory: int) -> None:
    """Start a program that outlives us, in a session of its own (setsid(2)); what it writes goes to the file `log` in `directory`."""
    log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, log, 1), (os.POSIX_SPAWN_DUP2, log, 2)]
        os.posix_spawn(argv[0], argv, environment, file_actions=actions, setsid=True)
    finally:
        os.close(log)


def _address(directory: int) -> str:
    return f"/proc/self/fd/{directory}/{NAME}"  # a path below somebody's home may be longer than an address can be


def _uid(sock: socket.socket) -> int:
    return int(unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1])
