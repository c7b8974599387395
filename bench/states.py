"""What it costs to pause, save and restore a guest, beside making one: time until the end of its first `true`, time in which it is saved, memory.

    python bench/states.py [--rounds N] [--json]

All take turns in every round, so that a busy moment of the machine hits all of them. "warm" is a guest in which Python has loaded a few libraries and waits.
Absolute times depend on the machine, and no test looks at them.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import statistics
import tempfile
import time
from pathlib import Path

from stockade.core.values import Confinement, Limits
from stockade.walls import gvisor, limits

TRUE, ENVIRONMENT = "/usr/bin/true", {"PATH": "/usr/bin:/bin"}
WARM = "exec >/tmp/log 2>&1 </dev/null; setsid /usr/bin/python3 -c 'import asyncio, http.client, sqlite3, time; print(1, flush=True); time.sleep(999)' & until [ -s /tmp/log ]; do sleep 0.01; done"


class Guest:
    """One of ours, after its first `true`; `took` seconds until then."""

    def __init__(self, image: str = "") -> None:
        began = time.perf_counter()
        self._door = gvisor.make_door((80, 443, 3128))
        wanted = Confinement(network="door", limits=Limits(), image=image)
        self.box = gvisor.open_box(gvisor.plan(wanted, gvisor.look("/home/user")), self._door)
        self.box.wait(self.box.spawn([TRUE], env=ENVIRONMENT))
        self.took = time.perf_counter() - began

    def warm(self) -> float:
        """Make it what a program would want to fork; how long that takes."""
        began = time.perf_counter()
        assert self.box.wait(self.box.spawn(["/bin/sh", "-c", WARM], env=ENVIRONMENT)) == 0
        return time.perf_counter() - began

    def save(self, directory: str) -> float:
        began = time.perf_counter()
        os.mkdir(directory)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        assert isinstance(self.box, gvisor.Guest)
        saving = self.box.save(fd)
        select.select([saving], [], [])
        saving.done()
        os.close(fd)
        return time.perf_counter() - began

    def pause(self) -> float:
        began = time.perf_counter()
        self.box.pause()
        self.box.resume()
        return time.perf_counter() - began

    def memory(self) -> float:
        """PSS in MiB."""
        return limits.usage(limits.init_of(self.box.pid), precise=True).memory / (1 << 20)

    def close(self) -> None:
        self.box.close()
        self._door.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        found.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as scratch:
        for number in range(options.rounds):
            for kind in ("idle", "warm"):
                image = f"{scratch}/{kind}-{number}"
                made = Guest()
                warming = made.warm() if kind == "warm" else 0.0
                note(f"{kind}: made, ms", (made.took + warming) * 1000)
                note(f"{kind}: paused and resumed, ms", made.pause() * 1000)
                note(f"{kind}: PSS of one that was made, MiB", made.memory())
                note(f"{kind}: saved, ms", made.save(image) * 1000)
                note(f"{kind}: size, MiB", sum(path.stat().st_size for path in Path(image).iterdir()) / (1 << 20))
                made.close()
                restored = Guest(image)
                note(f"{kind}: restored, ms", restored.took * 1000)
                note(f"{kind}: PSS of one that was restored, MiB", restored.memory())
                restored.close()
                note(f"{kind}: restored / made", restored.took / (made.took + warming))
    medians = {name: round(statistics.median(values), 2) for name, values in found.items()}
    if options.json:
        print(json.dumps(medians, indent=2))
        return
    for name, value in medians.items():
        print(f"{name:<45}{value:>10.2f}")


if __name__ == "__main__":
    main()
