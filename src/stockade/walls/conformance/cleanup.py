"""Nothing is left on the host: not after an orderly end, and not after the process that holds a box was killed at whatever moment."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from stockade.walls.conformance import census, holder
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import expect

if TYPE_CHECKING:
    from stockade.walls.conformance.lab import Lab

WITHIN = 5.0  # seconds after which nothing may be left of a box whose holder was killed


@check("cleanup.close", "after closing no process, mount, cgroup, network interface, network namespace or descriptor is left")
def close(lab: Lab) -> None:
    with census.adopting():
        before = Before()
        with holder.holding(lab, "hold") as held:
            inside = census.below(held.process.pid)
            expect(inside, "the holder has no box")
            groups = census.groups(inside)
            said = held.close()
            expect(said, "closing raised an error")
            expect(said["descriptors"] <= 0, f"{said['descriptors']} descriptors are left in the process that held it")
            expect(said["again"] == 0, f"closing a second time gave {said['again']}")
        before.again(lab, groups)


@check("cleanup.kill", f"when the process that holds a box is killed, nothing of it is left within {WITHIN:g} s")
def kill(lab: Lab) -> None:
    _killed(lab, "hold")


@check("cleanup.kill-paused", f"the same when the box is paused, within {WITHIN:g} s")
def kill_paused(lab: Lab) -> None:
    _killed(lab, "paused")


@check("cleanup.kill-early", f"the same when it is killed while the box is still being made, within {WITHIN:g} s")
def kill_early(lab: Lab) -> None:
    for _ in range(3):
        _killed(lab, "early")


def _killed(lab: Lab, what: str) -> None:
    with census.adopting():
        before = Before()
        with holder.holding(lab, what) as held:
            inside = census.below(held.process.pid)
            expect(what == "early" or len(inside) > 2, "the holder has no box with commands in it")
            groups = census.groups(inside)
            held.process.kill()
            held.process.wait()
            for directory in held.answer["groups"]:  # made by the killed process itself: it is empty, or it could not be removed
                expect(census.until(partial(_removed, directory), min(WITHIN, lab.patience)), f"there is still something in {directory}")
            before.again(lab, groups)


class Before:
    """What there was before."""

    def __init__(self) -> None:
        self._known, self._mounts, self._interfaces = census.known(), census.mounts(), census.interfaces()

    def again(self, lab: Lab, groups: set[str]) -> None:
        """Raises Failed unless it is so again, soon. `groups` are the cgroups that there were meanwhile."""
        soon = min(WITHIN, lab.patience)
        expect(census.until(lambda: not census.more(self._known), soon), f"processes are left: {', '.join(census.more(self._known))}")
        expect(census.until(lambda: not _there(groups), soon), f"cgroups are left: {', '.join(_there(groups))}")
        expect(census.until(lambda: not self._mounted(), soon), f"mounts are left: {', '.join(self._mounted())}")
        expect(census.until(lambda: not self._wired(), soon), f"network interfaces are left: {', '.join(self._wired())}")

    def _mounted(self) -> list[str]:
        """New mounts that have to do with stockade, since others on this machine may mount as well; and those that keep a network namespace, which nothing else does
        by now: no process is in it, and none has it open (network_namespaces(7))."""
        return sorted(line for line in census.mounts() - self._mounts if "stockade" in line or line.startswith("net:["))

    def _wired(self) -> list[str]:
        return sorted(census.interfaces() - self._interfaces)


def _there(directories: set[str]) -> list[str]:
    return sorted(directory for directory in directories if os.path.exists(directory))


def _removed(directory: str) -> bool:
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
