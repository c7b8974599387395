"""What an agent's hook asks of the gate by its own name: answered there; and whatever else goes to that name goes nowhere. Most of it by Envoy; what engines could make
of it differently, by both."""

from __future__ import annotations

import json
import socket
import subprocess
from base64 import b64decode
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.harness import Gate, Upstream, running
from stockade.core.tools import FileRule, ToolRule
from stockade.core.values import ASK, DENY, GATE, Grant, Origin
from stockade.policy.agents import HOOK
from walls.boxes import until

URL = f"http://{GATE}/tool"
RULES = (
    ToolRule("Bash", DENY, (("command", "rm *"),), origin=Origin("p.toml", 3, "tool[0]")),
    ToolRule("Bash", ASK, (("command", "git push*"),), origin=Origin("p.toml", 7, "tool[1]")),
    ToolRule("Read", "allow", origin=Origin("p.toml", 9, "tool[2]")),
)


@pytest.fixture(scope="module")
def gate(engine_binary: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    # Rules that cover the gate's own name must not matter.
    grants = (Grant("*", 80, "http", ("GET", "POST", "PUT"), effect=ASK), Grant("*", 81, "http", effect=ASK), Grant("*", effect=ASK))
    given = {"grants": grants, "tools": RULES, "patience": 20.0, "canaries": {"planted": "a-canary-of-the-user-77"}}
    with running(tmp_path_factory.mktemp("tools"), upstream, kind=engine_binary, **given) as started:
        yield started


@pytest.fixture(autouse=True)
def fresh(gate: Gate) -> None:
    gate.events.clear()
    gate.approve = lambda event: None


def said(command: str, tool: str = "Bash", event: str = "PreToolUse") -> str:
    return json.dumps({"hook_event_name": event, "tool_name": tool, "tool_input": {"command": command}})


def hook(gate: Gate, text: str, port: object = "") -> subprocess.CompletedProcess[str]:
    """The hook itself, as an agent runs it, with this gate's port."""
    env = {"PATH": "/usr/bin:/bin", "http_proxy": f"http://127.0.0.1:{port or gate.ports['http-proxy']}"}
    return subprocess.run(["/bin/sh", "-c", HOOK], input=text, capture_output=True, text=True, env=env, timeout=60)


def decision(found: subprocess.CompletedProcess[str]) -> Any:
    assert found.returncode == 0, found
    return json.loads(found.stdout)


def recorded(gate: Gate) -> list[tuple[object, ...]]:
    return [(one["kind"], one.get("tool"), one["effect"], one["rule"]) for one in gate.events]


def test_by_the_rules_and_written_down(gate: Gate) -> None:
    assert decision(hook(gate, said("ls"))) == {}
    denied = decision(hook(gate, said("rm -rf /")))["hookSpecificOutput"]
    assert (denied["hookEventName"], denied["permissionDecision"]) == ("PreToolUse", "deny")
    assert denied["permissionDecisionReason"] == "stockade: Bash is denied by p.toml:3 (tool[0])."
    assert recorded(gate) == [("tool", "Bash", "allow", "no-tool-rule"), ("tool", "Bash", "deny", "tool p.toml:3 (tool[0])")]
    assert "rm -rf" not in json.dumps(gate.events)


def test_in_the_words_of_the_other_question(gate: Gate) -> None:
    def of(command: str, tool: str = "Bash") -> Any:
        return decision(hook(gate, said(command, tool, "PermissionRequest"))).get("hookSpecificOutput")

    assert of("ls") is None  # it is the agent's own question, and no rule has an opinion
    assert of("x", "Read") == {"hookEventName": "PermissionRequest", "decision": {"behavior": "allow"}}
    assert of("rm x")["decision"]["behavior"] == "deny"
    gate.approve = lambda event: True
    assert of("git push")["decision"] == {"behavior": "allow"}


def test_it_waits_for_a_person_who_sees_what_is_called(gate: Gate) -> None:
    asked: list[dict[str, object]] = []
    for answer in (True, False):
        gate.approve = lambda event, answer=answer: asked.append(event) or answer
        found = decision(hook(gate, said("git push origin")))
        assert found == {} if answer else found["hookSpecificOutput"]["permissionDecisionReason"].endswith("nobody approved it.")
    assert [(one["kind"], one["asks"], one["place"]) for one in asked] == [("tool", '{"command":"git push origin"}', 1)] * 2
    assert [one[2:] for one in recorded(gate)] == [("allow", "approved: tool p.toml:7 (tool[1])"), ("deny", "tool p.toml:7 (tool[1])")]


def test_a_long_call_and_one_at_a_byte_that_is_none(gate: Gate) -> None:
    """Larger than what comes with the engine's first question, and in characters of several bytes."""
    assert decision(hook(gate, said("echo " + "\u00e9" * 100_000))) == {}
    done = hook(
        gate,
        json.dumps(
            {"hook_event_name": "PreToolUse", "tool_name": "Bash", "tool_input": {"command": "\u00e9\U0001f600"}}, ensure_ascii=False
        ),
    )
    assert decision(done) == {}
    assert hook(gate, said("x" * (1 << 20))).returncode == 2


@pytest.mark.parametrize(
    "text", ["", "{", "[]", said("ls").replace('"tool_name": "Bash"', '"tool_name": "Read", "tool_name": "Bash"'), said("x", event="Stop")]
)
def test_what_cannot_be_understood_is_a_no(gate: Gate, text: str) -> None:
    done = hook(gate, text)
    assert done.returncode == 2 and "may not" in done.stderr and done.stdout == ""


def test_without_a_gate_it_is_a_no(gate: Gate) -> None:
    for port in (1, "none", "1/x"):
        done = hook(gate, said("ls"), port)
        assert done.returncode == 2 and "may not" in done.stderr and done.stdout == ""
    for env in ({"PATH": "/usr/bin:/bin"}, {"PATH": "/nowhere", "http_proxy": "http://127.0.0.1:3128"}):
        done = subprocess.run(["/bin/sh", "-c", HOOK], input=said("ls"), capture_output=True, text=True, env=env, timeout=60)
        assert done.returncode == 2 and "may not" in done.stderr and done.stdout == ""


def test_an_answer_that_was_cut_is_a_no(gate: Gate) -> None:
    """Whatever is missing of what the gate says, the hook ends as for a gate that is not there: half an object would be no opinion to an agent."""
    whole = b'HTTP/1.1 202 Accepted\r\ncontent-type: application/json\r\n\r\n{"hookSpecificOutput": {}}\n'
    for reply, code in (
        (whole, 0),
        (whole[:-1], 2),
        (whole[:-12], 2),
        (whole[:60], 2),
        (whole[:12], 2),
        (b"", 2),
        (whole.replace(b"202", b"403"), 2),
        (whole.replace(b"202", b"200"), 2),
    ):
        with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
            asking = pool.submit(hook, gate, said("ls"), server.getsockname()[1])
            connection, _ = server.accept()
            with connection:
                received = b""
                while not received.endswith(said("ls").encode()):
                    received += connection.recv(65536)
                connection.sendall(reply)
            assert asking.result(30).returncode == code, reply
        assert received.startswith(f"POST {URL} HTTP/1.1\r\nhost: {GATE}\r\n".encode())


def test_what_must_never_leave_raises_the_alarm_here_too(gate: Gate) -> None:
    assert hook(gate, said("echo a-canary-of-the-user-77")).returncode == 2
    assert [one["canary"] for one in gate.events] == ["the canary planted"]


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ((), URL),  # a GET
        (("-X", "PUT", "-d", said("ls")), URL),
        (("-d", said("ls")), f"{URL}?x"),
        (("-d", said("ls")), f"http://{GATE}/other"),
        (("-d", said("ls")), f"http://{GATE}:81/tool"),
        (("-d", said("ls")), f"https://{GATE}/tool"),
        (("-d", said("ls"), "--proxytunnel"), URL),
        (("-H", "transfer-encoding: chunked", "-d", said("ls")), URL),
        (("-H", "upgrade: websocket", "-H", "connection: upgrade"), URL),
        (("-H", "content-encoding: gzip", "-d", said("ls")), URL),
        (("-d", said("ls"), "-H", "x-stockade-session: s-other"), URL.upper().replace("HTTP:", "http:")),
    ],
)
def test_nothing_else_goes_to_that_name(gate: Gate, upstream: Upstream, options: tuple[str, ...], url: str) -> None:
    before, asked = upstream.connections, []
    gate.approve = lambda event: asked.append(event) or True
    done = gate.curl(url, "-k", *options)
    assert done.stdout[-5:] in ("[400]", "[403]", "[411]", "[000]", "[404]", "[502]", "[503]"), done
    assert upstream.connections == before and not asked and not any(one["kind"] == "tool" for one in gate.events)


