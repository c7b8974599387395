"""What waits in a layer, and how it is brought to the folder: read from anything that a sandbox can leave, brought whole or not at all, and never over what changed."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.walls.workspace import apply, cleanup, difference, review, waiting
from stockade.walls.workspace.apply import REPLACED, Apply, chosen
from stockade.walls.workspace.beneath import DEEPEST, Directory
from stockade.walls.workspace.report import shown
from stockade.walls.workspace.waiting import Change

Tree = dict[str, Any]  # a name: bytes of a file, text of a link, or a Tree


def build(top: Path, tree: Tree) -> None:
    top.mkdir(exist_ok=True)
    for name, what in tree.items():
        place = top / name
        if isinstance(what, dict):
            build(place, what)
        elif isinstance(what, bytes):
            place.write_bytes(what)
        else:
            os.symlink(what, place)


def tree(top: Path) -> Tree:
    return {
        path.name: os.readlink(path) if path.is_symlink() else tree(path) if path.is_dir() else path.read_bytes() for path in top.iterdir()
    }


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o600, 0)


def opaque(path: Path) -> None:
    os.setxattr(path, "user.overlay.opaque", b"y")


def layer(upper: Path, before: Tree, after: Tree, *, anew: bool) -> None:
    """What overlayfs leaves in `upper` when `before` became `after`; `anew`: every folder was removed and made again."""
    upper.mkdir(exist_ok=True)
    for name in before.keys() | after.keys():
        old, new, place = before.get(name), after.get(name), upper / name
        if new is None:
            whiteout(place)
        elif isinstance(new, dict):
            if isinstance(old, dict) and not anew:
                layer(place, old, new, anew=anew)
            else:
                build(place, new)
                opaque(place)
        elif new != old:
            build(upper, {name: new})


class Place:
    """A workspace whose session is over, with a layer that is not written yet."""

    def __init__(self, root: Path, before: Tree) -> None:
        self.top, self.session, self.upper = root / "work", root / "session", root / "session/layer/upper"
        build(self.top, before)
        self.upper.mkdir(parents=True)
        time.sleep(waiting.SLACK + 0.02)  # what was there is older than the session
        self.facts: dict[str, Any] = {
            "name": "s1", "top": str(self.top), "session": str(self.session), "layer": f"{self.session}/layer", "started": time.time(), "mode": "review",
            "common": "", "skip": [], "git": {}, "nested": [],
        }  # fmt: skip
        self.receipts: list[tuple[str, str]] = []

    def look(self) -> dict[str, Change]:
        return {change.key: change for change in waiting.look(self.facts).changes}

    def apply(
        self, *paths: str, changes: list[Change] | None = None, receipt: Callable[[Change], object] = lambda _: None, **how: bool
    ) -> dict[str, str]:
        """Bring what waits; what came of each."""

        def note(change: Change, content: str) -> None:
            self.receipts.append((change.key, content))
            receipt(change)

        self.last = Apply(self.facts, note, **how)
        self.last.run(chosen(waiting.look(self.facts), paths)[0] if changes is None else changes)
        waiting.settle(self.facts, self.last.done)
        return {f"{row['change']}:{row['path']}": row["result"] for row in self.last.rows}


NAMES = st.sampled_from(["a", "b", "c", "new\nline", "\x1b[31mred", "-rf", "*", "\udcff", "é", " ", "..."])
LEAVES = st.sampled_from([b"", b"one\n", b"two\n", b"\0\xff", "a", "../../outside", "/etc/passwd", "\x1b]0;x"])
TREES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=4), lambda inner: st.dictionaries(NAMES, LEAVES | inner, max_size=4), max_leaves=12
)


@settings(max_examples=40, deadline=None)
@given(TREES, TREES, st.booleans())
def test_law_what_is_brought_is_what_the_session_saw(before: Tree, after: Tree, anew: bool) -> None:
    with tempfile.TemporaryDirectory() as root:
        place = Place(Path(root), before)
        layer(place.upper, before, after, anew=anew)
        found = place.look()
        assert not any(change.conflict for change in found.values())
        assert {"applied"} >= set(place.apply().values())
        assert tree(place.top) == after
        assert [key for key, _ in place.receipts] == list(dict.fromkeys(key for key, _ in place.receipts))
        assert waiting.look(place.facts).changes == ()


def hostile(upper: Path, kind: int, name: str) -> None:
    place = upper / name
    match kind:
        case 0:
            os.mkfifo(place)
        case 1:
            os.symlink("/", place)
        case 2:
            whiteout(place)
        case 3:
            place.mkdir(mode=0)
        case 4:
            place.write_bytes(b"\x7fELF")
            place.chmod(0o6777)
        case 5:
            build(place, {"x": {"y": b"deep", "up": "../../../.."}})
            opaque(place)
        case 6:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"/proc/self/fd/{os.open(upper, os.O_PATH)}/{name}"[:100])
            listener.close()
        case _:
            place.write_bytes(b"text\x1b[31m\n")


@settings(max_examples=40, deadline=None)
@given(TREES, st.dictionaries(NAMES, st.integers(0, 7), max_size=6), st.booleans())
def test_law_whatever_lies_in_a_layer_nothing_outside_is_touched_and_nothing_blocks(
    before: Tree, what: dict[str, int], protected: bool
) -> None:
    with tempfile.TemporaryDirectory() as root:
        build(Path(root, "outside"), {"secret": b"untouched"})
        place = Place(Path(root), before)
        for name, kind in what.items():
            hostile(place.upper, kind, name)
        found = waiting.look(place.facts)
        said = [row for event in review.events(place.facts) for row in event["rows"]]
        for change in found.changes:
            review.compared(place.facts, change) if change.kind in ("file", "link") else None
        place.apply(protected=protected, overwrite=True)
        assert all(text.isprintable() for row in [*said, *place.last.rows] for name, text in row.items() if name != "diff")
        assert tree(Path(root, "outside")) == {"secret": b"untouched"}
        for path in place.top.rglob("*"):
            mode = path.lstat().st_mode
            assert stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)
            assert stat.S_ISLNK(mode) or not mode & 0o6000
        assert not list(place.top.rglob(".stockade-*"))
        cleanup.discard(str(place.session))
        for path in [*place.top.iterdir()]:
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)


BEFORE: Tree = {"f": b"old\n", "link": "f", "d": {"x": b"x\n", "y": b"y\n"}, "e": {"z": b"z\n"}}
AFTER: Tree = {"f": b"session\n", "link": "d", "d": {"x": b"session\n"}, "new": {"n": b"n\n"}}


def write(path: Path, text: str = "mine\n") -> None:
    path.write_text(text)


def replace(path: Path, what: Callable[[Path], object]) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    what(path)


CHANGES_OF_MINE: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "written in place": (lambda top: write(top / "f"), {"changed:f"}),
    "written to the same length": (lambda top: write(top / "f", "OLD\n"), {"changed:f"}),
    "replaced": (lambda top: replace(top / "f", write), {"changed:f"}),
    "made executable": (lambda top: (top / "f").chmod(0o755), {"changed:f"}),
    "removed": (lambda top: (top / "f").unlink(), {"added:f"}),
    "replaced by a link": (lambda top: replace(top / "f", lambda path: path.symlink_to("d/x")), {"changed:f"}),
    "replaced by a folder": (lambda top: replace(top / "f", lambda path: build(path, {"mine": b"mine"})), {"removed:f", "removed:f/mine", "added:f"}),
    "the link leads elsewhere": (lambda top: replace(top / "link", lambda path: path.symlink_to("e")), {"changed:link"}),
    "what was removed is written": (lambda top: write(top / "d/y"), {"removed:d/y"}),
    "a file in a removed folder is written": (lambda top: write(top / "e/z"), {"removed:e/z"}),
    "a file appears in a removed folder": (lambda top: write(top / "e/mine"), {"removed:e/mine"}),
    "an old folder is moved into a removed one": (lambda top: shutil.move(top.parent / "aside", top / "e/aside"), {"removed:e/aside", "removed:e/aside/old"}),
    "a file appears where one was made": (lambda top: build(top, {"new": {"n": b"mine\n"}}), {"changed:new/n"}),
    "a file appears where a folder was made": (lambda top: write(top / "new"), {"removed:new", "added:new"}),
    "a folder appears where another was made": (lambda top: shutil.move(top.parent / "aside", top / "new"), {"removed:new/old"}),
    "the folder is another": (lambda top: replace(top / "e", lambda path: build(path, {"z": b"mine\n"})), {"removed:e/z"}),
}  # fmt: skip


@pytest.mark.parametrize("when", ["while the session ran", "afterwards"])
@pytest.mark.parametrize("name", CHANGES_OF_MINE)
def test_what_changed_here_meanwhile_stays(name: str, when: str, tmp_path: Path) -> None:
    build(tmp_path / "aside", {"old": b"mine"})
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=False)
    change, expected = CHANGES_OF_MINE[name]
    if when == "afterwards":
        place.look()  # as the session does at its end
    time.sleep(0.01)
    change(place.top)
    mine = tree(place.top)
    found = {key for key, one in place.look().items() if one.conflict}
    if when == "afterwards":
        assert (
            found - ({"removed:e"} if name == "the folder is another" else set()) == expected
        )  # which it is to us only if its inode is not the old one again
    elif name != "removed":  # what was gone before the session's end may as well have been gone before its start
        assert found >= expected
    came = place.apply()
    assert {key for key, result in came.items() if result == "conflict"} >= found
    assert lost(mine, tree(place.top), AFTER, BEFORE) == []


def lost(mine: Tree, now: Tree, wanted: Tree, before: Tree) -> list[str]:
    """What I had written that is not there any more."""
    found = []
    for name, what in mine.items():
        if isinstance(what, dict):
            inner = now.get(name)
            old = before.get(name)
            found += [
                f"{name}/{each}" for each in lost(what, inner if isinstance(inner, dict) else {}, {}, old if isinstance(old, dict) else {})
            ]
        elif what != before.get(name) and now.get(name) != what:
            found.append(name)
    return found


@pytest.mark.parametrize("name", CHANGES_OF_MINE)
def test_overwriting_keeps_what_changed_under_another_name(name: str, tmp_path: Path) -> None:
    build(tmp_path / "aside", {"old": b"mine"})
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=False)
    place.look()
    time.sleep(0.01)
    CHANGES_OF_MINE[name][0](place.top)
    mine = {content for content in contents(tree(place.top)) if content in (b"mine\n", b"mine", b"OLD\n")}
    place.apply(overwrite=True)
    assert mine <= set(contents(tree(place.top)))


def contents(there: Tree) -> list[bytes]:
    return [
        each
        for what in there.values()
        for each in (contents(what) if isinstance(what, dict) else [what] if isinstance(what, bytes) else [])
    ]


def test_touching_and_putting_back_is_no_change(tmp_path: Path) -> None:
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=False)
    place.look()
    os.utime(place.top / "f")
    replace(place.top / "d/y", lambda path: write(path, "y\n"))
    assert not any(change.conflict for change in place.look().values())
    assert set(place.apply().values()) == {"applied"} and tree(place.top) == AFTER


def test_what_was_brought_waits_no_more_whatever_i_do_with_it_then(tmp_path: Path) -> None:
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=True)
    assert place.apply("f") == {"changed:f": "applied"}
    write(place.top / "f")
    assert "changed:f" not in place.look()
    assert set(place.apply().values()) == {"applied"} and tree(place.top) == {**AFTER, "f": b"mine\n"}


def test_a_path_brings_the_folders_that_it_needs_and_nothing_else(tmp_path: Path) -> None:
    place = Place(tmp_path, {"x": {}})
    layer(place.upper, {"x": {}}, {"x": {"a": {"b": {"c": b"c", "d": b"d"}}, "e": b"e"}}, anew=False)
    assert place.apply("x/a/b/c") == {"added:x/a": "applied", "added:x/a/b": "applied", "added:x/a/b/c": "applied"}
    assert tree(place.top) == {"x": {"a": {"b": {"c": b"c"}}}}
    assert chosen(waiting.look(place.facts), ["x/a/../e", "nothing"])[1] == ["x/a/../e", "nothing"]
    assert place.apply(".") == {"added:x/a/b/d": "applied", "added:x/e": "applied"}


@pytest.mark.parametrize("key", ["changed:f", "changed:link", "removed:d/y", "added:new/n"])
def test_a_change_in_the_last_moment_is_not_lost(key: str, tmp_path: Path) -> None:
    """The host's file is written to after everything was compared, right before the effect."""
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=False)

    def at_the_last_moment(change: Change) -> None:
        if change.key == key:
            path = place.top / change.rel
            path.unlink(missing_ok=True)
            write(path)

    assert place.apply(receipt=at_the_last_moment)[key] == "conflict"
    assert (place.top / key.partition(":")[2]).read_text() == "mine\n"
    assert not list(place.top.rglob(".stockade-*"))


