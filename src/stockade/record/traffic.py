"""What sessions asked of their gates, added up over the ledger's events. Pure: events in, numbers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stockade.record.reading import events, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_MOST_HOSTS = 1024  # names counted for each session; what is inside can make up any number of them
_OTHERS = "(others)"


class Traffic:
    """One session. `allowed` and `refused` count requests: an open tunnel is none, a refused one is. `up` is bytes of bodies that were allowed out,
    `last` the last decision's event, `started` and the times in events Unix seconds; `ended` says why its gate ended, "" = it did not.
    """

    def __init__(self) -> None:
        self.command: tuple[str, ...] = ()
        self.started = 0.0
        self.allowed = self.refused = self.up = 0
        self.last: dict[str, Any] = {}
        self.ended = ""
        self._hosts: dict[str, int] = {}

    @property
    def busiest(self) -> str:
        """The host that most requests were about, allowed or not; "" = there were none. Of equals the first that was asked for."""
        return max(self._hosts, key=lambda name: self._hosts[name], default="")

    def add(self, event: Mapping[str, Any]) -> None:
        """Count one event. Takes any event; those that say nothing here change nothing."""
        kind = event.get("kind")
        if kind == "session.start":
            command = event.get("command")
            self.command = tuple(map(str, command)) if isinstance(command, list) else ()
            self.started = number(event.get("time"))
        elif kind == "gate.exit":
            self.ended = str(event.get("reason") or event.get("code") or "unknown")
        elif kind == "egress" and event.get("by") != "reviewer":  # asking that is no request of the session's
            refused = event.get("effect") != "allow"
            if not refused and event.get("method") == "CONNECT":
                return
            self.allowed += not refused
            self.refused += refused
            self.up += 0 if refused else max(0, int(number(event.get("length"))))
            self.last = dict(event)
            host = str(event.get("host", ""))
            host = host if host in self._hosts or len(self._hosts) < _MOST_HOSTS else _OTHERS
            self._hosts[host] = self._hosts.get(host, 0) + 1


class Board:
    """The traffic of the sessions that are wanted, and how much of it is recent."""

    def __init__(self) -> None:
        self.traffic: dict[str, Traffic] = {}
        self._recent: dict[str, list[int]] = {}
        self._since = 0.0

    def begin(self, since: float) -> None:
        """From here on only what is not older than `since` (Unix seconds) counts as recent."""
        self._since = since
        self._recent = {}

    def add(self, lines: Iterable[bytes], wanted: Iterable[str] | None = None) -> None:
        """Count the ledger's lines, or only those about the sessions that are `wanted`. What is no event is left out: `stockade log verify` finds it."""
        for session, event in events(lines, wanted):
            found = self.traffic.setdefault(session, Traffic())
            before = found.allowed, found.refused
            found.add(event)
            if number(event.get("time")) >= self._since:
                recent = self._recent.setdefault(session, [0, 0])
                recent[0] += found.allowed - before[0]
                recent[1] += found.refused - before[1]

    def keep(self, running: Iterable[str]) -> None:
        """Forget every other session."""
        names = set(running)
        self.traffic = {name: found for name, found in self.traffic.items() if name in names}

    def rates(self, session: str, now: float) -> tuple[float, float]:
        """Requests a second since `begin`: (allowed, refused)."""
        seconds = max(now - self._since, 0.001)
        allowed, refused = self._recent.get(session, (0, 0))
        return allowed / seconds, refused / seconds
