"""From start to any end: what was asked is passed on, and whoever dies, nothing stays behind (B7, M14, M23)."""

from __future__ import annotations

import json
import marshal
import os
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Literal

import pytest

from session.supervised import Place, adopting, command, offspring
from stockade.core.frozen import replace
from stockade.core.values import Limits, Mount, Policy, Workspace
from walls.boxes import until
from walls.workspace_box import git, repository

pytestmark = pytest.mark.wall


def cgroups() -> set[str]:
    done = subprocess.run(
        ["find", "/sys/fs/cgroup", "-maxdepth", "6", "-type", "d", "-name", "stockade-s*"], capture_output=True, text=True
    )
    return set(done.stdout.split())


def cgroups_of(place: Place) -> set[str]:
    """Those of the sessions of `place`: others on this machine have their own."""
    own = {str(event["session"]) for event in place.ledger()}
    return {path for path in cgroups() if any(session and session in path for session in own)}


def error_of(done: subprocess.CompletedProcess[bytes]) -> dict[str, str]:
    found: dict[str, str] = json.loads(done.stderr.decode().splitlines()[-1])
    return found


# ---- the plain way ----------------------------------------------------------------------------------------------------------------


def test_status_streams_and_signals_of_the_command_come_through(place: Place) -> None:
    done = place.run("/bin/sh", "-c", "cat; echo err >&2; exit 42", stdin=b"in\0\xff")
    assert (done.returncode, done.stdout, done.stderr) == (42, b"in\0\xff", b"err\n")
    assert place.run("/bin/sh", "-c", "kill -SEGV $$").returncode == 128 + signal.SIGSEGV
    assert place.run("no-such-program").returncode == 127
    (place.work / "plain").write_text("x")
    assert place.run("./plain").returncode == 126


