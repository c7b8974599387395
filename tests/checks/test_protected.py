"""What is asked about a file: rules, and what a person is shown. A difference that is shown says all that changes, whatever the two sides hold."""

from __future__ import annotations

import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.checks import protected
from stockade.checks.protected import Unreadable, Unshowable, decide, difference, question, read
from stockade.core.tools import FileRule
from stockade.core.values import ASK, DENY, Origin

ASKS = FileRule("ci/*.yml", ASK, Origin("user.toml", 1, "file[0]"))
DENIES = FileRule("ci/release.yml", DENY, Origin("managed.toml", 1, "file[0]"))

rules = st.lists(
    st.builds(
        FileRule, st.sampled_from(["a", "ci/*", "ci/a*", "ci/b.yml", "c*/a"]), st.sampled_from([ASK, DENY]),
        st.builds(Origin, st.sampled_from(["x", "y"]), st.integers(1, 3)),
    ),
    max_size=6,
)  # fmt: skip
paths = st.sampled_from(["a", "ci/a", "ci/b.yml", "ci/x/a", "b"])


@given(rules, paths, st.data())
def test_laws(some: list[FileRule], path: str, data: st.DataObject) -> None:
    verdict, rule = decide(path, some)
    shuffled = data.draw(st.permutations([*some, *some]))
    assert decide(path, shuffled) == (verdict, rule)  # neither order nor doubles matter
    assert verdict.effect in (ASK, DENY) and (rule is None) == (verdict.rule == protected.NO_RULE)
    assert rule is None or (protected.fits(rule.path, path) and rule.effect == verdict.effect)
    more = data.draw(st.permutations([*some, FileRule(path, DENY, Origin("z", 1))]))
    assert decide(path, more)[0].effect == DENY  # a denial beats everything


def test_by_which_rule() -> None:
    assert decide("ci/a.yml", (ASKS, DENIES)) == decide("ci/a.yml", (ASKS,)) and decide("ci/a.yml", (ASKS,))[1] == ASKS
    assert decide("ci/release.yml", (ASKS, DENIES))[1] == DENIES
    for path in ("ci/a.yaml", "ci/x/a.yml", "x/ci/a.yml", "a.yml", "CI/a.yml"):
        assert decide(path, (ASKS, DENIES))[0].rule == protected.NO_RULE


@pytest.mark.parametrize(
    "query",
    [
        "", "path", "path=", "path=/etc/passwd", "path=../x", "path=a/../x", "path=./a", "path=a//b", "path=a/", "path=.git/config", "path=x/.GIT/hooks/a", "path=.git%20",
        "path=git~1/config", "path=a%00", "path=a%0a", "path=%1b", "path=%c3%a9", "path=a%5cb", "path=a&path=b", "file=a", "path=" + "a" * 1001, "path=..%2fx", "PATH=a",
    ],
)  # fmt: skip
def test_a_path_that_is_none_is_no_question(query: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read(query, b"x")
    assert caught.value.rule == "bad-file"


def test_a_question_is_read() -> None:
    found = read("path=ci/a%20b.yml", b"x\n")
    assert (found.path, found.content, len(found.digest)) == ("ci/a b.yml", b"x\n", 64)
    with pytest.raises(Unreadable):
        read("path=a", b"x" * (protected.LONGEST + 1))


def asked(before: bytes | None, after: bytes, **more: Any) -> Any:
    return question(1, "ci/a.yml", before, after, ASKS, more.pop("why", "runs in CI"), **{"tainted": False, "shown": True, **more})


def test_a_question_is_for_people_once_and_about_both_contents() -> None:
    one = asked(b"a\n", b"a\nb\n")
    assert (one.action, one.key, one.risk, one.people, one.reviewable, one.reversible) == (
        "file",
        "file ci/a.yml",
        "high",
        True,
        False,
        False,
    )
    assert one.what == "change the file ci/a.yml: 1 lines more, 0 lines less, 4 bytes then (runs in CI)"
    assert asked(b"a\n", b"b\n", why="").risk == "medium" and asked(b"a\n", b"b\n", why="", tainted=True).risk == "high"
    digests = {asked(before, after).digest for before in (None, b"", b"a\n") for after in (b"x\n", b"y\n")}
    assert len(digests) == 6
    assert question(1, "ci/b.yml", b"a\n", b"x\n", ASKS, "", tainted=False, shown=True).digest not in digests


def test_nothing_is_left_to_a_terminal_or_to_the_eye() -> None:
    lines, more, fewer = difference(b"\xff\x1b[2J\n", "\u202e\u0430 a\\b\ttab\r\n@@ -1 +1 @@\n--- x\n".encode())
    assert (more, fewer) == (3, 1) and all(line.isascii() and line.isprintable() for line in lines)
    assert lines[1:] == ("-\\udcff\\x1b[2J", "+\\u202e\\u0430 a\\b\\ttab\\r", "+@@ -1 +1 @@", "+--- x")
    assert difference(b"a\n", b"a")[0][1:] == ("-a", "+a [no line feed at the end]")
    assert difference(b"a", b"a [no line feed at the end]\n")[1:] == (1, 1)  # what says so cannot be written


@pytest.mark.parametrize("after", [b"a\0", b"\xff", b"x" * 13_000, b"\n" * 401, b"".join(b"%d\n" % one for one in range(6000))])
def test_what_cannot_be_shown_whole_is_not_asked(after: bytes) -> None:
    with pytest.raises(Unshowable):
        difference(b"", after)
    assert question(1, "a", b"", after, ASKS, "", tainted=False, shown=False).detail == ()  # nobody is going to look


def patched(old: list[str], lines: tuple[str, ...]) -> list[str]:
    """What a unified difference makes of the old lines, by its own numbers."""
    new: list[str] = []
    at = 0
    for line in lines:
        if found := re.fullmatch(r"@@ -(\d+)(?:,(\d+))? \+\d+(?:,\d+)? @@", line):
            start = int(found[1]) - (found[2] != "0")
            new += old[at:start]
            at = start
        elif line[0] == "+":
            new.append(line[1:])
        else:
            assert old[at] == line[1:]
            at += 1
            new += [line[1:]] if line[0] == " " else []
    return new + old[at:]


texts = st.lists(st.sampled_from(["a", "b", "c", "@@ -1 +1 @@", "", "-x", "+y"]), max_size=30)


@given(texts, texts, st.lists(st.sampled_from("xyz"), max_size=250), st.booleans())
def test_who_reads_it_knows_the_new_file(old: list[str], new: list[str], shared: list[str], long: bool) -> None:
    """The whole of the new content follows from the old one and from what is shown, also where the two are too long to be compared line by line."""
    middle = ["gone"] * 201 * long
    before, after = [*shared, *old, *middle, *shared], [*shared, *new, *shared]
    lines, _, _ = difference("".join(f"{line}\n" for line in before).encode(), "".join(f"{line}\n" for line in after).encode())
    assert patched(before, lines) == after


def test_it_takes_no_time_to_compare_what_is_made_for_that() -> None:
    def seconds(before: bytes, after: bytes) -> float:
        start = time.process_time()
        try:
            difference(before, after)
        except Unshowable:
            pass
        return time.process_time() - start

    plain = max(seconds(b"".join(b"%d\n" % n for n in range(199)), b"".join(b"x%d\n" % n for n in range(199))), 0.001)
    worst = [
        seconds(b"a\nb\n" * 99, b"b\na\na\n" * 66),
        seconds(b"\n" * 32000, b"a\n" * 16000),
        seconds(b"a\nb\n" * 8000, b"b\na\n" * 8000),
    ]
    assert max(worst) < 200 * plain, (worst, plain)
