"""The command line's wishes as a policy layer of their own, the lowest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from stockade.core.errors import PolicyError
from stockade.policy.model import keys_of
from stockade.policy.problems import nearest
from stockade.policy.read import validate

if TYPE_CHECKING:
    from stockade.policy.read import Document

NAME = "command line"
_LIMITS = tuple(f"limits.{name}" for name in keys_of("limits"))
_WORKSPACE = tuple(f"workspace.{name}" for name in keys_of("workspace"))
_ROOT = tuple(f"root.{name}" for name in keys_of("root"))
_MOUNTS = ("mount.ro", "mount.rw", "mount.rw-no-delete")
KEYS = (
    "wall",
    "oversight",
    "gate",
    "agent",
    *_WORKSPACE,
    *_LIMITS,
    *_ROOT,
    *_MOUNTS,
    "environment.pass",
    "environment.set",
    "signing.key",
    "egress.allow",
    "egress.deny",
    "egress.preset",
    "egress",
)


def document(overrides: tuple[tuple[str, str], ...]) -> Document:
    """(key, value) pairs as a layer. Keys are `KEYS`; those of lists may come several times. Raises PolicyError.

    `agent`: one whose own layer is added (agents.py). `mount.*`: PATH or PATH:TARGET. `environment.set`: NAME=VALUE. `egress`: only "none", which
    drops every grant. `egress.allow` and `egress.deny`: "GET,HEAD https://host/path" and then any of `credential=NAME`, `private`; without `?*` at its
    end a path takes no query.
    """
    values: dict[str, Any] = {"version": 1}
    for key, value in overrides:
        if key not in KEYS:
            near = nearest(key, KEYS)
            raise _error(f"unknown setting {key}", key, f"Did you mean {near}?" if near else f"Known are: {', '.join(KEYS)}.")
        _apply(values, key, value)
    return validate(values, layer=NAME, name=NAME, lines={})


def _apply(values: dict[str, Any], key: str, value: str) -> None:
    table, _, name = key.partition(".")
    if not name:
        if key == "egress":
            if value != "none":
                raise _error("egress can only be set to none here", key, 'Grant with "GET https://host/path".')
        elif key != "agent":
            values[key] = value
    elif table == "mount":
        path, colon, target = value.partition(":")
        values.setdefault("mount", []).append({"path": path, "mode": name, **({"at": target} if colon else {})})
    elif key == "environment.pass":
        values.setdefault("environment", {}).setdefault("pass", []).append(value)
    elif key == "environment.set":
        variable, equals, content = value.partition("=")
        if not equals:
            raise _error(f"{variable} has no value", key, f"Write {variable}=VALUE; to pass your own value, pass the name instead.")
        values.setdefault("environment", {}).setdefault("set", {})[variable] = content
    elif key == "egress.preset":
        values.setdefault("egress", []).append({"preset": value})
    elif table == "egress":
        found = {**rule(value, key), "effect": name}
        if name == "deny":
            del found["query"]  # a denial covers every query
        values.setdefault("egress", []).append(found)
    else:
        counted = key in ("limits.processes", "limits.open_files") and value.isascii() and value.isdigit() and len(value) < 12
        values.setdefault(table, {})[name] = int(value) if counted else value


def rule(text: str, key: str = "egress.allow") -> dict[str, Any]:
    """An `[[egress]]` table from "GET,HEAD https://host[:port]/path [credential=NAME] [private]". Raises PolicyError."""
    hint = 'Write it as "GET https://host/path"; the path may end in /** for everything below.'
    methods, _, rest = text.strip().partition(" ")
    url, *words = rest.split() or [""]
    try:
        parts = urlsplit(url)
        host, port = parts.netloc.rpartition("@")[2], parts.port
    except ValueError:
        raise _error(f"{text!r} does not hold a URL", key, hint) from None
    if parts.scheme not in ("https", "http") or not host or "@" in parts.netloc:
        raise _error(f"{text!r} is not a method and a URL", key, hint)
    if not parts.path:
        raise _error(f"{text!r} names no path", key, hint)
    if parts.query not in ("", "*") or parts.fragment:
        raise _error(f"{text!r} holds a query", key, "End the URL in ?* to allow any query on this path.")
    found: dict[str, Any] = {"host": host.removesuffix(f":{port}"), "scheme": parts.scheme, "paths": [parts.path]}
    found |= {"methods": methods.split(","), "query": "any" if parts.query == "*" else "none"}
    if port is not None:
        found["port"] = port
    for word in words:
        if word == "private":
            found["private"] = True
        elif word.startswith("credential="):
            found["credential"] = word.removeprefix("credential=")
        else:
            raise _error(f"{word!r} is not known here", key, "After the URL may stand credential=NAME and private.")
    return found


def _error(message: str, key: str, hint: str) -> PolicyError:
    return PolicyError(message, code="policy.bad-override", file=NAME, key=key, hint=hint)
