"""What a session leaves when its supervisor is killed, and the commands that look after it (B7: nothing is lost, nothing litters)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place
from stockade.core.values import Policy, Workspace
from walls.boxes import until
from walls.workspace_box import git, overlay_works, repository

pytestmark = pytest.mark.wall
COMMIT = "echo new > n && git add n && git -c user.name=a -c user.email=a@example.test commit -qm inside"
AGES = "touch ready; sleep 300"


def stockade(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stockade", *words], env=place.env, cwd=place.work, capture_output=True, text=True, timeout=60
    )


def listed(place: Place) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stockade(place, "session", "list", "--json").stdout)
    return found


def killed(place: Place, script: str, policy: Policy | None = None, lives: float = 0.0) -> dict[str, Any]:
    """A session that ran `script`, and whose supervisor was killed `lives` seconds later; as it is listed once the sweeper has been there."""
    run = place.start("/bin/sh", "-ec", f"{script}; {AGES}", policy=policy)
    layers = f"{place.sessions}/*/layer/upper/ready"
    assert until(lambda: (place.work / "ready").exists() or any(Path("/").glob(layers[1:])), 20)
    assert [left["state"] for left in listed(place)] == ["running"]
    time.sleep(lives)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    assert place.run("true").returncode == 0  # the end of any session starts the sweeper
    assert until(lambda: [left["state"] for left in listed(place)] == ["kept"], 20), listed(place)
    (place.work / "ready").unlink(missing_ok=True)
    return listed(place)[0]


@pytest.mark.parametrize("lives", [0.0, 1.5], ids=["at once", "while the scan looks on"])
def test_commits_of_a_killed_session_are_brought_back_by_name(place: Place, lives: float) -> None:
    overlay_works(place.root / "probe")
    git(place.work, "init", "-q", "-b", "main")
    git(place.work, "commit", "-q", "--allow-empty", "-m", "first")
    repository(place.work / "below")
    left = killed(place, f"{COMMIT}; cd below; {COMMIT}; git config core.fsmonitor evil; cd ..", lives=lives)
    assert left["workspace"] == str(place.work) and "killed" in left["what"][0]
    assert git(place.work, "log", "--format=%s").split() == ["first"]
    assert left["id"] in stockade(place, "doctor", "--wall", "sessions").stdout
    done = stockade(place, "session", "recover", left["id"])
    assert done.returncode == 0, done.stderr
    for where in (place.work, place.work / "below"):
        assert git(where, "log", "--format=%s").split() == ["inside", "first"]
        assert "evil" not in (where / ".git/config").read_text()
    assert listed(place) == [] and until(lambda: os.listdir(place.sessions) == [])
    assert [event["session"] for event in place.ledger() if event.get("kind") == "git.import"] == [left["id"]] * 2
    again = stockade(place, "session", "recover", left["id"])
    assert again.returncode == 125 and "session list" in again.stderr


def test_files_of_a_killed_rw_no_delete_session_are_merged_and_first_versions_kept(place: Place) -> None:
    overlay_works(place.root / "probe")
    (place.work / "old").write_text("first")
    left = killed(place, "echo second > old; echo x > new", Policy(workspace=Workspace(mode="rw-no-delete")))
    assert (place.work / "old").read_text() == "first" and not (place.work / "new").exists()
    done = stockade(place, "session", "recover", left["id"][:20], "--json")
    assert (place.work / "old").read_text() == "second\n" and (place.work / "new").exists()
    assert done.returncode == 1 and "first versions" in json.loads(done.stdout)["left"][0]
    (kept,) = listed(place)
    assert (Path(kept["directory"]) / "kept/old").read_text() == "first"
    assert stockade(place, "session", "discard", kept["id"]).returncode == 0
    assert listed(place) == [] and not Path(kept["directory"]).exists()
    assert [event["held"] for event in place.ledger() if event.get("kind") == "session.discard"] == [kept["what"]]


def test_a_recovery_that_cannot_be_done_changes_nothing(place: Place) -> None:
    overlay_works(place.root / "probe")
    git(place.work, "init", "-q", "-b", "main")
    left = killed(place, COMMIT)
    place.work.rename(place.root / "away")
    place.work.mkdir()
    (place.root / "away").rename(place.root / "elsewhere")
    place.work.rmdir()
    done = subprocess.run(
        [sys.executable, "-m", "stockade", "session", "recover", left["id"], "--json"],
        env=place.env,
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 125 and json.loads(done.stderr)["error"] == "workspace.missing"
    (place.root / "elsewhere").rename(place.work)
    assert stockade(place, "session", "recover", left["id"]).returncode == 0
    assert git(place.work, "log", "--format=%s").split() == ["inside"]


def test_a_session_that_runs_is_left_alone(place: Place) -> None:
    run = place.start("/bin/sh", "-c", AGES)
    try:
        assert until(lambda: (place.work / "ready").exists())
        (left,) = listed(place)
        for word in ("recover", "discard"):
            done = stockade(place, "session", word, left["id"], "--json")
            assert done.returncode == 125 and json.loads(done.stderr)["error"] == "session.running"
    finally:
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=30)


@pytest.mark.parametrize("name", ["", "s", "../x", "nothing"])
def test_a_name_that_means_no_session(place: Place, name: str) -> None:
    done = stockade(place, "session", "discard", name, "--json")
    assert done.returncode == 125 and json.loads(done.stderr)["error"] == "session.unknown"


def test_what_was_made_harmless_gets_its_name_back(place: Place) -> None:
    place.run("/bin/sh", "-c", "git init -q fresh; git -C fresh config core.fsmonitor evil")
    held = place.work / "fresh/.git/config.stockade-held"
    assert until(held.exists) and "evil" not in (place.work / "fresh/.git/config").read_text()
    assert stockade(place, "session", "release", "fresh/.git/config").returncode == 125
    assert stockade(place, "session", "release", "fresh/.git/config.stockade-held").returncode == 0
    assert "evil" in (place.work / "fresh/.git/config").read_text() and not held.exists()
