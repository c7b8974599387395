"""From bytes to a validated file with the line of every key."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stockade.core.errors import PolicyError
from stockade.core.frozen import frozen
from stockade.core.values import Origin
from stockade.policy.lines import line_of, locate
from stockade.policy.model import PolicyFile
from stockade.policy.problems import dotted, explain, raise_all

if TYPE_CHECKING:
    from stockade.policy.lines import Key

_MOST_DOTS = 500
_POSITION = re.compile(r" ?\(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)")


@frozen
class Document:
    """A policy file that has the right shape. `layer` is managed, user, project, file or command line; `name` is what errors call it."""

    layer: str
    name: str
    tables: PolicyFile
    lines: dict[Key, int]

    def origin(self, *key: str | int, preset: str = "") -> Origin:
        """Where `key` was written."""
        return Origin(self.name, line_of(key, self.lines), dotted(key), preset)

    def error(self, message: str, *key: str | int, code: str, hint: str = "") -> PolicyError:
        """An error about `key`, not raised."""
        return PolicyError(message, code=code, hint=hint, file=self.name, line=line_of(key, self.lines), key=dotted(key))


def parse(data: bytes, *, layer: str, name: str) -> Document:
    """Validate one file. Raises PolicyError, with all errors of the file at once if there are several."""
    text = _decode(data, name)
    _bound(text, name)
    try:
        values = tomllib.loads(text)
        return validate(values, layer=layer, name=name, lines=locate(text))
    except RecursionError:
        raise PolicyError("the file is nested too deeply", code="policy.syntax", file=name) from None
    except tomllib.TOMLDecodeError as error:
        raise _syntax(str(error), text, name) from None
    except ValueError as error:  # a number without end
        raise _syntax(str(error).partition(";")[0], text, name) from None


def validate(values: dict[str, Any], *, layer: str, name: str, lines: dict[Key, int]) -> Document:
    """Check the shape of parsed values. Raises PolicyError."""
    try:
        return Document(layer, name, PolicyFile.model_validate(_tuples(values)), lines)
    except ValidationError as error:
        found = [
            PolicyError(message, code=code, hint=hint, file=name, line=line_of(key, lines), key=dotted(key))
            for key, code, message, hint in explain(error)
        ]
    raise_all(found)
    raise AssertionError("pydantic refused without an error")


def _decode(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise PolicyError("the file is not UTF-8 text", code="policy.syntax", file=name, line=line, hint="Save it as UTF-8.") from None


def _bound(text: str, name: str) -> None:
    """Raises PolicyError for a line that `tomllib` would take minutes for: a key with so many dots, whose time grows with their square."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > _MOST_DOTS:
            message = f"a line with more than {_MOST_DOTS} dots"
            raise PolicyError(message, code="policy.syntax", file=name, line=number, hint="Write a long list on several lines.")


def _syntax(message: str, text: str, name: str) -> PolicyError:
    match = _POSITION.search(message)
    line = 0
    if match:
        line = int(match[1]) if match[1] else text.rstrip().count("\n") + 1
        message = message[: match.start()] + (f" (column {match[2]})" if match[2] else " (at the end of the file)")
    hint = "Text goes in double quotes, lists in [ ], and each key stands once on a line of its own (toml.io)."
    return PolicyError(f"not valid TOML: {message[:200]}", code="policy.syntax", file=name, line=line, hint=hint)


def _tuples(value: Any) -> Any:
    """Lists as tuples all the way down: strict models of frozen values take nothing else."""
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
