"""The small C program and the host's side of it: what it drops before the sandbox starts, and that nothing it says from inside can hurt us (M27)."""

from __future__ import annotations

import os
import resource
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.errors import WallFailed
from stockade.walls import native
from stockade.walls.box import Box
from walls.boxes import PYTHON, descriptors, require
from walls.test_system import KEY

DONTWAIT = socket.MSG_DONTWAIT

# ---- notes from inside, forged ----------------------------------------------------------------------------------------------------

kinds = st.sampled_from([ord(letter) for letter in "DRSFQEX"]) | st.integers(0, 2**32 - 1)
notes = st.tuples(
    kinds, st.integers(0, 6), st.integers(-(2**31), 2**31 - 1) | st.integers(0, 0xFFFF), st.binary(max_size=52), st.integers(0, 4)
)
messages = notes | st.binary(max_size=200)


class Forger:
    """The other end of a box's socket, in the hands of whoever took over its init."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
        self.box = Box(ours, 0, stderr)
        self._stderr = stderr

    def send(self, message: tuple[int, int, int, bytes, int] | bytes) -> None:
        if isinstance(message, bytes):
            self.theirs.send(message)
            return
        kind, ident, value, text, count = message
        data = struct.pack("=IIi52s", kind, ident, value, text)
        socket.send_fds(self.theirs, [data], [self.theirs.fileno()] * count)

    def close(self) -> None:
        self.theirs.close()
        self.box._news.close()
        self.box._sock.close()
        os.close(self._stderr)


@settings(deadline=None, max_examples=60)
@given(st.lists(messages, max_size=12), st.booleans())
def test_forged_notes_end_in_an_exit_code_or_a_typed_error_and_leak_nothing(
    forged: list[tuple[int, int, int, bytes, int] | bytes], tty: bool
) -> None:
    before = descriptors()
    forger = Forger()
    spawned = [forger.box.spawn(["true"], env={}, tty=tty) for _ in range(3)]
    try:
        for message in forged:
            forger.send(message)
        try:
            while True:
                forger.box.step(DONTWAIT)
        except (WallFailed, BlockingIOError):
            pass
        for child in spawned:
            if child.status is not None or child.error:
                assert 0 <= child.exit_code <= 255
            if child.terminal >= 0:
                assert tty
                os.close(child.terminal)
    finally:
        forger.close()
    assert descriptors() == before


def test_a_note_of_another_size_is_malformed_and_end_of_file_is_the_end() -> None:
    for size in (1, 63, 65, 500):
        forger = Forger()
        forger.send(b"x" * size)
        with pytest.raises(WallFailed) as caught:
            forger.box.step(DONTWAIT)
        assert caught.value.code == "native.protocol"
        forger.close()
    forger = Forger()
    forger.theirs.close()
    with pytest.raises(WallFailed):
        forger.box.step(DONTWAIT)
    assert forger.box.dead
    forger.close()


def test_what_was_said_before_the_end_is_heard_also_where_a_request_was_left_unread() -> None:
    """The kernel says that a request was left unread before it gives what had been said."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        native.request(ours, "X", 1)
        theirs.send(native.note("E"))
        theirs.close()
        said = native.receive(ours)
        assert said is not None and said[0] == "E"
        assert native.receive(ours) is None


def test_a_status_that_is_no_end_is_malformed() -> None:
    for value in (0x7F, 0xFFFF, 0x137F):  # stopped, continued: waitpid(2) never says so here
        forger = Forger()
        child = forger.box.spawn(["true"], env={})
        forger.send((ord("Q"), child.ident, value, b"", 0))
        with pytest.raises(WallFailed):
            forger.box.step(DONTWAIT)
        forger.close()


def test_the_words_of_a_failed_step_carry_no_terminal_control() -> None:
    """They are quoted to the user; `cli.complain` filters, and so this only has to stay text."""
    forger = Forger()
    forger.send((ord("E"), 0, 1, b"mount\x1b]0;evil\x07\xff", 0))
    with pytest.raises(WallFailed) as caught:
        forger.box.step(DONTWAIT)
    assert caught.value.code == "wall.setup"
    assert "\x1b" not in caught.value.message
    forger.close()


# ---- the program ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _built(request: pytest.FixtureRequest) -> Iterator[None]:
    if request.node.get_closest_marker("wall"):
        require()
    yield


def launch(*options: str, argv: list[str], inherit: tuple[int, ...] = ()) -> tuple[int, bytes]:
    """Run `step launch OPTION... -- ARGV` and return its status and what it wrote to standard error."""
    stderr = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        pid = native.spawn(["launch", *options, "--", *argv], inherit, stderr)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return status, os.pread(stderr, 65536, 0)
    finally:
        os.close(stderr)


