"""The user's terminal while an interactive program runs inside on a terminal of its own (termios(3), ioctl_tty(2))."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Raw:
    """Puts the terminal at `fd` into raw mode; `restore()` brings back what was, and may be called twice, also when the terminal is gone."""

    def __init__(self, fd: int) -> None:
        import termios

        self._fd = fd
        self._saved: list[Any] | None = termios.tcgetattr(fd)
        raw = termios.tcgetattr(fd)
        raw[0] &= ~(
            termios.IGNBRK | termios.BRKINT | termios.PARMRK | termios.ISTRIP | termios.INLCR | termios.IGNCR | termios.ICRNL | termios.IXON
        )
        raw[1] &= ~termios.OPOST
        raw[2] = raw[2] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
        raw[3] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
        termios.tcsetattr(fd, termios.TCSADRAIN, raw)

    def restore(self) -> None:
        """Set the saved modes again."""
        import termios

        if self._saved is not None:
            try:
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)
            except (termios.error, OSError):
                pass
            self._saved = None


def size_of(source: int) -> tuple[int, int, int, int] | None:
    """The window size of a terminal: rows, columns, and both in pixels (ioctl_tty(2)). None where there is none."""
    import fcntl
    import struct
    import termios

    try:
        rows, columns, width, height = struct.unpack("4H", fcntl.ioctl(source, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return rows, columns, width, height


def set_size(target: int, size: tuple[int, int, int, int]) -> None:
    """Give the terminal `target` this size; the kernel signals SIGWINCH to its foreground group. A missing terminal is ignored."""
    import fcntl
    import struct
    import termios

    try:
        fcntl.ioctl(target, termios.TIOCSWINSZ, struct.pack("4H", *size))
    except OSError:
        pass


def interactive() -> bool:
    """Whether the user sits at both ends: standard input and output are terminals."""
    return os.isatty(0) and os.isatty(1)
