"""A folder of the host's for a sandbox that runs already: mounted read-only where an empty one has held its place (native/add.c)."""

from __future__ import annotations

import os
import select

from stockade.core.errors import WallFailed
from stockade.walls import launching, limits, native, streams

LONGEST = 5.0  # seconds; it takes milliseconds


def identity(source: str) -> tuple[int, int]:
    """What a folder is on the disk. Raises CannotEnforce where it is not there, or reached through a link."""
    pinned = launching.pinned(source)
    try:
        found = os.fstat(pinned)
        return found.st_dev, found.st_ino
    finally:
        os.close(pinned)


def add(bwrap: int, source: str, known: tuple[int, int], target: str) -> None:
    """Mount `source`, which is the folder of `identity` that is `known`, at `target` in the sandbox of this bubblewrap, for as long as it lives.

    Raises WallFailed (`mount.changed`, `mount.failed`), CannotEnforce as `identity`; nothing is mounted then.
    """
    pinned = launching.pinned(source)
    said = os.memfd_create("add", os.MFD_CLOEXEC)
    try:
        found = os.fstat(pinned)
        if (found.st_dev, found.st_ino) != known:
            raise WallFailed(f"{source} is another folder than the one that was shown", code="mount.changed", hint="Ask again.")
        pid = native.spawn(["add", str(limits.init_of(bwrap)), str(pinned), target], [pinned], said)
        if status := _ended(pid):
            words = os.pread(said, 300, 0).decode("ascii", "replace").strip() or f"status {status}"
            raise WallFailed(f"{source} could not be mounted at {target}: {words}", code="mount.failed", hint="Nothing was mounted.")
    finally:
        streams.close([pinned, said])


def _ended(pid: int) -> int:
    """The exit status of a helper, which is ended when it takes too long."""
    process = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(LONGEST * 1000):
            os.kill(pid, 9)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(process)
