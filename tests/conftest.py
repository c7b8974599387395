"""What every test shares: `must_work(name)` for walls and tools that CI insists on, and that no test leaves a process behind."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest


def unavailable(name: str, reason: str) -> NoReturn:
    """Skip the test with its reason, or fail it when `STOCKADE_MUST_WORK` (comma-separated names) says that `name` has to work here."""
    if name in os.environ.get("STOCKADE_MUST_WORK", "").split(","):
        pytest.fail(f"{name} must work here, but: {reason}")
    pytest.skip(f"{name}: {reason}")


def children() -> dict[str, str]:
    """The processes that this one started and has not waited for: their names by number."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that ends
            for pid in (task / "children").read_text().split():
                found[pid] = Path(f"/proc/{pid}/comm").read_text().strip()
    return found


# Tests of attacks: one that gets through once has got through.
ATTACKS = (
    "cli/test_tools", "drills/", "fuzz/", "gateway/test_bounds", "gateway/test_canaries", "gateway/test_differential", "gateway/test_door", "gateway/test_enclose",
    "gateway/test_hidden", "gateway/test_http2", "gateway/test_raw", "gateway/test_requests", "gateway/test_secret_hosts", "gateway/test_spelling",
    "gateway/test_taint", "gateway/test_tools", "server/test_access", "session/test_modes", "session/test_taint", "session/test_untouched", "walls/test_brought",
    "walls/test_conformance", "walls/test_door", "walls/test_git_attacks", "walls/test_leaks", "walls/test_seccomp", "walls/test_waiting",
)  # fmt: skip


# Rooms whose tests start processes.
TIMED = ("cli/", "gateway/", "server/", "session/", "walls/")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What may start sandboxes and is about no attack gets a second try, which the summary tells: many passes of tests share a machine, and processes that are killed,
    held up or timed sometimes miss their moment there (docs/decisions/0031-a-second-try.md)."""
    for item in items:
        path = item.path.relative_to(Path(__file__).parent).as_posix()
        if path.startswith(TIMED) and not path.startswith(ATTACKS):
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.fixture(autouse=True)
def no_sandbox_left() -> Iterator[None]:
    """The test that leaves a sandbox fails, not a later one that counts them. (By number: what is being made still changes its name.)"""
    before = children()
    yield
    parts = ("bwrap", "step", "runsc", "exe", "envoy")
    assert not {pid: name for pid, name in children().items() if pid not in before and name in parts}
