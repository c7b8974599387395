"""Patterns as grants write them: of hosts, where `*.` is every name below one and `*` alone any, and of whole path segments, where `*` is one and a final `**`
one or more."""

from __future__ import annotations

from functools import lru_cache

from stockade.checks.normalise import Ambiguous, normalise_path

ANY = "*"  # every name of at least two labels


def host_matches(pattern: str, host: str) -> bool:
    """Whether `pattern` covers `host`, which is normal (normalise.py). A pattern for every name below one has at least two labels."""
    if pattern == ANY:
        return "." in host
    pattern = pattern.lower().removesuffix(".")
    if pattern.startswith("*."):
        return pattern.count(".") >= 2 and host.endswith(pattern[1:])
    return pattern == host


def path_matches(patterns: tuple[str, ...], path: str, folded: bool = False) -> bool:
    """Whether one of `patterns` covers `path`, which is normal (normalise.py). `folded`: ignore case, for denials, since some servers do."""
    return any(_one_matches(pattern, path, folded) for pattern in patterns)


def _one_matches(pattern: str, path: str, folded: bool) -> bool:
    expected = _segments(pattern)
    if expected is None:
        return folded  # a pattern that nobody can read allows nothing and, in a denial, covers everything
    found = path.split("/")[1:]
    if expected[-1] == "**":
        expected = expected[:-1]
        if len(found) <= len(expected):
            return False
        found = found[: len(expected)]
    if len(expected) != len(found):
        return False
    for want, part in zip(expected, found, strict=True):
        if want == "*":
            if not part:
                return False
        elif want != part and not (folded and want.lower() == part.lower()):
            return False
    return True


@lru_cache(4096)
def _segments(pattern: str) -> tuple[str, ...] | None:
    try:
        return tuple(normalise_path(pattern).split("/")[1:])
    except Ambiguous:
        return None
