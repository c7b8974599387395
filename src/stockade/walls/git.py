"""A private git directory for the sandbox: prepared in constant time, without a look at refs, objects or files.

Inside, `.git` is an overlay: reads see the host's git directory, writes land in the session's own directory. The host's `.git` is therefore
exactly what it was at every moment of the run, whatever is written inside (`commondir`, `config`, hooks, attributes, alternates). What was
committed comes back afterwards as data (`stockade.walls.workspace.bringback`). Sources: gitrepository-layout(5), git-config(1),
gitsubmodules(7), git-worktree(1), the kernel's Documentation/filesystems/overlayfs.rst.

HOT: on the path of every `stockade run`.
"""

from __future__ import annotations

import os

from stockade.core import places
from stockade.core.errors import CannotEnforce
from stockade.core.frozen import frozen
from stockade.core.values import Enforced, Mount, Overlay

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from stockade.core.values import Origin

NO_OVERLAY_HINT = (
    "The kernel or the file system of the state directory does not offer overlayfs here. Put XDG_STATE_HOME on ext4, xfs, btrfs or tmpfs, or set "
    '`[workspace] git = "ro"` in the policy: the agent then reads history but cannot commit.'
)
MODULES_AT_MOST = 256  # git directories of submodules that are sanitised one by one; beyond that all are hidden
# What of a git directory is visible inside; anything else (credential stores, backups of the config, other tools' state) is hidden.
_VISIBLE = frozenset(
    "HEAD ORIG_HEAD index objects refs packed-refs reftable info description branches shallow worktrees modules lfs COMMIT_EDITMSG MERGE_HEAD "
    "MERGE_MSG MERGE_MODE MERGE_RR AUTO_MERGE CHERRY_PICK_HEAD REVERT_HEAD REBASE_HEAD rebase-merge rebase-apply rr-cache sequencer commondir "
    "gitdir locked BISECT_LOG BISECT_START BISECT_NAMES BISECT_TERMS BISECT_EXPECTED_REV BISECT_ANCESTORS_OK".split()
)
_REPLACED = frozenset(("config", "logs", "hooks"))
_PRUNED = frozenset(("objects", "refs", "logs", "hooks", "info", "lfs", "worktrees"))
_DIRECTORY, _REGULAR, _SYMLINK = 0o040000, 0o100000, 0o120000


@frozen
class Repository:
    """Where git keeps its things for one working tree; all host paths, all resolved.

    `common` holds config, objects and refs; `admin` (relative, "" = `common` itself) holds HEAD and index of this working tree;
    `pointer` is the `.git` file that leads there ("" = `.git` is the directory itself); `worktree` is the working tree.
    """

    common: str
    admin: str = ""
    pointer: str = ""
    worktree: str = ""


@frozen
class GitView:
    """How a repository appears inside. `session` is the directory with `upper` and `work`; "" = read-only or no repository."""

    repository: Repository | None = None
    mounts: tuple[Mount, ...] = ()
    overlays: tuple[Overlay, ...] = ()
    notes: tuple[Enforced, ...] = ()
    session: str = ""
    prepared: tuple[tuple[str, tuple[str, ...]], ...] = ()  # names in the upper layer before the run, by git directory ("" = `common`)
    heads: tuple[tuple[str, str, str, tuple[int, int, int]], ...] = ()  # by git directory: see `position`

    def facts(self) -> dict[str, Any]:
        """What bringing commits back needs, as plain data; {} without a private layer."""
        if self.repository is None or not self.session:
            return {}
        return {
            "common": self.repository.common,
            "admin": self.repository.admin,
            "inside": self.overlays[0].target,
            "session": self.session,
            "upper": f"{self.session}/upper",
            "heads": {rel: list(rest) for rel, *rest in self.heads},
            "config": stamp(f"{self.session}/upper/config"),
            "prepared": {rel: list(names) for rel, names in self.prepared},
        }


def find(top: str) -> tuple[Repository | None, str]:
    """The repository whose working tree is the directory `top`, and a sentence that says why there is none.

    Never trusts a `.git` file alone: whoever writes to the workspace could name any directory in it, and make another repository visible.
    The directory it names must point back at it (worktrees: their `gitdir` file; submodules: `core.worktree`) or lie inside `top`.
    Raises CannotEnforce for layouts that cannot be kept private.
    """
    dotgit = f"{top}/.git"
    kind = file_type(dotgit)
    if not kind:
        if file_type(f"{top}/HEAD") and file_type(f"{top}/objects") and file_type(f"{top}/refs"):
            raise CannotEnforce(
                f"{top} is a bare repository: its config and hooks would be writable inside, and the host's git executes them",
                code="workspace.bare-repository",
                hint='Clone it and run in the clone, or give it to the sandbox with `[workspace] mode = "ro"`.',
            )
        return None, _above(top)
    if kind == _SYMLINK:
        raise CannotEnforce(
            f"{dotgit} is a symbolic link: inside it could be replaced, and the host's git would follow",
            code="workspace.git-symlink",
            hint=f"Replace it by a file that git understands: rm {dotgit} && echo 'gitdir: TARGET' > {dotgit}",
        )
    if kind == _DIRECTORY:
        if file_type(f"{dotgit}/commondir"):
            raise CannotEnforce(
                f"{dotgit}/commondir exists: git never makes one there, and it sends the host's git to a config of somebody's choice",
                code="workspace.git-commondir",
                hint=f"Look at it, then remove it: rm {dotgit}/commondir",
            )
        return (Repository(dotgit, worktree=top), "") if file_type(f"{dotgit}/HEAD") else (None, ".git holds no repository")
    return _follow(top, dotgit)


