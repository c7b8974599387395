"""Reads what a project brings (names.py, BROUGHT): a fixed list of places at its top, by descriptor, no link followed, nothing opened that is no plain file.

HOT where a folder is trusted: it is compared with what was trusted at every start. Before that it runs as a program in a box of its own, with the project
read-only and no network, and writes the bytes of core/brought.py to its standard output.
"""

from __future__ import annotations

import os
import stat
import sys

from stockade import __version__
from stockade.core import places
from stockade.core.brought import LARGEST, MOST, MOST_ENTRIES, Entry, encode
from stockade.walls.workspace.beneath import Directory
from stockade.walls.workspace.names import BROUGHT, RESTLESS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEEPEST = 4  # levels of a folder on the list
_GIT = (".git/config", ".git/config.worktree")
_LISTED = frozenset(rel for rel, _ in BROUGHT)
# What programs note in a repository's config about branches and remotes, beside what gitconfig.py has on its list.
_NOTES = ("vscode-merge-base", "gh-merge-base", "gh-resolved", "github-pr-owner-number")


def collect(top: str) -> bytes:
    """What the project at the resolved path `top` brings, as core/brought.py says. Costs a fixed number of system calls for the list, and some for each file
    that is there. Raises OSError when the folder itself cannot be opened.
    """
    with Directory.top(top) as root:
        reading = _Reading()
        try:
            for rel, _ in BROUGHT:
                reading.place(root, rel)
        finally:
            for here in reading.open.values():
                if here is not None:
                    os.close(here.fd)
    return encode(tuple(reading.found.values()))


def listed(name: str) -> bool:
    """Whether a project can bring something of this name: a place of the list, on the way to one, or below one."""
    return any(rel == name or rel.startswith(f"{name}/") or name.startswith(f"{rel}/") for rel in _LISTED)


class _Reading:
    def __init__(self) -> None:
        self.found: dict[str, Entry] = {}
        self.open: dict[str, Directory | None] = {}
        self.left = MOST
        self.room = MOST_ENTRIES - 2 * len(_LISTED)  # files in folders on the list

    def place(self, root: Directory, rel: str) -> None:
        if rel == ".git" and stat.S_ISDIR(root.kind(rel)):
            return  # a pointer to a git directory counts; of a git directory itself, single files
        here: Directory | None = root
        at = ""
        *folders, name = rel.split("/")
        for folder in folders:
            above, at = here, f"{at}/{folder}" if at else folder
            if at not in self.open:
                assert above is not None
                self.open[at] = self._enter(above, folder, at)
            here = self.open[at]
            if here is None:
                return
        assert here is not None
        self.look(here, name, rel, 0)

    def _enter(self, above: Directory, name: str, rel: str) -> Directory | None:
        """The folder on the way to a place of the list; None if there is none, or it is a link, which is noted."""
        kind = above.kind(name)
        if stat.S_ISLNK(kind):
            self.add(rel, "l", os.fsencode(above.link_text(name)))
        if not stat.S_ISDIR(kind):
            return None
        try:
            return above.down(name)
        except OSError:
            self.add(rel, "e")
            return None

    def add(self, rel: str, kind: str, content: bytes = b"") -> None:
        if len(content) > LARGEST or len(content) > self.left:
            kind, content = "b", b""
        self.left -= len(content)
        self.found[rel] = Entry(rel, kind, content)

    def look(self, here: Directory, name: str, rel: str, depth: int) -> None:
        found = here.stat(name)
        if found is None:
            return
        mode = found.st_mode
        if stat.S_ISLNK(mode):
            self.add(rel, "l", os.fsencode(here.link_text(name)))
        elif stat.S_ISDIR(mode):
            self.folder(here, name, rel, depth)
        elif not stat.S_ISREG(mode):
            self.add(rel, "o")
        elif rel in RESTLESS:
            self.add(rel, "p")
        else:
            self.file(here, name, rel)

    def file(self, here: Directory, name: str, rel: str) -> None:
        try:
            fd = here.open_file(name)
        except OSError:
            self.add(rel, "e")
            return
        try:
            mode, data = os.fstat(fd).st_mode, b""
            while len(data) <= LARGEST and (piece := os.read(fd, LARGEST + 1 - len(data))):
                data += piece
        except OSError:
            self.add(rel, "e")
            return
        finally:
            os.close(fd)
        if rel in _GIT and len(data) <= LARGEST:
            if settings := _settings(data):
                self.add(rel, "g", settings)
        else:
            self.add(rel, "x" if mode & 0o111 else "f", data)

    def folder(self, above: Directory, name: str, rel: str, depth: int) -> None:
        """Everything in a folder on the list, as far as a person could look through it."""
        if depth >= DEEPEST:
            self.add(rel, "m")
            return
        try:
            here = above.down(name)
        except OSError:
            self.add(rel, "e")
            return
        with here:
            names: list[str] = []
            for entry in here.entries():
                if rel != ".git/hooks" or not entry.name.endswith(".sample"):  # git does not run those
                    names.append(entry.name)
                if len(names) > self.room:
                    self.add(rel, "m")
                    return
            self.room -= len(names)
            for inner in sorted(names, key=os.fsencode):
                self.look(here, inner, f"{rel}/{inner}", depth + 1)


def _settings(data: bytes) -> bytes:
    """What of a git config names a program or leads to another file, as git writes it; kept by content, since git itself is asked."""
    from _sha2 import sha256  # type: ignore[import-not-found]  # built in, not in typeshed

    cached = places.cache(f"git/brought-{sha256(f'{__version__}\n'.encode() + data).hexdigest()}")
    try:
        with open(cached, "rb") as file:
            said = file.read()
        if said[:1] == b"+":
            return said[1:]
    except OSError:
        pass
    import subprocess

    from stockade.walls.workspace import gitconfig

    try:
        pairs = [pair for pair in gitconfig.entries(data) if gitconfig.safe(pair) is None and pair[0].rpartition(".")[2] not in _NOTES]
    except (ValueError, OSError, subprocess.SubprocessError):
        return b"# git cannot read this:\n" + data
    text = gitconfig.write(pairs).encode("utf-8", "surrogateescape") if pairs else b""
    places.private(os.path.dirname(cached))
    temporary = f"{cached}.{os.getpid()}"
    with open(temporary, "wb") as file:
        file.write(b"+" + text)
    os.replace(temporary, cached)
    return text


def main(argv: Sequence[str]) -> int:
    """Write what the project at `argv[0]` brings to standard output."""
    data = memoryview(collect(argv[0]))
    while data:
        data = data[os.write(1, data) :]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
