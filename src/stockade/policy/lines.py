"""On which line each key of a TOML document stands.

`tomllib` gives values without positions. TOML is read from left to right and its statements end at line ends, so a run of lines parses on its own exactly
when it is whole: growing a chunk line by line until `tomllib` accepts it cuts the document into statements without a parser of our own.
"""

from __future__ import annotations

import tomllib
from typing import Any

Key = tuple[str | int, ...]
_BUDGET = 2 << 20  # characters handed to tomllib; only thousands of lines inside one value exceed it, and then later keys have no line


def locate(text: str) -> dict[Key, int]:
    """The 1-based line of every key, dotted keys, tables in arrays and inline tables included. `text` must be valid TOML.

    Keys are paths such as ("egress", 1, "paths"); items of a value have the line on which its statement begins.
    """
    found: dict[Key, int] = {(): 1}
    counts: dict[Key, int] = {}
    table: Key = ()
    chunk, first, spent = "", 0, 0
    for number, line in enumerate(text.split("\n"), 1):
        if not chunk:
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            first = number
        chunk += line + "\n"
        spent += len(chunk)
        if spent > _BUDGET:
            break
        try:
            parsed = tomllib.loads(chunk)
        except (ValueError, RecursionError):
            continue
        if chunk.lstrip().startswith("["):
            table = _header(parsed, counts)
            for end in range(1, len(table) + 1):
                found.setdefault(table[:end], first)
        else:
            _values(parsed, table, first, found)
        chunk = ""
    return found


def _header(parsed: dict[str, Any], counts: dict[Key, int]) -> Key:
    table: Key = ()
    value: Any = parsed
    while isinstance(value, dict) and value:
        ((name, value),) = value.items()
        table = (*table, name)
        if isinstance(value, list):
            counts[table] = counts.get(table, 0) + 1
            return (*table, counts[table] - 1)
        if value and table in counts:
            table = (*table, counts[table] - 1)
    return table


def _values(value: Any, path: Key, line: int, found: dict[Key, int]) -> None:
    if path:
        found.setdefault(path, line)
    if isinstance(value, dict):
        for name, item in value.items():
            _values(item, (*path, name), line, found)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _values(item, (*path, index), line, found)


def line_of(key: Key, lines: dict[Key, int]) -> int:
    """The line of `key`, or of the nearest table around it; 0 = unknown."""
    for end in range(len(key), 0, -1):
        if key[:end] in lines:
            return lines[key[:end]]
    return 0
