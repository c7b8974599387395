"""INVARIANT: no body makes its inspection raise. A body that passes has one reading, and in that reading, by a reader of our own here, neither a field that makes
a model API act elsewhere nor a value that the rules of a grant do not hold."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from stockade.checks.constraints import body_refused
from stockade.checks.fields import forbidden_fields, inspected
from stockade.core.values import BodyRule, Grant

PATHS = ("/v1/messages", "/v1/chat/completions", "/v1/responses")
RULES = Grant(
    "h", body=(BodyRule("/model", ('"a"', '"b"', "1")), BodyRule("/tools", absent=True), BodyRule("/n", most=10), BodyRule("/l/1/x~1y"))
)
_NAMES = [
    "tools",
    "type",
    "source",
    "messages",
    "content",
    "input",
    "image_url",
    "requests",
    "params",
    "model",
    "n",
    "l",
    "mcp_servers",
    "MCP_servers",
    "url",
]
INPUTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["url", "web_fetch_1", "base64", "a"]) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3),
).map(lambda body: json.dumps(body).encode())
WORDS = (
    b'{"', b'":', b'","', b"}", b"[", b"]", b",", b'"type":', b'"tools":[{', b'"mcp_servers":[1]', b'"MCP_\\u0053ervers":', b'"container":"c"', b'"source":{',
    b'"type":"url"', b'"messages":[{"role":"user","content":[', b'"image_url":', b'"https://evil.test"', b'"requests":[{"params":{', b'"model":"a"', b'"n":3',
    b'"n":1e1', b'"l":[0,{"x/y":1}]', b"NaN", b"1e999", b"-0", b"\\u017f", b"\xef\xbb\xbf", b"\xff", b"\\ud800", b"null", b"true", b"namespace", b"\x00",
)  # fmt: skip
KEPT = {
    "what the rules want": b'{"model":"a","n":3,"l":[0,{"x/y":null}]}',
    "a truth in place of a number": b'{"model":true,"n":true,"l":[0,{"x/y":1}]}',
    "names that differ in case": b'{"model":"a","Model":"c","n":3,"l":[0,{"x/y":1}]}',
    "a name that is the wanted one only to readers who ignore case: to the others it is missing": b'{"moDel":"a","n":3,"l":[0,{"x/y":1}]}',
    "a name that comes twice": b'{"mcp_servers":[],"mcp_servers":[1]}',
    "an escaped name": b'{"mcp_\\u0073ervers":[1]}',
    "a letter that is s to some": b'{"mcp_\\u017fervers":[1]}',
    "a batch": b'{"requests":[{"params":{"mcp_servers":[1]}}]}',
    "a source in a result of a tool": b'{"messages":[{"role":"user","content":[{"type":"tool_result","content":[{"source":{"type":"url"}}]}]}]}',
    "types that are no text": b'{"tools":[{"type":{}}],"messages":[{"content":[{"type":[],"source":{"type":{}}}]}]}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "nesting": b'{"model":' + b"[" * 1494 + b"]" * 1494 + b"}",
    "more nesting": b"[" * 9_994 + b"]" * 9_994,
    "a number of more digits than Python converts": b'{"model":' + b"9" * 5000 + b"}",
}
FAULT = ("stockade.checks.fields._ANTHROPIC_FIELDS", {})


def one(data: bytes) -> None:
    for path in PATHS:
        why = forbidden_fields("h", path, data)
        assert why is None or (why and why.isprintable())
        if why is None and data:
            _harmless(path, _only_reading(data))
    why = body_refused((), data, RULES)
    assert why.isprintable()
    if not why:
        document = _only_reading(data)
        assert document["model"] in ("a", "b") or (document["model"] == 1 and type(document["model"]) is int)
        assert type(document["n"]) in (int, float) and document["n"] <= 10
        assert not any(name.casefold() == "tools" for name in document) and "x/y" in document["l"][1]
    inspected(data.decode("utf-8", "replace"))


def _only_reading(data: bytes) -> Any:
    """The body to a reader who takes the first of equal names and to one who takes the last: the same."""
    last = json.loads(data)
    assert json.loads(data, object_pairs_hook=lambda pairs: dict(reversed(pairs))) == last or data.count(b"NaN")
    return last


def _harmless(path: str, body: Any) -> None:
    fields = {name.casefold(): value for name, value in body.items()}
    if path == PATHS[0]:
        assert not fields.get("mcp_servers") and not fields.get("container")
        for message in fields.get("messages") or () if isinstance(fields.get("messages"), list) else ():
            for part in message.get("content", ()) if isinstance(message, dict) and isinstance(message.get("content"), list) else ():
                assert not (isinstance(part, dict) and isinstance(part.get("source"), dict) and part["source"].get("type") == "url")
    else:
        assert not fields.get("web_search_options")
    if fields.get("tools"):
        assert isinstance(fields["tools"], list) and all(isinstance(tool, dict) for tool in fields["tools"])
        types = {str({name.casefold(): value for name, value in tool.items()}.get("type")) for tool in fields["tools"]}
        assert not types & {"mcp", "code_interpreter", "web_search_preview", "web_fetch_1", "web_search_20250305"}
