"""Mode `review`, whole: what a session writes reaches the folder only when a person applies it, on every wall; and `stockade changes` (M20, B5, B6)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place, share_cache
from session.test_kept import killed, listed, stockade
from stockade.core.values import Limits, Mount, Policy, Workspace
from stockade.walls import bubblewrap, gvisor
from stockade.walls.vm import wall as vm
from walls.boxes import require, scratch, until
from walls.test_waiting import tree
from walls.workspace_box import git, overlay_works, repository

pytestmark = pytest.mark.wall
WALLS = {"bubblewrap": bubblewrap, "gvisor": gvisor, "vm": vm}
WHO = "-c user.name=a -c user.email=a@example.test"

# Everything that a task does to a folder, and what an attacker would.
SCRIPT = rf"""
set -e
printf 'two\n' > f; rm gone; mv d moved; mkdir new; echo n > new/n; ln -s f link; echo 'export EVIL=1' > .envrc
echo written >> linked; echo evil > "$(printf 'name\033]0;evil\007\n')"; printf '\0bin' > b; chmod 755 b
git {WHO} commit -qam inside; git checkout -q -b other
"""
SEEN = ("f", "gone", "d", "moved", "new", "link", ".envrc", "linked", "b")


def prepared(place: Place) -> dict[str, Any]:
    """A repository, a protected file, and a file that has another name outside."""
    git(place.work, "init", "-q", "-b", "main")
    for name, text in (("f", "one\n"), ("gone", "gone\n"), ("d/x", "x\n"), (".envrc", "mine\n")):
        (place.work / name).parent.mkdir(exist_ok=True)
        (place.work / name).write_text(text)
    (place.root / "outside").mkdir()
    (place.root / "outside/theirs").write_text("theirs\n")
    git(place.work, "add", "-A")
    git(place.work, "commit", "-q", "-m", "first")
    os.link(place.root / "outside/theirs", place.work / "linked")
    return files(place)


def files(place: Place) -> dict[str, Any]:
    return {name: what for name, what in tree(place.work).items() if name != ".git"}


def policy(mode: str, wall: str = "bubblewrap", *mounts: Mount) -> Policy:
    return Policy(wall=wall, workspace=Workspace(mode=mode), mounts=mounts, limits=Limits(memory=256 << 20))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Place]:
    """A place in which a session of mode review ran the script; copied for each test, as it was."""
    done: dict[str, Place] = {}

    def get(wall: str) -> Place:
        require(WALLS[wall])
        if wall not in done:
            share_cache(f"{scratch()}/xdg_cache_home")
            place = done[wall] = Place(tmp_path_factory.mktemp(f"review-{wall}"))
            overlay_works(place.root / "probe")
            before = prepared(place)
            ended = place.run("/bin/sh", "-c", SCRIPT, policy=policy("review", wall), timeout=300)
            assert ended.returncode == 0, ended
            assert files(place) == before
        return done[wall]

    return get


def changes(place: Place, *words: str) -> list[dict[str, Any]]:
    done = stockade(place, "changes", *words, "--json")
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    return found if isinstance(found, list) else [found]


def test_control_in_mode_rw_the_same_script_changes_the_folder(place: Place) -> None:
    before = prepared(place)
    place.run("/bin/sh", "-c", SCRIPT.replace("echo 'export EVIL=1' > .envrc", "true"), policy=policy("rw"))
    assert files(place) != before and (place.work / "f").read_text() == "two\n" and not (place.work / "gone").exists()


@pytest.mark.parametrize("wall", WALLS)
def test_nothing_reaches_the_folder_until_it_is_applied_and_then_all_of_it(wall: str, ran: Callable[[str], Place]) -> None:
    place = ran(wall)
    assert git(place.work, "log", "--all", "--format=%s").split() == ["first"] and git(place.work, "status", "--short", "-uno") == ""
    (held,) = changes(place)
    assert held["what"] == "changes" and "commits" in held["said"]
    (left,) = listed(place)
    assert left["state"] == "kept" and f"stockade changes show {left['id']}" in left["what"][0]
    (shown,) = changes(place, "show")
    rows = {row["path"]: row for row in shown["changes"]}
    assert "-one\n+two" in rows["f"]["diff"] and rows["b"]["diff"] is None and rows[".envrc"]["risk"] == "high"
    assert rows["gone"]["what"] == "removed" and rows["moved/x"]["what"] == "added" and rows["d/x"]["what"] == "removed"
    assert {commit["ref"] for commit in shown["commits"]} >= {"HEAD", "refs/heads/main"}
    for words in (["show"], ["show", "--stat"], []):
        printed = stockade(place, "changes", *words).stdout
        assert all(letter.isprintable() or letter in "\n\t" for letter in printed) and "evil" in printed or not words

    (reported,) = [event for event in place.ledger() if event.get("kind") == "workspace.review"]
    risky = {row["path"]: row["diff"] for row in reported["rows"]}  # type: ignore[attr-defined]
    assert "+export EVIL=1" in risky[".envrc"] and "b" in risky
    first = changes(place, "apply", held["id"])
    assert {row["path"] for row in first[0]["rows"] if row["result"] != "applied"} == {".envrc"}
    assert (place.work / "f").read_text() == "two\n" and (place.work / ".envrc").read_text() == "mine\n"
    assert git(place.work, "log", "--all", "--format=%s").split() == ["first"]  # commits come with the last file
    changes(place, "apply", "--protected")
    assert (place.work / ".envrc").read_text() == "export EVIL=1\n" and not (place.work / "gone").exists()
    assert files(place)["moved"] == {"x": b"x\n"} and os.readlink(place.work / "link") == "f" and os.access(place.work / "b", os.X_OK)
    assert (place.root / "outside/theirs").read_text() == "theirs\n" and (place.work / "linked").read_text() == "theirs\nwritten\n"
    assert git(place.work, "log", "--format=%s").split() == ["inside", "first"] and "* other" in git(place.work, "branch")
    assert git(place.work, "status", "--short", "-uno") == ""
    assert changes(place) == [] and listed(place) == []
    receipts = [event["path"] for event in place.ledger() if event.get("kind") == "changes.apply"]
    assert {row["path"] for row in first[0]["rows"]} <= {*receipts}


@pytest.fixture
def copied(ran: Callable[[str], Place], place: Place) -> Place:
    """A session of review that is over, in a place of the test's own."""
    before = prepared(place)
    ended = place.run("/bin/sh", "-c", SCRIPT, policy=policy("review"))
    assert ended.returncode == 0 and files(place) == before, ended
    return place


