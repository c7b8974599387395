"""One program in a new sandbox, to its end: a second look from inside a session that is over, or the first at a project that nobody trusts yet."""

from __future__ import annotations

import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.core.values import Confinement
    from stockade.walls.contract import Plan, Wall
    from stockade.walls.door import Door


def confined(wall: Wall, plan: Plan, door: Door | None, wanted: Confinement, argv: Sequence[str], stdout: int, seconds: float) -> int:
    """Run `argv` in a new sandbox made by the `plan` of `wanted`; its exit status, or 137 when `seconds` are over.

    The session's door, if there is one, is shut by then, so nothing answers there. Everything that was started is dead when this returns. Raises WallFailed.
    """
    if door is not None:
        door.shut()
    box = wall.open_box(plan, door)
    try:
        child = box.spawn(argv, env=dict(wanted.environment), cwd=wanted.cwd, stdout=stdout)
        poll = select.poll()
        poll.register(box.fileno(), select.POLLIN)
        deadline = time.monotonic() + seconds
        while child.status is None and not child.error:
            left = deadline - time.monotonic()
            if left <= 0 or not poll.poll(left * 1000):
                return 137
            box.step()
        return child.exit_code
    finally:
        box.close()
