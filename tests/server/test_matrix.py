"""Every type of request, at every place where it is asked, with everything that can become of it (matrix.py): nothing happens that nobody allowed, or wider, or before it is
on record (M38, B14)."""

from __future__ import annotations

import os
import random
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from gateway.harness import require_engine
from server import matrix, matrix_requests
from server.matrix_channels import Channel, Rules, channels
from server.matrix_world import Job, Session, World, digest, wrong
from server.test_page import CHROMIUM, browser
from stockade.core.errors import StockadeError
from walls.boxes import require, until

__all__ = ["browser"]
CHOSEN = os.environ.get("STOCKADE_MATRIX", "")
SEED = int(CHOSEN) if CHOSEN.isdecimal() else random.SystemRandom().randrange(10_000)
CELLS = matrix.cells() if CHOSEN == "full" else matrix.selection(SEED)
FOR_PEOPLE = [(request, kind) for request in ("file", "mount") for kind in ("rules", "rules that refuse", "model")]
DOCUMENT = Path(__file__).parents[2] / "docs/approvals-matrix.md"


# ---- the table ----------------------------------------------------------------------------------------------------------------------


def test_every_cell_is_run_or_excused() -> None:
    assert matrix_requests.REQUESTS.keys() == matrix.REQUESTS.keys()
    assert {channel.__name__ for channel in Channel.__subclasses__()} and channels(None, lambda: None).keys() == matrix.CHANNELS.keys()  # type: ignore[arg-type]
    assert OUTCOMES.keys() == matrix.OUTCOMES.keys()
    run = set(matrix.cells())
    assert all((cell in run) != bool(cell.excuse) for cell in matrix.product())
    for excuse in matrix.EXCUSED:  # each is about something, and not about what another is about already
        others = [one for one in matrix.EXCUSED if one != excuse]
        fits = [cell for cell in matrix.product() if all(name in (matrix.ANY, own) for name, own in zip(excuse, cell, strict=False))]
        assert fits and not all(any(all(n in (matrix.ANY, o) for n, o in zip(one, cell, strict=False)) for one in others) for cell in fits)


def test_what_is_run_covers_every_pair(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{len(CELLS)} of {len(matrix.cells())} cells, STOCKADE_MATRIX={CHOSEN or SEED}")
    assert set().union(*map(matrix.pairs, CELLS)) == set().union(*map(matrix.pairs, matrix.cells()))


def test_the_document_is_current() -> None:
    assert DOCUMENT.read_text() == matrix.document(), f"python tests/server/matrix.py > {DOCUMENT.name}"


ASK = {"kind": "ask", "ask": 1, "key": "POST http://a.test/x"}
ALLOW = {"kind": "answer", "ask": 1, "effect": "allow", "outcome": "approved", "scope": "once"}
EFFECT = {
    "kind": "egress", "effect": "allow", "rule": "approved: approval-needed", "method": "POST", "scheme": "http", "host": "a.test", "port": 80, "path": "/x",
}  # fmt: skip
WRITE = {"kind": "file.write", "ask": 1, "path": "f", "before": None, "after": "0" * 64}
FILE = {"kind": "ask", "ask": 1, "action": "file", "key": "file f", "digest": digest(WRITE)}
MINE, WRITTEN = {**ALLOW, "by": "person"}, {"kind": "file", "effect": "allow", "rule": "approved: file p.toml:7 (file[0])", "path": "f"}
SESSION, REVOKE = {**ALLOW, "scope": "session"}, {"kind": "approval.revoke", "key": ASK["key"]}
ASK2, EARLIER = {**ASK, "ask": 2}, {**ALLOW, "ask": 2, "outcome": "earlier", "scope": "session"}


@pytest.mark.parametrize(
    ("events", "bad"),
    [
        ([ASK, ALLOW, EFFECT], 0),
        ([ASK, ALLOW, EFFECT, EFFECT], 1),
        ([ASK, EFFECT, ALLOW], 1),
        ([EFFECT], 1),
        ([ALLOW, EFFECT], 2),
        ([ASK, {**ALLOW, "effect": "deny", "outcome": "refused"}, EFFECT], 1),
        ([ASK, ALLOW, {**EFFECT, "path": "/y"}], 1),
        ([ASK, ALLOW, ALLOW, EFFECT], 1),
        ([ASK, {**ALLOW, "outcome": "timed_out"}], 1),
        ([ASK, SESSION, EFFECT, ASK2, EARLIER, EFFECT], 0),
        ([ASK, ALLOW, EFFECT, ASK2, EARLIER, EFFECT], 1),
        ([FILE, MINE, WRITE, WRITTEN], 0),
        ([FILE, MINE, WRITTEN], 1),
        ([FILE, MINE, WRITTEN, WRITE], 1),
        ([FILE, WRITE, MINE], 1),
        ([FILE, MINE, WRITE, WRITE], 1),
        ([FILE, MINE, {**WRITE, "after": "1" * 64}], 1),
        ([FILE, {**MINE, "by": "reviewer"}, WRITE], 1),
        ([FILE, {**MINE, "scope": "session"}, WRITE], 1),
        ([FILE, {**MINE, "effect": "deny", "outcome": "refused"}, WRITE], 1),
        ([ASK, SESSION, EFFECT, REVOKE, ASK2, EARLIER, EFFECT], 1),
    ],
)
def test_what_compares_effects_with_answers_sees_what_is_wrong(events: list[dict[str, Any]], bad: int) -> None:
    assert len(wrong(events)) == bad


# ---- what they share ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require()
    require_engine()
    folders = sum(matrix_requests.REQUESTS[cell.request].tokens for cell in CELLS) + len(FOR_PEOPLE)
    made = World(tmp_path_factory.mktemp("matrix"), folders)
    yield made
    assert made.close() == []


@pytest.fixture(scope="module")
def channel(world: World, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Channel]]:
    if CHROMIUM:
        request.getfixturevalue("browser")  # before what uses it, so that it ends after that
    makers = channels(world, lambda: request.getfixturevalue("browser"))
    made: dict[str, Channel] = {}

    def get(name: str) -> Channel:
        if name not in made:
            made[name] = makers[name]()
        return made[name]

    yield get
    for one in made.values():
        one.close()


