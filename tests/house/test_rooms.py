"""The import contract bites: an undeclared room, a room that looks sideways and one that looks up are each refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from house.tree import ROOT

ROOMS = ["core", "policy", "walls", "session.py", "cli"]


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A house with our contract and empty rooms."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "stockade").mkdir()
    (tmp_path / "stockade/__init__.py").touch()
    for room in ROOMS:
        write(tmp_path, room)
    return tmp_path


def write(house: Path, room: str, content: str = "") -> None:
    path = house / "stockade" / (room if room.endswith(".py") else f"{room}/__init__.py")
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)


def lint(house: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys; from importlinter.cli import lint_imports_command; sys.argv[1:] = ['--no-cache']; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=house,
        env={"PYTHONPATH": str(house), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_rooms_as_declared_pass(house: Path) -> None:
    write(house, "cli", "import stockade.session")
    write(house, "session.py", "import stockade.policy\nimport stockade.walls")
    write(house, "walls", "import stockade.core")
    assert lint(house).returncode == 0


@pytest.mark.parametrize(
    ("room", "content"),
    [
        ("attic", ""),
        ("walls", "import stockade.policy"),
        ("policy", "from stockade import session"),
        ("core", "import stockade.walls"),
        ("session.py", "import stockade.cli"),
    ],
)
def test_breaches_are_refused(house: Path, room: str, content: str) -> None:
    write(house, room, content)
    done = lint(house)
    assert done.returncode != 0 and ("BROKEN" in done.stdout or "attic" in done.stdout + done.stderr)
