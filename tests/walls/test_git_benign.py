"""An agent works with git inside; afterwards the host has its work and a clean `git status` (mission rows B1, B10)."""

from __future__ import annotations

from pathlib import Path

import pytest

from stockade.core.values import Workspace
from stockade.walls import workspace
from walls.workspace_box import Session, git, overlay_works, refs, repository

pytestmark = pytest.mark.wall


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    overlay_works(tmp_path / "probe")
    return tmp_path / "state"


def clean(top: Path) -> bool:
    return git(top, "status", "--porcelain") == ""


def test_commit_is_on_the_hosts_branch_and_the_index_follows(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("echo two >> a.txt; echo new > b.txt; git add -A; git commit -qm second")
    assert git(top, "log", "--format=%s").split() == ["first"]  # not before the end
    event = session.end()["git.import"]
    assert "error" not in event
    assert refs(event) == {"refs/heads/main": "forwarded"}
    assert git(top, "log", "--format=%s").split() == ["second", "first"]
    assert clean(top)
    git(top, "fsck", "--strict")


def test_branches_tags_amend_and_rebase(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside(
        """
        git checkout -qb topic; echo t > t.txt; git add -A; git commit -qm topic; git tag -m v1 v1
        git checkout -q main; echo m > m.txt; git add -A; git commit -qm main2
        git commit -q --amend -m amended
        git checkout -q topic; git rebase -q main; git branch old main~1
        """
    )
    event = session.end()["git.import"]
    assert refs(event) == {"refs/heads/main": "forwarded", "refs/heads/topic": "created", "refs/tags/v1": "created"} | {
        "refs/heads/old": "created"
    }
    assert git(top, "log", "--format=%s", "topic").split() == ["topic", "amended", "first"]
    assert git(top, "symbolic-ref", "HEAD").strip() == "refs/heads/topic"  # the files are those of topic
    assert clean(top)


def test_amend_of_the_hosts_own_commit_moves_the_branch_when_it_did_not_move_meanwhile(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    old = git(top, "rev-parse", "main").strip()
    session = Session(top, state)
    session.inside("git commit -q --amend -m rewritten")
    assert refs(session.end()["git.import"]) == {"refs/heads/main": "updated"}
    assert git(top, "log", "--format=%s").split() == ["rewritten"]
    assert git(top, "rev-parse", "main@{1}").strip() == old  # the host's reflog still has it
    assert clean(top)


def test_a_branch_that_moved_on_both_sides_is_kept_aside(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("echo i > inside.txt; git add -A; git commit -qm inside")
    git(top, "commit", "-q", "--allow-empty", "-m", "host")
    event = session.end()["git.import"]
    assert refs(event) == {"refs/heads/main": "kept aside"}
    assert git(top, "log", "--format=%s", "main").split() == ["host", "first"]
    assert git(top, "log", "--format=%s", "refs/stockade/s1/heads/main").split() == ["inside", "first"]


def test_without_a_baseline_only_fast_forwards_move(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    git(top, "branch", "other")
    session = Session(top, state, remember=False)
    session.inside("git commit -q --amend -m rewritten; git branch fresh; git branch -f other")
    # the value of the branch that was checked out is known from the start, the others' is not
    assert refs(session.end()["git.import"]) == {
        "refs/heads/main": "updated",
        "refs/heads/fresh": "created",
        "refs/heads/other": "kept aside",
    }


def test_the_branch_is_known_at_once_when_its_ref_is_packed(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    git(top, "branch", "a/main")
    git(top, "pack-refs", "--all")
    session = Session(top, state, remember=False)
    session.inside("git commit -q --amend -m rewritten")
    assert refs(session.end()["git.import"]) == {"refs/heads/main": "updated"}


def test_commits_in_a_submodule_of_the_workspace(tmp_path: Path, state: Path) -> None:
    library = repository(tmp_path / "library")
    top = repository(tmp_path / "w")
    git(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "deep/sub")
    git(top, "commit", "-q", "-m", "add")
    session = Session(top, state)
    session.inside("cd deep/sub; echo s > s; git add s; git commit -q -m inside; cd ../..; git add deep/sub; git commit -q -m link")
    before = git(top, "status", "--porcelain")
    assert before.split() == ["M", "deep/sub"] or before  # the files are there, the commits not yet
    events = session.view.finish(session.confined)
    assert [event.get("error") for event in events if event["kind"] == "git.import"] == [None, None]
    assert git(top / "deep/sub", "log", "--format=%s").split() == ["inside", "first"]
    assert git(top, "log", "--format=%s").split() == ["link", "add", "first"]
    assert clean(top)
    assert session.report()["held"] == []


def test_a_session_whose_supervisor_died_can_be_finished_later(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("echo x > x; git add x; git commit -qm x")
    again = workspace.resume(str(session.directory))
    assert (again.mounts, again.overlays) == (session.view.mounts, session.view.overlays)
    assert refs(again.finish(session.confined)[0]) == {"refs/heads/main": "forwarded"}
    assert clean(top)


def test_staged_but_not_committed_comes_back_staged(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("echo s > staged.txt; git add staged.txt; echo x >> a.txt")
    session.end()
    assert git(top, "status", "--porcelain").splitlines() == [" M a.txt", "A  staged.txt"]


def test_what_the_host_staged_meanwhile_stays(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("echo s > staged.txt; git add staged.txt")
    (top / "mine.txt").write_text("mine")
    git(top, "add", "mine.txt")
    event = session.end()["git.import"]
    assert any("its index stays" in note for note in event["notes"])
    assert "A  mine.txt" in git(top, "status", "--porcelain")


def test_first_commit_of_an_empty_repository(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    git(top, "init", "-q", "-b", "main")
    session = Session(top, state)
    session.inside("echo a > a; git add a; git commit -qm first")
    assert refs(session.end()["git.import"]) == {"refs/heads/main": "created"}
    assert clean(top)


def test_a_detached_head_follows(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    git(top, "commit", "-q", "--allow-empty", "-m", "second")
    session = Session(top, state)
    session.inside("git checkout -q --detach HEAD~1; echo d > d; git add d; git commit -qm detached")
    session.end()
    assert git(top, "log", "--format=%s").split() == ["detached", "first"]
    assert git(top, "symbolic-ref", "-q", "HEAD", check=False) == ""
    assert clean(top)


def test_a_worktree_added_inside_is_registered(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("git worktree add -q -b side wt; cd wt; echo s > s; git add s; git commit -qm side")
    session.end()
    assert git(top / "wt", "log", "--format=%s").split() == ["side", "first"]
    assert clean(top / "wt")
    assert session.report()["held"] == []


def test_a_workspace_that_is_a_linked_worktree(tmp_path: Path, state: Path) -> None:
    main = repository(tmp_path / "main")
    top = tmp_path / "linked"
    git(main, "worktree", "add", "-q", "-b", "side", str(top))
    session = Session(top, state)
    session.inside("echo s > s; git add s; git commit -qm side; git checkout -qb other")
    assert git(main, "log", "--format=%s", "side").split() == ["first"]
    session.end()
    assert git(top, "log", "--format=%s").split() == ["side", "first"]
    assert git(top, "symbolic-ref", "--short", "HEAD").strip() == "other"
    assert clean(top)
    assert clean(main)


def test_a_workspace_that_is_a_submodule(tmp_path: Path, state: Path) -> None:
    library = repository(tmp_path / "library")
    above = repository(tmp_path / "above")
    git(above, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "sub")
    top = above / "sub"
    session = Session(top, state)
    session.inside("echo s > s; git add s; git commit -qm side")
    session.end()
    assert git(top, "log", "--format=%s").split() == ["side", "first"]
    assert clean(top)


def test_a_branch_checked_out_in_another_worktree_is_not_moved(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    git(top, "worktree", "add", "-q", "-b", "side", str(tmp_path / "elsewhere"))
    session = Session(top, state)
    session.inside("echo x > x; git add x; git commit -qm x; git update-ref refs/heads/side HEAD")
    assert refs(session.end()["git.import"]) == {"refs/heads/main": "forwarded", "refs/heads/side": "kept aside"}
    assert clean(tmp_path / "elsewhere")


def test_a_stash_is_kept_aside_and_can_be_applied(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("echo s >> a.txt; git stash -q")
    assert refs(session.end()["git.import"]) == {"refs/stash": "kept aside"}
    git(top, "stash", "apply", "refs/stockade/s1/stash")
    assert (top / "a.txt").read_text() == "one\ns\n"


def test_a_merge_stopped_inside_leaves_head_and_index(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside(
        """
        git checkout -qb topic; echo t > a.txt; git commit -qam topic
        git checkout -q main; echo m > a.txt; git commit -qam main2
        git merge topic || true
        """
    )
    event = session.end()["git.import"]
    assert refs(event)["refs/heads/topic"] == "created"
    assert any("middle of an operation" in note for note in event["notes"])
    assert git(top, "log", "--format=%s", "main").split() == ["first"]
    assert git(top, "log", "--format=%s", "refs/stockade/s1/heads/main").split() == ["main2", "first"]


def test_deleted_branches_stay_and_are_named(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    git(top, "branch", "keep")
    git(top, "pack-refs", "--all")
    session = Session(top, state)
    session.inside("git branch -D keep")
    assert refs(session.end()["git.import"]) == {"refs/heads/keep": "kept"}
    assert git(top, "rev-parse", "keep") == git(top, "rev-parse", "main")


def test_garbage_collection_inside_costs_the_host_nothing(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("echo x > x; git add x; git commit -qm x; git gc -q --prune=now; git reflog expire --all --expire=now")
    assert refs(session.end()["git.import"]) == {"refs/heads/main": "forwarded"}
    git(top, "fsck", "--strict", "--full")
    assert clean(top)


def test_reading_only_starts_no_process_at_the_end(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("git log -1 >/dev/null; git show HEAD >/dev/null")

    def never(*_: object) -> int:
        raise AssertionError("no process may be started")

    assert session.view.finish(never) == []


def test_what_does_not_come_back_is_named(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("git config user.name agent; echo x > .git/some-tool; echo '*.c diff=x' > .git/info/attributes")
    notes = " ".join(session.end()["git.import"]["notes"])
    assert all(name in notes for name in ("config", "some-tool", "info/attributes"))


def test_hooks_cannot_be_written_and_say_so(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    assert "Read-only file system" in session.inside("echo x > .git/hooks/pre-commit", check=False)


def test_read_only_git_can_be_read_and_not_written(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    git(top, "remote", "add", "origin", "https://user:secret@example.test/x.git")
    session = Session(top, state, policy=Workspace(git="ro"))
    assert session.inside("git log --format=%s").split() == ["first"]
    assert "secret" not in session.inside("cat .git/config")
    assert "Read-only" in session.inside("echo x > y; git add y && git commit -m x", check=False)
    assert session.end() == {}


def test_credentials_of_the_config_are_not_visible(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    git(top, "remote", "add", "origin", "https://user:secret-1@example.test/x.git")
    git(top, "config", "http.extraHeader", "Authorization: secret-2")
    git(top, "config", "credential.helper", "store --file=secret-3")
    (top / ".git" / "logs" / "HEAD").write_text("0 1 a <a> 1 +0 clone: from https://user:secret-4@example.test/x.git\n")
    (top / ".git" / "credentials").write_text("https://user:secret-5@example.test")
    (top / ".git" / "tool").mkdir()
    (top / ".git" / "tool" / "token").write_text("secret-6")
    assert "secret-1" in (top / ".git" / "config").read_text()
    for number, how in enumerate(("private", "ro")):
        session = Session(top, state, name=f"s{number}", policy=Workspace(git=how))  # type: ignore[arg-type]
        assert session.inside("grep -rl secret- .git || true") == ""
        assert session.inside("git remote get-url origin").strip() == "https://example.test/x.git"
        assert session.end() == {}


def test_a_sha256_repository(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    git(top, "init", "-q", "-b", "main", "--object-format=sha256")
    git(top, "commit", "-q", "--allow-empty", "-m", "first")
    session = Session(top, state)
    session.inside("echo a > a; git add a; git commit -qm second; git commit -q --amend -m third")
    assert refs(session.end()["git.import"]) == {"refs/heads/main": "forwarded"}
    assert clean(top)


def test_a_sparse_checkout_stays_sparse(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w", {"in/a": "1", "out/b": "1", "c": "1"})
    git(top, "sparse-checkout", "set", "in")
    session = Session(top, state)
    session.inside("echo 2 > in/a; echo n > in/n; git add in; git commit -qm second; git status --porcelain | wc -l | grep -qx 0")
    assert "error" not in session.end()["git.import"]
    assert clean(top) and not (top / "out").exists()


def test_a_partial_clone(tmp_path: Path, state: Path) -> None:
    source = repository(tmp_path / "source", {"a/big": "1" * 5000, "b": "2"})
    (source / "a" / "big").write_text("changed" * 1000)
    git(source, "commit", "-qam", "second")
    git(source, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--filter=blob:none", f"file://{source}", "w")
    top = tmp_path / "w"
    session = Session(top, state)
    session.inside("echo 3 > b; git add b; git commit -qm third")
    event = session.end()["git.import"]
    assert event.get("error") is None
    assert git(top, "log", "--format=%s").split() == ["third", "second", "first"]
    assert clean(top)


def test_a_shallow_clone(tmp_path: Path, state: Path) -> None:
    source = repository(tmp_path / "source")
    git(source, "commit", "-q", "--allow-empty", "-m", "second")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{source}", "w")
    session = Session(tmp_path / "w", state)
    session.inside("echo 3 > b; git add b; git commit -qm third")
    assert refs(session.end()["git.import"])["refs/heads/main"] == "forwarded"
    assert clean(tmp_path / "w")
