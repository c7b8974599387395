from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stockade.checks.trust import Change, changes, objections
from stockade.core.brought import KINDS, REFUSED, Entry, decode, encode

ENTRY = st.builds(Entry, st.sampled_from(["a", "b", "c/d", "\udcff"]), st.sampled_from(sorted(KINDS)), st.binary(max_size=3))
PROJECT = st.lists(ENTRY, max_size=4, unique_by=lambda entry: entry.name).map(tuple)


@given(PROJECT, PROJECT)
def test_law_nothing_changed_exactly_when_the_bytes_are_the_same(before: tuple[Entry, ...], now: tuple[Entry, ...]) -> None:
    assert (not changes(before, now)) == (set(before) == set(now))
    if encode(before) == encode(now):
        assert changes(before, now) == ()


@given(PROJECT, PROJECT)
def test_law_every_difference_is_named_once(before: tuple[Entry, ...], now: tuple[Entry, ...]) -> None:
    found = changes(before, now)
    old, new = {entry.name: entry for entry in before}, {entry.name: entry for entry in now}
    assert {one.name for one in found} == {name for name in old | new if old.get(name) != new.get(name)} and len(found) == len(
        {one.name for one in found}
    )
    for one in found:
        assert one.how == ("new" if one.name not in old else "gone" if one.name not in new else "changed")


def test_a_mode_a_kind_and_a_content_are_differences() -> None:
    before = (Entry("a", "f", b"x"), Entry("b", "f", b"x"), Entry("c", "f", b"x"), Entry("d", "f", b"x"))
    now = (Entry("a", "x", b"x"), Entry("b", "l", b"x"), Entry("c", "f", b"y"), Entry("e", "f", b"x"))
    assert changes(before, now) == (
        *(Change("a", "changed"), Change("b", "changed"), Change("c", "changed")),
        *(Change("e", "new"), Change("d", "gone")),
    )


@given(PROJECT)
def test_law_what_could_change_unseen_is_objected_to(entries: tuple[Entry, ...]) -> None:
    assert [name for name, _ in objections(entries)] == [entry.name for entry in entries if entry.kind in REFUSED]
    assert set(REFUSED) < set(KINDS)


@given(PROJECT)
def test_what_is_written_is_read_back(entries: tuple[Entry, ...]) -> None:
    assert decode(encode(entries)) == entries
