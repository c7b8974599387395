"""Limits hold with cgroups and without, and what stays below them is not disturbed (B12)."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockade.core.frozen import replace
from stockade.core.values import Limits
from stockade.walls import limits
from stockade.walls.limits import Usage
from walls.boxes import HOME, PYTHON, SMALL, Inside, inside, require, until

walls = pytest.mark.wall

# ---- arithmetic -------------------------------------------------------------------------------------------------------------------

usages = st.builds(Usage, st.integers(0, 5000), st.integers(0, 1 << 40), st.floats(0, 1e6))
wanted = st.builds(Limits, processes=st.integers(0, 2000), memory=st.integers(0, 1 << 36), cpu_time=st.integers(0, 1000))


@given(wanted, usages, st.sets(st.sampled_from(["processes", "memory"])))
def test_over_names_the_limit_that_is_exceeded_and_only_then(asked: Limits, used: Usage, held: set[str]) -> None:
    exceeded = {
        "processes": asked.processes and "processes" not in held and used.processes > asked.processes,
        "memory": asked.memory and "memory" not in held and used.memory > asked.memory,
        "CPU": asked.cpu_time and used.cpu > asked.cpu_time,
    }
    said = limits.over(asked, used, held)
    assert bool(said) == any(exceeded.values())
    assert not said or any(word in said for word, is_so in exceeded.items() if is_so)


def test_the_receipt_names_a_mechanism_for_each_limit_that_is_set() -> None:
    everything = Limits(processes=1, memory=1, cpu_time=1, file_size=1, open_files=1, output=1, wall_time=1, scratch=1)
    names = {"processes", "memory", "cpu time", "file size", "open files", "output", "wall time", "scratch"}
    for held in (set[str](), {"processes", "memory"}):
        lines = limits.enforced(everything, held)
        assert {line.rule for line in lines} == {f"limit {name}" for name in names}
        by_group = {line.rule for line in lines if line.mechanism.startswith("cgroup")}
        assert by_group == {f"limit {name}" for name in held}
    assert limits.enforced(Limits(0, 0, 0, 0, 0, 0, 0, 0), set()) == ()


def test_usage_counts_a_process_tree() -> None:
    script = (
        "import os, time\nfor _ in range(4):\n  if os.fork() == 0: break\nkeep = bytearray(30 << 20)\nprint(flush=True)\ntime.sleep(30)"
    )
    with subprocess.Popen([PYTHON, "-I", "-S", "-c", script], stdout=subprocess.PIPE) as tree:
        assert tree.stdout
        for _ in range(5):
            tree.stdout.readline()
        used = limits.usage(tree.pid)
        assert used.processes == 5
        assert 5 * 30 << 20 <= used.memory < 5 * 60 << 20
        assert limits.usage(tree.pid, 2).processes == 3  # stops looking once it is too many
        for child in Path(f"/proc/{tree.pid}/task/{tree.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)
        tree.kill()
    assert limits.usage(tree.pid) == Usage(0, 0, 0.0)  # gone: nothing


def test_cpu_time_is_counted_in_seconds() -> None:
    script = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass\nprint(flush=True)\ntime.sleep(30)"
    with subprocess.Popen([PYTHON, "-I", "-S", "-c", script], stdout=subprocess.PIPE) as tree:
        assert tree.stdout
        tree.stdout.readline()
        assert 0.2 <= limits.usage(tree.pid).cpu <= 3
        tree.kill()


# ---- in a box ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def limited(groups: bool, **values: int) -> Iterator[tuple[Inside, limits.Groups, Limits]]:
    """A box with these limits, held by cgroups where wanted (and possible) or by what else there is."""
    require()
    asked: Limits = replace(SMALL, **values)
    held = limits.Groups()
    if groups:
        held = limits.join(f"stockade-test-{os.urandom(6).hex()}", asked)
        if not held.held:
            held.close()
            pytest.skip("no cgroup can be made here (not root, nothing delegated)")
    try:
        # With a door, as every session has one: RLIMIT_NPROC then counts within its user namespace, and not all that the user runs.
        with inside(limits=asked, network="door", cgroups=held.descriptors) as made:
            yield made, held, asked
    finally:
        held.close()


def watch(made: Inside, asked: Limits, held: set[str], seconds: float = 8.0) -> str:
    """The watchdog by hand: look until something is exceeded; what."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        init = limits.init_of(made.box.pid)
        if init and (said := limits.over(asked, limits.usage(init, asked.processes), held)):
            return said
        time.sleep(0.02)
    return ""


# Bounded: at most 300 processes, each of which ends by itself.
BOMB = """
import os, sys, time
made = 0
for _ in range(int(sys.argv[1])):
    try: pid = os.fork()
    except BlockingIOError: print("refused", flush=True); break
    if pid == 0: time.sleep(6); os._exit(0)
    made += 1
print(made, flush=True); time.sleep(6)
"""
both = pytest.mark.parametrize("groups", [True, False], ids=["cgroups", "without"])