def python(code: str) -> list[str]:
    return [PYTHON, "-I", "-S", "-c", f"import os, sys; sys.stdout = sys.stderr\n{code}"]


@pytest.mark.wall
def test_launch_drops_descriptors_environment_and_terminal() -> None:
    leak, other = os.pipe()
    os.set_inheritable(leak, True)
    try:
        code = "print([fd for fd in range(3, 300) if os.path.exists(f'/proc/self/fd/{fd}')], dict(os.environ).keys() - {'LC_CTYPE'}, os.getsid(0) == os.getpid())"
        status, said = launch(f"keep={other}", argv=python(code), inherit=(other, leak))
        assert (status, said.decode().strip()) == (0, f"[{other}] set() True")
    finally:
        os.close(leak)
        os.close(other)


@pytest.mark.wall
def test_launch_sets_limits_and_never_above_its_own() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    code = "import resource; print(resource.getrlimit(7), resource.getrlimit(4), resource.getrlimit(1))"
    status, said = launch("rlimit=7:99", "rlimit=4:0", "rlimit=1:12345", argv=python(code))
    assert (status, said.decode().strip()) == (0, "(99, 99) (0, 0) (12345, 12345)")
    status, said = launch(f"rlimit=7:{hard + 1}", argv=python("import resource; print(resource.getrlimit(7)[1])"))
    assert (status, int(said)) == (0, hard)


@pytest.mark.wall
@pytest.mark.parametrize(
    "options",
    [
        ("nonsense",), ("nonsense=1",), ("rlimit=7",), ("rlimit=x:y",), ("net=-1",), ("net=999",), ("user=1",), ("overlay=1:2",), ("cgroup=1x",), ("keep=",), ("rlimit=999:1",),
    ],
)  # fmt: skip
def test_launch_stops_at_the_first_thing_it_cannot_do(options: tuple[str, ...], tmp_path: Path) -> None:
    status, said = launch(*options, argv=["/usr/bin/touch", f"{tmp_path}/ran"])
    assert status == 125 and said
    assert not (tmp_path / "ran").exists()


@pytest.mark.wall
def test_launch_needs_something_to_launch(tmp_path: Path) -> None:
    assert launch(argv=[])[0] == 125
    assert launch(argv=["/no/such/program"])[0] == 125


@pytest.mark.wall
def test_launch_joins_a_new_session_keyring(tmp_path: Path) -> None:
    """Defence in depth under the system call filter: even without it the caller's session keyring is out of reach (B3)."""
    secret = f"canary{os.urandom(6).hex()}"
    read = [PYTHON, "-I", "-S", "-c", KEY, "read"]
    planted = [PYTHON, "-I", "-S", "-c", KEY, "plant", secret]
    control = subprocess.run([*planted, *read], capture_output=True, text=True, timeout=30)
    assert control.stdout == f"found {secret}\n", control.stderr
    # Standard output of a launched program is /dev/null: let it write to a file.
    script = f'exec {PYTHON} -I -S -c "$0" read > {tmp_path}/out'
    done = subprocess.run([*planted, native.STEP, "launch", "--", "/bin/sh", "-c", script, KEY], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    found = (tmp_path / "out").read_text()
    assert secret not in found and found.startswith("-126 ")  # ENOKEY


@pytest.mark.wall
def test_started_by_hand_it_does_nothing() -> None:
    for words in ([], ["help"], ["door"], ["inside"], ["inside", "1"], ["door", "x"], ["inside", "999", "0"]):
        done = subprocess.run([native.STEP, *words], capture_output=True, timeout=10, stdin=subprocess.DEVNULL)
        assert done.returncode == 125, words


@pytest.mark.wall
def test_it_needs_no_library() -> None:
    """It runs where only what the policy grants exists."""
    data = Path(native.STEP).read_bytes()
    assert data[:5] == b"\x7fELF\x02"  # 64 bits; elf(5): e_phoff at 32, e_phentsize and e_phnum at 54
    offset, (size, count) = struct.unpack_from("=Q", data, 32)[0], struct.unpack_from("=HH", data, 54)
    kinds_of = [struct.unpack_from("=I", data, offset + number * size)[0] for number in range(count)]
    assert 1 in kinds_of and not {2, 3} & set(kinds_of)  # PT_LOAD; neither PT_DYNAMIC nor PT_INTERP
    assert os.access(native.STEP, os.X_OK)
    assert sys.platform == "linux"
