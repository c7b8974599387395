"""What people were asked and how they answered, added up over the ledger's events. Pure: events in, numbers out.

What each number means, and what the ledger cannot tell, is in docs/approvals.md.
"""

from __future__ import annotations

from math import ceil, fsum, sqrt
from typing import TYPE_CHECKING, Any

from stockade.core.frozen import frozen
from stockade.record.reading import LARGEST, events, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

QUICK = 2.0  # seconds: nobody has read and judged a request sooner
BINS = (QUICK, 5.0, 15.0, 60.0)  # seconds: where the classes of decision times end; the last class has no end
_Z = 1.959963984540054  # of the standard normal distribution, two-sided 95%
_AFTERWARDS = ("workspace.", "git.", "session.discard")  # kinds of events that may come long after a session's end
_PEOPLE = ("approved", "refused", "canary")  # outcomes that are somebody's decision; "timed_out" and "withdrawn" are nobody's


@frozen
class Share:
    """So many of so many: `rate` is their ratio (None of none), `low` to `high` its Wilson 95% interval."""

    part: int
    of: int
    rate: float | None
    low: float
    high: float


@frozen
class Count:
    """How many there were at the least. `whole`: there were no others. So 0 and not whole says nothing."""

    least: int
    whole: bool


@frozen
class Baseline:
    """What a person would have been asked who is asked for every command, connection and file, as far as the ledger knows; `cut` is the share of that which
    was not asked (None: not known). `commands` counts every program where the guest's kernel says what is executed.
    """

    commands: Count
    connections: Count
    writes: Count
    cut: float | None


@frozen
class Times:
    """Seconds from being shown to a person's answer: the `median` and `p90` (nearest rank; None of none), how many were `quick`, and how many each class of
    `BINS` has.
    """

    median: float | None
    p90: float | None
    quick: Share
    bins: tuple[int, ...]


@frozen
class Risks:
    """A share for each risk that a request can have; `unknown` is any other."""

    low: Share
    medium: Share
    high: Share
    unknown: Share

    def each(self) -> tuple[tuple[str, Share], ...]:
        """Every risk with its share, rising."""
        return ("low", self.low), ("medium", self.medium), ("high", self.high), ("unknown", self.unknown)


@frozen
class Canaries:
    """Requests made up to be refused. `seeded` counts those that are over; `missed` of them a person approved, `unanswered` nobody answered. `vigilance` is the
    share of those that people answered that was refused, and `reviewer` the same of those that a reviewer answered: no person was shown them.
    """

    seeded: int
    missed: int
    unanswered: int
    vigilance: Share
    reviewer: Share


@frozen
class Outcomes:
    """How requests ended, whoever decided; `open` ones have no answer on record."""

    approved: int
    refused: int
    canary: int
    timed_out: int
    withdrawn: int
    too_many: int
    earlier: int
    open: int


_OUTCOMES = tuple(name for name in Outcomes.__annotations__ if name != "open")


@frozen
class Measures:
    """What people were asked, and whether their answers mean anything. `hours` are those of the sessions, without the time in which they were paused.

    `asked` counts requests, `prompts` those of them that a person was shown (canaries too), `reviewed` those that a reviewer answered. `approved` and `by_risk` are of
    people's answers to real requests. `repeats` are prompts whose key the session had been asked before, `reversals` keys that a person approved and then
    refused or revoked. `unread` events could not be understood.
    """

    sessions: int
    hours: float
    asked: int
    prompts: int
    per_hour: float | None
    baseline: Baseline
    approved: Share
    by_risk: Risks
    times: Times
    repeats: int
    reversals: int
    reviewed: int
    outcomes: Outcomes
    canaries: Canaries
    unread: int