def _above(top: str) -> str:
    folder = os.path.dirname(top)
    while folder != "/":
        if file_type(f"{folder}/.git"):
            return f"the repository of {folder} is not visible inside: run there if the agent shall commit"
        folder = os.path.dirname(folder)
    return "no repository here"


def _follow(top: str, pointer: str) -> tuple[Repository | None, str]:
    text = _text(pointer)
    if not text.startswith("gitdir: "):
        return None, ".git is a file that git would not understand"
    gitdir = os.path.realpath(os.path.join(top, text[8:].rstrip("\r\n")))
    if not file_type(f"{gitdir}/HEAD") or _owner(gitdir) != os.geteuid() or _owner(pointer) != os.geteuid():
        return None, f".git names {gitdir}, which is not a repository of yours"
    above, name = os.path.split(gitdir)
    common = os.path.dirname(above)
    if os.path.basename(above) == "worktrees" and file_type(f"{gitdir}/gitdir"):
        back = os.path.join(gitdir, _text(f"{gitdir}/gitdir").rstrip("\r\n"))
        points_here = os.path.realpath(os.path.dirname(back)) == top and os.path.basename(back) == ".git"
        if points_here and os.path.realpath(os.path.join(gitdir, _text(f"{gitdir}/commondir").strip() or ".")) == common:
            return Repository(common, admin=f"worktrees/{name}", pointer=pointer, worktree=top), ""
        return None, f".git names {gitdir}, which does not point back here (`git worktree repair` mends a moved worktree)"
    if file_type(f"{gitdir}/commondir"):
        return None, f".git names {gitdir}, which sends git on to another directory"
    inside = gitdir.startswith(f"{top}/")
    worktree = _worktree_key(f"{gitdir}/config")
    if inside or (worktree and os.path.realpath(os.path.join(gitdir, worktree)) == top):
        return Repository(gitdir, pointer=pointer, worktree=top), ""
    return None, f".git names {gitdir}, whose core.worktree does not point back here"


def prepare(top: str, target: str, mode: str, session: str, origin: Origin, *, writable: bool = True, pin: bool = True) -> GitView:
    """Make the private layer for the repository at `top`, seen inside at `target`. `mode` is "private" or "ro"; `session` a directory of ours.

    Cost: a handful of system calls, and one cached parse of the config for the repository and each submodule.
    Raises CannotEnforce when the layer cannot be made.
    """
    try:
        return _prepared(top, target, mode, session, origin, writable, pin)
    except PermissionError as error:  # an earlier run may have closed it
        hint = f"Make it readable: chmod -R u+rwX {top}/.git"
        raise CannotEnforce(f"cannot look into {error.filename}: {error.strerror}", code="workspace.git-closed", hint=hint) from error


