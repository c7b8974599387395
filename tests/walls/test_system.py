"""What a box sees of the host: the manifest and nothing else; its own processes; no keyring; nothing writable that is not its own (M12, M13, M21, B3, B10)."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from conftest import unavailable
from stockade.core.errors import StockadeError, WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Mount
from stockade.walls import bubblewrap, gvisor, system
from walls.boxes import HOME, PYTHON, PYTHON_MOUNTS, Inside, inside, require, unconfined_python, until

if TYPE_CHECKING:
    from stockade.walls.contract import Wall

walls = pytest.mark.wall


@pytest.fixture(scope="module")
def box() -> Iterator[Inside]:
    require()
    with inside() as made:
        yield made


# ---- what a user has only so much of ------------------------------------------------------------------------------------------------

TAKE = {
    "inotify": "while n < most and libc.inotify_init1(0) >= 0: n += 1",
    "timers": "ident = ctypes.c_void_p()\nwhile n < most and libc.timer_create(1, None, ctypes.byref(ident)) == 0: n += 1",
}


@walls
@pytest.mark.parametrize("what", TAKE)
def test_a_sandbox_leaves_most_of_what_a_user_has_to_programs_outside(what: str) -> None:
    import resource

    limit = resource.getrlimit(resource.RLIMIT_SIGPENDING)[0]
    if what == "inotify":
        with open("/proc/sys/user/max_inotify_instances") as file:
            limit = int(file.read())
        if os.statvfs("/proc/sys").f_flag & os.ST_RDONLY:
            unavailable("limits of a namespace", "/proc/sys is read-only")
    if not 0 < limit < 1 << 20:
        unavailable("limits of a user", f"{what}: there is no limit here")
    code = f"import ctypes, sys\nlibc, n, most = ctypes.CDLL(None), 0, int(sys.argv[1])\n{TAKE[what]}\nprint(n)"
    most = str(limit // 2)
    assert int(unconfined_python(code, most).text) == limit // 2
    require()
    with inside(network="door") as box:
        taken = int(box.python(code, most).text)
    assert limit // 8 <= taken <= limit // 4


# ---- the private /etc and the layout ----------------------------------------------------------------------------------------------


def test_etc_is_copied_once_and_holds_nothing_of_the_hosts_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = system.etc(HOME)
    assert system.etc(HOME) == found  # the second time costs a read
    assert system.etc("/home/other") != found  # the home is in /etc/passwd
    assert system.etc(HOME) == found  # a session and its gate take turns
    names = {str(path.relative_to(found)) for path in Path(found).rglob("*")}
    assert {"passwd", "group", "hosts", "hostname", "nsswitch.conf", "resolv.conf", "ssl/certs/ca-certificates.crt"} <= names
    assert not names & {"shadow", "gshadow", "sudoers", "fstab", "machine-id", "ssh", "crontab", "environment"}
    assert not [path for path in Path(found).rglob("*") if path.is_file() and not path.is_symlink() and not path.stat().st_mode & 0o004]
    assert len((Path(found) / "passwd").read_text().splitlines()) <= 3
    assert (Path(found) / "ssl/certs/ca-certificates.crt").read_text() == ""  # the gate's own is mounted here
    assert stat.S_IMODE(Path(found).parent.stat().st_mode) == 0o700


def test_a_torn_stamp_means_making_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = system.etc(HOME)
    (stamp,) = Path(found).parent.glob("stamp-*")
    whole = stamp.read_bytes()
    for content in (b"", whole[:20], whole.split(b"\n=")[0], b"\xff" * 40, whole.split(b"\n=")[0] + b"\n=\xff\xfe"):
        stamp.write_bytes(content)
        assert os.path.isfile(f"{system.etc(HOME)}/passwd")


def test_only_what_the_world_may_read_is_copied_and_links_stay_links(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "open/below").mkdir(parents=True)
    (source / "closed").mkdir()
    for name, mode in (
        ("open/a", 0o644),
        ("open/below/run", 0o755),
        ("open/private", 0o600),
        ("open/group", 0o640),
        ("closed/inside", 0o644),
    ):
        (source / name).write_text(name)
        (source / name).chmod(mode)
    (source / "closed").chmod(0o750)
    (source / "open/link").symlink_to("../closed/inside")
    (source / "open/awk.1.gz").symlink_to("/usr/share/postgresql/15/man/man7/VACUUM.7.gz")
    os.mkfifo(source / "open/pipe")
    system._copy(str(source), str(target))
    found = {str(path.relative_to(target)): oct(path.lstat().st_mode & 0o777) for path in target.rglob("*")}
    assert found == {"open": "0o755", "open/a": "0o644", "open/below": "0o755", "open/below/run": "0o755", "open/link": "0o777"}
    assert (target / "open/below/run").read_text() == "open/below/run" and os.readlink(target / "open/link") == "../closed/inside"


def test_an_etc_that_cannot_be_made_is_a_typed_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises((WallFailed, StockadeError)) as caught:
        system.etc(HOME)
    assert caught.value.hint


def test_top_level_links_are_as_on_the_host() -> None:
    for target, path in system.links():
        assert (os.path.islink(path) and os.readlink(path) == target) or (target == path and os.path.isdir(path))
    assert {"/bin", "/lib"} <= {path for _, path in system.links()}


# ---- files ------------------------------------------------------------------------------------------------------------------------


def mounts_of(made: Inside) -> dict[str, tuple[str, str, set[str]]]:
    """Mount point: (root within its file system, type, options), as proc_pid_mountinfo(5) says it inside."""
    found = {}
    for line in made.run("cat", "/proc/self/mountinfo").text.splitlines():
        before, after = line.split(" - ")
        fields = before.split()
        found[fields[4]] = (fields[3], after.split()[0], set(fields[5].split(",")))
    return found


@walls
def test_the_mounts_are_the_manifest(tmp_path: Path) -> None:
    require()
    (tmp_path / "w").mkdir()
    (tmp_path / "d").mkdir()
    with inside(Mount(f"{tmp_path}/w", "/work/w", "rw"), Mount(f"{tmp_path}/d", "/work/w/data", "ro"), network="door") as made:
        found = mounts_of(made)
    devices = {f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty")}
    ours = {"/", "/usr", "/etc", "/proc", "/proc/sys", "/dev", "/dev/pts", "/dev/shm", "/tmp", "/var/tmp", HOME, "/work/w", "/work/w/data"}
    ours |= {path for target, path in system.links() if target == path} | {mount.target for mount in PYTHON_MOUNTS}
    # bubblewrap covers some places in /proc by itself, and we what shows the host's kernel.
    extra = {path for path in set(found) - devices - ours if not path.startswith("/proc/")}
    assert not extra
    assert ours <= set(found)
    assert (tmp_path / "w/data").is_dir()  # bubblewrap needs a place to mount on
    for path, (_, kind, options) in found.items():
        assert "nosuid" in options, path
        if path not in devices | {"/dev/pts"}:
            assert "nodev" in options, path
        writable = path in {"/proc", "/dev/pts", "/dev/shm", "/tmp", "/var/tmp", HOME, "/work/w", *devices}
        assert ("rw" in options) == writable, path
        if path in ("/tmp", "/dev/shm", HOME, "/"):
            assert kind == "tmpfs", path
    # Nothing of the host's but what was named: every root within a file system is one of these.
    assert {root for root, kind, _ in found.values() if kind not in ("tmpfs", "proc", "devpts", "devtmpfs")} - {
        *("/usr", "/sys", "/"),
        *(f"{tmp_path}/{name}" for name in "wd"),
        *(mount.source for mount in PYTHON_MOUNTS),
    } == {found["/etc"][0]} - {"/"}


@walls
def test_a_planted_canary_is_nowhere_to_be_read(tmp_path: Path) -> None:
    """The home, another project and /tmp of the host: a whole search of the file tree finds nothing, not even as root (M13)."""
    require()
    canary = f"canary-{os.urandom(8).hex()}"
    (tmp_path / "w").mkdir()
    planted = [tmp_path / name for name in (".aws/credentials", ".ssh/id_ed25519", ".netrc", "other/.env")]
    for path in planted:
        path.parent.mkdir(exist_ok=True)
        path.write_text(canary)
    search = f"""