def test_chosen_paths_come_and_the_rest_waits_or_is_dropped(copied: Place) -> None:
    place = copied
    (left,) = listed(place)
    assert stockade(place, "changes", "apply", "nothing/here").returncode == 125
    changes(place, "apply", "new/n", f"{place.work}/f")
    assert files(place)["new"] == {"n": b"n\n"} and (place.work / "f").read_text() == "two\n" and (place.work / "gone").exists()
    changes(place, "discard", left["id"], "gone", ".envrc", "d")
    assert {row["path"] for row in changes(place, "show")[0]["changes"]}.isdisjoint({"gone", ".envrc", "d/x", "f", "new", "new/n"})
    assert stockade(place, "changes", "apply", ".git").returncode == 0
    assert git(place.work, "log", "--format=%s", "other").split() == ["inside", "first"]
    assert stockade(place, "changes", "apply").returncode == 0
    assert (place.work / "gone").read_text() == "gone\n" and (place.work / ".envrc").read_text() == "mine\n"
    assert changes(place) == [] and listed(place) == []
    discarded = [event for event in place.ledger() if event.get("kind") == "changes.discard"]
    assert [set(event["paths"]) >= {"gone", ".envrc"} for event in discarded] == [True]  # type: ignore[call-overload]


def test_what_i_changed_meanwhile_is_named_and_kept(copied: Place) -> None:
    place = copied
    (place.work / "f").write_text("mine\n")
    done = stockade(place, "changes", "apply", "f")
    assert done.returncode == 1 and "conflict" in done.stdout and "--overwrite" in done.stdout
    assert (place.work / "f").read_text() == "mine\n"
    assert stockade(place, "changes", "apply", "f", "--overwrite").returncode == 0
    assert (place.work / "f").read_text() == "two\n" and (place.work / "f.stockade-replaced").read_text() == "mine\n"


def test_all_can_be_dropped(copied: Place) -> None:
    before = files(copied)
    (left,) = listed(copied)
    assert stockade(copied, "changes", "discard", left["id"]).returncode == 0
    assert files(copied) == before and listed(copied) == [] and not Path(left["directory"]).exists()
    assert git(copied.work, "log", "--all", "--format=%s").split() == ["first"]
    done = stockade(copied, "changes", "show", "--json")
    assert done.returncode == 125 and json.loads(done.stderr)["error"] == "changes.none"


