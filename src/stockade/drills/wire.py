"""The three wire formats that agents speak to models: reading a request, and writing a reply whole or as server-sent events. No I/O.

Sources: Anthropic Messages API and its streaming events; OpenAI Chat Completions and Responses API references.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

Dialect = Literal["messages", "chat", "responses"]
SHELL_NAMES = (
    "bash",
    "shell",
    "shell_command",
    "exec_command",
    "local_shell",
    "container.exec",
    "run_shell_command",
    "execute_bash",
    "terminal",
)
COMMAND_KEYS = ("command", "cmd", "commands", "script")
TEXT_FENCES = ("mswea_bash_command", "bash")  # agents that take a command as a fenced block in the text


@dataclass(frozen=True)
class ShellTool:
    """How the agent wants to be asked to run a command: the tool's name, its argument, and whether that is a list or one string."""

    name: str
    key: str = "command"
    listed: bool = False
    kind: Literal["function", "local_shell", "fence"] = "function"
    extra: tuple[tuple[str, Any], ...] = ()

    def arguments(self, command: str) -> dict[str, Any]:
        return {self.key: ["bash", "-lc", command] if self.listed else command, **dict(self.extra)}


@dataclass
class Conversation:
    """What a request says, whichever the dialect: everything the model was given to read, how often it already asked for a tool, and its tools."""

    dialect: Dialect
    model: str = "puppet"
    stream: bool = False
    read: list[str] = field(default_factory=list)
    calls: int = 0
    shell: ShellTool | None = None
    include_usage: bool = False

    @property
    def text(self) -> str:
        return "\n".join(self.read)


@dataclass(frozen=True)
class Reply:
    """What the model says: some text, and at most one command to run."""

    text: str
    command: str | None = None


def dialect_of(path: str) -> Dialect | None:
    """The dialect that a URL path belongs to, None for anything else."""
    path = path.split("?", 1)[0].rstrip("/")
    for ending, dialect in (("/messages", "messages"), ("/chat/completions", "chat"), ("/responses", "responses")):
        if path.endswith(ending):
            return dialect  # type: ignore[return-value]  # one of the literals, by the test above
    return None


def texts(content: Any) -> list[str]:
    """Every string a content field holds: a string, a block, or a list of blocks, nested tool results included."""
    if isinstance(content, str):
        return [content]
    if isinstance(content, list):
        return [text for item in content for text in texts(item)]
    if isinstance(content, dict):
        return [text for key in ("text", "content", "output", "input_text", "stdout") if key in content for text in texts(content[key])]
    return []


def read(dialect: Dialect, body: dict[str, Any]) -> Conversation:
    """Understand a request body. Unknown fields are ignored; raises TypeError or AttributeError on shapes that no client sends."""
    talk = Conversation(dialect, str(body.get("model", "puppet")), bool(body.get("stream")))
    talk.include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    talk.read += texts(body.get("system")) + texts(body.get("instructions"))
    items = body.get("input") if dialect == "responses" else body.get("messages")
    for item in [{"role": "user", "content": items}] if isinstance(items, str) else items or []:
        if item.get("type") in ("function_call", "local_shell_call", "custom_tool_call"):
            talk.calls += 1
        elif item.get("role") == "assistant":
            talk.calls += len(item.get("tool_calls") or [])
            if isinstance(item.get("content"), list):
                talk.calls += sum(1 for block in item["content"] if isinstance(block, dict) and block.get("type") == "tool_use")
        else:
            talk.read += texts(item)
    talk.shell = shell_tool(body.get("tools") or [])
    if talk.shell is None and not body.get("tools"):
        fence = next((name for name in TEXT_FENCES if f"```{name}" in talk.text), None)
        if fence:
            talk.shell = ShellTool(fence, kind="fence")
            said = [
                text
                for item in items or []
                if isinstance(item, dict) and item.get("role") == "assistant"
                for text in texts(item.get("content"))
            ]
            talk.calls = sum(f"```{fence}" in text for text in said)
    return talk


