"""The same machine as in test_questions.py, with what is done outside once it was approved: a file holds only what a person has approved for it, a folder is mounted only then,
and both are on record before."""

from __future__ import annotations

import os
import shutil
import tempfile
from base64 import b64encode
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule

from session.test_questions import Machine
from stockade.core.errors import StockadeError
from stockade.core.tools import FileRule, MountRule
from stockade.walls import adding
from stockade.walls.workspace import change

RARELY = st.sampled_from([False] * 5 + [True])
CONTENTS = {"one": b"1\n", "two": b"2\n", "too long to be shown": b"2\n" * 9000, "no text": b"\0"}
FILE = FileRule("folder/*", "ask")
FOR_PEOPLE = SimpleNamespace(people=True)


class Effects(Machine):
    def __init__(self) -> None:
        super().__init__()
        self.place = os.path.realpath(tempfile.mkdtemp())
        self.folder = f"{self.place}/top/folder"
        os.makedirs(self.folder)
        os.makedirs(f"{self.place}/offered")
        facts: dict[str, Any] = {"top": f"{self.place}/top", "target": "/w", "mode": "rw"}
        change.hold(facts, [FILE.path])
        session: Any = self.ledger
        session.directory, session.torn, session.shown, session.view = self.place, [], [], SimpleNamespace(facts=facts)
        session.box = SimpleNamespace(pid=0, dead=False, ready=True)
        self.late = False  # whether a ledger that is broken takes questions and answers, and nothing after them
        whole = self.ledger.record
        session.record = lambda kind, **facts: self.record(whole, kind, facts)
        self.mounted: list[str] = []  # what the wall was told to mount
        self.adding = mock.patch.object(adding, "add", lambda _pid, source, _known, target: self.mounted.append(target))
        self.adding.start()
        self.disk: dict[str, bytes] = {}  # what each file holds, as far as anybody was allowed to write it
        self.wanted: dict[int, tuple[str, bytes]] = {}
        self.folders: set[int] = set()
        self.seen = 0

    def record(self, whole: Any, kind: str, facts: dict[str, Any]) -> None:
        broken = self.ledger.broken
        self.ledger.broken = broken and not (self.late and kind in ("ask", "answer"))
        try:
            whole(kind, **facts)
        finally:
            self.ledger.broken = broken

    def trusted(self) -> None:
        super().trusted()
        events = self.ledger.events
        people = {
            event["ask"]
            for event in events
            if event["kind"] == "answer" and (event["effect"], event["by"], event["scope"]) == ("allow", "person", "once")
        }
        for event in events[self.seen :]:
            if event["kind"] == "file.write":
                name, content = self.wanted[event["ask"]]
                assert event["ask"] in people and self.said[event["ask"]] == [True]
                assert (event["path"], event["after"]) == (f"folder/{name}", sha256(content).hexdigest())
                self.disk[name] = content
        self.seen = len(events)
        found = {name: Path(self.folder, name).read_bytes() for name in os.listdir(self.folder)}
        assert found == self.disk, "a file holds what nobody approved, or not what somebody did"
        added = [event for event in events if event["kind"] == "mount.add"]
        assert self.mounted == [event["target"] for event in added], "something was mounted that is on no record"
        assert {event["ask"] for event in added} <= people and all(event["source"] == f"{self.place}/offered" for event in added)
        written = {event["ask"] for event in events if event["kind"] == "file.write"}
        assert {number for number in (*self.wanted, *self.folders) if self.said[number] == [True]} == written | {
            event["ask"] for event in added
        }

    def put(self, event: dict[str, Any], about: Any, broken: bool) -> int:
        """Ask; the number, 0 where there was nothing to ask."""
        number, said = self.questions.upcoming, list[bool]()
        self.ledger.broken = broken
        with self.at():
            try:
                found = self.questions.ask(event, about, tainted=False, reply=lambda allow, _: said.append(allow))
            except StockadeError:
                assert broken and said in ([], [False])
                found = number if self.questions.upcoming > number else 0
        self.ledger.broken = False
        assert found in (0, number) and (found or said in ([], [False]))
        if found:
            self.said[number], self.about[number] = said, ("", FOR_PEOPLE)
            self.approved[number] = "once"  # if somebody approves it; who, is looked at in `trusted`
        return found

    @rule(name=st.sampled_from("ab"), content=st.sampled_from([*CONTENTS]), broken=RARELY)
    def ask_for_a_file(self, name: str, content: str, broken: bool) -> None:
        after = CONTENTS[content]
        event = {"kind": "file", "path": f"folder/{name}", "content": b64encode(after).decode(), "digest": sha256(after).hexdigest()}
        if number := self.put({**event, "length": len(after)}, FILE, broken):
            self.wanted[number] = name, after
        self.trusted()

    @rule(where=st.sampled_from(["/a", "/b", "/c", "/d"]), broken=RARELY)
    def ask_for_a_folder(self, where: str, broken: bool) -> None:
        if number := self.put({"kind": "mount", "path": where}, MountRule(f"{self.place}/offered", where, where), broken):
            self.folders.add(number)
        self.trusted()

    @rule(broken=RARELY)
    def approve(self, broken: bool) -> None:
        """A person says yes to what has waited longest, as people do."""
        if not self.questions.pending:
            return
        one = self.questions.pending[0]
        if one.number in self.about:
            self.approved.setdefault(one.number, "once")
        self.ledger.broken = broken
        with self.at():
            try:
                done = self.questions.answer(one.number, one.digest, True, channel="", by="person")
                if done.allow:
                    self.approved[one.number] = "once"
            except StockadeError as error:
                assert error.code.startswith("approval.") or broken
        self.ledger.broken = False
        self.trusted()

    @rule(name=st.sampled_from("ab"), content=st.sampled_from([b"1\n", b"3\n", None]))
    def somebody_outside_writes(self, name: str, content: bytes | None) -> None:
        if content is not None:
            Path(self.folder, name).write_bytes(content)
            self.disk[name] = content
        elif name in self.disk:
            os.unlink(f"{self.folder}/{name}")
            del self.disk[name]

    @rule(late=st.booleans())
    def breaks_late(self, late: bool) -> None:
        self.late = late

    def teardown(self) -> None:
        super().teardown()
        self.adding.stop()
        shutil.rmtree(self.place)


TestEffects = Effects.TestCase
TestEffects.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
