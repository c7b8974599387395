"""The engine's configuration, whole, against golden.json."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from stockade.gateway.config import FACTS, READ, SEAT, UPSTREAM, bootstrap
from stockade.gateway.meter import BOUNDS
from stockade.gateway.target import TARGET

GOLDEN = Path(__file__).with_name("golden.json")


def made(ca: str = "/etc/ssl/certs/ca-certificates.crt") -> dict[str, Any]:
    return bootstrap(directory="/tmp/gate", upstream_ca=ca)


def test_golden() -> None:
    assert made() == json.loads(GOLDEN.read_text()), (
        "if the change is meant: write json.dumps(made(), indent=1, sort_keys=True) to golden.json"
    )


def managers() -> list[dict[str, Any]]:
    return [chain["filters"][0]["typed_config"] for chain in chains() if len(chain["filters"]) == 1]


def chains() -> list[dict[str, Any]]:
    return [chain for listener in made()["static_resources"]["listeners"] for chain in listener["filter_chains"]]


def test_what_does_not_ask_only_hands_tls_on_after_the_name_was_checked() -> None:
    others = [chain for chain in chains() if len(chain["filters"]) != 1]
    assert len(others) == 2
    for chain in others:
        names = [entry["name"] for entry in chain["filters"]]
        assert names == ["expected", "envoy.filters.network.rbac", "envoy.filters.network.tcp_proxy"]
        assert chain["filters"][2]["typed_config"]["cluster"] == "tls" and chain["filter_chain_match"] == {"transport_protocol": "tls"}
        rules = chain["filters"][1]["typed_config"]["rules"]
        assert rules["action"] == "ALLOW" and all("condition" in policy for policy in rules["policies"].values())


def test_what_may_be_added_to_a_request_is_not_what_is_for_the_engine() -> None:
    [pattern] = managers()[0]["http_filters"][3]["typed_config"]["http_service"]["authorization_response"]["allowed_upstream_headers"][
        "patterns"
    ]
    added = re.compile(pattern["safe_regex"]["regex"])
    for name in (
        "authorization",
        "x-api-key",
        "x-goog-api-key",
        "cookie",
        "private-token",
        "c",
        "content",
        "x",
        "x-s",
        "x-stockad",
        "xkey",
    ):
        assert added.fullmatch(name), name
    for name in (":status", "content-length", "content-type", UPSTREAM, READ, TARGET, BOUNDS, *FACTS, "x-envoy-upstream-service-time"):
        assert not added.fullmatch(name), name


def test_every_way_in_asks_and_hides_the_facts() -> None:
    assert len(managers()) == 4
    for manager in managers():
        names = [entry["name"] for entry in manager["http_filters"]]
        assert names[-1] == "envoy.filters.http.router" and names[-2] == "strip"
        assert names.index("facts") < names.index("envoy.filters.http.ext_authz") < names.index("meter") < names.index("strip")
        assert names[names.index("meter") :] == ["meter", "retarget", "strip", "envoy.filters.http.router"]
        filters = {entry["name"]: entry["typed_config"] for entry in manager["http_filters"]}
        first, second = (entry["typed_config"] for entry in manager["http_filters"] if entry["name"] == "envoy.filters.http.ext_authz")
        assert first["failure_mode_allow"] is second["failure_mode_allow"] is False
        assert "filter_enabled_metadata" not in first and second["filter_enabled_metadata"]["path"] == [{"key": READ}]
        assert second["with_request_body"]["allow_partial_message"] is False
        assert {entry["remove"] for entry in filters["strip"]["mutations"]["request_mutations"]} == {*FACTS, UPSTREAM, READ, SEAT, TARGET}
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            unasked = route.get("typed_per_filter_config", {}).get("envoy.filters.http.ext_authz", {}).get("disabled", False)
            assert not unasked or route["route"]["cluster"] == "tunnel"


def test_the_only_ways_out_take_their_address_from_the_answer() -> None:
    clusters = {cluster["name"]: cluster for cluster in made()["static_resources"]["clusters"]}
    ways_out = {"origin-plain", "origin-plain-2", "origin-tls", "origin-tls-1"}
    assert set(clusters) == {"brain", "reader", "meter", "certificates", "tunnel", "tls", *ways_out}
    for name in ways_out:
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