class Tally:
    """One session: what was asked, who answered and how soon, and what somebody would have been asked who is asked for everything."""

    def __init__(self) -> None:
        self.last = 0.0  # when something last happened in it, Unix seconds
        self.asked = self.prompts = self.repeats = self.reversals = self.reviewed = self.unread = 0
        self.outcomes = dict.fromkeys(_OUTCOMES, 0)
        self.times: list[float] = []
        self.real = {risk: [0, 0] for risk in Risks.__annotations__}  # approved, answered
        self.canaries = [0, 0, 0, 0, 0]  # refused, approved, unanswered; refused and approved by a reviewer
        self.lost = False
        self.wall = ""
        self.starts = self.programs = self.connections = self.writes = 0
        self._began = self._first = self._ended = self._paused = self._still = 0.0
        self._open: dict[int, tuple[str, str]] = {}  # risk and key of what has no answer yet
        self._over: set[int] = set()
        self._shown: set[str] = set()
        self._approved: set[str] = set()

    @property
    def seconds(self) -> float:
        """How long it has been at work: from its start to its end, or to the last that is known of it; without pauses."""
        end = self._ended or self.last
        still = self._still + (max(0.0, end - self._paused) if self._paused else 0.0)
        return max(0.0, end - (self._began or self._first) - still)

    def add(self, event: Mapping[str, Any]) -> None:
        """Count one event. Takes any event; those that say nothing here change nothing."""
        kind, moment = event.get("kind"), number(event.get("time"))
        if not isinstance(kind, str):
            return
        if moment > 0 and not kind.startswith(_AFTERWARDS):
            self._first, self.last = self._first or moment, max(self.last, moment)
        match kind:
            case "ask":
                self._ask(event)
            case "answer":
                self._answer(event)
            case "approval.revoke":
                self._reverse(event.get("key"))
            case "session.start":
                self._began, self.wall = self._began or moment, str(event.get("wall"))
                self.starts += bool(event.get("command"))
            case "session.exit":
                self._ended = max(self._ended, moment)
            case "session.pause":
                self._paused = self._paused or moment
            case "session.resume":
                self._still += max(0.0, moment - self._paused) if self._paused else 0.0
                self._paused = 0.0
            case "exec.start":
                self.starts += 1
            case "guest.exec":
                self.programs += 1
            case "guest.lost":
                self.lost = True
            case "connect":
                self.connections += 1
            case "egress" if event.get("by") == "reviewer":  # asking it is no work of the session's
                pass
            case "egress":  # a tunnel that was opened is none: what is asked in it is
                self.connections += event.get("effect") != "allow" or event.get("method") != "CONNECT"
            case "workspace.report":
                self.writes = max(self.writes, _count(event.get("changed")))
            case "workspace.review":
                self.writes = max(self.writes, _count(event.get("added")) + _count(event.get("changed")))
            case "workspace.merge":  # the report that follows counts the same files
                self.writes = max(self.writes, _count(event.get("created")) + _count(event.get("changed")))

    def _ask(self, event: Mapping[str, Any]) -> None:
        ident, key, risk = event.get("ask"), event.get("key"), event.get("risk")
        if type(ident) is not int or not isinstance(key, str) or ident in self._open or ident in self._over:
            self.unread += 1
            return
        self.asked += 1
        self._open[ident] = (risk if isinstance(risk, str) and risk in self.real else "unknown", key)

    def _answer(self, event: Mapping[str, Any]) -> None:
        ident, outcome, by = event.get("ask"), event.get("outcome"), event.get("by")
        if type(ident) is not int or ident not in self._open or not isinstance(outcome, str) or outcome not in self.outcomes:
            self.unread += 1
            return
        risk, key = self._open.pop(ident)
        self._over.add(ident)
        self.outcomes[outcome] += 1
        self.reviewed += by == "reviewer"
        person = by == "person" and outcome in _PEOPLE
        canary = event.get("canary") is True
        if person or outcome in ("timed_out", "withdrawn"):
            self.prompts += 1
            self.repeats += key in self._shown
            self._shown.add(key)
        if not person:
            if canary and by == "reviewer":
                self.canaries[4 if event.get("caught") is True else 3] += 1
            else:
                self.canaries[2] += canary
            return
        seconds = event.get("seconds")
        if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 <= seconds < LARGEST:
            self.times.append(float(seconds))
        if canary or outcome == "canary":
            self.canaries[event.get("caught") is True or outcome == "approved"] += 1
        elif outcome == "approved":
            self.real[risk][0] += 1
            self.real[risk][1] += 1
            self._approved.add(key)
        else:
            self.real[risk][1] += 1
            self._reverse(key)

    def _reverse(self, key: object) -> None:
        if isinstance(key, str) and key in self._approved:
            self._approved.discard(key)
            self.reversals += 1

    @property
    def waiting(self) -> tuple[int, int]:
        """What has no answer yet, and how much of it has a key that was asked before."""
        keys = [key for _, key in self._open.values()]
        return len(keys), len(keys) - len({*keys} - self._shown)