import os
hits = []
for top in ("/tmp", "/home", "/root", "/var", "/run", "/etc", "/work", "/dev/shm", "/opt", "/srv", "/mnt", {str(tmp_path)!r}):
    for folder, _, files in os.walk(top):
        for name in files:
            try:
                with open(os.path.join(folder, name), "rb") as f: hits += [name] * ({canary!r}.encode() in f.read(65536))
            except OSError: pass
print(hits, [os.path.exists(p) for p in {[str(path) for path in planted]!r}])
"""
    assert unconfined_python(f"print([open(p).read() == {canary!r} for p in {[str(path) for path in planted]!r}])").text == str([True] * 4)
    with inside(Mount(f"{tmp_path}/w", "/work", "rw"), home=str(tmp_path)) as made:
        assert made.python(search).text == "[] [False, False, False, False]"
        assert made.sh(f"echo mine > {tmp_path}/.netrc && cat {tmp_path}/.netrc").text == "mine"  # the twin: a home of its own
    assert planted[2].read_text() == canary


WRITE = """
import errno, json, os, sys
out = {}
for path in sys.argv[1:]:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOCTTY, 0o600); os.close(fd); out[path] = "ok"
    except OSError as e: out[path] = errno.errorcode[e.errno]
print(json.dumps(out))
"""


@walls
def test_writes_outside_fail_with_an_error_and_writes_inside_work(box: Inside) -> None:
    bad = [
        "/new",
        "/usr/new",
        "/usr/bin/env",
        "/etc/passwd",
        "/etc/new",
        "/var/new",
        "/run/new",
        "/home/new",
        "/dev/new",
        "/sys/new",
        "/root/new",
        "/bin/new",
    ]
    good = ["/tmp/new", f"{HOME}/new", "/dev/shm/new", "/var/tmp/new", "/dev/null"]
    found = json.loads(box.python(WRITE, *bad, *good).text)
    assert {path for path in bad if found[path] == "ok"} == set()
    assert {path: found[path] for path in good} == dict.fromkeys(good, "ok")
    assert box.sh("mknod /tmp/n b 254 0").code != 0
    assert box.sh("mkdir /tmp/m && mount -t tmpfs none /tmp/m").code != 0
    assert box.sh("rm /dev/null || mv /dev/zero /dev/x").code != 0


@walls
def test_nothing_in_proc_can_be_written_but_ones_own_processes(box: Inside) -> None:
    """Run by root this is an escape: core_pattern, sysrq-trigger and others ask for no capability."""
    code = """
