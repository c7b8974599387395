"""runsc is found, tried by booting it, and remembered. Stand-ins for it, which hang, crash or are too old, run where it would: first in bubblewrap's namespaces."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import unavailable
from house.test_hot_path import CHEAP
from stockade.core.errors import CannotEnforce, StockadeError
from stockade.walls import bubblewrap, runsc
from walls.boxes import children, compiled, descriptors, until

# Answers --version as runsc does; otherwise `%(does)s`, with `on(NAME)` for the platform that is asked for.
STAND_IN = r"""
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static char **words;
static int on(const char *platform) {
  for (char **word = words; *word; word++) if (!strncmp(*word, "--platform=", 11)) return !strcmp(*word + 11, platform);
  return 0;
}
static int hang(const char *mark) { /* with a daemon beside it that no signal but one ends */
  signal(SIGTERM, SIG_IGN);
  if (!fork()) { setsid(); execl("/runsc", "runsc", "--sleep", mark, (char *)0); }
  for (;;) pause();
}
int main(int argc, char **argv) {
  words = argv;
  if (argc > 1 && !strcmp(argv[1], "--version")) { puts("%(version)s"); return 0; }
  if (argc > 1 && !strcmp(argv[1], "--sleep")) for (;;) pause();
  %(does)s
  (void)hang; (void)on;
  return 0;
}
"""
MISTAKEN = 'fputs("creating interfaces: cannot run with network enabled in root network namespace\\n", stderr); return 128;'

type MakeRunsc = Callable[..., Path]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeRunsc:
    """Makes a program that does what is said in C, the only runsc on this machine, with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(does: str = "", version: str = "runsc version release-20240729.0", name: str = "runsc", alone: bool = True) -> Path:
        place, new = tmp_path / name, tmp_path / f"{name}.new"
        shutil.copy(compiled(STAND_IN % {"does": does, "version": version}, "-static"), new)
        new.rename(place)
        if alone:
            monkeypatch.setattr(runsc, "PROGRAMS", (str(place),))
        return place

    try:
        program = bubblewrap.program()
    except StockadeError as error:
        unavailable("bubblewrap", error.message)
    if subprocess.run([program, "--unshare-user", "--dev-bind", "/", "/", "true"], capture_output=True).returncode:
        unavailable("userns", "bubblewrap can make no namespaces")
    return make


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[str]]]:
    """What was started since, by the words after runsc's own name."""
    commands: list[list[str]] = []
    real = subprocess.Popen

    def spy(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        if "/runsc" in command:
            commands.append(command[command.index("--") + 2 :])
        return real(command, **options)  # type: ignore[call-overload, no-any-return]  # as it came

    monkeypatch.setattr(subprocess, "Popen", spy)
    yield commands


def running(mark: str) -> list[int]:
    """Processes with `mark` among their words."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in place.read_bytes().split(b"\0"):
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


def entry() -> Path:
    return Path(os.environ["XDG_CACHE_HOME"], "stockade/runsc/answer")


# ---- the real one -----------------------------------------------------------------------------------------------------------------


@pytest.mark.wall
def test_the_real_one_boots_and_the_second_time_nothing_is_started(tmp_path: Path) -> None:
    code = """
import sys, os
before = set(sys.modules)
started = []
sys.addaudithook(lambda event, arguments: started.append(event) if event in ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec") else None)
from stockade.core.errors import StockadeError
from stockade.walls import runsc
try:
    found = runsc.find()
except StockadeError as error:
    sys.exit(f"{error.code}: {error.message}")
print(found.version, found.platform, len(started), *(set(sys.modules) - before))
"""
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    first, second = (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100, check=False) for _ in range(2)
    )
    if first.returncode:
        unavailable("gvisor", first.stderr)
    version, platform, count, *_ = first.stdout.split()
    assert int(version) >= runsc.OLDEST and platform in runsc.PLATFORMS and int(count) >= 2
    again, same, count, *loaded = second.stdout.split()
    assert (again, same, count) == (version, platform, "0")
    assert {name for name in loaded if not name.startswith("stockade.")} <= CHEAP


@pytest.mark.wall
def test_the_real_one_leaves_nothing_behind() -> None:
    try:
        path, version = runsc.choose()
    except StockadeError as error:
        unavailable("gvisor", error.message)
    before = descriptors(), children()
    try:
        booted = runsc.boot(path, version)
    except StockadeError as error:
        unavailable("gvisor", error.message)
    assert booted.found.path == path and 0 < booted.took < runsc.DEADLINE
    assert (descriptors(), children()) == before


# ---- which runsc, and how it boots ------------------------------------------------------------------------------------------------


@pytest.mark.wall
def test_one_that_boots_is_found(stand_in: MakeRunsc) -> None:
    path = stand_in()
    assert runsc.find() == runsc.Found(str(path), 20240729, "systrap", False, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.mark.wall
@pytest.mark.parametrize(
    ("version", "date"), [("runsc version 0.0~20250303.0", 20250303), ("runsc version release-20260101.1-3-g0a1b2c", 20260101)]
)
def test_versions_of_debian_and_of_gvisor_are_read(stand_in: MakeRunsc, version: str, date: int) -> None:
    stand_in(version=version)
    assert runsc.find().version == date


@pytest.mark.wall
def test_proc_sys_net_is_covered_only_for_one_that_needs_it(stand_in: MakeRunsc) -> None:
    stand_in('if (access("/proc/sys/net/core", F_OK)) { fputs("covered for nothing", stderr); return 1; }')
    assert not runsc.find().sys_net_masked
    stand_in(f'if (!access("/proc/sys/net/core", F_OK)) {{ {MISTAKEN} }}')
    assert runsc.find().sys_net_masked
    stand_in(MISTAKEN)
    with pytest.raises(CannotEnforce, match="root network namespace") as caught:
        runsc.find()
    assert caught.value.code == "gvisor.boot"


@pytest.mark.wall
def test_platforms_are_tried_in_their_order(stand_in: MakeRunsc, started: list[list[str]]) -> None:
    stand_in('if (!on("kvm")) { fputs("not this one", stderr); return 1; }')
    assert runsc.find().platform == "kvm"
    assert [word for words in started for word in words if word.startswith("--platform")] == [
        f"--platform={name}" for name in runsc.PLATFORMS
    ]


@pytest.mark.wall
def test_one_that_hangs_is_ended_whole_and_the_next_platform_is_taken_for_a_while(
    stand_in: MakeRunsc, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = f"mark-{uuid.uuid4()}"
    stand_in(f'if (on("systrap")) return hang("{mark}");')
    monkeypatch.setattr(runsc, "DEADLINE", 2.0)
    before = descriptors(), children()
    found: list[runsc.Found] = []
    worker = threading.Thread(target=lambda: found.append(runsc.find()))
    worker.start()
    assert until(lambda: running(mark)), "its daemon has to run first"
    worker.join()
    assert [one.platform for one in found] == ["ptrace"]
    assert not running(mark) and (descriptors(), children()) == before
    del started[:]
    assert runsc.find() == found[0] and not started
    lines = entry().read_text().split("\n")
    assert int(lines[7]) > 0, "that systrap hung may have been the machine's load: the answer is for a while"
    lines[7] = "1"
    entry().write_text("\n".join(lines))
    stand_in()
    assert runsc.find().platform == "systrap"


@pytest.mark.wall
def test_one_that_hangs_everywhere_is_named_and_not_remembered(stand_in: MakeRunsc, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = f"mark-{uuid.uuid4()}"
    stand_in(f'return hang("{mark}");')
    monkeypatch.setattr(runsc, "DEADLINE", 0.5)
    with pytest.raises(CannotEnforce, match=r"systrap: no answer within 0\.5 s; ptrace: no answer .*kvm: ") as caught:
        runsc.find()
    assert caught.value.code == "gvisor.boot" and "stockade doctor" in caught.value.hint
    assert until(lambda: not running(mark)) and not entry().exists()  # what is killed goes a moment later


@pytest.mark.wall
def test_nothing_of_a_boot_outlives_a_killed_stockade(stand_in: MakeRunsc) -> None:
    mark = f"mark-{uuid.uuid4()}"
    path = stand_in(f'return hang("{mark}");')
    code = f"from stockade.walls import runsc; runsc.PROGRAMS = ({str(path)!r},); runsc.find()"
    with subprocess.Popen([sys.executable, "-c", code]) as finder:
        assert until(lambda: running(mark))
        finder.kill()
    assert until(lambda: not running(mark))


@pytest.mark.wall
def test_one_that_crashes_has_the_last_word(stand_in: MakeRunsc) -> None:
    stand_in('fputs("first\\npanic: \\033[31mno such luck\\n", stderr); abort();')
    with pytest.raises(CannotEnforce) as caught:
        runsc.find()
    assert "systrap: panic:  [31mno such luck; ptrace: " in caught.value.message and caught.value.code == "gvisor.boot"
    stand_in("abort();")
    with pytest.raises(CannotEnforce, match="systrap: status "):
        runsc.find()


@pytest.mark.wall
def test_one_that_is_too_old_is_passed_over_or_named(
    stand_in: MakeRunsc, monkeypatch: pytest.MonkeyPatch, started: list[list[str]]
) -> None:
    old = stand_in(version="runsc version 0.0~20221219.0", name="old")
    with pytest.raises(CannotEnforce, match="20221219") as caught:
        runsc.find()
    assert caught.value.code == "gvisor.old" and "--fix" in caught.value.hint
    assert started == [["--version"]] and not entry().exists(), "it is not booted"
    new = stand_in(name="new", alone=False)
    monkeypatch.setattr(runsc, "PROGRAMS", (str(old), str(new)))
    assert runsc.find().path == str(new)
    shutil.copy(new, old)  # mended: from now on it is the first that will do
    assert runsc.find().path == str(old)


@pytest.mark.wall
def test_one_that_tells_no_version_is_not_called_old(stand_in: MakeRunsc) -> None:
    stand_in(version="no idea")
    with pytest.raises(CannotEnforce, match="does not tell its version") as caught:
        runsc.find()
    assert caught.value.code == "gvisor.boot"


def test_none_at_all_is_an_error_with_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "plain").touch(0o644)
    monkeypatch.setattr(runsc, "PROGRAMS", tuple(str(tmp_path / name) for name in ("folder", "plain", "absent")))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(CannotEnforce) as caught:
        runsc.find()
    assert caught.value.code == "gvisor.missing" and "stockade doctor --wall gvisor --fix" in caught.value.hint


# ---- what is remembered -----------------------------------------------------------------------------------------------------------


@pytest.mark.wall
def test_a_binary_that_changed_is_booted_anew_and_one_that_was_only_copied_is_not(stand_in: MakeRunsc, started: list[list[str]]) -> None:
    path = stand_in()
    assert runsc.find().platform == "systrap"
    del started[:]
    os.utime(path)
    assert runsc.find().platform == "systrap" and started == [["--version"]], "the same bytes: known by their digest"
    del started[:]
    assert runsc.find().platform == "systrap" and not started
    stand_in('return !on("ptrace");')
    assert runsc.find().platform == "ptrace"


@pytest.mark.wall
def test_another_kernel_asks_again(stand_in: MakeRunsc, started: list[list[str]]) -> None:
    stand_in()
    runsc.find()
    lines = entry().read_text().split("\n")
    assert lines[0].endswith(os.uname().release)
    entry().write_text("\n".join([lines[0] + ".1", *lines[1:]]))
    del started[:]
    runsc.find()
    assert len(started) == 2


def claim(platform: str = "ptrace") -> str:
    """The entry of this machine with another platform than the true one, in the right shape."""
    lines = entry().read_text().split("\n")
    assert lines[5] == "systrap"
    return "\n".join([*lines[:5], platform, *lines[6:]])


@pytest.mark.wall
def test_an_entry_in_the_right_shape_and_of_our_own_is_believed(stand_in: MakeRunsc) -> None:
    """The control of the tests below: what they change is what makes the difference."""
    stand_in()
    runsc.find()
    entry().write_text(claim())
    assert runsc.find().platform == "ptrace"


def torn(path: Path) -> None:
    path.write_text(claim()[:-2])


def garbage(path: Path) -> None:
    path.write_bytes(b"\xff\0" * 400)


def a_number_without_end(path: Path) -> None:
    lines = claim().split("\n")
    path.write_text("\n".join([*lines[:4], "9" * 5000, *lines[5:]]))


def no_such_platform(path: Path) -> None:
    path.write_text(claim("host"))


def too_old(path: Path) -> None:
    path.write_text(claim().replace("\n20240729\n", "\n20221219\n"))


def another_program(path: Path) -> None:
    path.write_text(claim().replace("/runsc\n2", "/true\n2"))


def writable_by_others(path: Path) -> None:
    path.write_text(claim())
    path.chmod(0o622)


def a_link(path: Path) -> None:
    other = path.parent / "elsewhere"
    other.write_text(claim())
    path.unlink()
    path.symlink_to(other)


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.wall
@pytest.mark.parametrize(
    "spoil", [torn, garbage, a_number_without_end, no_such_platform, too_old, another_program, writable_by_others, a_link, a_pipe]
)
def test_an_entry_that_is_not_as_we_wrote_it_is_made_again(stand_in: MakeRunsc, spoil: Callable[[Path], None]) -> None:
    stand_in()
    truth = runsc.find()
    spoil(entry())
    assert runsc.find() == truth
    status = entry().lstat()
    assert (status.st_mode, status.st_uid) == (0o100600, os.geteuid()) and entry().read_text().split("\n")[5] == "systrap"
    assert [path.name for path in entry().parent.iterdir() if path.name != "elsewhere"] == ["answer"]


@pytest.mark.wall
@pytest.mark.root
def test_an_entry_of_somebody_else_is_not_believed(stand_in: MakeRunsc) -> None:
    stand_in()
    truth = runsc.find()
    entry().write_text(claim())
    os.chown(entry(), 61739, 61739)
    assert runsc.find() == truth and entry().stat().st_uid == 0


@pytest.mark.wall
def test_a_cache_that_others_can_write_to_is_refused_and_none_at_all_costs_only_time(
    stand_in: MakeRunsc, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stand_in()
    truth = runsc.find()
    entry().parent.chmod(0o777)
    with pytest.raises(StockadeError) as caught:
        runsc.find()
    assert caught.value.code == "place.unsafe"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert runsc.find() == truth


texts = st.text("0123456789\n /.", max_size=60) | st.sampled_from(["", "around", "1", "systrap", "/usr/bin/runsc", "20240729"])


@settings(deadline=None)
@given(st.lists(texts, min_size=7, max_size=9) | st.just([]), st.binary(max_size=40))
def test_no_content_of_an_entry_is_more_than_ignored(tmp_path_factory: pytest.TempPathFactory, lines: list[str], more: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "answer"
    path.write_bytes("\n".join(["around", *lines]).encode() + more)
    path.chmod(0o600)
    kept = runsc._kept(str(path), "around")
    assert kept is None or (kept.found.path in runsc.PROGRAMS and kept.found.platform in runsc.PLATFORMS)
