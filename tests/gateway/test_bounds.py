"""What a grant bounds, end to end: bodies that are read first, and counts that requests at the same time cannot share."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.harness import Gate, Upstream, running
from stockade.core.values import BodyRule, Grant

pytestmark = pytest.mark.wall
JSON = ("-H", "content-type: application/json")


def grant(upstream: Upstream, path: str, **more: object) -> Grant:
    fields = {"methods": ("POST", "GET"), "paths": (path,), "port": upstream.port, "private": True, **more}
    return Grant("open.localhost", **fields)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bounded(carrier: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    grants = (
        grant(upstream, "/model", body=(BodyRule("/model", ('"a"',)), BodyRule("/hook", absent=True)), content_types=("application/json",)),
        grant(upstream, "/listed", query="listed", parameters=("page",)),
        grant(upstream, "/uses/*", uses=5),
        grant(upstream, "/budget", upload_budget=1000),
        grant(upstream, "/rate", rate=3, rate_seconds=3600),
        grant(upstream, "/over", not_after=1),
        grant(upstream, "/big", body=(BodyRule(""),), max_upload=64 << 20, credential_fields=("*",)),
        grant(upstream, "/free/*"),
    )
    with running(tmp_path_factory.mktemp("gate"), upstream, grants, kind=carrier) as started:
        yield started


def post(gate: Gate, upstream: Upstream, path: str, data: str, *options: str) -> tuple[str, str]:
    """(status, rule or "")"""
    done = gate.curl(f"https://open.localhost:{upstream.port}{path}", "--data-binary", data, *options)
    body, _, status = done.stdout.rpartition("[")
    assert status != "000]", done.stderr
    return status.rstrip("]"), body.splitlines()[0].rpartition(": ")[2] if body.startswith("stockade refused") else ""


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
@pytest.mark.parametrize("length", [(), ("-H", "transfer-encoding: chunked")])
def test_bodies_are_read_and_arrive_unchanged(bounded: Gate, upstream: Upstream, version: str, length: tuple[str, ...]) -> None:
    upstream.requests.clear()
    good = json.dumps({"model": "a", "text": "x" * 5000})
    assert post(bounded, upstream, "/model", good, *JSON, version, *length) == ("200", "")
    assert [size for *_, size in upstream.requests] == [len(good)]
    for bad in (json.dumps({"model": "b"}), json.dumps({"model": "a", "hook": "http://evil.test"}), '{"model": "a", "model": "b"}', "{"):
        assert post(bounded, upstream, "/model", bad, *JSON, version, *length) == ("403", "body-not-granted")
    assert post(bounded, upstream, "/model", good, version, *length) == ("403", "content-type-not-granted")
    assert post(bounded, upstream, "/model", good, *JSON, "-H", "content-encoding: gzip", version, *length) == ("403", "body-not-granted")
    assert len(upstream.requests) == 1


def test_a_body_without_bytes_is_not_what_was_asked_for(bounded: Gate, upstream: Upstream) -> None:
    upstream.requests.clear()
    url = f"https://open.localhost:{upstream.port}/model"
    for options in (
        (),
        ("-X", "POST"),
        ("-X", "POST", "-H", "content-length: 0"),
        ("-X", "POST", *JSON, "-H", "transfer-encoding: chunked", "-d", ""),
    ):
        assert "body-not-granted" in bounded.curl(url, *options).stdout, options
    assert not upstream.requests


def test_a_body_too_large_to_be_read_is_refused(bounded: Gate, upstream: Upstream, tmp_path: Path) -> None:
    upstream.requests.clear()
    (tmp_path / "big").write_text('"' + "x" * (33 << 20) + '"')
    status, _ = post(bounded, upstream, "/big", f"@{tmp_path}/big", *JSON, "--http1.1")
    assert status == "413" and not upstream.requests
    (tmp_path / "fits").write_text('"' + "x" * (8 << 20) + '"')
    assert post(bounded, upstream, "/big", f"@{tmp_path}/fits", *JSON)[0] == "200"


def test_parameters(bounded: Gate, upstream: Upstream) -> None:
    assert post(bounded, upstream, "/listed?page=2", "") == ("200", "")
    for query in ("q=2", "page=2&q", "Page=2"):
        assert post(bounded, upstream, f"/listed?{query}", "") == ("403", "parameter-not-granted")


def test_uses_are_not_shared_by_requests_at_the_same_time(bounded: Gate, upstream: Upstream) -> None:
    upstream.requests.clear()
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda number=number: found.append(post(bounded, upstream, f"/uses/{number}", "x")[0]))
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Counter(found) == {"200": 5, "403": 11} and len(upstream.requests) == 5


def test_an_upload_budget_counts_bytes(bounded: Gate, upstream: Upstream) -> None:
    assert [post(bounded, upstream, "/budget", "x" * size) for size in (600, 500, 400, 1)] == [
        ("200", ""),
        ("403", "upload-budget-spent"),
        ("200", ""),
        ("403", "upload-budget-spent"),
    ]


def test_a_rate_says_that_it_is_worth_trying_later(bounded: Gate, upstream: Upstream) -> None:
    assert [post(bounded, upstream, "/rate", "")[0] for _ in range(4)] == ["200", "200", "200", "429"]


def test_a_window_that_is_over(bounded: Gate, upstream: Upstream) -> None:
    assert post(bounded, upstream, "/over", "") == ("403", "expired")


def test_what_never_left_is_given_back(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    grants = (
        grant(upstream, "/once", uses=1, private=False),
        Grant("open.localhost", methods=("POST",), paths=("/now",), port=upstream.port, private=True),
    )
    with running(tmp_path, upstream, grants) as gate:
        for _ in range(2):  # the address is loopback, which this grant does not vouch for
            assert post(gate, upstream, "/once", "x") == ("403", "address-not-public")


def test_after_something_secret_only_what_says_so_holds(engine_binary: str, upstream: Upstream, tmp_path: Path) -> None:
    grants = (grant(upstream, "/secret", secret=True), grant(upstream, "/free"), grant(upstream, "/later", after_secret=True))
    with running(tmp_path, upstream, grants) as gate:
        assert post(gate, upstream, "/free", "x") == ("200", "")
        assert post(gate, upstream, "/secret", "") == ("200", "")
        assert post(gate, upstream, "/free", "x") == ("403", "after-secret")
        assert [post(gate, upstream, path, "x") for path in ("/secret", "/later")] == [("200", "")] * 2


def test_reading_a_body_first_costs_no_second_entry_in_the_ledger(bounded: Gate, upstream: Upstream) -> None:
    time.sleep(0.1)
    before = len(bounded.events)
    post(bounded, upstream, "/model", json.dumps({"model": "a"}), *JSON)
    time.sleep(0.1)
    events = [event for event in bounded.events[before:] if event["kind"] == "egress" and event["method"] == "POST"]
    assert [event["effect"] for event in events] == ["allow"]
