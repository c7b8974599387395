"""Fixtures of the session tests."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from session.supervised import Place, share_cache
from walls.boxes import require, scratch


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Place]:
    require()
    share_cache(f"{scratch()}/xdg_cache_home")
    made = Place(tmp_path)
    # A snapshot of a machine lies in the cache, and what it looked like in the state: where that is not known it is made again, which takes seconds.
    # Only for tests that name the wall: for all others the state directory is not there yet, whatever ran before them.
    known, own = Path(scratch(), "machines"), tmp_path / "state/stockade/vm"
    if known.exists() and re.search(r"vm\b|machine", request.node.nodeid):
        for folder in (own.parent.parent, own.parent, own):
            folder.mkdir(mode=0o700)
        shutil.copytree(known, own, dirs_exist_ok=True)
    yield made
    if own.exists():
        shutil.copytree(own, known, dirs_exist_ok=True)
