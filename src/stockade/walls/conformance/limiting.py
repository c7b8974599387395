"""Limits hold, as they hold in a session: by the wall, by cgroups where some can be made, and by a watchdog. What stays below them is not disturbed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stockade.core.errors import WallFailed
from stockade.walls.conformance import probes
from stockade.walls.conformance.checks import check
from stockade.walls.conformance.lab import HOME, Done, Ended, Failed, expect

if TYPE_CHECKING:
    from collections.abc import Callable

    from stockade.walls.conformance.lab import Lab

MIB = 1 << 20


def held(lab: Lab, probe: str, whole: Callable[[Done], bool], *, much: tuple[str, ...], little: tuple[str, ...], **limits: int) -> None:
    """A probe that wants `much` gets it natively and not under `limits`, where the sandbox goes on or ends with an error; `little` it gets in both.

    `whole` tells whether a probe got what it wanted.
    """
    done = lab.control().sh(probe, *much)
    expect(whole(done), f"the control did not get it natively ({done.said}), so that nothing is proved")
    with lab.limited(**limits) as opened:
        ended = False
        try:
            expect(not whole(opened.sh(probe, *much)), f"it got {' '.join(much)}, which is more than the limit")
        except (WallFailed, Ended):
            ended = True
        if not ended:
            _goes_on(lambda: opened.sh("echo alive").text)
    with lab.limited(**limits) as opened:
        done = opened.sh(probe, *little)
        expect(whole(done), f"the twin: {' '.join(little)} is less than the limit, and was refused ({done.said})")


def _goes_on(alive: Callable[[], str]) -> None:
    late = time.monotonic() + 10
    while True:  # what the probe has left may still fill the limit for a moment
        try:
            if alive() == "alive":
                return
        except (WallFailed, Ended):
            return
        if time.monotonic() > late:
            raise Failed("the sandbox neither goes on nor ends")
        time.sleep(0.2)


@check("limits.processes", "a fork bomb is held")
def processes(lab: Lab) -> None:
    held(
        lab, probes.FORKS, lambda done: done.code == 0 and done.text.startswith("made"), much=("100", "1"), little=("15", "0"), processes=40
    )


@check("limits.memory", "a process that takes too much memory is held")
def memory(lab: Lab) -> None:
    held(lab, probes.HOG, lambda done: done.text == "had it all", much=("300M",), little=("20M",), memory=128 * MIB)


@check("limits.memory-together", "processes that take too much memory together are held")
def memory_together(lab: Lab) -> None:
    size, count = str(32 * MIB), 8
    much, little = (size, str(count), "2"), (size, "1", "0")
    held(lab, probes.HOGS, lambda done: done.text.split() in ([size] * count, [size]), much=much, little=little, memory=128 * MIB)


@check("limits.cpu-time", "a process that computes too long is ended")
def cpu_time(lab: Lab) -> None:
    control = lab.control()
    running = control.begin(probes.SPIN)
    try:
        control.until(lambda: running.over, "", 1.2)
    except Failed:
        control.box.signal(running.child, 9)
        control.finish(running)
    else:
        raise Failed("the control ended by itself, so that nothing is proved")
    with lab.limited(cpu_time=1) as opened:
        expect(opened.sh("echo alive").text == "alive", "the twin: a short command does not run")
        try:
            done = opened.sh(probes.SPIN)
        except (WallFailed, Ended):
            return
        expect(done.code, "an endless loop ended well")


@check("limits.file-size", "a file cannot grow beyond the limit")
def file_size(lab: Lab) -> None:
    path = f"{lab.folder()}/big"
    done = lab.control_of(probes.FILL, str(2 * MIB), path)
    with lab.limited(file_size=MIB) as opened:
        done = opened.sh(probes.FILL, str(2 * MIB), "/tmp/big")
        size = opened.sh('stat -c %s "$1"', "/tmp/big").text
        expect(done.code and int(size or 0) <= MIB, f"a file of {size} bytes was written ({done.said})")
        expect(opened.sh(probes.FILL, str(MIB // 2), "/tmp/small").code == 0, "the twin: a smaller file cannot be written")


@check("limits.open-files", "a process cannot open more files than the limit says")
def open_files(lab: Lab) -> None:
    held(lab, probes.OPEN, lambda done: done.code == 0, much=("200",), little=("20",), open_files=64)


@check("limits.scratch", "the private places cannot grow beyond the limit, and say so")
def scratch(lab: Lab) -> None:
    lab.control_of(probes.FILL, str(4 * MIB), f"{lab.folder()}/big")
    with lab.limited(scratch=2 * MIB) as opened:
        for place in ("/tmp", HOME, "/dev/shm", "/var/tmp"):
            done = opened.sh(probes.FILL, str(4 * MIB), f"{place}/big")
            expect(done.code and done.err, f"{place} took 4 MiB, or its refusal was silent")
            done = opened.sh(f'rm "$2" && {probes.FILL}', str(MIB), f"{place}/big")
            expect(done.code == 0, f"the twin: {place} does not take 1 MiB ({done.said})")
