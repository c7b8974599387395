"""What the tests of the page share: one page, served from questions that each test puts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.pages import Served, serving


@pytest.fixture(scope="module")
def everything() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture
def served(everything: Served) -> Served:
    everything.questions.fresh()
    return everything
