"""One upstream and one gate for the tests of a module; tests that break their gate start their own with `harness.running`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.harness import Gate, Upstream, running
from stockade.core.errors import CannotEnforce
from stockade.gateway import engine


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    served = Upstream(tmp_path_factory.mktemp("upstream"))
    yield served
    served.close()


@pytest.fixture(scope="session")
def engine_binary() -> str:
    from conftest import unavailable

    try:
        return engine.find()
    except CannotEnforce as error:
        unavailable("envoy", error.message)


@pytest.fixture(scope="module")
def gate(engine_binary: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("gate"), upstream) as started:
        yield started
