"""What a request claims, against how it came: the thinking part of the gate, without I/O.

Engine facts in (headers that Envoy overwrote), judge's verdict and a ledger event out. Whatever is missing, doubled or disagrees is a refusal.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from stockade.core.frozen import frozen
from stockade.core.values import ALLOW, ASK, DENY, GATE, Grant, Verdict
from stockade.gateway.config import FACTS, SHOWN_FIRST, UPSTREAM
from stockade.gateway.hooks import CALL, FILE, LONGEST, MOUNT, Call, Change, Showing, about
from stockade.gateway.meter import PASSED

WAYS = {"proxy": "http", "http": "http", "https": "https", "tunnel": "https", "tunnel-plain": "http"}
TUNNELS = ("tunnel", "tunnel-plain")
_SHORT = {name: name.removeprefix("x-stockade-") for name in FACTS}
_SHOWN = 1024  # characters of a client's text that go into an event or a message


class Judge(Protocol):
    """Who decides. The wiring makes one from checks/; `authority` raises ValueError with a `rule` attribute for what it cannot read.

    `reads`: must the body be read before the decision counts, and be readable? `searches`: must it be read, whatever it is?
    `spend` counts a request that is about to move, and gives a way to take that back.
    `carried` names a string that must never leave and stands in one of these parts of a request, however it is dressed; "" = none.
    `revoke` takes grants back, by their place in the configuration, and tokens, by the names of their blocks; a denial stays. `more` counts `size` further bytes on a raw connection that then has
    carried `sent`, and gives the rule that forbids them, "" if none does. `taint`: the session has opened something secret, as it then has if a request to what is secret
    is counted; `tainted` says whether it has, `secretive` whether there are such requests.

    `tool` decides about the call of a tool that an agent asks about, and says what a `Call` holds; `file` about a change to a file, and says what a `Change` holds; `mount` about
    a folder, and says what a `Showing` holds. They raise as `authority` does.

    `dear`: would it take long to decide about this? Then that is done apart (gateway/apart.py), where `place` names a grant and `pieces` says how much of which
    string has been carried, and here `grant` finds it, `seen` takes that over, and `spent` says whether there is still room (rule and reason, "" = there is).
    """

    def __init__(self, config: dict[str, Any]) -> None: ...
    def tool(self, body: bytes) -> tuple[Verdict, dict[str, Any]]: ...
    def file(self, query: str, body: bytes) -> tuple[Verdict, dict[str, Any]]: ...
    def mount(self, body: bytes) -> tuple[Verdict, dict[str, Any]]: ...
    def request(
        self,
        *,
        method: str,
        scheme: str,
        host: str,
        port: int,
        target: str,
        headers: tuple[tuple[str, str], ...],
        length: int,
        body: bytes | None,
        start: bytes,
    ) -> tuple[Verdict, Grant | None]: ...
    def reads(self, path: str, grant: Grant) -> bool: ...
    def searches(self, grant: Grant, headers: tuple[tuple[str, str], ...], start: bytes) -> bool: ...
    def spend(self, grant: Grant, length: int) -> Callable[[], None]: ...
    def revoke(self, positions: list[int], tokens: list[str]) -> None: ...
    def taint(self) -> None: ...
    def tainted(self) -> bool: ...
    def secretive(self) -> bool: ...
    def connect(self, host: str, port: int) -> Verdict: ...
    def raw(self, host: str, port: int) -> tuple[Verdict, Grant | None]: ...
    def more(self, grant: Grant, sent: int, size: int) -> str: ...
    def name(self, host: str) -> bool: ...
    def authority(self, text: str, default_port: int) -> tuple[str, int]: ...
    def carried(self, parts: Iterable[bytes]) -> str: ...
    def body(self, host: str, path: str, body: bytes) -> str | None: ...
    def dear(self, asked: Asked) -> bool: ...
    def spent(self, grant: Grant, length: int) -> tuple[str, str]: ...
    def place(self, grant: Grant) -> int: ...
    def grant(self, place: int) -> Grant: ...
    def pieces(self) -> dict[str, int]: ...
    def seen(self, pieces: dict[str, int]) -> None: ...


@frozen
class Asked:
    """What the engine asks about: method as it spoke to us, target, every header (names lower case), and of the body what was buffered: all of it if it
    is small, else its beginning. `whole`: the second question about a request, whose body had to be read.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes = b""
    whole: bool = False


