"""Makes repositories harmless that were created or changed inside, before the host's git gets to see them.

What is not on the list of safe things is set aside under a name ending in `.stockade-held`, never deleted, and reported; a repository that
only holds what `git init` makes is left alone. Judged by inode change time, which no program can set back (inode(7)).
Sources: gitrepository-layout(5), githooks(5), git-config(1), gitsubmodules(7).
"""

from __future__ import annotations

import errno
import os
import stat

from stockade.walls.workspace.beneath import Directory, break_link

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

HELD = ".stockade-held"


def is_git_directory(here: Directory) -> bool:
    """Whether git would take `here` for a git directory: HEAD, objects and refs (or a commondir instead of the latter two)."""
    if not here.kind("HEAD"):
        return False
    return bool(here.kind("objects") and here.kind("refs")) or bool(here.kind("commondir"))


def pointer(parent: Directory, rel: str, top: str, started: float, *, trusted: Callable[[str], bool] | None = None) -> list[dict[str, str]]:
    """Set aside the `.git` file or link in `parent` if it is new and leads out of the workspace.

    `rel` is the path of `parent` below the workspace `top`. `trusted(target)` says that a target outside is the workspace's own git directory.
    """
    found = parent.stat(".git")
    if found is None or found.st_ctime < started or stat.S_ISDIR(found.st_mode):
        return []
    why = wayward(parent, ".git", rel, top, trusted)
    return [_row(os.path.join(rel, ".git"), parent.set_aside(".git", HELD), why)] if why else []


def wayward(parent: Directory, name: str, rel: str, top: str, trusted: Callable[[str], bool] | None) -> str:
    """Why `name` in `parent` may not be the `.git` file or link of the folder `rel` of the workspace `top`; "" if it may, or git would not follow it."""
    target = parent.link_text(name)
    if not target and parent.kind(name) == stat.S_IFREG:
        text = parent.read(name, 4096)
        if (
            text is None or b"\0" in text
        ):  # git takes a file of up to a megabyte, and of that what stands before a NUL and the newlines at the end
            return "leads somewhere, in a way that nobody means"
        target = os.fsdecode(text[8:]).rstrip("\r\n") if text.startswith(b"gitdir: ") else ""
    return f"leads to {target}, outside the workspace" if target and leads_out(target, rel, top, trusted) else ""


def leads_out(target: str, rel: str, top: str, trusted: Callable[[str], bool] | None) -> bool:
    """Whether a `.git` file or link in the folder `rel` that names `target` leads out of the workspace `top`; `trusted` as for `pointer`."""
    place = os.path.normpath(os.path.join(top, rel, target))
    inside = place == top or place.startswith(f"{top}/")
    if inside and os.path.realpath(place) == place:
        return False  # its target is looked at like any other git directory below the workspace
    return trusted is None or not trusted(place)


def directory(here: Directory, rel: str, started: float, top: str) -> list[dict[str, str]]:
    """Set aside everything executable in the git directory `here` that changed since `started` (Unix seconds; 0 = whatever is there).

    `rel` is its path below the workspace `top`. INVARIANT: a directory that was not known before the run is judged with `started` = 0, because
    a whole directory that is moved into place keeps the change times of what it holds. Raises OSError when something cannot be set aside:
    the caller reports it as not defused.
    """
    held: list[dict[str, str]] = []
    for name, why in (("commondir", "sends git to another config"), ("config.worktree", "a second config")):
        if _new(here, name, started) and not (name == "commondir" and _is_admin(here, rel)):
            held.append(_row(f"{rel}/{name}", here.set_aside(name, HELD), why))
    if here.kind("hooks") and _hooks_changed(here, started):
        held.append(_row(f"{rel}/hooks", here.set_aside("hooks", HELD), "git runs these programs"))
    held += _config(here, rel, started)
    held += _alternates(here, rel, started, top)
    _unlinked(here)
    return held


def _new(here: Directory, name: str, started: float) -> bool:
    found = here.stat(name)
    return found is not None and found.st_ctime >= started


