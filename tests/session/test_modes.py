"""Every mode of the workspace and of mounts against everything that can be done to files, on every wall; what the runs show is docs/modes.md (M19, M20, B10)."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from session import modes
from session.supervised import Place, share_cache
from session.test_kept import listed, stockade
from stockade.core.values import Limits, Mount, Policy, Workspace
from stockade.walls import bubblewrap, gvisor
from stockade.walls.vm import wall as vm
from walls.boxes import compiled, require, scratch
from walls.workspace_box import overlay_works

WALLS = {"bubblewrap": bubblewrap, "gvisor": gvisor, "vm": vm}
# What a wall takes for nothing: gVisor answers a chmod that the host's kernel refuses it with success, and changes nothing.
UNSAID = {("gvisor", "set-user-id"), ("gvisor", "set-group-id")}
INSIDE = {("gvisor", "mkfifo"), ("gvisor", "socket")}


@dataclass
class Area:
    """A folder in which all operations were tried."""

    top: Path
    before: dict[str, modes.State]
    rows: dict[str, dict[str, Any]]

    def host(self, name: str) -> modes.State:
        return modes.look(self.top / name)


@dataclass
class Run:
    """A session that tried them in one or more areas."""

    place: Place
    areas: dict[str, Area]
    waiting: dict[str, modes.State]  # what was on the host before anything was applied
    brought: list[dict[str, str]]  # what `stockade changes apply` said


def probe() -> str:
    return compiled(Path(__file__).with_name("modes.c").read_text(), "-static")


def areas_in(root: Path, **tops: Path) -> dict[str, Area]:
    outside = root / "outside/file"
    outside.parent.mkdir()
    outside.write_text("untouched\n")
    for top in tops.values():
        for name in modes.OPERATIONS:
            modes.prepare(top / name, outside)
    return {name: Area(top, {each: modes.look(top / each) for each in modes.OPERATIONS}, {}) for name, top in tops.items()}


def read(areas: dict[str, Area], output: bytes) -> None:
    each = list(areas.values())
    for line in output.splitlines():
        row = json.loads(line)
        each[row["area"]].rows[row["name"]] = row
    assert all(list(area.rows) and area.rows.keys() == modes.OPERATIONS.keys() for area in each), output


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Run]:
    """The session of a wall and a mode of the workspace: one, for all tests here. That with `ro` has a mount of either mode as well."""
    done: dict[tuple[str, str], Run] = {}

    def get(wall: str, mode: str) -> Run:
        require(WALLS[wall])
        if (wall, mode) not in done:
            root = tmp_path_factory.mktemp(f"{wall}-{mode}")
            if mode in ("rw-no-delete", "review"):
                overlay_works(root / "probe")
            share_cache(f"{scratch()}/xdg_cache_home")
            place = Place(root)
            (root / "bin").mkdir()
            shutil.copy(probe(), root / "bin/modes")
            more = {f"mount {each}": root / f"mounted-{each}" for each in ("ro", "rw")} if mode == "ro" else {}
            areas = areas_in(root, **{f"workspace {mode}": place.work, **more})
            mounts = [Mount(str(top), str(top), "rw" if top.name.endswith("rw") else "ro") for top in (root / "bin", *more.values())]
            policy = Policy(wall=wall, workspace=Workspace(mode=mode), mounts=tuple(mounts), limits=Limits(memory=256 << 20))  # type: ignore[arg-type]
            tops = [str(area.top) for area in areas.values()]
            ended = place.run(f"{root}/bin/modes", f"{root}/outside/file", *tops, policy=policy, timeout=300)
            assert ended.returncode == 0, ended
            read(areas, ended.stdout)
            waiting, brought = {}, []
            if mode == "review":
                waiting = {each: areas[f"workspace {mode}"].host(each) for each in modes.OPERATIONS}
                brought = json.loads(stockade(place, "changes", "apply", "--json").stdout)[0]["rows"]
            done[wall, mode] = Run(place, areas, waiting, brought)
        return done[wall, mode]

    return get


def shown(run: Callable[[str, str], Run], wall: str, mode: str) -> dict[str, dict[str, str]]:
    """Area, operation: what it comes to, by the rules that hold for every one."""
    ran, found = run(wall, mode), {}
    merged = [event for event in ran.place.ledger() if event.get("kind") == "workspace.merge"]
    said: dict[str, set[str]] = {name: set() for name in modes.OPERATIONS}
    kept = ""
    for row in ran.brought:
        if row["result"] != "applied":
            name, _, rest = row["path"].partition("/")
            said[name].add(rest)
    for event in merged:
        kept = str(event["kept_in"])
        for row in (*event["rows"], *event["failed"]):  # type: ignore[misc]
            if row.get("change") not in ("created", "changed"):
                name, _, rest = row["path"].partition("/")
                said[name].add(rest)
    for title, area in ran.areas.items():
        found[title] = {}
        for name, row in area.rows.items():
            about = (name, row["error"], area.before[name], modes.seen(row), area.host(name))
            if mode == "rw-no-delete":
                firsts = modes.look(Path(kept, name))
                found[title][name] = modes.comes_to_without_loss(*about, firsts, said[name])
            elif mode == "review":
                found[title][name] = modes.comes_to_once_applied(*about[:4], ran.waiting[name], area.host(name), said[name])
            else:
                found[title][name] = modes.comes_to(*about)
    return found


@pytest.mark.wall
@pytest.mark.parametrize("mode", ["ro", "rw", "rw-no-delete", "review"])
@pytest.mark.parametrize("wall", WALLS)
def test_each_mode_holds(wall: str, mode: str, run: Callable[[str, str], Run]) -> None:
    for title, comes in shown(run, wall, mode).items():
        silent = {name for name, what in comes.items() if what == "no effect, no error"}
        assert {(wall, name) for name in silent} <= UNSAID
        assert {(wall, name) for name, what in comes.items() if what == "only inside"} <= INSIDE
        if title.endswith(" ro"):
            assert {name for name, what in comes.items() if not what.startswith("refused")} == set(modes.HARMLESS)
            continue
        assert {name for name in modes.NEVER if not comes[name].startswith("refused")} <= silent
        assert [name for name in modes.ALWAYS if comes[name].startswith("refused")] == []
    ran = run(wall, mode)
    outside = ran.place.root / "outside"
    assert [path.read_text() for path in outside.iterdir()] == ["untouched\n"] and (outside / "file").stat().st_nlink == 1
    for area in ran.areas.values():
        for path in area.top.rglob("*"):
            found = path.lstat().st_mode
            assert not stat.S_ISCHR(found) and not stat.S_ISBLK(found) and (stat.S_ISLNK(found) or not found & 0o6000), path
    if mode == "rw-no-delete":  # where the first versions are, is told to whoever asks
        (left,) = listed(ran.place)
        assert (Path(left["directory"]) / "kept/o_trunc/old").read_text() == "first version\n" * 600
        assert any("first versions" in why for why in left["what"])


@pytest.mark.wall
@pytest.mark.parametrize("wall", WALLS)
def test_the_page_is_what_the_runs_show(wall: str, run: Callable[[str, str], Run]) -> None:
    now = {title: comes for mode in ("ro", "rw", "rw-no-delete", "review") for title, comes in shown(run, wall, mode).items()}
    if os.environ.get("STOCKADE_WRITE_DOCS"):
        table = {**(modes.recorded() if modes.RECORDED.exists() else {}), wall: {mode: now[mode] for mode in modes.MODES}}
        modes.RECORDED.write_text(json.dumps({name: table[name] for name in modes.WALLS if name in table}, indent=1) + "\n")
        if (
            table.keys() == WALLS.keys()
            and all(each.keys() == {*modes.MODES} for each in table.values())
            and all(comes.keys() == modes.OPERATIONS.keys() for each in table.values() for comes in each.values())
        ):
            modes.DOCUMENT.write_text(modes.document())
    assert now == modes.recorded()[wall]


def test_the_page_is_current() -> None:
    if os.environ.get("STOCKADE_WRITE_DOCS"):
        pytest.skip("it is being written")
    assert modes.DOCUMENT.read_text() == modes.document()


def test_control_without_a_wall_everything_is_done_and_reached(tmp_path: Path) -> None:
    areas = areas_in(tmp_path, here=tmp_path / "here")
    done = subprocess.run([probe(), f"{tmp_path}/outside/file", str(tmp_path / "here")], stdout=subprocess.PIPE, check=True)
    read(areas, done.stdout)
    needs_root = {"mknod-char", "mknod-block"} if os.getuid() else set()
    assert {name for name, row in areas["here"].rows.items() if row["error"]} == needs_root
    assert (tmp_path / "outside/file").read_text() == "reached\n"
    assert areas["here"].host("set-user-id")["old"].mode & 0o4000


ONE = {"old": modes.File(stat.S_IFREG, 0o644, 1, 3, 7, "", "", False)}
OTHER = {"old": ONE["old"]._replace(crc=8)}


@pytest.mark.parametrize(
    ("error", "before", "inside", "host", "kept", "said"),
    [
        (30, ONE, OTHER, ONE, {}, set()),
        (30, ONE, ONE, OTHER, {}, set()),
        (0, ONE, OTHER, OTHER, {}, set()),
        (0, ONE, OTHER, OTHER, OTHER, set()),
        (0, ONE, OTHER, ONE, {}, set()),
        (0, ONE, {}, ONE, {}, set()),
        (0, ONE, {}, {}, {}, {"old"}),
        (0, {}, ONE, {}, {}, set()),
    ],
)
def test_what_compares_sees_what_is_lost(
    error: int, before: modes.State, inside: modes.State, host: modes.State, kept: modes.State, said: set[str]
) -> None:
    with pytest.raises(AssertionError):
        modes.comes_to_without_loss("x", error, before, inside, host, kept, said)