def test_messages_that_nobody_reads_hold_up_nobody(place: Place) -> None:
    """What is inside can cause any number of them: canaries, questions. A supervisor that waited for a reader would hold no limit any more."""
    program = "from stockade.session.foreground import say\nfor n in range(5000): say('x' * 100)\nprint('held up by nobody', flush=True)"
    run = subprocess.Popen([sys.executable, "-c", program], env=place.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert run.stdout is not None and run.stderr is not None
        assert select.select([run.stdout], [], [], 30)[0] and run.stdout.read() == b"held up by nobody\n"
        read = run.stderr.read().splitlines()
        assert 100 < len(read) < 5000 and set(read) == {b"stockade: " + b"x" * 100}  # whole lines, as far as there was room
    finally:
        run.kill()
        run.communicate()


def test_a_sandbox_that_never_stands_is_not_waited_for_without_end(place: Place) -> None:
    before = "import stockade.session.foreground as f\nfrom stockade.walls.box import Box\nf.READY = 0.05\nBox._take = lambda *_: None"
    done = place.run("/bin/true", before=before)
    assert done.returncode == 125 and error_of(done)["error"] == "wall.slow"
    assert place.run("/bin/true").returncode == 0


@pytest.mark.parametrize("size", [3 << 20])
def test_large_streams_pass_whole(place: Place, size: int) -> None:
    data = os.urandom(size)
    done = place.run("cat", stdin=data)
    assert done.returncode == 0
    assert done.stdout == data


def test_the_workspace_is_the_current_folder_and_the_home_is_private(place: Place) -> None:
    (place.home / ".netrc").write_text("canary")
    (place.work / "in").write_text("here")
    done = place.run("/bin/sh", "-c", "pwd; cat in; echo out > out; ls -A $HOME; echo x > $HOME/x")
    assert done.stdout.decode().split() == [str(place.work), "here"]
    assert (place.work / "out").read_text() == "out\n"
    assert os.listdir(place.home) == [".netrc"]


def test_nothing_stays_behind_after_a_normal_end(place: Place) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with adopting():
        assert place.run("/bin/sh", "-c", "setsid sleep 300 & sleep 300 & echo started").stdout == b"started\n"
        assert until(lambda: not [line for line in offspring().values() if "sleep 300" in line])
        assert until(lambda: not offspring(), 20), offspring()
    assert Path("/proc/self/mountinfo").read_text() == before
    assert place.ledger() and not cgroups_of(place)
    assert os.listdir(place.work) == []
    assert until(lambda: os.listdir(place.sessions) == [])  # the sweeper works behind the end


def test_the_ledger_has_the_start_before_the_command_and_the_exit_after(place: Place) -> None:
    assert place.run("/bin/sh", "-c", "exit 7").returncode == 7
    events = place.ledger()
    kinds = [event["kind"] for event in events]
    assert kinds[0] == "session.start" and "session.exit" in kinds
    assert [event["code"] for event in events if event["kind"] == "session.exit"] == [7]
    assert len({event["session"] for event in events}) == 1


def test_a_command_that_lives_a_moment_is_looked_at_behind_the_start_and_after_its_end(place: Place) -> None:
    (place.work / "Makefile").write_text("all:\n")
    place.run("/bin/sh", "-c", "sleep 1; echo x >> Makefile")
    events = {event["kind"]: event for event in place.ledger()}
    assert events["workspace.baseline"]["complete"] and events["workspace.report"]["baseline"]
    assert [row["path"] for row in events["workspace.report"]["rows"]] == ["Makefile"]


def test_what_was_not_looked_at_is_told_and_on_record_also_when_nothing_else_is(place: Place) -> None:
    told = "from stockade.cli.aftermath import tell; run = foreground.run; ends = []\nforeground.run = lambda *words, **named: (end := run(*words, **named), tell(end.events))[0]"
    script = "i=0; while [ $i -lt 130 ]; do mkdir d; cd d; i=$((i+1)); done; echo all: > Makefile"
    done = place.run("/bin/sh", "-c", script, before=told)
    assert b"NOT looked at: d/d/d/" in done.stderr, done.stderr
    assert until(lambda: [event for event in place.ledger() if event["kind"] == "workspace.report" and event["not_looked_at"]], 20)


def test_a_look_that_takes_longer_is_told_and_its_report_comes(place: Place) -> None:
    told = """
from stockade.cli.aftermath import tell
run = foreground.run
def foreground_run(*words, **named):
    end = run(*words, **named)
    tell(end.events)
    return end
foreground.run = foreground_run
"""
    late = "import stockade.walls.workspace as w; w.AT_MOST = 0.0"
    for name, before in (("in-time", told), ("late", f"{late}{told}")):
        done = place.run("/bin/sh", "-c", f"echo all: > {name}.mk; sleep 1", before=before)
        assert (f"{name}.mk".encode() in done.stderr) is (name == "in-time"), done.stderr
        assert (b"still being looked at" in done.stderr) is (name == "late"), done.stderr
    assert until(lambda: os.listdir(place.sessions) == [], 20)
    reports = [event for event in place.ledger() if event["kind"] == "workspace.report"]
    assert ["late.mk"] in [[row["path"] for row in report["rows"]] for report in reports]


def test_a_session_that_cannot_be_finished_keeps_no_other_from_it(place: Place) -> None:
    """One directory that the sweeper fails at must not be the end of every sweep, and with it of the ledger's signatures."""
    assert place.run("true").returncode == 0
    assert until(lambda: os.listdir(place.sessions) == [], 20)
    for name, top in (("s1", place.root / "gone"), ("s2", place.work)):
        (place.sessions / name).mkdir(mode=0o700)
        facts = {
            "name": name,
            "top": str(top),
            "started": 1.0,
            "mode": "rw",
            "layer": "",
            "common": "",
            "skip": [],
            "git": None,
            "nested": [],
            "session": "",
        }
        (place.sessions / name / "facts").write_bytes(marshal.dumps(facts))
    assert place.run("true").returncode == 0
    assert until(lambda: os.listdir(place.sessions) == ["s1"] and (place.sessions / "s1/keep").exists(), 20), os.listdir(place.sessions)
    assert "FileNotFoundError" in (place.sessions / "s1/keep").read_text()
    kept = [event["session"] for event in place.ledger() if event["kind"] == "workspace.kept"]
    assert kept == ["s1"]
    assert place.run("true").returncode == 0
    assert until(lambda: os.listdir(place.sessions) == ["s1"], 20)
    assert [event["session"] for event in place.ledger() if event["kind"] == "workspace.kept"] == ["s1"]  # said once


def test_many_short_commands_of_one_workspace_share_one_look(place: Place) -> None:
    (place.work / "d").mkdir()
    for number in range(1600):  # more than are looked at before the prompt returns
        (place.work / f"d/{number}").write_text("")
    short = "import stockade.session.after as a; a.MOMENT = 3600"  # on a machine of any speed
    for number in range(3):
        assert place.run("/bin/sh", "-c", f"echo {number} > Makefile", before=f"{short}; a.sweep = lambda: None").returncode == 0
    assert place.run("true", before=short).returncode == 0
    assert until(lambda: os.listdir(place.sessions) == [], 20)
    (report,) = [event for event in place.ledger() if event["kind"] == "workspace.report"]
    assert [row["path"] for row in report["rows"]] == ["Makefile"] and len(report["sessions"]) == 4


def test_commits_in_repositories_below_the_workspace_come_back_and_many_are_read_only(place: Place) -> None:
    for number in range(2):
        repository(place.work / f"r{number}")
    commit = (
        "cd r1; echo x > x; git add x; git -c user.name=a -c user.email=a@example.test commit -qm inside; git config core.fsmonitor evil"
    )
    assert place.run("/bin/sh", "-ec", commit).returncode == 0
    assert git(place.work / "r1", "log", "--format=%s").split() == ["inside", "first"]
    assert "evil" not in (place.work / "r1/.git/config").read_text()
    for number in range(2, 9):
        repository(place.work / f"r{number}")
    done = place.run("/bin/sh", "-c", f"{commit}; mv ../r2 ../z; git log --format=%s")
    assert done.stdout.decode().split() == ["inside", "first"]
    assert b"Read-only file system" in done.stderr and b"busy" in done.stderr
    assert (place.work / "r2").is_dir()


@pytest.mark.parametrize("repositories", [3, 6])
def test_a_mount_may_cover_a_repository_of_the_workspace(place: Place, repositories: int) -> None:
    for number in range(repositories):
        repository(place.work / f"r{number}")
    (place.root / "other").mkdir()
    (place.root / "other/file").write_text("other")
    policy = Policy(mounts=(Mount(str(place.root / "other"), str(place.work / "r1"), "ro"),))
    for _ in range(2):
        done = place.run("/bin/sh", "-c", "cat r1/file; ls -A r1; echo x > r2/.git/x", policy=policy)
        assert done.stdout == b"otherfile\n" and (b"Read-only" in done.stderr) == (repositories > 4), done.stderr
        assert not (place.work / "r2/.git/x").exists()
    assert (place.work / "r1/.git").is_dir()


@pytest.mark.parametrize("source", [".", "proj", "proj/r1"])
def test_the_workspace_is_not_shown_a_second_time_where_nothing_protects_it(place: Place, source: str) -> None:
    repository(place.work / "proj/r1")
    path = os.path.normpath(place.work / source)
    hook = "proj/r1/.git/hooks/pre-commit"
    modes: tuple[tuple[str, Literal["ro", "rw"], int], ...] = (("/mnt/again", "rw", 125), ("/mnt/again", "ro", 0), (path, "rw", 0))
    for at, mode, status in modes:
        policy = Policy(workspace=Workspace(path="proj"), mounts=(Mount(path, at, mode),))
        done = place.run(
            "/bin/sh", "-c", f"echo x > {place.work}/{hook}; find /mnt -name hooks -exec touch {{}}/pre-commit ';'", policy=policy
        )
        assert (done.returncode == 125) is (status == 125), done.stderr
        if status:
            assert error_of(done)["error"] == "mount.overlap"
        assert not (place.work / hook).exists()


def test_a_repository_in_a_writable_mount_is_read_only_and_a_bare_one_is_refused(place: Place) -> None:
    other = repository(place.root / "other")
    policy = Policy(mounts=(Mount(str(other), "", "rw"),))
    script = f"cd {other}; echo x > new; git log --format=%s; echo x > .git/hooks/pre-commit; mv .git z; git config core.fsmonitor evil"
    done = place.run("/bin/sh", "-c", script, policy=policy)
    assert done.stdout == b"first\n" and done.stderr.count(b"Read-only") + done.stderr.count(b"busy") >= 3
    assert (other / "new").exists() and not (other / ".git/hooks/pre-commit").exists()
    git(place.root, "clone", "-q", "--bare", str(other), "bare")
    for mode, status in (("rw", 125), ("ro", 0)):
        done = place.run("true", policy=Policy(mounts=(Mount(f"{place.root}/bare", "", mode),)))
        assert done.returncode == status
        if status:
            assert error_of(done)["error"] == "mount.git"


# ---- killed -----------------------------------------------------------------------------------------------------------------------


def test_a_supervisor_killed_at_any_moment_leaves_nothing_running(place: Place) -> None:
    """SIGKILL at random moments of the start and the run; orphans would become our children, and are looked for (B7)."""
    choose = random.Random(7)
    before, groups = Path("/proc/self/mountinfo").read_text(), cgroups()
    with adopting():
        for _ in range(25):
            run = place.start("/bin/sh", "-c", "trap '' TERM HUP INT; setsid sleep 300 & sleep 300 & wait")
            time.sleep(choose.uniform(0, 0.2))
            run.kill()
            run.communicate()
        assert until(lambda: not offspring(), 10), offspring()
    assert Path("/proc/self/mountinfo").read_text() == before
    assert os.listdir(place.work) == []
    # What a killed supervisor could not remove itself is taken by the sweeper behind the next session.
    assert place.run("true").returncode == 0
    assert until(lambda: os.listdir(place.sessions) == [], 20)
    left = cgroups() - groups
    assert all(time.time() - os.stat(path).st_mtime < 120 for path in left if os.path.exists(path))


@pytest.mark.root
def test_cgroups_of_killed_supervisors_are_swept(place: Place) -> None:
    groups = cgroups()
    with adopting():
        run = place.start("sleep", "300")
        if not until(lambda: cgroups() - groups, 5):
            run.kill()
            run.communicate()
            assert until(lambda: not offspring())
            pytest.skip("no cgroup can be made here")
        mine = cgroups() - groups
        run.kill()
        run.communicate()
        assert until(lambda: not offspring())
    before = "import stockade.walls.limits as l; l.STALE = 0"
    assert until(lambda: place.run("true", before=before).returncode == 0 and not (cgroups() & mine), 5)


def test_a_directory_that_a_killed_session_was_just_making_is_swept_when_it_is_old_enough(place: Place) -> None:
    assert place.run("true").returncode == 0
    assert until(lambda: os.listdir(place.sessions) == [], 20)
    half = place.sessions / ".s20260101-000000-00000000"
    half.mkdir()
    os.utime(half, (time.time() - 4, time.time() - 4))
    assert place.run("true").returncode == 0
    time.sleep(1)
    assert half.exists()  # it could still be one that is being made
    assert until(lambda: os.listdir(place.sessions) == [], 30)


def test_a_directory_of_a_living_session_is_not_swept(place: Place) -> None:
    run = place.start("/bin/sh", "-c", "echo up; sleep 300")
    try:
        assert run.stdout and run.stdout.readline() == b"up\n"
        (mine,) = place.sessions.iterdir()
        assert place.run("true").returncode == 0
        assert until(lambda: os.listdir(place.sessions) == [mine.name], 20)
        time.sleep(0.3)
        assert mine.exists()
    finally:
        run.kill()
        run.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_are_passed_on(place: Place, number: signal.Signals) -> None:
    run = place.start("/bin/sh", "-c", f"trap 'echo got; exit {40 + number}' {int(number)}; echo up; while :; do sleep 0.05; done")
    assert run.stdout and run.stdout.readline() == b"up\n"
    run.send_signal(number)
    out, _ = run.communicate(timeout=20)
    assert (run.returncode, out) == (40 + number, b"got\n")


def test_a_command_that_ignores_sigterm_is_ended_after_a_grace(place: Place) -> None:
    with adopting():
        run = place.start("/bin/sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.05; done", before="foreground.GRACE = 0.3")
        assert run.stdout and run.stdout.readline() == b"up\n"
        run.terminate()
        _, err = run.communicate(timeout=20)
        assert run.returncode == 137
        assert b"asked to end" in err
        assert until(lambda: not offspring(), 20), offspring()


def test_a_wall_that_breaks_ends_the_run_with_an_error(place: Place) -> None:
    """The agent's sandbox dies under it: the supervisor says so and lives on to record it (M23)."""
    with adopting():
        run = place.start("/bin/sh", "-c", "echo up; sleep 300")
        assert run.stdout and run.stdout.readline() == b"up\n"
        inits = [pid for pid, line in offspring().items() if line.startswith("/proc/self/fd/") and " inside " in line]
        assert inits
        for pid in inits:
            os.kill(pid, signal.SIGKILL)
        try:
            _, err = run.communicate(timeout=20)
        finally:
            run.kill()
        assert run.returncode == 125
        assert json.loads(err.splitlines()[-1])["error"] == "wall.died"
        assert until(lambda: not offspring(), 20), offspring()
    assert [event["code"] for event in place.ledger() if event["kind"] == "session.exit"] == [125]


def test_an_agent_loop_outside_goes_on_after_its_sandbox_died(place: Place) -> None:
    assert place.run("/bin/sh", "-c", "kill -9 -1; echo still").returncode in (0, 137)
    assert place.run("echo", "again").stdout == b"again\n"


# ---- the user's side ---------------------------------------------------------------------------------------------------------------


def test_a_reader_that_leaves_ends_the_command_as_without_us(place: Place) -> None:
    run = place.start("yes")
    assert run.stdout
    assert run.stdout.readline() == b"y\n"
    run.stdout.close()
    assert run.wait(timeout=20) == 128 + signal.SIGPIPE
    assert run.stderr and run.stderr.read() == b""
    run.stderr.close()


def test_a_reader_that_is_stuck_does_not_outlast_the_wall_time(place: Place) -> None:
    run = place.start("yes", policy=Policy(limits=Limits(wall_time=1)))
    assert run.stdout and run.stderr
    try:
        assert run.wait(timeout=20) == 137  # nobody reads its output
    finally:
        run.kill()
    assert b"wall time" in run.stderr.read()
    run.stdout.close()
    run.stderr.close()


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2), (1, 2), (0, 2)])
def test_standard_descriptors_that_are_closed_are_never_mistaken_for_others(place: Place, closed: tuple[int, ...]) -> None:
    """A closed descriptor's number is given to the next open(2): without care the command would read from, or write to, a file of ours."""
    script = 'import os, sys\nfor fd in map(int, sys.argv[1].split(",")): os.close(fd)\nos.execv(sys.argv[2], sys.argv[2:])'
    inner = "cat > got; echo out; echo err >&2; echo done > done"
    words = command(Policy(), ["/bin/sh", "-c", inner])
    import sys

    done = subprocess.run(
        [sys.executable, "-c", script, ",".join(map(str, closed)), *words],
        cwd=place.work,
        env=place.env,
        input=b"input",
        capture_output=True,
        timeout=30,
    )
    assert (place.work / "done").exists(), done
    assert (place.work / "got").read_bytes() == (b"" if 0 in closed else b"input")
    assert done.stdout == (b"" if 1 in closed else b"out\n")
    assert done.stderr == (b"" if 2 in closed else b"err\n")
    files = [path for path in (place.root / "state").rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"out\n" in path.read_bytes() or b"err\n" in path.read_bytes()]