class Case:
    """One cell: a request that carries a token of its own, and a channel."""

    def __init__(self, world: World, channel: Channel, request: matrix_requests.Request, given: ExitStack) -> None:
        self.world, self.channel, self.request, self._given = world, channel, request, given
        self.token = world.tokens.pop() if request.tokens else f"t{uuid.uuid4().hex[:10]}"
        self.touched = world.outside.touched

    def session(self, *, quick: bool = False, alone: bool = False, stops: str = "", kind: str = "") -> Session:
        name = kind or self.channel.kind
        return self._given.enter_context(self.world.single(name, stops=stops)) if alone or stops else self.world.session(name, quick=quick)

    def send(self, session: Session, token: str = "") -> Job:
        return session.do(self.request.script(self.world.outside.ports, token or self.token))

    def asks(self, session: Session, *but: int, token: str = "") -> dict[str, Any]:
        """Its question, which says what it is, and for which nothing has happened yet."""
        asked = session.asked(*but)
        assert self.request.shown(self.world.outside.ports, token or self.token) in asked["what"]
        return asked

    def happened(self, times: int, token: str = "") -> None:
        """Just this has happened outside, to the byte."""
        self.world.expected[token or self.token] = (self.request, times)  # and in the end, too
        found = self.request.effects(self.world.outside, token or self.token)
        assert sorted(found) == sorted(self.request.sent(token or self.token) * times)

    def nothing(self) -> None:
        """Nothing has, and nobody outside was even called."""
        self.happened(0)
        assert self.world.outside.touched == self.touched

    def allowed(self, session: Session, job: Job, asked: dict[str, Any], outcome: str = "approved") -> None:
        """It was let go on, by an answer to this question."""
        assert job.result().endswith(self.request.yes), (job.result(), self.world.recent())
        answer = session.answer_to(asked)
        assert (answer["effect"], answer["outcome"]) == ("allow", outcome)
        (about,) = [one for one in session.events("ask") if one["ask"] == asked["number"]]
        assert about["digest"] == asked["digest"]

    def refused(self, session: Session, job: Job, asked: dict[str, Any], outcome: str = "refused") -> None:
        """It was refused, and the refusal names its rule."""
        assert job.result().endswith(self.request.no), (job.result(), self.world.recent())
        answer = session.answer_to(asked)
        assert (answer["effect"], answer["outcome"]) == ("deny", outcome)
        denied = [one for one in session.events("egress", "tool", "file", "mount") if one["effect"] == "deny"]
        assert denied[-1]["rule"] == self.request.rule

    def said_by(self, session: Session, asked: dict[str, Any]) -> None:
        """The answer on record is this channel's."""
        answer = session.answer_to(asked)
        assert (answer["by"], answer["channel"]) == (self.channel.by, self.channel.named)

    def ends(self, session: Session, job: Job, asked: dict[str, Any]) -> None:
        """It waits still; somebody else refuses it."""
        assert asked["number"] in [one["number"] for one in session.waiting()]
        self.nothing()
        assert session.desk(asked, False) == ""
        self.refused(session, job, asked)
        self.nothing()