@frozen
class Leaving:
    """A request as it is about to leave, before the gate has written a credential into it. `body` is b"" where it has not been read."""

    method: str
    scheme: str
    target: str
    headers: tuple[tuple[str, str], ...]  # names lower case
    body: bytes


@frozen
class Outcome:
    """The answer so far: an allow still needs a receipt, and an address unless it is for a `tunnel`, whose requests are judged one by one. An "ask" needs
    somebody's word.

    `read`: nothing is decided before the body has been read; the engine asks again then. `length` is the body's.
    `leaving` is what the grant's credential goes into. With something asked about the `inside` it is an answer to whoever is there, and nothing goes anywhere.
    """

    verdict: Verdict
    event: dict[str, object]
    host: str = ""
    port: int = 0
    grant: Grant | None = None
    tunnel: bool = False
    read: bool = False
    length: int = 0
    leaving: Leaving | None = None
    inside: Call | Change | Showing | None = None


class Synthetic:
    """Addresses that stand for granted names, stable for the session: 198.18.0.0/15, in the order of first use (RFC 2544)."""

    def __init__(self, named: Callable[[str, str], None], most: int = 512) -> None:
        """`named` is told each (address, name) before it is given out. `most`: each name may cost the engine 0.2 MB."""
        self._known: dict[str, str] = {}
        self._named, self._most = named, most

    def address(self, name: str) -> str:
        """The address of a name, given out now if need be; "" when there are no more."""
        if name not in self._known:
            if len(self._known) >= self._most:
                return ""
            address = str(ipaddress.IPv4Address("198.18.0.1") + len(self._known))
            self._named(address, name)
            self._known[name] = address
        return self._known[name]

    def known(self, name: str) -> str:
        """The address that was given out, "" if none was."""
        return self._known.get(name, "")


