"""A gate in a box of its own, and what that box shows it."""

from __future__ import annotations

import os
import sys

from stockade.core.values import Confinement, Limits, Mount

ROOTS = "/etc/ssl/certs/ca-certificates.crt"  # the authorities that the gate trusts, as it sees them
# No limit of processes: without a door's user namespace RLIMIT_NPROC would count everything that this user runs.
LIMITS = Limits(processes=0, memory=4 << 30, open_files=65536, scratch=64 << 20, file_size=64 << 20)


class OwnGate:
    """A gate in a box of its own, ended with `close`."""

    def __init__(self, engine: str) -> None:
        """Start it; it serves whoever is introduced. `engine` as `gateway.engine.find` names it. Raises CannotEnforce, WallFailed."""
        from stockade.gateway.control import Introductions
        from stockade.walls import bubblewrap

        self._box = bubblewrap.open_box(bubblewrap.plan(confinement(), bubblewrap.look("/home/gate"), dangerously_share_host_network=True))
        self._output = os.memfd_create("gate", os.MFD_CLOEXEC)
        self.introductions = Introductions()
        started = False
        try:
            self._child = self._box.spawn(
                [sys.executable, "-I", "-m", "stockade.gatehouse", engine, ROOTS],
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                stdout=self._output,
                stderr=self._output,
                fds=(self.introductions.theirs,),
            )
            started = True
        finally:
            os.close(self.introductions.theirs)
            if not started:
                self.close()

    def fileno(self) -> int:
        """Readable when there may be news of its end."""
        return self._box.fileno()

    def ended(self) -> str:
        """How it ended, "" while it runs. Raises StockadeError."""
        from stockade.walls.box import NO_WAIT

        try:
            while True:
                self._box.step(NO_WAIT)
                if self._child.status is not None or self._child.error:
                    return f"the gate ended with status {self._child.exit_code}"
        except BlockingIOError:
            return ""

    def said(self) -> str:
        """The end of what it wrote."""
        return os.pread(self._output, 1000, max(0, os.fstat(self._output).st_size - 1000)).decode("utf-8", "replace")

    def close(self) -> None:
        """End it at once."""
        self.introductions.close()
        self._box.close()
        os.close(self._output)


def code() -> list[Mount]:
    """Python and our code, read-only: what a program of ours needs in a box of its own."""
    import stockade

    places_of_code = {
        os.path.realpath(sys.prefix),
        os.path.realpath(sys.base_prefix),
        os.path.dirname(os.path.dirname(os.path.realpath(stockade.__file__))),
    }
    places_of_code.add(os.path.realpath(os.path.dirname(sys.executable)))
    return [Mount(path, path) for path in sorted(places_of_code) if not path.startswith("/usr/") and path != "/usr"]


def confinement() -> Confinement:
    """What the gate itself may see: Python and our code, read-only; how the host resolves names; which authorities it trusts upstream."""
    mounts = code()
    trusted = os.environ.get("SSL_CERT_FILE") or ROOTS
    for source, target in (
        (trusted, ROOTS),
        ("/etc/resolv.conf", "/etc/resolv.conf"),
        ("/etc/hosts", "/etc/hosts"),
    ):
        if os.path.exists(source):
            mounts.append(Mount(os.path.realpath(source), target))
    return Confinement(mounts=tuple(mounts), limits=LIMITS, home="/home/gate", cwd="/")