# ---- limits, as the user sees them ---------------------------------------------------------------------------------------------------

NO_CGROUPS = "import stockade.walls.limits as l; l.ROOT = '/no/such/tree'"
BASE = Limits(processes=64, memory=256 << 20, scratch=32 << 20)


def limited(**values: int) -> Policy:
    limits: Limits = replace(BASE, **values)
    return Policy(limits=limits)


def test_wall_time_ends_the_run_and_says_so(place: Place) -> None:
    with adopting():
        done = place.run("/bin/sh", "-c", "echo up; sleep 300", policy=limited(wall_time=1))
        assert (done.returncode, done.stdout) == (137, b"up\n")
        assert b"wall time of 1 s" in done.stderr
        assert until(lambda: not offspring(), 20), offspring()
    assert [event["limit"] for event in place.ledger() if event["kind"] == "limit"] == ["wall_time"]
    assert place.run("sleep", "0.2", policy=limited(wall_time=30)).returncode == 0


def test_an_output_flood_ends_the_run_and_says_so(place: Place) -> None:
    done = place.run("yes", policy=limited(output=1 << 20))
    assert done.returncode == 137
    assert b"1048576 bytes of output" in done.stderr
    assert 1 << 20 <= len(done.stdout) < 3 << 20
    done = place.run("head", "-c", "1000000", "/dev/zero", policy=limited(output=1 << 20))
    assert (done.returncode, len(done.stdout)) == (0, 1_000_000)
    both = "head -c 600000 /dev/zero; head -c 600000 /dev/zero >&2; sleep 20"
    assert place.run("/bin/sh", "-c", both, policy=limited(output=1 << 20)).returncode == 137