import os
found = []
for folder, folders, files in os.walk("/proc"):
    if folder == "/proc":
        folders[:] = [f for f in folders if not f.isdigit() and f not in ("self", "thread-self")]
    for name in files:
        path = os.path.join(folder, name)
        try: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)); found.append(path)
        except OSError: pass
print(found)
"""
    assert box.python(code).text == "[]"


@walls
@pytest.mark.root
def test_the_control_for_proc_sys_it_is_writable_for_root_in_plain_bubblewrap() -> None:
    code = "import os; os.close(os.open('/proc/sys/kernel/core_pattern', os.O_WRONLY)); print('open')"
    assert unconfined_python(code).text == "open"


@walls
def test_what_only_root_may_read_in_proc_is_an_error_for_root_inside_too(box: Inside) -> None:
    """Masked files give an error, never an empty content that would be a lie (B10); the host's are found by their modes, not by a list."""
    secret = [
        f"/proc/{name}" for name in os.listdir("/proc") if os.path.isfile(f"/proc/{name}") and not os.stat(f"/proc/{name}").st_mode & 0o004
    ]
    assert {"/proc/kmsg", "/proc/slabinfo", "/proc/vmallocinfo"} & set(secret)
    for path in [*secret, "/proc/keys", "/proc/key-users", "/proc/timer_list"]:
        done = box.run("timeout", "5", "head", "-c1", path)
        assert done.out == b"", path
        assert done.code not in (0, 124) and done.err, path
    assert box.run("head", "-c1", "/proc/cpuinfo").out  # the twin


@walls
def test_landlock_holds_where_the_mounts_would_not(tmp_path: Path) -> None:
    """The evidence that it is on: the same box without it lets these through, and mounts alone know no such difference."""
    require()
    attacks = ["/proc/self/oom_score_adj", "/proc/self/comm", "/proc/self/timerslack_ns"]
    with inside() as made:
        found = json.loads(made.python(WRITE, *attacks).text)
        assert set(found.values()) == {"EACCES"}
        assert made.box.landlock >= 1
    with inside(change=lambda plan: replace(plan, landlock=0)) as made:
        assert "ok" in json.loads(made.python(WRITE, *attacks).text).values()
        assert made.box.landlock == 0


# ---- processes --------------------------------------------------------------------------------------------------------------------


