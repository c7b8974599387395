"""Which host paths may be shown to a sandbox at all. On the path of every start: imports nothing heavy."""

from __future__ import annotations

import os

from stockade.core import places
from stockade.core.errors import PolicyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stockade.core.values import Origin

_KERNEL = ("/proc", "/sys", "/dev")
# Whole trees in which sessions and services leave sockets and secrets: an ssh-agent's socket in /tmp is as good as its keys.
_SHARED = ("/tmp", "/var/tmp", "/var", "/home", "/mnt", "/media", "/boot", "/root")
_RUNTIME = ("/run/user", "/run/dbus", "/run/systemd", "/run/containerd", "/run/docker")  # sockets that act for the user outside
# Below the home: places that hold credentials and nothing an agent's work needs.
CREDENTIAL_STORES = (
    ".aws", ".azure", ".config/gcloud", ".config/gh", ".config/google-chrome", ".config/chromium", ".docker", ".git-credentials", ".gnupg",
    ".kube", ".local/share/keyrings", ".mozilla", ".netrc", ".npmrc", ".password-store", ".pypirc", ".ssh", ".vault-token",
    ".config/BraveSoftware", ".config/microsoft-edge", ".config/opera", ".config/vivaldi", ".thunderbird", "snap/chromium", "snap/firefox",
    ".claude/.credentials.json", ".codex/auth.json", ".gemini/oauth_creds.json", ".cargo/credentials.toml", ".config/op", ".config/rclone",
)  # fmt: skip


def expand(path: str, cwd: str) -> str:
    """`~` and `~/x` are the caller's home, anything relative starts at `cwd`. Absolute, normal, symlinks not resolved. No variables: a path means one thing."""
    if path == "~" or path.startswith("~/"):
        path = places.home() + path[1:]
    return os.path.normpath(os.path.join(cwd, path))


def within(path: str, root: str) -> bool:
    """Is `path` the same as `root` or below it? Both normal and absolute."""
    return path == root or path.startswith(root if root.endswith("/") else root + "/")


def own_directories() -> tuple[str, ...]:
    """Where stockade's own policy, records and cache lie: the boundary itself, which nothing inside may see or change."""
    own = [places.config(), places.state(), places.cache(), os.path.dirname(places.MANAGED_POLICY), places.SHARED]
    return tuple(os.path.realpath(path) for path in own)


def judge(real: str, *, what: str, mode: str, origin: Origin, named: str = "") -> None:
    """Refuse what must never be shown inside. `real` is a resolved host path, `what` "workspace" or "mount", `named` the path as it was written.

    Raises PolicyError `policy.forbidden-path` or `policy.missing-path`.
    """
    try:
        kind = os.stat(real, follow_symlinks=False).st_mode & 0o170000
    except (OSError, ValueError):
        kind = 0  # missing; what is forbidden is said first
    if reason := _reason(real, what, mode, kind):
        why, hint = reason
        shown = f"{named} ({real})" if named not in ("", real) else real
        raise _error(f"{shown} cannot be a {what}: {why}", "policy.forbidden-path", origin, hint)
    if not kind:
        raise _error(f"the {what} {named or real} does not exist", "policy.missing-path", origin, "Create it first, or correct the path.")


def _reason(real: str, what: str, mode: str, kind: int) -> tuple[str, str] | None:
    home = os.path.realpath(places.home())
    narrower = "Name the one folder that the agent works on, such as ~/src/project."
    if real == "/":
        return "it is the whole file system", narrower
    if home != "/" and within(home, real):
        return "it holds your whole home, with every key and password in it", narrower
    for own in own_directories():
        if within(own, real) or within(real, own):
            return f"it holds stockade's own files ({own}), and whoever can change those can change the rules", narrower
    for place in _KERNEL:
        if within(real, place):
            return f"{place} belongs to the kernel", "The sandbox gets its own /proc and a small /dev."
    for place in (*_RUNTIME, "/run"):
        if (real == place) if place == "/run" else within(real, place) or within(place, real):
            return f"{place} holds sockets of programs that act outside the sandbox", narrower
    if real in _SHARED:
        return f"{real} holds files and sockets of other programs and people", narrower
    for store in CREDENTIAL_STORES if home != "/" else ():
        place = f"{home}/{store}"
        # Only what is there can be a link, and most are not there: resolving them all is a hundred system calls and more in every start.
        there = os.path.lexists(place)
        if within(real, os.path.realpath(place) if there else place) or (there and within(place, real)):
            hint = "Credentials stay outside: write [credential.NAME] with this file as its source, and an [[egress]] rule that uses it."
            return f"~/{store} holds credentials", hint
    if kind not in (0, 0o040000, 0o100000):
        return "it is neither a folder nor a regular file", "Sockets and devices reach outside the sandbox."
    if what in ("workspace", "root") and kind not in (0, 0o040000):
        return "it is not a folder", narrower
    if mode != "ro" and "/.git/" in real + "/":
        return (
            "git directories are written through a private copy",
            'The workspace handles its .git by itself ([workspace] git = "private").',
        )
    return None


def _error(message: str, code: str, origin: Origin, hint: str) -> PolicyError:
    where = origin.file if origin.file != "built-in" else ""
    return PolicyError(message, code=code, file=where, line=origin.line, key=origin.key, hint=hint)