BOMB = "import os, time\ntry:\n  for _ in range(300):\n    if os.fork() == 0: time.sleep(5); os._exit(0)\nexcept BlockingIOError: print('refused', flush=True)\ntime.sleep(3)"
HOG = "kept = [b'x' * (1 << 20) for _ in range(600)]; print('had it all')"


@pytest.mark.parametrize("before", ["", NO_CGROUPS], ids=["cgroups", "without"])
def test_a_fork_bomb_is_held_and_the_supervisor_lives(place: Place, before: str) -> None:
    from walls.boxes import PYTHON

    with adopting():
        done = place.run(PYTHON, "-I", "-S", "-c", BOMB, policy=limited(), before=before)
        assert b"refused" in done.stdout or (done.returncode == 137 and b"64 processes" in done.stderr), done
        assert until(lambda: not offspring(), 20), offspring()
    assert place.run("/bin/sh", "-c", "(true & true & wait); echo fine", policy=limited(), before=before).stdout == b"fine\n"


@pytest.mark.parametrize("before", ["", NO_CGROUPS], ids=["cgroups", "without"])
def test_a_memory_hog_is_held_and_the_supervisor_lives(place: Place, before: str) -> None:
    from walls.boxes import PYTHON

    done = place.run(PYTHON, "-I", "-S", "-c", HOG, policy=limited(), before=before)
    assert b"had it all" not in done.stdout
    assert done.returncode != 0 and (b"MemoryError" in done.stderr or b"memory" in done.stderr), done
    assert place.run(PYTHON, "-I", "-S", "-c", HOG.replace("600", "60"), policy=limited(), before=before).stdout == b"had it all\n"