@walls
def test_only_its_own_processes_are_visible(box: Inside) -> None:
    seen = box.python("import os; print(sorted(int(p) for p in os.listdir('/proc') if p.isdigit()) == [1, os.getpid()])")
    assert until(lambda: box.python("import os; print(len([p for p in os.listdir('/proc') if p.isdigit()]))").text == "2"), seen
    assert str(os.getpid()) not in box.sh("cat /proc/[0-9]*/status").text
    assert box.run("cat", "/proc/1/comm").text != Path("/proc/1/comm").read_text().strip()


INIT = """
import ctypes, errno, json, os, signal
libc = ctypes.CDLL(None, use_errno=True)
out = {}
def attempt(name, what):
    try: what(); out[name] = "ok"
    except OSError as e: out[name] = errno.errorcode[e.errno]
for name in ("mem", "environ", "auxv", "maps", "syscall", "stack", "io"):
    attempt(name, lambda: open("/proc/1/" + name, "rb").read(1))
attempt("write mem", lambda: open("/proc/1/mem", "r+b"))
attempt("fdinfo", lambda: open("/proc/1/fdinfo/0").read())
for name in ("fd/0", "fd/3"):  # their numbers may be listed by root, what they are may not
    attempt(name, lambda: os.readlink("/proc/1/" + name))
    attempt("open " + name, lambda: os.open("/proc/1/" + name, os.O_RDONLY))
for name in ("map_files",): attempt(name, lambda: os.listdir("/proc/1/" + name))
for name in ("cwd", "root", "exe", "ns/mnt", "ns/user"): attempt(name, lambda: os.readlink("/proc/1/" + name))
def call(*args):
    if libc.syscall(*args) < 0: raise OSError(ctypes.get_errno(), "")
attempt("attach", lambda: call(101, 16, 1, 0, 0))
attempt("seize", lambda: call(101, 0x4206, 1, 0, 0))
attempt("pidfd_getfd", lambda: call(438, os.pidfd_open(1), 0, 0))
attempt("process_vm_readv", lambda: call(310, 1, None, 0, None, 0, 0))
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass
print(json.dumps(out))
"""


@walls
def test_its_init_can_be_neither_read_nor_traced_nor_killed(box: Inside) -> None:
    found = json.loads(box.python(INIT).text)
    found.pop("process_vm_readv")  # of nothing: succeeds or not, no byte is read
    assert "ok" not in found.values(), found
    time.sleep(0.05)
    assert box.run("echo", "alive").text == "alive"
    twin = """
import os, time
child = os.fork()
if child == 0: time.sleep(5); os._exit(0)
print(len(os.listdir(f"/proc/{child}/fd")), os.readlink(f"/proc/{child}/cwd")); os.kill(child, 9)
"""
    assert box.python(twin).text.startswith("3 /")


@walls
def test_orphans_are_reaped(box: Inside) -> None:
    assert box.sh("for i in 1 2 3 4 5; do (sleep 0.01 &) ; done").code == 0
    assert until(lambda: "Z" not in box.sh("cat /proc/[0-9]*/stat | cut -d' ' -f3").text.split())


# ---- privileges -------------------------------------------------------------------------------------------------------------------


MARK = """
import os, sys
place = sys.argv[1]
def attempt(name, call):
    try: call(f"{place}/{name}")
    except OSError: pass
for bits in (0o4755, 0o2755):
    attempt(f"open{bits}", lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, bits)))
    attempt(f"mknod{bits}", lambda path: os.mknod(path, 0o100000 | bits))
    def changed(path):
        open(path, "w").close()
        os.chmod(path, bits)
    attempt(f"chmod{bits}", changed)
    def by_descriptor(path):
        fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o755)
        os.fchmod(fd, bits)
    attempt(f"fchmod{bits}", by_descriptor)
    def by_name(path):
        fd = os.open(place, os.O_TMPFILE | os.O_WRONLY, bits)
        os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)
    attempt(f"tmpfile{bits}", by_name)
os.umask(0)
os.close(os.open(f"{place}/benign", os.O_CREAT | os.O_WRONLY, 0o644))
os.chmod(f"{place}/benign", 0o1775)
print("benign")
"""


def marked(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)}