@pytest.mark.parametrize(("key", "step"), [("changed:f", "_exchange"), ("changed:link", "_exchange"), ("removed:d/y", "_rename")])
def test_a_change_between_the_last_look_and_the_exchange_is_put_back(
    key: str, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=False)
    path, carried_out = place.top / key.partition(":")[2], getattr(apply, step)

    def meanwhile(here: Directory, old: str, new: str) -> None:
        if not written:
            path.unlink()
            written.append(path.write_text("mine\n"))
        carried_out(here, old, new)

    written: list[int] = []
    monkeypatch.setattr(apply, step, meanwhile)
    assert place.apply(changes=[place.look()[key]]) == {key: "conflict"}
    assert path.read_text() == "mine\n" and not list(place.top.rglob(".stockade-*"))


def test_without_a_receipt_nothing_happens(tmp_path: Path) -> None:
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=False)

    def refuse(_: Change) -> None:
        raise RuntimeError("the ledger cannot be written")

    for key, change in place.look().items():
        with pytest.raises(RuntimeError):
            place.apply(changes=[change] if not key.startswith("added:new/") else [*place.look().values()], receipt=refuse)
    assert tree(place.top) == BEFORE


@pytest.mark.parametrize("where", ["d", "."])
def test_a_folder_that_is_swapped_for_a_link_leads_nowhere(where: str, tmp_path: Path) -> None:
    place = Place(tmp_path, BEFORE)
    layer(place.upper, BEFORE, AFTER, anew=False)
    changes = list(place.look().values())
    (place.top / where).resolve().rename(tmp_path / "away")
    build(tmp_path / "outside", BEFORE if where == "." else BEFORE["d"])
    (place.top / where if where != "." else place.top).symlink_to(tmp_path / "outside")
    try:
        came = place.apply(changes=changes, overwrite=True, protected=True)
    except OSError:
        came = {}
    assert tree(tmp_path / "outside") == (BEFORE if where == "." else BEFORE["d"])
    assert came.get("changed:d/x", "failed") == "failed"


