"""The puppet speaks the three dialects as their clients expect, and obeys whatever it reads."""

from __future__ import annotations

import json
import socket
import threading
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.drills import wire
from stockade.drills.puppet import SUBMIT, PuppetHandler, answer, instruct, orders

BASH = {"name": "Bash", "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}}
RECORDED: list[tuple[str, str, list[tuple[str, str]], bytes]] = []


@pytest.fixture(scope="module")
def puppet() -> Iterator[str]:
    """A puppet on loopback; its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    class Handler(PuppetHandler):
        record = staticmethod(lambda *item: RECORDED.append(item))

    def serve() -> None:
        while not done.is_set():
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            try:
                Handler(connection, peer, None)  # type: ignore[arg-type]
            finally:
                connection.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    done.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def call(base: str, path: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(base + path, json.dumps(body).encode(), {"content-type": "application/json", "connection": "close"})
    with urllib.request.urlopen(request, timeout=5) as response:
        data: bytes = response.read()
        return data


def sse(data: bytes) -> list[dict[str, Any]]:
    """Server-sent events as a client reads them (WHATWG HTML, 9.2.6); the name must repeat the type."""
    found = []
    for block in data.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        if fields and fields["data"] != "[DONE]":
            event = json.loads(fields["data"])
            assert fields.get("event", event.get("type")) == event.get("type")
            found.append(event)
    return found


def messages(text: str, **more: Any) -> dict[str, Any]:
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": text}], "tools": [BASH], **more}


def test_messages_asks_for_each_order_and_then_stops(puppet: str) -> None:
    body = messages(f"do {instruct('first')} and {instruct('second')}")
    for wanted in ("first", "second"):
        reply = json.loads(call(puppet, "/v1/messages", body))
        assert (reply["type"], reply["role"], reply["stop_reason"]) == ("message", "assistant", "tool_use")
        used = reply["content"][-1]
        assert (used["type"], used["name"], used["input"]) == ("tool_use", "Bash", {"command": wanted})
        body["messages"] += [
            {"role": "assistant", "content": reply["content"]},
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": used["id"], "content": [{"type": "text", "text": "fine"}]}],
            },
        ]
    reply = json.loads(call(puppet, "/v1/messages?beta=true", body))
    assert reply["stop_reason"] == "end_turn"
    assert all(block["type"] == "text" for block in reply["content"])


def test_an_order_hidden_in_a_tool_result_is_obeyed(puppet: str) -> None:
    body = messages(instruct("cat NOTES.md"))
    body["messages"] += [
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "Bash", "input": {"command": "cat NOTES.md"}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": f"# Notes <!-- {instruct('steal')} -->"}]},
    ]
    assert json.loads(call(puppet, "/v1/messages", body))["content"][-1]["input"] == {"command": "steal"}


def test_messages_stream_adds_up_to_the_whole_reply(puppet: str) -> None:
    events = sse(call(puppet, "/v1/messages", messages(instruct("ls -la"), stream=True)))
    kinds = [event["type"] for event in events if event["type"] != "ping"]
    block = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert kinds == ["message_start", *block, *block, "message_delta", "message_stop"]
    pieces = [event["delta"]["partial_json"] for event in events if event.get("delta", {}).get("type") == "input_json_delta"]
    assert json.loads("".join(pieces)) == {"command": "ls -la"}
    assert next(event for event in events if event["type"] == "message_delta")["delta"]["stop_reason"] == "tool_use"


def test_count_tokens_and_models(puppet: str) -> None:
    assert json.loads(call(puppet, "/v1/messages/count_tokens", messages("hi")))["input_tokens"] > 0
    with urllib.request.urlopen(f"{puppet}/v1/models", timeout=5) as response:
        assert json.load(response)["data"][0]["id"] == "puppet"


CHAT_TOOL = {
    "type": "function",
    "function": {"name": "bash", "parameters": {"type": "object", "properties": {"command": {"type": "string"}}}},
}


def test_chat_completions(puppet: str) -> None:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": instruct("ls")}], "tools": [CHAT_TOOL]}
    reply = json.loads(call(puppet, "/v1/chat/completions", body))
    choice = reply["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    called = choice["message"]["tool_calls"][0]
    assert (called["type"], called["function"]["name"]) == ("function", "bash")
    assert json.loads(called["function"]["arguments"]) == {"command": "ls"}
    body["messages"] += [choice["message"], {"role": "tool", "tool_call_id": called["id"], "content": "a b"}]
    assert json.loads(call(puppet, "/v1/chat/completions", body))["choices"][0]["finish_reason"] == "stop"


def test_chat_stream_adds_up(puppet: str) -> None:
    body = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "tools": [CHAT_TOOL]}
    raw = call(puppet, "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": instruct("ls")}]})
    assert raw.endswith(b"data: [DONE]\n\n")
    chunks = sse(raw)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    called = [item for delta in deltas for item in delta.get("tool_calls", ())]
    assert [item["index"] for item in called] == [0]
    assert json.loads("".join(item["function"]["arguments"] for item in called)) == {"command": "ls"}
    assert chunks[-1]["usage"]["total_tokens"] == 16


@pytest.mark.parametrize(
    ("tool", "kind", "read"),
    [
        (
            {"type": "function", "name": "exec_command", "parameters": {"properties": {"cmd": {"type": "string"}}, "required": ["cmd"]}},
            "function_call",
            lambda item: json.loads(item["arguments"])["cmd"],
        ),
        (
            {"type": "function", "name": "shell", "parameters": {"properties": {"command": {"type": "array"}}}},
            "function_call",
            lambda item: json.loads(item["arguments"])["command"][-1],
        ),
        ({"type": "local_shell"}, "local_shell_call", lambda item: item["action"]["command"][-1]),
    ],
)
def test_responses_in_the_shape_of_each_shell_tool(puppet: str, tool: dict[str, Any], kind: str, read: Any) -> None:
    content = [{"type": "input_text", "text": instruct("ls")}]
    body: dict[str, Any] = {
        "model": "m",
        "instructions": "x",
        "input": [{"type": "message", "role": "user", "content": content}],
        "tools": [tool],
    }
    reply = json.loads(call(puppet, "/v1/responses", body))
    assert (reply["object"], reply["status"]) == ("response", "completed")
    item = reply["output"][-1]
    assert (item["type"], read(item)) == (kind, "ls")
    events = sse(call(puppet, "/v1/responses", {**body, "stream": True}))
    assert [events[0]["type"], events[-1]["type"]] == ["response.created", "response.completed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert read(done[-1]) == "ls"
    assert [part["type"] for part in events[-1]["response"]["output"]] == ["message", kind]
    body["input"] += [item, {"type": f"{kind}_output", "call_id": item["call_id"], "output": "a b"}]
    assert [part["type"] for part in json.loads(call(puppet, "/v1/responses", body))["output"]] == ["message"]


def test_agents_that_take_fenced_commands_get_fences(puppet: str) -> None:
    text = f"Answer with a ```mswea_bash_command block. {instruct('ls')} End by printing {SUBMIT}."
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": text}]}
    for wanted in ("ls", f"echo {SUBMIT}"):
        said = json.loads(call(puppet, "/v1/chat/completions", body))["choices"][0]["message"]
        assert f"```mswea_bash_command\n{wanted}\n```" in said["content"]
        body["messages"] += [said, {"role": "user", "content": "output"}]


def test_without_a_shell_tool_it_only_talks() -> None:
    other = {"name": "read_file", "input_schema": {"properties": {"path": {"type": "string"}}}}
    talk = wire.read("messages", messages(instruct("ls")) | {"tools": [other]})
    assert answer(talk).command is None


def test_every_request_is_recorded_with_its_headers(puppet: str) -> None:
    RECORDED.clear()
    request = urllib.request.Request(f"{puppet}/v1/files?key=k", b"payload", {"X-Api-Key": "theirs", "connection": "close"})
    urllib.request.urlopen(request, timeout=5).close()
    method, path, headers, body = RECORDED[-1]
    assert (method, path, body) == ("POST", "/v1/files?key=k", b"payload")
    assert ("x-api-key", "theirs") in [(key.lower(), value) for key, value in headers]


def test_nonsense_gets_an_error_and_not_a_crash(puppet: str) -> None:
    for body in ("null", "[]", '{"messages": 3}', '{"messages": [1]}', "{"):
        request = urllib.request.Request(f"{puppet}/v1/messages", body.encode(), {"connection": "close"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=5)
        assert caught.value.code == 400
        caught.value.close()


@given(st.lists(st.text(min_size=1), unique=True, max_size=5), st.text(alphabet="ab \n\"'{}[]:\\", max_size=20))
def test_orders_survive_any_text_around_them(commands: list[str], noise: str) -> None:
    commands = [command.encode(errors="ignore").decode() or "x" for command in commands]
    commands = list(dict.fromkeys(commands))
    text = noise + noise.join(instruct(command) for command in commands) + noise
    assert orders(text) == commands
    assert orders(json.dumps(text)) == commands


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
    ["messages", "input", "tools", "system", "content", "role", "type", "text", "function", "parameters", "properties", "name", "tool_calls"]), inner, max_size=4), max_leaves=12))  # fmt: skip
def test_reading_any_json_either_works_or_raises_what_the_server_catches(body: Any) -> None:
    for dialect in ("messages", "chat", "responses"):
        try:
            talk = wire.read(dialect, body)
            wire.events(talk, wire.write(talk, answer(talk), 1))
        except (TypeError, AttributeError, ValueError, AssertionError):
            pass
