"""Where stockade keeps its own files (XDG Base Directory specification 0.8). All of it lies outside every sandbox."""

from __future__ import annotations

import os

from stockade.core.errors import StockadeError


def home() -> str:
    """The caller's home: $HOME if absolute, else the password database's. Raises StockadeError (`place.no-home`) if neither knows."""
    path = os.environ.get("HOME", "")
    if path.startswith("/"):
        return path.rstrip("/") or "/"
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise StockadeError(
            f"HOME is not set, and user {os.getuid()} is not in the password database",
            code="place.no-home",
            hint="Set HOME to a directory that only this user can write to: stockade keeps its records there.",
        ) from None


def inside() -> str:
    """Where the private home lies inside: at the same path as outside, or at /home/user for accounts whose home is no home (daemons, `/`)."""
    path = home()
    return (
        path if path.startswith(("/home/", "/root", "/Users/", "/tmp/", "/var/lib/")) and os.path.normpath(path) == path else "/home/user"
    )


def _base(variable: str, fallback: str) -> str:
    path = os.environ.get(variable, "")
    return path if path.startswith("/") else f"{home()}/{fallback}"


def config(name: str = "") -> str:
    """A path below the user's configuration directory; not created."""
    return os.path.join(_base("XDG_CONFIG_HOME", ".config"), "stockade", name)


def state(name: str = "") -> str:
    """A path below the directory of ledgers, sessions and receipts; not created."""
    return os.path.join(_base("XDG_STATE_HOME", ".local/state"), "stockade", name)


def cache(name: str = "") -> str:
    """A path below the directory of things that can be made again; not created."""
    return os.path.join(_base("XDG_CACHE_HOME", ".cache"), "stockade", name)


MANAGED_POLICY = "/etc/stockade/policy.toml"
SHARED = "/var/lib/stockade"  # what all users of the machine start from
PINNED_KEY = "/etc/stockade/policy.vkey"  # by which a managed policy is known that was fetched


def private(path: str) -> str:
    """Make `path` a directory that only we can use, and return it.

    Raises StockadeError (`place.unsafe`) if it belongs to somebody else or others can write to it, (`place.unwritable`) if it cannot be made.
    """
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        found = os.stat(path, follow_symlinks=False)
    except OSError as error:
        raise StockadeError(
            f"cannot create {path}: {error.strerror}",
            code="place.unwritable",
            hint="Free some space or make the directory writable; stockade runs nothing that it cannot record.",
        ) from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o022 or (found.st_mode & 0o170000) != 0o040000:
        raise StockadeError(
            f"{path} is not a directory that only you can write to",
            code="place.unsafe",
            hint=f"Somebody else could change what stockade relies on. Check it, then: chown {os.geteuid()} {path} && chmod 700 {path}",
        )
    return path


def answer(program: str) -> str:
    """The file in which it is remembered what was found out about a program, "" if there is no room for a cache. Raises StockadeError (`place.unsafe`)."""
    try:
        return f"{private(cache(program))}/answer"
    except StockadeError as error:
        if error.code == "place.unsafe":
            raise
        return ""


def locked(path: str) -> int:
    """The descriptor of an exclusive lock on the file `path`, made if need be (flock(2)); waits for it. Raises OSError."""
    import fcntl

    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    except BaseException:
        os.close(fd)
        raise
    return fd
