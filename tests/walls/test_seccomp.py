"""The system call filters: the compiled programs mean what the tables say, and the kernel refuses from inside what it grants outside (B2, B3, M10)."""

from __future__ import annotations

import json
import os
import platform
import signal
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import unavailable
from stockade.core.errors import CannotEnforce
from stockade.core.values import Mount
from stockade.walls import seccomp
from walls.boxes import PYTHON, Inside, compiled, inside, require, unconfined, unconfined_python

ALLOW, ENOSYS, EPERM, KILL = 0x7FFF0000, 0x00050000 | 38, 0x00050000 | 1, 0x80000000
X32 = 0x40000000


# ---- the compiled programs, run by an interpreter of our own ----------------------------------------------------------------------


def evaluate(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What a classic BPF program says about one call (seccomp(2), Documentation/networking/filter.rst)."""
    data = struct.pack("<iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *(*arguments, *[0] * (6 - len(arguments))))
    code = [struct.unpack_from("<HBBI", program, at) for at in range(0, len(program), 8)]
    at: int = 0
    accumulator: int = 0
    index: int = 0
    memory = [0] * 16
    while True:
        op, yes, no, k = code[at]
        at += 1
        if op == 0x20:
            accumulator = int(struct.unpack_from("<I", data, k)[0])
        elif op == 0x54:
            accumulator &= k
        elif op == 0x05:
            at += k
        elif op in (0x15, 0x25, 0x35, 0x45):
            holds = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[op]
            at += yes if holds else no
        elif op == 0x06:
            return int(k)
        elif op == 0x02:
            memory[k] = accumulator
        elif op == 0x60:
            accumulator = memory[k]
        elif op == 0x07:
            index = accumulator
        elif op == 0x87:
            accumulator = index
        else:
            raise AssertionError(f"unknown instruction {op:#x}")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, bytes]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        found = seccomp.filters()
    except CannotEnforce as error:
        unavailable("seccomp", str(error))
    data = [os.read(fd, 1 << 20) for fd in found]
    for fd in found:
        os.close(fd)
    return data[0], data[1]


def numbers(names: str) -> dict[str, int]:
    import pyseccomp

    found = {name: pyseccomp.resolve_syscall(pyseccomp.system_arch(), name) for name in names.split()}
    return {name: number for name, number in found.items() if number >= 0}


NATIVE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}.get(platform.machine(), 0)
native_only = pytest.mark.skipif(not NATIVE, reason="the numbers of this architecture are not written down here")


@native_only
def test_every_call_gets_what_the_tables_say(programs: tuple[bytes, bytes]) -> None:
    allowed = set(numbers(" ".join(seccomp.ALLOWED.values())).values())
    refused = set(numbers(seccomp.REFUSED).values())
    judged = set(numbers("clone socket socketpair").values())  # by their arguments, below
    assert len(allowed) > 200 and len(refused) > 40 and not allowed & refused
    for number in range(600):
        if number not in judged:
            said = evaluate(programs[0], NATIVE, number)
            assert said == (ALLOW if number in allowed else EPERM if number in refused else ENOSYS), number


@native_only
def test_dangerous_calls_are_on_no_allowlist() -> None:
    """Written out again, so that a slip in the tables is noticed."""
    dangerous = numbers(
        "unshare setns clone3 mount umount2 pivot_root chroot move_mount open_tree fsopen fsmount fsconfig mount_setattr keyctl add_key request_key bpf "
        "io_uring_setup io_uring_enter io_uring_register userfaultfd perf_event_open init_module finit_module delete_module kexec_load kexec_file_load "
        "reboot swapon swapoff open_by_handle_at personality syslog acct sethostname setdomainname iopl ioperm lookup_dcookie quotactl "
        "fanotify_init vhangup clock_settime settimeofday"
    )
    assert not set(dangerous) & set(" ".join(seccomp.ALLOWED.values()).split())


@native_only
def test_arguments_decide_about_namespaces_and_socket_families(programs: tuple[bytes, bytes]) -> None:
    calls = numbers("clone socket socketpair")

    def says(name: str, *arguments: int) -> int:
        return evaluate(programs[0], NATIVE, calls[name], *arguments)

    assert says("clone", 0x01200011) == says("clone", 0x003D0F00) == ALLOW  # fork(3) and pthread_create(3)
    for flag in (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000):
        assert says("clone", flag) != ALLOW
        assert says("clone", 0x01200011 | flag) != ALLOW
        assert says("clone", flag | 1 << 40) != ALLOW
    for family in range(64):
        if family != 16:
            assert (says("socket", family, 1, 0) == ALLOW) == (family in (1, 2, 10)), family
        assert (says("socketpair", family, 1, 0) == ALLOW) == (family == 1), family
    for protocol in range(40):
        assert (says("socket", 16, 3, protocol) == ALLOW) == (protocol == 0)


@native_only
def test_requests_of_ioctl_are_refused_however_the_number_is_written(programs: tuple[bytes, bytes]) -> None:
    ioctl = numbers("ioctl")["ioctl"]
    for request in (0x5412, 0x541C, *seccomp.BEYOND):
        for high in (0, 1 << 32, 0xFFFFFFFF << 32):  # the kernel looks at 32 bits only
            assert evaluate(programs[1], NATIVE, ioctl, 0, request | high) == EPERM
    for request in (0x5401, 0x5413, 0x541B, 0x40049409, 0x80086601):  # TCGETS, TIOCGWINSZ, FIONREAD, FICLONE, FS_IOC_GETFLAGS
        assert evaluate(programs[1], NATIVE, ioctl, 0, request) == ALLOW


@native_only
def test_a_foreign_abi_is_killed_whatever_it_calls(programs: tuple[bytes, bytes]) -> None:
    for program in programs:
        for arch in (0x40000003, 0x40000028, 0xC0000015, 0):
            for number in (0, 1, 20, 39, 186, 317):
                assert evaluate(program, arch, number) == KILL
    if platform.machine() == "x86_64":
        for number in range(600):
            assert evaluate(programs[0], NATIVE, X32 | number) == KILL, number


def test_the_cache_is_private_read_again_and_refused_when_it_is_no_filter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: tuple[bytes, bytes]
) -> None:
    directory = tmp_path / "stockade/seccomp"
    files = sorted(directory.iterdir())
    assert len(files) == 2  # no temporary file stays
    assert [stat.S_IMODE(path.stat().st_mode) for path in (directory, *files)] == [0o700, 0o600, 0o600]
    stamps = [path.stat().st_mtime_ns for path in files]
    for fd in seccomp.filters():
        os.close(fd)
    assert [path.stat().st_mtime_ns for path in files] == stamps
    for content in (b"", b"12345"):
        files[0].write_bytes(content)
        with pytest.raises(CannotEnforce) as caught:
            seccomp.filters()
        assert caught.value.code == "seccomp.cache"
    files[0].unlink()
    for fd in seccomp.filters():  # one is missing: both are made again
        os.close(fd)
    files[0].unlink()
    files[0].symlink_to("/dev/null")
    with pytest.raises((CannotEnforce, OSError)):
        seccomp.filters()


# ---- the kernel, asked from inside ------------------------------------------------------------------------------------------------

CALLS = """
import ctypes, errno, json, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
out = {}
def call(name, number, *args):
    pid = os.fork()
    if pid == 0:  # some of these change the caller
        result = libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in args])
        os._exit(0 if result >= 0 else ctypes.get_errno())
    status = os.waitpid(pid, 0)[1]
    code = os.waitstatus_to_exitcode(status)
    out[name] = "ok" if code == 0 else errno.errorcode.get(code, "signal %d" % -code)
