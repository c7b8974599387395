"""A box runs commands faithfully: status, bytes, descriptors and environment are what was asked for, and nothing else gets in (M21, B4)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from session.supervised import adopting, offspring
from stockade.core.errors import CannotEnforce, WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Mount
from stockade.walls import bubblewrap, native
from stockade.walls.bubblewrap import Plan
from walls.boxes import ENVIRONMENT, HOME, PYTHON, SMALL, Inside, children, descriptors, inside, own_places, require, unconfined, until

pytestmark = pytest.mark.wall


@pytest.fixture(scope="module")
def box() -> Iterator[Inside]:
    require()
    with inside() as made:
        yield made


# ---- how it ends ----------------------------------------------------------------------------------------------------------------


def test_every_exit_code_comes_through(box: Inside) -> None:
    pending = {code: box.start("/bin/sh", "-c", f"exit {code}") for code in range(256)}
    assert {code: box.box.wait(child) for code, child in pending.items()} == {code: code for code in range(256)}


def test_every_deadly_signal_comes_through(box: Inside) -> None:
    harmless = {
        signal.SIGCHLD,
        signal.SIGCONT,
        signal.SIGURG,
        signal.SIGWINCH,
        signal.SIGSTOP,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    }
    deadly = [number for number in signal.valid_signals() if number not in harmless]
    # The interpreter ignores some by itself, so the shell sends it to itself.
    pending = {number: box.start("/bin/sh", "-c", f"kill -{int(number)} $$; sleep 5; exit 7") for number in deadly}
    assert {number: box.box.wait(child) for number, child in pending.items()} == {number: 128 + int(number) for number in deadly}


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (("no-such-program",), 127),
        (("/no/such/program",), 127),
        (("/etc/passwd",), 126),
        (("/tmp",), 126),
        (("/etc/passwd/x",), 126),
        (("",), 127),
    ],
)
def test_what_cannot_be_executed(box: Inside, argv: tuple[str, ...], code: int) -> None:
    child = box.start(*argv)
    assert box.box.wait(child) == code
    assert child.error


def test_a_script_without_a_first_line_runs_as_the_shell_would(box: Inside) -> None:
    assert box.sh("echo 'echo script $1' > /tmp/s && chmod +x /tmp/s").code == 0
    assert box.run("/tmp/s", "one").text == "script one"


def test_a_working_directory_that_is_not_there_is_an_error(box: Inside) -> None:
    child = box.start("true", cwd="/no/such")
    assert box.box.wait(child) != 0
    assert child.error


def test_signals_reach_the_whole_process_group(box: Inside) -> None:
    child = box.start("/bin/sh", "-c", "sleep 60 & sleep 60; wait")
    assert until(lambda: box.sh("pgrep -c -x sleep || ls /proc/*/comm | xargs grep -lx sleep | wc -l").text >= "2")
    box.box.signal(child, signal.SIGTERM)
    assert box.box.wait(child) == 128 + signal.SIGTERM
    box.box.signal(child, signal.SIGTERM)  # it ended: nothing happens
    assert until(lambda: box.sh("cat /proc/[0-9]*/comm | grep -cx sleep").text == "0")


# ---- what it is given -----------------------------------------------------------------------------------------------------------

ECHO = "import os, sys, json; print(json.dumps([[a.encode('utf-8', 'surrogateescape').hex() for a in sys.argv[1:]], {k.hex(): v.hex() for k, v in os.environb.items()}]))"
words = st.binary(max_size=60).filter(lambda data: b"\0" not in data).map(os.fsdecode)
variable = st.binary(min_size=1, max_size=20).filter(lambda data: b"\0" not in data and b"=" not in data).map(os.fsdecode)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(argv=st.lists(words, max_size=6), env=st.dictionaries(variable, words, max_size=6))
@example(
    argv=["", "-", "--", "\n", "'\"$(id)`", os.fsdecode(bytes(range(1, 256)))],
    env={"A": "", "b c": "=", os.fsdecode(b"\xff\n"): os.fsdecode(b"\x80=\xfe")},
)
def test_arguments_and_environment_of_any_bytes_arrive_exactly(box: Inside, argv: list[str], env: dict[str, str]) -> None:
    # -E and -s by single options: -I would also be fine, but LC_CTYPE coercion must stay off so that no variable is added.
    env = {name: value for name, value in env.items() if name not in ("LC_CTYPE", "LC_ALL", "LANG")} | {"PYTHONCOERCECLOCALE": "0"}
    done = box.run(PYTHON, "-S", "-s", "-c", ECHO, *argv, env=env)
    assert done.code == 0, done.err
    found_argv, found_env = json.loads(done.out)
    assert found_argv == [os.fsencode(word).hex() for word in argv]
    assert found_env == {os.fsencode(name).hex(): os.fsencode(value).hex() for name, value in env.items()}


@pytest.mark.parametrize("where", ["argv", "name", "value", "cwd"])
def test_a_nul_byte_is_refused_before_anything_runs(box: Inside, where: str) -> None:
    argv, env, cwd = ["echo", "x"], {"A": "b"}, "/"
    if where == "argv":
        argv.append("a\0b")
    elif where == "name":
        env["A\0B"] = "c"
    elif where == "value":
        env["C"] = "a\0b"
    else:
        cwd = "/tmp\0x"
    with pytest.raises(ValueError, match="NUL"):
        box.box.spawn(argv, env=env, cwd=cwd)
    with pytest.raises(ValueError, match="empty"):
        box.box.spawn([], env=env)


def test_an_environment_is_exactly_what_was_asked_for(box: Inside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKADE_TEST_SECRET", "canary")
    assert box.run("/usr/bin/env", env={"A": "1"}).out == b"A=1\n"
    assert box.run("/usr/bin/env", env={}).out == b""
    assert b"canary" not in box.run("/bin/sh", "-c", "cat /proc/*/environ").out


def test_large_arguments_and_environments(box: Inside) -> None:
    argv = ["x" * 100_000] * 8
    env = {f"V{number}": "y" * 100_000 for number in range(8)}
    done = box.run(
        PYTHON, "-I", "-S", "-c", "import os, sys; print(sum(map(len, sys.argv[1:])), sum(map(len, os.environ.values())))", *argv, env=env
    )
    sizes = done.text.split()
    assert sizes[0] == "800000" and int(sizes[1]) >= 800_000
    for count in (30, 100):  # beyond what execve(2) takes, and beyond what init takes: an error, and the box stays
        with_it = box.box.spawn(["true", *["x" * 100_000] * count], env={})
        assert box.box.wait(with_it) == 126, count
        assert with_it.error, count
    assert box.run("echo", "alive").text == "alive"


def test_the_working_directory(box: Inside) -> None:
    assert box.run("pwd", cwd="/usr/lib").text == "/usr/lib"
    assert box.sh("mkdir -p '/tmp/a b/\tc' && echo made").text == "made"
    assert box.run("pwd", cwd="/tmp/a b/\tc").out == b"/tmp/a b/\tc\n"


def test_umask_core_dumps_and_session(box: Inside) -> None:
    assert box.sh("umask").text == "0022"
    assert box.python("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))").text == "(0, 0)"
    found = box.python("import os; print(os.getsid(0) == os.getpid() == os.getpgid(0)); open('/dev/tty')")
    assert found.text == "True"  # a session of its own ...
    assert b"No such device" in found.err  # ... without the user's terminal


# ---- streams --------------------------------------------------------------------------------------------------------------------


def _feed(fd: int, size: int) -> str:
    digest, block = hashlib.sha256(), os.urandom(1 << 20)
    while size:
        piece = memoryview(block)[: min(size, len(block))]
        digest.update(piece)
        size -= len(piece)
        while piece:
            piece = piece[os.write(fd, piece) :]
    os.close(fd)
    return digest.hexdigest()


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 64 << 20])
def test_any_bytes_of_any_size_pass_both_ways(box: Inside, size: int) -> None:
    inner_in, ours_in = os.pipe()
    ours_out, inner_out = os.pipe()
    child = box.box.spawn(["cat"], env=ENVIRONMENT, stdin=inner_in, stdout=inner_out)
    os.close(inner_in)
    os.close(inner_out)
    sent: list[str] = []
    feeder = threading.Thread(target=lambda: sent.append(_feed(ours_in, size)))
    feeder.start()
    digest, count = hashlib.sha256(), 0
    while piece := os.read(ours_out, 1 << 20):
        digest.update(piece)
        count += len(piece)
    feeder.join()
    os.close(ours_out)
    assert (count, digest.hexdigest()) == (size, sent[0])
    assert box.box.wait(child) == 0


def test_a_reader_that_leaves_ends_the_writer_by_sigpipe(box: Inside) -> None:
    ours, inner = os.pipe()
    child = box.box.spawn(["yes"], env=ENVIRONMENT, stdout=inner)
    os.close(inner)
    os.read(ours, 10)
    os.close(ours)
    assert box.box.wait(child) == 128 + signal.SIGPIPE


def test_streams_that_are_not_given_are_dev_null(box: Inside) -> None:
    code = "import os, sys; assert not sys.stdin.read(); print('lost'); open('/tmp/streams', 'w').write(' '.join(os.readlink(f'/proc/self/fd/{n}') for n in range(3)))"
    assert box.box.wait(box.start(PYTHON, "-I", "-S", "-c", code)) == 0
    assert box.run("cat", "/tmp/streams").text.split() == ["/dev/null"] * 3


# ---- descriptors ----------------------------------------------------------------------------------------------------------------

HELD = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd'))[:-1])"  # the last is the listing's own


def test_descriptors_are_handed_over_in_order_and_nothing_else_is_inherited(box: Inside) -> None:
    leak_read, leak = os.pipe()
    os.set_inheritable(leak, True)  # what a careless caller leaves open
    os.set_inheritable(leak_read, True)
    try:
        assert box.python(HELD).text == "[0, 1, 2]"
        files = [os.memfd_create(f"m{number}") for number in range(3)]
        for number, fd in enumerate(files):
            os.write(fd, b"file %d" % number)
        done = box.python(HELD + "; print([os.pread(fd, 20, 0) for fd in (3, 4, 5)])", fds=files)
        assert done.text.splitlines() == ["[0, 1, 2, 3, 4, 5]", "[b'file 0', b'file 1', b'file 2']"]
        for fd in files:
            os.close(fd)
        # Also a box that is made while the leak exists, and its init, bubblewrap and all between.
        with inside() as other:
            assert other.python(HELD).text == "[0, 1, 2]"
            ours = os.readlink(f"/proc/self/fd/{leak}")
            for pid in _tree(other.box.pid):
                if os.access(f"/proc/{pid}/fd", os.R_OK):  # an ordinary user may not look at what is not dumpable
                    assert ours not in [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
        code = f"import os; print(os.path.exists('/proc/self/fd/{leak}'))"
        assert unconfined(PYTHON, "-I", "-S", "-c", code, fds=[leak]).text == "True"  # the control: plain bubblewrap hands it on
    finally:
        os.close(leak)
        os.close(leak_read)


def _tree(pid: int) -> list[int]:
    below = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [pid, *[each for child in below for each in _tree(child)]]


def test_many_descriptors_at_once(box: Inside) -> None:
    pairs = [os.pipe() for _ in range(30)]
    try:
        flat = [fd for pair in pairs for fd in pair]
        assert (
            box.python(
                "import os; print([os.write(fd + 1, b'%d' % fd) and os.read(fd, 9) == b'%d' % fd for fd in range(3, 63, 2)].count(True))",
                fds=flat,
            ).text
            == "30"
        )
        with pytest.raises((OSError, WallFailed, ValueError)):
            box.box.spawn(["true"], env={}, fds=flat + flat)
    finally:
        for fd in flat:
            os.close(fd)


def test_a_hundred_commands_leak_nothing(box: Inside) -> None:
    box.run("true")
    before = descriptors(), children()
    init = _tree(box.box.pid)[1]
    held = len(os.listdir(f"/proc/{init}/fd")) if os.getuid() == 0 else 0
    for _ in range(50):
        assert box.run("true").code == 0
        assert box.box.wait(box.start("no-such-program")) == 127
    assert (descriptors(), children()) == before
    assert os.getuid() or until(lambda: len(os.listdir(f"/proc/{init}/fd")) == held)  # it tells us first, and closes then
    assert until(lambda: len(_tree(box.box.pid)) == 2)


# ---- one box, many commands -----------------------------------------------------------------------------------------------------


def test_commands_of_one_box_share_files_and_processes_and_other_boxes_share_nothing(box: Inside) -> None:
    marker = f"marker-{os.urandom(4).hex()}"
    assert (
        box.sh(f"echo here > /tmp/{marker}; echo here > {HOME}/{marker}; echo here > /dev/shm/{marker}; echo here > /var/tmp/{marker}").code
        == 0
    )
    child = box.start("sleep", "61")
    places = f"cat /tmp/{marker} {HOME}/{marker} /dev/shm/{marker} /var/tmp/{marker}"
    assert box.sh(places).text.split() == ["here"] * 4
    assert until(lambda: "61" in box.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").text)
    with inside() as other:
        assert other.sh(places).text == ""
        assert "61" not in other.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").text
    assert not Path(f"/tmp/{marker}").exists()
    box.box.signal(child, signal.SIGKILL)
    assert box.box.wait(child) == 137


def test_closing_ends_everything_at_once(tmp_path: Path) -> None:
    require()
    with inside() as made:
        for _ in range(3):
            made.start("/bin/sh", "-c", "trap '' TERM HUP INT; setsid sleep 600 & sleep 600")
        assert until(lambda: len(_tree(made.box.pid)) >= 8)
        inner = _tree(made.box.pid)
        made.box.close()
        assert not [pid for pid in inner if os.path.exists(f"/proc/{pid}")]
        assert made.box.close() == 0  # twice is fine
        with pytest.raises((WallFailed, OSError, ValueError)):
            made.box.spawn(["true"], env={})


def test_a_box_whose_init_is_killed_says_so_and_ends() -> None:
    require()
    with inside() as made:
        child = made.start("sleep", "600")
        made.box.step()
        made.box.step()
        tree = _tree(made.box.pid)
        os.kill(tree[1], signal.SIGKILL)
        with pytest.raises(WallFailed) as caught:
            made.box.wait(child)
        assert caught.value.code == "wall.died"
        assert until(lambda: not [pid for pid in tree[1:] if os.path.exists(f"/proc/{pid}")])


def test_two_hundred_commands_at_once(box: Inside) -> None:
    pending = [box.start("/bin/sh", "-c", "sleep 0.2") for _ in range(100)]
    assert [box.box.wait(child) for child in pending] == [0] * 100


# ---- mounts ---------------------------------------------------------------------------------------------------------------------


def test_a_workspace_is_writable_and_a_read_only_mount_is_not(tmp_path: Path) -> None:
    require()
    work, data = tmp_path / "work", tmp_path / "data"
    work.mkdir()
    data.mkdir()
    (data / "f").write_text("kept")
    with inside(Mount(str(work), "/w", "rw"), Mount(str(data), "/d", "ro")) as made:
        assert (
            made.sh(
                "cp /d/f /w/copy && mkdir /w/sub && mv /w/copy /w/sub/f && echo more >> /w/sub/f && ln -s f /w/sub/l && cat /w/sub/l"
            ).code
            == 0
        )
        for attack in (
            "echo x > /d/f",
            "echo x > /d/g",
            "rm -f /d/f",
            "mv /d/f /d/g",
            "touch /d/f",
            "chmod 777 /d/f",
            "ln /d/f /w/hard",
            "truncate -s0 /d/f",
            "mkdir /d/s",
        ):
            done = made.sh(attack)
            assert done.code != 0 and done.err, attack  # an error, never silence
    assert (work / "sub/f").read_text() == "keptmore\n"
    assert [path.name for path in data.iterdir()] == ["f"]
    assert (data / "f").read_text() == "kept"


def test_symlinks_in_the_workspace_that_point_outside_lead_nowhere(tmp_path: Path) -> None:
    require()
    (tmp_path / "work").mkdir()
    (tmp_path / "secret").write_text("canary")
    for name, to in (
        ("abs", f"{tmp_path}/secret"),
        ("rel", "../secret"),
        ("dir", str(tmp_path)),
        ("proc", "/proc/1/root"),
        ("self", f"/proc/self/root{tmp_path}/secret"),
    ):
        os.symlink(to, tmp_path / "work" / name)
    os.symlink("abs", tmp_path / "work" / "chain")
    with inside(Mount(str(tmp_path / "work"), "/w", "rw")) as made:
        for path in ("/w/abs", "/w/rel", "/w/dir/secret", "/w/chain", "/w/self", "/w/proc/etc/shadow", "/w/../secret"):
            assert b"canary" not in made.run("cat", path).out, path
        made.sh("cd /w; for l in abs rel chain self; do echo overwritten > $l; done")
    assert (tmp_path / "secret").read_text() == "canary"


def test_a_source_reached_through_a_symlink_is_refused(tmp_path: Path) -> None:
    """What was judged is what is opened: a folder swapped for a link between the two is noticed (M19)."""
    require()
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    for source in ("link", "link/deep"):
        with pytest.raises(CannotEnforce) as caught, inside(Mount(f"{tmp_path}/{source}", "/w", "rw")):
            pass
        assert caught.value.code == "mount.symlink"
    with pytest.raises(CannotEnforce) as caught, inside(Mount(f"{tmp_path}/absent", "/w", "rw")):
        pass
    assert caught.value.code == "mount.source"
    before = descriptors(), children()
    with pytest.raises(CannotEnforce), inside(Mount(f"{tmp_path}/link", "/w", "rw"), network="door"):
        pass
    assert (descriptors(), children()) == before


def test_a_swap_after_opening_changes_nothing(tmp_path: Path) -> None:
    require()
    (tmp_path / "work").mkdir()
    (tmp_path / "work/mine").write_text("judged")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/secret").write_text("canary")
    with inside(Mount(str(tmp_path / "work"), "/w", "rw")) as made:
        # The box is still being built: the kernel holds the folder by descriptor, not by name.
        os.rename(tmp_path / "work", tmp_path / "moved")
        os.symlink("other", tmp_path / "work")
        try:
            assert made.sh("ls /w").text == "mine"
        except WallFailed as error:  # or bubblewrap was just between resolving it and mounting it, saw that, and gave up
            assert "Race condition" in error.message


def test_a_plan_and_a_door_that_do_not_match_start_nothing() -> None:
    require()
    with own_places():
        plan = bubblewrap.plan(Confinement(limits=SMALL), bubblewrap.look(HOME))
        for wrong in (replace(plan, network="door"),):
            with pytest.raises(WallFailed):
                bubblewrap.open_box(wrong, None)


def test_a_bubblewrap_that_fails_says_so_in_its_own_words(tmp_path: Path) -> None:
    """Too old, broken, or in the wrong place: nothing runs, nothing is left."""
    require()
    before = descriptors(), children()
    for script, said in (
        ("echo 'Unknown option --disable-userns' >&2; exit 1", "Unknown option"),
        ("exit 0", "ended"),
        ("kill -9 $$", "ended"),
    ):
        program = tmp_path / f"bwrap{len(said)}"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        with inside(change=lambda plan, path=str(program): replace(plan, bwrap=path)) as made:  # type: ignore[misc]
            with pytest.raises(WallFailed) as caught:
                made.run("touch", f"{tmp_path}/marker")
            assert said in str(caught.value)
    with inside(change=lambda plan: replace(plan, bwrap="/no/such/bwrap")) as made, pytest.raises(WallFailed):
        made.run("touch", f"{tmp_path}/marker")
    assert not (tmp_path / "marker").exists()
    assert (descriptors(), children()) == before


def test_a_helper_that_is_not_there_or_not_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require()
    (tmp_path / "plain").write_text("not a program")
    for path in ("/no/such/step", str(tmp_path / "plain")):
        monkeypatch.setattr(native, "STEP", path)
        with pytest.raises((WallFailed, OSError)) as caught, inside():
            pass
        assert isinstance(caught.value, WallFailed), caught.value
        assert caught.value.code == "native.missing"


def test_a_landlock_that_the_kernel_does_not_have_stops_the_start() -> None:
    require()
    with inside(change=lambda plan: replace(plan, landlock=99)) as made:
        with pytest.raises(WallFailed) as caught:
            made.run("true")
        assert "landlock" in str(caught.value)


def test_a_landlock_rule_for_a_path_that_is_not_there_stops_the_start() -> None:
    require()
    with inside(change=lambda plan: replace(plan, rules=(*plan.rules, "rw:/no/such"))) as made, pytest.raises(WallFailed):
        made.run("true")


def test_init_answers_nothing_but_its_socket(box: Inside) -> None:
    """The control socket is not the command's: every Unix socket that a command holds is its own."""
    code = "import os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in range(9) if os.path.lexists(f'/proc/self/fd/{fd}')])"
    assert "socket:" not in box.python(code).text
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert "socket:" in box.python(code, fds=[theirs.fileno()]).text


