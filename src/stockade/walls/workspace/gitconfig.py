"""Reads git configuration as data and writes back only what is on a list: no command, include, filter, helper or credential survives.

Git itself does the parsing (`git config --null --list --no-includes`), so that ours and its idea of the syntax cannot differ.
Source: git-config(1).
"""

from __future__ import annotations

import os
import re
import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

ENVIRONMENT = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_NO_REPLACE_OBJECTS": "1",
    "GIT_NO_LAZY_FETCH": "1",
    "GIT_CEILING_DIRECTORIES": "/",
    "LC_ALL": "C",
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
}

# Keys that name no command and lead to no other file. Everything else is left out, whatever a future git makes of it.
_SAFE: dict[str, frozenset[str]] = {
    "core": frozenset(
        "repositoryformatversion filemode bare symlinks ignorecase logallrefupdates precomposeunicode autocrlf eol safecrlf whitespace "
        "sparsecheckout sparsecheckoutcone longpaths protecthfs protectntfs quotepath abbrev commentchar".split()
    ),
    "extensions": frozenset("objectformat compatobjectformat refstorage partialclone preciousobjects noop relativeworktrees".split()),
    "user": frozenset(("name", "email")),
    "index": frozenset(("version", "sparse")),
    "init": frozenset(("defaultbranch",)),
    "pull": frozenset(("rebase", "ff")),
    "push": frozenset(("default", "autosetupremote")),
    "merge": frozenset(("ff", "conflictstyle", "renames")),
    "rebase": frozenset(("autosquash", "autostash", "updaterefs")),
    "diff": frozenset(("algorithm", "renames", "mnemonicprefix")),
    "fetch": frozenset(("prune", "prunetags")),
    "rerere": frozenset(("enabled",)),
    "gc": frozenset(("auto",)),
    "maintenance": frozenset(("auto",)),
    "remote.*": frozenset("url pushurl fetch tagopt promisor partialclonefilter".split()),
    "branch.*": frozenset("remote merge rebase pushremote description".split()),
    "submodule.*": frozenset(("url", "active", "branch", "update", "ignore")),
}
_ADDRESS = frozenset(("remote.*.url", "remote.*.pushurl", "submodule.*.url", "branch.*.remote", "branch.*.pushremote"))
_PRIVATE_LAYER = (("gc.auto", "0"), ("maintenance.auto", "false"))  # a repack inside would copy the whole object store up


def entries(data: bytes) -> list[tuple[str, str | None]]:
    """The (key, value) pairs of a config given as bytes, in order. Raises ValueError if git cannot parse it."""
    done = subprocess.run(
        ["git", "config", "--file", "-", "--null", "--list", "--no-includes"],
        input=data,
        capture_output=True,
        env=ENVIRONMENT,
        cwd="/",
        timeout=10,
    )
    if done.returncode:
        raise ValueError(done.stderr.decode("utf-8", "replace").strip() or "git cannot parse this config")
    pairs = []
    for item in done.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]:
        key, newline, value = item.partition("\n")
        pairs.append((key, value if newline else None))
    return pairs


def entries_of_file(path: str) -> list[tuple[str, str | None]]:
    """Like `entries` for a file of a repository; an absent, unreadable or broken one gives nothing, nor does one that is a link or no file."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            return _understood(file.read(1 << 20) or b"")
    except OSError:
        return []


def _understood(data: bytes) -> list[tuple[str, str | None]]:
    try:
        return entries(data)
    except (ValueError, OSError, subprocess.SubprocessError):
        return []


def sanitise(configs: Iterable[bytes]) -> str:
    """One config text with the safe entries of all `configs`."""
    found = [pair for data in configs for pair in (_understood(data) if data else ())]
    return write([*(pair for pair in map(safe, found) if pair), *_PRIVATE_LAYER])


def safe(pair: tuple[str, str | None]) -> tuple[str, str | None] | None:
    """The pair as it may be kept (addresses lose their userinfo and query), or None."""
    key, value = pair
    section, _, rest = key.partition(".")
    subsection, dot, name = rest.rpartition(".")
    pattern = f"{section}.*" if dot else section
    if name not in _SAFE.get(pattern, ()) or "\n" in subsection or "\0" in key:
        return None
    if (value or "").startswith("!"):  # submodule.*.update = !command; no address starts like that either
        return None
    if f"{pattern}.{name}" in _ADDRESS:
        address = bare_address(value or "")
        return (key, address) if address and not address.startswith("!") else None
    return key, value


def bare_address(address: str) -> str:
    """An address without credentials; "" for one that runs a helper (`ext::`, `fd::`) or looks like an option."""
    if "::" in address or address.startswith("-") or any(ord(char) < 32 for char in address):
        return ""
    match = re.match(r"(?i)([a-z][a-z0-9+.-]*://)([^/?#]*)([^?#]*)", address)
    if not match:
        return address
    scheme, authority, path = match.groups()
    userinfo, at, host = authority.rpartition("@")
    if scheme.lower().startswith(("ssh", "git+ssh")) and at:
        return f"{scheme}{userinfo.partition(':')[0]}@{host}{path}"
    return f"{scheme}{host}{path}"


def write(pairs: Iterable[tuple[str, str | None]]) -> str:
    """Config text for `pairs`, quoted so that git reads back exactly the same."""
    lines = []
    for key, value in pairs:
        section, _, rest = key.partition(".")
        subsection, dot, name = rest.rpartition(".")
        quoted = subsection.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'[{section} "{quoted}"]' if dot else f"[{section}]")
        if value is None:
            lines.append(f"\t{name}")
        else:
            text = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\b", "\\b")
            lines.append(f'\t{name} = "{text}"')
    return "\n".join(lines) + "\n"
