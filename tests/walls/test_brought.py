"""What is read of a project that nobody trusts: each trick fools a reader that opens names as they come, does not fool ours, and its harmless twin is read."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import unavailable
from stockade.core.brought import LARGEST, MOST, MOST_ENTRIES, REFUSED, Entry, decode
from stockade.walls.workspace import names
from stockade.walls.workspace.brought import collect, listed

SECRET = b"the secret outside\n"
POLICY = b"version = 1\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_bytes(SECRET)
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def read(project: Path) -> dict[str, Entry]:
    return {entry.name: entry for entry in decode(collect(str(project)))}


def write(path: Path, content: bytes = POLICY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def git(project: Path, *words: str) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    try:
        subprocess.run(["git", "-C", str(project), *words], check=True, capture_output=True, env=environment)
    except FileNotFoundError:
        unavailable("git", "it is not installed")


def naive(project: Path, name: str) -> bytes:
    """What a reader sees that opens a path as it is written, in the folder or the nearest one above it, whatever case the name has."""
    for folder in (project, *project.parents):
        for found in sorted(folder.iterdir()) if name.count("/") == 0 else [folder / name]:
            if str(found.relative_to(folder)).lower() == name:
                return found.read_bytes()
    return b""


def a_link_out(project: Path) -> None:
    (project / "stockade.toml").symlink_to("../secret")


def an_absolute_link(project: Path) -> None:
    (project / ".mcp.json").symlink_to(project.parent / "secret")


def a_link_within(project: Path) -> None:
    write(project / "elsewhere.json", SECRET)
    (project / ".mcp.json").symlink_to("elsewhere.json")


def a_folder_that_is_a_link(project: Path) -> None:
    write(project.parent / "claude/settings.json", SECRET)
    (project / ".claude").symlink_to("../claude")


def a_link_in_a_folder(project: Path) -> None:
    (project / ".husky").mkdir()
    (project / ".husky/pre-commit").symlink_to("../../secret")


def a_folder_of_hooks_that_is_a_link(project: Path) -> None:
    write(project.parent / "hooks/pre-commit", SECRET)
    (project / ".husky").symlink_to("../hooks")


def a_git_directory_that_is_a_link(project: Path) -> None:
    write(project.parent / "meta/config", SECRET)
    (project / ".git").symlink_to("../meta")


LINKS = [
    (a_link_out, "stockade.toml", "stockade.toml"), (an_absolute_link, ".mcp.json", ".mcp.json"), (a_link_within, ".mcp.json", ".mcp.json"),
    (a_folder_that_is_a_link, ".claude/settings.json", ".claude"), (a_link_in_a_folder, ".husky/pre-commit", ".husky/pre-commit"),
    (a_folder_of_hooks_that_is_a_link, ".husky/pre-commit", ".husky"), (a_git_directory_that_is_a_link, ".git/config", ".git"),
]  # fmt: skip


@pytest.mark.parametrize(("trick", "name", "noted"), LINKS, ids=lambda value: getattr(value, "__name__", ""))
def test_links_are_noted_and_never_followed(project: Path, trick: Callable[[Path], None], name: str, noted: str) -> None:
    trick(project)
    assert naive(project, name) == SECRET
    found = read(project)
    assert found[noted].kind == "l" and found[noted].kind in REFUSED and os.fsdecode(found[noted].content) == os.readlink(project / noted)
    assert SECRET not in collect(str(project)) and set(found) == {noted}
    (project / noted).unlink()
    write(project / name, b"[core]\n\tfsmonitor = x\n" if name == ".git/config" else POLICY)
    assert read(project)[name].kind in "fg"


@pytest.mark.parametrize("name", ["Stockade.toml", "STOCKADE.TOML"])
def test_another_case_is_another_file(project: Path, name: str) -> None:
    write(project / name, SECRET)
    if (project / "stockade.toml").exists():
        pytest.skip("this file system does not tell cases apart, so it is the same file")
    assert naive(project, "stockade.toml") == SECRET
    assert read(project) == {}
    write(project / "stockade.toml")
    assert set(read(project)) == {"stockade.toml"}


@pytest.mark.parametrize(
    "name", ["st\u043eckade.toml", "stockade.toml\u200b", "\ufeffstockade.toml", "stockade\u2024toml", "stockade.toml ", "stockade.toml\n"]
)
def test_a_name_that_only_looks_the_same_is_another_file(project: Path, name: str) -> None:
    write(project / name, SECRET)
    assert read(project) == {}


def test_what_lies_above_or_below_is_not_the_projects(project: Path) -> None:
    write(project.parent / "stockade.toml", SECRET)
    assert naive(project, "stockade.toml") == SECRET
    write(project / "sub/stockade.toml", SECRET)
    write(project / ".stockade/trust", SECRET)
    assert read(project) == {}
    assert set(read(project / "sub")) == {"stockade.toml"}


SPECIAL: list[Callable[[Path], object]] = [
    lambda path: os.mkfifo(path),
    lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make", SPECIAL, ids=["fifo", "socket"])
@pytest.mark.parametrize("name", ["stockade.toml", ".husky/pre-commit", ".git/config", ".git/hooks/post-checkout"])
def test_what_is_no_file_is_not_opened(project: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], object], name: str) -> None:
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(project)
    make(project / name)
    began = time.monotonic()
    found = read(project)
    assert found[name] == Entry(name, "o") and "o" in REFUSED and time.monotonic() - began < 60
    (project / name).unlink()
    write(project / name, b"[core]\n\tfsmonitor = x\n")
    assert read(project)[name].kind in "fg"


@pytest.mark.root
def test_a_device_is_not_opened(project: Path) -> None:
    try:
        os.mknod(project / "stockade.toml", 0o020666, os.makedev(1, 5))  # /dev/zero: whoever reads it never ends
    except PermissionError:
        pytest.skip("no devices may be made here")
    assert read(project)["stockade.toml"].kind == "o"


def test_a_huge_file_is_noted_and_not_read(project: Path) -> None:
    with open(project / ".mcp.json", "wb") as file:
        file.truncate(1 << 40)
    began = time.monotonic()
    assert read(project)[".mcp.json"] == Entry(".mcp.json", "b") and time.monotonic() - began < 60
    write(project / ".mcp.json", b"x" * LARGEST)
    assert read(project)[".mcp.json"].kind == "f"


def test_many_large_files_together_stay_within_bounds(project: Path) -> None:
    for number in range(20):
        write(project / f".husky/{number:02}", b"x" * (LARGEST - 1))
    found = read(project)
    assert len(collect(str(project))) < MOST + 20_000 and {entry.kind for entry in found.values()} == {"f", "b"}


def test_a_folder_with_too_many_files_or_too_deep_is_noted(project: Path) -> None:
    for number in range(MOST_ENTRIES):
        write(project / f".husky/{number}", b"")
    write(project / ".devcontainer/a/b/c/d/e/f", b"")
    found = read(project)
    assert found[".husky"].kind == "m" and found[".devcontainer/a/b/c/d"].kind == "m" and len(found) < MOST_ENTRIES
    for above in (1, 2):  # folders in folders: the bound is for all together
        for number in range(200):
            write(project / f".idea/{above}/{number}", b"")
    assert len(read(project)) <= MOST_ENTRIES


def test_a_file_that_cannot_be_read_is_noted(project: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root can read everything")
    write(project / ".envrc").chmod(0)
    assert read(project)[".envrc"].kind == "e"


def test_every_place_of_the_list_is_read(project: Path) -> None:
    for rel, _ in names.BROUGHT:
        if rel != ".git" and not any(other.startswith(f"{rel}/") for other, _ in names.BROUGHT):
            write(project / rel, b"[core]\n\tfsmonitor = x\n")
    found = read(project)
    assert {rel for rel, _ in names.BROUGHT} - set(found) == {".git"}
    assert {rel for rel, _ in names.PROTECTED} <= set(found) and all(map(listed, found)) and not listed("src/main.py") and not listed(".")
    assert [names.why(rel) for rel in found] == [why for rel, why in names.BROUGHT if rel in found]


def test_the_order_and_the_bytes_are_the_same_every_time(project: Path) -> None:
    for name in (".husky/b", ".husky/a", ".envrc", "stockade.toml"):
        write(project / name)
    (project / os.fsdecode(b".husky/\xff\n")).write_bytes(b"")
    assert collect(str(project)) == collect(str(project))
    assert list(read(project)) == ["stockade.toml", ".envrc", ".husky/a", ".husky/b", ".husky/\udcff\n"]


# ---- git ------------------------------------------------------------------------------------------------------------------------------


def test_daily_work_with_git_changes_nothing(project: Path) -> None:
    git(project, "init", "-q")
    before = collect(str(project))
    assert before == b""
    git(project, "config", "user.name", "A")
    git(project, "config", "user.email", "a@example.test")
    git(project, "commit", "-q", "--allow-empty", "-m", "x")
    git(project, "remote", "add", "origin", "https://git.example.test/a/b")
    git(project, "checkout", "-q", "-b", "topic")
    git(project, "config", "branch.topic.remote", "origin")
    git(project, "config", "branch.topic.vscode-merge-base", "origin/main")
    assert collect(str(project)) == before


SETTINGS = [
    ("core.fsmonitor", "./evil"), ("core.hooksPath", "hooks"), ("core.sshCommand", "./evil"), ("core.attributesFile", "x"), ("include.path", "../evil"),
    ("includeIf.gitdir:/.path", "../evil"), ("filter.x.clean", "./evil"), ("alias.st", "!./evil"), ("credential.helper", "!./evil"), ("diff.external", "./evil"),
    ("remote.origin.uploadpack", "./evil"), ("remote.origin.url", "ext::./evil"), ("core.worktree", "/"), ("submodule.x.update", "!./evil"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), SETTINGS)
def test_a_setting_that_names_a_program_or_another_file_is_shown(project: Path, key: str, value: str) -> None:
    git(project, "init", "-q")
    git(project, "config", "-f", str(project / ".git/config"), key, value)
    entry = read(project)[".git/config"]
    assert entry.kind == "g" and value.encode() in entry.content
    assert read(project)[".git/config"] == entry, "the second time it comes from the cache"
    git(project, "config", "-f", str(project / ".git/config"), "user.name", "B")
    assert read(project)[".git/config"] == entry


def test_a_config_that_git_cannot_read_is_covered_as_it_is(project: Path) -> None:
    write(project / ".git/config", b"[core\nfsmonitor = x\n")
    entry = read(project)[".git/config"]
    assert entry.content.endswith(b"[core\nfsmonitor = x\n")


def test_hooks_attributes_and_pointers_are_covered_and_samples_are_not(project: Path) -> None:
    git(project, "init", "-q")
    for name in (".git/hooks/pre-commit", ".git/info/attributes", ".git/commondir", ".git/config.worktree", ".git/objects/info/alternates"):
        write(project / name, b"[core]\n\tfsmonitor = x\n")
    write(project / ".git/hooks/pre-push.sample")
    assert set(read(project)) == {
        ".git/hooks/pre-commit", ".git/info/attributes", ".git/commondir", ".git/config.worktree", ".git/objects/info/alternates",
    }  # fmt: skip


def test_a_git_file_is_read_as_text_and_where_it_leads_is_not_looked_at(project: Path) -> None:
    write(project.parent / "meta/config", SECRET)
    write(project / ".git", b"gitdir: ../meta\n")
    assert read(project) == {".git": Entry(".git", "f", b"gitdir: ../meta\n")}


def test_a_mode_is_part_of_it(project: Path) -> None:
    write(project / ".husky/pre-commit").chmod(0o644)
    before = collect(str(project))
    (project / ".husky/pre-commit").chmod(0o755)
    assert read(project)[".husky/pre-commit"].kind == "x" and collect(str(project)) != before


def test_what_an_editor_writes_all_the_time_counts_by_being_there(project: Path) -> None:
    write(project / ".idea/workspace.xml", b"1")
    before = collect(str(project))
    write(project / ".idea/workspace.xml", b"2")
    assert collect(str(project)) == before != b""


def test_the_cost_does_not_grow_with_the_project(project: Path) -> None:
    """Counted, not timed: how many calls look at something below the project."""
    write(project / ".claude/settings.json")
    small = _calls(project)
    for number in range(300):
        write(project / f"src/{number}/stockade.toml")
        write(project / f"{number}.txt")
    assert _calls(project) == small


def _calls(project: Path) -> int:
    counted = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal counted
        counted += watching and event in ("open", "os.listdir", "os.scandir")

    watching = True
    sys.addaudithook(count)
    collect(str(project))
    watching = False
    return counted


def test_the_page_names_every_place() -> None:
    page = Path(__file__).parents[2] / "docs/policy.md"
    if not page.exists():
        pytest.skip("only the tests are here, not the pages")
    text = page.read_text()
    assert [rel for rel, _ in names.BROUGHT if f"`{rel}`" not in text and f"`{rel.removeprefix('.git/')}`" not in text] == []