# ---- paths held in place -----------------------------------------------------------------------------------------------------------


def held(tmp_path: Path, *words: str) -> tuple[Path, Callable[[Plan], Plan]]:
    """A folder with `a/b/file`, and what holds these paths below it."""
    require()
    top = tmp_path / "w"
    (top / "a/b").mkdir(parents=True)
    (top / "a/b/file").write_text("mine")
    return top, lambda plan: replace(plan, held=tuple(word.replace(":", f":{top}/") for word in words))


def test_control_what_is_not_held_can_be_changed_and_moved(tmp_path: Path) -> None:
    top, change = held(tmp_path)
    with inside(Mount(str(top), str(top), "rw"), network="door", change=change) as made:
        assert made.sh("echo evil > a/b/file && mv a z", cwd=str(top)).code == 0
    assert (top / "z/b/file").read_text() == "evil\n"


def test_a_held_path_can_be_neither_moved_nor_removed_and_a_read_only_one_not_written(tmp_path: Path) -> None:
    top, change = held(tmp_path, "rw:a", "ro:a/b")
    attempts = (
        "mv a z", "mv a/b z", "rm -rf a/b", "rmdir a", "echo evil > a/b/file", "echo evil > a/b/new", "rm a/b/file", "chmod 777 a/b",
        "ln -s /tmp a/b/x", "umount a/b", "mount -o remount,rw a/b", "mkdir z && mv -T z a/b",
    )  # fmt: skip
    with inside(Mount(str(top), str(top), "rw"), network="door", change=change) as made:
        for script in attempts:
            assert made.sh(script, cwd=str(top)).code != 0, script
        assert made.sh("echo fine > a/new && cat a/b/file && mkdir -p y/a && mv a/new y/a/", cwd=str(top)).text == "mine"
    assert (top / "a/b/file").read_text() == "mine" and (top / "y/a/new").read_text() == "fine\n"


@pytest.mark.parametrize("word", ["ro:gone", "xx:a", "ro:link/b", "a"])
def test_a_path_that_cannot_be_held_stops_the_start_and_leaves_no_process(tmp_path: Path, word: str) -> None:
    top, change = held(tmp_path, "rw:a", word)
    (top / "link").symlink_to("a")
    before = children()
    with inside(Mount(str(top), str(top), "rw"), network="door", change=change) as made, pytest.raises(WallFailed):
        made.run("true")
    assert until(lambda: children() <= before)


def test_without_a_door_nothing_can_be_held(tmp_path: Path) -> None:
    top, change = held(tmp_path, "ro:a")
    with pytest.raises(CannotEnforce), inside(Mount(str(top), str(top), "rw"), change=change):
        pass


def test_a_bubblewrap_that_fails_leaves_no_holder(tmp_path: Path) -> None:
    _, change = held(tmp_path, "ro:a")
    before = children()
    with adopting():
        with (
            inside(network="door", change=lambda plan: replace(change(plan), arguments=("--no-such-option",))) as made,
            pytest.raises(WallFailed),
        ):
            made.run("true")
        assert until(lambda: not [line for line in offspring().values() if "launch" in line])
    assert until(lambda: children() <= before)
