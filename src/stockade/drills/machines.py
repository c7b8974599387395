"""What a yard's machine has for virtual machines: the image of this machine, and snapshots that all its homes share, since each takes seconds to make."""

from __future__ import annotations

import shutil
from pathlib import Path

from stockade.walls.vm import image

IMAGES, SNAPSHOTS = ".cache/stockade/vm", ".cache/stockade/vm-snapshots"
STATE, KEY = ".local/state/stockade/vm", ".local/state/stockade/keys/vm.vkey"


def copy(scratch: Path) -> None:
    """Copy the image in use and the key that has signed it. Raises CannotEnforce (`vm.image`), Tampered."""
    found = image.find()
    place = scratch / "vm"
    place.mkdir(mode=0o700)
    shutil.copytree(found.place.path(found.digest), place / found.digest)
    shutil.copy(found.place.path(image.CURRENT), place / image.CURRENT)
    shutil.copy(found.place.key, scratch / "vm.vkey")
    for name in ("vm-snapshots", "vm-state"):
        (scratch / name).mkdir(mode=0o700)


def move_in(scratch: Path, home: Path) -> None:
    """Prepare a home."""
    for name in (".cache/stockade", ".local/state/stockade/keys"):
        (home / name).mkdir(parents=True)
    for name in (".cache/stockade", ".local/state/stockade", ".local/state/stockade/keys"):
        (home / name).chmod(0o700)
    for name in (IMAGES, SNAPSHOTS, STATE):
        (home / name).mkdir(mode=0o700)
    shutil.copy(scratch / "vm.vkey", home / KEY)


def shown(scratch: Path, home: str) -> list[str]:
    """bubblewrap's arguments for the rest."""
    parts = ["--ro-bind", str(scratch / "vm"), f"{home}/{IMAGES}", "--bind", str(scratch / "vm-snapshots"), f"{home}/{SNAPSHOTS}"]
    parts += ["--bind", str(scratch / "vm-state"), f"{home}/{STATE}"]
    return [*parts, "--dev-bind-try", "/dev/net/tun", "/dev/net/tun"]
