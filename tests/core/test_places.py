"""Our own directories: where the standards say, and only if nobody else can write to them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from stockade.core import places
from stockade.core.errors import StockadeError


def test_the_base_directories_are_obeyed_and_relative_ones_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    for variable, function, fallback in (
        ("XDG_CONFIG_HOME", places.config, ".config"),
        ("XDG_STATE_HOME", places.state, ".local/state"),
        ("XDG_CACHE_HOME", places.cache, ".cache"),
    ):
        monkeypatch.setenv(variable, "/x")
        assert function("a/b") == "/x/stockade/a/b"
        for value in ("relative", "", "./x"):
            monkeypatch.setenv(variable, value)
            assert function("a") == f"/home/ada/{fallback}/stockade/a"
        monkeypatch.delenv(variable)
        assert function("a") == f"/home/ada/{fallback}/stockade/a"


def test_a_home_that_is_not_absolute_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    import pwd

    monkeypatch.setenv("HOME", "/home/ada/")
    assert places.home() == "/home/ada"
    monkeypatch.setenv("HOME", "/")
    assert places.home() == "/"
    try:
        known = pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        pytest.skip("this user is in no password database")
    for value in ("", "relative"):
        monkeypatch.setenv("HOME", value)
        assert places.home() == known


def test_a_private_directory_is_made_for_us_alone(tmp_path: Path) -> None:
    path = places.private(f"{tmp_path}/a/b")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    assert places.private(path) == path


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777, 0o1777])
def test_a_directory_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(mode)
    with pytest.raises(StockadeError) as caught:
        places.private(f"{tmp_path}/d")
    assert caught.value.code == "place.unsafe" and "chmod 700" in caught.value.hint


def test_a_link_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("d")
    (tmp_path / "file").write_text("")
    with pytest.raises(StockadeError) as caught:
        places.private(f"{tmp_path}/link")
    assert caught.value.code == "place.unsafe"
    for path in ("file", "file/below"):
        with pytest.raises(StockadeError) as caught:
            places.private(f"{tmp_path}/{path}")
        assert caught.value.code.startswith("place.")
        assert caught.value.hint


@pytest.mark.root
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir(mode=0o700)
    os.chown(tmp_path / "d", 12345, 12345)
    with pytest.raises(StockadeError) as caught:
        places.private(f"{tmp_path}/d")
    assert caught.value.code == "place.unsafe"
