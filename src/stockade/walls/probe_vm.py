"""Does the vm wall work on this machine? Found out by booting a machine, and having it go on from its snapshot. Nothing here is on the way of a sandbox."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from stockade.core.errors import StockadeError
from stockade.core.values import Confinement, Limits
from stockade.walls import door, probe, probe_gvisor
from stockade.walls.probe import Check
from stockade.walls.vm import tools, wall

if TYPE_CHECKING:
    from collections.abc import Iterator

HOME = "/home/user"


def vm_wall() -> Iterator[Check]:
    """All checks of the vm wall, each as soon as it is known."""
    yield (outer := probe.bubblewrap_program())
    spaces, made = probe.namespaces()
    if made is not None:
        made.close()
    yield spaces
    needed = [outer, spaces]
    for check in tools.checks():
        yield check
        if check.name != "image tools":
            needed.append(check)
    yield probe_gvisor.images()
    yield (wire := tap())
    why = "a machine with a kernel of its own has to boot, to be saved, and to go on from there"
    lacking = [check.name for check in (*needed, wire) if not check.ok]
    if lacking:
        yield Check("boot", False, f"not tried: it needs {', '.join(lacking)}", why, "See above.")
        return
    try:
        yield from boot(why)
    except StockadeError as error:
        yield Check("boot", False, error.message, why, "Another release of QEMU may work here. Please report this if none does.")


def tap() -> Check:
    """A wire for a machine can be made."""
    why = "the guest's only way to the gate is a tap interface in a namespace of its own"
    try:
        door.make((door.PROXY,), wall.WIRE).close()
    except StockadeError as error:
        return Check("wire", False, error.message, why, error.hint)
    return Check("wire", True, "/dev/net/tun makes one in a namespace of ours", why)


def boot(why: str) -> Iterator[Check]:
    """A machine runs `true`, twice: the first time its snapshot may have to be made. Raises StockadeError."""
    host = wall.look(HOME)
    plan = wall.plan(Confinement(limits=Limits(), home=HOME), host)
    began = time.monotonic()
    _ran(plan)
    first = time.monotonic() - began
    began = time.monotonic()
    _ran(plan)
    again = time.monotonic() - began
    yield Check("boot", True, f"ran `true` in a machine: {first:.1f} s the first time, {again:.2f} s from its snapshot", why)
    faster = "a machine that is translated instruction by instruction computes ten times slower; nothing is held less"
    if host.qemu.accelerator == "kvm":
        yield Check("kvm", True, "machines run with it", faster, need="useful")
        return
    there = os.path.exists("/dev/kvm")
    seen = "no machine runs with it here" if there else "there is no /dev/kvm"
    yield Check("kvm", False, seen, faster, "Use a host with virtualisation, or nested virtualisation switched on.", "useful")


def _ran(plan: wall.Plan) -> None:
    box = wall.open_box(plan)
    try:
        while not box.ready:
            box.step()
        if box.wait(box.spawn(["true"], env={"PATH": "/usr/bin:/bin"})):
            raise box.failure()
    finally:
        box.close()
