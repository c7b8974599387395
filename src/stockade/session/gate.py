"""The supervisor's side of the gate: start it when somebody knocks, write down what it decides, and shut the door when it is gone."""

from __future__ import annotations

import os
import time

from stockade.core.errors import StockadeError, WallFailed
from stockade.core.frozen import plain
from stockade.core.loop import READ, WRITE
from stockade.core.values import ASK, DENY, Policy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from stockade.core.loop import Loop
    from stockade.core.tools import FileRule, MountRule, ToolRule
    from stockade.core.values import Grant
    from stockade.gateway.control import Control
    from stockade.gateway.desk import Desk
    from stockade.session import Session
    from stockade.session.approvals import Listener, Questions
    from stockade.session.hearers import Hearers
    from stockade.session.own_gate import OwnGate

    Rule = Grant | ToolRule | FileRule | MountRule

KINDS = {3128: "http-proxy", 80: "http", 443: "https", 53: "dns-tcp"}  # any other port of a door is raw TCP
LEARNED = 10_000  # requests that are kept to learn from
NARROWED = 'only rules with "secret" or "after_secret" hold from now on'
LATER = 5.0  # seconds that the gate waits longer for an answer than we do, so that it is us who say what became of a question
OBEY = 2.0  # seconds in which a gate must have taken back a grant; then it is ended


