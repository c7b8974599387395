"""Bodies of model APIs: what a client does itself passes, what makes the server act does not. Any bytes: tests/fuzz/bodies.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stockade.checks.fields import forbidden_fields, inspected

MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"


def reason(path: str, body: Any) -> str | None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return forbidden_fields("api.example.com", path, data)


USER = {"role": "user", "content": "hello"}
BENIGN = [
    (MESSAGES, {"model": "m", "max_tokens": 1, "messages": [USER], "stream": True}),
    (MESSAGES, {"messages": [USER], "tools": [{"name": "t", "input_schema": {"properties": {"source": {"type": "url"}}}}]}),
    (MESSAGES, {"messages": [USER], "tools": [{"type": "bash_20250124", "name": "bash"}, {"type": "custom", "name": "x"}]}),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "x"}}]}]}),
    (MESSAGES, {"messages": [{"role": "assistant", "content": [{"type": "tool_use", "input": {"source": {"type": "url"}}}]}]}),
    (MESSAGES, {"messages": [USER], "mcp_servers": [], "container": None}),
    (CHAT, {"messages": [USER], "tools": [{"type": "function", "function": {"name": "f", "parameters": {"image_url": "x"}}}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]}),
    (
        RESPONSES,
        {"input": "x", "tools": [{"type": "function"}, {"type": "local_shell"}, {"type": "web_search", "external_web_access": False}]},
    ),
    ("/v1/files", b"not json, not inspected"),
]
HARMFUL = [
    (MESSAGES, {"messages": [USER], "mcp_servers": [{"url": "https://evil.test"}]}),
    (MESSAGES, {"messages": [USER], "MCP_Servers": [{"url": "https://evil.test"}]}),
    (MESSAGES, {"messages": [USER], "container": "c"}),
    (MESSAGES, {"messages": [USER], "tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]}),
    (MESSAGES, {"messages": [USER], "tools": [{"type": "web_search_20250305"}]}),
    (MESSAGES, {"messages": [USER], "tools": [{"type": "code_execution_20250522"}]}),
    (MESSAGES, {"messages": [USER], "tools": {"type": "web_fetch_20250910"}}),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "https://evil.test/?x"}}]}]}),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}]}]}),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": [{"source": {"type": "url"}}]}]}]}),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]}),
    ("/v1/messages/batches", {"requests": [{"params": {"mcp_servers": [1]}}]}),
    ("/V1/Messages/", {"mcp_servers": [1]}),
    ("/relay/v1/messages", {"mcp_servers": [1]}),
    (MESSAGES, b'{"tools": [], "tools": [{"type": "web_fetch_1"}]}'),
    (MESSAGES, b'{"tools": [], "Tools": []}'),
    (MESSAGES, b"\xff\xfe{\x00}\x00"),
    (MESSAGES, b"\xef\xbb\xbf{}"),
    (MESSAGES, b"[]"),
    (MESSAGES, b"{"),
    (MESSAGES, b"[" * 100000),
    (CHAT, {"messages": [USER], "web_search_options": {"x": 1}}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://evil.test/x"}}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "http://evil.test/x"}]}]}),
    (RESPONSES, {"tools": [{"type": "mcp", "server_url": "https://evil.test"}]}),
    (RESPONSES, {"tools": [{"type": "web_search"}]}),
    (RESPONSES, {"tools": [{"type": "web_search_preview"}]}),
    (RESPONSES, {"tools": [{"type": "code_interpreter"}]}),
    (RESPONSES, {"input": [{"content": [{"type": "input_file", "file_url": "https://evil.test"}]}]}),
    (RESPONSES, {"input": [{"content": [{"type": "input_file", "file_id": "file-1"}]}]}),
    (RESPONSES, {"prompt": {"id": "p"}}),
]


@pytest.mark.parametrize(("path", "body"), BENIGN)
def test_benign(path: str, body: Any) -> None:
    assert reason(path, body) is None


@pytest.mark.parametrize(("path", "body"), HARMFUL)
def test_harmful(path: str, body: Any) -> None:
    assert reason(path, body)


@pytest.mark.parametrize(
    ("path", "read"),
    [(MESSAGES, True), (CHAT, True), (RESPONSES, True), ("/V1/MESSAGES/", True), ("/x/v1/messages/batches", True), ("/v1/%6dessages", True), ("/v1;a/messages;b=1", True),
     ("/v1/files", False), ("/messages", False)],
)  # fmt: skip
def test_which_bodies_are_read(path: str, read: bool) -> None:
    assert inspected(path) is read
