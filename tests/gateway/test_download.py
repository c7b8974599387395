"""What one answer may bring in: refused before it begins where it says its size, cut where it does not, and never taken for whole."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.harness import Gate, Upstream, running
from stockade.core.errors import CannotEnforce
from stockade.core.values import Grant
from stockade.gateway import engine

pytestmark = pytest.mark.wall
HOST = "open.localhost"
STREAM = 45  # bytes that the upstream streams, without saying so: "data: N\n\n", five times


@pytest.fixture(scope="module")
def bounded(engine_binary: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    def grant(path: str, most: int) -> Grant:
        return Grant(HOST, upstream.port, methods=("GET", "HEAD", "POST"), paths=(path,), private=True, max_download=most)

    grants = (grant("/v1/big/*", 1 << 20), grant("/v1/stream", STREAM - 1), grant("/other/**", 0))
    with running(tmp_path_factory.mktemp("gate"), upstream, grants) as gate:
        yield gate


def denials(gate: Gate) -> list[tuple[object, object]]:
    return [(event["rule"], event["path"]) for event in gate.events if event["effect"] == "deny"]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_an_answer_that_announces_too_much_never_begins(bounded: Gate, upstream: Upstream, version: str) -> None:
    bounded.events.clear()
    done = bounded.curl(f"https://{HOST}:{upstream.port}/v1/big/{256 << 20}", version, "-D", "/dev/stderr")
    assert done.returncode == 0 and done.stdout.endswith("[502]") and "download-too-large" in done.stdout
    assert "x-stockade-rule: download-too-large" in done.stderr
    assert denials(bounded) == [("download-too-large", f"/v1/big/{256 << 20}")]


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_what_is_as_large_as_granted_comes_whole(bounded: Gate, upstream: Upstream, version: str) -> None:
    done = bounded.curl(f"https://{HOST}:{upstream.port}/v1/big/{1 << 20}", version, "-o", "/dev/null", "-w", "[%{size_download}]")
    assert done.returncode == 0 and done.stdout.endswith(f"[{1 << 20}]")


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_an_answer_that_turns_out_too_large_is_cut_and_the_client_sees_an_error(bounded: Gate, upstream: Upstream, version: str) -> None:
    bounded.events.clear()
    done = bounded.curl(f"https://{HOST}:{upstream.port}/v1/stream", version)
    assert done.returncode != 0 and done.returncode != 28  # 28: it would have waited for ever
    assert "data: 0" in done.stdout and "data: 4" not in done.stdout
    assert denials(bounded) == [("download-too-large", "/v1/stream")]
    done = bounded.curl(f"https://{HOST}:{upstream.port}/other/x", version)  # the session goes on
    assert done.stdout.endswith("[200]")


def test_what_has_no_body_is_not_measured_by_the_one_it_speaks_of(bounded: Gate, upstream: Upstream) -> None:
    done = bounded.curl(f"https://{HOST}:{upstream.port}/v1/big/{256 << 20}", "-I")
    assert done.returncode == 0 and done.stdout.endswith("[200]")


@pytest.mark.parametrize("needs", [{"max_download": 1}, {"grpc": True, "methods": ("POST",)}])
def test_what_only_envoy_can_keep_is_refused_without_it(needs: dict[str, object]) -> None:
    engine.only_envoy((Grant(HOST),))
    with pytest.raises(CannotEnforce) as caught:
        engine.only_envoy((Grant(HOST), Grant(HOST, **needs)))  # type: ignore[arg-type]
    assert caught.value.code == "gate.needs-envoy" and caught.value.hint
