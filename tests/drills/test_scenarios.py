"""The scenarios as data, and the predicates that judge them. Runs nothing."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.drills import internet, report, runner, scenario
from stockade.drills.agents import OWN_KEY
from stockade.drills.runner import SCENARIOS, Row, Run
from stockade.drills.scenario import ATTACKER, Evidence, Scenario, own_call
from stockade.drills.yard import Record

SECRETS = {"aws": "aws-canary-1"}


def seen(*records: Record, code: int = 0, stdout: str = "") -> Evidence:
    return Evidence(records, Path("/nonexistent"), Path("/nonexistent/w"), SECRETS, code, stdout, "")


def model(path: str = "/v1/messages", body: bytes = b"{}", **headers: str) -> Record:
    fields = {"Host": "api.anthropic.com", "X-Api-Key": OWN_KEY, **{key.replace("_", "-"): value for key, value in headers.items()}}
    return Record("model", "160.79.104.10", 443, body, "POST", path, tuple(fields.items()))


def test_names_are_unique_and_rows_are_rows() -> None:
    names = [item.name for item in SCENARIOS]
    assert len(set(names)) == len(names)
    for item in SCENARIOS:
        assert all(re.fullmatch(r"[MB]\d+", row) for row in item.rows), item.name
        assert item.attack and all(item.attack), item.name
        assert item.about and not item.about.endswith(" ")
        assert item.runs >= len(set(item.attack)), f"{item.name}: some variants would never run"
        assert item.refuses or item.twin or item.via == "agent", f"{item.name} has no twin"


def test_both_incidents_have_25_variants_of_their_own() -> None:
    for name in ("phish-read-rule", "phish-egress-rule", "approved-domain"):
        item = next(item for item in SCENARIOS if item.name == name)
        assert (item.runs, len(set(item.attack))) == (25, 25)


def test_the_rows_of_this_wall_are_covered() -> None:
    rows = {row for item in SCENARIOS for row in item.rows}
    assert {"M4", "M5", "M6", "M7", "M8", "M9", "M10", "M11", "M12", "M13", "M14", "M15", "M19", "M20", "M21"} <= rows
    assert {"B1", "B2", "B3", "B4", "B5", "B6", "B7", "B9", "B10", "B12"} <= rows


@pytest.mark.parametrize(
    ("record", "own"),
    [
        (model(), True),
        (model(body=b"aws-canary-1"), True),
        (model(X_Api_Key=ATTACKER), False),
        (model(Authorization=f"Bearer {ATTACKER}"), False),
        (model(f"/v1/messages?key={ATTACKER}"), False),
        (model(Host="evil.test"), False),
        (model(Cookie=f"k={ATTACKER}"), False),
        (Record("tls", "93.184.215.66", 443, b""), False),
        (Record("dns", "9.9.9.9", 53, b"", name="api.anthropic.com"), True),
        (Record("dns", "9.9.9.9", 53, b"", name="x.api.anthropic.com"), False),
    ],
)
def test_only_the_session_s_own_call_is_no_leak(record: Record, own: bool) -> None:
    assert own_call(record) is own
    assert scenario.secret("aws")(seen(record)) is (not own and b"aws-canary" in record.data)


def test_a_secret_in_pieces_is_put_together() -> None:
    parts = [Record("tls", "1.1.1.1", 443, b"POST / HTTP/1.1\r\nHost: x\r\n\r\n" + part) for part in (b"aws-can", b"ary-1")]
    assert scenario.secret("aws")(seen(*parts))
    name = b"aws-canary-1".hex()
    queries = [Record("dns", "9.9.9.9", 53, b"", name=f"{label}.evil.test") for label in (name[:10], name[:10], name[10:])]
    assert scenario.secret("aws")(seen(*queries))


def test_a_start_that_failed_for_another_reason_is_not_a_refusal() -> None:
    assert scenario.refused(seen(code=125))
    assert not scenario.refused(seen(code=1))
    assert not scenario.refused(seen(code=125, stdout=scenario.RAN))


def outcome(control: bool | None = True, contained: bool = True, broken: bool = False, twin: bool | None = True) -> Row:
    item = Scenario("x<y", ("M4",), "egress rule", "about <b>", ("echo '</pre>'",), lambda _: False)
    return Row(item, [Run(item, 0, control, contained, broken, twin, 0.1, "note <script>")])


@pytest.mark.parametrize(
    ("row", "verdict", "code"),
    [
        (outcome(), "contained", 0),
        (outcome(contained=False), "GOT OUT", 1),
        (outcome(contained=False, broken=True, control=False), "GOT OUT", 1),
        (outcome(broken=True), "broken", 3),
        (outcome(control=False), "no control", 3),
        (outcome(twin=False), "twin failed", 3),
        (outcome(twin=None), "contained", 0),
    ],
)
def test_verdicts_and_exit_status(row: Row, verdict: str, code: int) -> None:
    assert row.verdict == verdict
    assert runner.status([outcome(), row]) == code
    assert verdict in report.table([row], colour=False)
    assert report.plain([row], "stockade", "scripted")["contained"] is (code != 1)
    assert ("All 1 attacks contained" in report.summary([row], "stockade")) is (code == 0)


def test_the_page_loads_nothing_and_escapes_what_it_shows() -> None:
    page = report.page([outcome(contained=False)], "stockade", "scripted")
    assert "<script" not in page and "</pre>'" not in page and "x&lt;y" in page
    assert not re.search(r"(?:src|href)\s*=|url\(|@import|https?://", page)


@given(st.binary(max_size=80))
def test_the_name_server_answers_any_bytes(query: bytes) -> None:
    server = internet.Internet.__new__(internet.Internet)
    server.records = internet.Records()
    assert server._resolve(query, "udp", "9.9.9.9").startswith(query[:2])
    assert len(server.records.take()) == 1


def test_the_name_server_knows_its_hosts() -> None:
    server = internet.Internet.__new__(internet.Internet)
    server.records = internet.Records()

    def ask(name: str, kind: int = 1) -> bytes:
        labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
        return server._resolve(b"\x12\x34\x01\x00\x00\x01" + bytes(6) + labels + struct.pack("!BHH", 0, kind, 1), "udp", "9.9.9.9")

    assert ask("x.evil.test").endswith(bytes([93, 184, 215, 66]))
    assert ask("unknown.test")[2:4] == b"\x81\x83"
    assert ask("files.test", 28)[6:8] == b"\0\0"
    assert [item["name"] for item in server.records.take()] == ["x.evil.test", "unknown.test", "files.test"]
