"""Fields of known model APIs that make the server fetch, connect, run or deliver elsewhere (the other half of the approved-domain incident).

The API is recognised by its path, on every host: a company's relay in front of it is the same attack surface. Tools and sources are allowlists; field names
are compared without case, and a body that readers could read in two ways (duplicate names, other encodings) is refused.
"""

from __future__ import annotations

import json
import re
from typing import Any

from stockade.checks.normalise import Ambiguous, normalise_path, without_parameters

_ANTHROPIC = ("/v1/messages", "/v1/messages/count_tokens", "/v1/messages/batches")
_OPENAI = ("/chat/completions", "/responses", "/responses/compact")

_ANTHROPIC_FIELDS = {"mcp_servers": "makes the server connect to MCP servers", "container": "runs code on the server"}
_SEARCHES = "makes the server search the web"
# Others speak this API too, with fields of their own: Azure ("On Your Data"), xAI ("Live Search"), OpenRouter (plugins), DashScope.
_OPENAI_FIELDS = {
    "web_search_options": _SEARCHES,
    "search_parameters": _SEARCHES,
    "enable_search": _SEARCHES,
    "plugins": "makes the server search the web, or fetch",
    "data_sources": "makes the server connect to somebody's data",
    "datasources": "makes the server connect to somebody's data",
    "prompt": "loads a stored prompt with tools of its own",
}
_SEARCHING_MODEL = re.compile(
    r"(?<![a-z])search-(preview|api)(?![a-z])|:online$"
)  # these search the web before they answer, whatever else is asked
_FETCHED = ("image_url", "file_url", "server_url", "video_url", "audio_url", "document_url")
_ANTHROPIC_TOOLS = re.compile(r"(bash|text_editor|computer|memory)_\d{8}")  # carried out by the client; any other typed tool by the server
_OPENAI_TOOLS = frozenset({"function", "custom", "local_shell", "apply_patch", "computer_use_preview"})
# Methods of Gemini's models that take contents, and of its tools those that the client carries out. Names are those of proto3's JSON, in either spelling.
_GEMINI = re.compile(r"[^/](:|%3a)((stream|batch)?generatecontent|counttokens|(batch|asyncbatch)?embedcontents?|generateanswer)/?$")
_GEMINI_TOOLS = frozenset({"functiondeclarations", "computeruse"})
_GEMINI_FIELDS = {"filedata": "makes the server fetch", "cachedcontent": "loads stored content with tools of its own"}
_INLINE_SOURCES = frozenset({"base64", "text", "content"})
_OPAQUE = frozenset({"input_schema", "parameters", "arguments", "schema", "json_schema"})  # the client's own data, never acted on
_GEMINI_OPAQUE = frozenset({"args", "response", "parameters", "parametersjsonschema", "responseschema", "responsejsonschema", "schema"})


def inspected(path: str) -> bool:
    """Is this the path of an API whose bodies must be read? `path` without its query."""
    return _api(path) != ""