@walls
@pytest.mark.parametrize("wall", [bubblewrap, gvisor], ids=lambda wall: str(wall.NAME))
def test_no_program_that_lends_its_owners_identity_is_left_in_a_mount(tmp_path: Path, wall: Wall) -> None:
    """On the host it would be executed as whoever owns it: the user, or root."""
    require(wall)
    loose, held = tmp_path / "loose", tmp_path / "held"
    loose.mkdir()
    held.mkdir()
    assert unconfined_python(MARK, str(loose)).text == "benign"
    assert {"".join(filter(str.isalpha, name)) for name in marked(loose)} == {"open", "mknod", "chmod", "fchmod", "tmpfile"}
    with inside(Mount(str(held), "/work", "rw"), wall=wall) as made:
        assert made.python(MARK, "/work").text == "benign"
    assert marked(held) == set() and (held / "benign").exists()


@walls
def test_set_user_id_programs_gain_nothing(tmp_path: Path) -> None:
    require()
    code = "import os; print(os.getresuid(), os.getresgid())"
    with inside() as made:
        mine = made.python(code).text
        for program in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/newgrp", "/usr/bin/sudo"):
            if os.path.exists(program):
                assert made.run(program, "-c", "id").text != "uid=0(root)" or os.getuid() == 0
        assert made.python(code).text == mine
        done = made.python(
            "import os\nfor f in (os.setuid, os.setgid):\n  try: f(12345)\n  except OSError as e: print(e.errno)\nos.setgroups([0])"
        )
        assert done.text.split() == ["22", "22"]  # EINVAL: no such id in its user namespace
        assert b"PermissionError" in done.err


KEY = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
def keyctl(*args):
    r = libc.syscall(250, *args); return r if r >= 0 else -ctypes.get_errno()
buffer = ctypes.create_string_buffer(100)
if sys.argv[1] == "plant":
    import os
    keyctl(1, None)  # a session keyring of our own, which what we start inherits
    key = libc.syscall(248, b"user", b"stockade-test", sys.argv[2].encode(), len(sys.argv[2]), -3)
    assert key > 0, ctypes.get_errno()
    keyctl(5, key, 0x3f3f3f3f)  # KEYCTL_SETPERM
    os.environ["KEY"] = str(key)
    os.execvp(sys.argv[3], sys.argv[3:])
key = keyctl(10, -3, b"user", b"stockade-test", 0)  # KEYCTL_SEARCH
size = keyctl(11, int(sys.argv[2]) if len(sys.argv) > 2 else key, buffer, 100)
print(key if key < 0 else "found", size if size < 0 else buffer.raw[:size].decode())
"""


@walls
def test_the_callers_session_keyring_is_out_of_reach(tmp_path: Path) -> None:
    """A key in the caller's keyring is read through plain bubblewrap, and not from inside (B3)."""
    require()
    import subprocess
    import sys

    driver = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from walls.boxes import inside, unconfined_python
code = {KEY!r}
print("control:", unconfined_python(code, "read").text)
from stockade.walls import seccomp
with inside() as made:
    print("inside:", made.python(code, "read").text, made.python(code, "read", os.environ["KEY"]).text)
    print("listed:", "stockade-test" in made.sh("cat /proc/keys").text)
"""
    secret = f"canary{os.urandom(6).hex()}"
    planted = [PYTHON, "-I", "-S", "-c", KEY, "plant", secret, sys.executable, "-c", driver]
    done = subprocess.run(planted, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert lines["control"] == f"found {secret}"
    assert lines["inside"] == "-1 -1 -1 -1"  # EPERM by the filter
    assert lines["listed"] == "False"


@walls
def test_ipc_and_host_names_are_its_own(box: Inside) -> None:
    assert box.run("cat", "/proc/sys/kernel/hostname").text == system.HOSTNAME
    key = int.from_bytes(os.urandom(3), "big") | 0x57000000  # whatever a failing run leaves behind does not disturb the next
    code = f"import ctypes; libc = ctypes.CDLL(None); print(libc.shmget({key}, 4096, 0o1600) >= 0)"
    assert box.python(code).text == "True"
    probe = f"import ctypes; libc = ctypes.CDLL(None); print(libc.shmget({key}, 0, 0) >= 0)"
    assert box.python(probe).text == "True"
    assert unconfined_python(probe).text == "False"
    for name in ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup"):
        assert box.run("readlink", f"/proc/self/ns/{name}").text != os.readlink(f"/proc/self/ns/{name}"), name


@walls
def test_a_signal_to_everything_inside_reaches_only_what_is_inside(box: Inside) -> None:
    sleeper = box.start("sleep", "60")
    assert box.python("import os; os.kill(-1, 9); print('sent')").text == "sent"
    assert box.box.wait(sleeper) == 128 + signal.SIGKILL
    assert box.run("echo", "alive").text == "alive"
