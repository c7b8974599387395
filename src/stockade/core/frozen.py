"""Immutable value classes that cost nothing to import.

`dataclasses` pulls in `inspect` and `re` and more than doubles the start-up of a bare interpreter; `stockade run` has a budget of 40 ms.
This decorator gives type checkers a frozen dataclass (PEP 681) and the interpreter a class of a few lines.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs as much as starting Python; checkers treat this name as true
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, dataclass_transform

    @dataclass_transform(frozen_default=True)
    def frozen[T](cls: type[T]) -> type[T]: ...
else:

    def frozen(cls):
        """Turn the annotations of `cls` into an immutable value class: keyword or positional construction, equality, hash, repr."""
        inherited = getattr(cls, "_fields", ())
        fields = inherited + tuple(name for name in cls.__annotations__ if name not in inherited)
        cls._fields = fields
        cls._names = frozenset(fields)
        cls._defaults = {name: getattr(cls, name) for name in fields if hasattr(cls, name)}
        cls.__match_args__ = fields
        for name, method in _METHODS.items():
            if name not in cls.__dict__:
                setattr(cls, name, method)
        return cls


_HASH = "#"  # no field's name


def _init(self: Any, *args: object, **kwargs: object) -> None:
    held, repeated = self.__dict__, False
    held.update(self._defaults)
    if args:
        fields = self._fields
        held.update(zip(fields, args, strict=False))
        repeated = len(args) > len(fields) or not kwargs.keys().isdisjoint(fields[: len(args)])
    held.update(kwargs)
    if repeated or held.keys() != self._names:
        held.clear()
        _complain(self, args, kwargs)


def _complain(self: Any, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """Say what is wrong with the values that a class was called with."""
    fields, name = self._fields, type(self).__name__
    if len(args) > len(fields):
        raise TypeError(f"{name} takes {len(fields)} values, not {len(args)}")
    for field in kwargs:
        if field not in fields or field in fields[: len(args)]:
            raise TypeError(f"{name}: {'unknown' if field not in fields else 'repeated'} field {field!r}")
    missing = [field for field in fields[len(args) :] if field not in kwargs and field not in self._defaults]
    raise TypeError(f"{name} lacks {', '.join(missing)}")


def _setattr(self: Any, name: str, value: object) -> None:
    raise AttributeError(f"{type(self).__name__} is immutable: cannot set {name!r}")


def _delattr(self: Any, name: str) -> None:
    raise AttributeError(f"{type(self).__name__} is immutable: cannot delete {name!r}")


def _key(self: Any) -> tuple[object, ...]:
    return tuple(self.__dict__[name] for name in self._fields)


def _eq(self: Any, other: object) -> bool:
    return _key(self) == _key(other) if type(other) is type(self) else NotImplemented


def _hash(self: Any) -> int:
    held = self.__dict__
    if _HASH not in held:  # kept: whoever decides looks grants up for every request, and a grant is a tree of tuples
        held[_HASH] = hash((type(self).__name__, *_key(self)))
    return int(held[_HASH])


def _repr(self: Any) -> str:
    return f"{type(self).__name__}({', '.join(f'{name}={self.__dict__[name]!r}' for name in self._fields)})"


_METHODS: dict[str, Callable[..., object]] = {
    "__init__": _init,
    "__setattr__": _setattr,
    "__delattr__": _delattr,
    "__eq__": _eq,
    "__hash__": _hash,
    "__repr__": _repr,
}


def replace[T](value: T, **changes: object) -> T:
    """A copy of a frozen value with some fields changed. Raises TypeError for an unknown field."""
    return type(value)(**{**_values(value), **changes})


def _values(value: Any) -> dict[str, object]:
    return {name: value.__dict__[name] for name in value._fields}


def plain(value: object) -> Any:
    """Frozen values, tuples and mappings as nested dicts and lists, ready for JSON or marshal."""
    if hasattr(value, "_fields"):
        return {name: plain(value.__dict__[name]) for name in value._fields}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return value
