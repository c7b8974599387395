"""The policy's automatic reviewer for one session: rules, and a model that is asked through the session's own gate. Imported when there is a first question.

It stands between Questions and the channels: what it decides nobody else is shown, and what it leaves undecided is passed on to them. INVARIANT: it can only answer
what waits, by the same state machine as everybody (checks/approvals.py), and whatever goes wrong with it leaves a question to a person.

Whoever asks the model is a process of its own for each question, in a box with a door of its own, which the gate knows as a session of its own with exactly one
grant. So the credential is added in the gate, the request is decided and written down like any other, and what the model answers is read in that box.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from stockade.checks import reviewing
from stockade.core.errors import StockadeError, WallFailed
from stockade.core.frozen import plain
from stockade.core.loop import READ, WRITE
from stockade.core.values import Confinement, Limits
from stockade.walls.box import NO_WAIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stockade.checks.reviewing import Opinion, Word
    from stockade.core.asks import Answered, Asked
    from stockade.core.loop import Loop
    from stockade.core.reviews import Reviewer, ReviewModel
    from stockade.session import Session
    from stockade.session.approvals import Listener, Questions
    from stockade.walls.box import Child

_HOME = "/home/reviewer"
_LIMITS = Limits(processes=64, memory=1 << 30, open_files=64, scratch=1 << 20, file_size=1 << 20)
_ENVIRONMENT = (("PATH", "/usr/bin:/bin"), ("HOME", _HOME), ("LANG", "C.UTF-8"))


class Review:
    """`introduce` brings a session to the gate, `questions` gives what waits, `listener` is told what is left to people, and of every answer."""

    def __init__(
        self,
        reviewer: Reviewer,
        session: Session,
        loop: Loop,
        say: Callable[[str], None],
        introduce: Callable[[Sequence[int]], None],
        questions: Callable[[], Questions],
        listener: Listener,
    ) -> None:
        self._reviewer, self._session, self._loop, self._say = reviewer, session, loop, say
        self._introduce, self._questions, self._listener = introduce, questions, listener
        self._office: _Office | None = None
        self._asked: dict[int, Asked] = {}  # what the model is being asked about
        self._timers: dict[int, int] = {}
        self._complained: set[str] = set()

    def hear(self, asked: Asked | None, answered: Answered | None) -> None:
        """A listener of Questions."""
        if answered is not None:
            self._forget(answered.asked.number)
            self._listener(None, answered)
        if asked is None:
            return
        word = reviewing.by_rules(asked, self._reviewer)
        if word != "person":
            self._answer(asked, word, "rules")
        elif self._reviewer.model is not None and reviewing.asks_model(asked, self._reviewer):
            self._consult(asked, self._reviewer.model)
        else:
            self._listener(asked, None)

    def close(self) -> None:
        """Ask nobody any more; may be called twice."""
        for number in [*self._asked]:
            self._forget(number)
        if self._office is not None:
            self._office.close()
            self._office = None

    def _consult(self, asked: Asked, model: ReviewModel) -> None:
        # At most half of the time is the model's, so that the rest is a person's.
        seconds = min(model.timeout, (asked.expires - time.time()) / 2)
        self._asked[asked.number] = asked
        self._timers[asked.number] = self._loop.later(seconds, lambda: self._said(asked.number, reviewing.Opinion("person", "", "slow")))
        try:
            if self._office is None:
                self._office = _Office(model, self._session, self._loop, self._introduce, self._said, self._closed)
            self._office.ask(asked.number, reviewing.body(model.api, model.name, reviewing.facts(asked)), seconds)
        except (StockadeError, OSError) as error:
            self._closed(error)

    def _closed(self, error: BaseException) -> None:
        """Nobody can be asked in there any more. The next question makes a new one."""
        if self._office is not None:
            self._office.close()
            self._office = None
        code = error.code.replace(".", "-") if isinstance(error, StockadeError) else "system"
        if code not in self._complained:
            self._complained.add(code)
            text = f"the reviewer cannot be asked, so you are: {error}"
            self._say("".join(letter if letter.isprintable() else " " for letter in text[:400]))
        for number in [*self._asked]:
            self._said(number, reviewing.Opinion("person", "", code))

    def _said(self, number: int, opinion: Opinion) -> None:
        """The model has answered, or nothing came of asking it."""
        asked = self._asked.get(number)
        self._forget(number)
        if asked is None:
            return
        word = reviewing.followed(opinion.word, asked, self._reviewer)
        if word != "person":
            if word == "deny":
                self._say(f"the reviewer refused {asked.key}: {opinion.reason}")
            self._answer(asked, word, "model")
            return
        outcome = {"error": opinion.error} if opinion.error else {"said": opinion.word}
        self._session.record("review", ask=number, reviewer="model", **outcome)
        name = self._reviewer.model.name if self._reviewer.model is not None else ""
        reason = f"{reviewing.escaped(name)} is unsure: {opinion.reason}" if opinion.word == "person" and opinion.reason else ""
        shown = self._questions().left(number, f"no word of the reviewer ({opinion.error})" if opinion.error else reason)
        if shown is not None:
            self._listener(shown, None)

    def _answer(self, asked: Asked, word: Word, channel: str) -> None:
        try:
            self._questions().answer(asked.number, asked.digest, word == "allow", channel=channel, by="reviewer")
        except StockadeError as error:
            if error.code != "approval.gone":  # somebody was sooner
                raise

    def _forget(self, number: int) -> None:
        self._asked.pop(number, None)
        self._loop.cancel(self._timers.pop(number, 0))
        if self._office is not None:
            self._office.stop(number)


class _Office:
    """Where the model is asked: a box, its door, and the line to the gate about it. `said` is told what came of a question, `failed` that nothing will any more."""

    def __init__(
        self,
        model: ReviewModel,
        session: Session,
        loop: Loop,
        introduce: Callable[[Sequence[int]], None],
        said: Callable[[int, Opinion], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Raises StockadeError and its kinds, OSError; nothing is left behind then."""
        from stockade.gateway import broker
        from stockade.gateway.control import Control
        from stockade.session.own_gate import code
        from stockade.walls import bubblewrap, door, native

        self._model, self._session, self._loop, self._told, self._failed = model, session, loop, said, failed
        self._authority = ""
        self._waiting: dict[int, tuple[bytes, float]] = {}  # until the gate has said by what it is known
        self._running: dict[int, tuple[Child, int, bytearray]] = {}  # with the descriptor on which each answers, and what it has said
        self._closers: list[Callable[[], object]] = []
        try:
            name = f"{session.id}.reviewer"
            own = (model.credential,) if model.credential is not None else ()
            placeholders, key = broker.mint(name, own)
            config = {
                "session": name,
                "grants": [plain(model.grant)],
                "canaries": dict(session.policy.canaries),
                "learning": False,
                "tainted": False,
                "watch": 0,
                "credentials": broker.for_gate(own, placeholders, os.environ),
                "token_key": key,
                "patience": 0.0,
                "listeners": [{"kind": "http-proxy", "port": door.PROXY}],
            }
            wanted = Confinement(mounts=tuple(code()), network="door", limits=_LIMITS, environment=_ENVIRONMENT, home=_HOME)
            plan = bubblewrap.plan(wanted, bubblewrap.look(_HOME))
            way = door.make((door.PROXY,))
            self._closers.append(way.close)
            box = self._box = bubblewrap.open_box(plan, way)
            self._closers += [box.close, lambda: loop.forget(box.fileno())]
            ours, theirs = native.stream_pair()
            line = self._control = Control(ours, name)
            self._closers += [line.close, lambda: loop.forget(line.fileno())]
            try:
                introduce([theirs, way.listeners[door.PROXY]])
            finally:
                os.close(theirs)
            line.configure(config)
            loop.watch(box.fileno(), READ, self._notes)
            self._poll()
        except BaseException:
            self.close()
            raise

    def ask(self, number: int, body: bytes, seconds: float) -> None:
        """Have the model asked, with `body`. Raises StockadeError, OSError."""
        if not self._authority:
            self._waiting[number] = (body, seconds)
            return
        from stockade.walls.streams import pipe

        grant = self._model.grant
        job = {"api": self._model.api, "scheme": grant.scheme, "host": grant.host, "port": grant.port, "path": grant.paths[0]}
        paper = os.memfd_create("question", os.MFD_CLOEXEC)
        ours = theirs = -1
        try:
            more = {"body": body.decode(), "authority": self._authority, "timeout": seconds}
            with open(paper, "wb", closefd=False) as file:
                file.write(json.dumps({**job, **more}).encode())
            os.lseek(paper, 0, os.SEEK_SET)
            ours, theirs = pipe(inner_reads=False)
            argv = [sys.executable, "-I", "-m", "stockade.session.consult"]
            child = self._box.spawn(argv, env=dict(_ENVIRONMENT), stdin=paper, stdout=theirs)
        except BaseException:
            if ours >= 0:
                os.close(ours)
            raise
        finally:
            os.close(paper)
            if theirs >= 0:
                os.close(theirs)
        self._running[number] = (child, ours, bytearray())
        self._loop.watch(ours, READ, lambda _events: self._read(number))

    def stop(self, number: int) -> None:
        """What is said about a question is not wanted any more."""
        self._waiting.pop(number, None)
        if (running := self._running.pop(number, None)) is not None:
            child, fd, _ = running
            self._loop.forget(fd)
            os.close(fd)
            if not self._box.dead:
                self._box.signal(child, 9)  # SIGKILL

    def close(self) -> None:
        """End everything in it; may be called twice."""
        for number in [*self._running]:
            self.stop(number)
        while self._closers:
            self._closers.pop()()

    def _read(self, number: int) -> None:
        _, fd, said = self._running[number]
        try:
            data = os.read(fd, reviewing.HEARD + 1)
        except BlockingIOError:
            return
        said += data
        if not data or len(said) > reviewing.HEARD:
            self.stop(number)
            self._told(number, reviewing.heard(bytes(said)))

    def _notes(self, _events: int) -> None:
        try:
            while True:
                self._box.step(NO_WAIT)
        except BlockingIOError:
            return
        except WallFailed as error:
            self._failed(error)

    def _poll(self) -> None:
        self._loop.watch(self._control.fileno(), READ | WRITE if self._control.wants_to_write else READ, self._messages)

    def _messages(self, events: int) -> None:
        control = self._control
        try:
            if events & WRITE:
                control.flush()
            for message in control.receive():
                match message:
                    case ("ca", authority):
                        self._authority = authority
                        for number, (body, seconds) in [*self._waiting.items()]:
                            del self._waiting[number]
                            self.ask(number, body, seconds)
                    case ("event", number, event):
                        self._record(dict(event))
                        control.acknowledge(number)
                    case ("ready",):
                        pass
                    case _:
                        raise WallFailed("the gate did not take the reviewer in", code="gate.reviewer", hint="A person is asked instead.")
            if control.closed:
                raise WallFailed("the gate hung up on the reviewer", code="gate.reviewer", hint="A person is asked instead.")
        except StockadeError as error:
            if error.code.startswith("ledger."):  # no receipt, no effect: not for the agent either
                raise
            self._failed(error)
            return
        except OSError as error:
            self._failed(error)
            return
        self._poll()

    def _record(self, event: dict[str, Any]) -> None:
        kind = str(event.pop("kind"))
        event.pop("session", None)
        self._session.record(kind, **event, by="reviewer")
