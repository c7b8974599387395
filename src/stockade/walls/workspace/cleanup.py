"""Removes the directory of a session. overlayfs leaves folders in it that not even their owner may open."""

from __future__ import annotations

import os
import stat

from stockade.walls.workspace.beneath import Directory


def discard(session: str) -> None:
    """Remove the directory `session` of ours with all that a sandbox wrote into its layers, following no link. Raises OSError."""
    with Directory.top(os.path.dirname(session)) as parent:
        _remove(parent, os.path.basename(session))


def _remove(parent: Directory, name: str) -> None:
    found = parent.stat(name)
    if found is None:
        return
    if not stat.S_ISDIR(found.st_mode):
        os.unlink(name, dir_fd=parent.fd)
        return
    try:
        here = parent.down(name)
    except PermissionError:  # nothing runs any more that could put a link here; the worst is a changed mode
        os.chmod(name, 0o700, dir_fd=parent.fd)
        here = parent.down(name)
    with here:
        if found.st_mode & 0o700 != 0o700:
            os.fchmod(here.fd, 0o700)
        for below in here.names():
            _remove(here, below)
    os.rmdir(name, dir_fd=parent.fd)
