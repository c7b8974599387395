"""The workspace besides git: protected files, the report, hard links, rw-no-delete (mission rows B5, B6, B7, B8, B10, M20)."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stockade.cli import aftermath
from stockade.core.errors import CannotEnforce, StockadeError
from stockade.core.values import Enforced, Workspace
from stockade.record import lines
from stockade.walls import workspace
from stockade.walls.workspace import beneath, cleanup, defuse, merge, names, scan
from stockade.walls.workspace.beneath import Directory
from stockade.walls.workspace.report import Rows
from stockade.walls.workspace.report import parts as parts_of
from walls.workspace_box import Session, git, overlay_works, repository

pytestmark = pytest.mark.wall


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    overlay_works(tmp_path / "probe")
    return tmp_path / "state"


def tree(top: Path) -> dict[str, str]:
    """Every path below `top` with its type and content."""
    return {
        str(path.relative_to(top)): os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else "/"
        for path in sorted(top.rglob("*"))
    }


def test_protected_files_cannot_be_written_replaced_or_moved_away(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    (top / ".vscode").mkdir(parents=True)
    (top / ".husky").mkdir()
    for name in (".envrc", ".vscode/tasks.json", ".husky/pre-commit"):
        (top / name).write_text("mine")
    before = tree(top)
    session = Session(top, state)
    for script, complaint in (
        ("echo x > .envrc", "Read-only"),
        ("echo x > y; mv -f y .envrc", "busy"),
        ("rm -f .envrc", "busy"),
        ("mv .vscode v", "busy"),
        ("echo x > .vscode/tasks.json", "Read-only"),
        ("echo x > .husky/new", "Read-only"),
        ("mv .husky h", "busy"),
    ):
        assert complaint in session.inside(script, check=False), script
    (top / "y").unlink()
    assert tree(top) == before


@pytest.mark.parametrize("asked", [(), ("held.txt", "folder/*")], ids=["protected", "asked"])
def test_what_is_held_has_no_other_name_to_be_written_by(asked: tuple[str, ...], tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    (top / "folder").mkdir(parents=True)
    held = [top / name for name in (("held.txt", "folder/x") if asked else (".envrc",))]
    for number, path in enumerate(held):
        path.write_text("mine")
        os.link(path, top / f"other{number}")
    os.link(held[0], tmp_path / "control")
    (tmp_path / "control").write_text("evil")
    assert held[0].read_text() == "evil"  # so it is, by the other name
    held[0].write_text("mine")
    view = workspace.prepare(Workspace(), str(top), str(top), str(state), "s0", asked)
    for number, path in enumerate(held):
        (top / f"other{number}").write_text("evil")
        assert path.read_text() == "mine" and path.stat().st_nlink == 1
    assert any(mount.target == str(held[0]) and mount.mode == "ro" for mount in view.mounts) or f"ro:{held[0]}" in view.held


def test_a_protected_file_that_was_made_with_two_names_has_one_in_the_next_run(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside("mkdir .husky d; echo one > .husky/pre-commit; ln .husky/pre-commit d/x; echo two > d/y; ln d/y d/z")
    session.end()
    report = session.report()
    assert [row["path"] for row in report["links"]] == ["d/x"] and os.path.samefile(top / "d/y", top / "d/z")
    session = Session(top, state, "s2", remember=False)
    session.inside("echo evil > d/x")
    assert (top / ".husky/pre-commit").read_text() == "one\n"


def test_absent_protected_files_leave_nothing_behind_and_are_reported(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside("true")
    assert session.end() == {} and list(top.iterdir()) == []
    session.inside("mkdir .vscode; echo '{}' > .vscode/tasks.json; echo 'export X=1' > .envrc")
    rows = {row["path"]: row for row in session.report()["rows"]}
    assert rows[".envrc"]["risk"] == rows[".vscode/tasks.json"]["risk"] == "high"
    assert "+export X=1" in rows[".envrc"]["diff"]


def test_a_protected_name_that_is_a_link_is_said_to_be_open(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    (tmp_path / "outside").write_text("x")
    (top / ".envrc").symlink_to(tmp_path / "outside")
    session = Session(top, state)
    assert [note.mechanism for note in session.view.notes if note.rule == ".envrc"] == ["reported after the run"]
    assert all(mount.target != str(top / ".envrc") for mount in session.view.mounts)


def test_the_report_names_what_changed_with_a_diff(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w", {"Makefile": "all:\n\techo\n", "conftest.py": "x = 1\n", "package.json": "{}\n", "a.py": "1\n"})
    session = Session(top, state)
    session.inside(
        r"""
        printf 'all:\n\tcurl evil\n' > Makefile; touch conftest.py; rm package.json; echo 2 > a.py
        mkdir -p .github/workflows; echo 'on: push' > .github/workflows/x.yml; echo x > tool; chmod +x tool
        printf '\033]0;evil\007\n' > .envrc; echo y > "$(printf 'new\nline.pth')"
        """
    )
    report = session.report()
    rows = {row["path"]: (row["change"], row["risk"]) for row in report["rows"]}
    assert rows == {
        "Makefile": ("changed", "medium"),
        "package.json": ("removed", "low"),
        ".github/workflows/x.yml": ("written", "medium"),
        "tool": ("written", "low"),
        ".envrc": ("written", "high"),
        "new\\nline.pth": ("written", "high"),
    }
    assert report["complete"] and report["changed"] >= 6
    assert "-\techo".replace("\t", "\\t") in report["rows"][2]["diff"] or any("curl evil" in row["diff"] for row in report["rows"])
    assert "\x1b" not in json.dumps(report, ensure_ascii=False)


ROUNDABOUT = {  # what tools obey, without a file of such a name being written: (script, path of the row)
    "a folder moved into place": ("mv fixtures/.vscode .vscode", ".vscode/tasks.json"),
    "a folder above moved into place": ("mv fixtures/deep pkg", "pkg/a/conftest.py"),
    "a link for a folder": ("mkdir cfg; echo evil > cfg/tasks.json; ln -s cfg .vscode", ".vscode"),
    "what is behind a new link": ("mkdir cfg; echo evil > cfg/tasks.json; ln -s cfg .vscode", "cfg/tasks.json"),
    "what is behind a link that is there": ("echo evil > behind/hooks.json", "behind/hooks.json"),
    "a file behind a link that is there": ("echo evil > rules.txt", "rules.txt"),
    "a link for the workflows": ("mkdir wf; ln -s ../wf .github/workflows", ".github/workflows"),
}


@pytest.mark.parametrize("quick", [False, True], ids=["with a first look", "too quick for one"])
@pytest.mark.parametrize("name", ROUNDABOUT)
def test_roundabout_ways_are_reported_too(name: str, quick: bool, tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    for path in (
        "fixtures/.vscode/tasks.json",
        "fixtures/deep/a/conftest.py",
        "behind/hooks.json",
        ".github/x",
        "src/conftest.py",
        "rules.txt",
    ):
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_text("{}")
    (top / ".cursor").symlink_to("behind")
    (top / "Makefile").symlink_to("rules.txt")
    session = Session(top, state, remember=not quick)
    script, row = ROUNDABOUT[name]
    session.inside(f"echo x > src/new.txt; {script}")
    session.end()
    report = session.report()
    found = {each["path"]: each["change"] for each in report["rows"]}
    assert found.pop(row) == "written"
    # And nothing else but what belongs to it: to add a file to a folder tells of no other file in it.
    assert all(change == "removed" or path.startswith((".vscode", "cfg", "pkg")) for path, change in found.items()), found


@pytest.mark.parametrize(
    ("rel", "judged"),
    [
        (".hg/hgrc", "high"),
        ("a/.pdbrc", "high"),
        (".mvn/jvm.config", "high"),
        ("Cargo.toml", "medium"),
        ("vite.config.ts", "medium"),
        ("src/config.ts", None),
        ("BUILD.md", None),
        ("hg/hgrc", None),
    ],
)
def test_what_is_run_by_itself(rel: str, judged: str | None) -> None:
    found = names.judge(rel)
    assert (found[0] if found else None) == judged


def test_many_rows_hide_none(tmp_path: Path, state: Path) -> None:
    """The ledger shortens what does not fit into a line, so a report comes in parts; and what is beyond the report's own bound is counted."""
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside("for i in $(seq 100 150); do mkdir $i; seq 1000000000000 1000000003000 > $i/.envrc; done; mkdir z; echo evil > z/.envrc")
    session.end()
    report = session.report()
    parts = [json.loads(lines.encode(1, 1.0, part)) for part in parts_of(report)]
    assert len(parts) > 1 and not any("cut" in part for part in parts)
    assert [row for part in parts for row in part.get("rows", [])] == report["rows"] and report["rows"][-1]["path"] == "z/.envrc"
    assert {part["kind"] for part in parts} == {"workspace.report"} and "left_out" not in report
    assert list(parts_of({"kind": "x", "rows": [], "n": 1})) == [{"kind": "x", "rows": [], "n": 1}]
    rows = Rows({})
    for number in range(503):
        rows.add(f"{number}/.envrc", ("high", "x"), b"")
    assert len(rows.plain()) == 500 and rows.left_out == 3
    for number in range(5000):  # what is kept of them meanwhile is bounded, and the worst stays
        rows.add(f"more/{number}/Makefile", ("medium", "x"), b"")
        assert len(rows.rows) <= 2000
    assert {row["risk"] for row in rows.plain()} == {"high"} and rows.left_out == 5003
    told = aftermath.lines([{"kind": "workspace.report", "rows": rows.plain(), "left_out": 3}], colour=False)
    assert told[-1].startswith("3 of them are listed nowhere")