def test_nothing_written_leaves_nothing(place: Place) -> None:
    overlay_works(place.root / "probe")
    prepared(place)
    place.run("/bin/sh", "-c", "git status; cat f; echo x > /tmp/x", policy=policy("review"))
    assert changes(place) == [] and [left for left in listed(place) if left["state"] == "kept"] == []


def test_what_a_mount_needs_is_no_change(place: Place) -> None:
    overlay_works(place.root / "probe")
    (place.root / "data").mkdir()
    mount = Mount(str(place.root / "data"), str(place.work / "data"), "ro")
    place.run("/bin/sh", "-c", "ls data; echo x > f", policy=policy("review", "bubblewrap", mount))
    assert [row["path"] for row in changes(place, "show")[0]["changes"]] == ["f"]


def test_what_stays_is_told_by_the_exit_code_and_a_mode_that_is_open_to_everybody_is_named(place: Place) -> None:
    overlay_works(place.root / "probe")
    deep = "i=0; while [ $i -lt 200 ]; do mkdir a; cd a; i=$((i+1)); done"
    place.run("/bin/sh", "-c", f"umask 0; echo x > f; umask 22; echo x > g; {deep}", policy=policy("review", "bubblewrap"))
    shown = stockade(place, "changes", "show", "--stat").stdout
    assert "added file: f (mode 666: everybody can write to it)" in shown and "added file: g  " in shown
    done = stockade(place, "changes", "apply")
    assert done.returncode == 1 and "NOT looked at: a/a/a/" in done.stdout and (place.work / "g").exists()
    (left,) = listed(place)
    assert stockade(place, "changes", "discard", left["id"]).returncode == 0
    assert until(lambda: listed(place) == [] and os.listdir(place.sessions) == [], 20)


def test_changes_of_a_killed_session_wait(place: Place) -> None:
    overlay_works(place.root / "probe")
    prepared(place)
    (place.work / "linked").unlink()  # another session, of mode rw, is going to look at the folder, and would break the link
    left = killed(place, SCRIPT.strip(), policy("review"), lives=0.5)
    assert "stockade changes show" in left["what"][0] and (place.work / "f").read_text() == "one\n"
    assert stockade(place, "session", "recover", left["id"]).returncode == 1 and (place.work / "f").read_text() == "one\n"
    assert stockade(place, "changes", "apply", "--protected").returncode == 0
    assert (place.work / "f").read_text() == "two\n" and (place.work / "ready").exists()
    assert git(place.work, "log", "--format=%s").split() == ["inside", "first"]


def test_a_session_that_runs_has_nothing_to_apply(place: Place) -> None:
    run = place.start("/bin/sh", "-c", "echo x > f; sleep 300", policy=policy("review"))
    try:
        from walls.boxes import until

        assert until(lambda: any(place.sessions.glob("*/layer/upper/f")), 20)
        (left,) = listed(place)
        for word in ("show", "apply", "discard"):
            done = stockade(place, "changes", word, left["id"], "--json")
            assert done.returncode == 125 and json.loads(done.stderr)["error"] == "session.running"
    finally:
        run.terminate()
        run.communicate(timeout=30)


def test_first_versions_that_were_kept_come_back(place: Place) -> None:
    overlay_works(place.root / "probe")
    (place.work / "f").write_text("first\n")
    place.run("/bin/sh", "-c", "echo second > f", policy=policy("rw-no-delete"))
    (held,) = changes(place)
    assert held["what"] == "first versions" and held["count"] == 1
    assert "-second\n+first" in changes(place, "show")[0]["changes"][0]["diff"]
    assert stockade(place, "changes", "apply").returncode == 125
    assert stockade(place, "changes", "restore").returncode == 0
    assert (place.work / "f").read_text() == "first\n" and (place.work / "f.stockade-replaced").read_text() == "second\n"
    assert stockade(place, "changes", "discard", held["id"]).returncode == 0 and listed(place) == []