# ---- what becomes of it -------------------------------------------------------------------------------------------------------------


def by_rules(case: Case, kind: str) -> None:
    """Rules answer at once: nobody is shown anything."""
    session = case.session(kind=kind)
    job = case.send(session)
    job.result()
    asked = {**session.events("ask")[-1]}
    asked["number"] = asked["ask"]
    if kind == "rules":
        case.allowed(session, job, asked)
        case.happened(1)
        assert case.send(session).result().endswith(case.request.yes)
        assert session.events("ask")[-1]["ask"] == asked["number"] + 1  # each is a question of its own
        case.happened(2)
    else:
        case.refused(session, job, asked)
        case.nothing()
    case.said_by(session, asked)


def once(case: Case) -> None:
    if case.channel.named == "rules":
        by_rules(case, "rules")
        return
    session = case.session()
    job = case.send(session)
    asked = case.asks(session)
    last = case.channel.prepare(session, asked, "once")
    case.nothing()
    last()
    case.allowed(session, job, asked)
    case.said_by(session, asked)
    case.happened(1)
    again = case.send(session)
    if case.request.stays:
        assert again.result().endswith(case.request.no)
        assert session.events("ask")[-1]["ask"] == asked["number"] and session.events("mount.refused")[-1]["code"] == "mount.same"
        case.happened(1)
        return
    other = case.asks(session)
    assert other["number"] > asked["number"] and session.desk(other, False) == ""
    case.refused(session, again, other)
    case.happened(1)
    again = case.send(session)
    other = case.asks(session)
    assert session.desk(other, True) == ""
    case.allowed(session, again, other)
    case.happened(2)


def session(case: Case) -> None:
    session = case.session()
    job = case.send(session)
    asked = case.asks(session)
    last = case.channel.prepare(session, asked, "session")
    case.nothing()
    last()
    case.allowed(session, job, asked)
    case.said_by(session, asked)
    assert case.send(session).result().endswith(case.request.yes)
    case.happened(2)
    different = f"{case.token}x"
    job = case.send(session, different)
    other = case.asks(session, token=different)
    assert session.desk(other, False) == ""
    case.refused(session, job, other)
    case.happened(0, different)
    assert len(case.request.effects(case.world.outside, case.token)) == 2 * len(case.request.sent(case.token))
    session.take_back(asked["key"])
    job = case.send(session)
    other = case.asks(session)
    assert session.desk(other, False) == ""
    case.refused(session, job, other)
    case.happened(2)


def refused(case: Case) -> None:
    if case.channel.named == "rules":
        by_rules(case, "rules that refuse")
        return
    session = case.session()
    job = case.send(session)
    asked = case.asks(session)
    case.channel.prepare(session, asked, "refuse")()
    case.refused(session, job, asked)
    case.said_by(session, asked)
    case.nothing()


def expired(case: Case) -> None:
    session = case.session(quick=True)
    job = case.send(session)
    asked = case.asks(session)
    case.refused(session, job, asked, "timed_out")
    assert session.desk(asked, True) == "approval.gone"
    case.nothing()


def vanished(case: Case) -> None:
    session = case.session(alone=case.channel.lives_inside)
    job = case.send(session)
    asked = case.asks(session)
    case.channel.vanish(session, asked)
    if case.channel.lives_inside:  # and with it the session, and whoever asked
        assert until(lambda: session.ended, 60)
        assert all(one["effect"] == "deny" for one in session.events("answer"))
        case.nothing()
    elif session.events("answer") and session.events("answer")[-1]["ask"] == asked["number"]:  # its word had been given already
        case.allowed(session, job, asked)
        case.happened(1)
    else:
        case.ends(session, job, asked)


def garbage(case: Case) -> None:
    session = case.session()
    job = case.send(session)
    asked = case.asks(session)
    if case.channel.garbage(session, asked):
        case.refused(session, job, asked)
        case.said_by(session, asked)
        case.nothing()
    else:
        case.ends(session, job, asked)


