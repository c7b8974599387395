"""Everything that is wrong with a file, at once and in plain words."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from stockade.core.errors import PolicyError
from stockade.policy.model import TABLES, keys_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import ValidationError

    from stockade.policy.lines import Key

_KINDS = {
    "string_type": "text in quotes", "int_type": "a whole number", "bool_type": "true or false", "tuple_type": "a list in [ ]",
    "model_type": "a table", "dict_type": "a table", "model_attributes_type": "a table",
}  # fmt: skip


class PolicyErrors(PolicyError):
    """Several errors of one reading. `errors` holds each; the first says where to begin."""

    def __init__(self, errors: Sequence[PolicyError]) -> None:
        first = errors[0]
        super().__init__("\n".join(show(error) for error in errors), code="policy.errors", hint="")
        self.file, self.line, self.key = first.file, first.line, first.key
        self.errors = tuple(errors)

    def plain(self) -> dict[str, object]:
        return {**super().plain(), "errors": [error.plain() for error in self.errors]}


def show(error: PolicyError) -> str:
    """An error with its hint, as text."""
    return f"{error.message}\n  {error.hint}" if error.hint else error.message


def each(error: PolicyError) -> tuple[PolicyError, ...]:
    """The single errors in an error."""
    return error.errors if isinstance(error, PolicyErrors) else (error,)


def raise_all(errors: Sequence[PolicyError]) -> None:
    """Raise what was found: nothing, the one error, or all of them in the order of their lines."""
    unique = {(error.file, error.line, error.message): error for error in errors}
    ordered = sorted(unique.values(), key=lambda error: (error.file, error.line))
    if len(ordered) == 1:
        raise ordered[0]
    if ordered:
        raise PolicyErrors(ordered)


def dotted(key: Key) -> str:
    """("egress", 1, "paths", 0) as egress[1].paths[0]; names that are not bare keys are quoted."""
    parts = ""
    for part in key:
        if isinstance(part, int):
            parts += f"[{part}]"
        else:
            parts += ("." if parts else "") + (
                part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else '"' + part[:60].encode("unicode_escape").decode() + '"'
            )
    return parts


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that was probably meant, "" if none is near."""
    return next(iter(difflib.get_close_matches(word.lower(), known, 1, 0.6)), "")


def explain(error: ValidationError) -> list[tuple[Key, str, str, str]]:
    """(key, code, message, hint) for each error that pydantic found."""
    return [
        _one(item["loc"], item["type"], item["msg"], item.get("ctx", {}), item.get("input")) for item in error.errors(include_url=False)
    ]


def _one(key: Key, kind: str, message: str, context: dict[str, Any], value: object) -> tuple[Key, str, str, str]:
    if key and key[-1] == "[key]":  # pydantic's name for "the key itself is wrong"
        key = key[:-1]
    name = dotted(key)
    if kind == "extra_forbidden":
        return key, "policy.unknown-key", f"unknown key {name}", _hint_unknown(key)
    if kind == "missing":
        hint = "A policy file begins with: version = 1" if key == ("version",) else f"Write {key[-1]} = ..."
        return key, "policy.missing-key", f"{name} is missing", hint
    if kind == "stockade":
        return key, "policy.bad-value", f"{name}: {context['message']}", context["hint"]
    if kind == "literal_error":
        return _choice(key, name, context["expected"], value)
    if kind in _KINDS:
        return key, "policy.bad-type", f"{name} must be {_KINDS[kind]}, not {_show(value)}", _hint_type(key, kind, value)
    if kind in ("greater_than_equal", "less_than_equal"):
        low = kind == "greater_than_equal"
        bound = context["ge" if low else "le"]
        return key, "policy.bad-value", f"{name} must be {'at least' if low else 'at most'} {bound}, not {_show(value)}", ""
    if kind == "string_pattern_mismatch":
        return key, "policy.bad-value", f"{name}: {_show(value)} is not a name", "Use letters, digits and _ ."
    return key, "policy.bad-value", f"{name}: {message[:1].lower()}{message[1:]}", ""


def _choice(key: Key, name: str, expected: str, value: object) -> tuple[Key, str, str, str]:
    choices = [part.strip("'") for part in expected.replace(" or ", ", ").split(", ")]
    near = nearest(value, choices) if isinstance(value, str) else ""
    if key == ("version",):
        return (
            key,
            "policy.version",
            f"version {_show(value)} is not known to this stockade",
            "Write version = 1, or install a newer stockade.",
        )
    return (
        key,
        "policy.bad-value",
        f"{name} must be one of {', '.join(choices)}, not {_show(value)}",
        f'Did you mean "{near}"?' if near else "",
    )


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, dict):
        return "a table"
    return f'"{value[:40]}"' if isinstance(value, str) else str(value)[:40]


def _hint_type(key: Key, kind: str, value: object) -> str:
    last = key[-1] if key else ""
    if key in (("mount",), ("egress",)):
        return f"Write it as [[{last}]], with two brackets: there may be several."
    if kind == "tuple_type" and isinstance(value, str):
        return f'Write {last} = ["{value[:40]}"]'
    if kind == "bool_type":
        return f"Write {last} = true or {last} = false, without quotes."
    if kind == "int_type" and isinstance(value, str) and value.isdigit():
        return f"Write {last} = {value}, without quotes."
    return ""


def _table_of(key: Key) -> str:
    names = [part for part in key[:-1] if isinstance(part, str)]
    if names[:1] == ["credential"] and names[2:] == ["sigv4"]:
        return "credential.sigv4"
    inner = ".".join(names[:2])
    return inner if inner in TABLES else names[0] if names else ""


def _hint_unknown(key: Key) -> str:
    table, name = _table_of(key), str(key[-1])
    if table not in TABLES:
        return ""
    known = keys_of(table)
    if near := nearest(name, known):
        return f"Did you mean {near}?"
    homes = [f"[{other}]" for other in TABLES if other and other != table and name in keys_of(other)]
    where = f"{name} belongs in {' or '.join(homes)}. " if homes else ""
    return f"{where}The keys {'here' if table else 'of a policy'} are: {', '.join(known)}."
