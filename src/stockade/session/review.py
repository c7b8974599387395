"""What sessions left for a person to decide on: files that wait (`review`), and first versions of files (`rw-no-delete`). Shown, brought to the folder, or dropped.

INVARIANT: nothing is brought that was not in the ledger before (`changes.apply`), and nothing removed that was neither brought nor dropped by a person.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stockade.core import places
from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.session import after, kept
from stockade.walls.workspace import review, waiting
from stockade.walls.workspace.apply import Apply, chosen
from stockade.walls.workspace.report import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from stockade.record.ledger import Ledger
    from stockade.session.kept import Left
    from stockade.walls.workspace.difference import Difference
    from stockade.walls.workspace.waiting import Change, Waiting

HINT = "stockade changes lists what waits."


@frozen
class Held:
    """What one session holds. `first`: not changes, but the first versions of files that changed; `refs` are commits that wait."""

    left: Left
    facts: dict[str, Any]
    found: Waiting
    refs: tuple[tuple[str, str], ...]
    first: bool

    @property
    def upper(self) -> str:
        return f"{self.left.directory}/kept" if self.first else ""

    @property
    def empty(self) -> bool:
        return not (self.found.changes or self.found.unread or self.refs) and self.found.complete

    def compared(self, change: Change) -> Difference | None:
        """The difference of one file; None if it is no text, or too large."""
        return review.compared(self.facts, change, self.upper)

    @property
    def said(self) -> str:
        """How much it is, in words."""
        if self.first:
            number = sum(one.kind != "folder" for one in self.found.changes)
            return (
                f"{number} first version{'s' * (number != 1)} of files that are otherwise by now"
                if number
                else "first versions of files that are as they were"
            )
        return review.sentence(self.found, list(self.refs))


def sessions() -> Iterator[Left]:
    """Sessions that are over and hold something of the kind."""
    for left in kept.sessions():
        if not left.lives and left.state == "kept" and _has(left):
            yield left


def find(name: str, cwd: str) -> Left:
    """The session of this name; with "" the one that holds something of the folder `cwd` or one above it. Raises StockadeError: `session.unknown`, `changes.none`,
    `changes.which`."""
    if name:
        left = kept.find(name)
        if not left.lives and not _has(left):
            raise StockadeError(f"{left.id} holds no changes and no first versions", code="changes.none", hint=HINT)
        return left
    every = list(sessions())
    here = [left for left in every if cwd == left.workspace or cwd.startswith(f"{left.workspace}/")]
    if not here:
        others = f"; {len(every)} of other folders" if every else ""
        raise StockadeError(f"no session holds changes of {cwd}{others}", code="changes.none", hint=HINT)
    if len(here) > 1:
        raise StockadeError(
            f"{len(here)} sessions hold changes of {cwd}: {', '.join(left.id for left in here)}",
            code="changes.which",
            hint="Name the session.",
        )
    return here[0]


def held(left: Left) -> Held:
    """What a session holds that is over. Raises StockadeError: `session.running`, `session.unknown`, `workspace.missing`, `changes.disk`."""
    with kept.holding(left):
        return _held(left)


def _held(left: Left) -> Held:
    facts = kept.resumed(left).facts
    first = facts["mode"] != "review"
    with _typed(left):
        found = waiting.look(facts, f"{left.directory}/kept" if first else "")
    return Held(left, facts, found, () if first else tuple(review.commits(facts)), first)


def select(held: Held, paths: Iterable[str], *, needed: bool = True) -> tuple[list[Change], bool]:
    """The changes at these paths, with the folders that are `needed` for them, and whether commits are meant. Without paths it is all of them.

    Raises StockadeError (`changes.path`).
    """
    wanted = list(dict.fromkeys(paths))
    if held.refs and review.COMMITS in wanted:
        wanted.remove(review.COMMITS)
        if not wanted:
            return [], True
        return select(held, wanted, needed=needed)[0], True
    changes, empty = chosen(held.found, wanted, needed=needed)
    if empty:
        raise StockadeError(
            f"nothing waits at {', '.join(map(shown, empty))}",
            code="changes.path",
            hint=f"Paths are those of the workspace, as stockade changes show {held.left.id} has them.",
        )
    return changes, not wanted


def apply(left: Left, paths: Iterable[str], *, overwrite: bool = False, protected: bool = False) -> list[dict[str, Any]]:
    """Bring changes to the folder, and commits to the repository; events `changes.applied` and `git.import`, recorded as well. What was brought waits no more.

    Without paths everything, and commits only once no file waits any more; ".git" names the commits. Raises StockadeError: as `held`, `select`, `changes.bound`
    when there is more than can be looked at, and `ledger.*`.
    """
    wanted = list(paths)
    with kept.holding(left), _Recording(left) as record:
        this = _held(left)
        if this.first:
            raise StockadeError(
                f"{left.id} holds first versions, which stockade changes restore brings back", code="changes.none", hint=HINT
            )
        changes, commits = select(this, wanted)
        if not wanted and not this.found.complete:
            raise StockadeError(
                f"more than {waiting.MOST} entries wait, which is more than can be shown and brought at once",
                code="changes.bound",
                hint=f"Name paths, or copy from {this.facts['layer']}/upper yourself.",
            )
        events = [record.brought(this, changes, Apply(this.facts, record.receipt, overwrite=overwrite, protected=protected))]
        rest = _held(left).found
        if commits and this.refs and (wanted or not (rest.changes or rest.unread)):
            events += _commits(left, record)
        return events + _done(left)


def restore(left: Left, paths: Iterable[str]) -> list[dict[str, Any]]:
    """Put first versions back in their places; what is there then has another name (apply.REPLACED). Events and errors as of `apply`."""
    with kept.holding(left), _Recording(left) as record:
        this = _held(left)
        if not this.first:
            raise StockadeError(
                f"{left.id} holds changes, no first versions", code="changes.none", hint="stockade changes apply brings them."
            )
        changes, _ = select(this, paths)
        return [record.brought(this, changes, Apply(this.facts, record.receipt, overwrite=True, upper=this.upper, aside=True))]


def drop(left: Left, paths: Iterable[str]) -> list[str]:
    """Give up changes at these paths, or all that a session holds; the paths that were dropped. Raises StockadeError as `held` and `select`, and `session.discard`."""
    wanted = list(paths)
    if not wanted:
        kept.discard(left.id)
        return []
    with kept.holding(left), _Recording(left) as record:
        this = _held(left)
        if this.first:
            raise StockadeError("first versions are dropped all together", code="changes.path", hint="Leave the paths out.")
        changes, commits = select(this, wanted, needed=False)
        gone = [*(shown(one.rel) for one in changes), *([review.COMMITS] if commits else [])]
        record("changes.discard", paths=gone)
        with _typed(left):
            waiting.settle(this.facts, {*(one.key for one in changes), *([review.COMMITS] if commits else [])})
        _done(left)
    return gone


def _has(left: Left) -> bool:
    """Whether it holds something of the kind."""
    facts = after.load(f"{left.directory}/facts") or {}
    try:
        return bool(facts.get("mode") == "review" and facts.get("layer")) or bool(os.listdir(f"{left.directory}/kept"))
    except OSError:
        return False


def _commits(left: Left, record: _Recording) -> list[dict[str, Any]]:
    view = kept.resumed(left)
    record("changes.commits")
    with kept.again(left, view) as inside:
        events = view.commits(inside)
    for event in events:
        record(str(event["kind"]), **{name: value for name, value in event.items() if name != "kind"})
    if not any(event.get("error") for event in events):
        with _typed(left):
            waiting.settle(view.facts, {review.COMMITS})
    return events


def _done(left: Left) -> list[dict[str, Any]]:
    """Remove the session's directory if nothing waits any more, else say what does."""
    events = review.events(kept.resumed(left).facts)
    if events:
        with _typed(left):
            after.keep(left.directory, after.left_by(events))
    else:
        after.discard(left.directory)
    return events


