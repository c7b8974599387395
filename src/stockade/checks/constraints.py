"""What a grant says of a request's headers and query, the kind of its body, and what the body holds. Pure; never raises for anything a client sent."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import unquote_to_bytes

from stockade.core.values import BodyRule, Grant

_SUFFIX = re.compile(r"[A-Za-z0-9!#$&^_.+-]+/[A-Za-z0-9!#$&^_.+-]+", re.ASCII)  # RFC 6838, section 4.2
# A grant that lists `anthropic-beta` does not thereby turn on what makes the server fetch, connect or run; it must name such a value itself,
# as "anthropic-beta: web-fetch-2025-09-10" (Anthropic API reference, "Beta headers").
FETCHING_BETAS = ("web-fetch", "web-search", "mcp-", "code-execution", "files-api", "skills", "computer-use-hosted", "agent-", "managed-")


def parameter_refused(query: str, grant: Grant) -> str | None:
    """The first parameter of `query` (without `?`) that a grant with `query` "listed" does not list, as it may be shown; None if all are.

    Compared after unescaping, exactly, with case. An empty query has none.
    """
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if ";" in part:  # servers differ in whether it separates parameters
            return ascii(part[:60])[1:-1]
        text = _unescaped(name)
        if text not in grant.parameters and (not equals or f"{text}={_unescaped(value)}" not in grant.parameters):
            return ascii(text[:60])[1:-1]
    return None


def _unescaped(text: str) -> str:
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "backslashreplace")


def unlisted_value(name: str, value: str, grant: Grant) -> str:
    """The first token of a listed header's value that the grant must name itself and does not; "" if there is none."""
    entries = [entry.partition(":") for entry in grant.headers]
    values = {found.strip().lower() for entry, _, found in entries if entry.strip().lower() == name and found.strip()}
    any_value = any(entry.strip().lower() == name and not found.strip() for entry, _, found in entries)
    for token in (part.strip().lower() for part in value.split(",")):
        fetching = name == "anthropic-beta" and token.startswith(FETCHING_BETAS)
        if token not in values and (fetching or not any_value):
            return ascii(token[:60])[1:-1]
    return ""


def content_type_refused(headers: tuple[tuple[str, str], ...], length: int, grant: Grant) -> str:
    """Why the kind of the body is not granted; "" if it is. A request without a body has no kind."""
    if not grant.content_types or not length:
        return ""
    named = [value for name, value in headers if name.lower() == "content-type"]
    if len(named) != 1:
        return f"the body comes with {len(named)} content types"
    kind = named[0].partition(";")[0].strip().lower()
    if not _SUFFIX.fullmatch(kind) or kind not in grant.content_types:
        return f"a body of type {ascii(kind[:60])[1:-1]} is not granted"
    return ""


def body_refused(headers: tuple[tuple[str, str], ...], body: bytes, grant: Grant) -> str:
    """Why the body does not hold what the grant wants, in words; "" if it does.

    A body that readers could read in two ways (compressed, not UTF-8, names that come twice, NaN) is refused.
    """
    if not grant.body:
        return ""
    if any(name.lower() == "content-encoding" and value.lower() != "identity" for name, value in headers):
        return "the body is compressed, and what it holds must be read"
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_never)
    except (ValueError, RecursionError) as error:
        return f"the body is not JSON that every reader reads alike ({str(error)[:80]})"
    for rule in grant.body:
        if reason := _rule_refused(document, rule):
            return reason
    return ""


def _rule_refused(document: Any, rule: BodyRule) -> str:
    found, value = at(document, rule.pointer, folded=rule.absent)
    where = ascii(rule.pointer)[1:-1] or "the whole body"
    if rule.absent:
        return f"{where} must not be there" if found else ""
    if not found:
        return f"{where} is missing"
    if rule.values and canonical(value) not in rule.values:
        return f"{where} holds a value that is not granted"
    if rule.most >= 0 and (isinstance(value, bool) or not isinstance(value, int | float) or value > rule.most):
        return f"{where} is not a number of at most {rule.most}"
    return ""


def at(document: Any, pointer: str, folded: bool = False) -> tuple[bool, Any]:
    """(whether there is a value, the value) at a JSON Pointer (RFC 6901).

    Readers differ in whether the case of a name counts. What must stand there has to for all of them; `folded` finds what stands there for any.
    """
    value = document
    for token in pointer.split("/")[1:]:
        name = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            near = [key for key in value if key == name or (folded and key.casefold() == name.casefold())]
            if not near:
                return False, None
            value = value[near[0]]
        elif isinstance(value, list):
            if (
                not (name.isascii() and name.isdigit())
                or len(name) > 9
                or (name != "0" and name.startswith("0"))
                or int(name) >= len(value)
            ):
                return False, None
            value = value[int(name)]
        else:
            return False, None
    return True, value


def canonical(value: Any) -> str:
    """The JSON text that equal values share."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name.casefold() for name, _ in pairs}) != len(pairs):
        raise ValueError("a field name comes twice")
    return dict(pairs)


def _never(text: str) -> None:
    raise ValueError(f"{text} is not JSON")