def _is_admin(here: Directory, rel: str) -> bool:
    """Whether it is the part of a repository for a further working tree, which sends git to that repository: to one that git, and so we, take for a git directory.

    Git itself needs no HEAD in what a `commondir` names, so that a folder which is looked at as no repository would do for it.
    """
    parts = rel.split("/")
    if len(parts) < 3 or parts[-2] != "worktrees" or (here.read("commondir", 64) or b"").rstrip(b"\r\n") != b"../..":
        return False
    with here.walk_to("") as inner, Directory(os.open("../..", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=inner.fd)) as common:
        return is_git_directory(common)


def _unlinked(here: Directory) -> None:
    """Give what git obeys no other name: when the repository is held the next time, that one could be written to."""
    for rel in ("", "info", "hooks", "objects/info"):
        try:
            folder = here.walk_to(rel)
        except OSError:
            continue
        with folder:
            for name in folder.names():
                found = folder.stat(name)
                if found is not None and stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
                    folder.unlock()
                    break_link(folder, name)


def _hooks_changed(here: Directory, started: float) -> bool:
    kind = here.kind("hooks")
    if kind != stat.S_IFDIR:
        return _new(here, "hooks", started)
    whole = _new(here, "hooks", started)
    try:
        with here.down("hooks") as hooks:
            for entry in hooks.entries():
                if not entry.name.endswith(".sample") and (whole or entry.stat(follow_symlinks=False).st_ctime >= started):
                    return True
    except OSError:
        return True
    return False


def _config(here: Directory, rel: str, started: float) -> list[dict[str, str]]:
    if not _new(here, "config", started):
        return []
    import subprocess  # only when there is something to parse

    from stockade.walls.workspace import gitconfig

    data = here.read("config")
    try:
        pairs = gitconfig.entries(data) if data is not None else None
    except (ValueError, OSError, subprocess.SubprocessError):
        pairs = None
    if pairs is None:
        held = here.set_aside("config", HELD)
        here.write_new("config", b"[core]\n\trepositoryformatversion = 0\n")
        return [_row(f"{rel}/config", held, "cannot be read as git configuration")]
    kept = [pair for pair in map(gitconfig.safe, pairs) if pair]
    dropped = sorted(
        {key for key, value in pairs if gitconfig.safe((key, value)) is None and not (key == "core.worktree" and "/modules/" in f"/{rel}")}
    )
    if not dropped:
        return []
    held = here.set_aside("config", HELD)
    worktree = [pair for pair in pairs if pair[0] == "core.worktree" and "/modules/" in f"/{rel}"]
    here.write_new("config", gitconfig.write([*kept, *worktree]).encode("utf-8", "surrogateescape"), 0o644)
    return [_row(f"{rel}/config", held, "sets " + ", ".join(dropped[:8]))]


def _alternates(here: Directory, rel: str, started: float, top: str) -> list[dict[str, str]]:
    try:
        with here.walk_to("objects/info") as info:
            if not _new(info, "alternates", started):
                return []
            text = os.fsdecode(info.read("alternates") or b"\n/")
            base = os.path.join(top, rel, "objects")
            places = [os.path.normpath(os.path.join(base, line)) for line in text.splitlines() if line and not line.startswith("#")]
            if "\0" not in text and all(place.startswith(f"{top}/") for place in places):
                return []
            return [
                _row(f"{rel}/objects/info/alternates", info.set_aside("alternates", HELD), "borrows objects from outside the workspace")
            ]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []
        raise


def _row(path: str, held: str, why: str) -> dict[str, str]:
    return {"path": path, "held": held, "why": why}


def release(top: str, rel: str) -> str:
    """Undo one hold: give `rel` (a path ending in `.stockade-held`, relative to the workspace `top`) its name back. Returns the name.

    What stands in its place now is kept under `.stockade-replaced`. Raises OSError, ValueError.
    """
    parent, _, held = rel.rpartition("/")
    name, mark, _ = held.partition(HELD)
    if not mark or not name:
        raise ValueError(f"{rel} is not a name that stockade held back")
    with Directory.top(top) as root, root.walk_to(parent) as here:
        if here.kind(name):
            here.set_aside(name, ".stockade-replaced")
        os.rename(held, name, src_dir_fd=here.fd, dst_dir_fd=here.fd)
    return name