@contextmanager
def _typed(left: Left) -> Iterator[None]:
    """Makes StockadeError (`changes.disk`) of an error of the disk that is about none of the changes alone."""
    try:
        yield
    except OSError as error:
        raise StockadeError(
            f"what {left.id} holds cannot be read, or what was done with it noted: {error}",
            code="changes.disk",
            hint=f"Free some space, or look into {left.directory}. What was brought is whole; it may be shown once more.",
        ) from error


class _Recording:
    """The ledger, for what is done to one session's changes."""

    def __init__(self, left: Left) -> None:
        self._left = left
        self._ledger: Ledger

    def __enter__(self) -> _Recording:
        from stockade.record.ledger import Ledger

        self._ledger = Ledger(places.state("ledger"))
        return self

    def __exit__(self, *exc: object) -> None:
        self._ledger.close()

    def __call__(self, kind: str, **facts: object) -> None:
        """Raises StockadeError (`ledger.*`): then nothing may happen."""
        self._ledger.append({"kind": kind, "session": self._left.id, **facts})

    def receipt(self, change: Change, content: str) -> None:
        mark = change.before[6] if change.before else ""
        self("changes.apply", path=shown(change.rel), change=change.what, what=change.kind, before=mark, after=content)

    def brought(self, held: Held, changes: list[Change], work: Apply) -> dict[str, Any]:
        """Have it done. What was done waits no more, also if something in the middle of it fails."""
        with _typed(held.left):
            try:
                work.run(changes)
            finally:
                if work.done and not held.first:
                    waiting.settle(held.facts, work.done)
        applied = sum(row["result"] == "applied" for row in work.rows)
        harmless = [{name: shown(text) for name, text in row.items()} for row in work.held]
        count = {"applied": applied, "left": len(work.rows) - applied}
        self("changes.applied", **count, held=harmless[:100])
        return {"kind": "changes.applied", "session": held.left.id, **count, "held": harmless, "rows": work.rows}