def contradicted(case: Case) -> None:
    session = case.session()
    job = case.send(session)
    asked = case.asks(session)
    here = random.random() < 0.5  # whose is the yes
    last = case.channel.prepare(session, asked, "once" if here else "refuse")
    begin, said = threading.Barrier(2), []

    def other() -> None:
        begin.wait()
        said.append(session.desk(asked, not here))

    thread = threading.Thread(target=other)
    thread.start()
    begin.wait()
    last()
    thread.join()
    job.result()
    (answer,) = [one for one in session.events("answer") if one["ask"] == asked["number"]]
    sooner = answer["channel"] == case.channel.named
    assert said == ["approval.gone" if sooner else ""] and (sooner or answer["channel"] == "other")
    if answer["effect"] == "allow":
        assert sooner == here
        case.allowed(session, job, asked)
        case.happened(1)
    else:
        assert sooner != here
        case.refused(session, job, asked)
        case.nothing()


def left(case: Case) -> None:
    session = case.session()
    job = case.send(session)
    asked = case.asks(session)
    last = case.channel.prepare(session, asked, "once")
    job.kill()
    assert session.answer_to(asked)["outcome"] == "withdrawn"
    with suppress(StockadeError):
        last()
    assert session.desk(asked, True) == "approval.gone"
    case.nothing()


def stale(case: Case) -> None:
    session = case.session()
    job = case.send(session)
    first = case.asks(session)
    last = case.channel.prepare(session, first, "once")
    assert session.desk(first, False) == ""
    case.refused(session, job, first)
    token = case.token if random.random() < 0.5 else f"{case.token}x"
    job = case.send(session, token)
    second = case.asks(session, token=token)
    case.channel.look(session, second)
    last()
    same = second["digest"] == first["digest"]
    for wrong_one in ("0" * 64, *([] if same else [first["digest"]])):
        assert session.desk({**second, "digest": wrong_one}, True) == "approval.other"
    assert session.desk(first, True) == "approval.gone"
    case.ends(session, job, second)
    assert case.request.effects(case.world.outside, token) == []


def killed(case: Case) -> None:
    session = case.session(stops=case.request.receipt)
    seen: list[list[bytes]] = []

    def end() -> None:
        """Look while it stands still and whoever is inside could see it; not from here, where some channels wait for what comes of their answer."""
        assert until(lambda: session.stopped, 60)
        seen.append(case.request.effects(case.world.outside, case.token))
        os.kill(session.pid, signal.SIGKILL)

    ending = threading.Thread(target=end)
    ending.start()
    case.send(session)
    if case.channel.named != "rules":
        asked = case.asks(session)
        case.channel.prepare(session, asked, "once")()
    ending.join()
    assert seen == [[]]
    assert until(lambda: session.ended, 60)
    assert session.events(case.request.receipt)
    (answer,) = session.events("answer")
    assert (answer["effect"], answer["by"], answer["channel"]) == ("allow", case.channel.by, case.channel.named)
    case.nothing()


@pytest.mark.wall
@pytest.mark.parametrize(("name", "kind"), FOR_PEOPLE)
def test_no_reviewer_is_asked_about_it_and_nobody_for_longer_than_once(
    world: World, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why the table has no such cells: with one that allows everything a person is asked all the same, and by no answer it holds for longer."""
    told: list[Any] = []
    monkeypatch.setattr(world.judge, "answer", lambda about: told.append(about) or "allow")
    with ExitStack() as given:
        case = Case(world, Rules(world), matrix_requests.REQUESTS[name], given)
        session = case.session(kind=kind)
        job = case.send(session)
        asked = case.asks(session)
        assert session.desk(asked, True, "session") == "approval.people"
        case.nothing()
        assert asked["number"] in [one["number"] for one in session.waiting()] and session.desk(asked, True) == ""
        case.allowed(session, job, asked)
        case.happened(1)
        answer = session.answer_to(asked)
        assert (answer["by"], answer["channel"], answer["scope"]) == ("person", "other", "once")
        assert not [one for one in told if case.token in str(one)] and not [
            one for one in session.events("review") if one["ask"] == asked["number"]
        ]


OUTCOMES = {each.__name__: each for each in (once, session, refused, expired, vanished, garbage, contradicted, left, stale, killed)}


@pytest.mark.wall
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(world: World, channel: Callable[[str], Channel], cell: matrix.Cell) -> None:
    if cell.channel == "page" and not CHROMIUM:
        unavailable("chromium", "Debian's chromium-headless-shell is not here (scripts/setup --tests)")
    answering = channel(cell.channel)
    with ExitStack() as given:
        case = Case(world, answering, matrix_requests.REQUESTS[cell.request], given)
        try:
            answering.begin()
            OUTCOMES[cell.outcome](case)
        except BaseException:
            answering.close()  # where it stands is not known
            raise
        finally:
            answering.rest()
            world.calm()
