"""Changes to files that are held read-only: asked for from inside, approved by people, written outside as they were shown and seen inside (B5, M12, M15, M19)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place, Terminal, command
from session.test_approvals import code, end, events, fresh, server, stockade, waiting  # noqa: F401  and fixtures
from stockade.core.errors import StockadeError
from stockade.core.frozen import replace
from stockade.core.tools import FileRule
from stockade.core.values import Asking, Origin, Policy
from stockade.session import inbox
from stockade.session.prompt import DEAF
from stockade.walls import gvisor
from walls.boxes import require, until

pytestmark = pytest.mark.wall

RULES = (
    FileRule(".github/workflows/*.yml", "ask", Origin("p.toml", 3, "file[0]")),
    FileRule(".envrc", "ask", Origin("p.toml", 7, "file[1]")),
    FileRule(".github/workflows/release.yml", "deny", Origin("p.toml", 11, "file[2]")),
)
CI, NEW = ".github/workflows/ci.yml", "on: push\njobs: {}\n"
# Asks for a file to hold standard input; prints the status and what was said.
ASK = """
ask() { curl -s -m 60 --noproxy '' -x "$http_proxy" --data-binary @- -w ' %{http_code}\\n' "http://stockade.internal/file?path=$1"; }
"""


def policy(**asking: int) -> Policy:
    return Policy(files=RULES, approvals=replace(Asking(), **asking))


@pytest.fixture
def work(place: Place) -> Path:
    (place.work / ".github/workflows").mkdir(parents=True)
    (place.work / CI).write_text("on: push\n")
    (place.work / ".github/workflows/release.yml").write_text("on: tag\n")
    (place.work / ".envrc").write_text("export A=1\n")
    return place.work


def start(place: Place, script: str, given: Policy | None = None, before: str = "") -> Any:
    return place.start("/bin/sh", "-c", f"{ASK}\n{script}", policy=given or policy(), before=before)


def said(run: Any) -> list[tuple[str, Any]]:
    """Status and answer of each question."""
    lines = run.communicate(timeout=60)[0].decode().split("\n")
    pairs = zip(lines[::2], lines[1::2], strict=False)
    return [(status.strip(), json.loads(text)) for text, status in pairs if text.startswith("{")]


def one(place: Place) -> dict[str, Any]:
    assert until(lambda: len(waiting()) == 1, 20), waiting()
    return waiting()[0]


@pytest.mark.parametrize("wall", ["bubblewrap", "gvisor"])
def test_what_a_person_approves_is_written_and_seen_inside(place: Place, work: Path, wall: Any) -> None:
    if wall == "gvisor":
        require(gvisor)
    (work / CI).chmod(0o640)
    attempts = f"for f in {CI} .github/workflows/new.yml .envrc; do (echo x > $f) 2>/dev/null && echo WRITTEN $f; done"
    script = f"""
        {attempts}; mv .github .elsewhere 2>/dev/null && echo MOVED
        printf 'on: push\\njobs: {{}}\\n' | ask {CI}; cat {CI} >> seen
        printf 'x: 1\\n' | ask .github/workflows/new.yml; cat .github/workflows/new.yml >> seen
        printf 'export A=2\\nexport B=3\\n' | ask .envrc; cat .envrc >> seen
        {attempts}; printf 'export A=2\\n' | ask .envrc"""
    run = start(place, script, replace(policy(), wall=wall))
    try:
        first = one(place)
        assert (first["action"], first["key"], first["risk"], first["people"], first["reversible"]) == (
            "file",
            f"file {CI}",
            "high",
            True,
            False,
        )
        assert first["what"] == f"change the file {CI}: 1 lines more, 0 lines less, 18 bytes then (runs in CI)"
        assert first["detail"] == ["@@ -1 +1,2 @@", " on: push", "+jobs: {}"] and first["rule"] == "p.toml:3 (file[0])"
        shown = stockade(place).stdout
        assert "     | +jobs: {}" in shown and "once at a time" in shown
        assert "approval.people" in stockade(place, "allow", first["session"], str(first["number"]), "--for-session", "--json").stderr
        assert (work / CI).read_text() == "on: push\n"  # nothing is written before the word
        inode = (work / CI).stat().st_ino
        assert stockade(place, "allow", first["session"], str(first["number"])).stdout.endswith("Allowed.\n")
        assert until(lambda: [each["key"] for each in waiting()] == ["file .github/workflows/new.yml"], 20)
        assert "a new file, 1 lines more" in waiting()[0]["what"]
        with pytest.raises(StockadeError) as replayed:  # the word was for another question
            inbox.answer(inbox.waiting()[0], {**waiting()[0], "digest": first["digest"]}, True, channel="inbox")
        assert replayed.value.code == "approval.other"
        assert stockade(place, "allow", first["session"], str(waiting()[0]["number"])).returncode == 0
        assert until(lambda: [each["key"] for each in waiting()] == ["file .envrc"], 20)
        assert stockade(place, "allow", first["session"], str(waiting()[0]["number"])).returncode == 0
        assert until(lambda: len(events(place, "ask")) == 4 and len(waiting()) == 1, 20)
        assert stockade(place, "deny", first["session"]).returncode == 0
        out, err = run.communicate(timeout=60)
    finally:
        end(run)
    assert b"WRITTEN" not in out and b"MOVED" not in out, out
    answers = [json.loads(line) for line in out.decode().splitlines() if line.startswith("{")]
    assert [(each["path"], each["written"]) for each in answers] == [
        (CI, True),
        (".github/workflows/new.yml", True),
        (".envrc", True),
        (".envrc", False),
    ]
    assert answers[-1]["why"].endswith("a person refused it.") and out.split().count(b"202") == 3 and out.split().count(b"403") == 1
    assert (work / "seen").read_text() == "on: push\njobs: {}\nx: 1\nexport A=2\nexport B=3\n"  # by whoever is inside
    assert b"a change waits for your word (high risk): file .envrc" in err
    assert (work / CI).read_text() == NEW and (work / CI).stat().st_mode & 0o777 == 0o640 and (work / CI).stat().st_ino == inode
    assert (work / ".github/workflows/new.yml").read_text() == "x: 1\n" and (work / ".envrc").read_text() == "export A=2\nexport B=3\n"
    told = events(place, "ask", "answer", "file", "file.write", "file.refused")
    assert [each["kind"] for each in told] == ["ask", "answer", "file.write", "file"] * 3 + ["ask", "answer", "file"]
    write = events(place, "file.write")[0]
    assert (write["path"], write["before"], write["after"]) == (CI, sha256(b"on: push\n").hexdigest(), sha256(NEW.encode()).hexdigest())
    assert [each["effect"] for each in events(place, "file")] == ["allow", "allow", "allow", "deny"]
    assert "jobs" not in json.dumps(told)  # contents are shown to whoever is asked, and are not in the ledger
    log = subprocess.run(
        [sys.executable, "-m", "stockade", "log", "show", "--kind", "file"], env=place.env, capture_output=True, text=True, timeout=60
    )
    assert log.stdout.count("file.write") == 3 and f"path={CI}" in log.stdout


def test_in_the_terminal_and_only_when_all_of_it_was_in_sight(place: Place, work: Path) -> None:
    script = f"""{ASK}
        printf 'on: push\\nx: \\033[2J\\342\\200\\256\\n' | ask {CI} | cat -v; seq 300 | ask .envrc | cat -v; read line; echo got $line"""
    person = Terminal(place, (), words=command(policy(), ("/bin/bash", "-c", script), tty=None))
    try:
        person.resize(100, 30)
        person.expect("stockade asks: may this file be changed")
        person.expect(r"\+x: .x1b\[2J.u202e")  # what a terminal would obey, or show turned around, is spelled out
        person.type(f"{code(person)}\r")
        person.expect('"written": true')
        person.expect("All of it, and how to allow it: stockade approvals")
        assert b"Enter to allow it" not in person.seen
        time.sleep(2 * DEAF)
        person.type("\r")
        person.expect('"written": false')
        person.type("on\r")
        person.expect("got on")
    finally:
        person.close()
    assert [(each["channel"], each["outcome"]) for each in events(place, "answer")] == [("terminal", "approved"), ("terminal", "refused")]
    assert (work / CI).read_bytes() == b"on: push\nx: \x1b[2J\xe2\x80\xae\n" and (work / ".envrc").read_text() == "export A=1\n"


def test_what_nobody_is_asked_about(place: Place, work: Path) -> None:
    """Other files, other ways to write their names, what is too large, and what a person could not be shown: refused at once, and nothing is changed."""
    (work / "plain.txt").write_text("x")
    (work / ".github/workflows/linked.yml").symlink_to(place.home / "outside.yml")
    (place.home / "outside.yml").write_text("x\n")
    (work / ".github/workflows/twin.yml").write_text("x\n")
    os.link(work / ".github/workflows/twin.yml", place.home / "twin.yml")
    (work / ".github/workflows/bin.yml").write_bytes(b"\0\0")
    folder = ".github/workflows/"
    names = [
        "plain.txt", f"{folder}release.yml", f"{folder}../../.envrc", f"/{CI}", f"./{CI}", f"{folder}/ci.yml", "..%2f..%2fetc%2fpasswd", ".git/config", f"{folder}.git/x.yml",
        ".GIT/hooks/x.yml", ".github/WORKFLOWS/ci.yml", f"{CI}%00", f"{folder}{'a' * 1200}.yml", f"{folder}%d0%b0.yml", f"{CI}&path=.envrc", "", f"{folder}linked.yml",
        f"{folder}bin.yml", f"{folder}{'a' * 300}.yml",
    ]  # fmt: skip
    asks = "; ".join(f"echo x | ask '{name}'" for name in names)
    rest = f"""
        head -c 33000 /dev/zero | ask {CI}; seq 6000 | ask {CI}; head -c 9 /dev/zero | ask {CI}; printf '\\377' | ask {CI}; echo 'on: push' | ask {CI}; printf '' | ask {CI}
        curl -s -x http://127.0.0.1:3128 -T {CI} http://stockade.internal/file?path={CI} -o /dev/null -w '%{{http_code}}\\n'
        curl -s -x http://127.0.0.1:3128 -d x http://stockade.internal/file -o /dev/null -w '%{{http_code}}\\n'"""
    run = start(place, f"({asks}; {rest}) > out 2>&1")
    try:
        assert run.wait(90) == 0, run.stderr.read()
        out = (work / "out").read_text()
    finally:
        end(run)
    assert out.split().count("403") == len(names) + 8 and '"written": true' not in out, out
    assert events(place, "ask", "file.write") == []
    reasons = [each["code"] for each in events(place, "file.refused")]
    assert reasons == ["file.path", "file.unshown", "file.path", "file.unshown", "file.unshown", "file.unshown", "file.same"]
    assert (work / CI).read_text() == "on: push\n" and (place.home / "outside.yml").read_text() == "x\n" and not (work / ".git").exists()