def shell_tool(tools: list[dict[str, Any]]) -> ShellTool | None:
    """Find the tool that runs a command among those a request advertises."""
    found: list[ShellTool] = []
    for tool in tools:
        kind = str(tool.get("type", ""))
        if kind == "local_shell":
            return ShellTool("local_shell", listed=True, kind="local_shell")
        if kind.startswith("bash_"):  # Anthropic's own tool type carries no schema
            return ShellTool(str(tool.get("name", "bash")))
        spec = tool.get("function") if isinstance(tool.get("function"), dict) else tool
        assert isinstance(spec, dict)
        schema = spec.get("input_schema") or spec.get("parameters") or {}
        properties = schema.get("properties") or {}
        key = next((name for name in COMMAND_KEYS if name in properties), None)
        if key is None:
            continue
        required = [name for name in schema.get("required") or [] if name != key]
        extra = tuple((name, _filler(properties.get(name) or {})) for name in required)
        found.append(ShellTool(str(spec.get("name")), key, properties[key].get("type") == "array", extra=extra))
    ranked = {name: rank for rank, name in enumerate(SHELL_NAMES)}
    return min(found, key=lambda tool: ranked.get(tool.name.lower(), len(ranked)), default=None)


def _filler(schema: dict[str, Any]) -> Any:
    fillers: dict[str, Any] = {"integer": 1, "number": 1, "boolean": False, "array": [], "object": {}}
    return fillers.get(str(schema.get("type")), (schema.get("enum") or ["a step of the task"])[0])


def write(talk: Conversation, reply: Reply, serial: int) -> dict[str, Any]:
    """The reply as one JSON object of the request's dialect."""
    command, text = reply.command, reply.text
    if command is not None and talk.shell is not None and talk.shell.kind == "fence":
        command, text = None, f"THOUGHT: {text}\n\n```{talk.shell.name}\n{command}\n```"
    if talk.dialect == "messages":
        blocks: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if command is not None and talk.shell:
            blocks.append(
                {"type": "tool_use", "id": f"toolu_{serial:08d}", "name": talk.shell.name, "input": talk.shell.arguments(command)}
            )
        return {
            "id": f"msg_{serial:08d}",
            "type": "message",
            "role": "assistant",
            "model": talk.model,
            "content": blocks,
            "stop_reason": "end_turn" if len(blocks) == 1 else "tool_use",
            "stop_sequence": None,
            "usage": {"input_tokens": 8, "output_tokens": 8, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0},
        }
    if talk.dialect == "chat":
        message: dict[str, Any] = {"role": "assistant", "content": text}
        if command is not None and talk.shell:
            function = {"name": talk.shell.name, "arguments": json.dumps(talk.shell.arguments(command))}
            message["tool_calls"] = [{"id": f"call_{serial:08d}", "type": "function", "function": function}]
        return {
            "id": f"chatcmpl-{serial:08d}",
            "object": "chat.completion",
            "created": 1,
            "model": talk.model,
            "choices": [
                {"index": 0, "message": message, "finish_reason": "tool_calls" if "tool_calls" in message else "stop", "logprobs": None}
            ],
            "usage": {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16},
        }
    output: list[dict[str, Any]] = [
        {
            "type": "message",
            "id": f"msg_{serial:08d}",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }
    ]
    if command is not None and talk.shell and talk.shell.kind == "local_shell":
        action = {"type": "exec", "command": ["bash", "-lc", command], "env": {}}
        output.append(
            {
                "type": "local_shell_call",
                "id": f"lsh_{serial:08d}",
                "call_id": f"call_{serial:08d}",
                "status": "completed",
                "action": action,
            }
        )
    elif command is not None and talk.shell:
        call = {"type": "function_call", "id": f"fc_{serial:08d}", "call_id": f"call_{serial:08d}", "status": "completed"}
        output.append({**call, "name": talk.shell.name, "arguments": json.dumps(talk.shell.arguments(command))})
    return {
        "id": f"resp_{serial:08d}",
        "object": "response",
        "created_at": 1,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "model": talk.model,
        "output": output,
        "parallel_tool_calls": False,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": 8,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 8,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 16,
        },
    }


