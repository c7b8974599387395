"""What it costs a guest on the gVisor wall that its kernel says what happens in it, by what it says.

    python bench/events.py [--rounds N] [--json]

Three guests do the same, 200 times fork, exec and wait, and 2000 times socket and connect; in turns, so that a busy moment of the machine hits all of them.
"none" reports nothing, "default" what sessions do, "everything" each system call's beginning and end besides. What is reported is decoded and written to a
ledger meanwhile, as in a session. Printed are medians and their ratios to "none" in this run; absolute times depend on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import statistics
import subprocess
import tempfile
from pathlib import Path

from stockade.core.frozen import replace
from stockade.core.values import Confinement
from stockade.record.ledger import Ledger
from stockade.walls import events, gvisor
from stockade.walls.sink import Sink

PYTHON = "/usr/bin/python3"
WORK = """
import os, socket, time
began = time.monotonic()
for _ in range(200):
    pid = os.posix_spawn("/usr/bin/true", ["true"], {})
    os.waitpid(pid, 0)
half = time.monotonic()
for _ in range(2000):
    with socket.socket(socket.AF_UNIX) as one:
        try: one.connect("/nothing")
        except OSError: pass
print(half - began, time.monotonic() - half)
"""


def points(runsc: str, kind: str) -> tuple[str, ...]:
    """The names of what is reported."""
    if kind == "default":
        return events.POINTS
    known = subprocess.run([runsc, "trace", "metadata"], check=True, capture_output=True, text=True).stdout
    return tuple(re.findall(r"^Name: ((?:sentry/(?:execve|clone)|syscall/sysno/\d+/(?:enter|exit)))", known, re.MULTILINE))


def measured(kind: str, folder: str) -> tuple[float, float, int, int]:
    """Seconds that the execs and that the connections took, how many events went on record, and how many were counted only."""
    os.mkdir(folder)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    sink, ledger = Sink(directory, folder), Ledger(f"{folder}/ledger")
    host = gvisor.look("/home/user")
    plan = gvisor.plan(Confinement(events="" if kind == "none" else sink.path), host)
    if kind == "everything":
        data = (*plan.warm.data[:-1], events.configuration(gvisor.EVENTS, points(host.runsc, kind)))
        plan = replace(plan, warm=replace(plan.warm, data=data))
    box = gvisor.open_box(plan)
    output = os.memfd_create("output")
    recorded = lost = 0
    try:
        child = box.spawn([PYTHON, "-I", "-S", "-c", WORK], env={}, stdout=output)
        while child.status is None and not child.error:
            poll = select.poll()
            poll.register(box.fileno(), select.POLLIN)
            if kind != "none":
                poll.register(sink.fileno(), select.POLLIN)
            ready = [fd for fd, _ in poll.poll()]
            if box.fileno() in ready:
                box.step()
            for event in sink.take() if sink.fileno() in ready else ():
                recorded += 1
                ledger.append({"kind": "guest", "session": "bench", **event})
        lost = sum(int(str(entry.get("count", 0))) for entry in sink.lost())
    finally:
        box.close()
        sink.close()
        ledger.close()
        os.close(directory)
    execs, connects = map(float, os.pread(output, 100, 0).split())
    os.close(output)
    return execs, connects, recorded, lost


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds = ("none", "default", "everything")
    found: dict[str, list[tuple[float, float, int, int]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as scratch:
        for count in range(options.rounds):
            for kind in kinds:
                found[kind].append(measured(kind, str(Path(scratch, f"{count}-{kind}"))))
    rows = {}
    for kind in kinds:
        execs, connects, recorded, lost = (statistics.median(column) for column in zip(*found[kind], strict=True))
        rows[kind] = {"execs": execs, "connects": connects, "recorded": recorded, "counted only": lost}
    if options.json:
        print(json.dumps(rows))
        return
    for kind, row in rows.items():
        ratios = [row[what] / rows["none"][what] for what in ("execs", "connects")]
        print(f"{kind:12}execs {1000 * row['execs'] / 200:6.2f} ms each ({ratios[0]:.2f} x)", end="   ")
        print(f"connects {1e6 * row['connects'] / 2000:6.0f} us each ({ratios[1]:.2f} x)", end="   ")
        print(f"{row['recorded']:.0f} on record, {row['counted only']:.0f} counted only")


if __name__ == "__main__":
    main()
