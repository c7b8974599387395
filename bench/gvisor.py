"""What the gVisor wall costs, beside runsc alone: a guest from nothing, or from a pool, to the end of `true`, a command in one that stands, bytes out of it, memory.

    python bench/gvisor.py [--rounds N] [--alone] [--json]

All take turns in every round, in an order that is drawn anew, so that a busy moment of the machine hits all of them. Printed are medians and ratios of this run; absolute times depend on
the machine and no test looks at them. A command in a guest passes a hundred times from one thread of the host to another, so on few processors most of its time is waiting to be
scheduled: `--alone` puts all that is measured at real-time priority (SCHED_RR of sched(7)), which leaves what it takes by itself. `runsc` alone is `runsc run`
and `runsc exec` of the same program from the same /usr, as root, with the same flags.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

from stockade.core.values import Confinement, Limits, Policy
from stockade.session.live import LiveSession, open_session
from stockade.session.pool import Pool
from stockade.walls import gvisor, limits, runsc
from stockade.walls.box import Box

TRUE, PATH = "/usr/bin/true", {"PATH": "/usr/bin:/bin"}
INSIDE = 20  # commands of a shell in the guest: what one costs there, whoever asks for it
SHELL = ["/bin/sh", "-c", f"i=0; while [ $i -lt {INSIDE} ]; do {TRUE}; i=$((i + 1)); done"]
STREAM = ["/usr/bin/dd", "if=/dev/zero", "bs=64K", "count=8192"]  # 512 MiB
QUIET = 0.5  # seconds
FLAGS = ["--network=none", "--ignore-cgroups", "--overlay2=none"]


class Raw:
    """runsc alone, with a bundle of its own."""

    def __init__(self, scratch: str, found: runsc.Found) -> None:
        self._command = [found.path, f"--root={scratch}/state", f"--platform={found.platform}", *FLAGS]
        self._scratch, self._count = scratch, 0

    def _bundle(self, argv: list[str]) -> tuple[str, str]:
        self._count += 1
        name = f"bench-{os.getpid()}-{self._count}"
        folder = f"{self._scratch}/{name}"
        os.mkdir(folder)
        configuration = {
            "ociVersion": "1.0.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": argv, "env": ["PATH=/usr/bin:/bin"], "cwd": "/"},
            "root": {"path": "/", "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"},
            ],
            "linux": {"namespaces": [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "network")]},
        }
        Path(folder, "config.json").write_text(json.dumps(configuration))
        return folder, name

    def start(self, argv: list[str], stdout: int | None = None) -> tuple[subprocess.Popen[bytes], str]:
        """`runsc run` of a command: the process, and the guest's name."""
        folder, name = self._bundle(argv)
        return subprocess.Popen(
            [*self._command, "run", "-bundle", folder, name], stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL
        ), name

    def exec(self, name: str) -> None:
        subprocess.run([*self._command, "exec", name, TRUE], check=True, stdin=subprocess.DEVNULL)

    def end(self, process: subprocess.Popen[bytes], name: str) -> None:
        subprocess.run([*self._command, "kill", name, "KILL"], check=False, stderr=subprocess.DEVNULL)
        process.wait()


def start(network: Literal["none", "door"]) -> float:
    """Seconds until a guest of ours has run `true`; its end is not counted."""
    began = time.perf_counter()
    door = gvisor.make_door((80, 443, 3128, 53)) if network == "door" else None
    box = gvisor.open_box(gvisor.plan(Confinement(network=network, limits=Limits()), gvisor.look("/home/user")), door)
    box.wait(box.spawn([TRUE], env=PATH))
    took = time.perf_counter() - began
    box.close()
    if door is not None:
        door.close()
    return took


async def session(opening: AbstractAsyncContextManager[LiveSession]) -> tuple[float, float, float]:
    """Seconds until a session's first `true` has ended, those of them in which it was opened, and for its second `true`."""
    began = time.perf_counter()
    async with opening as opened:
        stands = time.perf_counter()
        await opened.exec([TRUE])
        first = time.perf_counter()
        await opened.exec([TRUE])
        return first - began, stands - began, time.perf_counter() - first


async def sessions(rounds: int, folder: str) -> dict[str, list[float]]:
    """Whole sessions, with their ledger: from a pool, and booted."""
    found: dict[str, list[float]] = {}
    policy = Policy(wall="gvisor")
    async with Pool(policy, size=2) as pool:
        for number in range(rounds + 1):
            for name in ("from a pool", "booted"):
                await pool.filled()  # so that nothing boots beside what is measured, ...
                await asyncio.sleep(QUIET)  # ... and nothing is ended or swept up
                took = await session(pool.session(cwd=folder) if name == "from a pool" else open_session(policy, cwd=folder))
                for what, value in zip(("start", "of that, opening", "exec"), took, strict=True) if number else ():
                    found.setdefault(f"{what}: session {name}", []).append(value)
        assert pool.misses == 0
    return found