# ---- what makes a start impossible ---------------------------------------------------------------------------------------------------

RAN = ("touch", "ran")


def refused(place: Place, done: subprocess.CompletedProcess[bytes], code: str) -> None:
    assert done.returncode == 125, done
    said = error_of(done)
    assert said["error"] == code, said
    assert said["hint"]
    assert not (place.work / "ran").exists()
    assert until(lambda: not place.sessions.exists() or os.listdir(place.sessions) == [])


@pytest.mark.parametrize(
    ("before", "code"),
    [
        ("import stockade.walls.bubblewrap as b; b.PROGRAMS = ('/no/such/bwrap',)", "bubblewrap.missing"),
        ("import stockade.walls.native as n; n.STEP = '/no/such/step'", "native.missing"),
        ("import stockade.walls.native as n; n.STEP = '/etc/passwd'", "native.missing"),
        ("import sys; sys.modules['pyseccomp'] = None; os.environ['XDG_CACHE_HOME'] = os.environ['HOME'] + '/c'", "seccomp.missing"),
        ("os.environ['XDG_STATE_HOME'] = '/dev/null/state'", "place.unwritable"),
        ("os.environ['XDG_CACHE_HOME'] = '/dev/null/cache'", "place.unwritable"),
        ("os.environ['XDG_STATE_HOME'] = os.environ['HOME']; os.mkdir(os.environ['HOME'] + '/stockade'); os.chmod(os.environ['HOME'] + '/stockade', 0o777); "
         "os.mkdir(os.environ['HOME'] + '/stockade/sessions'); os.chmod(os.environ['HOME'] + '/stockade/sessions', 0o777)", "place.unsafe"),
    ],
)  # fmt: skip
def test_without_a_part_of_the_wall_nothing_runs(place: Place, before: str, code: str) -> None:
    with adopting():
        done = place.run(*RAN, before=before)
        assert done.returncode == 125, done
        said = error_of(done)
        assert said["error"] == code or (code == "place.unsafe" and said["error"].startswith("place.")), said
        assert said["hint"]
        assert not (place.work / "ran").exists()
        assert until(lambda: not offspring(), 10), offspring()