def test_no_address_is_given_out_for_that_name(gate: Gate) -> None:
    import dns.message

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        for name, code in ((GATE, 3), (GATE.upper(), 3), ("other.internal", 0)):
            sock.sendto(dns.message.make_query(name, "A").to_wire(), ("127.0.0.1", gate.ports["dns-udp"]))
            assert dns.message.from_wire(sock.recv(4096)).rcode() == code, name


def test_by_both_engines_with_nobody_to_ask_and_without_a_receipt_it_is_a_no(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    with running(tmp_path, upstream, kind=carrier, tools=RULES) as alone:
        assert decision(hook(alone, said("git push")))["hookSpecificOutput"]["permissionDecision"] == "deny"
        assert decision(hook(alone, said("echo " + "\u00e9" * 100_000))) == {}
        assert alone.curl(URL).stdout.endswith("[403]")
        alone.hold.set()
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(hook, alone, said("ls -l"))
            assert until(lambda: len(alone.events) == 4, 20) and not asking.done()
            alone.hang_up()
            assert asking.result(30).returncode == 2


def test_by_both_engines_a_file_is_asked_about_as_it_was_sent(carrier: str, upstream: Upstream, tmp_path: Path) -> None:
    """The whole content reaches whoever is asked, byte for byte, and the answer says what became of it; nothing else passes by that name."""
    files = (FileRule("ci/*.yml", ASK, Origin("p.toml", 3, "file[0]")), FileRule("ci/no.yml", DENY, Origin("p.toml", 7, "file[1]")))
    asked: list[dict[str, object]] = []
    content = bytes(range(256)) * 127
    (tmp_path / "new").write_bytes(content)
    url = f"http://{GATE}/file?path="
    given = {"files": files, "patience": 20.0, "canaries": {"planted": "a-canary-of-the-user-77"}}
    with running(tmp_path, upstream, kind=carrier, **given) as gate:
        gate.approve = lambda event: asked.append(event) or len(asked) == 1
        done = gate.curl(f"{url}ci/a.yml", "--data-binary", f"@{tmp_path}/new").stdout
        assert done == '{"path": "ci/a.yml", "written": true, "why": ""}\n[202]'
        (one,) = asked
        assert b64decode(str(one["content"])) == content and (one["path"], one["place"], one["length"]) == ("ci/a.yml", 0, len(content))
        assert "nobody approved it." in gate.curl(f"{url}ci/b.yml", "-d", "x").stdout and len(asked) == 2
        for words in (
            ["-d", "x", f"{url}ci/no.yml"], ["-d", "x", f"{url}other.yml"], ["-d", "x", f"{url}ci/../ci/a.yml"], ["-d", "x", f"http://{GATE}/file"],
            ["-d", "x", f"{URL}?path=ci/a.yml"], [f"{url}ci/a.yml"], ["-d", "a-canary-of-the-user-77", f"{url}ci/a.yml"],
            ["-d", "x" * (32 << 10) + "y", f"{url}ci/a.yml"], ["-H", "content-encoding: gzip", "-d", "x", f"{url}ci/a.yml"],
            ["-H", "transfer-encoding: chunked", "-d", "x", f"{url}ci/a.yml"],
        ):  # fmt: skip
            assert gate.curl(words[-1], *words[:-1]).stdout.endswith("[403]"), words
        assert len(asked) == 2
        told = [(event["kind"], event.get("path"), event["effect"], event["rule"]) for event in gate.events]
        assert told[:2] == [
            ("file", "ci/a.yml", "allow", "approved: file p.toml:3 (file[0])"),
            ("file", "ci/b.yml", "deny", "file p.toml:3 (file[0])"),
        ]
        assert told[2:4] == [("file", "ci/no.yml", "deny", "file p.toml:7 (file[1])"), ("file", "other.yml", "deny", "no-file-rule")]
        assert not {"content", "place"} & {name for event in gate.events for name in event}
