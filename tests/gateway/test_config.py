"""The engine's configuration, whole, against golden.json."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stockade.gateway.config import FACTS, READ, UPSTREAM, bootstrap

GOLDEN = Path(__file__).with_name("golden.json")


def made(ca: str = "/etc/ssl/certs/ca-certificates.crt") -> dict[str, Any]:
    return bootstrap(directory="/tmp/gate", upstream_ca=ca, injected=("X-Api-Key", "authorization"))


def test_golden() -> None:
    assert made() == json.loads(GOLDEN.read_text()), (
        "if the change is meant: write json.dumps(made(), indent=1, sort_keys=True) to golden.json"
    )


def managers() -> list[dict[str, Any]]:
    chains = [chain for listener in made()["static_resources"]["listeners"] for chain in listener["filter_chains"]]
    return [chain["filters"][0]["typed_config"] for chain in chains]


def test_every_way_in_asks_and_hides_the_facts() -> None:
    assert len(managers()) == 5
    for manager in managers():
        names = [entry["name"] for entry in manager["http_filters"]]
        assert names[-1] == "envoy.filters.http.router" and names[-2] == "strip"
        assert names.index("facts") < names.index("envoy.filters.http.ext_authz") < names.index("strip")
        filters = {entry["name"]: entry["typed_config"] for entry in manager["http_filters"]}
        first, second = (entry["typed_config"] for entry in manager["http_filters"] if entry["name"] == "envoy.filters.http.ext_authz")
        assert first["failure_mode_allow"] is second["failure_mode_allow"] is False
        assert "filter_enabled_metadata" not in first and second["filter_enabled_metadata"]["path"] == [{"key": READ}]
        assert second["with_request_body"]["allow_partial_message"] is False
        assert {entry["remove"] for entry in filters["strip"]["mutations"]["request_mutations"]} == {*FACTS, UPSTREAM}
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            unasked = route.get("typed_per_filter_config", {}).get("envoy.filters.http.ext_authz", {}).get("disabled", False)
            assert not unasked or route["route"]["cluster"] == "tunnel"


def test_the_only_ways_out_take_their_address_from_the_answer() -> None:
    clusters = {cluster["name"]: cluster for cluster in made()["static_resources"]["clusters"]}
    assert set(clusters) == {"brain", "reader", "certificates", "tunnel", "origin-plain", "origin-tls"}
    for name in ("origin-plain", "origin-tls"):
        assert clusters[name]["original_dst_lb_config"]["metadata_key"]["path"] == [{"key": UPSTREAM}]
    assert "admin" not in made()


@pytest.mark.wall
def test_the_engine_accepts_it(engine_binary: str, upstream: Any, tmp_path: Path) -> None:
    path = tmp_path / "envoy.json"
    path.write_text(json.dumps(made(str(upstream.ca))))
    done = subprocess.run(
        [engine_binary, "-c", str(path), "--mode", "validate", "-l", "error", "--disable-hot-restart"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
