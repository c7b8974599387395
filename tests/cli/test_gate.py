"""`stockade gate`: what it foresees, what it shows, and that the two agree for requests made in a real sandbox."""

from __future__ import annotations

import http.server
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from policy.support import Places
from session.supervised import Place, Terminal, share_cache
from stockade.cli import completion
from stockade.cli import main as stockade_main
from stockade.cli.gate import main
from stockade.cli.top import table
from stockade.core import places as core_places
from stockade.core.errors import CannotEnforce, StockadeError
from stockade.gateway import engine
from stockade.record.ledger import Ledger
from walls.boxes import require, scratch, until

RULES = """
[[egress]]
host = "a.example.com"
methods = ["POST"]
paths = ["/v1/messages"]
credential = "own"

[[egress]]
host = "a.example.com"
paths = ["/files/**"]
uses = 3

[[egress]]
host = "a.example.com"
paths = ["/files/secret/**"]
effect = "deny"

[credential.own]
source = "env:OWN_KEY"
header = "x-api-key"
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(core_places, "MANAGED_POLICY", str(tmp_path / "etc/stockade/policy.toml"))
    monkeypatch.setenv("OWN_KEY", "the-real-key-of-this-test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Places(tmp_path, monkeypatch).write(user=RULES)


def explained(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    status = main(["explain", *words, "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == (0 if found["effect"] == "allow" else 1)
    return found  # type: ignore[no-any-return]


# ---- explain ----------------------------------------------------------------------------------------------------------------------


def test_an_allow_names_rule_credential_and_what_is_read(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("POST", "https://a.example.com/v1/messages", "-H", "x-api-key: stockade-placeholder-own", "--data", "{}")
    assert main(["explain", *words]) == 0
    out = capsys.readouterr().out
    assert out.startswith("ALLOW  POST https://a.example.com/v1/messages\n") and f"{places.own}:3 (egress[0])" in out
    assert "own, which the gate puts in" in out and "all of it, before anything moves: this is the path of a model API" in out
    found = explained(capsys, *words)
    assert (found["effect"], found["origin"]["line"], found["credential"], found["name"]) == ("allow", 3, "own", True)
    assert "the-real-key" not in out + json.dumps(found)


def test_a_refusal_says_why_of_each_rule_and_what_would_allow_it(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "DELETE", "https://a.example.com/files/x"]) == 1
    out = capsys.readouterr().out
    assert "DENY" in out and "method-not-granted" in out and f"{places.own}:9 (egress[1])" in out and "\x1b" not in out
    assert 'methods = ["DELETE"]\n    paths = ["/files/x"]' in out and "has just begun" in out
    found = explained(capsys, "DELETE", "https://a.example.com/files/x")
    assert [(one["origin"]["line"], one["covers"], one["rule"]) for one in found["grants"]] == [
        (9, False, "method-not-granted"),
        (3, False, "path-not-granted"),
        (14, False, "other-request"),
    ]
    places.write(user=RULES + found["grant"])
    assert explained(capsys, "DELETE", "https://a.example.com/files/x")["effect"] == "allow"


@pytest.mark.parametrize(
    ("words", "effect", "rule", "line"),
    [
        (("https://a.example.com/files/x",), "allow", "grant", 9),
        (("https://a.example.com/files/secret/x",), "deny", "denied-by-rule", 14),
        (("https://b.example.com/",), "deny", "host-not-granted", 0),
        (("https://u:p@a.example.com/files/x",), "deny", "userinfo", 0),
        (("https://192.0.2.1/",), "deny", "bare-ip", 0),
        (("https://[2001:db8::1]/",), "deny", "bare-ip", 0),
        (("https://a.example.com/files/x", "-H", "authorization: Bearer x"), "deny", "foreign-credential", 9),
        (("https://a.example.com/files/%2f",), "deny", "malformed", 0),
        (("get", "https://a.example.com/files/x"), "deny", "malformed", 0),
        (("https://a.example.com/v1/messages", "--length", "9"), "undecided", "grant", 3),
        (("https://a.example.com/v1/messages", "--length", "99999999"), "deny", "upload-too-large", 3),
        (("https://a.example.com/v1/messages", "--data", '{"mcp_servers": [1]}'), "deny", "server-side-action", 0),
        (("tcp://db.example.com:5432",), "deny", "host-not-granted", 0),
        (("PUT", "https://x.test/up", "--allow", "PUT https://x.test/up", "--length", "9"), "allow", "grant", 0),
    ],
)
def test_questions(places: Places, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], effect: str, rule: str, line: int) -> None:
    found = explained(capsys, *words)
    assert (found["effect"], found["rule"].partition(" ")[0]) == (effect, rule)
    assert (found["origin"] or {"line": 0})["line"] == line


def test_a_body_comes_from_a_file_or_standard_input(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    (places.work / "body").write_text('{"mcp_servers": [1]}')
    assert explained(capsys, "https://a.example.com/v1/messages", "--data", "@body")["rule"] == "server-side-action"
    command = [sys.executable, "-m", "stockade", "gate", "explain", "--data", "@-", "--json", "https://a.example.com/v1/messages"]
    done = subprocess.run(command, input=b"{}", capture_output=True, timeout=60)
    assert (done.returncode, json.loads(done.stdout)["event"]["length"]) == (0, 2)
    with (places.work / "large").open("wb") as file:
        file.truncate(40 << 20)
    policy = places.work / "wide.toml"
    policy.write_text('version = 1\n[[egress]]\nhost = "w.test"\nmethods = ["POST"]\npaths = ["/**"]\nmax_upload = "100 MiB"\n')
    policy.chmod(0o600)
    found = explained(capsys, "https://w.test/up", "--data", "@large", "-p", str(policy))
    assert (found["effect"], found["event"]["length"]) == ("allow", 40 << 20)
    assert explained(capsys, "https://w.test/v1/messages", "--data", "@large", "--policy", str(policy))["rule"] == "malformed"


def test_without_its_key_the_gate_would_not_start(
    places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OWN_KEY")
    assert explained(capsys, "https://a.example.com/files/x")["rule"] == "credential.unavailable"
    found = explained(capsys, "https://a.example.com/other")
    assert found["rule"] == "path-not-granted" and "OWN_KEY" in found["notes"][0]


AWS_AND_QUERY = """
[[egress]]
host = "b.s3.example.com"
methods = ["PUT"]
paths = ["/**"]
credential = "aws"