def test_never_brought(tmp_path: Path) -> None:
    place = Place(tmp_path, {})
    for name in ("set-id", "closed", "huge"):
        (place.upper / name).write_text("x")
    (place.upper / "set-id").chmod(0o6755)
    os.truncate(place.upper / "huge", waiting.LARGEST + 1)
    os.mkfifo(place.upper / "pipe")
    (place.upper / "folder").mkdir()
    (place.upper / "folder").chmod(0o2500)
    came = place.apply()
    assert came == {
        "added:set-id": "applied", "added:closed": "applied", "added:folder": "applied", "added:huge": "refused", "added:pipe": "refused",
    }  # fmt: skip
    assert stat.S_IMODE((place.top / "set-id").stat().st_mode) == 0o755
    assert stat.S_IMODE((place.top / "folder").stat().st_mode) == 0o500
    (place.top / "folder").chmod(0o700)


def test_a_folder_closed_to_writing_gets_its_content(tmp_path: Path) -> None:
    place = Place(tmp_path, {})
    build(place.upper, {"d": {"f": b"f"}})
    (place.upper / "d").chmod(0o555)
    assert set(place.apply().values()) == {"applied"}
    assert stat.S_IMODE((place.top / "d").stat().st_mode) == 0o555
    (place.top / "d").chmod(0o755)


