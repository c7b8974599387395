"""What every test shares: `must_work(name)` for walls and tools that CI insists on."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def unavailable(name: str, reason: str) -> NoReturn:
    """Skip the test with its reason, or fail it when `STOCKADE_MUST_WORK` (comma-separated names) says that `name` has to work here."""
    if name in os.environ.get("STOCKADE_MUST_WORK", "").split(","):
        pytest.fail(f"{name} must work here, but: {reason}")
    pytest.skip(f"{name}: {reason}")
