"""Compiles the C files of src/stockade/walls/native into one static program beside them, for wheels and editable installs.

The program is pid 1 inside a sandbox whose root holds only what the policy grants, so it may need no shared library.
The result is never committed; the wheel carries it and is tagged with the platform.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NATIVE, PROGRAM = Path("src/stockade/walls/native"), "step"
FLAGS = ["-std=c17", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
NO_COMPILER = """
stockade needs a C compiler to build its small helper program. Install one, then try again:
  Debian, Ubuntu:  apt-get install gcc libc6-dev
  Fedora:          dnf install gcc glibc-static
  Alpine:          apk add gcc musl-dev
Or name a compiler in the environment variable CC."""


def compile_program(sources: Sequence[Path], target: Path) -> None:
    """Compile C files to a static program.

    The program appears by a rename, so a sandbox that is starting meanwhile finds the old one or the new one.
    Raises RuntimeError with what to install if there is no compiler, or with its own words if it refuses.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or [found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))][:1]
    if not compiler or not shutil.which(compiler[0]):
        raise RuntimeError(NO_COMPILER)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        made = Path(scratch) / target.name
        done = subprocess.run([*compiler, *FLAGS, "-o", str(made), *map(str, sources)], capture_output=True, text=True)
        if done.returncode != 0:
            missing = "cannot find -lc" in done.stderr or "stdlib.h" in done.stderr
            raise RuntimeError(f"{target} cannot be compiled:\n{done.stderr}{NO_COMPILER if missing else ''}")
        made.chmod(0o755)
        made.rename(target)


class NativeHook(BuildHookInterface[Any]):
    """hatchling's build hook: see https://hatch.pypa.io/latest/plugins/build-hook/custom/."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, add the program to the wheel, and tag it: any Python 3, no ABI, this platform."""
        place = Path(self.root) / NATIVE
        compile_program(sorted(place.glob("*.c")), place / PROGRAM)
        build_data["artifacts"].append(f"/{NATIVE / PROGRAM}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"
