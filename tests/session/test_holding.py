"""What is protected in the workspace is protected again when somebody on the host puts another file in its place while a session runs (B1, B5)."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from session.supervised import Place
from session.test_lifecycle import error_of
from stockade.core.values import Policy
from walls.boxes import require, until

pytestmark = pytest.mark.wall
# Inside: wait for a sign, then try to write to what is protected, and say how that went.
SCRIPT = """
echo ready > ready
until [ -e go ]; do sleep 0.02; done
for name in "$@"; do
    if (echo evil >> "$name") 2>/dev/null; then echo "wrote $name"; else echo "refused $name"; fi
done
echo fine > other && cat other
"""
NEVER = "import stockade.walls.workspace.again as a; a.Keeper.lost = lambda self: []"
FAILS = "import stockade.walls.native as n; real = n.spawn; n.spawn = lambda words, *rest, **more: real(['hold', '1', *words[2:]] if words[0] == 'hold' else words, *rest, **more)"


@pytest.fixture(autouse=True)
def wall() -> None:
    require()


def replaced(path: Path, text: str) -> None:
    """As editors save: written beside, then renamed over."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text)
    os.rename(beside, path)


def played(place: Place, *names: str, before: str = "", told: bool = True) -> subprocess.CompletedProcess[bytes]:
    """A session in which the host replaces each of `names`, and the attack comes after."""
    run = place.start("/bin/sh", "-c", SCRIPT, "sh", *names, policy=Policy(), before=before)
    try:
        assert until((place.work / "ready").exists, 30)
        time.sleep(0.6)  # longer than what is held is left alone at the start of a session
        for name in names:
            replaced(place.work / name, "by the host\n")
        if told:
            assert until(lambda: again(place) >= set(names), 30), place.ledger()
        else:
            time.sleep(0.3)
        (place.work / "go").touch()
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    return subprocess.CompletedProcess([], run.returncode, out, err)


def again(place: Place) -> set[str]:
    found = [event for event in place.ledger() if event["kind"] == "hold.again"]
    return {Path(path).name for event in found for path in event["paths"]}


def test_a_file_that_an_editor_has_saved_is_still_read_only(place: Place) -> None:
    for name in (".envrc", ".npmrc"):
        (place.work / name).write_text("first\n")
    loose = played(place, ".envrc", before=NEVER, told=False)
    assert b"wrote .envrc" in loose.stdout, loose  # the control: without us the protection goes with the old file
    (place.work / "go").unlink()
    (place.work / "ready").unlink()
    done = played(place, ".envrc", ".npmrc")
    assert done.returncode == 0 and done.stdout == b"refused .envrc\nrefused .npmrc\nfine\n", done
    assert (place.work / ".envrc").read_text() == "by the host\n"


def test_if_it_cannot_be_protected_again_the_session_ends(place: Place) -> None:
    (place.work / ".envrc").write_text("first\n")
    done = played(place, ".envrc", before=FAILS, told=False)
    assert done.returncode == 125 and error_of(done)["error"] == "hold.lost" and b"wrote" not in done.stdout


def test_what_becomes_a_link_is_held_as_one_and_what_goes_away_when_it_comes_back(place: Place) -> None:
    (place.work / ".envrc").write_text("first\n")
    (place.work / ".npmrc").write_text("first\n")
    script = "echo > ready; until [ -e go ]; do sleep 0.02; done; rm -f .envrc .npmrc; mv other .envrc; echo evil >> .npmrc; ls -A"
    (place.work / "other").write_text("fine")
    run = place.start("/bin/sh", "-c", script, policy=Policy())
    try:
        assert until((place.work / "ready").exists, 30)
        time.sleep(0.6)
        os.unlink(place.work / ".envrc")
        os.symlink("elsewhere", place.work / ".envrc")
        os.unlink(place.work / ".npmrc")
        assert until(lambda: again(place) >= {".envrc"}, 30), place.ledger()
        (place.work / ".npmrc").write_text("back\n")
        assert until(lambda: again(place) >= {".envrc", ".npmrc"}, 30), place.ledger()
        (place.work / "go").touch()
        run.communicate(timeout=60)
    finally:
        run.kill()
        run.wait()
    assert os.readlink(place.work / ".envrc") == "elsewhere" and (place.work / ".npmrc").read_text() == "back\n"
    assert (place.work / "other").read_text() == "fine"