args = (ctypes.c_uint64 * 11)(0x10000000, 0, 0, 0, 17)  # struct clone_args
buffer = ctypes.create_string_buffer(4096)
call("unshare user", 272, 0x10000000)
call("unshare mount", 272, 0x00020000)
call("clone user", 56, 0x10000000 | 17, 0, 0, 0, 0)
call("clone pid", 56, 0x20000000 | 17, 0, 0, 0, 0)
call("clone3 user", 435, args, 88)
call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, None)
call("umount", 166, b"/tmp", 2)
call("pivot_root", 155, b"/tmp", b"/tmp")
call("chroot", 161, b"/tmp")
call("fsopen", 430, b"tmpfs", 0)
call("open_tree", 428, -100, b"/", 1)
call("mount_setattr", 442, -100, b"/", 0, buffer, 32)
call("keyctl", 250, 0, -3, 0)
call("add_key", 248, b"user", b"x", b"y", 1, -3)
call("request_key", 249, b"user", b"x", None, 0)
call("io_uring_setup", 425, 4, buffer)
call("userfaultfd", 323, 1)
call("perf_event_open", 298, buffer, 0, -1, -1, 0)
call("bpf", 321, 0, buffer, 120)
call("personality", 135, 0x0040000)
call("open_by_handle_at", 304, -100, buffer, 0)
call("sethostname", 170, b"evil", 4)
call("kcmp", 312, os.getpid(), os.getpid(), 0, 0, 0)
call("getpid", 39)
print(json.dumps(out))
"""
x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86-64")


@pytest.fixture(scope="module")
def box() -> Iterator[Inside]:
    require()
    with inside() as made:
        yield made


@x86_64
@pytest.mark.wall
def test_the_kernel_refuses_inside_what_it_grants_outside(box: Inside) -> None:
    done = box.python(CALLS)
    found = json.loads(done.out)
    assert {found.pop("getpid"), found.pop("kcmp")} == {"ok"}
    assert set(found.values()) <= {"EPERM", "ENOSYS"}, found
    outside = json.loads(unconfined_python(CALLS, options=["--cap-add", "ALL", "--uid", "0", "--gid", "0"]).out)
    for name in (
        "unshare user",
        "unshare mount",
        "clone user",
        "clone pid",
        "clone3 user",
        "mount",
        "chroot",
        "keyctl",
        "add_key",
        "personality",
    ):
        assert outside[name] == "ok", (name, outside)


@pytest.mark.wall
def test_threads_and_processes_work(box: Inside) -> None:
    code = """