class GateKeeper:
    """One gate for one session. `listener` is told of what a person is asked, and of what is answered (session/approvals.py). `decisions` counts the requests by
    effect, `engine` names what carries them ("" = nothing has connected yet)."""

    def __init__(
        self, session: Session, loop: Loop, say: Callable[[str], None] = lambda _: None, listener: Listener = lambda _asked, _answered: None
    ) -> None:
        self._session, self._loop, self._say, self._listener = session, loop, say, listener
        self._gate: OwnGate | None = None
        self._control: Control | None = None
        self._desk: Desk | None = None
        self._revoked: dict[int, float] = {}  # numbers of grants, and when
        self._revoked_tokens: list[str] = []  # names of their blocks
        self._sent: list[int] = []  # the numbers of those that the gate was given, in its order
        self._waiting: list[Callable[[], None]] = []  # for the gate's word that it has obeyed
        self._questions: Questions | None = None
        self._hearers: Hearers | None = None
        self._numbers: dict[int, int] = {}  # of questions, by the gate's own
        self._tainted = False
        if session.origin is not None:
            self._tainted, gone = session.origin.tainted, session.origin.revoked
            self._revoked = {number: time.time() for number, grant in enumerate(session.policy.grants) if _words(grant) in gone}
        self.decisions: dict[str, int] = {}
        self.engine = ""
        self.learned: list[dict[str, object]] = []  # requests, in a session that is there to learn them

    @property
    def tainted(self) -> bool:
        """Whether something secret has come in."""
        return self._tainted

    def revoked(self) -> list[dict[str, Any]]:
        """The grants that were taken back, as they are written, wherever that is."""
        return [_words(self._session.policy.grants[number]) for number in self._revoked]

    def listen(self) -> None:
        """Wait for the first connection or query at the door, the gate is started then; and take orders about the session's grants."""
        from stockade.gateway.desk import Desk

        try:
            self._desk = Desk(self._session.lock, self._loop, self._obey)
        except OSError as error:
            raise WallFailed(
                f"cannot listen for orders in {self._session.directory}: {error.strerror}",
                code="session.setup",
                hint="Look at the disk that holds stockade's state; the command was ended.",
            ) from error
        for fd in self._session.door.sockets():
            self._loop.watch(fd, READ, lambda _events: self.start("a connection"))
        if self._session.watch is not None and not self._tainted:
            self._loop.watch(self._session.watch.fileno(), READ, self._opened)

    def start(self, why: str) -> None:
        """Start the gate. When that fails, the door is shut: everything is refused from then on, and the ledger says why."""
        if self._control is not None:
            return
        for fd in self._session.door.sockets():
            self._loop.forget(fd)
        try:
            self._start(why)
        except (StockadeError, OSError) as error:
            code = error.code if isinstance(error, StockadeError) else "gate.start"
            self._fail(code, str(error))

    def _start(self, why: str) -> None:
        from stockade.gateway import broker, engine
        from stockade.gateway.control import Control
        from stockade.walls import native

        session, found = self._session, engine.find()
        shared = session.policy.gate == "shared"
        self.engine = found if found == engine.MITMPROXY else "envoy"
        session.record("gate.start", why=why, gate=session.policy.gate, engine=self.engine)
        if found == engine.MITMPROXY:
            engine.only_envoy(session.policy.grants)
            self._say("the gate runs on mitmproxy, which is slower and speaks HTTP/1.1 only: no Envoy is installed here (stockade doctor)")
        ours, theirs = native.stream_pair()
        door = session.door
        watch = session.watch.descriptors if session.watch is not None and not self._tainted else ()
        sockets = [theirs, *door.listeners.values(), door.dns, *watch]
        self._control = Control(ours, session.id)
        try:
            if not shared:
                from stockade.session.own_gate import OwnGate

                self._gate = OwnGate(found)
                self._loop.watch(self._gate.fileno(), READ, self._notes)
            self._introduce(sockets)
        finally:
            os.close(theirs)
        policy = session.policy
        self._sent = [number for number in range(len(policy.grants)) if number not in self._revoked]
        self._control.configure(
            {
                "session": session.id,
                "grants": [plain(policy.grants[number]) for number in self._sent],
                "canaries": dict(policy.canaries),
                "learning": session.learning,
                "tainted": self._tainted,
                "watch": len(watch),
                "credentials": broker.for_gate(policy.credentials, session.placeholders, os.environ),
                "token_key": session.token_key,
                "revoked_tokens": self._revoked_tokens,
                "tools": [plain(rule) for rule in policy.tools],
                "files": [plain(rule) for rule in policy.files],
                "offers": [plain(rule) for rule in policy.offers],
                "patience": policy.approvals.timeout + LATER if self._asks else 0.0,
                "listeners": [{"kind": KINDS.get(port, "tcp"), "port": port} for port in door.listeners]
                + [{"kind": "dns-udp", "port": 53}],
            }
        )
        self._poll()

    def _introduce(self, sockets: Sequence[int]) -> None:
        """Bring a session to the gate."""
        if self._gate is not None:
            self._gate.introductions.introduce(sockets)
        else:
            from stockade.session.shared import introduce

            introduce([*sockets])

    def _obey(self, order: dict[str, Any], answer: Callable[[dict[str, Any]], None]) -> None:
        from stockade.session.orders import obey

        obey(self, self._session, order, answer)

    def grants(self) -> list[dict[str, Any]]:
        """The session's grants, numbered from 1 as its policy lists them. `off`: it does not hold any more, since something secret has come in."""
        return [
            {
                "rule": number + 1,
                "revoked": number in self._revoked,
                "off": self._tainted and not (grant.secret or grant.after_secret or grant.effect == DENY),
                "from": str(grant.origin),
                "grant": plain(grant),
            }
            for number, grant in enumerate(self._session.policy.grants)
        ]

    def rules(self) -> dict[str, Any]:
        """What the gate is told, without a secret in it: for `stockade gate explain` (session/predict.py). `revoked` are places in the grants, from 0."""
        session, policy = self._session, self._session.policy
        told = Policy(**{name: getattr(policy, name) for name in ("grants", "credentials", "canaries", "tools", "files", "offers")})
        return {
            "policy": plain(told),
            "placeholders": session.placeholders,
            "learning": session.learning,
            "revoked": sorted(self._revoked),
            "tainted": self._tainted,
            "session": session.id,
            "token_key": session.token_key,
            "revoked_tokens": self._revoked_tokens,
        }

    def revoke(self, rules: Sequence[int], answer: Callable[[dict[str, Any]], None]) -> None:
        """Take grants back, all if `rules` (their numbers) is empty, and cut every connection of the session. `answer` is called when that is in force.

        Raises StockadeError: `session.rule` for a number that is none, `session.widen` for a denial, `ledger.*`; nothing is changed then.
        """
        grants = self._session.policy.grants
        numbers = [rule - 1 for rule in rules] or [number for number, grant in enumerate(grants) if grant.effect != DENY]
        for number in numbers:
            if not 0 <= number < len(grants):
                raise StockadeError(f"there is no rule {number + 1}", code="session.rule", hint="stockade session grants ID lists them.")
            if grants[number].effect == DENY:
                message = f"rule {number + 1} is a denial, and without it more would be allowed"
                raise StockadeError(message, code="session.widen", hint="A running session is never widened.")
        new = [number for number in dict.fromkeys(numbers) if number not in self._revoked]
        said = {"revoked": [number + 1 for number in new]}
        if new:
            self._session.record("session.revoke", rules=said["revoked"], grants=[str(grants[number].origin) for number in new])
        self._revoked.update(dict.fromkeys(new, time.time()))
        control = self._control
        if control is None or not new:
            answer(said)
            return
        positions = [self._sent.index(number) for number in new]
        self._order(lambda: control.revoke(positions), lambda: answer(said))

    def revoke_token(self, token: str, answer: Callable[[dict[str, Any]], None]) -> None:
        """Take back one token (or the name of one's block) and all that were made from it, and cut every connection of the session. Raises `session.token`,
        `ledger.*`; nothing is changed then."""
        from stockade.session import tokens

        name = tokens.name(self._session.id, self._session.token_key, token)
        new = [name] if name not in self._revoked_tokens else []
        if new:
            self._session.record("session.revoke", rules=[], tokens=new)
            self._revoked_tokens += new
        done, control = {"revoked": [], "tokens": new}, self._control
        if control is None or not new:
            answer(done)
        else:
            self._order(lambda: control.revoke_tokens(new), lambda: answer(done))

    def _opened(self, _events: int) -> None:
        """Something secret was opened. The doorman knows by itself, and lets nothing pass until the gate has been told."""
        watch, control = self._session.watch, self._control
        if watch is None:
            return
        self._loop.forget(watch.fileno())
        self._tainted = True
        where = watch.seen()
        self._session.record("taint", mount=where)
        self._say(f"{where} was opened, which is secret: {NARROWED}")
        if control is not None:
            self._order(control.taint, lambda: None)

    def _order(self, give: Callable[[], None], done: Callable[[], None]) -> None:
        """Have the gate narrow something; `done` is called when that is in force. A gate that does not obey in time is ended."""
        late = self._loop.later(OBEY, lambda: self._fail("gate.disobeyed", "the gate did not take back a grant in time"))

        def obeyed() -> None:
            self._loop.cancel(late)
            done()

        self._waiting.append(obeyed)
        give()
        self._poll()

    def _poll(self) -> None:
        control = self._control
        if control is not None:
            self._loop.watch(control.fileno(), READ | WRITE if control.wants_to_write else READ, self._messages)

    def _messages(self, events: int) -> None:
        control = self._control
        if control is None:
            return
        try:
            if events & WRITE:
                control.flush()
            messages = control.receive()
            if noted := [(message[1], self._noticed(message[2])) for message in messages if message[0] == "event"]:
                self._session.ledger.extend([event for _, event in noted])  # one append for all that were decided in one moment
                control.acknowledge(*[number for number, _ in noted])
            for message in messages:
                if message[0] == "ca":
                    self._session.bundle.fill(message[1].encode())
                elif message[0] == "failed":
                    raise WallFailed(f"the gate could not start: {message[1]}", code="gate.failed", hint="The network stays closed.")
                elif message[0] == "revoked":
                    if self._waiting:  # it answers in the order in which it was told
                        self._waiting.pop(0)()
                elif message[0] == "ask":
                    self._ask(control, message[1], dict(message[2]))
                elif message[0] == "withdrawn":
                    if message[1] in self._numbers:
                        self.questions.withdraw(self._numbers.pop(message[1]))
        except StockadeError as error:
            self._fail(error.code, error.message)
            return
        if control.closed:
            self._fail("gate.exit", "the gate ended")
            return
        self._poll()

    def _noticed(self, event: dict[str, object]) -> dict[str, object]:
        """An event of the gate's as it goes into the ledger; said aloud and counted on the way."""
        kind, session = event["kind"], self._session
        if event.get("canary"):
            where = f"a request to {event['host']}" if kind == "egress" else "a name to look up"
            self._say(f"ALARM: {event['canary']} was about to leave in {where}; it was stopped")
        if kind == "egress":
            if session.learning and len(self.learned) < LEARNED:
                self.learned.append({name: value for name, value in event.items() if name != "session"})
            if event.get("secret") and not self._tainted:
                self._tainted = True
                self._say(f"{event['host']} was asked, whose answers are secret: {NARROWED}")
            effect = str(event.get("effect"))
            self.decisions[effect] = self.decisions.get(effect, 0) + 1
        return event

    @property
    def _asks(self) -> bool:
        """Whether there is anything to ask a person about, and one to ask. A session that is there to learn asks nobody: it allows nothing."""
        session, policy = self._session, self._session.policy
        rules: list[Rule] = [*policy.grants, *policy.tools, *policy.files, *policy.offers]
        return policy.oversight != "none" and not session.learning and any(one.effect == ASK for one in rules)

    @property
    def questions(self) -> Questions:
        """What waits for a person's word."""
        if self._questions is None:
            from stockade.session.approvals import Questions
            from stockade.session.hearers import Hearers

            self._hearers = Hearers(self._session, self._loop, self._say, self._introduce, lambda: self.questions, self._listener)
            self._questions = Questions(self._session, self._loop, self._say, self._hearers.hear)
        return self._questions

    def _ask(self, control: Control, number: int, event: dict[str, Any]) -> None:
        """Put a question of the gate's to whoever may answer."""
        place, policy = event.pop("place", -1), self._session.policy
        grants = [policy.grants[number] for number in self._sent]
        kinds: Mapping[str, Sequence[Rule]] = {"egress": grants, "tool": policy.tools, "file": policy.files, "mount": policy.offers}
        rules = kinds.get(event["kind"], ())
        if not self._asks or not 0 <= place < len(rules) or rules[place].effect != ASK:
            raise WallFailed("the gate asked about what is nothing to ask about", code="gate.protocol", hint="The network stays closed.")

        def reply(allow: bool, why: str) -> None:
            if self._numbers.pop(number, None) is not None and control is self._control:
                control.answer(number, allow, why)
                self._poll()

        self._numbers[number] = self.questions.upcoming
        self.questions.ask(event, rules[place], tainted=self._tainted, reply=reply)

    def _notes(self, _events: int) -> None:
        gate = self._gate
        if gate is None:
            return
        try:
            ended = gate.ended()
        except StockadeError as error:
            self._fail(error.code, error.message)
            return
        if ended:
            self._fail("gate.exit", ended)

    def _fail(self, code: str, why: str) -> None:
        said = self._gate.said() if self._gate is not None else ""
        try:
            self._end()
        finally:
            self._session.door.shut()
            self._session.bundle.close()
        self._session.record("gate.exit", code=code, reason=why, said=said)
        waiting, self._waiting = self._waiting, []  # with the door shut nothing leaves, which is what they wait for
        for obeyed in waiting:
            obeyed()
        note = "".join(letter if letter.isprintable() else " " for letter in f"{why} {said}"[:300])
        self._say(f"the network is closed for the rest of this run: {note} ({code})")

    def close(self) -> None:
        """End the gate and take no more orders; idempotent."""
        if self._desk is not None:
            self._desk.close()
            self._desk = None
        self._end()

    def _end(self) -> None:
        try:
            if self._questions is not None:
                self._questions.close()
        finally:  # a ledger that takes nothing more keeps nothing open
            if self._hearers is not None:
                self._hearers.close()
            if self._control is not None:
                self._loop.forget(self._control.fileno())
                self._control.close()
                self._control = None
            if self._gate is not None:
                self._loop.forget(self._gate.fileno())
                self._gate.close()
                self._gate = None


def _words(grant: Grant) -> dict[str, Any]:
    return {name: value for name, value in plain(grant).items() if name != "origin"}
