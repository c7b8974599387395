"""Real boxes for tests: make one, run commands in it, and run the same attack unconfined in a throwaway namespace as the control."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conftest import unavailable
from stockade.core.errors import CannotEnforce
from stockade.core.values import Confinement, Limits, Mount
from stockade.walls import bubblewrap, door, native, seccomp
from stockade.walls.box import Box, Child

if TYPE_CHECKING:
    from stockade.walls.contract import Wall

HOME = "/home/user"
ENVIRONMENT = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": HOME, "LANG": "C.UTF-8"}
SMALL = Limits(processes=256, memory=2 << 30, file_size=1 << 30, open_files=1024, scratch=256 << 20)
SYSTEM_PYTHON = "/usr/bin/python3"
# An interpreter that exists inside: the system's below /usr, else the tests' own, which then has to be mounted.
PYTHON = SYSTEM_PYTHON if os.path.exists(SYSTEM_PYTHON) else os.path.realpath(f"{sys.base_prefix}/bin/python3")
_PREFIX = os.path.realpath(sys.base_prefix)
PYTHON_MOUNTS = () if PYTHON.startswith("/usr/") else (Mount(_PREFIX, _PREFIX, "ro"),)


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    code: int
    out: bytes
    err: bytes

    @property
    def text(self) -> str:
        return self.out.decode("utf-8", "surrogateescape").strip()


@functools.cache
def scratch() -> str:
    """One directory for this process's caches and a made-up home; removed at exit."""
    import atexit

    path = os.path.realpath(tempfile.mkdtemp(prefix="stockade-tests-"))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
    return path


@contextmanager
def own_places() -> Iterator[str]:
    """Our caches, state and configuration in a scratch directory, so that the caller's own stay as they are."""
    names = ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: f"{scratch()}/{name.lower()}" for name in names})
    try:
        yield scratch()
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def require(wall: Wall = bubblewrap) -> None:
    """Skip, or fail where it must work, when a part of the wall is not here."""
    if not os.path.exists(native.STEP):
        unavailable("cc", "the native helper was not built")
    with own_places():
        try:
            bubblewrap.look(HOME)
        except CannotEnforce as error:
            unavailable("bubblewrap", str(error))
        try:
            for fd in seccomp.filters():
                os.close(fd)
        except CannotEnforce as error:
            unavailable("seccomp", str(error))
        if wall is not bubblewrap:
            try:
                wall.look(HOME)
            except CannotEnforce as error:
                unavailable(wall.NAME, str(error))


class Inside:
    """A box with the convenience that tests want: run to the end and collect."""

    def __init__(self, box: Box, plan: Any, made: door.Door | None) -> None:
        self.box, self.plan, self.door = box, plan, made

    def run(
        self,
        *argv: str,
        stdin: bytes = b"",
        env: Mapping[str, str] | None = None,
        cwd: str = "/tmp",
        fds: Sequence[int] = (),
    ) -> Done:
        """Run to the end with files for the three streams."""
        files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("in", "out", "err")]
        try:
            os.write(files[0], stdin)
            os.lseek(files[0], 0, os.SEEK_SET)
            child = self.box.spawn(
                argv, env=ENVIRONMENT if env is None else env, cwd=cwd, stdin=files[0], stdout=files[1], stderr=files[2], fds=fds
            )
            code = self.box.wait(child)
            return Done(code, _content(files[1]), _content(files[2]))
        finally:
            for fd in files:
                os.close(fd)

    def start(self, *argv: str, cwd: str = "/tmp", fds: Sequence[int] = ()) -> Child:
        """Start in the background, with nothing on its streams."""
        return self.box.spawn(argv, env=ENVIRONMENT, cwd=cwd, fds=fds)

    def python(self, code: str, *argv: str, stdin: bytes = b"", cwd: str = "/tmp", fds: Sequence[int] = ()) -> Done:
        """Run Python code inside."""
        return self.run(PYTHON, "-I", "-S", "-c", code, *argv, stdin=stdin, cwd=cwd, fds=fds)

    def sh(self, script: str, *argv: str, cwd: str = "/tmp") -> Done:
        """Run a shell script inside; `argv` become $1, $2, ..."""
        return self.run("/bin/sh", "-c", script, "sh", *argv, cwd=cwd)


def _content(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    data = b""
    while len(data) < size:
        data += os.pread(fd, size - len(data), len(data))
    return data


@contextmanager
def inside(
    *mounts: Mount,
    network: str = "none",
    limits: Limits = SMALL,
    home: str = HOME,
    ports: tuple[int, ...] = door.PORTS,
    change: Callable[[Any], Any] = lambda plan: plan,
    cgroups: Sequence[int] = (),
    wall: Wall = bubblewrap,
) -> Iterator[Inside]:
    """A live box with these mounts; `change` may alter the plan, to show what a part of it is good for."""
    made = wall.make_door(ports) if network == "door" else None
    try:
        with own_places():
            wanted = Confinement(mounts=(*PYTHON_MOUNTS, *mounts), network="door" if made else "none", limits=limits, home=home)
            plan = change(wall.plan(wanted, wall.look(home)))
            box = wall.open_box(plan, made, cgroups)
        try:
            yield Inside(box, plan, made)
        finally:
            box.close()
    finally:
        if made is not None:
            made.close()


def unconfined(*argv: str, stdin: bytes = b"", options: Sequence[str] = (), fds: Sequence[int] = ()) -> Done:
    """The control: the same command in a throwaway bubblewrap that shows everything and refuses nothing."""
    done = subprocess.run(
        ["bwrap", "--dev-bind", "/", "/", "--unshare-user", *options, "--", *argv],
        input=stdin,
        capture_output=True,
        timeout=60,
        pass_fds=fds,
    )
    return Done(done.returncode if done.returncode >= 0 else 128 - done.returncode, done.stdout, done.stderr)


def unconfined_python(code: str, *argv: str, stdin: bytes = b"", options: Sequence[str] = ()) -> Done:
    """Python code unconfined."""
    return unconfined(PYTHON, "-I", "-S", "-c", code, *argv, stdin=stdin, options=options)


@functools.cache
def compiled(source: str, *options: str) -> str:
    """The path of a C program compiled from `source`; skips (or fails) without a compiler."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        unavailable("cc", "no C compiler")
    directory = tempfile.mkdtemp(dir=scratch())
    path = Path(directory, "program.c")
    path.write_text(source)
    made = subprocess.run([compiler, "-O1", *options, "-o", f"{directory}/program", str(path)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return f"{directory}/program"


def until(what: Callable[[], object], seconds: float = 10.0) -> bool:
    """Wait until `what()` is true; whether it became so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if what():
            return True
        time.sleep(0.02)
    return bool(what())


def descriptors() -> int:
    """How many descriptors this process holds."""
    return len(os.listdir("/proc/self/fd"))


def children() -> set[int]:
    """The children of this process (its main thread)."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}
