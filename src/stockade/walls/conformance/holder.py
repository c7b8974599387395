"""A process of its own that holds a box, so that it can be killed; or that has keys of its own, so that they can be looked for.

Run as `python -m stockade.walls.conformance.holder WHAT WALL`, where WALL is "package.module" or "package.module:attribute". It prints one line of
JSON and waits; a line on its standard input makes it close the box, print another line and end.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from stockade.core.values import Mount

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.walls.conformance.lab import Lab, Opened

KEY = "stockade-conformance-key"
_ADD_KEY, _KEYCTL = {"x86_64": (248, 250), "aarch64": (217, 219)}.get(platform.machine(), (0, 0))
_JOIN, _SETPERM, _SESSION, _EVERYBODY = 1, 5, -3, 0x3F3F3F3F  # keyctl(2)


class Holding:
    """The holder, as the suite sees it: the first thing that it said, and its process."""

    def __init__(self, process: subprocess.Popen[str], answer: dict[str, Any]) -> None:
        self.process, self.answer = process, answer

    def close(self) -> dict[str, Any]:
        """Let it close its box in an orderly way; what it says then."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        said: dict[str, Any] = json.loads(self.process.stdout.readline() or "{}")
        self.process.wait()
        return said


@contextmanager
def holding(lab: Lab, what: str) -> Iterator[Holding]:
    """Start one for `lab`'s wall. Raises Failed when it says nothing."""
    from stockade.walls.conformance.lab import Failed

    # What it leaves behind when it is killed lies in a directory of ours.
    where = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "TMPDIR": lab.folder()}
    command = [sys.executable, "-P", "-m", "stockade.walls.conformance.holder", what, place_of(lab.wall)]
    with subprocess.Popen(command, env=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stderr
            line = process.stdout.readline()
            if not line:
                raise Failed(f"a process that opens a box ended: {process.stderr.read().strip().rpartition(chr(10))[2]}")
            yield Holding(process, json.loads(line))
        finally:
            process.kill()


def place_of(wall: Any) -> str:
    """Where a wall can be imported from. Raises Failed for an object that does not say so."""
    from stockade.walls.conformance.lab import Failed

    name = getattr(wall, "__name__", "")
    if not isinstance(name, str) or not name:
        raise Failed('a wall that is no module must say in `__name__` where it can be imported from: "package.module:attribute"')
    return name


def find(place: str) -> Any:
    """The wall at a place. Raises what importing raises, AttributeError for an attribute that is not there."""
    module, _, attribute = place.partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def main(what: str, place: str) -> None:
    """Hold a box: `early` says so before it stands, `hold` when commands run in it, `paused` when they stand still, `keys` looks for a key of ours in it."""
    from stockade.walls import limits
    from stockade.walls.conformance.lab import SMALL, Lab, Opened, Skipped

    planted = plant() if what == "keys" else False
    lab = Lab(find(place))
    before = len(os.listdir("/proc/self/fd"))
    groups = limits.join(f"stockade-conformance-{os.getpid()}-{lab.token}", SMALL, lab.wall.OWN_KERNEL)
    try:
        door: Any = lab.door()
    except Skipped:
        door = None
    plan = lab.plan(lab.wanted(Mount(lab.folder(), "/mnt/w", "rw"), network="none" if door is None else "door"))
    opened = Opened(lab.wall.open_box(plan, door, groups.descriptors), lab.patience)
    said: dict[str, Any] = {"groups": groups.directories}
    if what in ("hold", "paused"):
        _fill(opened)
        if what == "paused":
            opened.box.pause()
    elif what == "keys":
        said |= _keys(lab, opened, planted)
    print(json.dumps(said), flush=True)
    sys.stdin.readline()
    opened.close()
    status = opened.box.close()
    if door is not None:
        door.close()
        door.close()
    groups.close()
    print(json.dumps({"again": status, "descriptors": len(os.listdir("/proc/self/fd")) - before}), flush=True)
    lab.close()


def _fill(opened: Opened) -> None:
    from stockade.walls.conformance.lifecycle import STUBBORN

    running = [opened.begin(STUBBORN) for _ in range(2)]
    opened.until(lambda: all(each.out for each in running), "the commands did not start")


def _keys(lab: Lab, opened: Opened, planted: bool) -> dict[str, Any]:
    from stockade.walls.conformance import probes

    return {
        "planted": planted,
        "native": lab.control().sh(probes.KEYS).text,
        "inside": opened.sh(probes.KEYS).text,
        "twin": opened.sh("echo alive").text,
    }


def plant() -> bool:
    """Join a session keyring of our own, which what we start inherits, and put a key there that anyone may see; whether the kernel lets us."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not _KEYCTL or not os.path.exists("/proc/keys") or libc.syscall(_KEYCTL, _JOIN, None) < 0:
        return False
    key = libc.syscall(_ADD_KEY, b"user", KEY.encode(), b"canary", 6, _SESSION)
    return bool(key > 0 and libc.syscall(_KEYCTL, _SETPERM, key, _EVERYBODY) == 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
