"""Starting programs of the host under a deadline, and installing missing ones. Nothing here is on the way of a sandbox."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError

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


def install_command(packages: Sequence[str]) -> list[str]:
    """The command that installs Debian packages here. Raises StockadeError (`doctor.fix`) where there is no way."""
    if not shutil.which("apt-get"):
        raise StockadeError(
            "this machine has no apt-get", code="doctor.fix", hint=f"Install with its own package manager: {' '.join(packages)}"
        )
    command = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    if os.geteuid() == 0:
        return command
    if not shutil.which("sudo"):
        raise StockadeError("this needs root, and there is no sudo", code="doctor.fix", hint=f"As root: {' '.join(command)}")
    return ["sudo", *command]


def install(command: Sequence[str]) -> int:
    """Carry out what `install_command` said, its output shown; its status."""
    return subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False).returncode