def clock(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def rate(read: int) -> float:
    """MB a second out of a descriptor until its end, from its first byte on."""
    total, began = len(os.read(read, 1 << 20)), time.perf_counter()
    while piece := os.read(read, 1 << 20):
        total += len(piece)
    return total / (time.perf_counter() - began) / 1e6


def memory(pid: int) -> float:
    """MiB (Pss of proc(5)) of the processes below and with `pid`."""
    return limits.usage(pid, precise=True).memory / (1 << 20)


def measure(raw: Raw, rounds: int) -> dict[str, list[float]]:
    """Every round's figures by name: seconds, or MB a second."""
    found: dict[str, list[float]] = {}
    box = gvisor.open_box(gvisor.plan(Confinement(), gvisor.look("/home/user")))
    beside, name = raw.start(["/usr/bin/sleep", "600"])
    try:
        box.wait(box.spawn([TRUE], env=PATH))
        time.sleep(1)
        raw.exec(name)
        time.sleep(1)  # both have run `true`, and are idle now; what passes through later stays in a guest's memory for a while
        found["memory: runsc run"], found["memory: ours"] = [memory(beside.pid)], [memory(box.pid)]
        works: list[tuple[str, Callable[[], float]]] = [
            ("start: runsc run", lambda: clock(lambda: raw.start([TRUE])[0].wait())),
            ("start: ours, no network", lambda: start("none")),
            ("start: ours, with a door", lambda: start("door")),
            ("exec: runsc exec", lambda: clock(lambda: raw.exec(name))),
            ("exec: ours", lambda: statistics.median(clock(lambda: box.wait(box.spawn([TRUE], env=PATH))) for _ in range(5))),
            ("exec: of a shell inside", lambda: clock(lambda: box.wait(box.spawn(SHELL, env=PATH))) / INSIDE),
            ("stream: runsc run", lambda: _raw_stream(raw)),
            ("stream: ours", lambda: _stream(box)),
        ]
        for number in range(rounds + 1):  # the first round only warms caches
            random.shuffle(works)  # nothing is measured always behind the same other thing
            took = {}
            for label, work in works:
                time.sleep(QUIET)  # what the one before leaves to do is done: a guest that has ended takes its memory apart
                took[label] = work()
            for label in sorted(took) if number else ():
                found.setdefault(label, []).append(took[label])
    finally:
        box.close()
        raw.end(beside, name)
    return found


def _raw_stream(raw: Raw) -> float:
    process, _ = raw.start(STREAM, subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        found = rate(process.stdout.fileno())
    process.wait()
    return found


def _stream(box: Box) -> float:
    read, write = os.pipe()
    try:
        child = box.spawn(STREAM, env=PATH, stdout=write)
    finally:
        os.close(write)
    found = rate(read)
    os.close(read)
    box.wait(child)
    return found


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--alone", action="store_true", help="at real-time priority")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    if os.geteuid():
        sys.stderr.write("bench/gvisor.py: runsc alone, which this compares with, needs root\n")
        return 1
    scratch = tempfile.mkdtemp(prefix="stockade-bench-")
    try:
        os.mkdir(f"{scratch}/work")
        for name in ("STATE", "CONFIG"):
            os.environ[f"XDG_{name}_HOME"] = f"{scratch}/{name.lower()}"
        if given.alone:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(5))
        found = measure(Raw(scratch, runsc.find()), given.rounds) | asyncio.run(sessions(given.rounds, f"{scratch}/work"))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    medians = {label: statistics.median(values) for label, values in found.items()}
    slowest = {label: sorted(values)[-1 - len(values) // 100] for label, values in found.items()}
    if given.json:
        print(json.dumps(medians, indent=2))
        return 0
    for label, value in medians.items():
        kind, _, who = label.partition(": ")
        bare = medians[next(name for name in medians if name.startswith(f"{'start' if kind.startswith('of') else kind}: runsc"))]
        shown = f"{value:8.1f} {'MB/s' if kind == 'stream' else 'MB'}" if kind in ("stream", "memory") else f"{value * 1000:8.1f} ms"
        worst = "" if kind in ("stream", "memory") else f"  p99 {slowest[label] * 1000:8.1f} ms"
        print(f"{kind:16} {who:22} {shown:>14}  {value / bare:5.2f} x{worst}")
    print(f"medians of {given.rounds} rounds, taking turns")
    return 0


if __name__ == "__main__":
    sys.exit(main())
