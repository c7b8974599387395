from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import stockade
from policy.support import Places
from stockade.core import places as core_places
from stockade.core.errors import PolicyError, StockadeError
from stockade.policy import cached, files
from stockade.policy import compile as compiler

TEXT = '[[egress]]\npreset = "anthropic"\n[[egress]]\npreset = "npm"\n[[mount]]\npath = "../data"\n[environment]\nset = {A = "b"}\n'


@pytest.fixture
def full(places: Places, monkeypatch: pytest.MonkeyPatch) -> Places:
    (places.root / "data").mkdir()
    (places.home / ".npmrc").write_text("registry=https://npm.corp.test/\n")
    monkeypatch.setenv("npm_config_globalconfig", "/nonexistent/npmrc")
    return places.write(user=TEXT)


def entries(places: Places) -> list[Path]:
    return sorted((places.home / ".cache/stockade/policy").glob("*"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each compilation."""
    counted: list[int] = []
    real = compiler.compile_policy

    def count(*args: object, **kwargs: object) -> object:
        counted.append(1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(compiler, "compile_policy", count)
    return counted


def test_a_cached_policy_is_the_compiled_one(full: Places, compiled: list[int]) -> None:
    fresh = full.compile().policy
    assert full.load() == fresh == full.load() and fresh.grants and fresh.mounts
    assert len(compiled) == 1
    (entry,) = entries(full)
    assert entry.stat().st_mode & 0o777 == 0o600 and entry.parent.stat().st_mode & 0o777 == 0o700


def test_any_change_of_a_source_is_seen(full: Places, compiled: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    def loads_anew() -> bool:
        before = len(compiled)
        full.load()
        anew = len(compiled) > before
        before = len(compiled)
        full.load()
        assert len(compiled) == before, "the same inputs must come from the cache"
        return anew

    assert loads_anew()
    full.write(user=TEXT + "# a comment\n")
    assert loads_anew()
    full.write(managed='[caps]\nmodes = ["ro"]')
    assert loads_anew() and full.load().workspace.mode == "ro"
    (full.home / ".npmrc").write_text("registry=https://other.corp.test/\n")
    assert loads_anew() and any(grant.host == "other.corp.test" for grant in full.load().grants)
    monkeypatch.setenv("npm_config_registry", "https://third.corp.test/")
    assert loads_anew()
    (full.root / "data").rmdir()
    (full.root / "elsewhere").mkdir()
    (full.root / "data").symlink_to("elsewhere")
    assert loads_anew() and full.load().mounts[0].source.endswith("elsewhere")
    full.own.unlink()
    assert loads_anew() and full.load().mounts == ()


def test_a_cached_policy_is_refused_when_its_file_becomes_unsafe(full: Places) -> None:
    full.load()
    full.own.chmod(0o602)
    with pytest.raises(PolicyError, match="can be changed by others"):
        full.load()


def test_a_cached_policy_is_refused_when_a_folder_has_gone(full: Places) -> None:
    full.load()
    (full.root / "data").rmdir()
    with pytest.raises(PolicyError, match="does not exist"):
        full.load()


def test_different_options_do_not_share_an_entry(full: Places) -> None:
    assert full.load(("limits.processes", "5")).limits.processes == 5
    assert full.load(("limits.processes", "6")).limits.processes == 6
    assert full.load().limits.processes != 6


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(st.data())
def test_a_rotten_entry_is_compiled_again(full: Places, data: st.DataObject) -> None:
    fresh = full.load()
    (entry,) = entries(full)
    content = bytearray(entry.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    entry.write_bytes(bytes(content))
    assert full.load() == fresh


def test_an_entry_of_another_shape_is_compiled_again(full: Places) -> None:
    import marshal

    fresh = full.load()
    (entry,) = entries(full)
    shapes: list[Any] = [None, 1, (), ((), {}), ((), {"wall": "auto"}), ([("what", "x", "")], None), ((), [])]
    for strange in shapes:
        body = marshal.dumps(strange)
        entry.write_bytes(cached._MAGIC + files.digest(body).encode() + body)
        assert full.load() == fresh


def test_a_cache_that_others_can_write_is_refused(full: Places) -> None:
    full.load()
    (full.home / ".cache/stockade/policy").chmod(0o777)
    with pytest.raises(StockadeError) as caught:
        full.load()
    assert caught.value.code == "place.unsafe"


def test_without_room_for_a_cache_it_is_only_slower(full: Places) -> None:
    (full.home / ".cache").write_text("in the way")
    assert full.load() == full.compile().policy


def test_old_entries_are_dropped(full: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached, "_KEPT", 3)
    for number in range(2, 8):
        full.load(("limits.processes", str(number)))
    assert len(entries(full)) == 3


def test_the_default_needs_no_file_and_leaves_none(places: Places) -> None:
    policy = cached.load(str(places.work), managed=str(places.managed))
    assert (policy.workspace.path, policy.workspace.mode, policy.grants, policy.mounts) == (str(places.work), "rw", (), ())
    assert "PATH" not in policy.environment.pass_names and "TERM" in policy.environment.pass_names
    assert not (places.home / ".cache").exists()
    assert places.compile().policy == policy
    with pytest.raises(PolicyError, match="whole home"):
        cached.load(str(places.home), managed=str(places.managed))


PROBE = """
import sys, os, marshal, select, resource, time, errno, fcntl
import stockade.core.values, stockade.core.places, stockade.core.errors, stockade.core.frozen
before = set(sys.modules)
from stockade.policy import files, cached
policy = cached.load(os.getcwd(), managed=sys.argv[1])
print(*sorted(set(sys.modules) - before))
"""
OURS = {"stockade.policy", "stockade.policy.cached", "stockade.policy.defaults", "stockade.policy.files", "stockade.policy.paths", "_sha2"}


@pytest.mark.parametrize("with_file", [False, True])
def test_a_warm_start_imports_almost_nothing(full: Places, with_file: bool) -> None:
    if not with_file:
        full.own.unlink()
    source = str(Path(stockade.__file__).parents[1])
    command = [sys.executable, "-S", "-c", PROBE, str(full.managed)]
    environment = {**os.environ, "PYTHONPATH": source}
    if with_file:
        cached.load(str(full.work), managed=str(full.managed))
        assert entries(full)
    found = subprocess.run(command, env=environment, cwd=full.work, capture_output=True, text=True, check=True)
    assert set(found.stdout.split()) <= OURS


def test_a_warm_load_is_quick_beside_a_compilation(full: Places) -> None:
    """The aim is 2 ms; this catches work that comes back to the path of every start, on a machine of any speed."""
    full.compile()
    warm, cold = [], []
    for _ in range(9):
        for times, action in ((warm, full.load), (cold, full.compile)):
            start = time.process_time()  # not what others take of the machine meanwhile
            action()
            times.append(time.process_time() - start)
    assert min(warm) < min(cold) / 2


def test_the_places_are_the_ones_of_core(places: Places) -> None:
    assert core_places.config("policy.toml") == str(places.own)
