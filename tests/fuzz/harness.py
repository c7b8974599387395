"""What the targets of this folder have in common, and inputs for them.

A target is a module that opens with its INVARIANT and has: `one(data)`, which raises when the invariant does not hold for these bytes; `KEPT`, inputs that have
to go on passing, each under the reason why it is here; `WORDS`, what its language is made of; `FAULT`, a fault to plant in the product that `KEPT` must find.
`INPUTS`, a strategy of hypothesis, is for a language that words alone do not reach; `LONGEST` bounds what atheris tries, in bytes.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Protocol

from hypothesis import strategies as st

TARGETS = sorted(
    path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("harness", "run") and path.stem[:5] != "test_"
)


_LARGE = 1 << 10  # bytes of a kept input that is about its size, and tried as it is only


class Target(Protocol):
    KEPT: dict[str, bytes]
    WORDS: tuple[bytes, ...]
    FAULT: tuple[str, object]

    def one(self, data: bytes, /) -> None: ...


def load(name: str) -> Target:
    return import_module(f"fuzz.{name}")  # type: ignore[return-value]  # a module with what a Target has


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Words in any order with noise between them, and kept inputs with a few places overwritten."""
    pieces = st.sampled_from(target.WORDS) | st.binary(max_size=4)
    soup = st.lists(pieces, max_size=25).map(b"".join)
    places = st.lists(st.tuples(st.integers(0, 1 << 12), st.integers(0, 4), pieces), max_size=4)
    edited = st.builds(_edited, st.sampled_from([data for data in target.KEPT.values() if len(data) < _LARGE]), places)
    return soup | edited | getattr(target, "INPUTS", st.nothing())


def _edited(data: bytes, places: list[tuple[int, int, bytes]]) -> bytes:
    for at, gone, new in places:
        at %= len(data) + 1
        data = data[:at] + new + data[at + gone :]
    return data
