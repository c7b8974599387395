"""Sessions on this machine, and what those that are over have left: list them, bring their work back, or remove it.

A session's directory outlives it when its supervisor was killed before commits or files were brought back, when something could not be brought
back, when it holds the first versions of files (`rw-no-delete`), and when what it wrote waits for a person (`review`, session/review.py).
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.core.values import Confinement, Limits
from stockade.session import after, confine
from stockade.session.confined import confined

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stockade.walls.workspace import View
    from stockade.walls.workspace.hostgit import Confined

HINT = "stockade session list shows what there is."


@frozen
class Left:
    """A session that has a directory. `state` is "running", "paused", "ending" (a moment after its end) or "kept"; `what` says what it holds, in words."""

    id: str
    directory: str
    state: str
    workspace: str
    started: float  # Unix seconds, 0 = it never started
    what: tuple[str, ...]

    @property
    def lives(self) -> bool:
        """Whether somebody holds it, so that it can be given orders."""
        return self.state in ("running", "paused")


def sessions() -> list[Left]:
    """Every session with a directory, oldest first."""
    parent = places.state("sessions")
    try:
        names = sorted(name for name in os.listdir(parent) if not name.startswith("."))
    except FileNotFoundError:
        return []
    return [_look(name, f"{parent}/{name}") for name in names]


def find(name: str) -> Left:
    """The one session whose id is `name` or begins with it. Raises StockadeError (`session.unknown`)."""
    found = [left for left in sessions() if left.id.startswith(name)] if name else []
    exact = [left for left in found if left.id == name]
    if len(exact or found) != 1:
        what = "no session" if not found else f"{len(found)} sessions"
        raise StockadeError(f"there is {what} named {name!r} with a directory of its own", code="session.unknown", hint=HINT)
    return (exact or found)[0]


def recover(name: str) -> list[dict[str, Any]]:
    """Do for a session that is over what its supervisor would have done at its end; returns the events, which are recorded as well.

    Raises StockadeError: `session.unknown`, `session.running`, and what the wall raises; everything then stays where it is.
    """
    from stockade.walls.workspace import UNTOUCHED, scan
    from stockade.walls.workspace.report import parts

    left = find(name)
    with holding(left):
        view = resumed(left)
        with again(left, view) as inside:
            events = view.finish(inside)
        if view.facts["mode"] not in UNTOUCHED:
            events.append(scan.compare(view.facts, scan.Baseline()))
        _record(*(part for event in events for part in parts({**event, "session": left.id})))
        if reasons := after.left_by(events):
            after.keep(left.directory, reasons)
        else:
            after.discard(left.directory)
    return events


def resumed(left: Left) -> View:
    """The view of a session that is over. Raises StockadeError: `session.unknown` for one that never started, `workspace.missing`."""
    from stockade.walls import workspace

    try:
        view = workspace.resume(left.directory)
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise StockadeError(
            f"{left.id} cannot be resumed: {error}", code="session.unknown", hint=f"It never started. Look into {left.directory}."
        ) from error
    if not os.path.isdir(view.facts["top"]):
        raise StockadeError(
            f"the workspace {view.facts['top']} is not there any more",
            code="workspace.missing",
            hint=f"Put it back at this path; until then the work stays in {left.directory}.",
        )
    return view


@contextmanager
def again(left: Left, view: View) -> Iterator[Confined]:
    """What runs a program in the view of a session that is over, for as long as the context lasts. Raises what the wall raises."""
    from stockade.walls import bubblewrap, door

    target = view.facts["target"]
    home = places.inside()
    wanted = Confinement(
        mounts=view.mounts, overlays=view.overlays, held=view.held, network="door", limits=Limits(), cwd=target, home=home, workspace=target,
        environment=tuple(confine.base_environment(left.id, bubblewrap).items()),
    )  # fmt: skip
    plan = bubblewrap.plan(wanted, bubblewrap.look(home), stage=f"{left.directory}/stage")
    for stage in plan.stages:
        os.makedirs(stage, 0o700, exist_ok=True)
    made = door.make()
    try:
        yield lambda argv, stdout, seconds: confined(bubblewrap, plan, made, wanted, argv, stdout, seconds)
    finally:
        made.close()


def discard(name: str) -> Left:
    """Remove the directory of a session that is over, with all that it holds. Raises StockadeError (`session.unknown`, `session.running`)."""
    left = find(name)
    with holding(left):
        _record({"kind": "session.discard", "session": left.id, "held": list(left.what)})
        after.discard(left.directory)
        if os.path.exists(left.directory):
            raise StockadeError(
                f"cannot remove {left.directory}",
                code="session.discard",
                hint="Something in it belongs to somebody else, or the disk is read-only.",
            )
    return left


def _record(*events: dict[str, Any]) -> None:
    from stockade.record.ledger import Ledger

    ledger = Ledger(places.state("ledger"))
    try:
        ledger.extend(events)
    finally:
        ledger.close()


@contextmanager
def holding(left: Left) -> Iterator[None]:
    """Hold the directory of a session that is over. Raises StockadeError (`session.running`)."""
    fd = after.hold(left.directory)
    if fd < 0:
        raise StockadeError(f"{left.id} is still at work", code="session.running", hint="End its command first.")
    try:
        yield
    finally:
        os.close(fd)


def _look(name: str, directory: str) -> Left:
    facts = after.load(f"{directory}/facts") or {}
    state = "paused" if os.path.exists(f"{directory}/paused") else "running"
    what: tuple[str, ...] = ()
    fd = after.hold(directory)
    if fd >= 0:
        what = after.reasons(directory)
        state = "kept" if what else "ending"
        os.close(fd)
    return Left(name, directory, state, facts.get("top", ""), facts.get("started", 0.0), what)