def test_the_run_says_what_waits(place: Place) -> None:
    overlay_works(place.root / "probe")
    words = ("run", "--mode", "review", "--", "/bin/sh", "-c", "echo x > f; echo y > .envrc")
    done = stockade(place, *words)
    (left,) = listed(place)
    assert done.returncode == 0 and not (place.work / "f").exists()
    assert f"stockade changes show {left['id']}" in done.stderr and "2 files added" in done.stderr and ".envrc" in done.stderr


def test_where_no_layer_can_be_made_nothing_runs_and_the_way_out_is_said(place: Place) -> None:
    """The state directory on an overlay: overlayfs takes none for an upper layer."""
    overlay_works(place.root / "probe")
    state = place.root / "state"
    for part in ("l", "u", "w", "state"):  # the last may be there: machines have their snapshots in it
        (place.root / part).mkdir(exist_ok=True)
    mount = f"mount -t overlay o -o userxattr,lowerdir={place.root}/l,upperdir={place.root}/u,workdir={place.root}/w {state}"
    words = [sys.executable, "-m", "stockade", "run", "--mode", "review", "--json", "--", "/bin/sh", "-c", "echo x > f"]
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", f'{mount} && exec "$@"', "sh", *words],
        env=place.env,
        cwd=place.work,
        capture_output=True,
        text=True,
    )
    said = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 125 and said["error"] == "workspace.overlay" and "XDG_STATE_HOME" in said["hint"]
    assert list(place.work.iterdir()) == []


@pytest.mark.parametrize("room", [0, 1 << 20])
def test_a_disk_that_is_full_leaves_the_folder_as_it_was(room: int, copied: Place) -> None:
    """The limit of a file's size stands for the disk: without any, the ledger cannot be written to either; with some, only the large file does not come."""
    place = copied
    (left,) = listed(place)
    layer = Path(left["directory"]) / "layer/upper/f"
    layer.write_bytes(bytes(2 << 20))
    before = files(place)
    words = [sys.executable, "-c", DRIVER, str(room), "changes", "apply", "f", "new/n", "--json"]
    done = subprocess.run(words, env=place.env, cwd=place.work, capture_output=True, text=True)
    if room:
        assert done.returncode == 1 and {row["path"]: row["result"] for row in json.loads(done.stdout)[0]["rows"]}["f"] == "failed"
        assert files(place) == {**before, "new": {"n": b"n\n"}}
    else:
        assert done.returncode == 125 and json.loads(done.stderr)["error"] != "bug"
        assert files(place) == before
    assert len(listed(place)) == 1


DRIVER = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
from stockade.cli import main
sys.exit(main(sys.argv[2:]))
"""


def test_no_git_on_the_host_runs_what_a_session_planted(place: Place) -> None:
    """Real repositories of every kind; with the person's word (`--protected`) it does run, which shows that these plants are real."""
    overlay_works(place.root / "probe")
    mark = place.root / "mark"
    for name in (".", "nested", "second", "pointed"):
        repository(place.work / name) if name != "." else git(place.work, "init", "-q")
    (place.work / "pointed/.git").rename(place.work / "g")
    (place.work / "pointed/.git").write_text("gitdir: ../g\n")
    plants = f"""
        set -e
        git init -q new; git -C new config core.fsmonitor "touch {mark}; false"; cp -r new/.git evil; cp -r new/.git pointed/own
        git -C nested config core.fsmonitor "touch {mark}; false"; echo x > nested/.git/hooks/pre-commit
        git -C second config core.fsmonitor "touch {mark}; false"
        echo ../../evil > nested/.git/commondir; rm pointed/.git; echo "gitdir: ../evil" > pointed/.git; mkdir x y; ln -s ../evil x/.git; echo "gitdir: ../evil" > y/.git
        git -C nested {WHO} -c core.fsmonitor= commit -q --allow-empty -m inside || true
    """
    ended = place.run("/bin/sh", "-c", plants, policy=policy("review"))
    assert ended.returncode == 0, ended

    def look() -> bool:
        mark.unlink(missing_ok=True)
        for where in (".", "new", "nested", "second", "pointed", "pointed/own", "x", "y", "evil", "g"):
            if (place.work / where).is_dir():
                git(place.work / where, "status", check=False)
        return mark.exists()

    for words in (["evil", "x", "y"], ["pointed"], []):
        stockade(place, "changes", "apply", *words)
        assert not look(), words
    assert (place.work / "new/.git/HEAD").exists() and git(place.work / "new", "status").startswith("On branch")
    stockade(place, "changes", "apply", "--protected")
    assert look()
