"""Does the gVisor wall work on this machine? Found out by booting a guest. Nothing here is on the way of a sandbox."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from stockade.core.errors import CannotEnforce, StockadeError
from stockade.walls import debian, probe, pulling, runsc
from stockade.walls.probe import Check

if TYPE_CHECKING:
    from collections.abc import Iterator

SLOWER = "a platform that works is used; systrap is the fastest"


def gvisor_wall() -> Iterator[Check]:
    """All checks of the gVisor wall, each as soon as it is known."""
    yield (outer := probe.bubblewrap_program())
    spaces, made = probe.namespaces()
    if made is not None:
        made.close()
    yield spaces
    booting = "a guest with a kernel of its own has to boot"
    if not (outer.ok and spaces.ok):
        lacking = "user namespaces" if outer.ok else "bubblewrap"
        yield Check("runsc", False, f"not tried: it needs {lacking}", "gVisor: the guest's kernel, in user space", "See above.")
        return
    yield (found := program())
    if not found.ok:
        yield Check("boot", False, "not tried: it needs runsc", booting, "See above.")
        return
    try:
        booted = runsc.boot(*runsc.choose())
    except StockadeError as error:
        yield Check("boot", False, error.message, booting, "Another release of runsc may work here. Please report this if none does.")
        return
    seen = f"ran `true` in a guest on platform {booted.found.platform}, {booted.took * 1000:.0f} ms"
    yield Check("boot", True, seen, booting)
    yield platform(booted)
    covered = "; /proc/sys/net is covered, which this runsc needs on this kernel" if booted.found.sys_net_masked else ""
    yield images()
    yield Check(
        "network", True, f"gVisor's own network stack comes up in a namespace of its own{covered}", "the guest's only way to the gate"
    )


def images() -> Check:
    """What pulls images is there."""
    why = "they fetch and unpack images for a guest's root; without them it is the usual one, a folder, or an image that is here"
    try:
        pulling.require()
    except CannotEnforce as error:
        packages = tuple(os.path.basename(path) for path in (pulling.SKOPEO, pulling.UMOCI) if not os.path.exists(path))
        return Check("images", False, error.message, why, f"sudo apt install {' '.join(packages)}", "useful", packages)
    return Check("images", True, f"{pulling.SKOPEO}, {pulling.UMOCI}", why, need="useful")


def program() -> Check:
    """runsc is there, and new enough."""
    why = "gVisor: the guest's kernel, in user space"
    try:
        path, version = runsc.choose()
    except StockadeError as error:
        apt = error.code != "gvisor.boot" and bool(shutil.which("apt-get"))
        fix = runsc.MEND if apt else debian.RUNSC.without
        return Check("runsc", False, error.message, why, fix, packages=("runsc",) if apt else ())
    return Check("runsc", True, f"{path} {version}", why)


def platform(booted: runsc.Booted) -> Check:
    """Whether it is the best of gVisor's platforms."""
    name = booted.found.platform
    if name == runsc.PLATFORMS[0]:
        return Check("platform", True, name, SLOWER, need="useful")
    if booted.doubted:
        seen, fix = f"{name}: {runsc.PLATFORMS[0]} did not answer in time", "Is the machine very busy? Try again."
    else:
        seen, fix = (
            f"{name}: {runsc.PLATFORMS[0]} does not work here",
            "Another kernel, or a newer runsc, may allow it; nothing is held less.",
        )
    return Check("platform", False, seen, SLOWER, fix, "useful")
