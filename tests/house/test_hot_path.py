"""The path of `stockade run` has 40 ms. Each module it loads is named here, so that a costly import is a decision and not an accident."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import unavailable

# Costs over a bare interpreter on an idle two-core machine: typing 9 ms, dataclasses 14, json 6, re 5, argparse 7, socket 9, subprocess 12,
# ctypes 3, hashlib 4, asyncio 60, pydantic 60-110. Those below cost next to nothing: they are built in, or a few lines.
CHEAP = {
    "_socket",
    "array",
    "atexit",
    "errno",
    "fcntl",
    "marshal",
    "posix",
    "resource",
    "select",
    "signal",
    "_signal",
    "struct",
    "_struct",
    "termios",
    "time",
}
CHEAP |= {"_sha2", "binascii", "gc", "itertools", "_posixsubprocess", "pwd", "tty", "stockade", "__future__", "_json"}

SHOW = "import sys; before = set(sys.modules); import {module}; print('\\n'.join(set(sys.modules) - before))"


def loads(module: str, cache: Path) -> set[str]:
    """What importing `module` adds to an interpreter that has just started."""
    # Twice: the first run writes the bytecode, since compiling imports more (`unicodedata` for a named character).
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"PYTHONPYCACHEPREFIX": str(cache)}
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", SHOW.format(module=module)], capture_output=True, text=True, timeout=60, env=env)
    if f"No module named '{module.rpartition('.')[0] or module}" in done.stderr or f"No module named '{module}'" in done.stderr:
        pytest.skip(f"{module} is not there")
    assert done.returncode == 0, done.stderr
    return {name for name in done.stdout.split() if not name.startswith("stockade.")}


HOT = [
    "stockade",
    "stockade.core.values",
    "stockade.core.places",
    "stockade.policy",
    "stockade.policy.cached",
    "stockade.record",
    "stockade.record.ledger",
    "stockade.walls.door",
    "stockade.walls.bubblewrap",
    "stockade.walls.gvisor",
    "stockade.walls.runsc",
    "stockade.session",
    "stockade.session.signing",  # in sessions that sign
    "stockade.session.trust",
    "stockade.walls.workspace.brought",  # in folders that are trusted
    "stockade.session.agents",  # in runs of agents by their names
    "stockade.cli",
    "stockade.cli.run",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bytecode")


@pytest.mark.parametrize("module", HOT)
def test_the_hot_path_loads_only_cheap_modules(module: str, cache: Path) -> None:
    assert loads(module, cache) <= CHEAP


def test_the_measure_sees_a_costly_import(cache: Path) -> None:
    assert "typing" in loads("typing", cache) - CHEAP


@pytest.mark.wall
@pytest.mark.parametrize("trusted", [False, True])
def test_a_whole_run_loads_only_cheap_modules(cache: Path, tmp_path: Path, trusted: bool) -> None:
    """Also what is imported inside functions, up to the end of the command; and in a folder whose own policy counts."""
    command = [sys.executable, "-X", "importtime", "-m", "stockade", "run", "--", "true"]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPYCACHEPREFIX": str(cache)}
    (tmp_path / "work").mkdir()
    if trusted:
        (tmp_path / "work/stockade.toml").write_text("version = 1\n[limits]\nprocesses = 200\n")
        grant = "import os; from stockade.session import trust; from stockade.walls.workspace.brought import collect; trust.grant(os.getcwd(), collect(os.getcwd()), 'digest')"
        subprocess.run([sys.executable, "-c", grant], cwd=tmp_path.resolve() / "work", env=env, check=True, timeout=60)
    for _ in range(2):  # the first run compiles bytecode and fills the caches
        done = subprocess.run(command, cwd=tmp_path / "work", env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    if done.returncode:
        unavailable("bubblewrap", done.stderr.strip().rpartition("\n")[2])
    names = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    bare = subprocess.run(
        [*command[:3], "-c", "import runpy"], env=env, capture_output=True, text=True, timeout=60
    ).stderr  # runpy: what -m needs
    names -= {line.rpartition("|")[2].strip() for line in bare.splitlines()}
    assert {name for name in names if not name.startswith("stockade.")} <= CHEAP
