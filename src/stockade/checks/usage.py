"""What a session has used of its grants: kept by whoever decides, handed to the decision as a value.

A decision is pure over a `State`. `Usage` is the only thing here that changes: spent before the request moves, given back if it did not.
"""

from __future__ import annotations

from collections import deque

from stockade.core.frozen import frozen
from stockade.core.values import Grant

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_TIMES = 100_000  # requests remembered for a rate; a policy cannot ask for more


@frozen
class Used:
    """What one grant has let through: requests, bytes of bodies, and when (Unix seconds, oldest first, for grants with a rate)."""

    uses: int = 0
    bytes: int = 0
    times: tuple[float, ...] = ()


@frozen
class State:
    """What a decision needs of the session's past. `now` is Unix seconds; `tainted`: something secret has come in."""

    now: float = 0.0
    used: Mapping[Grant, Used] = {}
    tainted: bool = False


NOTHING = Used()
FRESH = State()


def spent(grant: Grant, length: int, state: State) -> tuple[str, str]:
    """(rule, reason) when a request with a body of `length` bytes would go beyond what the grant lets pass over time; ("", "") if not."""
    if grant.not_before and state.now < grant.not_before:
        return "not-yet", "the grant is for later"
    if grant.not_after and state.now >= grant.not_after:
        return "expired", "the grant has expired"
    if state.tainted and not (grant.secret or grant.after_secret):
        return "after-secret", "the session has received something secret, and this grant does not hold after that"
    used = state.used.get(grant, NOTHING)
    if grant.uses and used.uses >= grant.uses:
        return "uses-spent", f"the grant was for {grant.uses} request{'s' * (grant.uses != 1)}, and all are used"
    if grant.upload_budget and (length < 0 or used.bytes + length > grant.upload_budget):
        left = max(0, grant.upload_budget - used.bytes)
        return (
            "upload-budget-spent",
            f"{left} of {grant.upload_budget} granted bytes are left, and the body has {length if length >= 0 else 'an unknown number'}",
        )
    if grant.rate and sum(time > state.now - grant.rate_seconds for time in used.times) >= grant.rate:
        return "rate-exceeded", f"{grant.rate} requests in {grant.rate_seconds} s are granted"
    return "", ""


class Usage:
    """Counts for one session. INVARIANT: what is spent before a decision's effect is given back only when that effect did not happen."""

    def __init__(self, *, tainted: bool = False) -> None:
        self.tainted = tainted
        self._uses: dict[Grant, list[int]] = {}
        self._times: dict[Grant, deque[float]] = {}

    def state(self, now: float, grants: tuple[Grant, ...]) -> State:
        """The state as of `now`, as far as these grants need it."""
        used = {}
        for grant in grants:
            if grant in self._uses:
                uses, size = self._uses[grant]
                used[grant] = Used(uses, size, tuple(self._times.get(grant, ())))
        return State(now, used, self.tainted)

    def spend(self, grant: Grant, length: int, now: float) -> None:
        """A request under this grant is about to go out."""
        counts = self._uses.setdefault(grant, [0, 0])
        counts[0] += 1
        counts[1] += max(length, 0)
        if grant.rate:
            times = self._times.setdefault(grant, deque(maxlen=min(grant.rate, _MOST_TIMES)))
            times.append(now)
        self.tainted = self.tainted or grant.secret

    def upload(self, grant: Grant, size: int) -> bool:
        """So many further bytes are about to go out under this grant, which has been spent once. False, and nothing is counted, if its budget has no room."""
        if not grant.upload_budget:
            return True
        counts = self._uses[grant]
        if counts[1] + size > grant.upload_budget:
            return False
        counts[1] += size
        return True

    def give_back(self, grant: Grant, length: int, now: float) -> None:
        """What was spent at `now` did not go out after all. `tainted` stays."""
        counts = self._uses[grant]
        counts[0] -= 1
        counts[1] -= max(length, 0)
        if grant.rate and now in self._times[grant]:  # else it is long past; others may have been spent since, and did go out
            self._times[grant].remove(now)


def counted(grant: Grant) -> bool:
    """Whether the grant has bounds over time that need counting."""
    return bool(grant.uses or grant.rate or grant.upload_budget or grant.secret)
