"""Everything inside tries to make the host's next `git status` run a program; the control shows that it would (mission row B1).

Each script plants the same thing twice: in a plain copy of the workspace, where the host's git then creates the marker, and inside a session,
where it never does: not during the run, not after it, not when the report has been made.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stockade.core.errors import CannotEnforce
from stockade.core.values import Workspace
from stockade.walls import git as private
from stockade.walls.workspace import bringback, hold
from walls.workspace_box import IDENTITY, Session, git, overlay_works, refs, repository

pytestmark = pytest.mark.wall

# name: (script with $MARK, folder where the host's `git status` runs)
ATTACKS = {
    "config fsmonitor": ('git config core.fsmonitor "touch $MARK; false"', "."),
    "config rewritten in place": (
        "printf '[core]\\n\\trepositoryformatversion = 0\\n\\tfsmonitor = touch %s; false\\n' $MARK > .git/config",
        ".",
    ),
    "commondir": ('cp -r .git evil; git config -f evil/config core.fsmonitor "touch $MARK; false"; echo ../evil > .git/commondir', "."),
    "include": ('printf "[core]\\n\\tfsmonitor = touch %s; false\\n" $MARK > x.cfg; git config include.path ../x.cfg', "."),
    "worktree config": (
        'git config extensions.worktreeConfig true; printf "[core]\\n\\tfsmonitor = touch %s; false\\n" $MARK > .git/config.worktree',
        ".",
    ),
    "hook": ('printf "#!/bin/sh\\ntouch $MARK\\n" > .git/hooks/post-index-change; chmod +x .git/hooks/post-index-change; touch a.txt', "."),
    "hooks path": (
        'mkdir h; printf "#!/bin/sh\\ntouch $MARK\\n" > h/post-index-change; chmod +x h/*; git config core.hooksPath h; touch a.txt',
        ".",
    ),
    "filter": (
        'git config filter.x.clean "touch $MARK; cat"; mkdir -p .git/info; echo "* filter=x" > .git/info/attributes; touch a.txt',
        ".",
    ),
    "git directory swapped": ('cp -r .git new; mv .git old; mv new .git; git config core.fsmonitor "touch $MARK; false"', "."),
    "new repository": ('git init -q n; git -C n config core.fsmonitor "touch $MARK; false"; touch n/x', "n"),
    "new repository committed as a link": (
        "git init -q n; git -C n commit -q --allow-empty -m n; git add n; git commit -qm link; "
        'git -C n config core.fsmonitor "touch $MARK; false"',
        ".",
    ),
    "git file committed as a link": (
        "git init -q n; git -C n commit -q --allow-empty -m n; git add n; git commit -qm link; mv n/.git gitdir; "
        'echo "gitdir: ../gitdir" > n/.git; git config -f gitdir/config core.fsmonitor "touch $MARK; false"',
        ".",
    ),
    "nested repository": ('git -C nested config core.fsmonitor "touch $MARK; false"', "nested"),
    "nested commondir": (
        'cp -r nested/.git evil; git config -f evil/config core.fsmonitor "touch $MARK; false"; echo ../../evil > nested/.git/commondir',
        "nested",
    ),
    "nested hook": (
        'printf "#!/bin/sh\\ntouch $MARK\\n" > nested/.git/hooks/post-index-change; chmod +x nested/.git/hooks/post-index-change; touch nested/a.txt',
        "nested",
    ),
    "nested hooks moved in with old times": ("rm -rf nested/.git/hooks; mv template nested/.git/hooks; touch nested/a.txt", "nested"),
    "nested git directory moved in with old times": ("rm -rf nested/.git; mv prepared nested/.git", "nested"),
    "nested link": ('mv nested/.git g; ln -s ../g nested/.git; git config -f g/config core.fsmonitor "touch $MARK; false"', "nested"),
    "bare repository": (
        'git init -q --bare b; git -C b config core.bare false; git -C b config core.worktree .; git -C b config core.fsmonitor "touch $MARK; false"',
        "b",
    ),
    "working tree of what is no repository": (
        "mkdir -p evil/objects evil/refs foo/worktrees/x n; printf '[core]\\n\\trepositoryformatversion = 0\\n\\tfsmonitor = touch %s; false\\n' $MARK > evil/config; "
        "echo 'ref: refs/heads/main' > foo/worktrees/x/HEAD; echo ../../../evil > foo/worktrees/x/commondir; echo 'gitdir: ../foo/worktrees/x' > n/.git",
        "n",
    ),
    "names under which it would be held are taken": (
        'git init -q n; git -C n config core.fsmonitor "touch $MARK; false"; cd n/.git; touch config.stockade-held; '
        "for i in $(seq 1 1001); do touch config.stockade-held.$i; done",
        "n",
    ),
    "closed to writing": ('git init -q n; git -C n config core.fsmonitor "touch $MARK; false"; touch n/x; chmod 555 n/.git', "n"),
}


def workspace_of(path: Path, mark: Path) -> Path:
    """A repository with a nested one, and two folders that are harmless where they lie but not where an attacker moves them."""
    top = repository(path, {"a.txt": "one\n", ".gitignore": "nested\ntemplate\nprepared\n"})
    repository(top / "nested")
    (top / "template").mkdir()
    hook = top / "template" / "post-index-change"
    hook.write_text(f"#!/bin/sh\ntouch {mark}\n")
    hook.chmod(0o755)
    shutil.copytree(top / "nested" / ".git", top / "prepared")
    git(top, "config", "-f", "prepared/config", "core.fsmonitor", f"touch {mark}; false")
    return top


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    overlay_works(tmp_path / "probe")
    return tmp_path / "state"


@pytest.mark.parametrize("name", ATTACKS)
def test_control_the_attack_works_on_an_unprotected_workspace(name: str, tmp_path: Path) -> None:
    script, where = ATTACKS[name]
    mark = tmp_path / "mark"
    top = workspace_of(tmp_path / "w", mark)
    subprocess.run(["sh", "-ec", script], cwd=top, env={**IDENTITY, "MARK": str(mark)}, check=True, capture_output=True)
    mark.unlink(missing_ok=True)  # the script's own git may have tripped it
    git(top / where, "status", check=False)
    assert mark.exists()


@pytest.mark.parametrize("name", ATTACKS)
def test_the_host_runs_nothing(name: str, tmp_path: Path, state: Path) -> None:
    script, where = ATTACKS[name]
    mark = tmp_path / "mark"
    top = workspace_of(tmp_path / "w", mark)
    session = Session(top, state)
    session.inside(f"export MARK={mark}; {script}", check=False)
    mark.unlink(missing_ok=True)
    existed = where in (".", "nested")
    for folder in {".", where} if existed else {"."}:  # a shell prompt during the run
        git(top / folder, "status", check=False)
    assert not mark.exists()
    session.end()
    git(top, "status", check=False)
    assert not mark.exists()
    report = session.report()
    git(top, "status", check=False)
    git(top / where, "status", check=False)
    git(top / where, "log", check=False)
    assert not mark.exists()
    if not existed:
        assert report["held"] and not report["not_defused"]


IN_NESTED = [name for name, (_, where) in ATTACKS.items() if where == "nested"]


@pytest.mark.parametrize("name", IN_NESTED)
@pytest.mark.parametrize("known", ["first run", "cloned since", "deep and known"])
def test_one_of_many_nested_repositories_runs_nothing_either(name: str, known: str, tmp_path: Path, state: Path) -> None:
    mark = tmp_path / "mark"
    top = workspace_of(tmp_path / "w", mark)
    for number in range(hold.LAYERS):
        repository(top / f"other{number}")
    where = "nested"
    script = ATTACKS[name][0]
    if known == "deep and known":
        where = "deep/er/nested"
        (top / "deep/er").mkdir(parents=True)
        (top / "nested").rename(top / where)
        script = f"cd deep/er; cp -r ../../prepared ../../template .; {script}"
    if known == "cloned since":
        (top / "nested").rename(tmp_path / "later")
    if known != "first run":
        Session(top, state, "s0")
    if known == "cloned since":
        (tmp_path / "later").rename(top / "nested")
    session = Session(top, state)
    assert f"ro:{top / where}/.git" in session.view.held
    before = {path: path.read_bytes() for path in (top / where / ".git").rglob("*") if path.is_file()}
    session.inside(f"export MARK={mark}; {script}", check=False)
    mark.unlink(missing_ok=True)
    assert {path: path.read_bytes() for path in (top / where / ".git").rglob("*") if path.is_file()} == before
    git(top / where, "status", check=False)
    assert not mark.exists()
    session.end()
    session.report()
    git(top / where, "status", check=False)
    assert not mark.exists()


def test_the_folders_on_the_way_cannot_be_moved_away_and_work_goes_on(tmp_path: Path, state: Path) -> None:
    top = workspace_of(tmp_path / "w", tmp_path / "mark")
    (top / "deep" / "er").mkdir(parents=True)
    (top / "nested").rename(top / "deep" / "er" / "nested")
    session = Session(top, state)
    for step in ("deep deep2", "deep/er deep/other", "deep/er/nested deep/er/n"):
        assert "busy" in session.inside(f"mv {step}", check=False)
    session.inside("rm -rf deep 2>/dev/null || true; echo fine > deep/er/nested/file; mkdir deep/new; mv deep/er/nested/file deep/new/file")
    assert (top / "deep/new/file").read_text() == "fine\n" and git(top / "deep/er/nested", "log", "--format=%s").split() == ["first"]


def test_a_repository_made_where_there_was_none(tmp_path: Path, state: Path) -> None:
    top, mark = tmp_path / "w", tmp_path / "mark"
    top.mkdir()
    session = Session(top, state)
    session.inside(f'git init -q; git commit -q --allow-empty -m x; git config core.fsmonitor "touch {mark}; false"')
    held = session.end()["workspace.report"]["held"]
    assert [row["path"] for row in held] == [".git/config"]
    git(top, "status")
    assert not mark.exists()
    assert git(top, "log", "--format=%s").split() == ["x"]


def test_benign_a_plain_new_repository_is_left_alone(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside("git init -q; git config user.name agent; git commit -q --allow-empty -m x; git init -q n")
    assert session.end() == {}
    assert session.report()["held"] == []
    assert git(top, "log", "--format=%s").split() == ["x"]


def test_benign_commits_in_a_nested_repository_with_hooks_of_its_own(tmp_path: Path, state: Path) -> None:
    top = workspace_of(tmp_path / "w", tmp_path / "mark")
    hook = top / "nested" / ".git" / "hooks" / "post-commit"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    session = Session(top, state)
    session.inside("cd nested; echo x > x; git add x; git commit -qm inside")
    session.end()
    assert session.report()["held"] == []
    assert git(top / "nested", "log", "--format=%s").split() == ["inside", "first"]


MAKE = {"top": "git init -q .; mkdir d; ln .git/config d/cfg", "nested": "git init -q n; mkdir d; ln n/.git/config d/cfg"}
REWRITE = "printf '[core]\\n\\trepositoryformatversion = 0\\n\\tfsmonitor = touch %s; false\\n' $MARK > d/cfg"


@pytest.mark.parametrize("where", MAKE)
def test_control_a_second_name_of_its_config_is_enough(where: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "w").mkdir()
    for script in (MAKE[where], REWRITE):
        subprocess.run(["sh", "-ec", script], cwd=tmp_path / "w", env={**IDENTITY, "MARK": str(mark)}, check=True, capture_output=True)
    git(tmp_path / "w" / ("n" if where == "nested" else "."), "status", check=False)
    assert mark.exists()


@pytest.mark.parametrize(("where", "looked"), [("top", True), ("top", False), ("nested", True)])
def test_a_second_name_of_its_config_is_of_no_use_in_the_next_run(where: str, looked: bool, tmp_path: Path, state: Path) -> None:
    """A repository is held in the run after the one that made it; what has a name outside of it as well would be held by one of its names only."""
    top, mark = tmp_path / "w", tmp_path / "mark"
    top.mkdir()
    first = Session(top, state)
    first.inside(MAKE[where])
    first.end()
    if looked:
        first.report()
    second = Session(top, state, "s2", remember=False)
    second.inside(f"export MARK={mark}; {REWRITE}")
    folder = top / ("n" if where == "nested" else ".")
    git(folder, "status")
    assert not mark.exists() and "fsmonitor" in (top / "d/cfg").read_text()
    second.end()
    second.report()
    git(folder, "status")
    git(folder, "config", "user.name", "me")  # and it is as good as ever
    assert not mark.exists() and "name = me" in (folder / ".git/config").read_text()


def test_what_would_be_executed_once_somebody_makes_a_repository_of_it(tmp_path: Path, state: Path) -> None:
    script = "mkdir -p n/.git/hooks; printf '#!/bin/sh\\ntouch $MARK\\n' > n/.git/hooks/post-commit; chmod +x n/.git/hooks/post-commit"

    def made(top: Path) -> None:
        git(top / "n", "init", "-q")
        git(top / "n", "commit", "-q", "--allow-empty", "-m", "n")

    top, mark, loose = tmp_path / "w", tmp_path / "mark", tmp_path / "loose"
    top.mkdir(), loose.mkdir()
    script = script.replace("$MARK", str(mark))
    subprocess.run(["sh", "-ec", script], cwd=loose, env=IDENTITY, check=True)
    made(loose)
    assert mark.exists()
    mark.unlink()
    session = Session(top, state)
    session.inside(script)
    session.end()
    assert [row["path"] for row in session.report()["held"]] == ["n/.git/hooks"]
    made(top)
    assert not mark.exists()


POINTERS = {"NUL": b"gitdir: x\0y", "long": b"gitdir: ../../outside" + 5000 * b"\n", "out": b"gitdir: ../../outside\n"}


@pytest.mark.parametrize("mode", ["rw", "rw-no-delete"])
@pytest.mark.parametrize("name", POINTERS)
def test_a_pointer_that_leads_out_in_any_spelling(name: str, mode: Any, tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    (top / "n").mkdir(parents=True)
    (top / "m").mkdir()
    session = Session(top, state, policy=Workspace(mode=mode))
    (tmp_path / "pointer").write_bytes(POINTERS[name])
    session.inside(f"cat {tmp_path}/pointer > n/.git; echo 'gitdir: ../real' > m/.git; git init -q --bare real")
    events = session.end()
    if mode == "rw-no-delete":  # before it was there at all
        assert [row["path"] for row in events["workspace.merge"]["held"]] == ["n/.git"]
    else:
        assert [row["path"] for row in session.report()["held"]] == ["n/.git"]
    assert not (top / "n/.git").exists() and (top / "n/.git.stockade-held").read_bytes() == POINTERS[name]
    assert (top / "m/.git").read_text() == "gitdir: ../real\n"


def test_a_pointer_that_holds_a_nul_does_not_stop_the_next_run(tmp_path: Path, state: Path) -> None:
    top = tmp_path / "w"
    top.mkdir()
    session = Session(top, state)
    session.inside("printf 'gitdir: x\\0y' > .git")
    session.end()
    session.report()
    (top / ".git").write_bytes(POINTERS["NUL"])  # in a project that somebody has unpacked
    assert private.find(str(top)) == (None, f".git names {top}/x, which is not a repository of yours")
    Session(top, state, "s2").inside("true")


@pytest.mark.parametrize("form", ["worktree", "commondir", "plain", "submodule"])
def test_a_forged_git_file_makes_no_other_repository_visible(form: str, tmp_path: Path, state: Path) -> None:
    private_one = repository(tmp_path / "private", {"secret.txt": "secret\n"})
    top = tmp_path / "w"
    top.mkdir()
    victim = private_one / ".git"
    if form == "worktree":
        git(private_one, "worktree", "add", "-q", "-b", "x", str(tmp_path / "linked"))
        victim = victim / "worktrees" / "linked"
    elif form == "commondir":
        victim = top / "fake" / "worktrees" / "x"
        victim.mkdir(parents=True)
        (victim / "HEAD").write_text("ref: refs/heads/main\n")
        (victim / "gitdir").write_text(f"{top}/.git\n")
        (victim / "commondir").write_text(f"{private_one}/.git\n")
    elif form == "submodule":
        git(private_one, "config", "core.worktree", str(tmp_path / "other"))
    (top / ".git").write_text(f"gitdir: {victim}\n")
    session = Session(top, state)
    assert session.view.overlays == ()
    assert not any(str(private_one) in mount.source for mount in session.view.mounts)
    assert [note.mechanism for note in session.view.notes if note.rule == "git"] == ["none"]
    assert "Read-only" in session.inside("echo x > .git", check=False)


def test_layouts_that_cannot_be_held_are_refused(tmp_path: Path, state: Path) -> None:
    real = repository(tmp_path / "real")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / ".git").symlink_to(real / ".git")
    bare = tmp_path / "bare"
    git(tmp_path, "init", "-q", "--bare", str(bare))
    (real / ".git" / "commondir").write_text("../elsewhere\n")
    for top, code in ((linked, "workspace.git-symlink"), (bare, "workspace.bare-repository"), (real, "workspace.git-commondir")):
        with pytest.raises(CannotEnforce) as caught:
            private.find(str(top))
        assert caught.value.code == code and caught.value.hint


def test_a_bare_repository_inside_the_workspace_works_and_is_private(tmp_path: Path, state: Path) -> None:
    top, mark = tmp_path / "w", tmp_path / "mark"
    source = repository(tmp_path / "source")
    top.mkdir()
    git(top, "clone", "-q", "--bare", str(source), "a/b/.bare")
    git(top / "a/b/.bare", "config", "core.bare", "false")
    (top / ".git").write_text("gitdir: ./a/b/.bare\n")
    git(top, "reset", "-q", "--hard")
    session = Session(top, state)
    session.inside(f'git config core.fsmonitor "touch {mark}; false"; echo x > x; git add x; git commit -qm x')
    mark.unlink()  # git inside obeys its own config, to its own harm
    assert "busy" in session.inside("mv a a2", check=False)
    git(top, "status")
    session.end()
    session.report()
    git(top, "status")
    assert git(top, "log", "--format=%s").split() == ["x", "first"]
    assert not mark.exists()


def test_objects_that_fail_fsck_do_not_come_in(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside(
        r"""
        blob=$(echo evil | git hash-object -w --stdin)
        tree=$(printf '100644 .git\0' > t; git rev-parse $blob | xxd -r -p >> t; git hash-object -t tree -w --stdin --literally < t)
        git update-ref refs/heads/evil $(git commit-tree -m evil $tree)
        """
    )
    event = session.end()["git.import"]
    assert "fsck" in event["error"] or "hasDotgit" in event["error"] or "Dotgit" in str(event)
    assert refs(event) == {}
    assert git(top, "for-each-ref", "--format=%(refname)").split() == ["refs/heads/main"]


def test_too_large_a_pack_is_refused_and_kept(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bringback, "PACK_AT_MOST", 100_000)
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("head -c 300000 /dev/urandom > big; git add big; git commit -qm big")
    event = session.end()["git.import"]
    assert "more than" in event["error"]
    assert any("is kept in" in note for note in event["notes"])
    assert git(top, "log", "--format=%s").split() == ["first"]


def test_names_that_are_no_ref_names(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    before = (top / ".git" / "config").read_bytes()
    session = Session(top, state)
    session.inside(
        r"""
        oid=$(git rev-parse HEAD)
        for name in -x HEAD .. good.lock good; do echo $oid > ".git/refs/heads/$name" || true; done
        mkdir -p .git/refs/replace; echo $oid > .git/refs/replace/$oid
        """
    )
    event = session.end()["git.import"]
    assert refs(event)["refs/heads/good"] == "created"
    assert git(top, "for-each-ref", "--format=%(refname)").split() == ["refs/heads/good", "refs/heads/main"]
    assert (top / ".git" / "config").read_bytes() == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root can look into everything")
def test_what_a_run_has_closed_is_a_typed_error_or_told(tmp_path: Path, state: Path) -> None:
    for number, closed in enumerate((".git/modules/x", ".git/objects")):
        top = tmp_path / f"w{number}"
        top.mkdir()
        session = Session(top, state, f"s{number}")
        session.inside(f"git init -q .; mkdir -p {closed}; git config core.fsmonitor evil; chmod 000 {closed}")
        event = session.end()["workspace.report"]
        assert "fsmonitor" not in (top / ".git/config").read_text()
        if closed == ".git/objects":
            assert event["not_defused"] == [{"path": ".git", "error": "Permission denied"}]
        else:
            with pytest.raises(CannotEnforce) as caught:
                Session(top, state, f"again{number}")
            assert caught.value.code == "workspace.git-closed"
        (top / closed).chmod(0o755)
        Session(top, state, f"then{number}").inside("git status")


def test_names_that_git_takes_for_something_else_of_the_host(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    for ref in ("refs/remotes/origin/main", "refs/tags/v1", "refs/heads/side"):
        git(top, "update-ref", ref, "HEAD")
    short = git(top, "rev-parse", "--short", "HEAD").strip()
    mine = git(top, "rev-parse", "HEAD")
    session = Session(top, state)
    session.inside(
        "git commit -q --allow-empty -m evil; git branch topic; git branch origin/other; git tag v2; "
        f"for ref in heads/origin/main heads/{short} tags/origin/main tags/main tags/side; do git update-ref refs/$ref HEAD; done"
    )
    done = refs(session.end()["git.import"])
    assert {ref for ref, result in done.items() if result == "kept aside"} == {
        "refs/tags/main",
        "refs/tags/side",
        "refs/heads/origin/main",
        "refs/tags/origin/main",
        f"refs/heads/{short}",
    }
    assert {ref for ref, result in done.items() if result == "created"} == {"refs/tags/v2", "refs/heads/topic", "refs/heads/origin/other"}
    for name in ("side", "origin/main", short):
        assert git(top, "rev-parse", name) == mine, name
    assert git(top, "rev-parse", "main") != mine  # it is the branch, which went on


def test_a_repository_broken_inside_changes_nothing_outside(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside('git commit -q --allow-empty -m x; echo "[broken" > .git/config')
    assert "could not list" in session.end()["git.import"]["error"]
    assert git(top, "log", "--format=%s").split() == ["first"]


def test_a_lying_git_inside_gets_nothing_in(tmp_path: Path, state: Path) -> None:
    top = repository(tmp_path / "w")
    session = Session(top, state)
    session.inside("git commit -q --allow-empty -m x")
    real = session.confined

    def lies(argv: list[str], stdout_fd: int, seconds: float) -> int:
        if "pack-objects" in argv[2]:
            os.write(stdout_fd, b"PACK\0\0\0\2\xff\xff\xff\xff" + b"\0" * 100)
            return 0
        return real(argv, stdout_fd, seconds)

    session.confined = lies  # type: ignore[assignment,method-assign]
    event = session.end()["git.import"]
    assert event["error"] and refs(event) == {}
    assert git(top, "log", "--format=%s").split() == ["first"]


def test_borrowed_objects_are_not_made_visible(tmp_path: Path, state: Path) -> None:
    source = repository(tmp_path / "source")
    top = tmp_path / "w"
    git(tmp_path, "clone", "-q", "--shared", str(source), str(top))
    session = Session(top, state)
    assert [note for note in session.view.notes if note.rule == "git alternates" and str(source) in note.detail]
    assert not any(str(source) in mount.source for mount in session.view.mounts)


def test_scan_before_finds_what_was_cloned_deep_since_the_last_run(tmp_path: Path, state: Path) -> None:
    top = workspace_of(tmp_path / "w", tmp_path / "mark")
    (top / "deep" / "er").mkdir(parents=True)
    Session(top, state, "s0")
    (top / "nested").rename(top / "deep" / "er" / "nested")
    behind = Session(top, state, "s1", remember=False)
    assert all("deep" not in held for held in behind.view.held)
    session = Session(top, state, "s2", policy=Workspace(scan="before", git="ro"))
    assert "busy" in session.inside("mv deep deep2", check=False)
    assert "Read-only" in session.inside("mv deep/er/nested/.git x", check=False)
    assert "Read-only" in session.inside("git -C deep/er/nested config core.fsmonitor x; echo y > deep/er/nested/.git/config", check=False)
    session.inside("echo fine > deep/er/nested/file")


def test_scan_before_refuses_a_git_link_that_cannot_be_held(tmp_path: Path, state: Path) -> None:
    top = workspace_of(tmp_path / "w", tmp_path / "mark")
    (top / "nested" / ".git").rename(top / "moved")
    (top / "nested" / ".git").symlink_to("../moved")
    with pytest.raises(CannotEnforce, match=r"nested/\.git"):
        Session(top, state, policy=Workspace(scan="before"))
    Session(top, state, "s2")


def test_too_many_nested_repositories_stop_the_start(tmp_path: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = workspace_of(tmp_path / "w", tmp_path / "mark")
    monkeypatch.setattr(hold, "AT_MOST", 0)
    with pytest.raises(CannotEnforce, match="too many"):
        Session(top, state)


SUBMODULE = {
    "pointer": 'mv deep/sub/.git x; echo "gitdir: ../../evil/.git" > deep/sub/.git',
    "parent": "mv deep/sub away; mv evil deep/sub",
    "grandparent": "mv deep away; mkdir deep; mv evil deep/sub",
    "config": 'git -C deep/sub config core.fsmonitor "touch $MARK; false"',
}


def submodule(tmp_path: Path, attack: str, mark: Path) -> tuple[Path, str]:
    library = repository(tmp_path / "library")
    top = repository(tmp_path / "w")
    git(top, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(library), "deep/sub")
    git(top, "commit", "-q", "-m", "add")
    return top, 'git clone -q deep/sub evil; git -C evil config core.fsmonitor "touch $MARK; false"; ' + SUBMODULE[attack]


@pytest.mark.parametrize("attack", SUBMODULE)
def test_control_an_attack_through_a_submodule_works(attack: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    top, script = submodule(tmp_path, attack, mark)
    subprocess.run(["sh", "-ec", script], cwd=top, env={**IDENTITY, "MARK": str(mark)}, check=True, capture_output=True)
    mark.unlink(missing_ok=True)
    git(top, "status")
    assert mark.exists()


@pytest.mark.parametrize("attack", SUBMODULE)
def test_a_submodule_is_held_during_the_run(attack: str, tmp_path: Path, state: Path) -> None:
    mark = tmp_path / "mark"
    top, script = submodule(tmp_path, attack, mark)
    session = Session(top, state)
    session.inside(f"export MARK={mark}; {script}", check=False)
    mark.unlink(missing_ok=True)
    git(top, "status")
    session.end()
    git(top, "status")
    session.report()
    git(top, "status")
    assert not mark.exists()


def test_a_repository_further_up_is_not_visible_and_is_named(tmp_path: Path, state: Path) -> None:
    above = repository(tmp_path / "above", {"sub/x": "1"})
    session = Session(above / "sub", state)
    assert session.view.overlays == ()
    assert [note for note in session.view.notes if note.rule == "git" and str(above) in note.detail]