def test_deeper_and_more_than_is_looked_at_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place(tmp_path, {})
    here = os.open(place.upper, os.O_RDONLY)
    for _ in range(DEEPEST + 50):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    found = waiting.look(place.facts)
    assert found.complete and len(found.unread) == 1 and len(found.changes) == DEEPEST + 1
    monkeypatch.setattr(waiting, "MOST", 20)
    assert not waiting.look(place.facts).complete


def test_what_is_protected_takes_a_word(tmp_path: Path) -> None:
    before: Tree = {".envrc": b"mine\n", ".husky": {"pre-commit": b"mine\n"}, "free": b""}
    after: Tree = {".envrc": b"evil\n", ".husky": {}, ".vscode": {"tasks.json": b"{}"}, "free": b"x"}
    place = Place(tmp_path, before)
    layer(place.upper, before, after, anew=False)
    came = place.apply()
    assert {key for key, result in came.items() if result == "protected"} == {"changed:.envrc", "removed:.husky/pre-commit"}
    assert tree(place.top) == {**after, ".envrc": b"mine\n", ".husky": before[".husky"]}
    assert {change.risk for change in place.look().values()} == {"high", "low"}
    assert set(place.apply(protected=True).values()) == {"applied"} and tree(place.top) == after


GIT: Tree = {
    "HEAD": b"ref: refs/heads/main\n",
    "objects": {"info": {}},
    "refs": {},
    "config": b"[core]\n\tbare = false\n",
    "hooks": {"a.sample": b""},
}
EVIL: Tree = {
    **GIT,
    "config": b"[core]\n\tfsmonitor = evil\n",
    "hooks": {"a.sample": b"", "pre-commit": b"evil"},
    "commondir": b"../evil",
    "config.worktree": b"",
    "objects": {"info": {"alternates": b"/\n"}},
}
BROKEN = {"config", "hooks/pre-commit", "commondir", "config.worktree", "objects/info/alternates"}