def test_a_file_that_changed_meanwhile_is_left_alone(place: Place, work: Path) -> None:
    """Two sessions ask about one file: the second word is for a file that is not what was shown. So is one that somebody outside has changed."""
    runs = [
        start(place, f"printf 'on: push\\nx: {number}\\n' | ask {CI}; printf y | ask .envrc; echo inside >> .envrc") for number in (1, 2)
    ]
    try:
        assert until(lambda: len(waiting()) == 2, 30)
        first, second = waiting()
        assert stockade(place, "allow", first["session"], str(first["number"])).returncode == 0
        done = stockade(place, "allow", second["session"], str(second["number"]))
        assert done.returncode == 1 and "Allowed, and not done: .github/workflows/ci.yml was changed or replaced meanwhile" in done.stdout
        assert until(lambda: [each["key"] for each in waiting()] == ["file .envrc"] * 2, 20)
        os.rename(work / ".envrc", work / "old")  # an editor that saves by a new file
        (work / ".envrc").write_text("export A=1\n")
        assert until(lambda: len(events(place, "hold.again")) == 2, 20)
        for each in waiting():
            assert stockade(place, "allow", each["session"], str(each["number"])).returncode == 1
        answers = [
            json.loads(line) for run in runs for line in run.communicate(timeout=60)[0].decode().splitlines() if line.startswith("{")
        ]
    finally:
        for run in runs:
            end(run)
    assert sorted((each["path"], each["written"]) for each in answers) == [(".envrc", False), (".envrc", False), (CI, False), (CI, True)]
    assert (work / ".envrc").read_text() == "export A=1\n"
    assert len(events(place, "file.write")) == 1
    assert [each["code"] for each in events(place, "file.refused")] == ["file.changed"] * 3


