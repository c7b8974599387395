"""The CA bundle that the sandbox trusts, filled in when somebody first opens it.

The gate's certificate authority is made when the gate starts, and a command that never connects should not wait for that. So the file starts empty
under a write lease (fcntl(2), F_SETLEASE): the kernel holds up the first open(2) of it, inside the sandbox too, and tells us; we write the certificate
and give up the lease, and the open goes on. If we never do, the kernel breaks the lease after /proc/sys/fs/lease-break-time seconds (45), the reader
finds an empty file and trusts nobody.
"""

from __future__ import annotations

import fcntl
import os


class Bundle:
    """The file at `path`. `lazy` says whether the lease holds; where there is none, the caller must fill before it starts anything.

    A guest with a kernel of its own gets none: that kernel opens the file before anybody in there does, and does not wait for it.
    """

    def __init__(self, path: str, lease: bool = True) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        self.filled = False
        self.lazy = False
        if lease:
            try:
                fcntl.fcntl(self._fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
                self.lazy = True
            except OSError:  # the file system has none
                pass

    def fileno(self) -> int:
        """The descriptor that holds the lease."""
        return self._fd

    def wanted(self) -> bool:
        """Whether somebody waits for it (after SIGIO)."""
        return self.lazy and not self.filled and fcntl.fcntl(self._fd, fcntl.F_GETLEASE) != fcntl.F_WRLCK

    def fill(self, pem: bytes) -> None:
        """Write the certificates and let waiting readers go on. Only the first call counts."""
        if not self.filled:
            self.filled = True
            os.pwrite(self._fd, pem, 0)
            self.close()

    def close(self) -> None:
        """Give up the lease; a reader that still waits finds what is there."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