def test_what_was_done_before_the_first_look_is_no_less_reported(tmp_path: Path, state: Path) -> None:
    """The first look comes a moment after the start, and takes what it finds for what was there: but not what the command was quicker with."""
    top = repository(tmp_path / "w", {"Makefile": "all:\n", "conftest.py": "x = 1\n", "kept/a": ""})
    for name in ("objects", "refs", "hooks"):
        (top / "kept" / name).mkdir()
    (top / "kept/hooks/post-checkout").write_text("#!/bin/sh\n")  # old, and harmless as long as the folder is no repository's
    session = Session(top, state, remember=False)
    session.inside("echo evil >> Makefile; echo evil > .envrc; mkdir moved; echo ref: refs/heads/main > kept/HEAD; mv kept moved/.git")
    session.look()
    session.inside("echo evil > package.json")
    report = session.report()
    assert {(row["path"], row["change"]) for row in report["rows"]} == {
        ("Makefile", "written"),
        (".envrc", "written"),
        ("package.json", "written"),
    }
    assert [row["path"] for row in report["held"]] == ["moved/.git/hooks"]
    assert report["complete"] and "+evil" in report["rows"][0]["diff"]


def test_a_file_that_changes_while_it_is_looked_at_is_reported(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = repository(tmp_path / "w", {"Makefile": "all:\n"})
    session = Session(top, state, remember=False)
    really = Directory.read

    def late(here: Directory, name: str, limit: int) -> bytes | None:
        if name == "Makefile":
            (top / name).write_text("evil\n")
        return really(here, name, limit)

    with monkeypatch.context() as patched:
        patched.setattr(Directory, "read", late)
        session.look()
    assert [row["path"] for row in session.report()["rows"]] == ["Makefile"]


def hard_link(tmp_path: Path) -> tuple[Path, Path]:
    top, outside = tmp_path / "w", tmp_path / "outside"
    (top / "d").mkdir(parents=True)
    outside.write_text("theirs")
    outside.chmod(0o640)
    os.setxattr(outside, "user.kept", b"yes")
    os.utime(outside, (1_000_000_000, 1_000_000_000))
    os.link(outside, top / "d" / "linked")
    (top / "one").write_text("both inside")
    os.link(top / "one", top / "two")
    return top, outside


def test_control_a_hard_link_lets_a_write_through(tmp_path: Path) -> None:
    top, outside = hard_link(tmp_path)
    (top / "d" / "linked").write_text("changed")
    assert outside.read_text() == "changed"


@pytest.mark.parametrize("when", ["before", "behind"])
def test_the_first_run_breaks_a_hard_link_to_a_file_outside(when: str, tmp_path: Path, state: Path) -> None:
    top, outside = hard_link(tmp_path)
    session = Session(top, state, policy=Workspace(scan="before" if when == "before" else "behind"))
    assert Enforced("hard links", "broken before the start", "1 led outside") in session.view.notes
    session.inside("echo changed > d/linked; echo x >> one")
    assert outside.read_text() == "theirs"
    assert (top / "two").read_text() == "both insidex\n"  # both ends inside: no escape, and still one file
    assert session.report()["links"] == []


def test_a_later_run_notices_a_new_link_in_the_top_folder_before_it_starts(tmp_path: Path, state: Path) -> None:
    top, outside = hard_link(tmp_path)
    Session(top, state, "s1")
    os.link(outside, top / "again")
    session = Session(top, state, "s2")
    session.inside("echo changed > again")
    assert outside.read_text() == "theirs"


def test_a_later_run_breaks_a_new_link_below_as_soon_as_the_scan_sees_it(tmp_path: Path, state: Path) -> None:
    top, outside = hard_link(tmp_path)
    Session(top, state, "s1")
    os.link(outside, top / "d" / "again")
    session = Session(top, state, "s2")
    rows = scan.break_links(str(top), session.before, time.time())
    assert [(row["path"], row["broken"], row["written"]) for row in rows] == [("d/again", True, False)]
    session.inside("echo changed > d/again")
    assert outside.read_text() == "theirs"


def test_a_link_that_cannot_be_broken_stops_the_start(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top, _ = hard_link(tmp_path)
    monkeypatch.setattr(beneath, "COPY_AT_MOST", 3)
    with pytest.raises(CannotEnforce) as caught:
        Session(top, state)
    assert caught.value.code == "workspace.hard-link" and "d/linked" in caught.value.message


def test_the_copy_keeps_mode_times_and_attributes(tmp_path: Path) -> None:
    top, outside = hard_link(tmp_path)
    with Directory.top(f"{top}/d") as here:
        assert beneath.break_link(here, "linked")
        assert not beneath.break_link(here, "linked")
    copy, original = (top / "d/linked").stat(), outside.stat()
    assert copy.st_ino != original.st_ino and copy.st_nlink == 1
    assert (copy.st_mode, copy.st_mtime_ns, copy.st_uid) == (original.st_mode, original.st_mtime_ns, original.st_uid)
    assert os.getxattr(top / "d/linked", "user.kept") == b"yes"
    assert sorted(path.name for path in (top / "d").iterdir()) == ["linked"]


def test_a_link_written_before_it_was_broken_is_said_so(tmp_path: Path, state: Path) -> None:
    top, outside = hard_link(tmp_path)
    Session(top, state, "s1")
    os.link(outside, top / "d" / "again")
    session = Session(top, state, "s2")
    session.inside("echo changed > d/again")
    assert [(row["path"], row["broken"], row["written"]) for row in session.report()["links"]] == [("d/again", True, True)]


def test_a_small_workspace_is_looked_at_at_once_and_a_large_one_is_not(
    tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside("git init -q n; git -C n config core.fsmonitor x; echo x > .envrc")
    session.end()
    report = session.view.look(0.1)
    assert report and report["held"] and report["rows"] and not report["baseline"]
    monkeypatch.setattr(workspace, "SMALL", -1)
    assert session.view.look(0.1) is None


def test_no_link_is_followed_while_breaking_and_defusing(tmp_path: Path, state: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "hooks").mkdir(parents=True)
    (outside / "hooks" / "x").write_text("theirs")
    (outside / "config").write_text("[core]\n\tfsmonitor = x\n")
    for name in ("objects", "refs"):
        (outside / name).mkdir()
    (outside / "HEAD").write_text("ref: refs/heads/main\n")
    before = tree(outside)
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside(
        f"""
        ln -s {outside} whole
        mkdir a; ln -s {outside} a/.git
        git init -q b; rm -rf b/.git/config b/.git/hooks; ln -s {outside}/config b/.git/config; ln -s {outside}/hooks b/.git/hooks
        git init -q c; rm -rf c/.git/objects/info; ln -s {outside} c/.git/objects/info
        """
    )
    report = session.report()
    assert tree(outside) == before
    assert {row["path"] for row in report["held"]} == {"a/.git", "b/.git/config", "b/.git/hooks"}
    assert not report["not_defused"]
    with Directory.top(str(top)) as here, pytest.raises(OSError):
        here.walk_to("whole")
    with Directory.top(f"{top}/b/.git") as here, pytest.raises(OSError):
        beneath.break_link(here, "config.stockade-held")
    assert tree(outside) == before


def test_what_is_held_can_be_released(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside("git init -q n; git -C n config core.editor vim; echo x > n/.git/hooks/pre-commit")
    assert {row["path"] for row in session.report()["held"]} == {"n/.git/config", "n/.git/hooks"}
    for name in ("config", "hooks"):
        assert defuse.release(str(top), f"n/.git/{name}.stockade-held") == name
    assert git(top / "n", "config", "core.editor").strip() == "vim"
    assert (top / "n/.git/hooks/pre-commit").exists()
    with pytest.raises(ValueError, match="held back"):
        defuse.release(str(top), "n/.git/HEAD")


def test_a_missing_workspace_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StockadeError) as caught:
        workspace.prepare(Workspace(), str(tmp_path / "none"), "/w", str(tmp_path), "s")
    assert caught.value.code == "workspace.missing"


NO_DELETE = {
    "unlink": "rm a.txt",
    "rename": "mv a.txt b.txt",
    "rename over": "echo new > n; mv n a.txt",
    "truncate": ": > a.txt",
    "overwrite in place": "printf X | dd of=a.txt conv=notrunc status=none",
    "punch a hole": "fallocate -p -o 0 -l 3 a.txt",
    "rmdir": "rm -r d",
    "folder replaced by a file": "rm -r d; echo x > d",
    "file replaced by a folder": "rm a.txt; mkdir a.txt; echo x > a.txt/y",
    "link replaced": "ln -sf /etc/passwd s",
    "folder moved": "mv d e",
    "map and write": 'python3 -c \'import mmap; f = open("a.txt", "r+b"); mmap.mmap(f.fileno(), 0)[0:1] = b"X"\'',
}


@pytest.mark.parametrize("name", NO_DELETE)
def test_rw_no_delete_loses_nothing_that_existed(name: str, tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    (top / "d" / "sub").mkdir(parents=True)
    (top / "a.txt").write_text("first version")
    (top / "d" / "sub" / "f").write_text("deep")
    (top / "s").symlink_to("a.txt")
    before = tree(top)
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside(NO_DELETE[name])
    assert tree(top) == before  # nothing is touched during the run
    event = session.end()["workspace.merge"]
    after, kept = tree(top), tree(Path(event["kept_in"]))
    for path, content in before.items():
        assert content in (after.get(path), kept.get(path)), path
    again = merge.merge(session.view.facts)
    assert tree(top) == after and tree(Path(event["kept_in"])) == kept, again


def test_rw_no_delete_brings_new_and_changed_files(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w", {"a.txt": "one\n", "run.sh": "x\n"})
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside("echo two >> a.txt; mkdir -p n/m; echo x > n/m/f; ln -s f n/m/l; chmod +x run.sh; git add -A; git commit -qm second")
    events = session.end()
    assert events["workspace.merge"]["failed"] == []
    assert (top / "a.txt").read_text() == "one\ntwo\n" and (top / "n/m/f").read_text() == "x\n" and os.readlink(top / "n/m/l") == "f"
    assert (top / "run.sh").stat().st_mode & stat.S_IXUSR
    assert git(top, "log", "--format=%s").split() == ["second", "first"]
    assert git(top, "status", "--porcelain") == ""


def test_rw_no_delete_names_what_a_folder_that_was_made_anew_lacks(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    (top / "d/sub").mkdir(parents=True)
    for name in ("d/x", "d/sub/y", "d/same"):
        (top / name).write_text("x")
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside("rm -r d; mkdir -p d/sub; echo x > d/new; printf x > d/same")
    event = session.end()["workspace.merge"]
    assert {row["path"]: row["change"] for row in event["rows"]} == {"d/x": "not deleted", "d/sub/y": "not deleted", "d/new": "created"}
    assert tree(top) == {"d": "/", "d/sub": "/", "d/sub/y": "x", "d/x": "x", "d/new": "x\n", "d/same": "x"}


def test_rw_no_delete_holds_back_what_git_would_execute(tmp_path: Path, state: Path) -> None:
    top, mark = repository(tmp_path / "w"), tmp_path / "mark"
    repository(top / "nested")
    repository(top / "pointed")
    (top / "pointed/.git").rename(top / "g")
    (top / "pointed/.git").write_text("gitdir: ../g\n")
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside(
        f"""
        git init -q new; git -C new config core.fsmonitor "touch {mark}; false"
        git -C nested config core.fsmonitor "touch {mark}; false"; echo x > nested/.git/hooks/pre-commit; cp -r new/.git evil
        echo ../../evil > nested/.git/commondir; echo "gitdir: ../evil" > pointed/.git; mkdir x; ln -s ../evil x/.git
        """
    )
    mark.unlink(missing_ok=True)
    event = session.end()["workspace.merge"]
    for where in (".", "new", "nested", "pointed", "x", "evil"):
        git(top / where, "status", check=False)
    assert not mark.exists()
    assert len(event["held"]) >= 5
    assert [row["path"] for row in event["failed"]] == ["x/.git"]


def test_rw_no_delete_protects_the_same_files(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    (top / ".envrc").write_text("mine")
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside("echo evil > .envrc")
    event = session.end()["workspace.merge"]
    assert (top / ".envrc").read_text() == "mine"
    assert [row["path"] for row in event["failed"]] == [".envrc"]


def test_a_sessions_directory_can_be_removed(tmp_path: Path, state: Path) -> None:
    top, outside = repository(tmp_path / "w"), tmp_path / "outside"
    outside.mkdir()
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside(f"mkdir x; ln -s {outside} x/l; chmod 000 x; rm a.txt; echo y > .git/y")
    cleanup.discard(str(session.directory))
    assert not session.directory.exists() and outside.exists()


def deep(levels: int) -> str:
    return f"for i in $(seq {levels}); do mkdir a; cd a; done; echo x > x"


def test_folders_deeper_than_any_stack_are_removed_or_stay_in_the_layer(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside(f"echo new > new.txt; {deep(2000)}")
    event = session.end()["workspace.merge"]
    assert (top / "new.txt").read_text() == "new\n"
    assert [row["error"] for row in event["failed"]] == ["nested too deep"] and event["layer"]
    assert not [name for name in os.listdir(top) if name.startswith(".stockade")]
    cleanup.discard(str(session.directory))
    assert not session.directory.exists()


def test_rw_no_delete_holds_what_makes_a_repository_of_a_folder_before_it_is_one(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    (top / "n").mkdir(parents=True)
    (top / "n/there").write_text("x")
    session = Session(top, state, policy=Workspace(mode="rw-no-delete"))
    session.inside(
        "git init -q --bare b; git -C b config core.fsmonitor evil; rm -r b/hooks; mkdir b/hooks; echo x > b/hooks/post-commit; cp -r b/* n; rm -r b"
    )
    event = session.end()["workspace.merge"]
    assert {row["path"] for row in event["held"]} == {"n/config", "n/hooks"}
    assert "fsmonitor" not in (top / "n/config").read_text() and not (top / "n/hooks").exists()


def test_no_cost_grows_with_the_workspace(tmp_path: Path, state: Path) -> None:
    """Mission row B8: the same calls at start and end however many files there are, and one lstat for each repository that is held."""
    small, large = repository(tmp_path / "small"), repository(tmp_path / "large")
    for top, repositories in ((small, 10), (large, 50)):
        for number in range(repositories):
            (top / f"d{number}/.git").mkdir(parents=True)
            (top / f"d{number}/.git/HEAD").write_text("ref: refs/heads/main\n")
    for number in range(50):
        for name in range(40):
            (large / f"d{number}/{name}").write_text("")

    def calls(top: Path) -> tuple[int, int]:
        script = (
            "import os, sys; from stockade.walls import workspace; from stockade.core.values import Workspace; "
            "view = workspace.prepare(Workspace(), sys.argv[1], sys.argv[1], sys.argv[2], 's'); view.started(1.0); "
            "count = looks = 0; lstat = os.lstat\n"
            "def hook(event, args):\n global count\n count += event.startswith(('os.', 'open'))\n"
            "def look(path, **kw):\n global looks\n looks += 1\n return lstat(path, **kw)\n"
            "sys.addaudithook(hook); view.finish(None); os.lstat = look\n"
            "os.mkdir(sys.argv[2] + '/again'); workspace.prepare(Workspace(), sys.argv[1], sys.argv[1], sys.argv[2] + '/again', 's')\n"
            "print(count, looks)"
        )
        directory = state / top.name
        directory.mkdir(parents=True)
        done = subprocess.run([sys.executable, "-c", script, str(top), str(directory)], capture_output=True, text=True, check=True)
        count, looks = done.stdout.split()
        return int(count), int(looks)

    (few, looks), (many, more) = calls(small), calls(large)
    assert few == many > 0
    assert more - looks <= 3 * 40  # at a glance, itself, and its folder
