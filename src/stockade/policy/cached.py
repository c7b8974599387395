"""The policy of a start, from the cache if nothing it was made from has changed. On the path of every start: imports nothing heavy.

INVARIANT: an entry is used only if every source it was compiled from still looks the same, it lies in a directory that only we can write to, and it has
the shape of a policy. Anything else is compiled again.
"""

from __future__ import annotations

import marshal
import os

import stockade
from stockade.core import frozen, places
from stockade.core.errors import PolicyError, StockadeError
from stockade.core.values import Policy
from stockade.policy import defaults, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.policy.compile import Compiled

FORMAT = 1  # of an entry; marshal's own version is pinned, so that every Python reads it
_MARSHAL = 4
_MAGIC = b"stockade-policy\0"
_KEPT = 200  # entries: one for each folder, file and set of options in use
_VARIABLES = ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME")


def load(
    cwd: str,
    *,
    policy_file: str | None = None,
    overrides: tuple[tuple[str, str], ...] | None = None,
    project: tuple[str, bytes] | None = None,
    managed: str = "",
    managed_owner: int = 0,
) -> Policy:
    """The merged policy for a start in `cwd`. Paths in it are absolute and resolved: open them without following symbolic links.

    A project's own file is never looked for: it is read only as `policy_file`, or has been read by whoever knows that its user trusts it (`project`, its name
    and content). `overrides`: see overrides.py. `managed` and `managed_owner` are for tests. Raises PolicyError, and StockadeError `place.unsafe` if somebody else can write to the cache.
    """
    options = tuple(overrides or ())
    managed = managed or places.MANAGED_POLICY
    if policy_file is None and project is None and not options and not _exists(managed) and not _exists(places.config("policy.toml")):
        return defaults.builtin(cwd)
    path = _entry(cwd, policy_file, options, project, managed, managed_owner)
    if path and (policy := _stored(path)) is not None:
        return policy
    from stockade.policy.compile import compile_policy

    compiled = compile_policy(
        cwd, policy_file=policy_file, overrides=options, project=project, managed=managed, managed_owner=managed_owner
    )
    if path:
        _store(path, compiled)
    return compiled.policy


def _exists(path: str) -> bool:
    """Is a file there? What cannot be looked at counts as there: reading it will then say why."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _entry(
    cwd: str,
    policy_file: str | None,
    options: tuple[tuple[str, str], ...],
    project: tuple[str, bytes] | None,
    managed: str,
    managed_owner: int,
) -> str:
    """Where the entry of these inputs lies, "" if there is no room for a cache. Raises StockadeError `place.unsafe`."""
    try:
        folder = places.private(places.cache("policy"))
    except StockadeError as error:
        if error.code == "place.unwritable":
            return ""
        raise
    around = tuple(os.environ.get(name, "") for name in _VARIABLES)
    # The code that compiles is a source too: an upgrade must not run on what the old version made of a file.
    code = []
    with os.scandir(os.path.dirname(__file__)) as found:
        for item in found:
            if item.name.endswith(".py"):
                status = item.stat()
                code.append((item.name, status.st_size, status.st_mtime_ns))
    inputs = (
        FORMAT,
        stockade.__version__,
        sorted(code),
        os.geteuid(),
        os.path.realpath(cwd),
        policy_file,
        options,
        project and (project[0], files.digest(project[1])),
        managed,
        managed_owner,
        around,
    )
    return f"{folder}/{files.digest(repr(inputs).encode('utf-8', 'surrogateescape'))}"


def _stored(path: str) -> Policy | None:
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    head = len(_MAGIC)
    if data[:head] != _MAGIC or files.digest(data[head + 64 :]).encode() != data[head : head + 64]:
        return None  # torn or rotten; marshal is only fed what we wrote whole
    try:
        witnesses, content = marshal.loads(data[head + 64 :])  # noqa: S302  # checked above, in a directory that only we write to
        policy = Policy.from_plain(content)
        if not all(files.fingerprint(kind, name) == seen for kind, name, seen in witnesses):
            return None
    except (PolicyError, ValueError, TypeError, KeyError, AttributeError, EOFError):
        return None  # compiling again says what is wrong
    return policy


def _store(path: str, compiled: Compiled) -> None:
    """Write an entry whole or not at all. A full disk costs speed, nothing else."""
    body = marshal.dumps((compiled.witnesses, frozen.plain(compiled.policy)), _MARSHAL)
    temporary = f"{path}.{os.getpid()}"
    try:
        opened = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(opened, "wb") as file:
            file.write(_MAGIC + files.digest(body).encode() + body)
        os.replace(temporary, path)
        _prune(os.path.dirname(path))
    except OSError:
        try:
            os.unlink(temporary)
        except OSError:
            return


def _prune(folder: str) -> None:
    with os.scandir(folder) as found:
        entries = sorted((item.stat().st_mtime_ns, item.path) for item in found)
    for _, path in entries[: max(0, len(entries) - _KEPT)]:
        os.unlink(path)
