"""Starting programs of the host under a deadline, and installing missing ones. Nothing here is on the way of a sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen

if TYPE_CHECKING:
    from collections.abc import Sequence

DEADLINE = 5.0  # seconds that a program may take


def run(argv: Sequence[str], seconds: float = DEADLINE) -> tuple[int, str]:
    """Run a program of the host: (status, its output, printable). 127 when it cannot be started, 124 when it took too long."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"no answer within {seconds:g} s"
    except OSError as error:
        return 127, error.strerror or str(error)
    return done.returncode, printable(done.stdout)


def printable(said: bytes) -> str:
    """Text without control characters but line ends."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else " " for letter in said.decode("utf-8", "replace")).strip()


@frozen
class Step:
    """One command of a repair. One that writes a file does so from its standard input: `file` is the path, `content` the whole of it."""

    command: tuple[str, ...]
    file: str = ""
    content: str = ""


def install(packages: Sequence[str]) -> Step:
    """The step that installs Debian packages here. Raises StockadeError (`doctor.fix`) where there is no way."""
    if not shutil.which("apt-get"):
        raise StockadeError(
            "this machine has no apt-get", code="doctor.fix", hint=f"Install with its own package manager: {' '.join(packages)}"
        )
    return Step(as_root("apt-get", "install", "-y", "--no-install-recommends", *packages))


def write(file: str, content: str) -> Step:
    """The step that writes a file which everybody may read. Raises StockadeError (`doctor.fix`) where there is no way."""
    return Step(as_root("install", "-D", "-m", "644", "/dev/stdin", file), file, content)


def as_root(*command: str) -> tuple[str, ...]:
    """`command` as root runs it. Raises StockadeError (`doctor.fix`) where there is no way to become root."""
    if os.geteuid() == 0:
        return command
    if not shutil.which("sudo"):
        raise StockadeError("this needs root, and there is no sudo", code="doctor.fix", hint="Run `stockade doctor --fix` again as root.")
    return ("sudo", *command)


def carry_out(steps: Sequence[Step]) -> None:
    """Carry out a repair, what its commands say shown. If a step fails, the files that were written are removed: half of it would only be in the way.

    Raises StockadeError (`doctor.fix`).
    """
    written: list[str] = []
    whole = False
    try:
        for step in steps:
            if step.file:
                written.append(step.file)
            status = _shown(step.command, step.content)
            if status:
                undone = "What was written is removed again. " if written else ""
                hint = f"{undone}If the package lists are old: apt-get update, then again."
                raise StockadeError(f"{' '.join(step.command)}: status {status}", code="doctor.fix", hint=hint)
        whole = True
    finally:
        if written and not whole:
            _shown(as_root("rm", "-f", *written), "")


def _shown(command: Sequence[str], content: str) -> int:
    surroundings = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    given = content.encode() if content else None
    return subprocess.run(
        command, env=surroundings, input=given, stdout=2, check=False
    ).returncode  # standard output is for the doctor's findings
