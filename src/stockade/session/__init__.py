"""The only wiring: a policy, the door, a wall, the gate and the ledger become one session.

Order at the start, and why: the door and the wall are set going first, since the kernel's work then overlaps with our imports; the start is written to
the ledger before the command is asked for (no receipt, no effect); the gate is started when somebody knocks.
"""

from __future__ import annotations

import fcntl
import os
import time

from stockade.core import places
from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.frozen import plain
from stockade.session import confine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Self

    from stockade.core.values import Confinement, Enforced, Policy
    from stockade.record.ledger import Ledger, Receipt
    from stockade.session.bundle import Bundle
    from stockade.walls.box import Box
    from stockade.walls.door import Door
    from stockade.walls.limits import Groups
    from stockade.walls.workspace import View


class Session:
    """One sandbox from start to end. `open` returns while the kernel still builds it; `close` ends everything and may be called twice."""

    def __init__(self, policy: Policy, cwd: str) -> None:
        self.id = f"s{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(4).hex()}"
        self.policy = policy
        self.cwd = cwd
        self.started = time.time()
        self.placeholders = confine.placeholders(policy)
        self.directory = ""
        self.confinement: Confinement
        self.view: View
        self.enforced: tuple[Enforced, ...] = ()
        self.box: Box
        self.door: Door
        self.groups: Groups
        self.bundle: Bundle
        self.start_receipt: Receipt
        self._ledger: Ledger | None = None
        self._closers: list[Any] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Set the sandbox going. Raises StockadeError and its kinds; nothing is left behind then."""
        wall = wall_of(self.policy)
        try:
            self._open(wall)
        except BaseException:
            self.close()
            raise

    def _open(self, wall: str) -> None:
        from stockade.session.bundle import Bundle
        from stockade.walls import bubblewrap, door, limits
        from stockade.walls.workspace import prepare

        self.directory = places.private(places.state(f"sessions/{self.id}"))
        self._closers.append(self._sweep)
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._lock, fcntl.LOCK_EX)  # who cleans up after a crash takes only what nobody holds
        self._closers.append(lambda: os.close(self._lock))
        self.bundle = Bundle(f"{self.directory}/ca.pem")
        self._closers.append(self.bundle.close)
        variables = {item.env: self.placeholders[item.name] for item in self.policy.credentials if item.env}
        workspace = confine.workspace_of(self.policy, self.cwd)
        self.view = prepare(self.policy.workspace, workspace, workspace, self.directory, self.id)
        self.confinement = confine.confinement(self.policy, self.cwd, self.view, self.id, variables, self.bundle.path)
        host = bubblewrap.look(self.confinement.home)
        plan = bubblewrap.plan(self.confinement, host, stage=f"{self.directory}/stage")
        for stage in (os.path.dirname(plan.stages[0]), *plan.stages) if plan.stages else ():
            os.mkdir(stage, 0o700)
        self.door = door.make()
        self._closers.append(self.door.close)
        self.groups = limits.join(f"stockade-{self.id}", self.policy.limits)
        self._closers.append(self.groups.close)
        self.box = bubblewrap.open_box(plan, self.door, self.groups.descriptors)
        self._closers.append(self.box.close)
        self.enforced = plan.enforced + self.view.notes + limits.enforced(self.policy.limits, self.groups.held)

    @property
    def recording(self) -> bool:
        """Whether the start was recorded."""
        return hasattr(self, "start_receipt")

    @property
    def ledger(self) -> Ledger:
        """The user's ledger, opened on first use."""
        if self._ledger is None:
            from stockade.record.ledger import Ledger

            self._ledger = Ledger(places.state("ledger"))
        return self._ledger

    def record(self, kind: str, **facts: object) -> Receipt:
        """Append to the ledger. Raises StockadeError when it cannot be written: then the effect must not happen."""
        return self.ledger.append({"kind": kind, "session": self.id, **facts})

    def record_start(self, argv: Sequence[str]) -> None:
        """Write the start and every mount, before anything runs."""
        wanted = self.confinement
        self.start_receipt = self.record(
            "session.start",
            command=list(argv),
            wall="bubblewrap",
            workspace=wanted.workspace,
            policy=[list(source) for source in self.policy.sources],
            mounts=[[mount.source, mount.target, mount.mode] for mount in wanted.mounts],
            limits=plain(self.policy.limits),
            enforced=[[line.rule, line.mechanism] for line in self.enforced],
        )

    def receipt(self) -> dict[str, Any]:
        """What was asked for and what is enforced, as a receipt (record/receipts.py)."""
        from stockade import __version__
        from stockade.record.receipts import started

        kernel = os.uname()
        versions = {
            "stockade": __version__,
            "kernel": f"{kernel.sysname} {kernel.release} {kernel.machine}",
            "landlock ABI": str(self.box.landlock),
        }
        return started(session=self.id, asked=self.confinement, enforced=self.enforced, versions=versions, start=self.start_receipt)

    def close(self) -> None:
        """End the sandbox and remove what the session kept."""
        while self._closers:
            self._closers.pop()()
        if self._ledger is not None:
            from stockade.record import signer

            self._ledger.close()
            self._ledger = None
            signer.later(places.state("ledger"))

    def _sweep(self) -> None:
        """Remove our directory, and those of sessions that were killed (nobody holds their lock)."""
        remove(self.directory)
        parent = os.path.dirname(self.directory)
        for name in os.listdir(parent)[:16]:
            path = f"{parent}/{name}"
            try:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.stat(path).st_mtime < self.started - 60:
                    remove(path)
            except OSError:
                pass
            finally:
                os.close(fd)


def remove(directory: str) -> None:
    """Delete a session's directory: never follows links, ignores what is gone."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        path = f"{directory}/{name}"
        try:
            os.unlink(path)
        except IsADirectoryError:
            import shutil

            shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass
    try:
        os.rmdir(directory)
    except OSError:
        pass


def wall_of(policy: Policy) -> str:
    """Which wall the policy means. Raises CannotEnforce (`wall.missing`) for one that this version does not have."""
    wanted = policy.wall
    if wanted == "auto":
        wanted = "vm" if policy.oversight == "none" else "bubblewrap"
    if wanted != "bubblewrap":
        why = ' (wall = "auto" with oversight = "none" means the sealed VM)' if policy.wall == "auto" else ""
        raise CannotEnforce(
            f"the {wanted} wall is not part of this version{why}",
            code="wall.missing",
            hint='Nothing was run. The bubblewrap wall is here: wall = "bubblewrap" and oversight = "developer".',
        )
    return wanted


__all__ = ["Session", "StockadeError", "wall_of"]
