"""QEMU: found, asked for its version, and whether a machine gets anywhere with KVM; remembered. On the path of every start: a known answer costs no process.

INVARIANT: a remembered answer is used only while the program looks the same (stat(2)), on the kernel on which it was found.
"""

from __future__ import annotations

import os
import platform

from stockade.core import places
from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.walls.vm import image

PROGRAMS = ("/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64")
OLDEST = (8, 2)  # the first whose memory can be a file that it only reads, and writes to in private (memory-backend-file, rom=off)
DEADLINE = 10.0  # seconds for a program that is asked something
MEND = "stockade doctor --wall vm --fix"
ACCELERATORS = ("kvm", "tcg")
_FORMAT = 1


@frozen
class Found:
    """A QEMU that can be used here. `seen` is what the program looks like; `accelerator` is "kvm" only where a machine was seen to run with it."""

    path: str
    seen: str
    accelerator: str


def find() -> Found:
    """The QEMU of this machine. Raises CannotEnforce: `vm.missing`, `vm.old`, `vm.machine` (no image is built for such processors)."""
    if platform.machine() != "x86_64":
        raise CannotEnforce(
            f"the vm wall has machines for x86_64 only, and this is {platform.machine()}",
            code="vm.machine",
            hint="Use another wall: gvisor or bubblewrap.",
        )
    path, seen = _present()
    entry, around = places.answer("qemu"), f"{_FORMAT} {os.geteuid()} {os.uname().release}"
    kept = image.remembered(entry).split("\n")[:-1] if entry else []
    if len(kept) == 3 and kept[:2] == [around, seen] and kept[2] in ACCELERATORS:
        return Found(path, seen, kept[2])
    _new_enough(path)
    found = Found(path, seen, "kvm" if _kvm(path) else "tcg")
    if entry:
        image.remember(entry, f"{around}\n{seen}\n{found.accelerator}\n")
    return found


def _present() -> tuple[str, str]:
    for path in PROGRAMS:
        try:
            found = os.stat(path)
        except OSError:
            continue
        if found.st_mode & 0o170000 == 0o100000 and os.access(path, os.X_OK):
            return path, f"{path} {found.st_dev} {found.st_ino} {found.st_size} {found.st_mtime_ns} {found.st_ctime_ns}"
    raise CannotEnforce(f"QEMU is not installed (looked for {', '.join(PROGRAMS)})", code="vm.missing", hint=f"Run: {MEND}")


def _new_enough(path: str) -> None:
    """Raises CannotEnforce (`vm.old`)."""
    import re

    from stockade.walls import programs

    said = programs.printable(_said(path, "-version"))
    version = re.search(r"version (\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        raise CannotEnforce(
            f"{path} is {f'{version[1]}.{version[2]}' if version else 'of an unknown version'}; the vm wall needs QEMU {OLDEST[0]}.{OLDEST[1]} or later",
            code="vm.old",
            hint=f"Run: {MEND}",
        )


def _said(path: str, *words: str) -> bytes:
    import subprocess

    try:
        return subprocess.run([path, *words], capture_output=True, timeout=DEADLINE, env={}, stdin=subprocess.DEVNULL).stdout
    except (OSError, subprocess.TimeoutExpired):
        return b""


def _kvm(path: str) -> bool:
    """Whether a machine runs with KVM: its firmware comes so far as to say a word. That /dev/kvm can be opened means little inside of another machine."""
    import subprocess

    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    words = ["-machine", "q35,accel=kvm", "-cpu", "host", "-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-chardev", "stdio,id=said", "-device", "isa-debugcon,iobase=0x402,chardev=said"]  # where SeaBIOS writes what it does
    child = subprocess.Popen([path, *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, env={})
    try:
        import select

        assert child.stdout is not None
        readable, _, _ = select.select([child.stdout], [], [], DEADLINE)
        return bool(readable) and bool(child.stdout.read(1))
    finally:
        child.kill()
        child.wait()
        if child.stdout is not None:
            child.stdout.close()