@pytest.mark.parametrize("script", ["echo 'bwrap: Unknown option --disable-userns' >&2; exit 1", "exit 0", "exec sleep 0.1"])
def test_a_bubblewrap_that_is_too_old_or_broken_runs_nothing(place: Place, script: str) -> None:
    fake = place.root / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    done = place.run(*RAN, before=f"import stockade.walls.bubblewrap as b; b.PROGRAMS = ({str(fake)!r},)")
    refused(place, done, "wall.died")
    if "Unknown" in script:
        assert "Unknown option --disable-userns" in error_of(done)["message"]


def test_a_bubblewrap_that_is_not_executable_is_missing(place: Place) -> None:
    fake = place.root / "bwrap"
    fake.write_text("")
    fake.chmod(0o644)
    refused(place, place.run(*RAN, before=f"import stockade.walls.bubblewrap as b; b.PROGRAMS = ({str(fake)!r},)"), "bubblewrap.missing")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("absent", "path.missing"),
        ("file", "policy.forbidden-path"),
        ("~", "policy.forbidden-path"),
        ("/", "policy.forbidden-path"),
        ("/proc/self", "policy.forbidden-path"),
        ("/dev", "policy.forbidden-path"),
    ],
)
def test_a_workspace_that_cannot_be_one(place: Place, path: str, code: str) -> None:
    (place.work / "file").write_text("")
    refused(place, place.run(*RAN, policy=Policy(workspace=Workspace(path=path))), code)


