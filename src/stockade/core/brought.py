"""What a project brings: the files at its top that tools obey without being asked, as one canonical string of bytes. HOT.

For each entry a line `KIND LENGTH LENGTH`, then its name and its content, of these lengths, and a newline. Whoever reads a project may have been taken over by
what it read, so this is all that is accepted from it: closed codes, names and bytes.
"""

from __future__ import annotations

import os

from stockade.core.frozen import frozen

# What an entry can be. Of those in REFUSED the content says nothing, or could change without anybody noticing.
KINDS = {
    "f": "a file",
    "x": "an executable file",
    "g": "settings of git, without those that name no program and no other file",
    "p": "a file that changes all the time; only that it is there counts",
    "l": "a symbolic link, and what it leads to could change unseen",
    "o": "neither a file nor a folder",
    "e": "unreadable",
    "b": "too large",
    "m": "a folder with too many files",
}
REFUSED = "loebm"
MOST_ENTRIES, LONGEST_NAME = 512, 4096
LARGEST, MOST = 256 << 10, 2 << 20  # bytes of one content, of everything
_HEAD = 32  # bytes of an entry's first line, at most


@frozen
class Entry:
    """`name` is a path relative to the project (undecodable bytes as surrogates); `kind` one of KINDS; `content` that of a file, or the text of a link."""

    name: str
    kind: str
    content: bytes = b""


def encode(entries: tuple[Entry, ...]) -> bytes:
    """The bytes that stand for these entries; their digest is what trust is pinned to."""
    parts = []
    for entry in entries:
        name = os.fsencode(entry.name)
        parts += [b"%s %d %d\n" % (entry.kind.encode(), len(name), len(entry.content)), name, entry.content, b"\n"]
    return b"".join(parts)


def decode(data: bytes) -> tuple[Entry, ...]:
    """The entries that these bytes stand for. Raises ValueError for anything that `encode` would not have made of a project."""
    found: dict[str, Entry] = {}
    at = 0
    if len(data) > MOST + MOST_ENTRIES * (LONGEST_NAME + _HEAD):
        raise ValueError("more than a project may bring")
    while at < len(data):
        end = data.find(b"\n", at, at + _HEAD)
        words = data[at:end].split(b" ") if end > 0 else []
        if len(words) != 3 or not all(word.isdigit() and len(word) < 9 for word in words[1:]):
            raise ValueError("not an entry")
        kind, name_end = words[0].decode("ascii", "replace"), end + 1 + int(words[1])
        at = name_end + int(words[2]) + 1
        name = os.fsdecode(data[end + 1 : name_end])
        if kind not in KINDS or not plain(name) or name in found or len(found) >= MOST_ENTRIES or int(words[2]) > LARGEST:
            raise ValueError("an entry that no project has")
        found[name] = Entry(name, kind, data[name_end : at - 1])
    entries = tuple(found.values())
    if encode(entries) != data:
        raise ValueError("not written as it has to be")
    return entries


def plain(name: str) -> bool:
    """Whether `name` is a path that stays below where it starts, written in the one way there is."""
    return len(name) <= LONGEST_NAME and "\0" not in name and all(part not in ("", ".", "..") for part in name.split("/"))
