"""One upstream and one gate for the tests of a module; tests that break their gate start their own with `harness.running`."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

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
        found = engine.find()
    except CannotEnforce as error:
        unavailable("envoy", error.message)
    return found if found != engine.MITMPROXY else unavailable("envoy", "only the fallback is installed")


@pytest.fixture(scope="module", params=["envoy", engine.MITMPROXY])
def carrier(request: pytest.FixtureRequest) -> str:
    """Both engines, one after the other: what is refused and what passes is the same."""
    from conftest import unavailable

    if request.param == "envoy":
        return str(request.getfixturevalue("engine_binary"))
    return engine.MITMPROXY if find_spec("mitmproxy") else unavailable(engine.MITMPROXY, "it is not installed")


@pytest.fixture(scope="module")
def gate(carrier: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("gate"), upstream, kind=carrier) as started:
        yield started
