"""The files of this project as a person wrote them: no virtual environment, cache or build result."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SKIPPED = {".git", ".venv", ".tools", "build", "dist", "__pycache__", "node_modules", "native"}


def written_files() -> Iterator[Path]:
    """Every file of ours, relative paths hidden below tool caches left out."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in SKIPPED and not name.endswith("_cache") and name != ".hypothesis"]
        yield from (Path(folder) / name for name in names if not name.endswith(".pyc"))
    yield from (ROOT / "src/stockade/walls/native").glob("*.[chp]*")


def text(path: Path) -> str:
    """The file as text; bytes that are not UTF-8 are replaced."""
    return path.read_bytes().decode("utf-8", "replace")