@pytest.mark.parametrize("name", [".git", "bare"])
def test_what_git_executes_is_not_brought_to_a_repository_that_is_there(name: str, tmp_path: Path) -> None:
    place = Place(tmp_path, {"r": {name: GIT}})
    layer(place.upper, {"r": {name: GIT}}, {"r": {name: EVIL}}, anew=False)
    came = place.apply()
    assert {key.partition(f"{name}/")[2] for key, result in came.items() if result == "protected"} == BROKEN
    assert tree(place.top) == {"r": {name: GIT}}
    assert set(place.apply(protected=True).values()) == {"applied"} and tree(place.top) == {"r": {name: EVIL}}


@pytest.mark.parametrize("pointer", [False, True])
def test_a_repository_is_not_removed_or_replaced_without_a_word(pointer: bool, tmp_path: Path) -> None:
    before: Tree = {"g": GIT, "r": {".git": b"gitdir: ../g\n" if pointer else GIT, "f": b""}}
    for after in ({"g": GIT}, {"g": GIT, "r": {".git": b"gitdir: ../other\n"}}, {"g": GIT, "r": {".git": "../other"}}):
        root = Path(tempfile.mkdtemp(dir=tmp_path))
        place = Place(root, before)
        layer(place.upper, before, {"other": {}, **after}, anew=False)
        came = place.apply()
        assert came.get("removed:r/f", "applied") == "applied"
        assert {result for key, result in came.items() if "/.git" in key} <= {"protected"} and tree(place.top)["r"][".git"] == before["r"][
            ".git"
        ]
        assert set(place.apply(protected=True).values()) == {"applied"} and tree(place.top) == {"other": {}, **after}


@pytest.mark.parametrize("order", ["at once", "what makes it a repository last", "what makes it a repository first"])
@pytest.mark.parametrize("name", [".git", "bare"])
def test_a_repository_that_comes_with_what_git_executes_is_harmless(name: str, order: str, tmp_path: Path) -> None:
    place = Place(tmp_path, {"r": {}})
    layer(place.upper, {"r": {}}, {"r": {name: EVIL}}, anew=False)
    makes = [f"r/{name}/{each}" for each in ("HEAD", "refs", "objects")]
    rest = [f"r/{name}/{each}" for each in ("hooks", "config", "commondir", "config.worktree")]
    for paths in {"at once": [[]], "what makes it a repository last": [rest, makes]}.get(order, [makes, rest]):
        place.apply(*paths)
    there = tree(place.top)["r"][name]
    assert there["HEAD"] and "refs" in there
    assert not {"commondir", "config.worktree"} & there.keys() and b"fsmonitor" not in there.get("config", b"")
    assert "pre-commit" not in there.get("hooks", {}) and "alternates" not in there["objects"].get("info", {})


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("gitdir: ../../evil\n", False),
        ("gitdir: ../inside\n", True),
        ("gitdir: ../missing\n", False),
        ("gitdir: ../link\n", False),
        ("no pointer\n", True),
    ],
)
def test_a_pointer_to_another_repository_takes_a_word(text: str, free: bool, tmp_path: Path) -> None:
    place = Place(tmp_path, {"r": {}, "inside": {}, "link": "inside"})
    layer(place.upper, {"r": {}}, {"r": {".git": text.encode()}}, anew=False)
    assert place.apply() == {"added:r/.git": "applied" if free else "protected"}