class Flow:
    """Judges what the engine asks for one session."""

    def __init__(self, session: str, judge: Judge, addresses: Synthetic) -> None:
        self._session, self._judge, self._addresses = session, judge, addresses

    def examine(self, asked: Asked) -> Outcome:
        """Never raises for anything a client sent."""
        facts: dict[str, str] = {}
        headers = []
        for name, value in asked.headers:
            if name not in FACTS:
                headers.append((name, value))
            elif name in facts:
                return self._refused(asked, {}, "engine-facts", "the engine said twice how this request came")
            else:
                facts[name] = value
        known = {short: _fact(facts.get(name, "")) for name, short in _SHORT.items()}
        if known["session"] != self._session:
            return self._refused(asked, known, "session", "the connection is not this session's")
        said = [asked.target, *(value for _, value in headers)]
        if carried := self._judge.carried(["\n".join(said).encode("latin-1", "replace"), asked.body]):
            return self._alarm(asked, known, carried)
        try:
            return self._connect(asked, known) if known["method"] == "CONNECT" else self._request(asked, known)
        except ValueError as error:
            return self._refused(asked, known, str(getattr(error, "rule", "bad-request")), f"{error}")

    def raw(self, name: str, port: int) -> Outcome:
        """A raw connection to the port of an address that was given out for `name` ("" = for none)."""
        known = {"way": "raw"}
        if name:
            verdict, grant = self._judge.raw(name, port)
        else:
            reason = "the connection was to an address that was given out for no name."
            verdict, grant = Verdict(DENY, "bare-ip", (reason,)), None
        secret = {"secret": 1} if grant and grant.secret else {}
        event = self._event(known, verdict, host=name, port=port, scheme="tcp", method="TCP", path="", **secret)
        return Outcome(verdict, event, name, port, grant)

    def _connect(self, asked: Asked, known: dict[str, str]) -> Outcome:
        if known["way"] != "proxy":
            return self._refused(asked, known, "connect", "CONNECT is for the proxy port only")
        host, port = self._judge.authority(_only(asked.headers, "host"), 443)
        verdict = self._judge.connect(host, port)
        event = self._event(known, verdict, host=host, port=port, method="CONNECT")
        return Outcome(verdict, event, host, port, tunnel=True)

    def _request(self, asked: Asked, known: dict[str, str]) -> Outcome:
        way = known["way"]
        scheme = WAYS.get(way, "")
        if not scheme or known["scheme"] != scheme:
            reason = f"the request says {known['scheme'][:20]!a} and came by {way!a} (through the proxy, https:// needs CONNECT)"
            return self._refused(asked, known, "scheme", reason)
        host, port = self._judge.authority(_only(asked.headers, "host"), 443 if scheme == "https" else 80)
        if host == GATE:
            return self._asks(asked, known, port)
        if way in TUNNELS:
            verb, _, target = known["connect"].partition(" ")
            connect = self._judge.authority(target, 443)
            if verb != "CONNECT" or connect[0] != host:
                return self._refused(asked, known, "host-mismatch", f"the tunnel is to {connect[0]}, the request names {host}", host, port)
            if ":" not in _only(asked.headers, "host"):
                port = connect[1]  # clients that leave out the port mean the tunnel's
            if connect[1] != port:
                return self._refused(
                    asked, known, "port-mismatch", f"the tunnel is to port {connect[1]}, the request names {port}", host, port
                )
        if scheme == "https" and known["sni"].lower().removesuffix(".") != host:
            return self._refused(asked, known, "sni-mismatch", f"TLS named {known['sni'][:80]!a}, the request names {host}", host, port)
        if way in ("http", "https"):
            address, _, number = known["destination"].rpartition(":")
            if not address or address != self._addresses.known(host):
                return self._refused(
                    asked, known, "bare-ip", f"the connection was to {address}, which is not the address given out for {host}", host, port
                )
            if number != str(port):
                return self._refused(
                    asked, known, "port-mismatch", f"the connection was to port {number}, the request names {port}", host, port
                )
        return self._decide(asked, known, scheme, host, port)

    def _asks(self, asked: Asked, known: dict[str, str], port: int) -> Outcome:
        """What goes to the gate's own name, and no further: a question about a tool call, a file or a mount. It is read whole, since a person may have to look at it.

        INVARIANT: nothing here has a grant, so that whatever became of it could not leave."""
        place, mark, query = asked.target.partition("?")
        if (known["way"], known["method"], port) != ("proxy", "POST", 80) or place not in LONGEST or bool(mark) != (place == FILE):
            reason = f"{GATE} takes POST {CALL}, POST {MOUNT} and POST {FILE}?path=... by the proxy, and nothing else"
            return self._refused(asked, known, "gate-name", reason, GATE, port)
        declared, longest = known["length"], LONGEST[place]
        if not (declared.isascii() and declared.isdigit() and 0 < int(declared[:15]) <= longest):
            return self._refused(asked, known, "bad-length", f"a question has a content-length of 1 to {longest} bytes", GATE, 80)
        length = int(declared)
        if not asked.whole:
            verdict = Verdict(ALLOW, "unread")
            event = self._event(known, verdict, host=GATE, port=80, method="POST", path=place, scheme="http", length=length)
            return Outcome(verdict, event, GATE, 80, read=True, length=length)
        if reason := self._unreadable(judged_headers(asked), asked.body, length):
            return self._refused(asked, known, {CALL: "bad-tool-call", FILE: "bad-file"}.get(place, "bad-mount"), reason, GATE, 80)
        verdict, said = (
            self._judge.file(query, asked.body) if place == FILE else (self._judge.tool if place == CALL else self._judge.mount)(asked.body)
        )
        inside = about(said)
        event = {"kind": place[1:], "session": self._session, "effect": verdict.effect, "rule": _ascii(verdict.rule)}
        event |= {name: said[name] for name in ("tool", "path", "digest", "length") if name in said}
        return Outcome(verdict, event, GATE, 80, length=length, inside=inside)

    def _decide(self, asked: Asked, known: dict[str, str], scheme: str, host: str, port: int) -> Outcome:
        path = asked.target.partition("?")[0]
        declared = known["length"]
        if declared and not (declared.isascii() and declared.isdigit() and len(declared) < 16):
            return self._refused(asked, known, "bad-length", "the content-length is not a number", host, port)
        # INVARIANT: without an announced length, what came with the first question is the body only if there was room for more; else its size is unknown.
        # (The engine's own word for that, x-envoy-auth-partial-body, is "false" also when exactly so much has come and more will.)
        begun = not (declared or asked.whole) and len(asked.body) >= SHOWN_FIRST
        length = int(declared) if declared else len(asked.body) if known["body"] == "shown" and not begun else -1
        headers = judged_headers(asked)
        read = asked.whole or len(asked.body) == length
        verdict, grant = self._judge.request(
            method=known["method"],
            scheme=scheme,
            host=host,
            port=port,
            target=asked.target,
            headers=headers,
            length=len(asked.body) if begun else length,
            body=asked.body if read else None,
            start=asked.body,
        )
        query = int("?" in asked.target)  # whether there is one: what it says stays out of the ledger
        event = self._event(
            known, verdict, host=host, port=port, method=known["method"], path=path, query=query, scheme=scheme, length=length
        )
        if verdict.effect != DENY and begun:  # so far nothing is wrong with it
            return Outcome(verdict, event, host, port, read=True, length=length)
        if verdict.effect != DENY and grant is not None and length:
            reads = self._judge.reads(path, grant)
            wanted = not read and (reads or self._judge.searches(grant, headers, asked.body))
            if wanted and length > 0:
                return Outcome(verdict, event, host, port, read=True, length=length)
            if (reads or wanted) and (reason := self._unreadable(headers, asked.body, length) or self._judge.body(host, path, asked.body)):
                verdict, grant = Verdict(DENY, "server-side-action", (f"{reason}.",)), None
                event = {**event, "effect": DENY, "rule": verdict.rule}
        # INVARIANT: what a person approves they could see, and what they approve for the session is this path, not all paths that begin so.
        if verdict.effect == ASK and len(ascii(path)) - 2 > _SHOWN:
            reason = f"its path is longer than {_SHOWN} characters, and nobody is asked about what cannot be shown whole."
            verdict = Verdict(DENY, "path-unshown", (reason,))
            event = {**event, "effect": DENY, "rule": verdict.rule}
        if verdict.effect == DENY:
            grant = None
        if grant and grant.secret:
            event["secret"] = 1  # what is answered is
        leaving = None
        if grant and grant.credential:
            event["credential"] = grant.credential
            leaving = Leaving(known["method"], scheme, asked.target, headers, asked.body if read else b"")
        return Outcome(verdict, event, host, port, grant, length=length, leaving=leaving)

    @staticmethod
    def _unreadable(headers: tuple[tuple[str, str], ...], body: bytes, length: int) -> str:
        if any(name == "content-encoding" and value.lower() != "identity" for name, value in headers):
            return "the body is compressed, and this API's bodies must be readable"
        if length < 0:
            return "it is sent piece by piece, and this body must be readable before it leaves"
        return "" if len(body) == length else "the body did not reach the gate whole"

    def overrun(self, asked: Asked) -> dict[str, object]:
        """The event for a stream that the engine has counted beyond what was granted; `x-stockade-passed` says in which direction."""
        known = {name: _fact("".join(value for key, value in asked.headers if key == name)) for name in (*FACTS, PASSED)}
        known = {name.removeprefix("x-stockade-"): value for name, value in known.items()}
        host, port = self._judge.authority(_only(asked.headers, "host"), 443 if WAYS.get(known["way"]) == "https" else 80)
        rule = "upload-too-large" if known["passed"] == "upload" else "download-too-large"
        path = asked.target.partition("?")[0]
        return self._event(known, Verdict(DENY, rule), host=host, port=port, method=known["method"], path=path, scheme=known["scheme"])

    def _refused(self, asked: Asked, known: dict[str, str], rule: str, reason: str, host: str = "", port: int = 0) -> Outcome:
        verdict = Verdict(DENY, rule, (f"{reason[:_SHOWN]}.",))
        host = host or ascii(next((value for name, value in asked.headers if name == "host"), ""))[1:-1]
        path = asked.target.partition("?")[0]
        return Outcome(verdict, self._event(known, verdict, host=host, port=port, method=known.get("method", asked.method), path=path))

    def _alarm(self, asked: Asked, known: dict[str, str], carried: str) -> Outcome:
        """Refuse what carries a string that must never leave. The event names the string and does not hold it: it may stand in the path, or the host."""
        host = next((value for name, value in asked.headers if name == "host"), "")
        host = "(withheld)" if self._judge.carried([host.encode("latin-1", "replace")]) else ascii(host[:253])[1:-1]
        verdict = Verdict(DENY, "canary", (f"it carries {carried}, which must never leave.",))
        event = self._event(known, verdict, host=host, method=known["method"], path="(withheld)", canary=carried)
        return Outcome(verdict, event, host)

    def _event(self, known: dict[str, str], verdict: Verdict, **fields: object) -> dict[str, object]:
        """Paths go in without their query and values never do: a refused request may hold somebody's secret."""
        fields["way"] = known.get("way", "")
        shown = {name: _ascii(value) if isinstance(value, str) else value for name, value in fields.items()}
        return {"kind": "egress", "session": self._session, "effect": verdict.effect, "rule": _ascii(verdict.rule), **shown}


