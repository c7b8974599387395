"""Removes the directory of a session. overlayfs leaves folders in it that not even their owner may open."""

from __future__ import annotations

import errno
import os
import stat

from stockade.walls.workspace.beneath import Directory


def discard(session: str) -> None:
    """Remove the directory `session` of ours with all that a sandbox wrote into its layers, however deep, following no link. Raises OSError."""
    with Directory.top(os.path.dirname(session)) as parent:
        name = os.path.basename(session)
        found = parent.stat(name)
        if found is not None and stat.S_ISDIR(found.st_mode):
            _empty(_entered(parent, name))
            os.rmdir(name, dir_fd=parent.fd)
        elif found is not None:
            os.unlink(name, dir_fd=parent.fd)


def _empty(here: Directory) -> None:
    """Remove everything in a folder, which is closed then. Down by name and up by ".." (it is the same one, or this stops): so that neither the stack nor the
    descriptors of this process are a bound that a sandbox could exceed."""
    trail: list[tuple[str, list[str], os.stat_result]] = []  # of each folder above: what we went down to, what is left in it, what it is
    left = here.names()
    try:
        while left or trail:
            if left:
                name = left.pop()
                found = here.stat(name)
                if found is not None and stat.S_ISDIR(found.st_mode):
                    trail.append((name, left, os.fstat(here.fd)))
                    below = _entered(here, name)
                    os.close(here.fd)
                    here = below
                    left = here.names()
                elif found is not None:
                    os.unlink(name, dir_fd=here.fd)
                continue
            above = Directory(os.open("..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=here.fd))
            os.close(here.fd)
            here = above
            name, left, was = trail.pop()
            if not os.path.samestat(os.fstat(here.fd), was):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), name)
            os.rmdir(name, dir_fd=here.fd)
    finally:
        os.close(here.fd)


def _entered(parent: Directory, name: str) -> Directory:
    try:
        here = parent.down(name)
    except PermissionError:  # nothing runs any more that could put a link here; the worst is a changed mode
        os.chmod(name, 0o700, dir_fd=parent.fd)
        here = parent.down(name)
    try:
        here.unlock()
    except BaseException:
        os.close(here.fd)
        raise
    return here
