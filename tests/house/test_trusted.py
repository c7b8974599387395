"""docs/trusted-code.md: every module that stands between an agent and the world is in one row, each row stays under its bound, and what reads hostile bytes is fuzzed."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

from fuzz.harness import TARGETS
from house.tree import ROOT, text

PAGE, SOURCES = ROOT / "docs/trusted-code.md", ROOT / "src/stockade"
# Lines of code that each row may grow to, by the first module in it. To raise one is a decision: could a tested primitive do it instead?
BOUNDS = {
    "walls/native/inside.c": 700,
    "walls/native/launch.c": 350,
    "walls/gvisor.py": 550,
    "walls/root.py": 180,
    "walls/images.py": 650,
    "walls/native/tunnel.c": 900,
    "walls/guest.py": 700,
    "walls/vm/image.py": 800,
    "walls/bubblewrap.py": 1050,
    "walls/events.py": 350,
    "walls/watch.py": 250,
    "walls/box.py": 360,
    "walls/states.py": 200,
    "walls/git.py": 3010,
    "walls/workspace/waiting.py": 1080,
    "gateway/config.py": 700,
    "gateway/doorman.py": 700,
    "gateway/brain.py": 940,
    "gateway/mitm.py": 700,
    "gateway/raw.py": 200,
    "gateway/names.py": 250,
    "gateway/control.py": 700,
    "gateway/errand.py": 350,
    "gateway/agent.py": 200,
    "gateway/sigv4.py": 200,
    "checks/": 2000,
    "policy/": 3450,
    "record/": 1200,
    "core/asks.py": 540,
    "session/changes.py": 160,
    "server/": 300,
    "server/bearer.py": 290,
    "server/rpc.py": 550,
    "checks/reviewing.py": 650,
    "core/brought.py": 250,
    "session/managed.py": 200,
    "session/agents.py": 60,
    "core/": 4500,
}
_NOT_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENCODING, tokenize.ENDMARKER)


def code_lines(path: Path) -> int:
    """Lines that hold code: no comments, no docstrings, no blank lines."""
    source = text(path)
    if path.suffix in (".c", ".h"):
        return sum(bool(line.strip()) for line in re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL).splitlines())
    lines: set[int] = set()
    statement_begins = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            statement_begins = True
        elif token.type not in _NOT_CODE:
            if not (statement_begins and token.type == tokenize.STRING):  # a string that begins a statement is a docstring
                lines.update(range(token.start[0], token.end[0] + 1))
            statement_begins = False
    return len(lines)


def modules(name: str) -> list[Path]:
    """The files that a name of the page stands for: a file, or all below a folder."""
    path = SOURCES / name
    return [path] if path.is_file() else sources(path)


def sources(place: Path) -> list[Path]:
    """All code below a folder."""
    return sorted(path for path in place.rglob("*") if path.suffix in (".py", ".c", ".h"))


def rows() -> list[tuple[list[str], list[str]]]:
    """(what is ours, what fuzzes it) of each row."""
    cells = [line.strip("|").split("|") for line in text(PAGE).splitlines() if line.startswith("| `")]
    return [(re.findall(r"`([a-z0-9_/.]+)`", row[0]), re.findall(r"`([a-z0-9_/]+\.py)`", row[3])) for row in cells]


def outside() -> list[str]:
    """What the page names as being in no row."""
    return re.findall(r"`([a-z0-9_/.]+)`", text(PAGE).split("Outside of it:")[1].split("\n\n")[0])


def members() -> dict[str, list[Path]]:
    """The modules of each row, by its first name. What a row, or the list of what is in none, names by itself is not in another row's folder."""
    named = {name for ours, _ in rows() for name in ours if not name.endswith("/")} | {*outside()}
    found = {}
    for ours, _ in rows():
        every = {path for name in ours for path in modules(name)}
        found[ours[0]] = sorted(
            path for path in every if str(path.relative_to(SOURCES)) in ours or str(path.relative_to(SOURCES)) not in named
        )
    return found


def test_every_module_is_in_one_row() -> None:
    counted = [path for every in members().values() for path in every]
    left_out = {path for name in outside() for path in modules(name)}
    assert len(counted) == len(set(counted)) and not left_out & set(counted)
    every = {path for path in sources(SOURCES) if path.parent != SOURCES or path.name == "gatehouse.py"}
    assert {path for path in every - left_out - set(counted) if path.name != "__init__.py" or code_lines(path)} == set()


def test_each_row_stays_small() -> None:
    found = {first: sum(map(code_lines, every)) for first, every in members().items()}
    for first, count in found.items():
        print(f"{count:6} of {BOUNDS[first]:5}  {first}")
    print(f"{sum(found.values()):6}           together")
    assert {first: count for first, count in found.items() if count > BOUNDS[first]} == {} and found.keys() == BOUNDS.keys()


def test_every_target_and_every_test_that_is_named_exists() -> None:
    named = [name for _, tests in rows() for name in tests]
    assert sorted(Path(name).stem for name in named if name.startswith("fuzz/")) == TARGETS
    assert [name for name in named if not (ROOT / "tests" / name).is_file()] == []
    assert all("@given" in text(ROOT / "tests" / name) for name in named if not name.startswith("fuzz/"))


def test_comments_blank_lines_and_docstrings_are_not_counted(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text('"""Doc\n\nstring."""\n\n# why\ndef f() -> str:\n    """More."""\n    return """a\nb"""  # two lines\n')
    (tmp_path / "x.c").write_text("/* one\n * two */\n\nint x; /* three */\n")
    assert (code_lines(tmp_path / "x.py"), code_lines(tmp_path / "x.c")) == (3, 1)