@pytest.mark.parametrize("moment", ["before the receipt", "in the middle of writing"])
def test_a_supervisor_that_is_killed_has_written_nothing_or_what_it_says(place: Place, work: Path, moment: str) -> None:
    kill = "import signal, stockade.walls.workspace.change as change\n"
    kill += (
        "whole = change._write\n" if moment != "before the receipt" else "change.put = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    if moment != "before the receipt":
        kill += "def half(fd, data):\n    if data != b'on: push\\n': os.pwrite(fd, data[:4], 0); os.kill(os.getpid(), signal.SIGKILL)\n    whole(fd, data)\nchange._write = half"
    run = start(place, f"printf 'new: content\\n' | ask {CI}", before=kill)
    try:
        asked = one(place)
        stockade(place, "allow", asked["session"], str(asked["number"]))
        assert run.wait(20) == -signal.SIGKILL
    finally:
        end(run)
    assert [each["effect"] for each in events(place, "answer")] == ["allow"]
    if moment == "before the receipt":
        assert events(place, "file.write") == [] and (work / CI).read_text() == "on: push\n"
        return
    assert len(events(place, "file.write")) == 1 and (work / CI).read_text() == "new:push\n"
    listed = subprocess.run(
        [sys.executable, "-m", "stockade", "session", "list"], env=place.env, capture_output=True, text=True, timeout=60
    ).stdout
    (kept,) = place.sessions.glob("*/before-1")  # what it held is still there, and somebody is told
    assert kept.read_text() == "on: push\n" and f"what {CI} held before it was changed" in listed


def test_what_cannot_be_held_stops_the_start_and_what_is_not_there_is_said(place: Place, work: Path) -> None:
    (work / "link.yml").symlink_to(CI)
    for path in ("link.yml", ".github/workflows/ci.yml/*", ".envrc/x"):
        done = place.run("true", policy=Policy(files=(FileRule(path, "ask"),)))
        assert done.returncode == 125 and b"workspace.file" in done.stderr, (path, done.stderr)
    (work / ".envrc").unlink()
    run = start(place, "echo free > .envrc; echo x | ask .envrc")
    try:
        ((status, answer),) = said(run)
    finally:
        end(run)
    assert status == "403" and "nothing holds it" in answer["why"] and (work / ".envrc").read_text() == "free\n"
