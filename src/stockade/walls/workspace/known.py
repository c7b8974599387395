"""What was found at the last look at a workspace: how large it is, which hard links stay inside, and which repositories lie in it. Kept with our
state, never in the workspace.

A sandbox cannot make a hard link to a file outside (link(2) does not cross mounts), so a workspace that was looked at once stays clean unless
somebody on the host adds one; later looks happen behind the start. HOT: on the path of every `stockade run`.
"""

from __future__ import annotations

import marshal
import os

from stockade.core import places

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FOLDERS = 100_000  # folders of which it is remembered that they are there
ENTRIES = 512  # entries of the top folder that are looked at before every start


def _place(top: str) -> str:
    from _sha2 import sha256  # type: ignore[import-not-found]  # built in, not in typeshed

    found = os.lstat(top)
    return places.state(f"workspaces/{sha256(os.fsencode(f'3:{found.st_dev}:{found.st_ino}:{top}')).hexdigest()}")


def load(top: str) -> dict[str, Any] | None:
    """{"files": number, "inside": [(device, inode), ...], "nested": [relative path, ...]} of the last complete look, None if there was none.

    `nested` are git directories and `.git` files below the top.
    """
    try:
        with open(_place(top), "rb") as file:
            found: dict[str, Any] = marshal.load(file)  # noqa: S302 - written by us, in a directory of ours
            return found
    except (OSError, EOFError, ValueError, TypeError):
        return None


def save(top: str, files: int, inside: list[tuple[int, int]], nested: list[str], folders: dict[str, int] | None = None) -> None:
    """Remember a complete look; `folders` (path: inode) for the report only, so in a file of their own. Raises OSError, StockadeError when the state directory is not
    ours or cannot be written."""
    path = _place(top)
    places.private(places.state())
    places.private(os.path.dirname(path))
    _write(path, {"files": files, "inside": inside[:10_000], "nested": nested})
    if folders is not None:
        _write(f"{path}.folders", folders if len(folders) <= FOLDERS else {})


def _write(path: str, data: dict[str, Any]) -> None:
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "wb") as file:
        marshal.dump(data, file)
    os.replace(temporary, path)


def folders(top: str) -> dict[str, int] | None:
    """The folders of the last complete look (path: inode), None if there was none or they were too many."""
    try:
        with open(f"{_place(top)}.folders", "rb") as file:
            found: dict[str, int] = marshal.load(file)  # noqa: S302 - written by us, in a directory of ours
            return found or None
    except (OSError, EOFError, ValueError, TypeError):
        return None


def glance(top: str, known: dict[str, Any]) -> tuple[bool, list[str]]:
    """What may be new since the last look, seen from the top folder alone, by at most `ENTRIES` lstat calls.

    (whether a file in it has links that the look did not account for, the `.git` directories and files of its folders)
    """
    inside = {tuple(key) for key in known["inside"]}
    link, repositories = False, []
    with os.scandir(top) as entries:
        for number, entry in enumerate(entries):
            if number >= ENTRIES:
                break
            if entry.is_dir(follow_symlinks=False):
                if entry.name != ".git" and _holds_repository(entry.path):
                    repositories.append(f"{entry.name}/.git")
            elif entry.is_file(follow_symlinks=False):
                found = entry.stat(follow_symlinks=False)
                link = link or (found.st_nlink > 1 and (found.st_dev, found.st_ino) not in inside)
    return link, repositories


def _holds_repository(folder: str) -> bool:
    """Whether `folder` has a `.git` that is a git directory, or no directory at all."""
    try:
        os.lstat(f"{folder}/.git/HEAD")
    except NotADirectoryError:
        return True
    except OSError:
        return False
    return True