def forbidden_fields(host: str, path: str, json_body: bytes) -> str | None:
    """Why this body may not leave, or None. `json_body` is the whole body, not compressed; `host` is for the message only. Never raises."""
    api = _api(path)
    if not api or not json_body:
        return None
    try:
        body = json.loads(json_body.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        return f"{host} takes JSON here, and the body is not JSON that every reader reads alike ({str(error)[:80]})"
    if not isinstance(body, dict):
        return f"{host} takes a JSON object here"
    try:
        return {"anthropic": _anthropic, "openai": _openai, "gemini": _gemini}[api](body)
    except RecursionError:
        return "the body is nested too deeply to be read"


def _api(path: str) -> str:
    try:
        settled = without_parameters(normalise_path(path)).rstrip("/").lower()
    except Ambiguous:
        return ""
    if _GEMINI.search(settled):
        return "gemini"
    return "anthropic" if settled.endswith(_ANTHROPIC) else "openai" if settled.endswith(_OPENAI) else ""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = {name.casefold(): value for name, value in pairs}
    if len(found) != len(pairs):
        raise ValueError("a field name comes twice")
    return found


def _anthropic(body: dict[str, Any]) -> str | None:
    batch = body.get("requests")
    if isinstance(batch, list):
        for item in batch:
            params = item.get("params") if isinstance(item, dict) else None
            if isinstance(params, dict) and (reason := _anthropic(params)):
                return reason
    if reason := _named(body, _ANTHROPIC_FIELDS):
        return reason
    for tool in _listed(body.get("tools")):
        kind = tool.get("type", "custom")
        if kind is not None and kind != "custom" and not _ANTHROPIC_TOOLS.fullmatch(str(kind)):
            return f"the tool type {_show(kind)} is carried out by the server"
    return _content(body, _anthropic_item, calls=True)


def _named(body: dict[str, Any], fields: dict[str, str]) -> str | None:
    """The first of these fields that is there. An empty object turns on what it would tell the details of; an empty list and null, which clients send, do not."""
    for name, why in fields.items():
        if body.get(name) not in (None, [], "", False):
            return f"the field {name} {why}"
    return None


def _anthropic_item(item: dict[str, Any]) -> str | None:
    source = item.get("source")
    if isinstance(source, dict) and str(source.get("type")) not in _INLINE_SOURCES:
        return f"a source of type {_show(source.get('type'))} makes the server fetch"
    if item.get("type") == "container_upload":
        return "container_upload hands a file to code on the server"
    return None


def _openai(body: dict[str, Any]) -> str | None:
    if _SEARCHING_MODEL.search(str(body.get("model")).lower()):
        return f"the model {_show(body.get('model'))} {_SEARCHES}"
    return _named(body, _OPENAI_FIELDS) or _openai_tools(body) or _content(body, _openai_item)


def _openai_tools(body: dict[str, Any], depth: int = 0) -> str | None:
    for tool in _listed(body.get("tools")):
        kind = tool.get("type", "function")
        if kind == "namespace" and depth < 4:  # Codex's way to group function tools; what is inside counts
            if reason := _openai_tools(tool, depth + 1):
                return reason
            continue
        cached = kind == "web_search" and tool.get("external_web_access") is False  # answers from the provider's own index, fetches nothing
        if str(kind) not in _OPENAI_TOOLS and not cached:
            return f"the tool type {_show(kind)} is carried out by the server"
    return None


def _openai_item(item: dict[str, Any]) -> str | None:
    for name in _FETCHED:
        found = item.get(name)
        link = found.get("url") if isinstance(found, dict) else found
        if found is not None and not (isinstance(link, str) and link.startswith("data:")):
            return f"the field {name} makes the server fetch"
    for name in ("file_data", "data"):  # some take an address in its place
        if "://" in str(item.get(name))[:64]:
            return f"the field {name} makes the server fetch"
    if item.get("file_id"):
        return "the field file_id hands over a file stored on the server"
    return None


def _gemini(value: Any) -> str | None:
    """Gemini's API, wherever in the body its requests stand (a batch holds many)."""
    if isinstance(value, list):
        return next((reason for item in value if (reason := _gemini(item))), None)
    if not isinstance(value, dict):
        return None
    plain = {name.replace("_", ""): item for name, item in value.items()}
    if len(plain) != len(value):
        return "a field stands there in two spellings"
    if reason := _named(plain, _GEMINI_FIELDS):
        return reason
    for tool in _listed(plain.get("tools")):
        for name in tool:
            if name.replace("_", "") not in _GEMINI_TOOLS:
                return f"the tool {_show(name)} is carried out by the server"
    return next((reason for name, item in plain.items() if name not in _GEMINI_OPAQUE and (reason := _gemini(item))), None)


def _content(value: Any, check: Any, calls: bool = False) -> str | None:
    """Apply `check` to every object in the body, but not inside what is only data to the API: with `calls` also what tools were called with."""
    if isinstance(value, list):
        for item in value:
            if reason := _content(item, check, calls):
                return str(reason)
    elif isinstance(value, dict):
        if reason := check(value):
            return str(reason)
        call = calls and value.get("type") in ("tool_use", "server_tool_use")
        for name, item in value.items():
            if name not in _OPAQUE and not (call and name == "input") and (reason := _content(item, check, calls)):
                return str(reason)
    return None


def _listed(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; anything else counts as one object of an unknown type, which no allowlist holds."""
    if value is None:
        return []
    return (
        [item if isinstance(item, dict) else {"type": "unreadable"} for item in value]
        if isinstance(value, list)
        else [{"type": "unreadable"}]
    )


def _show(value: object) -> str:
    return ascii(str(value)[:60])
