"""The vm wall with a folder for a root, which holds what the image of its machines does: what any wall must do is done on such a root as well.

`stockade doctor --conformance walls.rooted`, where $STOCKADE_ROOTED names a directory in which `unpack` has put that.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from typing import Any

from stockade.core.frozen import replace
from stockade.core.values import Confinement, Root
from stockade.walls import late, root, system
from stockade.walls.vm import image
from stockade.walls.vm.wall import (
    ADDRESS,
    LENDS,
    NAME,
    OVERHEAD,
    OWN_KERNEL,
    REPORTS,
    USER,
    WIRE,
    Host,
    Plan,
    look,
    make_door,
    open_box,
    waits,
)
from stockade.walls.vm.wall import plan as usual

__all__ = [
    "ADDRESS",
    "LENDS",
    "NAME",
    "OVERHEAD",
    "OWN_KERNEL",
    "REPORTS",
    "USER",
    "WIRE",
    "look",
    "make_door",
    "open_box",
    "plan",
    "waits",
]
PLACE = "STOCKADE_ROOTED"


def unpack(directory: str) -> None:
    """Unpack the image in use. Raises CannotEnforce (`vm.image`), CalledProcessError."""
    words = ["fsck.erofs", f"--extract={directory}/tree", "--no-preserve", image.find().root]
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    os.environ[PLACE] = directory


def plan(wanted: Confinement, host: Host, *, stage: str = "") -> Plan:
    """As the wall's, with what a session prepares before (session/root.py)."""
    usual(wanted, host, stage=stage)  # refuses what cannot be held
    tree = f"{os.environ[PLACE]}/tree"
    chosen = Root(path=tree, writable=wanted.root.writable, size=wanted.root.size)
    etc: Any = system.etc(wanted.home, guest=ADDRESS)
    directory = tempfile.mkdtemp(dir=os.environ[PLACE])
    prepared = root.prepare(replace(wanted, root=chosen), tree, etc, directory, folders=(late.GUEST,), files=())
    return usual(prepared, host, stage=stage)
