"""Rules about every file: no download addresses, short modules, reasons beside exemptions."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from house.tree import ROOT, text, written_files


def hosts(*outputs: str) -> set[str]:
    """Host names of all http addresses in what a package client printed."""
    found = {urlsplit(address).hostname or "" for output in outputs for address in re.findall(r"https?://[^\s'\"]+", output)}
    return {host for host in found if "." in host and not host.replace(".", "").isdigit()}


def printed(*command: str) -> str:
    if not shutil.which(command[0]):
        return ""
    return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/").stdout


def registry_hosts() -> set[str]:
    """Asks the package clients of this machine which servers they use, so that no name has to stand here."""
    built_in = import_module("pip._internal.models.index").PyPI if _has_pip() else None
    return hosts(
        printed(sys.executable, "-m", "pip", "config", "list"),
        f"{built_in.url} https://{built_in.file_storage_domain}" if built_in else "",
        printed("npm", "config", "get", "registry"),
        printed("apt-get", "indextargets", "--format", "$(SITE)"),
    )


def _has_pip() -> bool:
    try:
        import_module("pip._internal.models.index")
    except ImportError:
        return False
    return True


def test_no_registry_host_is_written_anywhere() -> None:
    known = registry_hosts()
    if not known:
        pytest.skip("no package client here names its servers")
    named = [f"{path.relative_to(ROOT)}: {host}" for path in written_files() for host in known if host in text(path)]
    assert not named


def test_modules_stay_short() -> None:
    long = {str(path): count for path in (ROOT / "src").rglob("*.py") if (count := len(text(path).splitlines())) >= 400}
    assert not long


EXEMPTION = re.compile(r"#\s*(noqa|type:\s*ignore)(?P<rest>.*)$")


def unexplained(source: str) -> list[str]:
    """Lines whose exemption names no rule, or gives no reason: `# noqa: S101 - because`, `# type: ignore[arg-type]  # because`."""
    lines = []
    for line in source.splitlines():
        match = EXEMPTION.search(line)
        if match and not re.match(r"(:\s*[A-Z]+\d+(\s*,\s*[A-Z]+\d+)*|\[[a-z-]+(,\s*[a-z-]+)*\])\s+\S", match["rest"]):
            lines.append(line.strip())
    return lines


def test_exemptions_carry_their_reason() -> None:
    assert unexplained("x = 1  # noqa: S101") and unexplained("x = 1  # type: ignore") and unexplained("x = 1  # noqa")
    assert not unexplained("x = 1  # noqa: S101 - the checker is blind here\ny = 2  # type: ignore[misc]  # same")
    bare = {str(path): lines for path in (ROOT / "src").rglob("*.py") if (lines := unexplained(text(path)))}
    assert not bare


def test_every_room_says_what_it_is() -> None:
    silent = [str(path) for path in (ROOT / "src").rglob("*.py") if ast.get_docstring(ast.parse(text(path))) is None]
    assert not silent


def test_locks_hold_hashes_and_no_addresses() -> None:
    for name in ("runtime.txt", "dev.txt", "fuzz.txt"):
        lock = text(ROOT / "requirements" / name)
        assert "://" not in lock
        blocks = re.split(r"\n(?=[a-z])", lock)[1:]
        assert blocks and all("--hash=sha256:" in block for block in blocks)


def test_scripts_are_well_formed() -> None:
    for path in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]:
        if path.is_file() and text(path).startswith(("#!/usr/bin/env bash", "#!/bin/sh")):
            assert path.stat().st_mode & 0o111, f"{path} is not executable"
            subprocess.run(["bash", "-n", str(path)], check=True)


LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)#\s]+)")


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda path: str(path.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    if not (ROOT / "src").exists():
        pytest.skip("only the tests are here, not the sources that the pages link to")
    broken = [target for target in LINK.findall(text(page)) if not (page.parent / target).exists()]
    assert not broken