def added(lines: Iterable[bytes]) -> dict[str, Tally]:
    """Each session of the ledger's lines, by its name."""
    found: dict[str, Tally] = {}
    for session, event in events(lines):
        found.setdefault(session, Tally()).add(event)
    return found


def approvals(sessions: Iterable[Tally]) -> Measures:
    """All of them together."""
    every = list(sessions)
    hours = fsum(one.seconds for one in every) / 3600  # exact: the order of sessions is no part of it
    waiting = [one.waiting for one in every]
    prompts = sum(one.prompts for one in every) + sum(count for count, _ in waiting)
    outcomes = {name: sum(one.outcomes[name] for one in every) for name in _OUTCOMES}
    risks = {risk: [sum(one.real[risk][at] for one in every) for at in (0, 1)] for risk in Risks.__annotations__}
    refused, missed, unanswered, *reviewer = (sum(one.canaries[at] for one in every) for at in range(5))
    return Measures(
        sessions=len(every),
        hours=hours,
        asked=sum(one.asked for one in every),
        prompts=prompts,
        per_hour=prompts / hours if hours else None,
        baseline=_baseline(every, prompts),
        approved=share(sum(part for part, _ in risks.values()), sum(of for _, of in risks.values())),
        by_risk=Risks(**{risk: share(part, of) for risk, (part, of) in risks.items()}),
        times=_times(sorted(seconds for one in every for seconds in one.times)),
        repeats=sum(one.repeats for one in every) + sum(count for _, count in waiting),
        reversals=sum(one.reversals for one in every),
        reviewed=sum(one.reviewed for one in every),
        outcomes=Outcomes(**outcomes, open=sum(count for count, _ in waiting)),
        canaries=Canaries(
            refused + missed + unanswered + sum(reviewer),
            missed,
            unanswered,
            share(refused, refused + missed),
            share(reviewer[0], sum(reviewer)),
        ),
        unread=sum(one.unread for one in every),
    )


def _baseline(every: Sequence[Tally], prompts: int) -> Baseline:
    commands = Count(
        sum(max(one.starts, one.programs) for one in every), bool(every) and all(one.wall == "gvisor" and not one.lost for one in every)
    )
    connections, writes = (Count(sum(counts), False) for counts in ([one.connections for one in every], [one.writes for one in every]))
    least = commands.least + connections.least + writes.least
    return Baseline(commands, connections, writes, 1 - prompts / least if least >= prompts and least else None)


def _times(seconds: Sequence[float]) -> Times:
    """Of sorted decision times."""
    bins = [sum(low <= value < high for value in seconds) for low, high in zip((0.0, *BINS), (*BINS, float("inf")), strict=True)]
    return Times(ranked(seconds, 0.5), ranked(seconds, 0.9), share(bins[0], len(seconds)), tuple(bins))


def ranked(ordered: Sequence[float], quantile: float) -> float | None:
    """The nearest rank: the smallest value that at least this share (above 0) of the sorted values does not exceed; None of none."""
    return ordered[ceil(quantile * len(ordered)) - 1] if ordered else None


def share(part: int, of: int) -> Share:
    """The ratio and its Wilson score interval (E. B. Wilson, 1927), which holds for few and for extreme ratios, too: 0 to 1 of none."""
    if not of:
        return Share(0, 0, None, 0.0, 1.0)
    rate, spread = part / of, _Z * _Z / of
    middle, half = rate + spread / 2, _Z * sqrt((rate * (1 - rate) + spread / 4) / of)
    low, high = ((middle + side) / (1 + spread) for side in (-half, half))
    return Share(part, of, rate, max(0.0, min(low, rate)), min(1.0, max(high, rate)))  # rounding must not leave the rate outside


def _count(value: object) -> int:
    return max(0, int(number(value)))