[[egress]]
host = "maps.example.com"
methods = ["GET", "POST"]
paths = ["/**"]
credential = "maps"

[credential.aws]
source = "env:AWS_ACCESS_KEY_ID"
sigv4 = { services = ["s3"], regions = ["eu-central-1"] }

[credential.maps]
source = "env:OWN_KEY"
query = "key"
"""


def test_keys_of_aws_and_in_the_query(places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    places.write(user=AWS_AND_QUERY)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA-of-this-test")
    assert explained(capsys, "https://maps.example.com/x")["rule"] == "credential.unavailable"  # the other half is missing
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-real-key-of-this-test")
    stored = explained(capsys, "PUT", "https://b.s3.example.com/x", "--data", "hello")
    assert stored["effect"] == "allow" and "part of what is signed" in stored["body"]
    named = ("-H", "x-amz-copy-source: /other/secret")
    assert explained(capsys, "PUT", "https://b.s3.example.com/x", *named)["rule"] == "header-not-granted"
    assert explained(capsys, "https://maps.example.com/x?key=stockade-placeholder-maps&a=1")["effect"] == "allow"
    assert explained(capsys, "https://maps.example.com/x?key=mine")["rule"] == "credential-in-query"
    words = ("POST", "https://maps.example.com/x", "-H", "content-type: application/json", "--data")
    assert explained(capsys, *words, '{"token": "mine"}')["rule"] == "credential-in-body"
    assert "might be among its fields" in explained(capsys, *words, '{"note": "mine"}')["body"]
    assert explained(capsys, *words[:-1], "--length", "200000")["effect"] == "undecided"
    monkeypatch.setattr("stockade.gateway.sigv4.require", _not_installed)
    assert explained(capsys, "https://maps.example.com/x")["rule"] == "credential.no-botocore"


def _not_installed() -> None:
    raise CannotEnforce("it is not there", code="credential.no-botocore")


@pytest.mark.parametrize(
    "words",
    [
        ("ftp://a.test/",),
        ("a.test/x",),
        ("GET", "https://a.test/", "more"),
        ("tcp://a.test",),
        ("tcp://a.test:1/x",),
        ("tcp://a.test:1", "--length", "5"),
        ("https://a.test/", "-H", "no header"),
        ("https://a.test/", "-H", "content-length: 5"),
        ("https://a.test/", "--data", "@/does/not/exist"),
        ("https://a.test/", "-p", "one", "-p", "two"),
        ("https://a.test/", "--session", "s", "--allow", "GET https://a.test/"),
    ],
)
def test_wrong_usage_is_status_2(places: Places, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert stockade_main(["gate", "explain", *words]) == 2
    assert stockade_main(["gate", "explain", "--json", *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert json.loads(error)["hint"]


def test_what_the_parser_refuses_is_status_2(places: Places) -> None:
    for words in (
        [],
        ["explain"],
        ["explain", "https://a.test/", "--data", "x", "--length", "1"],
        ["top", "--interval", "0"],
        ["log", "-n", "x"],
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2


def test_a_policy_that_is_wrong_or_a_session_that_is_none_is_no_answer(places: Places) -> None:
    assert stockade_main(["gate", "explain", "https://a.test/", "--session", "none"]) == 125
    places.write(user="[[egress]]\nhots = 1\n")
    assert stockade_main(["gate", "explain", "https://a.test/"]) == 125


def test_nothing_that_is_asked_moves_the_cursor(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    main(["explain", "https://a.example.com/\x1b[2J", "-H", "x\x1b[2J: \x07"])
    main(["explain", "https://\x1b[2J/"])
    assert all(letter.isprintable() or letter == "\n" for letter in capsys.readouterr().out)


# ---- log --------------------------------------------------------------------------------------------------------------------------

EVIL = "evil\x1b]0;owned\x07\r\n\u202e"
EVENTS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "session.start", "session": "one", "command": ["true"]}, ""),
    ({"kind": "gate.start", "session": "one", "why": "a connection", "gate": "shared"}, "gate    starts for a connection (shared)"),
    ({"kind": "dns", "session": "one", "effect": "deny", "name": "Evil.test", "type": "A"}, "deny    name A Evil.test"),
    ({"kind": "connect", "session": "one", "effect": "deny", "rule": "r", "host": "c.test"}, "deny    certificate for c.test  r"),
    (
        {"kind": "egress", "session": "one", "effect": "allow", "rule": "grant f:1", "scheme": "https", "host": "a.test", "port": 8443,
         "method": "PUT", "path": "/x", "query": 1, "length": 5, "credential": "own"},
        "allow   PUT https://a.test:8443/x?...  grant f:1  5 bytes  with own",
    ),
    (
        {"kind": "egress", "session": "two", "effect": "deny", "rule": "host-not-granted", "host": "b.a.test", "port": 443, "method": "CONNECT"},
        "deny    CONNECT b.a.test:443  host-not-granted",
    ),
    (
        {"kind": "egress", "session": "two", "effect": "deny", "rule": "canary", "host": "a.test", "method": "GET", "canary": "the canary x"},
        "ALARM   the canary x was about to leave with GET a.test; it was stopped",
    ),
    (
        {"kind": "ask", "session": "one", "what": "GET http://a.test/x", "rule": "p.toml:3 (egress[0])"},
        "ask     GET http://a.test/x  p.toml:3 (egress[0])",
    ),
    ({"kind": "credential", "session": "one", "name": "own"}, "key     own is put in for the first time"),
    ({"kind": "session.revoke", "session": "one", "rules": [1, 3]}, "revoke  rules 1, 3 are taken back"),
    ({"kind": "egress", "session": "two", "effect": "deny", "rule": EVIL, "host": EVIL, "path": EVIL, "method": EVIL}, "deny    "),
    ({"kind": "gate.exit", "session": "one", "code": "gate.exit", "reason": "the gate ended"}, "gate    ends: the gate ended (gate.exit)"),
    ({"kind": "taint", "session": "two", "mount": "/crm"}, "taint   /crm was opened, which is secret"),
    ({"kind": "session.exit", "session": "one"}, ""),
    ({"kind": "tool", "session": "one", "effect": "allow", "rule": "no-tool-rule", "tool": "Bash"}, "allow   tool Bash  no-tool-rule"),
]  # fmt: skip


@pytest.fixture
def ledger(places: Places) -> None:
    written = Ledger(core_places.state("ledger"))
    for event, _ in EVENTS:
        written.append(event)
    written.close()


def test_each_decision_is_a_line_in_words(ledger: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log"]) == 0
    lines = capsys.readouterr().out.removesuffix("\n").split("\n")
    wanted = [text for _, text in EVENTS if text]
    assert len(lines) == len(wanted) and all(line.isprintable() for line in lines)
    for line, text in zip(lines, wanted, strict=True):
        assert text in line and re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}  (one|two) ", line)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14]),
        (["--session", "tw"], [5, 6, 10, 12]),
        (["--denied"], [2, 3, 5, 6, 10]),
        (["--host", "A.test"], [4, 5, 6]),
        (["--host", "b.a.test"], [5]),
        (["--host", "evil.test", "--denied"], [2]),
        (["-n", "2"], [12, 14]),
        (["--denied", "-n", "1"], [10]),
        (["-n", "0"], []),
    ],
)
def test_what_is_shown_can_be_chosen(ledger: None, capsys: pytest.CaptureFixture[str], options: list[str], expected: list[int]) -> None:
    assert main(["log", "--json", *options]) == 0
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == expected


def test_the_whole_log_can_be_chosen_from_in_the_same_way(ledger: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert stockade_main(["log", "show", "--json", "--denied", "--host", "a.test"]) == 0
    assert [json.loads(line)["index"] for line in capsys.readouterr().out.splitlines()] == [5, 6]


def test_no_log_and_a_damaged_one(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log"]) == 0 and "nothing is recorded" in capsys.readouterr().err
    os.makedirs(core_places.state("ledger"))
    Path(core_places.state("ledger"), "log.jsonl").write_bytes(b"\x1b[2J\n")
    assert main(["log"]) == 1 and "stockade log verify" in capsys.readouterr().err


def test_following_begins_with_the_last_ones(ledger: None) -> None:
    command = [sys.executable, "-m", "stockade", "gate", "log", "--follow", "-n", "1", "--json", "--denied"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["index"] == 10
        Ledger(core_places.state("ledger")).append({"kind": "dns", "effect": "allow", "name": "a.test", "type": "A"})
        Ledger(core_places.state("ledger")).append({"kind": "dns", "effect": "deny", "name": "b.test", "type": "A"})
        assert json.loads(process.stdout.readline())["name"] == "b.test"
        process.stdout.close()
        assert process.wait(20) == 0


# ---- top --------------------------------------------------------------------------------------------------------------------------


def row(**facts: Any) -> dict[str, Any]:
    return {
        "session": "s1", "command": ["sh", "-c", "a b"], "age": 3725.0, "allowed": 12, "refused": 3, "allowed_per_second": 0.5,
        "refused_per_second": 0.0, "up": 2048, "busiest": "a.test", "ended": "",
        "last": {"effect": "deny", "method": "GET", "host": "a.test", "path": "/x", "rule": "r"}, **facts,
    }  # fmt: skip


def test_a_table_for_people() -> None:
    head, line = table([row()])
    assert head.split()[:3] == ["SESSION", "AGE", "ALLOWED"]
    assert re.split(r" {2,}", line.strip()) == [
        "s1",
        "1:02:05",
        "12",
        "0.5",
        "3",
        "0.0",
        "2.0 KiB",
        "a.test",
        "deny GET a.test/x r",
        "sh -c 'a b'",
    ]
    assert len(head) == len(line)
    strange = table([row(busiest=EVIL * 9, command=[EVIL], last=None, age=200_000.0, up=5 << 40, ended=EVIL)])
    assert all(text.isprintable() for text in strange) and "2d07h" in strange[1] and "5.0 TiB" in strange[1]
    assert table([])[1] == "No session runs."


def test_nothing_runs(places: Places, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top"]) == 0 and "No session runs." in capsys.readouterr().out  # no terminal: as --once
    assert main(["top", "--once", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["sessions"] == []


# ---- completion -------------------------------------------------------------------------------------------------------------------


def test_the_group_can_be_completed(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert completion.main(["bash"]) == 0
    script = capsys.readouterr().out
    words = script.replace("(", " ").replace(")", " ").split()
    assert {"gate", "explain", "--header", "--length", "--follow", "--denied", "--interval", "--once"} <= {*words}
    assert subprocess.run(["bash", "-n"], input=script.encode(), timeout=20).returncode == 0


def test_help_says_what_the_exit_status_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["explain", "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "[METHOD] URL" in said and "Exit status 0: allowed, 1: not allowed, 2: usage" in said


# ---- from outside -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_POST = do_PUT = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    try:
        engine.find()
    except CannotEnforce as error:
        unavailable("envoy", error.message)
    served = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=served.serve_forever, args=(0.05,), daemon=True).start()
    yield served.server_port
    served.shutdown()
    served.server_close()


@pytest.fixture
def place(tmp_path: Path, server: int) -> Place:
    require()
    share_cache(f"{scratch()}/xdg_cache_home")
    made = Place(tmp_path)
    policy = made.home / ".config/stockade/policy.toml"
    policy.parent.mkdir(parents=True, mode=0o700)
    policy.write_text(POLICY.replace("PORT", str(server)))
    policy.chmod(0o600)
    return made


POLICY = """version = 1
[[egress]]
host = "open.localhost"
scheme = "http"
port = PORT
methods = ["GET", "POST"]
paths = ["/public/**"]
private = true
credential = "own"
max_upload = "1 KiB"

