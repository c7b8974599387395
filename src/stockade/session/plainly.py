"""What puts the user's terminal into a state in which what is written is what is seen, whatever a program has written there before.

That may be half a sequence (CAN and ST end it), a status line that takes all text (DECSASD), margins in which lines scroll away under forged ones (DECSTBM, DECLRMM,
DECOM), text that is not shown (SGR 8), is pushed aside (IRM) or is other letters (SCS, SI), cells that are not cleared (DECSCA), a screen that is not drawn (2026), and
pictures that lie on top (kitty's graphics protocol). Sources: DEC VT510, Programmer Information; Xterm Control Sequences. What a terminal does not know it ignores.
"""

from __future__ import annotations

import os

UNBOUND = "\x18\x1b\\\x1b[0$}\x1b7\x1b[r\x1b[?69l"  # saves where the cursor is (DECSC), which is in the corner then
LEGIBLE = '\x1b[0m\x1b[4l\x1b[0"q\x1b(B\x0f\x1b[?2026l\x1b_Ga=d\x1b\\'
PLAINLY = f"{UNBOUND}\x1b8{LEGIBLE}"  # and the cursor stays where it is


def plainly(fd: int) -> None:
    """Do that to the terminal at `fd`. What is no terminal, or gone, is left alone."""
    if os.isatty(fd):
        try:
            os.write(fd, PLAINLY.encode())
        except OSError:
            pass