def events(talk: Conversation, whole: dict[str, Any]) -> list[bytes]:
    """The same reply as server-sent events, in the order that the dialect's stream has them."""
    make = {"messages": _messages_events, "chat": _chat_events, "responses": _responses_events}[talk.dialect]
    lines = []
    for event in make(talk, whole):
        name = "" if talk.dialect == "chat" else f"event: {event['type']}\n"
        lines.append(f"{name}data: {json.dumps(event)}\n\n".encode())
    return lines + ([b"data: [DONE]\n\n"] if talk.dialect == "chat" else [])


def _messages_events(talk: Conversation, whole: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"type": "message_start", "message": {**whole, "content": [], "stop_reason": None}}, {"type": "ping"}]
    start: dict[str, Any]
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            start, delta = {"type": "text", "text": ""}, {"type": "text_delta", "text": block["text"]}
        else:
            start, delta = {**block, "input": {}}, {"type": "input_json_delta", "partial_json": json.dumps(block["input"])}
        found.append({"type": "content_block_start", "index": index, "content_block": start})
        found.append({"type": "content_block_delta", "index": index, "delta": delta})
        found.append({"type": "content_block_stop", "index": index})
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    return [*found, {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 8}}, {"type": "message_stop"}]


def _chat_events(talk: Conversation, whole: dict[str, Any]) -> list[dict[str, Any]]:
    choice, head = whole["choices"][0], {"id": whole["id"], "object": "chat.completion.chunk", "created": 1, "model": talk.model}
    delta = dict(choice["message"])
    if "tool_calls" in delta:
        delta["tool_calls"] = [{"index": index, **call} for index, call in enumerate(delta["tool_calls"])]
    found: list[dict[str, Any]] = [
        {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}]},
    ]
    return [*found, {**head, "choices": [], "usage": whole["usage"]}] if talk.include_usage else found


def _responses_events(talk: Conversation, whole: dict[str, Any]) -> list[dict[str, Any]]:
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    found: list[dict[str, Any]] = [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
    for index, item in enumerate(whole["output"]):
        at = {"item_id": item["id"], "output_index": index}
        if item["type"] == "message":
            part, text = item["content"][0], item["content"][0]["text"]
            empty = {**item, "status": "in_progress", "content": []}
            found.append({"type": "response.output_item.added", "output_index": index, "item": empty})
            found.append({"type": "response.content_part.added", **at, "content_index": 0, "part": {**part, "text": ""}})
            found.append({"type": "response.output_text.delta", **at, "content_index": 0, "delta": text})
            found.append({"type": "response.output_text.done", **at, "content_index": 0, "text": text})
            found.append({"type": "response.content_part.done", **at, "content_index": 0, "part": part})
        elif item["type"] == "function_call":
            found.append(
                {"type": "response.output_item.added", "output_index": index, "item": {**item, "arguments": "", "status": "in_progress"}}
            )
            found.append({"type": "response.function_call_arguments.delta", **at, "delta": item["arguments"]})
            found.append({"type": "response.function_call_arguments.done", **at, "arguments": item["arguments"]})
        else:
            found.append({"type": "response.output_item.added", "output_index": index, "item": {**item, "status": "in_progress"}})
        found.append({"type": "response.output_item.done", "output_index": index, "item": item})
    found.append({"type": "response.completed", "response": whole})
    return [{**event, "sequence_number": number} for number, event in enumerate(found)]


MARK = re.compile(r"\[\[run:([A-Za-z0-9_=-]+)\]\]")
