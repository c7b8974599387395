from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.policy.lines import Key, line_of, locate

TEXT = '''\
# a comment with a = 1
version = 1   # here

[workspace]
path = "." # [not.a.table]
mode = """
[[egress]]
host = "in a string"
"""

[[egress]]
host = "a.example"
paths = [
  "/one",  # ] not the end
  "/two",
]

[[egress]]
"host" = 'b.example'
limits.memory = "dotted"

[egress.inner]
deep.er = {x = 1, y = {z = 2}}
[[egress.more]]
a = 1
[[egress.more]]
a = 2

[credential."my key"]
source = 'env:X'
[environment]
set = { A = "1", B = "2" }
'''
EXPECTED: dict[Key, int] = {
    ("version",): 2,
    ("workspace",): 4,
    ("workspace", "path"): 5,
    ("workspace", "mode"): 6,
    ("egress", 0): 11,
    ("egress", 0, "host"): 12,
    ("egress", 0, "paths"): 13,
    ("egress", 0, "paths", 1): 13,
    ("egress", 1): 18,
    ("egress", 1, "host"): 19,
    ("egress", 1, "limits", "memory"): 20,
    ("egress", 1, "inner"): 22,
    ("egress", 1, "inner", "deep", "er", "y", "z"): 23,
    ("egress", 1, "more", 0): 24,
    ("egress", 1, "more", 1, "a"): 27,
    ("credential", "my key", "source"): 30,
    ("environment", "set", "B"): 32,
}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_kind_of_key_has_its_line(end: str) -> None:
    text = TEXT.replace("\n", end)
    tomllib.loads(text)
    found = locate(text)
    assert {key: found.get(key) for key in EXPECTED} == EXPECTED
    assert ("a",) not in found and ("host",) not in found


def test_other_line_separators_of_unicode_are_not_line_ends() -> None:
    assert locate('a = "\u2028 \u0085 \x1c"\nb = 1'.replace("\x1c", ""))[("b",)] == 2


def test_a_missing_key_has_the_line_of_its_table() -> None:
    assert line_of(("egress", 1, "port"), locate(TEXT)) == 18
    assert line_of(("nothing",), locate(TEXT)) == 0


def test_a_pathological_value_costs_no_minutes() -> None:
    assert locate("a = [\n" + "1,\n" * 20_000 + "]\nb = 1\n").get(("b",), 0) == 0


def keys(value: object, path: Key = ()) -> list[Key]:
    if isinstance(value, dict):
        return [path, *(key for name, item in value.items() for key in keys(item, (*path, name)))]
    if isinstance(value, list):
        return [path, *(key for index, item in enumerate(value) for key in keys(item, (*path, index)))]
    return [path]


NAMES = st.sampled_from(["a", "b", '"c d"', "e.f", "g"])
VALUES = st.sampled_from(
    ["1", '"x"', '"""\n[a]\nb = 1\n"""', "'''\n#'''", "[1, 2]", "[\n 1,\n # ]\n {q = 2}]", "{r = 1, s.t = [3]}", "1979-05-27"]
)
STATEMENTS = st.one_of(
    NAMES.map(lambda name: f"[{name}]"),
    NAMES.map(lambda name: f"[[{name}]]"),
    st.tuples(NAMES, VALUES).map(lambda both: f"{both[0]} = {both[1]}"),
    st.sampled_from(["", "# c = 1"]),
)


@given(st.lists(STATEMENTS, max_size=12))
def test_every_key_of_a_document_has_a_line_inside_it(statements: list[str]) -> None:
    """INVARIANT: positions and values come from the same reading, so no key is without a line and none is invented."""
    text = "\n".join(statements)
    try:
        values = tomllib.loads(text)
    except ValueError:
        return
    found = locate(text)
    assert set(keys(values)) == set(found)
    assert all(1 <= line <= text.count("\n") + 1 for line in found.values())
