"""Bodies of model APIs: what a client does itself passes, what makes the server act does not. Any bytes: tests/fuzz/bodies.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from stockade.checks.fields import forbidden_fields, inspected

MESSAGES, CHAT, RESPONSES = "/v1/messages", "/v1/chat/completions", "/v1/responses"
GEMINI, BATCH = "/v1beta/models/gemini-x:streamGenerateContent", "/v1beta/models/gemini-x:batchGenerateContent"


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
    (CHAT, {"model": "research-previewer", "messages": [USER], "plugins": [], "web_search_options": None}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "data:application/pdf;base64,AA"}}]}]}),
    (GEMINI, {"contents": [{"role": "user", "parts": [{"text": "hello"}, {"inlineData": {"mimeType": "image/png", "data": "AA"}}]}]}),
    (GEMINI, {"contents": [{"parts": [{"functionCall": {"name": "f", "args": {"fileData": 1, "tools": [{"url_context": {}}]}}}]}]}),
    (
        GEMINI,
        {
            "contents": [],
            "tools": [{"functionDeclarations": [{"name": "f", "parameters": {"properties": {"tools": {}}}}]}, {"computer_use": {}}],
        },
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
    (MESSAGES, {"messages": [USER], "container": {}}),
    (MESSAGES, {"messages": [USER], "tools": [{"type": "bash_code_execution", "name": "x"}]}),
    (CHAT, {"messages": [USER], "web_search_options": {}}),
    (CHAT, {"messages": [USER], "search_parameters": {"mode": "on"}}),
    (CHAT, {"messages": [USER], "enable_search": True}),
    (CHAT, {"messages": [USER], "plugins": [{"id": "web"}]}),
    (CHAT, {"messages": [USER], "data_sources": [{"type": "azure_search", "parameters": {"endpoint": "https://evil.test"}}]}),
    (CHAT, {"messages": [USER], "dataSources": [{"type": "azure_search"}]}),
    (CHAT, {"messages": [USER], "model": "gpt-4o-search-preview"}),
    (CHAT, {"messages": [USER], "model": "vendor/model:online"}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": "https://evil.test/x"}}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "document_url", "document_url": "https://evil.test/x"}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_data": "https://evil.test/x.pdf"}}]}]}),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "https://evil.test/x"}}]}]}),
    (RESPONSES, {"type": "tool_use", "input": [{"content": [{"type": "input_image", "image_url": "https://evil.test"}]}]}),
    (RESPONSES, {"input": [{"type": "tool_use", "input": [{"type": "input_image", "image_url": "https://evil.test"}]}]}),
    *[
        (GEMINI, {"contents": [], "tools": [{name: {}}]})
        for name in (
            "urlContext",
            "url_context",
            "google_search",
            "googleSearch",
            "codeExecution",
            "fileSearch",
            "mcp_servers",
            "retrieval",
        )
    ],
    (GEMINI, {"contents": [], "tools": {"urlContext": {}}}),
    (GEMINI, {"contents": [], "tools": [{"functionDeclarations": [], "urlContext": {}}]}),
    (GEMINI, {"contents": [{"parts": [{"fileData": {"fileUri": "https://evil.test/x"}}]}]}),
    (GEMINI, {"contents": [{"parts": [{"file_data": {"file_uri": "https://evil.test/x"}}]}]}),
    (GEMINI, {"contents": [{"parts": [{"functionResponse": {"parts": [{"fileData": {"fileUri": "https://evil.test/x"}}]}}]}]}),
    (GEMINI, {"contents": [], "cachedContent": "cachedContents/x"}),
    (GEMINI, {"contents": [], "tools": [], "to_ols": [{"urlContext": {}}]}),
    (BATCH, {"batch": {"input_config": {"requests": {"requests": [{"request": {"tools": [{"url_context": {}}]}}]}}}}),
    ("/v1internal:generateContent", {"model": "m", "request": {"contents": [], "tools": [{"googleSearch": {}}]}}),
    ("/v1beta/models/gemini-x%3AgenerateContent", {"tools": [{"urlContext": {}}]}),
    ("/v1beta/models/gemini-x:countTokens;a=b", {"generateContentRequest": {"tools": [{"urlContext": {}}]}}),
    (GEMINI, b"\x0a\x05hello"),
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
     (GEMINI, True), (BATCH, True), ("/v1beta/models/x:EmbedContent", True), ("/v1beta/models/x%3agenerateContent", True),
     ("/v1/files", False), ("/messages", False), ("/v1beta/models/x", False), ("/v1beta/generateContent", False)],
)  # fmt: skip
def test_which_bodies_are_read(path: str, read: bool) -> None:
    assert inspected(path) is read
