"""What the vm wall needs on this machine: QEMU, what builds its image, and the image. Looked at for `stockade doctor`, which installs what is missing. Holds nothing."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError
from stockade.walls import debian
from stockade.walls.probe import Check
from stockade.walls.vm import build, find, image

if TYPE_CHECKING:
    from collections.abc import Iterator

MEND = find.MEND


def checks() -> Iterator[Check]:
    """QEMU is new enough, an image can be built, there is one and it is as it was built."""
    yield qemu()
    yield tools()
    yield built()


def qemu() -> Check:
    """QEMU starts, and is new enough."""
    why = "it is the machine; from 8.2 on, many start from one snapshot without a copy"
    try:
        found = find.find()
    except StockadeError as error:
        packages = (debian.QEMU.package,) if error.code in ("vm.missing", "vm.old") else ()
        return Check("qemu", False, error.message, why, MEND if packages else error.hint, packages=packages)
    return Check("qemu", True, f"{found.path}, with {found.accelerator.upper()}", why)


def tools() -> Check:
    """What `stockade vm build` needs is there."""
    why = "`stockade vm build` makes the machine's kernel and root out of Debian's packages"
    wanted = build.TOOLS if os.geteuid() == 0 else {**build.TOOLS, "newuidmap": "uidmap"}
    lacking = tuple(sorted({package for program, package in wanted.items() if not shutil.which(program)}))
    if lacking:
        return Check("image tools", False, f"missing: {', '.join(lacking)}", why, MEND, packages=lacking)
    return Check("image tools", True, f"{', '.join(wanted)} are there", why)


def built() -> Check:
    """There is an image, and it is what was built."""
    why = "a machine starts from it; no session ever builds one"
    try:
        found = image.find()
    except StockadeError as error:
        return Check("image", False, error.message, why, image.BUILD if error.code == "vm.image" else error.hint)
    return Check("image", True, f"{found.digest[:16]}: Debian {found.manifest.suite}, Linux {found.manifest.kernel}", why)
