"""The only wiring: a policy, the door, a wall, the gate and the ledger become one session.

Order at the start, and why: the door and the wall are set going first, since the kernel's work then overlaps with our imports; the start is written to
the ledger before the command is asked for (no receipt, no effect); the gate is started when somebody knocks.
"""

from __future__ import annotations

import os
import time

from stockade.core import places
from stockade.core.errors import StockadeError, WallFailed
from stockade.core.frozen import plain, replace
from stockade.core.values import DENY, Enforced
from stockade.session import confine
from stockade.session.prepared import Prepared, new_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Self

    from stockade.core.loop import Loop
    from stockade.core.values import Confinement, Policy
    from stockade.record.ledger import Ledger, Receipt
    from stockade.session.bundle import Bundle
    from stockade.session.checkpoints import Origin
    from stockade.session.signing import Signer
    from stockade.walls.contract import Box, Plan, Wall
    from stockade.walls.door import Door
    from stockade.walls.limits import Groups
    from stockade.walls.root import Watch as Layer
    from stockade.walls.sink import Sink
    from stockade.walls.watch import Watch
    from stockade.walls.workspace import View

READY = 20.0  # seconds that a sandbox may take to stand


class Session:
    """One sandbox from start to end. `open` returns while the kernel still builds it; `close` ends everything and may be called twice."""

    def __init__(self, policy: Policy, cwd: str, *, learning: bool = False, prepared: Prepared | None = None) -> None:
        """`learning`: what is not granted is refused as ever, but looked at first, so that one can see what it would have been. `prepared` is ours from now on,
        and was started as `confine.bare` says for this policy.
        """
        self.id = prepared.id if prepared is not None else new_id()
        self.policy = policy
        self.learning = learning
        self.cwd = cwd
        self.started = time.time()
        self.placeholders, self.token_key = confine.placeholders(policy, self.id)
        self.directory = ""
        self.confinement: Confinement
        self.view: View
        self.wall: Wall
        self.plan: Plan
        self.enforced: tuple[Enforced, ...] = ()
        self.box: Box
        self.door: Door
        self.groups: Groups
        self.bundle: Bundle
        self.start_receipt: Receipt
        self.signer: Signer | None = None
        self.watch: Watch | None = None  # of the secret mounts, if there are any
        self.origin: Origin | None = None  # where it goes on, if it does not start anew
        self.saving = False  # whether what runs in it is just being written to a checkpoint
        self.changed: Callable[[], None] = lambda: None  # called when it was paused, or goes on
        self.say: Callable[[str], None] = lambda _: None  # told what somebody who looks on waits for
        self.sink: Sink | None = None  # where a kernel of the sandbox's own says what happens in it
        self._layer: Layer | None = None  # of a root that is writable on disk
        self._ledger: Ledger | None = None
        self._scan = (0, -1)
        self._keep: tuple[str, ...] = ()
        self.shown: list[str] = []  # targets of what was mounted since
        self.torn: list[str] = []  # what could be written in part only, in sentences
        self._looked = False
        self._prepared = prepared
        self._closers: list[Any] = [prepared.close] if prepared is not None else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def open(self) -> None:
        """Set the sandbox going. Raises StockadeError and its kinds; nothing is left behind then."""
        self.wall = confine.wall_of(self.policy)
        confine.can_offer(self.policy, self.wall)
        try:
            self._open()
        except OSError as error:  # a full or vanished disk, no descriptors left
            self.close()
            raise WallFailed(
                f"cannot set up the session: {error}",
                code="session.setup",
                hint="Nothing was run. Look at the disk that holds stockade's state.",
            ) from error
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        from stockade.walls import limits
        from stockade.walls.workspace import prepare

        wall, made = self.wall, self._prepared
        if made is None:
            made = Prepared(self.id, wall, confine.raw_ports(self.policy))
            self._closers.append(made.close)
        self.directory, self.lock, self.bundle, self.sink = made.directory, made.lock, made.bundle, made.sink
        variables = confine.stand_ins(self.policy, self.placeholders)
        if variables and self.token_key:
            variables["STOCKADE_TOKEN_KEY"] = self.token_key  # public: whoever narrows a token checks it by this
        workspace = confine.workspace_of(self.policy, self.cwd)
        asked = tuple(rule.path for rule in self.policy.files)
        self.view = prepare(self.policy.workspace, workspace, workspace, self.directory, self.id, asked)
        self.confinement = confine.confinement(self.policy, self.cwd, self.view, self.id, variables, self.bundle.path, wall)
        if self.policy.signing is not None:
            from stockade.session.signing import Signer

            self.signer = Signer(self.policy.signing, self)
            self._closers.append(self.signer.close)
            self.confinement = self.signer.shown(self.confinement)
        if self.sink is not None:
            self.confinement = replace(self.confinement, events=self.sink.path)
        if self.origin is not None:
            self.confinement = replace(self.confinement, image=self.origin.checkpoint.path)
        self._variables = self.confinement.environment
        self.confinement = made.rooted(self.confinement, dict(self.policy.environment.set_values))
        self._host = wall.look(self.confinement.home)
        plan = self.plan = wall.plan(self.confinement, self._host, stage=f"{self.directory}/stage")
        if self.origin is not None:
            from stockade.session import checkpoints

            self.origin = checkpoints.narrow(self, self.origin)
        for stage in (os.path.dirname(plan.stages[0]), *plan.stages) if plan.stages else ():
            os.mkdir(stage, 0o700)
        if made.box is None:
            made.finish(self.policy.limits)
            if why := wall.waits(plan):
                self.say(why)
            self.box = wall.open_box(plan, made.door, made.groups.descriptors)
            self._closers.append(self.box.close)
        else:
            self.box = made.bind(plan)
        self.door, self.groups = made.door, made.groups
        if self.confinement.layer:
            from stockade.walls.root import Watch as Layer

            self._layer = Layer(self.confinement.root)
        own = {one.rule for one in plan.enforced}
        held = limits.enforced(self.policy.limits, self.groups.held, wall.OWN_KERNEL)
        self.enforced = plan.enforced + self.view.notes + tuple(one for one in held if one.rule not in own)
        if self.signer is not None:
            self.enforced += (self.signer.enforced(),)
        if self.origin is not None:
            self.enforced += (Enforced("restored", f"checkpoint of {self.origin.checkpoint.session}", self.origin.checkpoint.digest),)
        if any(mount.secret for mount in self.confinement.mounts):
            from stockade.walls.watch import Watch

            if wall.OWN_KERNEL:
                self._stand()  # its kernel opens every mount by itself before
            self.watch = Watch(self.confinement.mounts)  # nothing runs inside before it is asked for, which is later
            self._closers.append(self.watch.close)
            self.enforced += self.watch.enforced

    def _stand(self) -> None:
        """Wait until the sandbox stands. Raises WallFailed."""
        import select

        deadline = time.monotonic() + READY
        while not self.box.ready:
            poll = select.poll()
            poll.register(self.box.fileno(), select.POLLIN)
            if self.sink is not None and not self.sink.connected and not self.sink.over:
                poll.register(self.sink.fileno(), select.POLLIN)
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
            if not ready:
                raise slow()
            if any(fd == self.box.fileno() for fd, _ in ready):
                self.box.step()
            elif self.sink is not None:
                self.sink.connect()

    @property
    def certificates_first(self) -> bool:
        """Whether the gate's certificates have to be there before the command: nobody would notice who opens them, and somebody may need them."""
        return not self.bundle.lazy and any(grant.scheme == "https" and grant.effect != DENY for grant in self.policy.grants)

    def exceeded(self) -> str:
        """Which limit the sandbox exceeds, as a sentence, or ""."""
        from stockade.walls import limits

        wanted, held, own = limits.outside(self.policy.limits, self.wall), self.groups.held, self.wall.OWN_KERNEL
        # In one that is paused nothing grows, and of hundreds looking at each is dear.
        init = 0 if self.box.paused or limits.left(wanted, held, own) is None else limits.init_of(self.box.pid)
        why = limits.exceeded(init, wanted, held, own) if init else ""
        return why or (self._layer.exceeded(self.box.pid) if self._layer is not None and self.box.ready else "")

    def guard(self, loop: Loop) -> None:
        """From now on what is protected and gets replaced on the host is protected again. Raises WallFailed."""
        from stockade.session.holding import Holding

        self._closers.append(Holding(self, loop).close)

    def died_of(self) -> str:
        """Why a sandbox is gone that nobody ended, as a sentence, or "" if that is not known."""
        return f"more than {self.policy.limits.memory >> 20} MiB of memory" if self.groups.killed() else ""

    def pause(self) -> bool:
        """Let everything inside stand still; False if it does already. Limits hold on, time goes on.

        Raises StockadeError: `session.starting`, `pause.restless` (it was not paused), `ledger.*`.
        """
        if self.box.paused:
            return False
        if self.saving:
            raise StockadeError("the session is just being saved", code="session.saving", hint="Try again in a moment.")
        if not self.box.ready:
            raise StockadeError("the session's sandbox does not stand yet", code="session.starting", hint="Try again in a moment.")
        self.record("session.pause")
        try:
            self.box.pause()
        except WallFailed as error:
            self.record("session.resume", error=error.code)
            raise
        self._shown(True)
        return True

    def resume(self) -> bool:
        """Let everything inside go on; False if it was not paused. Raises StockadeError `ledger.*`."""
        if not self.box.paused:
            return False
        self.record("session.resume")
        self.box.resume()
        self._shown(False)
        return True

    def _shown(self, paused: bool) -> None:
        from stockade.session import after

        after.pausing(self.directory, paused)
        self.changed()

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
        self.view.started(time.time() if self.origin is None else self.started)  # what goes on moves before the start is on record
        self.start_receipt = self.record(
            "session.start",
            command=list(argv),
            wall=self.wall.NAME,
            workspace=wanted.workspace,
            policy=[list(source) for source in self.policy.sources],
            mounts=[[mount.source, mount.target, mount.mode] for mount in wanted.mounts],
            limits=plain(self.policy.limits),
            root={name: value for name, value in plain(self.policy.root).items() if name != "origin"},
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

    def scan(self) -> None:
        """Start looking at the workspace behind the command; once, and only while the sandbox lives."""
        if self._scan == (0, -1) and self.policy.workspace.mode != "ro":
            from stockade.session import after

            self._scan = after.scan(self.directory, self.lock)

    def finish(self) -> list[dict[str, Any]]:
        """The sandbox is dead: merge what a private layer holds, make the workspace harmless, bring commits back, and report; all of it recorded.

        The events are returned as well, for the user's eyes. Raises StockadeError when they cannot be recorded.
        """
        from stockade.session import after
        from stockade.session.confined import confined

        self.box.close()
        lasted = time.time() - self.started

        def again(argv: Sequence[str], stdout: int, seconds: float) -> int:
            plan, wanted = self._unheard()
            return confined(self.wall, plan, self.door, wanted, argv, stdout, seconds)

        events = self.view.finish(again)
        # What could not be brought back stays in our directory until somebody looks after it (`stockade session`).
        self._keep = (*(after.left_by(events) if events else ()), *self.torn)
        self._record_events(*events)
        if self.view.overlays and not self._keep:  # else a kill before `close` would let it be removed
            os.close(os.open(f"{self.directory}/finished", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        pid, told = self._scan
        if pid:
            os.close(told)
            self._scan = (0, -1)
            report = self._wait_for_scan(pid)
        else:
            report = self.view.look(lasted)
            self._looked = report is not None
            report = report if report and any(map(report.get, ("rows", "held", "not_defused", "links", "not_looked_at"))) else None
            self._record_events(*([report] if report else []))
        return [*events, *([report] if report else [])]

    def _unheard(self) -> tuple[Plan, Confinement]:
        """The session's plan for a program of the host's, whose events are not wanted, and what it plans."""
        wanted = self.confinement
        if self.sink is None:
            return self.plan, wanted
        if not wanted.root.usual:
            from stockade.session import root

            wanted = root.without(wanted, self._variables)
        wanted = replace(wanted, events="", image="")
        plan: Plan = self.wall.plan(wanted, self._host, stage=f"{self.directory}/stage")
        return plan, wanted

    def _record_events(self, *events: dict[str, Any]) -> None:
        from stockade.walls.workspace.report import parts

        for part in parts(*events):
            self.record(str(part["kind"]), **{name: value for name, value in part.items() if name not in ("kind", "session")})

    def _wait_for_scan(self, pid: int) -> dict[str, Any] | None:
        """Give the scan a moment, so that its report can be shown before the prompt returns; otherwise it goes on alone."""
        from stockade.session import after
        from stockade.walls.workspace import patience

        if after.waited(pid, patience(self.view.facts, time.time() - self.started)):
            return after.report_of(self.directory)
        return self.view.pending()

    def close(self) -> None:
        """End the sandbox and remove what the session kept."""
        pid, told = self._scan
        if pid:  # it was not finished: else whoever looks at the workspace would wait for that as long as we live
            from stockade.session import after

            os.close(told)
            after.alone(pid)
            self._scan = (0, -1)
        while self._closers:
            self._closers.pop()()
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None
        if self.directory:
            from stockade.session import after

            if self._keep:
                after.keep(self.directory, self._keep)
            elif self._looked or not self.recording:
                after.discard(self.directory)
            self.directory = ""
            after.sweep()


def slow(seconds: float = READY) -> WallFailed:
    """The error for a sandbox that does not stand after so many seconds."""
    return WallFailed(
        f"the sandbox did not stand after {seconds:g} s", code="wall.slow", hint="`stockade doctor` tries each part of the wall."
    )


__all__ = ["Session", "StockadeError"]