[[egress]]
host = "open.localhost"
scheme = "http"
port = PORT
paths = ["/public/secret/**"]
effect = "deny"

[[egress]]
host = "open.localhost"
scheme = "http"
port = PORT
methods = ["POST"]
paths = ["/typed"]
content_types = ["application/json"]
body = [{ pointer = "/model", values = ["small"] }]
private = true

[[egress]]
host = "open.localhost"
paths = ["/tls"]
private = true

[credential.own]
source = "env:OWN_KEY"
header = "x-api-key"
env = "KEY"

[canary.test]
value = "the-planted-string-of-this-test"
"""
JSON = "content-type: application/json"
# Words of both `stockade gate explain` and curl, as far as both know them: (method, URL, header or "", body).
REQUESTS = [
    ("GET", "http://open.localhost:PORT/public/x", "", ""),
    ("GET", "http://open.localhost:PORT/public/x", "x-api-key: KEY", ""),
    ("GET", "http://open.localhost:PORT/public/x", "x-api-key: attacker", ""),
    ("GET", "http://open.localhost:PORT/public/x?q=1", "", ""),
    ("GET", "http://open.localhost:PORT/public/a/../b//c", "", ""),
    ("GET", "http://open.localhost:PORT/public/..;/secret", "", ""),
    ("GET", "http://open.localhost:PORT/public/Secret/x", "", ""),
    ("GET", "http://open.localhost:PORT/private", "", ""),
    ("PUT", "http://open.localhost:PORT/public/x", "", ""),
    ("POST", "http://open.localhost:PORT/public/x", JSON, "x" * 2000),
    ("POST", "http://open.localhost:PORT/public/x", JSON, "the-planted-string-of-this-test"),
    ("POST", "http://open.localhost:PORT/typed", JSON, '{"model": "small"}'),
    ("POST", "http://open.localhost:PORT/typed", JSON, '{"model": "large"}'),
    ("POST", "http://open.localhost:PORT/typed", "content-type: text/plain", '{"model": "small"}'),
    ("GET", "http://open.localhost:PORT/public/x", "x-forwarded-host: evil.test", ""),
    ("GET", "https://evil.test/", "", ""),
    ("GET", "https://192.0.2.1/", "", ""),
    ("GET", "https://open.localhost/other", "", ""),
    ("GET", "http://evil.test/", "", ""),
]


def stockade(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "stockade", *words]
    return subprocess.run(
        command, cwd=place.work, env={**place.env, "OWN_KEY": "the-real-key"}, capture_output=True, text=True, timeout=120
    )


def curl(method: str, url: str, header: str, body: str) -> str:
    words = ["curl", "-sk", "-o", "/dev/null", "--path-as-is", "-m", "10", "--noproxy", "", "-x", "http://127.0.0.1:3128", "-X", method]
    words += ["-w", "%{http_code}\\n", *(["--data-binary", body] if body else []), url]
    return shlex.join(words) + (f' -H "{header.replace("KEY", "$KEY")}"' if header else "")


def foreseen(place: Place, method: str, url: str, header: str, body: str, *more: str) -> dict[str, Any]:
    words = ["gate", "explain", "--json", method, url, *(["--data", body] if body else []), *more]
    words += ["-H", header.replace("KEY", "stockade-placeholder-own")] if header else []
    done = stockade(place, *words)
    assert done.returncode in (0, 1), done
    found = json.loads(done.stdout)
    assert (found["effect"] == "allow") == (done.returncode == 0)
    return found  # type: ignore[no-any-return]


@pytest.mark.wall
def test_what_happens_in_a_sandbox_is_what_was_foreseen(place: Place, server: int) -> None:
    requests = [(method, url.replace("PORT", str(server)), header, body) for method, url, header, body in REQUESTS]
    before = [foreseen(place, *one) for one in requests]
    assert not (place.root / "state").exists()  # nothing ran, and nothing was recorded
    done = stockade(place, "run", "--", "/bin/sh", "-c", "\n".join(curl(*one) for one in requests))
    events = [
        event for event in place.ledger() if event["kind"] == "egress" and (event["method"] != "CONNECT" or event["effect"] == "deny")
    ]
    assert len(events) == len(requests), (done, events)
    for wanted, event, status in zip(before, events, done.stdout.split(), strict=True):
        happened = {name: value for name, value in event.items() if name not in ("index", "time", "session")}
        assert happened == wanted["event"]
        assert (wanted["effect"], wanted["rule"]) == (event["effect"], event["rule"])
        assert (status == "200") == (wanted["effect"] == "allow")
    assert {found["effect"] for found in before} == {"allow", "deny"} and len({found["rule"] for found in before}) >= 9
    shown = stockade(place, "gate", "log").stdout
    assert "ALARM" in shown and "the-planted-string" not in shown and "key     own is put in" in shown and "gate    starts" in shown


def start(place: Place, script: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stockade", "run", "--", "/bin/sh", "-c", script]
    env = {**place.env, "OWN_KEY": "the-real-key"}
    return subprocess.Popen(command, cwd=place.work, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.wall
def test_a_running_session_is_explained_and_watched(place: Place, server: int) -> None:
    url, other = f"http://open.localhost:{server}/public/x", f"http://open.localhost:{server}/private"
    ask = f'{curl("POST", url, "x-api-key: KEY", "four")}; {curl("GET", other, "", "")}; printf %s "$KEY" > key'
    run = start(place, f"{ask}; touch ready; while [ ! -e go ]; do sleep 0.05; done; {curl('GET', url, '', '')} > after; sleep 60")
    try:
        assert until((place.work / "ready").exists, 30)
        (ident,) = [one for one in os.listdir(place.sessions) if not one.startswith(".")]
        found = json.loads(stockade(place, "gate", "top", "--once", "--json", "--interval", "60").stdout)["sessions"]
        assert [(one["session"], one["allowed"], one["refused"], one["up"], one["busiest"]) for one in found] == [
            (ident, 1, 1, 4, "open.localhost")
        ]
        assert found[0]["command"][0] == "/bin/sh" and found[0]["last"]["rule"] == "path-not-granted" and found[0]["allowed_per_second"] > 0
        lines = stockade(place, "gate", "top", "--once").stdout.splitlines()
        assert len(lines) == 2 and lines[1].startswith(ident) and "\x1b" not in lines[1]

        key = (place.work / "key").read_text()
        assert foreseen(place, "GET", url, f"x-api-key: {key}", "", "--session", ident)["effect"] == "allow"
        assert foreseen(place, "GET", url, "x-api-key: KEY", "", "--session", ident)["rule"] == "foreign-credential"
        assert foreseen(place, "GET", url, "", "", "--session", ident[:9])["effect"] == "allow"
        assert stockade(place, "session", "revoke", ident, "--rule", "1").returncode == 0
        assert foreseen(place, "GET", url, "", "")["effect"] == "allow"
        told = foreseen(place, "GET", url, "", "", "--session", ident)
        (place.work / "go").touch()
        assert until(lambda: (place.work / "after").exists() and (place.work / "after").read_text().strip() == "403", 20)
        (event,) = [event for event in place.ledger() if event["kind"] == "egress"][2:]
        assert (told["effect"], told["rule"]) == (event["effect"], event["rule"]) == ("deny", "path-not-granted")

        watching = Terminal(place, [], words=[sys.executable, "-m", "stockade", "gate", "top", "--interval", "0.3"])
        try:
            watching.expect("SESSION.*" + ident)
            watching.resize(40, 5)
            watching.expect("1 sessions")
            watching.type("q")
            assert watching.wait() == 0 and b"Traceback" not in watching.seen
        finally:
            watching.close()
    finally:
        run.terminate()
        run.communicate(timeout=30)
    assert stockade(place, "gate", "explain", url, "--session", ident).returncode == 125


@pytest.mark.wall
def test_a_session_that_opened_something_secret_is_explained(place: Place, server: int) -> None:
    (place.home / "crm").mkdir()
    (place.home / "crm/file").write_text("customers")
    with (place.home / ".config/stockade/policy.toml").open("a") as policy:
        policy.write('\n[[mount]]\npath = "~/crm"\nsecret = true\n')
    url = f"http://open.localhost:{server}/public/x"
    before = foreseen(place, "GET", url, "", "")
    assert before["effect"] == "allow" and "has just begun" in " ".join(before["notes"])
    run = start(place, f"cat {place.home}/crm/file > /dev/null; {curl('GET', url, '', '')}; touch ready; sleep 60")
    try:
        assert until((place.work / "ready").exists, 30)
        (ident,) = [one for one in os.listdir(place.sessions) if not one.startswith(".")]
        told = foreseen(place, "GET", url, "", "", "--session", ident)
        (event,) = [event for event in place.ledger() if event["kind"] == "egress"]
        assert (told["effect"], told["rule"]) == (event["effect"], event["rule"]) == ("deny", "after-secret")
        assert "taint   " in stockade(place, "gate", "log").stdout
    finally:
        run.terminate()
        run.communicate(timeout=30)


@pytest.mark.wall
def test_after_its_gate_ended_nothing_is_said_to_leave(place: Place, server: int) -> None:
    url = f"http://open.localhost:{server}/public/x"
    run = start(place, f"{curl('GET', url, '', '')}; touch ready; sleep 60")
    try:
        assert until((place.work / "ready").exists, 30)
        (ident,) = [one for one in os.listdir(place.sessions) if not one.startswith(".")]
        assert foreseen(place, "GET", url, "", "", "--session", ident)["effect"] == "allow"
        kill_the_gate_of(run.pid)
        assert until(lambda: any(event["kind"] == "gate.exit" for event in place.ledger()), 20)
        assert foreseen(place, "GET", url, "", "", "--session", ident)["rule"] == "gate.exit"
        assert "the gate has ended" in stockade(place, "gate", "top", "--once").stdout
    finally:
        run.terminate()
        run.communicate(timeout=30)


def kill_the_gate_of(pid: int) -> None:
    """End the process of our own supervisor's child that decides."""
    waiting, deadline = [pid], time.monotonic() + 10
    while waiting and time.monotonic() < deadline:
        one = waiting.pop()
        children = [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
        for child in children:
            if b"stockade.gatehouse" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(child, 9)
                return
        waiting += children
    raise AssertionError("no gate runs")


def test_an_error_of_the_desk_is_no_answer(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    from stockade.session import predict

    def silent(directory: str, order: dict[str, Any]) -> dict[str, Any]:
        raise StockadeError("the session hung up", code="session.silent")

    monkeypatch.setattr("stockade.gateway.desk.ask", silent)
    with pytest.raises(StockadeError):
        predict.rules_of("/nowhere")
