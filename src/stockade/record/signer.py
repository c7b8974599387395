"""Signing behind the user's back, in the good sense: a checkpoint a moment after a session ended, in a process of its own.

Loading the cryptography and waiting for the disk costs more than the whole of a short `stockade run`, so the run does not wait. Sessions that end in
quick succession share one signer: who finds the lock taken knows that a signer has yet to look at the log.
"""

from __future__ import annotations

import os
import sys

PAUSE = 1.0  # seconds in which further sessions may end and be covered by the same checkpoint


def later(directory: str) -> None:
    """Start a signer for the ledger in `directory`, unless one is waiting already. Costs under a millisecond; never fails the caller.

    The lock is flock(2) on the ledger's directory, taken here and inherited by the signer, so there is no moment without it.
    """
    import fcntl

    try:
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        null = (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDWR, 0)
        actions = [null, (os.POSIX_SPAWN_DUP2, 0, 1), (os.POSIX_SPAWN_DUP2, 0, 2), (os.POSIX_SPAWN_DUP2, lock, 3)]
        os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-m", "stockade.record.signer", directory],
            dict(os.environ),
            file_actions=actions,
            setsid=True,
        )
    except OSError:  # somebody else's signer is about to look; or no process could be had: the next session's signer covers us
        pass
    finally:
        os.close(lock)


def main() -> int:
    """Wait a moment, let the lock go, sign what is there."""
    import time

    from stockade.core.errors import StockadeError
    from stockade.record.ledger import Ledger

    os.nice(10)
    time.sleep(PAUSE)
    os.close(3)
    try:
        Ledger(sys.argv[1]).checkpoint()
    except StockadeError:  # `stockade log verify` tells the user what is unsigned, and why it could not be signed
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
