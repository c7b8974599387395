"""Reading files that rules come from, and noticing that any of them changed. On the path of every start: imports nothing heavy."""

from __future__ import annotations

import os

from stockade.core.errors import PolicyError

MAX_BYTES = 64 << 10  # far above any policy written by hand; keeps a pathological file from costing minutes
_REGULAR, _KIND = 0o100000, 0o170000


def digest(data: bytes) -> str:
    """SHA-256 in hexadecimal. The interpreter's built-in module costs nothing to import; `hashlib` costs 4 ms."""
    try:
        from _sha2 import sha256  # type: ignore[import-not-found,unused-ignore]  # built in, not in typeshed
    except ImportError:  # an interpreter built without it
        from hashlib import sha256
    return str(sha256(data).hexdigest())


def read(path: str, *, owner: int | None = None) -> bytes | None:
    """The bytes of a policy file, None if there is none.

    `owner`: the file and its directory must belong to this user or root, and others must not be able to write to them; else anybody could
    loosen the policy. Raises PolicyError `policy.unsafe-file`, `policy.unreadable`, `policy.too-large`.
    """
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            raise _unreadable(path, "it is a symbolic link to nothing") from None
        return None
    except (OSError, ValueError) as error:
        raise _unreadable(path, getattr(error, "strerror", None) or "its name cannot be a path") from error
    try:
        found = os.fstat(opened)
        if found.st_mode & _KIND != _REGULAR:
            raise _unreadable(path, "it is not a regular file")
        if owner is not None:
            _check_owner(path, found, owner)
            _check_owner(os.path.dirname(os.path.realpath(path)), os.stat(os.path.dirname(os.path.realpath(path))), owner)
        if found.st_size > MAX_BYTES:
            raise _too_large(path)
        data = b""
        while part := os.read(opened, MAX_BYTES + 1 - len(data)):
            data += part
        return data
    except OSError as error:
        raise _unreadable(path, error.strerror or "reading failed") from error
    finally:
        os.close(opened)


def bounded(data: bytes, path: str) -> bytes:
    """The content of a policy file that somebody else has read. Raises PolicyError `policy.too-large`."""
    if len(data) > MAX_BYTES:
        raise _too_large(path)
    return data


def _too_large(path: str) -> PolicyError:
    return PolicyError(
        f"the file is larger than {MAX_BYTES >> 10} KiB", code="policy.too-large", file=path, hint="This is hardly a policy."
    )


def _check_owner(path: str, found: os.stat_result, owner: int) -> None:
    # Directories with the sticky bit (/tmp) are writable by all, but nobody can replace somebody else's file in them.
    others_write = found.st_mode & (0o022 if owner == 0 else 0o002) and not found.st_mode & 0o1000
    if found.st_uid not in (0, owner) or others_write:
        who = "root" if owner == 0 else "you"
        raise PolicyError(
            f"{path} can be changed by others than {who}, so its rules cannot be trusted",
            code="policy.unsafe-file",
            file=path,
            hint=f"Check what it says, then: chown {owner} {path} && chmod go-w {path}",
        )


def _unreadable(path: str, reason: str) -> PolicyError:
    return PolicyError(
        f"cannot read the policy: {reason}",
        code="policy.unreadable",
        file=path,
        hint="stockade does not guess what a policy says that it cannot read. Make it readable, or remove it.",
    )


def fingerprint(kind: str, name: str) -> str:
    """What a source looks like now, "" if it is absent. Kinds:

    `file` content; `owned:UID` content of a policy file, checked as `read` does; `names` of a directory's entries; `env` value of a variable,
    `set` only whether it has one; `stat` size and time of a program's file; `real` where a path leads and what kind of thing is there.
    """
    kind, _, owner = kind.partition(":")
    try:
        if kind == "owned":
            content = read(name, owner=int(owner))
            return "" if content is None else digest(content)
        if kind == "env":
            value = os.environ.get(name)
            return "" if value is None else digest(os.fsencode(value))
        if kind == "set":
            return "1" if os.environ.get(name) else ""
        if kind == "file":
            with open(name, "rb") as file:
                return digest(file.read(MAX_BYTES * 16))
        if kind == "names":
            return digest(os.fsencode("\0".join(sorted(os.listdir(name)))))
        if kind == "stat":
            found = os.stat(name)
            return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"
        if kind == "real":
            real = os.path.realpath(name)
            return f"{os.stat(real).st_mode & _KIND:o}:{real}"
    except (OSError, ValueError):
        return ""
    raise ValueError(f"unknown kind of source {kind!r}")


class Watch:
    """Reads what a policy depends on and remembers how each source looked, so that a later start can tell that nothing changed."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, str], str] = {}

    def note(self, kind: str, name: str) -> str:
        """Remember a source; its fingerprint."""
        return self.seen.setdefault((kind, name), fingerprint(kind, name))

    def env(self, name: str) -> str:
        """A variable of the caller's environment, "" if it is not set."""
        self.note("env", name)
        return os.environ.get(name, "")

    def text(self, path: str) -> str:
        """The text of a client's configuration file, "" if there is none or it cannot be read."""
        if not self.note("file", path):
            return ""
        try:
            with open(path, encoding="utf-8-sig", errors="replace") as file:
                return file.read(MAX_BYTES * 16)
        except OSError:
            return ""

    def program(self, path: str) -> str:
        """The text of a source file of a client program, "" if it cannot be read. Changes are noticed by size and time: such files are large."""
        if not self.note("stat", path):
            return ""
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""

    def names(self, path: str) -> list[str]:
        """The sorted names in a directory, empty if there is none."""
        if not self.note("names", path):
            return []
        try:
            return sorted(os.listdir(path))
        except OSError:
            return []

    def witnesses(self) -> tuple[tuple[str, str, str], ...]:
        """(kind, name, fingerprint) of everything read."""
        return tuple((kind, name, found) for (kind, name), found in self.seen.items())