def test_a_link_to_the_home_is_the_home(place: Place) -> None:
    (place.work / "link").symlink_to(place.home)
    refused(place, place.run(*RAN, policy=Policy(workspace=Workspace(path="link"))), "policy.forbidden-path")
    refused(place, place.run(*RAN, policy=Policy(mounts=(Mount(str(place.work / "link"), "/mnt/x"),))), "policy.forbidden-path")
    refused(
        place,
        place.run(*RAN, policy=Policy(mounts=(Mount(f"{place.root}/state", "/mnt/x"),))),
        "policy.forbidden-path",
    )


def test_a_workspace_given_through_a_symlink_is_the_real_folder(place: Place) -> None:
    (place.root / "alias").symlink_to("work")
    done = place.run("/bin/sh", "-c", "pwd; touch here", policy=Policy(workspace=Workspace(path="../alias")))
    assert done.stdout.decode().strip() == str(place.work)
    assert (place.work / "here").exists()


@pytest.mark.parametrize("free", [0, 1])
def test_a_full_disk_is_a_typed_error_and_nothing_runs(place: Place, free: int) -> None:
    """The state directory is a tiny file system that is full: no receipt, no effect."""
    state = place.root / "state"
    state.mkdir()
    script = f'mount -t tmpfs -o size=8k,nr_inodes={40 * free + 2} none "$0" && head -c 100000 /dev/zero > "$0/fill" 2>/dev/null; exec "$@"'
    done = subprocess.run(
        ["unshare", "-Urm", "/bin/sh", "-c", script, str(state), *command(Policy(), RAN)],
        cwd=place.work,
        env=place.env,
        capture_output=True,
        timeout=30,
    )
    assert done.returncode == 125, done
    said = error_of(done)
    assert said["hint"] and said["error"] != "bug"
    assert not (place.work / "ran").exists()


def test_files_without_end_do_not_hide_one_from_the_report(place: Place) -> None:
    """What is too much to be listed is counted, where a hundred others are shown in its place; what could not be looked at is named."""
    noise = (
        "i=0; while [ $i -lt 600 ]; do mkdir $i; echo x >$i/conftest.py; i=$((i+1)); done; mkdir zz; echo x >zz/conftest.py; echo x >.envrc"
    )
    deep = "i=0; while [ $i -lt 140 ]; do mkdir d; cd d; i=$((i+1)); done; echo x >.envrc"
    run = [sys.executable, "-P", "-m", "stockade", "run", "--", "/bin/sh", "-c", f"{noise}; {deep}"]
    done = subprocess.run(run, cwd=place.work, env=place.env, capture_output=True, text=True, timeout=120)
    said = done.stderr if done.returncode == 0 else f"{done.returncode} {done.stderr}"
    parts = [event for event in place.ledger() if event["kind"] == "workspace.report" and "rows" in event]
    rows = [row["path"] for part in parts for row in part["rows"]]
    assert len(rows) == 500 and "zz/conftest.py" not in rows and parts[0]["left_out"] == 102 and not any("cut" in part for part in parts)
    assert "602 files that other programs will execute later" in said and "102 of them are listed nowhere" in said, said
    assert said.index(".envrc") < said.index("conftest.py") and "NOT looked at: d/d/d/" in said
