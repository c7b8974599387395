"""From requests that were refused to the narrowest rules that would have let them out. Proposes; never applies anything. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stockade.core.frozen import frozen
from stockade.core.values import DENY
from stockade.policy.kinds import is_call, is_pattern, usable
from stockade.policy.units import show_size

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MANY = 12  # paths of one folder from which on a rule names the folder
# What no rule of ours would change: the request itself was wrong, or carried something that it must not.
_NOT_BY_A_RULE = frozenset(("canary", "server-side-action", "bad-path", "bad-host", "bad-method", "bad-query", "bare-ip", "userinfo"))
_DEFAULT_UPLOAD = 1 << 20


@frozen
class Proposal:
    """One rule: its TOML, how many requests wanted it, what it would allow in words, and what to think of first."""

    rule: str
    requests: int
    allows: str
    notes: tuple[str, ...] = ()


def propose(events: Iterable[Mapping[str, object]]) -> tuple[Proposal, ...]:
    """Proposals for the refused `egress` events of a ledger, one for each host, port, scheme and method; those most asked for first."""
    groups: dict[tuple[str, int, str, str, bool], list[Mapping[str, object]]] = {}
    for event in events:
        if event.get("kind") != "egress" or event.get("effect") != DENY or event.get("rule") in _NOT_BY_A_RULE:
            continue
        method, host, scheme, port = event.get("method"), event.get("host"), event.get("scheme"), event.get("port")
        if not isinstance(host, str) or not isinstance(port, int) or not isinstance(method, str):
            continue
        if not usable(host, "") or not 0 < port < 65536 or method in ("CONNECT", "TRACE"):
            continue
        # A length that nobody knew is let stand for gRPC calls only (gateway/flow.py).
        groups.setdefault((host, port, str(scheme or "https"), method, method == "POST" and event.get("length") == -1), []).append(event)
    found = [_proposal(*key, group) for key, group in groups.items()]
    return tuple(sorted((one for one in found if one), key=lambda one: (-one.requests, one.rule)))


def _proposal(host: str, port: int, scheme: str, method: str, calls: bool, events: list[Mapping[str, object]]) -> Proposal | None:
    asked = {str(event.get("path", "")) for event in events}
    paths = sorted(path for path in asked if is_call(path[1:])) if calls else _paths(asked)
    if not paths or not (method.isascii() and method.isalpha() and method.isupper()):
        return None
    length = max((size for event in events if isinstance(size := event.get("length"), int)), default=0)
    rules = {str(event.get("rule")) for event in events}
    lines = ["[[egress]]", f'host = "{host}"']
    lines += [f'scheme = "{scheme}"'] if scheme != "https" else []
    lines += [f"port = {port}"] if port != (443 if scheme == "https" else 80) else []
    if calls:
        lines += ["grpc = [" + ", ".join(f'"{path[1:]}"' for path in paths) + "]"]
    else:
        lines += [f'methods = ["{method}"]', "paths = [" + ", ".join(f'"{path}"' for path in paths) + "]"]
        lines += [] if any(event.get("query") for event in events) else ['query = "none"']
    lines += [f'max_upload = "{show_size(_round(length))}"'] if length > _DEFAULT_UPLOAD else []
    keys = {event.get("credential") for event in events}
    lines += [f'credential = "{key}"' for key in keys if key and len(keys) == 1]
    notes = []
    if method not in ("GET", "HEAD", "OPTIONS"):
        notes.append(f"with {method} it can be told things: whatever is in the workspace can leave in a body")
    if any(path.endswith("/**") for path in paths):
        notes.append("it was asked for many paths; everything below these folders would be open")
    if scheme == "http":
        notes.append("not encrypted: whoever carries it can read and change it")
    if "foreign-credential" in rules:
        notes.append("it carried a credential of its own: write a [credential.NAME], and name it in the rule")
    if "header-not-granted" in rules:
        notes.append("it carried headers that need to be listed: stockade log show --kind egress says which")
    return Proposal(
        "\n".join(lines) + "\n", len(events), f"{method} of {', '.join(paths)} on {host}, to everything that runs inside", tuple(notes)
    )


def _paths(asked: set[str]) -> list[str]:
    """Exact paths; a folder in their place where there are many. Paths that no pattern can say are left out."""
    folders: dict[str, set[str]] = {}
    for path in asked:
        if "*" not in path and is_pattern(path):
            folders.setdefault(path.rpartition("/")[0], set()).add(path)
    return sorted(found for folder, paths in folders.items() for found in ([f"{folder}/**"] if len(paths) >= MANY else paths))


def _round(size: int) -> int:
    """Up to the next power of two."""
    return 1 << (size - 1).bit_length()
