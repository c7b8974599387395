"""Many sandboxes at once, and what is left of them: fill up to `--live` gVisor sessions, then open, use and end others at their side for `--seconds`.

    python bench/churn.py [--live 300] [--seconds 600] [--json]

Those that nobody uses stand still (`session.pause()`): a guest's kernel without work takes some percent of a processor (runsc 20240729, systrap), and 300 would
take all of a small machine. Every fourth that ends is killed from outside instead of closed: its runsc, by SIGKILL. Nobody may be lost (a session that still
should be there answers), and when all have ended nothing may be left: processes, mounts, network namespaces, interfaces, cgroups, descriptors, session
directories, disk. The exit status says so. The cost of one more session is printed at several numbers of live ones; ratios are to the first row of this run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from stockade.core.errors import StockadeError
from stockade.core.values import Limits, Policy
from stockade.session.live import LiveSession
from stockade.walls import limits

POLICY = Policy(wall="gvisor", limits=Limits(memory=256 << 20, processes=64, scratch=16 << 20))
SAMPLE = 8  # sessions opened and closed for each row of the table


def census(state: str) -> dict[str, int]:
    """What there is of each kind that a session takes, on the whole machine where only that can be seen."""
    parents: dict[int, list[int]] = {}
    spaces = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
            spaces.add(os.readlink(f"/proc/{pid}/ns/net"))
        except OSError:
            continue
        if fields[0] != "Z":
            parents.setdefault(int(fields[1]), []).append(int(pid))
    below, waiting = 0, [os.getpid()]
    while waiting:
        children = parents.get(waiting.pop(), [])
        below += len(children)
        waiting += children
    groups = sum(name.startswith("stockade-") for _, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    sessions = f"{state}/stockade/sessions"
    return {
        "processes": below,
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "network namespaces": len(spaces),
        "interfaces": len(os.listdir("/sys/class/net")),
        "cgroups": groups,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "session directories": len(os.listdir(sessions)) if os.path.isdir(sessions) else 0,
        "MB of /tmp": (os.statvfs("/tmp").f_blocks - os.statvfs("/tmp").f_bfree) * os.statvfs("/tmp").f_frsize >> 20,
    }


async def open_one(folder: str) -> LiveSession:
    session = LiveSession(POLICY, folder)
    try:
        await session.open()
    except BaseException:
        await session.close()
        raise
    return session


async def answers(session: LiveSession) -> bool:
    """Whether it is the session that it was: it has what only it was given."""
    session.resume()
    found = await session.exec(["/bin/sh", "-c", "cat /tmp/whose"])
    session.pause()  # 300 that are awake would take the whole machine
    return found.stdout.decode() == session.id


async def used(folder: str) -> LiveSession:
    """A session that has run something, and knows who it is."""
    session = await open_one(folder)
    await session.exec(["/bin/sh", "-c", "printf %s $STOCKADE_SESSION > /tmp/whose"])
    session.pause()
    return session


async def row(folder: str) -> float:
    """Median milliseconds of CPU and waiting for one more session: opened, used and closed."""
    took = []
    for _ in range(SAMPLE):
        began = time.perf_counter()
        session = await used(folder)
        await session.close()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


async def churn(folder: str, live: int, seconds: float, say: bool) -> dict[str, object]:
    """Fill, churn, end all."""
    chance = random.Random(1)
    sessions: list[LiveSession] = []
    rows: dict[int, float] = {}
    lost = opened = killed = 0
    marks = sorted({1, live // 3, 2 * live // 3, live})
    while len(sessions) < live:
        sessions.append(await used(folder))
        opened += 1
        if len(sessions) in marks:
            rows[len(sessions)] = await row(folder)
            if say:
                sys.stderr.write(f"{len(sessions)} live: one more costs {rows[len(sessions)]:.0f} ms\n")
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        gone = sessions.pop(chance.randrange(len(sessions)))
        if opened % 4 == 0:
            killed += 1
            os.kill(limits.init_of(gone._session.box.pid), signal.SIGKILL)  # runsc, the first process of its namespace
            try:
                await gone.exec(["/bin/true"])
                lost += 1  # nobody may answer
            except StockadeError:
                pass
        elif not await answers(gone):
            lost += 1
        await gone.close()
        sessions.append(await used(folder))
        opened += 1
    for session in sessions:
        lost += not await answers(session)
    for session in sessions:
        await session.close()
    return {"opened": opened, "killed": killed, "lost": lost, "rows": rows}


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--live", type=int, default=300)
    options.add_argument("--seconds", type=float, default=600)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # some 25 descriptors a session
    scratch = tempfile.mkdtemp(prefix="stockade-bench-")
    os.mkdir(f"{scratch}/work")
    for name in ("STATE", "CONFIG"):
        os.environ[f"XDG_{name}_HOME"] = f"{scratch}/{name.lower()}"
    try:
        state = f"{scratch}/state"

        async def whole() -> tuple[dict[str, object], dict[str, int], dict[str, int]]:
            await row(f"{scratch}/work")  # whatever is cached is cached now
            await settled(state, None)
            before = census(state)
            found = await churn(f"{scratch}/work", given.live, given.seconds, sys.stderr.isatty() and not given.json)
            return found, before, await settled(state, before)

        found, before, after = asyncio.run(whole())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    left = {kind: count - before[kind] for kind, count in after.items() if count > before[kind] + (64 if kind.startswith("MB") else 0)}
    if given.json:
        print(json.dumps({**found, "left": left}, indent=2))
    else:
        rows = found["rows"]
        assert isinstance(rows, dict)
        first = next(iter(rows.values()))
        for count, took in rows.items():
            print(f"{count:5} live: one more, opened, used and closed {took:8.1f} ms  {took / first:5.2f} x")
        print(
            f"{found['opened']} opened, {found['killed']} of them killed from outside, {found['lost']} lost; left over: {left or 'nothing'}"
        )
    return 1 if left or found["lost"] else 0


async def settled(state: str, before: dict[str, int] | None) -> dict[str, int]:
    """The census once what is cleaned up behind the last session is done, or after half a minute."""
    for _ in range(60):
        now = census(state)
        if now["session directories"] == 0 and (before is None or all(now[kind] <= before[kind] for kind in ("processes", "cgroups"))):
            return now
        await asyncio.sleep(0.5)
    return census(state)


if __name__ == "__main__":
    sys.exit(main())
