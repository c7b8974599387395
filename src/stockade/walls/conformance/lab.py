"""Where the checks work: boxes of the wall in question, commands in them under a deadline, throwaway directories, and the native control."""

from __future__ import annotations

import os
import select
import shutil
import tempfile
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen, replace
from stockade.core.values import Confinement, Limits, Mount
from stockade.walls import limits
from stockade.walls.box import NO_WAIT
from stockade.walls.conformance import probes
from stockade.walls.conformance.native import Native

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from stockade.walls.box import Child
    from stockade.walls.contract import Box, Plan, Wall
    from stockade.walls.door import Door

HOME = "/home/user"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": HOME, "LC_ALL": "C"}
SMALL = Limits(processes=256, memory=1 << 30, file_size=1 << 30, open_files=1024, scratch=128 << 20)
PATIENCE = 30.0  # seconds that one command may take: none needs a tenth of it on an idle machine
PORTS = (3128, 443)


class Failed(Exception):
    """What a check found wrong."""


class Skipped(Exception):
    """Why a check cannot be made here."""


class Ended(Exception):
    """The watchdog ended the sandbox, as it does in a session."""


def expect(true: object, reason: str) -> None:
    """Raises Failed with `reason` unless `true`."""
    if not true:
        raise Failed(reason)


@frozen
class Done:
    """How a command ended and what it wrote."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "replace").strip()

    @property
    def said(self) -> str:
        """A line about it, for a reason."""
        words = (self.err or self.out)[:200].decode("utf-8", "replace").split()
        return f"status {self.code}{': ' + ' '.join(words) if words else ', silent'}"


class Running:
    """A command under way, and its three pipes."""

    def __init__(self, box: Box, argv: Sequence[str], *, stdin: bytes, env: Mapping[str, str], cwd: str, fds: Sequence[int]) -> None:
        pipes = [os.pipe2(os.O_CLOEXEC) for _ in range(3)]
        (into, self.stdin), (self.stdout, out), (self.stderr, err) = pipes
        try:
            self.child: Child = box.spawn(argv, env=env, cwd=cwd, stdin=into, stdout=out, stderr=err, fds=fds)
        except BaseException:
            for fd in (self.stdin, self.stdout, self.stderr):
                os.close(fd)
            raise
        finally:
            for fd in (into, out, err):
                os.close(fd)
        self._waiting = memoryview(stdin)
        self._got = {self.stdout: bytearray(), self.stderr: bytearray()}
        self._order = [self.stdout, self.stderr]
        self.open = {self.stdin, self.stdout, self.stderr}
        for fd in self.open:
            os.set_blocking(fd, False)
        if not stdin:
            self._close(self.stdin)

    def _close(self, fd: int) -> None:
        self.open.discard(fd)
        os.close(fd)

    def move(self, fd: int) -> None:
        """Carry what can be carried on one of its descriptors."""
        try:
            if fd == self.stdin:
                self._waiting = self._waiting[os.write(fd, self._waiting[: 1 << 16]) :]
                if not self._waiting:
                    self._close(fd)
                return
            piece = os.read(fd, 1 << 16)
            self._got[fd] += piece
            if not piece:
                self._close(fd)
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._close(fd)

    @property
    def over(self) -> bool:
        """It could not be started, or has ended and everything that it wrote is here."""
        return bool(self.child.error) or (self.child.status is not None and not self.open - {self.stdin})

    @property
    def out(self) -> bytes:
        return bytes(self._got[self._order[0]])

    @property
    def err(self) -> bytes:
        return bytes(self._got[self._order[1]])

    def drop(self) -> None:
        """Close what is still open."""
        for fd in [*self.open]:
            self._close(fd)


class Opened:
    """A box with what checks want of it: run to the end and collect, several at once. `watched` is what a watchdog is told (limits.py)."""

    def __init__(self, box: Box, patience: float, *, watched: tuple[Limits, set[str], bool] | None = None) -> None:
        self.box, self.patience, self._watched = box, patience, watched
        self.plan: Any = None
        self.door: Any = None
        self._running: list[Running] = []
        self._looked = 0.0

    def start(
        self,
        *argv: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/tmp",
        fds: Sequence[int] = (),
    ) -> Running:
        """Start a command and do not wait."""
        running = Running(self.box, argv, stdin=stdin, env=ENVIRONMENT if env is None else env, cwd=cwd, fds=fds)
        self._running.append(running)
        return running

    def until(self, true: Callable[[], object], what: str, seconds: float = 0.0) -> None:
        """Carry bytes and take news until `true()` is. Raises Failed, naming `what`, when it takes too long; WallFailed and Ended when the box ends."""
        late = time.monotonic() + (seconds or self.patience)
        while not true():
            left = late - time.monotonic()
            if left <= 0:
                raise Failed(f"{what}: not within {seconds or self.patience:g} s")
            self._turn(min(left, 0.1))

    def _turn(self, seconds: float) -> None:
        poll = select.poll()
        poll.register(self.box.fileno(), select.POLLIN)
        where = {}
        for running in self._running:
            for fd in running.open:
                where[fd] = running
                poll.register(fd, select.POLLOUT if fd == running.stdin else select.POLLIN)
        for fd, _ in poll.poll(seconds * 1000):
            if fd in where:
                where[fd].move(fd)
            else:
                try:
                    self.box.step(NO_WAIT)
                except BlockingIOError:
                    pass
        if self._watched and time.monotonic() - self._looked > limits.INTERVAL:
            self._looked = time.monotonic()
            init = limits.init_of(self.box.pid)
            why = limits.exceeded(init, *self._watched) if init else ""
            if why:
                self.box.close()
                raise Ended(why)

    def finish(self, running: Running, seconds: float = 0.0) -> Done:
        """Wait for one command. Raises as `until`."""
        try:
            self.until(lambda: running.over, "the command did not end, or its output did not", seconds)
            return Done(running.child.exit_code, running.out, running.err)
        finally:
            running.drop()
            self._running.remove(running)

    def run(self, *argv: str, seconds: float = 0.0, **more: Any) -> Done:
        """Run to the end; `more` as of `start`."""
        return self.finish(self.start(*argv, **more), seconds)

    def sh(self, script: str, *arguments: str, **more: Any) -> Done:
        """Run a shell script with `arguments` as $1, $2, ..."""
        return self.run("/bin/sh", "-c", script, "sh", *arguments, **more)

    def begin(self, script: str, *arguments: str, **more: Any) -> Running:
        """Start a shell script and do not wait."""
        return self.start("/bin/sh", "-c", script, "sh", *arguments, **more)

    def close(self) -> None:
        """End the box and everything in it, and let go of the pipes."""
        for running in self._running:
            running.drop()
        self._running = []
        self.box.close()


class Lab:
    """What the checks of one run share."""

    def __init__(self, wall: Wall, patience: float = PATIENCE) -> None:
        """Raises CannotEnforce when the wall finds that it cannot work here."""
        self.wall, self.patience = wall, patience
        self.host = wall.look(HOME)
        self.scratch = os.path.realpath(tempfile.mkdtemp(prefix="stockade-conformance-"))
        self.token = os.urandom(6).hex()
        self._box: Opened | None = None
        self._control: Opened | None = None
        self._count = 0

    def close(self) -> None:
        """End what is still there and remove everything."""
        try:
            for opened in (self._control, self._box):
                if opened is not None:
                    opened.close()
        finally:
            self._box = self._control = None
            shutil.rmtree(self.scratch, onerror=_insist)  # overlayfs leaves a directory without any permission

    def folder(self, *files: str) -> str:
        """A fresh directory of the host's; `files` are made in it, each holding its own name (a name that ends with / is a directory)."""
        self._count += 1
        path = f"{self.scratch}/{self._count}"
        os.mkdir(path, 0o755)
        for name in files:
            if name.endswith("/"):
                os.makedirs(f"{path}/{name}")
            else:
                with open(f"{path}/{name}", "w") as file:
                    file.write(name)
        return path

    def wanted(self, *mounts: Mount, network: Any = "none", limits: Limits = SMALL, home: str = HOME, **more: Any) -> Confinement:
        """A confinement as most checks want it."""
        return Confinement(mounts=mounts, network=network, limits=limits, home=home, **more)

    def plan(self, wanted: Confinement, stage: str = "") -> Plan:
        """The wall's plan."""
        return self.wall.plan(wanted, self.host if wanted.home == HOME else self.wall.look(wanted.home), stage=stage)

    def door(self, ports: tuple[int, ...] = PORTS) -> Door:
        """A door of the wall's. Raises Skipped when it has none."""
        try:
            return self.wall.make_door(ports)
        except CannotEnforce:
            raise Skipped(NO_DOOR) from None

    def attempt(self, plan: Plan, door: Door | None = None) -> None:
        """Open a box, and close it if it did open."""
        self.wall.open_box(plan, door).close()

    @contextmanager
    def open(self, *mounts: Mount, network: str = "none", stage: str = "", **more: Any) -> Iterator[Opened]:
        """A box of its own; with network "door" also a door."""
        door = self.door() if network == "door" else None
        try:
            plan = self.plan(self.wanted(*mounts, network=network, **more), stage)
            for path in plan.stages:
                os.makedirs(path, 0o700, exist_ok=True)
            opened = Opened(self.wall.open_box(plan, door), self.patience)
            opened.plan, opened.door = plan, door
            try:
                yield opened
            finally:
                opened.close()
        finally:
            if door is not None:
                door.close()

    @contextmanager
    def limited(self, **values: int) -> Iterator[Opened]:
        """A box with these limits, held as in a session: by the wall, by cgroups where some can be made, and by the watchdog."""
        wanted = self.wanted(limits=replace(SMALL, **values), network="door")
        try:
            door: Door | None = self.door()
        except Skipped:
            door, wanted = None, replace(wanted, network="none")
        around = limits.outside(wanted.limits, self.wall)
        groups = limits.join(f"stockade-conformance-{os.urandom(6).hex()}", around, self.wall.OWN_KERNEL)
        try:
            plan = self.plan(wanted)
            opened = Opened(
                self.wall.open_box(plan, door, groups.descriptors),
                self.patience,
                watched=(around, groups.held, self.wall.OWN_KERNEL),
            )
            try:
                opened.until(lambda: opened.box.ready, "the sandbox did not stand")
                yield opened
            finally:
                opened.close()
        finally:
            groups.close()
            if door is not None:
                door.close()

    def box(self) -> Opened:
        """A box that checks share which leave it as they found it; a new one where the last has ended."""
        if self._box is None or self._box.box.dead:
            if self._box is not None:
                self._box.close()
            self._box = Opened(self.wall.open_box(self.plan(self.wanted())), self.patience)
        return self._box

    def renew(self) -> None:
        """Give up the shared box, whose state nobody knows any more."""
        if self._box is not None:
            self._box.close()
            self._box = None

    def control(self) -> Opened:
        """The native control."""
        if self._control is None:
            self._control = Opened(Native(self.folder()), self.patience)
        return self._control

    def control_of(self, probe: str, *arguments: str, **more: Any) -> Done:
        """Run a probe natively, where it must succeed. Raises Failed when it does not: the check would prove nothing."""
        done = self.control().sh(probe, *arguments, **more)
        if done.code == probes.LACKS:
            raise Failed("this machine lacks the program that the control needs")
        expect(done.code == 0, f"the control did not succeed natively ({done.said}), so that nothing is proved")
        return done


NO_DOOR = "the wall has no door"
LACKING = "neither bash nor python3 is inside"
NO_PYTHON = "no python3 is inside"


def lacking(done: Done, reason: str) -> Done:
    """Raises Skipped with `reason` where a probe found none of its programs."""
    if done.code == probes.LACKS:
        raise Skipped(reason)
    return done


def refused(what: str, kinds: tuple[type[Exception], ...], call: Callable[..., Any], *arguments: Any, **named: Any) -> Exception:
    """The error of `kinds` that `call(*arguments, **named)` raises. Raises Failed when it raises none, or another."""
    try:
        call(*arguments, **named)
    except kinds as error:
        return error
    except Exception as error:
        raise Failed(f"{what}: {type(error).__name__} ({error}) instead of {' or '.join(kind.__name__ for kind in kinds)}") from error
    raise Failed(f"{what}: was not refused")


def explained(what: str, error: Exception) -> None:
    """Raises Failed unless the error carries a closed code and says what to do next."""
    expect(getattr(error, "code", "") and getattr(error, "hint", ""), f"{what}: the error has no code, or no hint")


def _insist(function: Any, path: str, error: Any) -> None:
    """Remove what had no permissions."""
    try:
        os.chmod(path, 0o700)
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass
