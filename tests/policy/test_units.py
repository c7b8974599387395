from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.policy import units


@pytest.mark.parametrize(
    ("text", "bytes_"),
    [("8 GiB", 8 << 30), ("512MiB", 512 << 20), ("1.5 kib", 1536), ("2 MB", 2_000_000), ("none", 0), (0, 0), (4096, 4096), ("7 bytes", 7)],
)
def test_sizes(text: object, bytes_: int) -> None:
    assert units.size(text) == bytes_


@pytest.mark.parametrize(
    ("text", "seconds"), [("90 s", 90), ("30 min", 1800), ("2h", 7200), ("1 day", 86400), ("none", 0), (5, 5), ("1.5 h", 5400)]
)
def test_times(text: object, seconds: int) -> None:
    assert units.duration(text) == seconds


@pytest.mark.parametrize("text", ["8", "8 gigs", "-1 GiB", "GiB", "", True, None, 1.5, -1, "0.1 B", "9999999999 TiB", "８ GiB", "1e3 MiB"])
def test_what_is_no_size_says_how_to_write_one(text: object) -> None:
    with pytest.raises(ValueError, match=r'"512 MiB", "8 GiB"|write "none"'):
        units.size(text)


@given(st.integers(1, units.MOST))
def test_what_is_shown_reads_back(value: int) -> None:
    assert units.size(units.show_size(value)) == value
    assert units.duration(units.show_duration(value)) == value


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none()))
def test_nothing_but_value_error(value: object) -> None:
    for parse in (units.size, units.duration):
        try:
            assert 0 <= parse(value) <= units.MOST
        except ValueError:
            pass
