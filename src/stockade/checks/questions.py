"""What is asked about a request that a rule lets a person decide: in words that can be judged, and no wider than it is. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from stockade.core.asks import Asked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stockade.core.asks import Risk
    from stockade.core.values import Grant

_READS = ("GET", "HEAD", "OPTIONS")
_USUAL = {"https": 443, "http": 80}
_LARGE = 64 << 10  # bytes of a body that hold more than a person can have looked at


def question(number: int, event: Mapping[str, object], grant: Grant, *, tainted: bool) -> Asked:
    """The question about one request. `event` is the gate's, whose texts are printable ASCII (gateway/control.py).

    INVARIANT: after something secret was opened no reviewer may approve anything.
    """
    method, host, query = str(event.get("method", "")), str(event.get("host", "")), str(event.get("asks", ""))
    length, hidden = int(str(event.get("length", -1))), int(str(event.get("hidden", 0)))
    raw = event.get("scheme") == "tcp"
    place = key(event)
    sends = raw or grant.websocket or grant.grpc or length != 0
    what = place + (f"?{query}" if query else "?..." if event.get("query") else "")
    if hidden:
        what += f" and {hidden} more characters of the query, which are not shown"
    if grant.credential:
        what += f", with your credential {grant.credential}"
    if raw or grant.websocket:
        what += "; what passes in it is not read"
    elif sends:
        what += f"; it sends {length} bytes" if length >= 0 else "; it sends a body of unknown length"
    if event.get("begins") and length:
        what += f": {event['begins']}"
    facts = {name: value for name, value in event.items() if name not in ("session", "effect", "rule")}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    also = "the same until the session ends" + ("" if raw else ", with any query and any body that the rule allows")
    quiet = not sends and method in _READS
    return Asked(
        number,
        "egress",
        what,
        digest,
        place,
        also,
        str(grant.origin),
        "high" if hidden else _risk(method, sends, length, bool(query), tainted),
        quiet,
        tainted,
        grant.people,
        reviewable=not (grant.people or grant.unreviewed or tainted),
        method=method,
        host=host,
        size=-1 if raw or grant.websocket or grant.grpc else length,
    )


def key(event: Mapping[str, object]) -> str:
    """What a repetition of a request shares: method and address, without the query. `event` is the gate's."""
    scheme, host, port = str(event.get("scheme", "")), str(event.get("host", "")), int(str(event.get("port", 0)))
    where = host if port == _USUAL.get(scheme) else f"{host}:{port}"
    return f"tcp {where}" if scheme == "tcp" else f"{event.get('method', '')} {scheme}://{where}{event.get('path', '')}"


def _risk(method: str, sends: bool, length: int, query: bool, tainted: bool) -> Risk:
    """How much could go wrong, roughly: what can carry much, or carries anything after something secret was read, is high."""
    if method == "DELETE" or (sends and not 0 <= length <= _LARGE) or (tainted and (sends or query)):
        return "high"
    return "medium" if sends or query or method not in _READS else "low"
