"""The private home of a known agent: a folder of ours for each workspace, shown where the agent keeps its state. Never the user's own."""

from __future__ import annotations

import fcntl
import os

from stockade.core import places
from stockade.core.values import Mount, Origin
from stockade.policy import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Agent

_MAKE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def home(agent: Agent, workspace: str, session: str) -> Mount:
    """The home of `agent` for sessions in `workspace` (a resolved path); made, with its seeds, if there is none yet.

    INVARIANT: nothing outside writes or reads in it once a sandbox has had it: whoever was in there may have left links.
    Raises StockadeError `place.*`, OSError.
    """
    if agent.kept:
        folder = places.private(f"{places.private(places.state('agents'))}/{agent.name}-{files.digest(os.fsencode(workspace))[:32]}")
    else:
        folder = places.state(f"sessions/{session}")  # which goes when the session ends
    path = f"{folder}/home"
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if agent.kept:
            fcntl.flock(lock, fcntl.LOCK_EX)  # two sessions may begin at once
        if not os.path.lexists(path):
            new = f"{folder}/home.new"
            os.makedirs(new, 0o700, exist_ok=True)
            for name, text in (*((f"home.new/{name}", text) for name, text in agent.seeds), ("workspace", f"{workspace}\n")):
                with open(os.open(name, _MAKE, 0o600, dir_fd=lock), "w", encoding="utf-8", errors="surrogateescape") as file:
                    file.write(text)
            os.rename(new, path)
    finally:
        os.close(lock)
    return Mount(path, agent.home, "rw", Origin(f"agent:{agent.name}"))