import os, subprocess, sys, threading
threads = [threading.Thread(target=lambda: None) for _ in range(8)]
[t.start() for t in threads]; [t.join() for t in threads]
print(subprocess.run([sys.executable, "-c", "print(7)"], capture_output=True, text=True).stdout.strip(), os.waitstatus_to_exitcode(os.system("exit 3")))
"""
    assert box.python(code).text == "7 3"


@pytest.mark.wall
def test_filters_and_no_new_privileges_are_on_for_every_process(box: Inside) -> None:
    for path in ("self", "1"):
        status = dict(line.split(":\t", 1) for line in box.run("cat", f"/proc/{path}/status").text.splitlines() if ":\t" in line)
        assert (status["Seccomp"], status["Seccomp_filters"], status["NoNewPrivs"]) == ("2", "2", "1")
        assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}


FOREIGN = """
#include <unistd.h>
static long call(long number) { long r; __asm__ volatile(INSTRUCTION : "=a"(r) : "a"(number) : "rcx", "r11", "memory"); return r; }
int main(void) { call(NUMBER); return write(1, "survived", 8) == 8 ? 0 : 1; }
"""


@x86_64
@pytest.mark.wall
@pytest.mark.parametrize(("instruction", "number"), [("int $0x80", 20), ("syscall", X32 | 39)])
def test_a_foreign_abi_ends_the_process(tmp_path: Path, instruction: str, number: int) -> None:
    require()
    program = compiled(FOREIGN, f'-DINSTRUCTION="{instruction}"', f"-DNUMBER={number}L")
    twin = compiled(FOREIGN, '-DINSTRUCTION="syscall"', "-DNUMBER=39L")
    assert unconfined(program).text == "survived"
    with inside(Mount(os.path.dirname(program), "/bad"), Mount(os.path.dirname(twin), "/good")) as made:
        assert made.run("/good/program").text == "survived"
        done = made.run("/bad/program")
        assert (done.code, done.out) == (128 + signal.SIGSYS, b"")


STICK = """
import errno, fcntl, os, pty, sys
child, fd = pty.fork()
if child == 0:
    for letter in b"injected":
        for request in (0x5412, 0x5412 | 1 << 32):
            try: fcntl.ioctl(0, request & 0xffffffff, bytes([letter]))
            except OSError as e: os.write(1, errno.errorcode[e.errno].encode()); os._exit(0)
    os.write(1, b"INJECTED"); os._exit(0)
out = b""
try:
    while piece := os.read(fd, 100): out += piece
except OSError: pass
text = out.decode()
print("INJECTED" if "INJECTED" in text else text.strip())
"""


@pytest.mark.wall
def test_no_keystrokes_can_be_pushed_into_a_terminal_of_its_own(box: Inside) -> None:
    control = unconfined_python(STICK).text
    if os.path.exists("/proc/sys/dev/tty/legacy_tiocsti") and Path("/proc/sys/dev/tty/legacy_tiocsti").read_text().strip() == "1":
        assert control == "INJECTED"
    else:
        assert control in ("INJECTED", "EIO")  # a kernel may refuse by itself, and with another error than ours
    assert box.python(STICK).text == "EPERM"


@pytest.mark.wall
def test_an_interpreter_is_there_for_these_tests(box: Inside) -> None:
    assert box.run(PYTHON, "-c", "import ctypes; print(1)").text == "1"
