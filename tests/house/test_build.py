"""The build hook: a static program, a clear word when there is no compiler, no half-written result."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from conftest import unavailable
from house.tree import ROOT


@pytest.fixture(scope="module")
def hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_program_is_static_and_runs(hook: ModuleType, tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        unavailable("cc", "no C compiler")
    (tmp_path / "hello.c").write_text("#include <stdio.h>\nextern const char *said;\nint main(void) { puts(said); return 0; }\n")
    (tmp_path / "said.c").write_text('const char *said = "hello";\n')
    made = tmp_path / "hello"
    hook.compile_program([tmp_path / "hello.c", tmp_path / "said.c"], made)
    assert subprocess.run([made], capture_output=True, text=True, env={}).stdout == "hello\n"
    assert b"ld-linux" not in made.read_bytes()[:4096]  # the interpreter's name stands near the start of a dynamic program
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hello", "hello.c", "said.c"]


def test_no_compiler_says_what_to_install(hook: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(RuntimeError, match="apt-get install gcc libc6-dev"):
        hook.compile_program([tmp_path / "hello.c"], tmp_path / "hello")


def test_what_does_not_compile_leaves_the_old_program(hook: ModuleType, tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        unavailable("cc", "no C compiler")
    (tmp_path / "hello").write_text("old")
    (tmp_path / "hello.c").write_text("int main(void) { int unused; return 0; }\n")
    with pytest.raises(RuntimeError, match="unused"):
        hook.compile_program([tmp_path / "hello.c"], tmp_path / "hello")
    assert (tmp_path / "hello").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["hello", "hello.c"]
