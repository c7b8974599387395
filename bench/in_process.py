"""Helper of startup.py: for each folder read from standard input, opens a box on it, runs `true` there and prints the seconds that took.

What a program that embeds stockade pays for one more sandbox: its policy is loaded, its modules are imported. Ending the box is not counted.
"""

from __future__ import annotations

import sys
import time

from stockade.policy.cached import load
from stockade.session import Session


def once(folder: str) -> float:
    """Seconds from opening a session on `folder` until `true` has ended in it."""
    policy = load(folder)
    began = time.perf_counter()
    with Session(policy, folder) as session:
        session.open()
        session.record_start(["true"])
        child = session.box.spawn(["true"], env=dict(session.confinement.environment), cwd=session.confinement.cwd)
        status = session.box.wait(child)
        took = time.perf_counter() - began
    if status:
        raise SystemExit(f"true ended with {status}")
    return took


for line in sys.stdin:
    print(once(line.rstrip("\n")), flush=True)
