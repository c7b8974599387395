"""Which refs a git push wants to change: the commands at the beginning of a `git-receive-pack` request, before the pack.

Sources: gitprotocol-pack(5) ("Reference Update Request and Packfile Transfer"), gitprotocol-common(5) (pkt-line).
"""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PROBE = b"0000"  # git asks with an empty request whether it may push, before it sends a large one in chunks
_MOST = 1000  # commands
_COMMAND = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64}) ([0-9a-f]{40}|[0-9a-f]{64}) (refs/[!-~]+)")
_SHALLOW = re.compile(rb"shallow ([0-9a-f]{40}|[0-9a-f]{64})")


def refused(headers: tuple[tuple[str, str], ...], start: bytes, granted: Callable[[str], bool]) -> str:
    """Why this push may not go out, "" if it may. `start` is the request's body, or its beginning, with all commands in it."""
    if any(name.lower() == "content-encoding" and value.lower() != "identity" for name, value in headers):
        return "the push is compressed, and its commands must be read"
    if start == PROBE:
        return ""
    found = commands(start)
    if isinstance(found, str):
        return found
    for new, ref in found:
        if not granted(ref):
            return f"{_shown(ref)} is not granted"
        if not new.strip("0"):
            return f"deleting {_shown(ref)} is not granted"
    return "" if found else "the push holds no command"


def commands(start: bytes) -> list[tuple[str, str]] | str:
    """(new object id, ref) of each command, or why they cannot be read. Never raises for any bytes."""
    found: list[tuple[str, str]] = []
    at = 0
    while True:
        head = start[at : at + 4]
        if not re.fullmatch(rb"[0-9a-f]{4}", head):
            return "the commands of the push do not end where they should, or are too many to be read at once"
        size = int(head, 16)
        if size == 0:
            return found
        line = start[at + 4 : at + size]
        at += size
        if size <= 4 or len(line) != size - 4:
            return "the commands of the push do not end where they should, or are too many to be read at once"
        text, _, wishes = line.partition(b"\0") if not found else (line, b"", b"")
        if b"push-options" in wishes.split():  # which make a forge merge, or run what it would not (receive.advertisePushOptions)
            return "the push brings options (git push -o), and they do more than to change refs"
        text = text.removesuffix(b"\n")
        if _SHALLOW.fullmatch(text):
            continue
        command = _COMMAND.fullmatch(text)
        if command is None or len(command[1]) != len(command[2]):
            return "the push holds a line that is no command"
        found.append((command[2].decode(), command[3].decode()))
        if len(found) > _MOST:
            return f"the push holds more than {_MOST} commands"


def _shown(ref: str) -> str:
    return ascii(ref[:100])[1:-1]
