"""`stockade tools --http`: who may speak to it (M18), whose sandbox is whose, and what it bounds. What the tools do is in test_tools.py, for this way too."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cli.clients import PATIENCE, Remote, Said, fresh, processes, start
from conftest import unavailable
from session.supervised import Place, offspring
from stockade.cli import tools
from stockade.core.errors import StockadeError
from stockade.server import rpc
from walls.boxes import until

pytestmark = pytest.mark.wall
# What a machine would wait for is short here.
QUICK = "import stockade.server.streamable as s, stockade.server.listening as l; s.BEAT = 0.2; s.EVERY = 0.1; l.PATIENCE = 2.0"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    """One server, and one session of it, for every test that leaves both as they were."""
    client = Remote(fresh(tmp_path_factory.mktemp("http")), before=QUICK)
    yield client
    assert client.close() == 0


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return fresh(tmp_path)


def error(said: Said) -> str:
    message = json.loads(said.body)
    assert message["jsonrpc"] == "2.0" and "result" not in message
    return str(message["error"]["message"])


def touch(name: str) -> dict[str, Any]:
    """A call that anybody would see."""
    return {"jsonrpc": "2.0", "id": name, "method": "tools/call", "params": {"name": "bash", "arguments": {"command": f"touch {name}"}}}


# ---- who may speak --------------------------------------------------------------------------------------------------------------------

REFUSED = {
    "no token": (401, {"authorization": ""}),
    "another token": (401, {"authorization": "Bearer " + "A" * 43}),
    "a part of the token": (401, {"authorization": "TOKEN[:-1]"}),
    "the token without its scheme": (401, {"authorization": "BARE"}),
    "the token as a password": (401, {"authorization": "Basic BARE"}),
    "the token in a cookie": (401, {"authorization": "", "cookie": "Authorization=TOKEN; token=BARE"}),
    "a page of another site": (403, {"origin": "http://evil.test"}),
    "a page of no site": (403, {"origin": "null"}),
    "a page on another port": (403, {"origin": "http://127.0.0.1:1"}),
    "a page on the other name": (403, {"origin": "http://localhost:PORT"}),
    "another name that leads here": (403, {"host": "evil.test"}),
    "another name with the port": (403, {"host": "evil.test:PORT"}),
    "another name and its own page": (403, {"host": "evil.test:PORT", "origin": "http://evil.test:PORT"}),
    "the address without the port": (403, {"host": "127.0.0.1"}),
    "the address of all": (403, {"host": "0.0.0.0:PORT"}),
    "no session": (400, {"mcp-session-id": ""}),
    "a session that is guessed": (404, {"mcp-session-id": "A" * 43}),
    "a part of a session's id": (404, {"mcp-session-id": "SESSION[:-1]"}),
    "the sandbox's own id": (404, {"mcp-session-id": "SANDBOX"}),
    "another revision": (400, {"mcp-protocol-version": "2031-01-01"}),
    "what a form of another page can send": (415, {"content-type": "text/plain"}),
    "two kinds of content": (415, {"content-type": "application/json, text/plain"}),
    "an answer that is not understood": (406, {"accept": "application/json"}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_comes_from_somewhere_else_is_refused_and_runs_nothing(shared: Remote, why: str) -> None:
    status, other = REFUSED[why]
    sandbox = [event["session"] for event in shared.place.ledger() if event["kind"] == "session.start"]
    parts = {
        "TOKEN[:-1]": shared.token[:-1], "TOKEN": shared.token, "BARE": shared.token.removeprefix("Bearer "), "PORT": str(shared.port),
        "SESSION[:-1]": shared.session[:-1], "SANDBOX": str((sandbox or ["s20261126-000000-00000000"])[0]),
    }  # fmt: skip
    for name, value in parts.items():
        other = {key: text.replace(name, value) for key, text in other.items()}
    said = shared.post(touch("attacked"), **other)
    assert said.status == status and error(said) and shared.token.removeprefix("Bearer ") not in said.body.decode()
    assert ("www-authenticate" in said.headers) == (status == 401)
    assert not [name for name in said.headers if name.startswith("access-control") or name == "server"]
    assert shared.request("DELETE", "/mcp", shared.headers(**other)).status == (status if status not in (415, 406) else 204)
    if status in (415, 406):  # of what DELETE does not look at
        shared.session = shared.opened()[1]
    twin = shared.post(touch("twin"))
    assert twin.status == 200 and "exit code 0" in twin.body.decode() and (shared.place.work / "twin").exists()
    assert not (shared.place.work / "attacked").exists()
    (shared.place.work / "twin").unlink()


def test_a_page_cannot_ask_whether_it_might(shared: Remote) -> None:
    asked = {"host": f"127.0.0.1:{shared.port}", "origin": "http://evil.test", "access-control-request-method": "POST"}
    for method in ("OPTIONS", "GET", "HEAD", "POST"):
        said = shared.request(method, "/mcp", asked)
        assert said.status == 403 and not [name for name in said.headers if name.startswith("access-control")]


def test_headers_that_count_are_there_once(shared: Remote) -> None:
    wrong = shared.headers(authorization="Bearer wrong")
    for name in ("Authorization", "Host", "Mcp-Session-Id", "Origin"):
        value = {"Origin": f"http://127.0.0.1:{shared.port}"}.get(name) or shared.headers()[name.lower()]
        headers = {
            **(wrong if name == "Authorization" else shared.headers(origin="http://evil.test" if name == "Origin" else "")),
            name: value,
        }
        if name == "Mcp-Session-Id":
            headers["mcp-session-id"] = "A" * 43
        assert shared.request("POST", "/mcp", headers, json.dumps(touch("attacked")).encode()).status == 400
    own = shared.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, origin=f"http://127.0.0.1:{shared.port}")
    assert own.status == 200 and not (shared.place.work / "attacked").exists()
    assert shared.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, host=f"localhost:{shared.port}").status == 200


def test_nothing_is_read_of_a_body_before_its_sender_is_known(shared: Remote) -> None:
    headers = shared.headers(authorization="", expect="100-continue", content_length=str(8 << 20))
    with shared.connected(_head("POST /mcp", headers)) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")
    with shared.connected(_head("POST /mcp", {**headers, "authorization": shared.token})) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")


def _head(line: str, headers: dict[str, str]) -> bytes:
    return "".join([f"{line} HTTP/1.1\r\n", *(f"{name}: {value}\r\n" for name, value in headers.items()), "\r\n"]).encode()


def test_it_listens_on_one_address_and_the_token_is_in_one_file_alone(shared: Remote) -> None:
    with pytest.raises(ConnectionRefusedError):
        shared.request("POST", "/mcp", shared.headers(), b"{}", address="127.0.0.2")
    token = shared.token.removeprefix("Bearer ")
    assert len(token) == 43 and shared.file.stat().st_mode & 0o777 == 0o600 and token in shared.file.read_text()
    assert token not in shared.config["url"] and token not in (shared.place.root / "said").read_text()
    assert token not in " ".join(offspring(shared.server.pid).values())
    for part in ("cmdline", "environ"):
        assert token.encode() not in Path(f"/proc/{shared.server.pid}/{part}").read_bytes()
    assert token not in shared.good("bash", command="env; cat /proc/*/environ /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n'")
    assert token not in json.dumps(shared.place.ledger())


ELSEWHERE = ("0.0.0.0", "0.0.0.0:8000", "[::]:8000", "192.0.2.1:8000", "example.test:8000", "::ffff:10.0.0.1", "8000")


@pytest.mark.parametrize("where", [*ELSEWHERE, "127.0.0.1:80", "127.0.0.1:x", "127.0.0.1:", "127.0.0.1:99999"])
def test_other_addresses_than_loopback_are_refused(where: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StockadeError) as caught:
        tools.main(["--http", where, "--no-project"])
    assert caught.value.code == "tools.address" and capsys.readouterr().out == ""


@pytest.mark.parametrize("where", ["127.0.0.1", "127.0.0.3:0", "localhost", "[::1]", ":0"])
def test_loopback_is_served_and_the_configuration_goes_to_standard_output_once(place: Place, where: str) -> None:
    if where == "[::1]" and not Path("/proc/net/if_inet6").exists():
        unavailable("ipv6", "this machine has no IPv6")
    with start(place, "--http", where, stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout
            config = json.loads(server.stdout.readline())["mcpServers"]["stockade"]
            host, port = config["url"].removeprefix("http://").removesuffix("/mcp").rsplit(":", 1)
            assert config["type"] == "http" and host == (where.removesuffix(":0").replace("localhost", "127.0.0.1") or "127.0.0.1")
            headers = {"host": f"{host}:{port}", "accept": "*/*", "content-length": "0", **config["headers"]}
            with socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE) as connection:
                connection.sendall(_head("GET /mcp", headers))
                assert connection.recv(100).startswith(b"HTTP/1.1 405 ")
            with start(place, "--http", f"{host}:{port}", stdout=subprocess.PIPE) as late:  # the port is taken
                assert late.communicate(timeout=PATIENCE)[0] == b"" and late.returncode == 125
            server.terminate()
            assert server.stdout.read() == b"" and server.wait(PATIENCE) == 0
        finally:
            server.kill()


def test_a_file_for_the_client_that_cannot_be_written_stops_the_start(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    client = Remote(place)
    client.file.write_text("another server's")
    assert client.close() == 0 and client.file.read_text() == "another server's"
    client.file.unlink()
    client = Remote(place)
    assert client.close() == 0 and not client.file.exists()
    server = start(place, "--http", "--mcp-config", str(place.root / "nowhere/file"))
    assert server.wait(PATIENCE) == 125 and "cannot write" in (place.root / "said").read_text()
    with pytest.raises(SystemExit):
        tools.main(["--mcp-config", "file"])
    monkeypatch.setitem(sys.modules, "stockade.server.streamable", None)
    with pytest.raises(StockadeError) as caught:
        tools.main(["--http", "--no-project"])
    assert caught.value.code == "cli.extra"


# ---- the protocol ---------------------------------------------------------------------------------------------------------------------


def test_each_kind_of_message_has_its_answer(shared: Remote) -> None:
    assert shared.hello["result"]["serverInfo"]["name"] == "stockade"
    for message in ({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}, {"jsonrpc": "2.0", "id": 7, "result": {}}):
        said = shared.post(message)
        assert (said.status, said.body) == (202, b"")
    said = shared.post({"jsonrpc": "2.0", "id": 7, "method": "tools/list"}, mcp_protocol_version="")
    assert said.headers["content-type"] == "application/json" and len(json.loads(said.body)["result"]["tools"]) == 7
    said = shared.post(touch("x"), accept="text/event-stream;q=0.5, application/json;q=0.9", content_type="application/json; charset=utf-8")
    assert (
        said.headers["content-type"].startswith("text/event-stream")
        and len(said.messages) == 1
        and said.headers["cache-control"] == "no-store"
    )
    wrong = shared.post({"jsonrpc": "2.0", "id": 8, "method": "shell/run"})
    assert (wrong.status, json.loads(wrong.body)["error"]["code"], json.loads(wrong.body)["id"]) == (200, -32601, 8)
    for body, code in ((b"{", -32700), (b"\xff", -32700), (b"[" * 100_000, -32700), (b"[]", -32600), (b"", -32700)):
        said = shared.post(body)
        assert (said.status, json.loads(said.body)["error"]["code"]) == (400, code)
    for method in ("GET", "PUT", "HEAD", "OPTIONS"):
        said = shared.request(method, "/mcp", shared.headers())
        assert said.status == 405 and said.headers["allow"] == "POST, DELETE"
    for path in ("/", "/mcp/", "//mcp", "/.well-known/oauth-protected-resource", "http://evil.test/mcp"):
        assert shared.request("POST", path, shared.headers(), b"{}").status == 404
    assert shared.request("POST", f"/mcp?token={shared.token[7:]}", shared.headers(authorization=""), b"{}").status == 401


def test_a_call_shows_that_it_lives_and_ends_unanswered_when_it_is_cancelled(shared: Remote) -> None:
    call = {
        "jsonrpc": "2.0",
        "id": "long",
        "method": "tools/call",
        "params": {"name": "bash", "arguments": {"command": "echo begun > begun; sleep 4711"}},
    }
    found: list[Said] = []
    waiting = threading.Thread(target=lambda: found.append(shared.post(call)))
    waiting.start()
    assert until(lambda: (shared.place.work / "begun").exists(), PATIENCE)
    other = Remote(shared.place, beside=shared)
    other.cancel("long")  # of another session
    again = shared.post(call)
    assert json.loads(again.body)["error"]["message"] == "a call with this id is running"
    assert waiting.is_alive()
    until(lambda: False, 1)
    shared.cancel("long")
    waiting.join(PATIENCE)
    assert found and found[0].status == 200 and found[0].body.startswith(b":\n\n:\n\n") and found[0].messages == []
    assert until(
        lambda: shared.good("bash", command="cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c ^4711 || true").endswith("\n0\n"), PATIENCE
    )
    assert shared.request("DELETE", "/mcp", other.headers()).status == 204


def test_a_client_that_hangs_up_does_not_cancel(shared: Remote) -> None:
    call = {
        "jsonrpc": "2.0",
        "id": "left",
        "method": "tools/call",
        "params": {"name": "bash", "arguments": {"command": "echo 1 > left; until [ -e on ]; do sleep 0.05; done; echo 2 > done"}},
    }
    body = json.dumps(call).encode()
    with shared.connected(_head("POST /mcp", {**shared.headers(), "content-length": str(len(body))}) + body) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ") and until(lambda: (shared.place.work / "left").exists(), PATIENCE)
    shared.good("write", path="on", content="")
    assert until(lambda: (shared.place.work / "done").exists(), PATIENCE)


# ---- sessions -------------------------------------------------------------------------------------------------------------------------


def test_each_session_has_a_sandbox_of_its_own_until_it_ends_it(shared: Remote) -> None:
    one, two = Remote(shared.place, beside=shared), Remote(shared.place, beside=shared)
    one.good("bash", command="echo mine > /tmp/own; echo ours > both")
    assert "ours" in two.good("bash", command="ls /tmp/own; cat both") and one.good("read", path="/tmp/own") == "mine\n"
    assert "No such file" in two.good("bash", command="ls /tmp/own")
    assert len({one.session, two.session, shared.session}) == 3 and all(len(name) == 43 for name in (one.session, two.session))
    running = one.start("bash", command="echo begun > one; sleep 4712")
    assert until(lambda: (shared.place.work / "one").exists(), PATIENCE)
    (inside,) = processes(shared, "sleep 4712")
    assert shared.request("DELETE", "/mcp", one.headers()).status == 204
    one.wait(running)
    assert running not in one.seen and not Path(f"/proc/{inside}").exists()
    for said in (one.post(touch("attacked")), shared.request("DELETE", "/mcp", one.headers())):
        assert said.status == 404 and "has ended" in error(said)
    assert not (shared.place.work / "attacked").exists()
    assert two.good("bash", command="cat both").endswith("ours\n")
    assert shared.request("DELETE", "/mcp", two.headers()).status == 204


def test_who_only_looks_starts_no_sandbox(place: Place) -> None:
    client = Remote(place, "--wall", "bubblewrap")
    assert client.ask("ping")["result"] == {} and len(client.ask("tools/list")["result"]["tools"]) == 7
    assert client.request("DELETE", "/mcp", client.headers()).status == 204
    assert client.close() == 0 and place.ledger() == []


# The server's clock is ahead by so many times 100 s as the file `leaps` of its folder has bytes.
CLOCK = f"""{QUICK}
import os, time, types
s.time = types.SimpleNamespace(monotonic=lambda: time.monotonic() + 100 * (os.path.getsize("leaps") if os.path.exists("leaps") else 0))
"""


def test_sessions_are_bounded_and_idle_ones_make_room(place: Place) -> None:
    first = Remote(place, "--wall", "bubblewrap", before=CLOCK)
    hello = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}
    try:
        busy = first.start("bash", command="echo begun > begun; until [ -e on ]; do sleep 0.05; done")
        assert until(lambda: (place.work / "begun").exists(), PATIENCE)
        others = [Remote(place, beside=first) for _ in range(7)]
        others[0].good("bash", command="setsid sleep 4714 >/dev/null 2>&1 &")
        (inside,) = processes(first, "sleep 4714")
        said = first.post(hello, mcp_session_id="")
        assert said.status == 503 and "8 sessions" in error(said)
        (place.work / "leaps").write_text("x")
        for other in others[1:]:
            assert other.ask("ping")["result"] == {}
        assert first.post(hello, mcp_session_id="").status == 200
        assert others[0].post(touch("attacked")).status == 404 and not Path(f"/proc/{inside}").exists()
        assert first.post(hello, mcp_session_id="").status == 503  # the others did something, and the first has a call that runs
        (place.work / "on").touch()
        assert first.end(busy) == (False, "exit code 0") and not (place.work / "attacked").exists()
    finally:
        (place.work / "on").touch()
        assert first.close() == 0


def test_a_session_that_nobody_uses_ends_and_whoever_comes_back_is_told(place: Place) -> None:
    client = Remote(place, "--wall", "bubblewrap", before=CLOCK)
    try:
        running = client.start(
            "bash", command="setsid sleep 4713 >/dev/null 2>&1 & echo begun > begun; until [ -e on ]; do sleep 0.05; done"
        )
        assert until(lambda: (place.work / "begun").exists(), PATIENCE)
        (inside,) = processes(client, "sleep 4713")
        (place.work / "leaps").write_text("x" * 20)
        until(lambda: False, 1)  # many looks
        assert Path(f"/proc/{inside}").exists()  # it is not idle
        (place.work / "on").touch()
        assert client.end(running) == (False, "exit code 0")
        (place.work / "leaps").write_text("x" * 40)
        assert until(lambda: not Path(f"/proc/{inside}").exists(), PATIENCE)
        said = client.post(touch("attacked"))
        assert said.status == 404 and "Send initialize anew" in error(said)
        client.hello, client.session = client.opened()
        assert client.good("bash", command="true") == "exit code 0" and not (place.work / "attacked").exists()
        assert "a session was ended" in (place.root / "said").read_text()
    finally:
        (place.work / "on").touch()
        assert client.close() == 0


# ---- bounds ---------------------------------------------------------------------------------------------------------------------------


def test_what_is_too_large_is_refused_and_the_next_is_answered(shared: Remote) -> None:
    def written(size: int) -> bytes:
        return json.dumps(
            {
                "jsonrpc": "2.0",
                "id": 1,
                "method": "tools/call",
                "params": {"name": "write", "arguments": {"path": "large", "content": "x" * size}},
            }
        ).encode()

    most = rpc.LARGEST - len(written(0))
    for headers in ({}, {"transfer-encoding": "chunked"}):
        body = written(most + 1)
        if headers:
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        said = shared.post(body, **headers)
        assert said.status == 413 and "larger than 8388608 bytes" in error(said) and not (shared.place.work / "large").exists()
    assert shared.request("POST", "/mcp", shared.headers(x="y" * 40_000), b"{}").status == 400
    assert shared.post(written(most)).status == 200 and (shared.place.work / "large").stat().st_size == most


def test_whoever_says_nothing_or_too_slowly_is_hung_up_on_and_takes_no_place(shared: Remote) -> None:
    """Anybody on the machine can connect."""
    half = _head("POST /mcp", shared.headers())[:-2]
    many = [shared.connected(sent) for sent in (b"", b"POST /mcp HTTP/1.1\r\n", half) for _ in range(60)]
    for connection in many:
        with connection, suppress(ConnectionResetError):
            assert connection.recv(1) == b""
    assert shared.ask("ping")["result"] == {}


def test_a_body_that_does_not_come_is_not_waited_for(place: Place) -> None:
    client = Remote(place, before=f"{QUICK}; s.BODY = 1.0")
    try:
        with client.connected(_head("POST /mcp", client.headers(content_length="2")) + b"{") as connection:
            assert connection.recv(100).startswith(b"HTTP/1.1 408 ")
            while connection.recv(1000):  # it is hung up on
                pass
        assert client.post(touch("x")).status == 200
    finally:
        assert client.close() == 0


def test_bodies_of_all_clients_together_are_bounded(place: Place) -> None:
    client = Remote(place, before=f"{QUICK}; s.HELD = 3 << 20")
    try:
        head = _head("POST /mcp", client.headers(content_length="2000000"))
        with client.connected(head + b" " * 1_999_999) as one, client.connected(head + b" " * 1_999_999) as two:
            refused, _, _ = select.select([one, two], [], [], PATIENCE)  # the one that was read later
            assert len(refused) == 1 and refused[0].recv(100).startswith(b"HTTP/1.1 503 ")
        assert client.post(touch("large") | {"x": "y" * (2 << 20)}).status == 200
    finally:
        assert client.close() == 0


def test_calls_of_all_sessions_together_are_bounded(shared: Remote) -> None:
    one, two = Remote(shared.place, beside=shared), Remote(shared.place, beside=shared)
    one.good("bash", command="mkfifo never")
    calls = [client.start("bash", command="echo >> begun-calls; cat never") for client in (one, two) for _ in range(32)]
    begun = shared.place.work / "begun-calls"
    assert until(lambda: begun.exists() and begun.stat().st_size == 64, PATIENCE)
    assert one.answer(one.start("list"))["error"]["message"].startswith("64 calls are running")
    assert shared.ask("ping")["result"] == {}
    for client in (one, two):
        assert shared.request("DELETE", "/mcp", client.headers()).status == 204
    assert len(calls) == 64 and "never" in shared.good("list")