def _prepared(top: str, target: str, mode: str, session: str, origin: Origin, writable: bool, pin: bool) -> GitView:
    repository, why = find(top)
    if repository is None:
        pinned = (Mount(f"{top}/.git", f"{target}/.git", "ro", origin),) if file_type(f"{top}/.git") == _REGULAR else ()
        return GitView(mounts=pinned, notes=(Enforced("git", "none", why),))
    common = repository.common
    if common.startswith(f"{top}/"):
        place = target + common[len(top) :]
    elif target != top:
        return GitView(
            mounts=(Mount(f"{top}/.git", f"{target}/.git", "ro", origin),),
            notes=(Enforced("git", "none", f"{common} is found by its path, and the workspace appears at another path inside"),),
        )
    else:
        place = common
    notes = tuple(_borrowed(common))
    configs = {rel: sanitised(f"{common}/{rel}" if rel else common) for rel in _git_directories(common)}
    hidden = len(configs) > MODULES_AT_MOST
    if hidden:
        configs = {"": configs[""]}
        notes += (Enforced("git submodules", "hidden", f"more than {MODULES_AT_MOST}: their configs may hold credentials"),)
    mounts: list[Mount] = []
    fixed = [common[len(top) + 1 :].rpartition("/")[0]] if common.startswith(f"{top}/") else []
    submodules = list(_pointers(top, common, iter([rel for rel in configs if rel]))) if pin else []
    for step in _steps([*fixed, *submodules]) if pin else ():
        mounts.append(Mount(f"{top}/{step}", f"{target}/{step}", "rw" if writable else "ro", origin))
    mounts += [Mount(f"{top}/{rel}/.git", f"{target}/{rel}/.git", "ro", origin) for rel in submodules]
    if repository.pointer:
        mounts.append(Mount(repository.pointer, f"{target}/.git", "ro", origin))
    base = os.path.join(session, "git")
    os.makedirs(base, 0o700, exist_ok=True)
    if mode == "ro" or not writable:
        mounts.append(Mount(common, place, "ro", origin))
        nothing = {_DIRECTORY: f"{base}/empty", _REGULAR: f"{base}/nothing"}
        os.mkdir(nothing[_DIRECTORY], 0o700)
        _write(nothing[_REGULAR], "")
        for number, (rel, text) in enumerate(configs.items()):
            _write(f"{base}/config.{number}", text)
            at = f"{place}/{rel}" if rel else place
            mounts.append(Mount(f"{base}/config.{number}", f"{at}/config", "ro", origin))
            mounts += [Mount(nothing[kind], f"{at}/{name}", "ro", origin) for name, kind in _hidden(f"{common}/{rel}")]
        return GitView(repository, tuple(mounts), (), (*notes, Enforced("git", "read-only bind", "commits are refused")))
    upper, work, empty = f"{base}/upper", f"{base}/work", f"{base}/empty"
    try:
        for path in (upper, work, empty):
            os.mkdir(path, 0o700)
        for rel, text in configs.items():
            _layer(f"{common}/{rel}", f"{upper}/{rel}" if rel else upper, text)
        if hidden:
            _opaque(f"{upper}/modules")
    except OSError as error:
        raise CannotEnforce(
            f"cannot prepare a private git directory in {base}: {error.strerror}", code="workspace.git-overlay", hint=NO_OVERLAY_HINT
        ) from error
    mounts.append(Mount(empty, f"{place}/hooks", "ro", origin))
    return GitView(
        repository,
        tuple(mounts),
        (Overlay(common, upper, work, place, origin),),
        (*notes, Enforced("git", "private overlay", f"{common} is not written to during the run; commits come back as data")),
        base,
        tuple((rel, tuple(os.listdir(f"{upper}/{rel}"))) for rel in configs),
        tuple((rel, *position(f"{common}/{rel}", "" if rel else repository.admin)) for rel in configs),
    )


def position(common: str, admin: str) -> tuple[str, str, tuple[int, int, int]]:
    """Where a repository of the host stands: content of HEAD, the object id of the branch it names ("" = unknown), the stamp of the index."""
    gitdir = os.path.join(common, admin)
    head, tip = _text(f"{gitdir}/HEAD").strip(), ""
    if head.startswith("ref: refs/heads/"):
        tip = _text(f"{common}/{head[5:]}").strip()
        if not tip:
            packed = _bytes(f"{common}/packed-refs", 8 << 20)
            end = packed.find(f" {head[5:]}\n".encode("utf-8", "surrogateescape"))
            tip = packed[packed.rfind(b"\n", 0, end) + 1 : end].decode("ascii", "replace") if end > 0 else ""
    return head, tip, stamp(f"{gitdir}/index")


def _pointers(top: str, common: str, modules: Iterator[str]) -> Iterator[str]:
    """The paths below `top` of submodules whose `.git` file names a git directory of `common`: the host's git at the top goes into them."""
    for rel in modules:
        text = _text(f"{common}/{rel}/config")
        start = text.find("\tworktree = ")
        if start < 0:
            continue
        place = os.path.join(common, rel, text[start + 12 :].partition("\n")[0])
        path = os.path.normpath(place)
        if path.startswith(f"{top}/") and os.path.realpath(path) == path and file_type(f"{path}/.git") == _REGULAR:
            yield path[len(top) + 1 :]


def _steps(rels: list[str]) -> list[str]:
    """Every folder on the way to `rels`, the shallow ones first. A parent of a mount point can be renamed away with it, a mount point cannot."""
    parts = [rel.split("/") for rel in rels if rel]
    return sorted({"/".join(part[:depth]) for part in parts for depth in range(1, len(part) + 1)}, key=lambda step: step.count("/"))


