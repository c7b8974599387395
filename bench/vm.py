"""What a virtual machine costs: from nothing to the first `true`, from a snapshot, each further command, streams, memory, many at once; beside bare QEMU going on from the same snapshot.

    python bench/vm.py [--rounds N] [--many N] [--json]

Ratios of one run say more than its milliseconds. Needs `stockade vm build` (or an image in /var/lib/stockade/vm).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from stockade.core.values import Confinement, Limits
from stockade.walls.vm import machine, snapshot, wall

LIMITS = Limits(memory=1 << 30)
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


def started(plan: wall.Plan) -> tuple[Any, float]:
    """A machine that stands, and the seconds that it took."""
    began = time.perf_counter()
    box = wall.open_box(plan)
    while not box.ready:
        box.step()
    return box, time.perf_counter() - began


def first(plan: wall.Plan) -> tuple[float, float, list[float]]:
    """Seconds until it stands, until `true` has ended, and of ten more commands."""
    began = time.perf_counter()
    box, stands = started(plan)
    box.wait(box.spawn(["true"], env=ENVIRONMENT))
    done = time.perf_counter() - began
    more = []
    for _ in range(10):
        at = time.perf_counter()
        box.wait(box.spawn(["true"], env=ENVIRONMENT))
        more.append(time.perf_counter() - at)
    box.close()
    return stands, done, more


def bare(plan: wall.Plan, place: str) -> float:
    """Seconds until QEMU alone, in no sandbox, has gone on from the snapshot: the guest's answer to a greeting."""
    import socket

    kind = plan.origin.machine
    words = [
        word.replace(f"{machine.SNAPSHOT}/", f"{place}/").replace(f"{machine.IMAGE}/", f"{plan.image.place.path(plan.image.digest)}/")
        for word in machine.arguments(kind, saving=False, fds=(103, 104))
    ]
    late = tempfile.mkdtemp()
    words = [word.replace(f"path={machine.LATE}", f"path={late}").replace(f"path={machine.TREE}", f"path={late}") for word in words]
    orders = Path(late, "orders")
    orders.write_bytes(machine.orders().replace(machine.SNAPSHOT.encode() + b"/", place.encode() + b"/"))
    words = [word.replace(f"{place}/orders", str(orders)) for word in words]
    ours, theirs = socket.socketpair()
    os.dup2(theirs.fileno(), 103)
    theirs.close()
    hello = b"".join(os.fsencode(word) + b"\0" for word in plan.greeting)
    ours.sendall((1).to_bytes(2, sys.byteorder) + bytes(2) + len(hello).to_bytes(4, sys.byteorder) + hello)
    began = time.perf_counter()
    process = subprocess.Popen(words, pass_fds=[103], stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL)
    os.close(103)
    ours.settimeout(60)
    ours.recv(8)
    took = time.perf_counter() - began
    process.kill()
    process.wait()
    ours.close()
    orders.unlink()
    os.rmdir(late)
    return took


def memory(pid: int) -> dict[str, int]:
    """KiB of all processes below a bubblewrap: proportional (Pss) and private, as proc_pid_smaps_rollup says."""
    found, waiting = {"pss": 0, "private": 0}, [pid]
    while waiting:
        process = waiting.pop()
        for task in os.listdir(f"/proc/{process}/task"):
            waiting += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Pss":
                found["pss"] += int(value.split()[0])
            elif name in ("Private_Clean", "Private_Dirty"):
                found["private"] += int(value.split()[0])
    return found


FILL = "import time; held = bytearray(b'a') * (512 << 20); print(open('/proc/meminfo').read(), flush=True); time.sleep(60)"


def filled(plan: wall.Plan) -> float:
    """MiB of the host's that a machine takes (Pss), for each that its guest uses by its own account (MemTotal - MemFree), with 512 MiB in one program's hands."""
    box, _ = started(plan)
    out, end = os.pipe()
    box.spawn(["/usr/bin/python3", "-c", FILL], env=ENVIRONMENT, stdout=end)
    os.close(end)
    said = b""
    while b"DirectMap4k" not in said:
        said += os.read(out, 1 << 16)
    facts = {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in said.decode().splitlines()) if value}
    ratio = memory(box.pid)["pss"] / (facts["MemTotal"] - facts["MemFree"])
    os.close(out)
    box.close()
    return ratio


def stream(plan: wall.Plan, size: int) -> float:
    """Megabytes a second that a command writes to a pipe of ours."""
    box, _ = started(plan)
    out, end = os.pipe()
    began = time.perf_counter()
    child = box.spawn(["head", "-c", str(size), "/dev/zero"], env=ENVIRONMENT, stdout=end)
    os.close(end)
    poll = select.poll()
    poll.register(out, select.POLLIN)
    poll.register(box.fileno(), select.POLLIN)
    got = 0
    while got < size:
        for fd, _ in poll.poll():
            if fd == out:
                got += len(os.read(out, 1 << 20))
            else:
                box.step()
    took = time.perf_counter() - began
    if child.status is None:
        box.wait(child)
    os.close(out)
    box.close()
    return size / took / 1e6


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=10)
    options.add_argument("--many", type=int, default=10)
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    plan = wall.plan(Confinement(limits=LIMITS), wall.look("/home/user"))
    with tempfile.TemporaryDirectory(prefix="stockade-bench-") as scratch:
        os.environ["XDG_CACHE_HOME"] = scratch
        began = time.perf_counter()
        place, held = snapshot.hold(plan.origin, plan.image)
        cold = time.perf_counter() - began
        rows: dict[str, list[float]] = {"bare QEMU goes on, ms": [], "machine stands, ms": [], "first true, ms": [], "exec, ms": []}
        for _ in range(given.rounds):
            rows["bare QEMU goes on, ms"].append(bare(plan, place) * 1000)
            stands, done, more = first(plan)
            rows["machine stands, ms"].append(stands * 1000)
            rows["first true, ms"].append(done * 1000)
            rows["exec, ms"] += [one * 1000 for one in more]
        ratio = filled(plan)
        rate = statistics.median(stream(plan, 64 << 20) for _ in range(3))
        boxes = []
        began = time.perf_counter()
        for _ in range(given.many):
            boxes.append(started(plan)[0])
        many = time.perf_counter() - began
        used = [memory(box.pid) for box in boxes]
        for box in boxes:
            box.close()
        os.close(held)
    medians = {name: round(statistics.median(values), 2) for name, values in rows.items()}
    found = {
        "rounds": given.rounds, "cold boot and save, s": round(cold, 2), **medians, "stream out, MB/s": round(rate, 1),
        f"{given.many} machines after each other, s": round(many, 2),
        "memory of one of them, MiB": {name: round(statistics.median(one[name] for one in used) / 1024, 1) for name in ("pss", "private")},
        "Pss / what the guest uses, 512 MiB held": round(ratio, 2),
    }  # fmt: skip
    if given.json:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:38} {value}")
        print(f"first true / bare QEMU                 {medians['first true, ms'] / medians['bare QEMU goes on, ms']:.2f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
