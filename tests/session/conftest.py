"""Fixtures of the session tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from session.supervised import Place, share_cache
from walls.boxes import require, scratch


@pytest.fixture
def place(tmp_path: Path) -> Place:
    require()
    share_cache(f"{scratch()}/xdg_cache_home")
    return Place(tmp_path)
