"""What waits for a person's word in all running sessions of this user: asked for at their desks, and answered there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade.core.errors import StockadeError
from stockade.core.frozen import frozen
from stockade.gateway.desk import ask
from stockade.session import kept

if TYPE_CHECKING:
    from stockade.session.kept import Left


@frozen
class Waiting:
    """A running session's questions, as core/asks.py has them (Asked, as a dictionary), and the keys of what was approved for the session."""

    session: str
    directory: str
    workspace: str
    asks: tuple[dict[str, Any], ...]
    standing: tuple[str, ...]


def waiting() -> list[Waiting]:
    """Every running session that has something to tell. One that ends just now is left out."""
    found = []
    for left in kept.sessions():
        if left.lives:
            try:
                found.append(of(left))
            except StockadeError:
                continue
    return [one for one in found if one.asks or one.standing]


def of(left: Left) -> Waiting:
    """What one session has waiting. Raises StockadeError `session.silent`."""
    said = ask(left.directory, {"do": "asks"})
    return Waiting(left.id, left.directory, left.workspace, tuple(said["asks"]), tuple(said["standing"]))


def answer(one: Waiting, asked: dict[str, Any], allow: bool, *, channel: str, scope: str = "once") -> dict[str, Any]:
    """Answer one question of `waiting`, about exactly what it showed. What became of it (Answered, as a dictionary). Raises StockadeError `approval.*`."""
    return ask(
        one.directory,
        {"do": "answer", "ask": asked["number"], "digest": asked["digest"], "allow": allow, "scope": scope, "channel": channel},
    )


def revoke(one: Waiting, key: str) -> None:
    """Take back what was approved for a session. Raises StockadeError `approval.gone`."""
    ask(one.directory, {"do": "disapprove", "key": key})