@walls
@both
def test_a_fork_bomb_is_held(groups: bool) -> None:
    with limited(groups, processes=40) as (made, held, asked):
        child = made.start(PYTHON, "-I", "-S", "-c", f"import sys; sys.argv[1:] = ['300']; sys.stdout = open('/tmp/said', 'w')\n{BOMB}")
        if "processes" in held.held or os.getuid():
            assert until(lambda: "refused" in made_says(made), 5) or watch(made, asked, held.held)
            assert limits.usage(limits.init_of(made.box.pid)).processes <= 42
        else:  # root is not counted by RLIMIT_NPROC: the watchdog it is
            assert "40 processes" in watch(made, asked, held.held)
        made.box.close()
        assert child.status is None
    with limited(groups, processes=40) as (made, _, _):  # the twin
        assert made.python(BOMB.replace("sleep(6)", "sleep(0.1)"), "20").text == "20"


def made_says(made: Inside) -> str:
    """What the bomb wrote, read without starting a process inside."""
    try:
        return Path(f"/proc/{limits.init_of(made.box.pid)}/root/tmp/said").read_text()
    except OSError:
        return ""


HOG = "import sys\nkept = []\nfor _ in range(int(sys.argv[1])): kept.append(b'x' * (1 << 20))\nprint('had it all')"


@walls
@both
def test_a_memory_hog_is_held(groups: bool) -> None:
    with limited(groups, memory=128 << 20) as (made, _, _):
        done = made.python(HOG, "400")
        assert b"had it all" not in done.out
        assert done.code == 137 or b"MemoryError" in done.err  # the cgroup's kill, or RLIMIT_DATA's refusal
        assert made.python(HOG, "40").text == "had it all"  # the twin, in the same box


@walls
@both
def test_many_small_hogs_are_held_together(groups: bool) -> None:
    with limited(groups, memory=128 << 20) as (made, held, asked):
        code = "import os, time\nfor _ in range(7):\n  if os.fork() == 0: break\nkeep = b'x' * (40 << 20)\ntime.sleep(8)"
        child = made.start(PYTHON, "-I", "-S", "-c", code)
        if "memory" in held.held:
            assert until(lambda: limits.usage(limits.init_of(made.box.pid)).memory > 40 << 20)
            time.sleep(0.3)
            assert limits.usage(limits.init_of(made.box.pid)).memory <= 200 << 20  # pages that a fork shares count for each
        else:
            assert "128 MiB of memory" in watch(made, asked, held.held)
        assert child.status is None


@walls
def test_cpu_time_is_held_for_one_process_and_for_all() -> None:
    spin = "while True: pass"
    with limited(False, cpu_time=1) as (made, _, _):
        done = made.python(spin)
        assert done.code in (128 + signal.SIGXCPU, 128 + signal.SIGKILL)
        assert made.python("sum(range(1000)); print('done')").text == "done"
    with limited(False, cpu_time=1) as (made, held, asked):
        made.start(PYTHON, "-I", "-S", "-c", f"import os\nfor _ in range(3): os.fork()\n{spin}")
        assert "1 s of CPU time" in watch(made, asked, held.held)


@walls
def test_file_size_is_held() -> None:
    with limited(False, file_size=1 << 20) as (made, _, _):
        done = made.sh("head -c 2000000 /dev/zero > /tmp/big")
        assert done.code != 0
        assert made.run("stat", "-c%s", "/tmp/big").text == str(1 << 20)
        assert made.sh("head -c 1000000 /dev/zero > /tmp/small").code == 0


@walls
@pytest.mark.parametrize("count", [16, 64, 150, 1024])
def test_open_files_are_held_also_when_they_are_few(count: int) -> None:
    code = "import os\ntry:\n  while True: last = os.open('/dev/null', 0)\nexcept OSError as e: print(e.errno, last)"
    with limited(False, open_files=count) as (made, _, _):
        done = made.python(code)
        assert done.text == f"24 {count - 1}", done  # EMFILE, and the last number that fitted
        assert made.run("echo", "fine").text == "fine"


@walls
@pytest.mark.parametrize("place", ["/tmp", HOME, "/dev/shm"])
def test_scratch_space_is_held_with_an_error(place: str) -> None:
    with limited(False, scratch=2 << 20) as (made, _, _):
        done = made.sh(f"head -c 4000000 /dev/zero > {place}/big")
        assert done.code != 0 and b"No space left" in done.err
        assert made.sh(f"rm {place}/big && head -c 1000000 /dev/zero > {place}/small").code == 0


@walls
def test_joining_gives_what_it_says_and_closing_removes_it() -> None:
    name = f"stockade-test-{os.urandom(6).hex()}"
    groups = limits.join(name, SMALL)
    directories = list(groups.directories)
    for directory in directories:
        assert os.path.isdir(directory)
    assert bool(groups.held) == bool(groups.descriptors)
    groups.close()
    groups.close()
    assert not [directory for directory in directories if os.path.exists(directory)]
    assert not subprocess.run(["find", limits.ROOT, "-name", name], capture_output=True).stdout


@walls
def test_a_cgroup_tree_that_is_not_there_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ROOT", "/no/such/tree")
    groups = limits.join("stockade-test", SMALL)
    assert (groups.held, groups.directories, groups.descriptors) == (set(), [], [])
