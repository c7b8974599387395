"""Who hears of a session's questions, one behind the other: the reviewer, then what is left to people to those who are told elsewhere, and to whoever can answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.core.loop import Loop
    from stockade.session import Session
    from stockade.session.approvals import Listener, Questions


class Hearers:
    """`hear` is a listener of Questions. `introduce` and `questions` are the reviewer's (reviewer.py); `listener` is whoever can answer."""

    def __init__(
        self,
        session: Session,
        loop: Loop,
        say: Callable[[str], None],
        introduce: Callable[[Sequence[int]], None],
        questions: Callable[[], Questions],
        listener: Listener,
    ) -> None:
        self.hear, policy = listener, session.policy
        self._closes: list[Callable[[], None]] = []
        if policy.approvals.webhook or policy.approvals.notify:
            from stockade.session.telling import Telling

            telling = Telling(session, loop, say, listener)
            self.hear, self._closes = telling.hear, [telling.close]
        if policy.reviewer is not None:
            from stockade.session.reviewer import Review

            review = Review(policy.reviewer, session, loop, say, introduce, questions, self.hear)
            self.hear, self._closes = review.hear, [review.close, *self._closes]

    def close(self) -> None:
        """Nobody hears of anything any more; may be called twice."""
        for close in self._closes:
            close()
