"""The wall that this version does not have: what of it is on this machine, as information. Claims nothing."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from stockade.walls.probe import Check
from stockade.walls.vm import tools

if TYPE_CHECKING:
    from collections.abc import Iterator


def vm_wall() -> Iterator[Check]:
    """What a virtual machine would need and is here; claims nothing."""
    found = next((path for name in (f"qemu-system-{os.uname().machine}", "qemu-kvm") if (path := shutil.which(name))), "")
    kvm = "can be opened" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "cannot be opened" if os.path.exists("/dev/kvm") else "not there"
    seen = f"not part of this version; qemu: {found or 'not found'}; /dev/kvm: {kvm} (whether it boots anything was not tried)"
    yield Check("vm", False, seen, "a sealed machine for people who cannot judge a command", "Use the bubblewrap wall.", "information")
    yield from tools.checks()
