"""What the sandbox's git answers is parsed from any bytes; what is decided about refs follows laws (no process, no namespace)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.walls import git
from stockade.walls.workspace import bringback, gitconfig, hostgit, listing, names, report

OID = "a" * 40
LINES = st.sampled_from(
    [
        f"ref {OID} refs/heads/main",
        f"ref {OID} refs/heads/../../config",
        f"ref {OID} refs/heads/-x",
        "ref zzz refs/heads/x",
        "head refs/heads/main",
        f"head {OID}",
        "head -x",
        f"tree {OID}",
        "tree --help",
        "at worktree /w/x",
        "at branch refs/heads/x",
        "at detached",
        "",
    ]
)


@given(st.one_of(st.binary(max_size=300), st.lists(LINES).map(lambda lines: "\n".join(lines).encode())))
def test_any_answer_is_parsed_and_only_well_formed_values_come_out(data: bytes) -> None:
    found = listing.parse(data)
    assert all(hostgit.is_ref(ref) and hostgit.is_oid(oid) for ref, oid in found.refs.items())
    assert not found.head or hostgit.is_oid(found.head) or found.head.startswith("refs/heads/")
    assert not found.tree or hostgit.is_oid(found.tree)
    assert all(hostgit.is_ref(ref) for _, ref in found.worktrees)
    assert all(text.isprintable() for text in found.refused)


@given(st.text(st.sampled_from("ab/.-~^:?*[\\ @{\x7f\x1bé\n"), max_size=12))
def test_every_ref_name_that_we_accept_git_accepts(rest: str) -> None:
    name = f"refs/heads/{rest}"
    if hostgit.is_ref(name):
        assert subprocess.run(["git", "check-ref-format", name]).returncode == 0


@pytest.mark.parametrize("name", ["refs/heads/main", "refs/heads/feature/x.y", "refs/tags/v1.0", "refs/stash", "refs/heads/größe"])
def test_ordinary_ref_names_are_accepted(name: str) -> None:
    assert hostgit.is_ref(name)


@pytest.mark.parametrize(
    "name",
    [
        "refs/heads/../../config",
        "refs/heads/-x",
        "refs/heads/HEAD",
        "refs/heads/x.lock",
        "refs/heads/x/",
        "HEAD",
        "refs/heads/a..b",
        "refs/heads/a@{b",
    ]
    + ["refs/heads/\x1b[2J", "refs/heads/a b", "refs/heads/.a", "-refs/heads/a", "refs/heads/\u202ea", "refs/heads/" + "a" * 300, ""],
)
def test_others_are_not(name: str) -> None:
    assert not hostgit.is_ref(name)


VALUE = st.sampled_from(["", "1" * 40, "2" * 40, "3" * 40])


@given(VALUE, VALUE, VALUE.filter(bool), st.booleans(), st.booleans())
def test_laws_of_moving_a_branch(base: str, current: str, new: str, known: bool, forward: bool) -> None:
    what = bringback.decide(base, current, new, known=known, forward=forward and bool(current))
    assert (what == "create") <= (not current)
    assert (what == "update") <= (known and current == base)  # a host's commit is never overwritten unseen
    assert (what == "forward") <= (forward and bool(current))
    if new == current:
        assert what == "same"
    if known and new == base:
        assert what == "same"  # the sandbox did nothing
    if not known and current and not forward and new != current:
        assert what == "aside"


KEYS = st.tuples(
    st.sampled_from(["core", "remote", "branch", "include", "filter", "alias", "url", "user", "submodule", "credential", "includeif"]),
    st.one_of(st.none(), st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\n"), min_size=1, max_size=8)),
    st.sampled_from(
        ["url", "fetch", "name", "fsmonitor", "sshcommand", "path", "clean", "update", "filemode", "hookspath", "worktree", "remote"]
    ),
)


@given(KEYS, st.one_of(st.none(), st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0\r"), max_size=20)))
def test_what_is_kept_of_a_config_reads_back_the_same_and_runs_nothing(key: tuple[str, str | None, str], value: str | None) -> None:
    section, subsection, name = key
    full = f"{section}.{subsection}.{name}" if subsection is not None else f"{section}.{name}"
    kept = gitconfig.safe((full, value))
    if kept is None:
        return
    assert section not in ("include", "includeif", "filter", "alias", "url", "credential")
    assert name not in ("fsmonitor", "sshcommand", "hookspath", "worktree", "clean")
    assert not (kept[1] or "").startswith("!")
    assert gitconfig.entries(gitconfig.write([kept]).encode()) == [kept]


@pytest.mark.parametrize(
    ("address", "bare"),
    [
        ("https://user:token@example.test/x.git", "https://example.test/x.git"),
        ("https://token@example.test/x.git?private_token=1#f", "https://example.test/x.git"),
        ("ssh://git:pass@example.test:22/x", "ssh://git@example.test:22/x"),
        ("git@example.test:x/y.git", "git@example.test:x/y.git"),
        ("../sibling", "../sibling"),
        ("ext::sh -c evil", ""),
        ("-oProxyCommand=evil", ""),
    ],
)
def test_addresses_lose_their_credentials(address: str, bare: str) -> None:
    assert gitconfig.bare_address(address) == bare


@given(st.text())
def test_text_from_inside_cannot_talk_to_a_terminal(text: str) -> None:
    assert report.shown(text).isprintable()


@pytest.mark.parametrize(
    ("path", "risk"),
    [
        (".envrc", "high"),
        ("deep/.vscode/tasks.json", "high"),
        ("Makefile", "medium"),
        ("x/GNUmakefile", "medium"),
        (".github/workflows/ci.yml", "medium"),
        ("a/.claude/settings.json", "high"),
        ("Dockerfile.dev", "medium"),
        ("compose.override.yaml", "medium"),
        ("lib/site.pth", "high"),
        ("x.code-workspace", "high"),
        (".husky/pre-commit", "high"),
        ("src/main.py", None),
        ("docs/makefile.md", None),
    ],
)
def test_names_that_tools_execute(path: str, risk: str | None) -> None:
    found = names.judge(path)
    assert (found[0] if found else None) == risk


@pytest.mark.parametrize("name", ["config", "config.worktree"])
def test_a_config_that_is_a_link_or_a_pipe_is_not_opened_and_the_users_own_may_be_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A repository brings these: a link would show a file outside, and a pipe would keep the start waiting."""
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
        (tmp_path / variable).mkdir()
    (tmp_path / "outside").write_text("[user]\n\tname = Outside\n")
    (tmp_path / "repo").mkdir()
    config = tmp_path / "repo" / name
    config.symlink_to("../outside")
    assert "Outside" in config.read_text() and "Outside" not in git.sanitised(str(tmp_path / "repo"))
    config.unlink()
    os.mkfifo(config)
    assert "Outside" not in git.sanitised(str(tmp_path / "repo"))
    assert gitconfig.entries_of_file(str(config)) == []
    config.unlink()
    config.write_text((tmp_path / "outside").read_text())
    assert "Outside" in git.sanitised(str(tmp_path / "repo"))
    config.unlink()
    (tmp_path / "HOME/.gitconfig").symlink_to("../outside")
    assert "Outside" in git.sanitised(str(tmp_path / "repo"))