def refusal_text(outcome: Outcome) -> str:
    """What the client reads in a 403: the rule, why, and the narrowest grant. Only what the sandbox may know."""
    event, verdict = outcome.event, outcome.verdict
    what = f"{event['method']} {outcome.host or event['host']}{event.get('path', '')}"
    lines = [f"stockade refused this request: {verdict.rule}", what, *verdict.reasons]
    if verdict.grant:
        lines += ["", "A person can allow exactly this in the policy file:", "", verdict.grant.rstrip()]
    return "\n".join(lines) + "\n"


def _ascii(text: str) -> str:
    """As an event may hold it (control.py). Not only a client's texts are otherwise: a rule is named by its file, and people's homes have names in any letters."""
    return ascii(text[:_SHOWN])[1:-1][:_SHOWN]


def _fact(value: str) -> str:
    return "" if value == "-" else value  # how Envoy writes "nothing" (access log formatters)


def _only(headers: tuple[tuple[str, str], ...], name: str) -> str:
    values = [value for key, value in headers if key == name]
    if len(values) != 1:
        raise ValueError(f"the request holds {len(values)} {name} headers")
    return values[0]


def judged_headers(asked: Asked) -> tuple[tuple[str, str], ...]:
    """The headers of the request itself, without what the engine adds to a question."""
    return tuple((name, value) for name, value in asked.headers if name not in FACTS and not _engine_own(name))


def _engine_own(name: str) -> bool:
    """What the engine adds to the question and not to the request: its own headers are removed from a request before it asks (gateway/config.py), and the
    real content-length is among the facts."""
    return name in ("content-length", UPSTREAM) or name.startswith("x-envoy-")