def stamp(path: str) -> tuple[int, int, int]:
    """Inode, mtime in ns and size of `path`; zeros when it is absent."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return (0, 0, 0)
    return (found.st_ino, found.st_mtime_ns, found.st_size)


def sanitised(gitdir: str) -> str:
    """The config that the sandbox gets instead of `gitdir`/config: only keys of a fixed list, without credentials. Cached by content."""
    from _sha2 import sha256  # type: ignore[import-not-found]  # hashlib costs 4 ms to import and ends up here

    # The user's own first: who they are is needed for a commit, and the private home has no .gitconfig. The repository's own values win.
    settings = os.environ.get("XDG_CONFIG_HOME") or f"{places.home()}/.config"
    own = (_bytes(path, links=True) for path in (f"{settings}/git/config", f"{places.home()}/.gitconfig"))
    configs = (*own, *(_bytes(path) for path in (f"{gitdir}/config", f"{gitdir}/config.worktree")))
    cached = places.cache(f"git/{sha256(b'3' + b''.join(data + bytes(1) for data in configs)).hexdigest()}")
    found = _bytes(cached)
    if found:
        return found.decode("utf-8", "surrogateescape")
    from stockade.walls.workspace import gitconfig

    text = gitconfig.sanitise(configs)
    places.private(os.path.dirname(cached))
    _write(f"{cached}.{os.getpid()}", text)
    os.replace(f"{cached}.{os.getpid()}", cached)
    return text


def _git_directories(common: str) -> Iterator[str]:
    """The empty string and the relative paths of the submodules' git directories; looks at submodules only, never at the working tree."""
    yield ""
    waiting = ["modules"] if file_type(f"{common}/modules") == _DIRECTORY else []
    found = looked = 0
    while waiting and found <= MODULES_AT_MOST and looked < 4 * MODULES_AT_MOST:
        rel = waiting.pop()
        looked += 1
        with os.scandir(f"{common}/{rel}") as listed:
            entries = [entry for entry in listed if entry.name not in _PRUNED and entry.is_dir(follow_symlinks=False)]
        if rel != "modules" and file_type(f"{common}/{rel}/config"):
            found += 1
            yield rel
        waiting.extend(f"{rel}/{entry.name}" for entry in entries)
    if waiting:  # too many to look at: count as hidden
        yield from (f"modules/?{number}" for number in range(MODULES_AT_MOST + 1))


def _layer(lower: str, upper: str, config: str) -> None:
    """What the upper layer of one git directory hides or replaces."""
    os.makedirs(upper, 0o700, exist_ok=True)
    _write(f"{upper}/config", config)
    for name, _ in _hidden(lower):
        if name != "logs":
            os.mknod(f"{upper}/{name}", 0o020600, 0)  # a whiteout; anybody may make one since Linux 5.8
    for name in ("logs", "hooks"):  # reflogs may hold the address, with its password, of an old clone or pull
        _opaque(f"{upper}/{name}")


def _hidden(gitdir: str) -> Iterator[tuple[str, int]]:
    """(name, type) of everything in a git directory that the sandbox does not see. A link or device counts as a file."""
    with os.scandir(gitdir) as entries:
        for entry in entries:
            if entry.name == "logs" or (entry.name not in _VISIBLE | _REPLACED and not entry.name.startswith("sharedindex.")):
                yield entry.name, _DIRECTORY if entry.is_dir(follow_symlinks=False) else _REGULAR


def _opaque(path: str) -> None:
    os.makedirs(path, 0o700, exist_ok=True)
    os.setxattr(path, "user.overlay.opaque", b"y")


def _borrowed(common: str) -> Iterator[Enforced]:
    for line in _text(f"{common}/objects/info/alternates").splitlines():
        if line and not line.startswith("#"):
            path = os.path.realpath(os.path.join(common, "objects", line))
            yield Enforced(
                "git alternates",
                "not made visible",
                f"objects borrowed from {path} are missing inside unless the policy grants it: [[mount]] path = {path!r}, mode = 'ro'",
            )


def _worktree_key(path: str) -> str:
    from stockade.walls.workspace import gitconfig  # only for submodules and separate git directories: not on the usual path

    return dict(gitconfig.entries_of_file(path)).get("core.worktree") or ""


def file_type(path: str) -> int:
    """The file type bits (stat.S_IFREG, ...) of `path` itself, 0 when it is absent."""
    try:
        return os.lstat(path).st_mode & 0o170000
    except OSError:
        return 0


def _owner(path: str) -> int:
    try:
        return os.lstat(path).st_uid
    except OSError:
        return -1


def _bytes(path: str, limit: int = 1 << 20, *, links: bool = False) -> bytes:
    """What the file at `path` holds; nothing of what is no file, or, without `links`, of a symbolic link, which a repository could bring."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if links else os.O_NOFOLLOW))
    except OSError:
        return b""
    try:
        return os.read(fd, limit)
    except OSError:
        return b""
    finally:
        os.close(fd)


def _text(path: str) -> str:
    return os.fsdecode(_bytes(path).partition(b"\0")[0])  # a repository could bring one, and a path cannot hold it


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, text.encode("utf-8", "surrogateescape"))
    finally:
        os.close(fd)
