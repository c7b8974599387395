"""The checks of the wall: each says what it saw, and a part that is missing is found missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stockade.core.errors import StockadeError, WallFailed
from stockade.core.values import Confinement
from stockade.walls import bubblewrap, door, probe, programs


def sysctls(root: Path, **values: str) -> str:
    for name, value in values.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    return str(root)


@pytest.mark.parametrize(
    ("name", "value", "command"),
    [
        ("user__max_user_namespaces", "0", "user.max_user_namespaces = 15000"),
        ("kernel__unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone = 1"),
        ("kernel__apparmor_restrict_unprivileged_userns", "1", "apparmor_parser -r"),
    ],
)
def test_each_known_restriction_is_recognised_and_comes_with_its_command(tmp_path: Path, name: str, value: str, command: str) -> None:
    seen, fix = probe.userns_trouble("refused", sysctls(tmp_path, **{name: value}))
    assert seen.startswith("refused; ") and command in fix and "sudo" in fix


def test_settings_that_allow_are_not_blamed(tmp_path: Path) -> None:
    root = sysctls(
        tmp_path,
        user__max_user_namespaces="96365",
        kernel__unprivileged_userns_clone="1",
        kernel__apparmor_restrict_unprivileged_userns="0",
    )
    seen, fix = probe.userns_trouble("refused: EPERM", root)
    assert "sysctl -p" not in fix and "apparmor_parser" not in fix and seen
    assert "used up" in probe.userns_trouble("refused: ENOSPC", root)[0]


def test_a_kernel_without_landlock_is_told_how_to_get_it() -> None:
    without = probe._landlock(0)
    assert without.status == "missing" and "lsm=" in without.fix
    assert probe._landlock(bubblewrap.LANDLOCK).status == "ok"


def test_status_words() -> None:
    assert probe.Check("x", False, "", "").status == "missing"
    assert probe.Check("x", False, "", "", need="useful").status == "degraded"
    assert probe.Check("x", True, "", "", need="useful").status == "ok"
    assert probe.Check("x", True, "", "", need="information").status == "information"


def test_own_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert probe.own_directories().ok
    (tmp_path / "cache/stockade").chmod(0o777)
    found = probe.own_directories()
    assert found.status == "missing" and "chmod 700" in found.fix
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert not probe.own_directories().ok


def test_programs_are_run_under_a_deadline() -> None:
    assert programs.run(["echo", "a\x1b[31mb"]) == (0, "a [31mb")
    assert programs.run(["sh", "-c", "echo no >&2; exit 3"]) == (3, "no")
    assert programs.run(["/no/such/program"])[0] == 127
    assert programs.run(["sleep", "20"], seconds=0.1)[0] == 124


def test_the_install_command_is_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("apt-get", "sudo"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    command = programs.install(["bubblewrap"]).command
    assert command[-5:] == ("apt-get", "install", "-y", "--no-install-recommends", "bubblewrap")
    assert (command[0] == "sudo") == (os.geteuid() != 0)
    (tools / "apt-get").unlink()
    with pytest.raises(StockadeError, match="apt-get"):
        programs.install(["bubblewrap"])


@pytest.mark.wall
def test_a_sandbox_that_does_not_answer_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check, made = probe.namespaces()
    if made is None:
        from conftest import unavailable

        unavailable("userns", check.seen)
    monkeypatch.setattr(probe, "DEADLINE", 0.5)
    wanted = Confinement(network="door", limits=probe.SMALL)
    one = bubblewrap.open_box(bubblewrap.plan(wanted, bubblewrap.look(wanted.home)), made)
    try:
        with pytest.raises(WallFailed) as caught:
            probe.inside(one, ["sleep", "20"])
        assert caught.value.code == "wall.slow"
    finally:
        one.close()
        made.close()


@pytest.mark.wall
def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        door.make().close()
    except WallFailed as error:
        from conftest import unavailable

        unavailable("userns", error.message)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = len(os.listdir("/proc/self/fd"))
    checks = list(probe.bubblewrap_wall())
    assert len(os.listdir("/proc/self/fd")) == before
    assert [check.name for check in checks if not check.ok and check.need == "required"] == []
    assert list((tmp_path / "state/stockade").iterdir()) == []