def test_restoring_first_versions_keeps_what_is_there(tmp_path: Path) -> None:
    place = Place(tmp_path, {"f": b"now", "d": {"x": b"now"}, "same": b"same"})
    kept = tmp_path / "session/kept"
    build(kept, {"f": b"first", "d": {"x": b"first"}, "same": b"same", "gone": b"first"})
    found = waiting.look(place.facts, str(kept))
    assert [(change.key, change.conflict) for change in found.changes] == [("changed:d/x", ""), ("changed:f", ""), ("added:gone", "")]
    Apply(place.facts, lambda *_: None, overwrite=True, upper=str(kept), aside=True).run(found.changes)
    assert tree(place.top) == {
        "f": b"first", f"f{REPLACED}": b"now", "d": {"x": b"first", f"x{REPLACED}": b"now"}, "same": b"same", "gone": b"first",
    }  # fmt: skip
    assert waiting.look(place.facts, str(kept)).changes == ()


LINES = st.lists(st.sampled_from(["a", "b", "c", "", "tab\there"]), max_size=30)


def patched(before: list[str], lines: tuple[str, ...]) -> list[str]:
    """What patch(1) makes of it."""
    made, at, rest = list[str](), 0, list(lines[2:])
    while rest:
        spot = rest.pop(0).split()[1].lstrip("-").split(",")
        start = int(spot[0]) - (1 if spot[1:] != ["0"] else 0)
        made += before[at:start]
        at = start
        while rest and rest[0][:1] != "@":
            mark, text = rest[0][:1], rest.pop(0)[1:]
            if mark in " -":
                assert before[at] == text
                at += 1
            made += [text] if mark in " +" else []
    return made + before[at:]


@given(LINES, LINES, st.integers(0, 40))
def test_law_a_difference_leads_from_one_side_to_the_other(old: list[str], new: list[str], compared: int) -> None:
    shared = ["same"] * 20
    before, after = [*shared, *old, *shared], [*shared, *new, *shared]
    most, difference.COMPARED = difference.COMPARED, compared
    try:
        found = difference.between("".join(f"{line}\n" for line in before).encode(), "".join(f"{line}\n" for line in after).encode(), "f")
    finally:
        difference.COMPARED = most
    assert (patched(before, found.lines) if found.lines else before) == after
    assert len(after) - len(before) == found.added - found.removed


@given(st.binary(max_size=60), st.binary(max_size=60), st.text(max_size=8))
def test_law_a_difference_can_be_printed(before: bytes, after: bytes, name: str) -> None:
    found = difference.between(before, after, name)
    assert all(line.replace("\t", "").isprintable() for line in found.lines)
    assert (before == after) == (not found.lines)


def test_a_difference_of_files_that_end_without_a_newline() -> None:
    assert difference.between(b"a\nb", b"a\nb\n", "f").lines[2:] == ("@@ -1,2 +1,2 @@", " a", "-b", "\\ No newline at end of file", "+b")
    assert difference.between(None, b"x\n", "f").lines == ("--- /dev/null", "+++ b/f", "@@ -0,0 +1 @@", "+x")
    assert difference.between(b"x\n", None, "\x1b").lines[:2] == ("--- a/\\x1b", "+++ /dev/null")


def test_differences_of_large_files_are_made_in_pieces_of_bounded_size() -> None:
    old = b"".join(b"%d\n" % (number * 7919 % 50021) for number in range(50000))
    new = b"".join(b"%d\n" % (number * 104729 % 50021) for number in range(50000))
    found = difference.between(old, new, "f")
    assert found.added == found.removed and found.added > difference.COMPARED
    assert shown("\u202e") == "\\u202e"  # what turns text around is not shown as it is
