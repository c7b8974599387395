"""Changing a held file from outside, without a sandbox: what is refused, what a failed disk leaves, and that nothing but the file itself is ever written to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from stockade.core.errors import StockadeError
from stockade.walls.workspace import change

OLD, NEW = b"old\n", b"new content\n"


@pytest.fixture
def top(tmp_path: Path) -> Path:
    top = tmp_path.resolve() / "work"
    (top / "ci/deep").mkdir(parents=True)
    (top / "ci/a.yml").write_bytes(OLD)
    (top / "run").write_bytes(OLD)
    (tmp_path / "outside").write_bytes(OLD)
    return top


def facts(top: Path, *patterns: str) -> dict[str, Any]:
    found = {"top": str(top), "target": "/w", "mode": "rw"}
    change.hold(found, patterns or ("ci/*", "run"))
    return found


def put(
    given: dict[str, Any], rel: str, before: bytes | None = OLD, after: bytes = NEW, receipt: Callable[[], object] = lambda: None
) -> str:
    """What came of it, in a word."""
    aside = f"{given['top']}/../aside"
    try:
        change.put(given, rel, before, after, aside, receipt)
    except change.Refused as error:
        return error.code
    assert not os.path.exists(aside)
    return "written"


def test_what_is_held(top: Path) -> None:
    given = {"top": str(top), "target": "/w", "mode": "rw"}
    found = change.hold(given, ("ci/*.yml", "run", "ci/deep/*", "absent/*", "none"))
    assert found.held == ("ro:/w/ci", "ro:/w/run", "ro:/w/ci/deep")
    assert [(note.rule, note.mechanism) for note in found.notes][3:] == [
        ("absent/*", "reported after the run"),
        ("none", "reported after the run"),
    ]
    assert change.hold({**given, "mode": "ro"}, ("run",)).held == ()
    assert change.hold(given, ("ci/a.yml",)).held == ("rw:/w/ci", "ro:/w/ci/a.yml")
    assert change.merged(("rw:/w/ci", "rw:/w/x"), ("ro:/w/ci", "ro:/w/ci/a")) == ("ro:/w/ci", "rw:/w/x", "ro:/w/ci/a")


def test_a_file_is_written_in_place_and_a_new_one_appears_whole(top: Path) -> None:
    given, before = facts(top), (top / "run").stat()
    os.chmod(top / "run", 0o750)
    seen: list[bytes] = []
    assert put(given, "run", receipt=lambda: seen.append((top / "run").read_bytes())) == "written" and seen == [OLD]
    after = (top / "run").stat()
    assert (after.st_ino, after.st_mode & 0o777) == (before.st_ino, 0o750) and (top / "run").read_bytes() == NEW
    assert put(given, "run", NEW, b"x") == "written" and (top / "run").read_bytes() == b"x"  # shorter: nothing of what was there
    assert put(given, "ci/b.yml", None) == "written" and (top / "ci/b.yml").read_bytes() == NEW
    assert sorted(os.listdir(top / "ci")) == ["a.yml", "b.yml", "deep"]
    with pytest.raises(ZeroDivisionError):
        put(given, "ci/a.yml", receipt=lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        put(given, "ci/c.yml", None, receipt=lambda: 1 // 0)
    assert (top / "ci/a.yml").read_bytes() == OLD and not (top / "ci/c.yml").exists() and not (top.parent / "aside").exists()


@pytest.mark.parametrize(
    "rel", ["../outside", "/etc/passwd", "ci/../run", "./run", "ci//a.yml", "", ".git/config", "ci/.git/hooks/x", "ci/.GIT", "run\0", "ci/git~1", "ci/.git. "]
)  # fmt: skip
def test_other_names(top: Path, rel: str) -> None:
    given = facts(top, "ci/*", "run")
    given["asked"] |= {"": (0, 0), "ci/.git/hooks": (0, 0), ".git": (0, 0), "..": (0, 0)}  # even if somebody had asked for them
    assert put(given, rel, None) == "file.path"
    with pytest.raises(change.Refused):
        change.look(given, rel)


def test_what_was_swapped_since_it_was_shown(top: Path) -> None:
    given, outside = facts(top), top.parent / "outside"

    def swapped(path: Path, how: Callable[[Path], object], below: str = "") -> str:
        kept = path.with_name("kept")
        path.rename(kept)
        how(path)
        try:
            return put(given, f"{path.relative_to(top)}{below}")
        finally:
            if path.is_dir() and not path.is_symlink():
                path.rename(path.with_name("away"))
            else:
                path.unlink()
            kept.rename(path)

    for path, codes in ((top / "run", {"file.changed"}), (top / "ci/a.yml", {"written", "file.kind"})):
        assert swapped(path, lambda new: new.symlink_to(outside)) == "file.path"
        assert swapped(path, lambda new: os.link(outside, new)) == "file.kind"
        assert swapped(path, os.mkfifo) in ("file.path", "file.kind")
        assert swapped(path, lambda new: new.mkdir()) == "file.path"
        assert swapped(path, lambda new: new.write_bytes(OLD)) in codes  # in a folder that is held a new file is held, too
        (top / "ci/away").rmdir() if path.parent.name == "ci" else (top / "away").rmdir()
    assert swapped(top / "ci", lambda new: new.symlink_to(top / "kept"), "/a.yml") == "file.path"
    assert swapped(top / "ci", lambda new: (new.mkdir(), (new / "a.yml").write_bytes(OLD)), "/a.yml") == "file.changed"
    assert outside.read_bytes() == OLD and (top / "run").read_bytes() == OLD and (top / "ci/a.yml").read_bytes() == OLD


def test_what_changed_since_it_was_shown(top: Path) -> None:
    given = facts(top)
    (top / "run").write_bytes(b"other")
    assert put(given, "run") == "file.changed" and put(given, "run", None) == "file.changed"
    assert put(given, "ci/none.yml") == "file.changed"
    (top / "ci/c.yml").write_bytes(OLD)
    assert put(given, "ci/c.yml", None) == "file.changed"
    assert put(given, "ci/d.yml", None, receipt=lambda: (top / "ci/d.yml").write_bytes(OLD)) == "file.changed"  # in the last moment
    os.link(top / "ci/a.yml", top.parent / "second")
    assert put(given, "ci/a.yml") == "file.kind"
    os.unlink(top.parent / "second")
    (top / "run").unlink()
    assert put(given, "run") == "file.changed" and put(given, "run", None) == "file.changed"
    assert (top / "ci/a.yml").read_bytes() == (top / "ci/c.yml").read_bytes() == (top / "ci/d.yml").read_bytes() == OLD


def test_git_directories_and_strange_files_are_never_written_to(top: Path) -> None:
    for folder in ("bare", "bare/hooks"):
        (top / folder).mkdir()
    for name in ("HEAD", "config", "hooks/post-merge"):
        (top / "bare" / name).write_bytes(OLD)
    for name in ("objects", "refs"):
        (top / "bare" / name).mkdir()
    given = facts(top, "bare/*", "bare/hooks/*", "ci/*")
    assert put(given, "bare/config") == put(given, "bare/hooks/post-merge") == put(given, "bare/new", None) == "file.git"
    (top / "ci/a.yml").chmod(0o4755)
    (top / "ci/large.yml").write_bytes(b"x" * (change.LONGEST + 1))
    assert put(given, "ci/a.yml") == put(given, "ci/large.yml") == "file.kind"
    assert put(given, "bare/deeper/x", None) == put(given, "run") == "file.free"


def test_links_and_folders_cannot_be_held(top: Path) -> None:
    (top / "link").symlink_to("run")
    (top / "way").symlink_to("ci")
    for pattern in ("link", "way/*", "way/a.yml", "run/*", "ci"):
        with pytest.raises(StockadeError) as caught:
            facts(top, pattern)
        assert caught.value.code == "workspace.file"


FULL = """
import json, resource, signal, sys
from stockade.walls.workspace import change
given, rel, before = json.loads(sys.argv[1])
given["asked"] = {name: tuple(found) for name, found in given["asked"].items()}
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    change.put(given, rel, before and before.encode(), b"x" * 20000, given["top"] + "/../aside", lambda: None)
except change.Refused as error:
    print(error.code)
"""


@pytest.mark.parametrize(("rel", "before"), [("run", OLD), ("ci/new.yml", None)])
def test_a_disk_without_room_leaves_what_was_there(top: Path, rel: str, before: bytes | None) -> None:
    given = json.dumps([facts(top), rel, before and before.decode()])
    done = subprocess.run([sys.executable, "-c", FULL, given], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("file.disk\n", "")
    assert (top / "run").read_bytes() == OLD and not (top / "ci/new.yml").exists() and sorted(os.listdir(top / "ci")) == ["a.yml", "deep"]
    assert put(facts(top), rel, before) == "written"
