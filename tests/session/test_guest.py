"""What happens in a guest on the gVisor wall is in the ledger while it happens, and nobody in the guest can help it (M37)."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place
from stockade.core.errors import WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Limits, Policy
from stockade.session import live
from stockade.walls import gvisor, sink
from walls.boxes import PYTHON, require

pytestmark = pytest.mark.wall
GUEST = Policy(wall="gvisor", limits=Limits())


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(gvisor)
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


@pytest.fixture
def folder(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()


def ledger(tmp_path: Path, kind: str = "guest") -> list[dict[str, Any]]:
    log = tmp_path / "state/stockade/ledger/log.jsonl"
    return [event for event in map(json.loads, log.read_text().splitlines()) if event["kind"].partition(".")[0] == kind]


def within(tmp_path: Path, body: Callable[[live.LiveSession], Awaitable[Any]], policy: Policy = GUEST) -> Any:
    """Run `body` with an open session."""

    async def whole() -> Any:
        async with live.open_session(policy, cwd=str(tmp_path / "work")) as session:
            return await body(session)

    return asyncio.run(asyncio.wait_for(whole(), 60))


async def seen(tmp_path: Path, kind: str, **facts: object) -> dict[str, Any]:
    """The event, which has to come within a second."""
    deadline = time.monotonic() + 1
    while True:
        for event in ledger(tmp_path):
            if event["kind"] == kind and facts.items() <= event.items():
                return event
        assert time.monotonic() < deadline, (kind, facts, ledger(tmp_path))
        await asyncio.sleep(0.02)


CALLS = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
try: socket.socket().connect(("10.1.2.3", 4444))
except OSError: pass
socket.socket().bind(("127.0.0.1", 4445))
libc.ptrace(16, 1, 0, 0)
libc.mount(b"none", b"/tmp", b"tmpfs", 0, 0)
libc.umount2(b"/tmp", 2)
libc.chroot(b"/tmp")
libc.syscall({"x86_64": 155, "aarch64": 41}[os.uname().machine], b"/", b"/")
os.setresuid(-1, 1000, -1)
"""


def test_what_is_done_and_tried_inside_is_on_record_within_a_second(tmp_path: Path, folder: None) -> None:
    async def body(session: live.LiveSession) -> None:
        await session.start(["/bin/sh", "-c", "/bin/echo 'two words'; sleep 60"])
        echo = await seen(tmp_path, "guest.exec", argv=["/bin/echo", "two words"])
        assert echo["session"] == session.id and echo["uid"] == 0 and echo["path"].endswith("/echo")
        await seen(tmp_path, "guest.clone", child=echo["pid"])
        assert (await session.exec([PYTHON, "-I", "-c", CALLS])).exit_code == 0
        python = os.path.basename(os.path.realpath(PYTHON))
        await seen(tmp_path, "guest.connect", host="10.1.2.3", port=4444, program=python)
        await seen(tmp_path, "guest.bind", host="127.0.0.1", port=4445)
        await seen(tmp_path, "guest.ptrace", arguments=[16, 1], program=python)
        for what in ("mount", "umount2", "chroot", "pivot_root"):
            await seen(tmp_path, f"guest.{what}", program=python)
        await seen(tmp_path, "guest.setresuid", arguments=[-1, 1000, -1])

    within(tmp_path, body)
    assert not [event for event in ledger(tmp_path) if event["kind"] == "guest.lost"]


HIDDEN = r"""
import ctypes, os
def run(*argv):
    if not os.fork():
        os.execv(argv[0], argv)
    os.wait()
run(b"/bin/true", b"no UTF-8 \xff")
run(b"/bin/true", *[b"long" * 1000] * 200)
ctypes.CDLL(None).prctl(15, b"\xff\xfe")
os.makedirs(b"/tmp/\xff"); os.chdir(b"/tmp/\xff")
run(b"/bin/true", b"from a process without a name")
"""


def test_names_that_gvisor_cannot_send_hide_nobody(tmp_path: Path, folder: None) -> None:
    """It leaves out, uncounted, what holds a string that is no UTF-8, and what is longer than its socket takes."""

    async def body(session: live.LiveSession) -> None:
        assert (await session.exec([PYTHON, "-I", "-c", HIDDEN])).exit_code == 0
        await seen(tmp_path, "guest.exec", argv=["/bin/true", "from a process without a name"])

    within(tmp_path, body)
    execs = [event for event in ledger(tmp_path) if event["kind"] == "guest.exec"]
    assert [("path" in event, "note" in event) for event in execs] == [(True, False), (False, True), (False, True), (True, False)]


def test_the_guests_root_cannot_stop_it(tmp_path: Path, folder: None) -> None:
    everything = "for p in /proc/[0-9]*; do test $p = /proc/$$ || kill -STOP ${p#/proc/}; done; kill -9 -1; /bin/echo still here; sleep 60"

    async def body(session: live.LiveSession) -> None:
        looked = await session.exec(
            ["/bin/sh", "-c", "ls /proc/1/fd /proc/self/fd; ls -d / /run/* /bundle /events; grep -c . /proc/net/unix"]
        )
        assert b"/run/stockade-init" in looked.stdout and b"events" not in looked.stdout and b"bundle" not in looked.stdout
        await session.start(["/bin/sh", "-c", everything])
        await seen(tmp_path, "guest.exec", argv=["/bin/echo", "still", "here"])

    within(tmp_path, body)
    assert not [event for event in ledger(tmp_path) if event["kind"] == "guest.lost"]


FLOOD = """
import ctypes, os, socket, sys
for _ in range(60):
    if not os.fork():
        os.execv("/bin/true", ["true"])
    os.wait()
for _ in range(6000):
    try: socket.socket(socket.AF_UNIX).connect("/nothing")
    except OSError: pass
ctypes.CDLL(None).ptrace(16, 1, 0, 0)
"""


def test_a_flood_is_counted_and_the_session_lives_on(tmp_path: Path, folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink, "BURST", 50)

    async def body(session: live.LiveSession) -> None:
        assert (await session.exec([PYTHON, "-I", "-c", FLOOD])).exit_code == 0
        await asyncio.sleep(1)
        assert (await session.exec(["/bin/echo", "afterwards"])).exit_code == 0
        await seen(tmp_path, "guest.exec", argv=["/bin/echo", "afterwards"])

    within(tmp_path, body)
    made = [event for event in ledger(tmp_path) if event["kind"] == "guest.connect"]
    lost = [event for event in ledger(tmp_path) if event["kind"] == "guest.lost"]
    assert 50 <= len(made) < 2000 and len(ledger(tmp_path)) < 3000
    missed = sum(event.get("kinds", {}).get("connect", 0) for event in lost)
    dropped = sum(event.get("count", 0) for event in lost if "kinds" not in event)  # "perhaps some" has none, and is made good by the next
    assert len(made) + missed <= 6000 <= len(made) + missed + dropped
    if not dropped:  # many connections hide no attempt of another kind
        assert [event for event in ledger(tmp_path) if event["kind"] == "guest.ptrace"]


def test_a_supervisor_that_is_busy_holds_nobody_up_and_says_what_it_missed(tmp_path: Path, folder: None) -> None:
    many = "\n".join(
        (
            "import socket, sys, time",
            "began = time.monotonic()",
            "for _ in range(int(sys.argv[1])):",
            "  try: socket.socket(socket.AF_UNIX).connect('/x')",
            "  except OSError: pass",
            "print(time.monotonic() - began)",
        )
    )

    before: list[int] = []

    async def body(session: live.LiveSession) -> None:
        alone = 5 * float((await session.exec([PYTHON, "-I", "-c", many, "400"])).stdout)
        await session.exec(["/bin/true"])
        before.append(len(ledger(tmp_path)))
        command = asyncio.create_task(session.exec([PYTHON, "-I", "-c", many, "2000"]))
        while not [event for event in ledger(tmp_path)[before[0] :] if event["kind"] == "guest.exec"]:
            await asyncio.sleep(0.005)
        time.sleep(pause := 1 + 2 * alone)  # the loop that reads the events stands still
        assert float((await command).stdout) < pause
        await asyncio.sleep(1.2)
        await session.exec(["/bin/true"])

    within(tmp_path, body)
    lost = [event for event in ledger(tmp_path)[before[0] :] if event["kind"] == "guest.lost" and "kinds" not in event]
    assert "perhaps some" in lost[0]["reason"] and sum(event.get("count", 0) for event in lost) > 1000


def test_a_stream_that_ends_before_the_guest_is_on_record(tmp_path: Path, folder: None) -> None:
    async def body(session: live.LiveSession) -> None:
        heard = session._session.sink
        assert heard is not None and heard.connected
        assert heard._stream is not None
        heard._stream.shutdown(2)
        assert (await session.exec(["/bin/echo", "unseen"])).stdout == b"unseen\n"
        await asyncio.sleep(0.7)

    within(tmp_path, body)
    [lost] = [event for event in ledger(tmp_path) if event["kind"] == "guest.lost"]
    assert "ended before the guest" in lost["reason"] and not [
        event for event in ledger(tmp_path) if event.get("argv") == ["/bin/echo", "unseen"]
    ]


def test_nothing_starts_that_would_not_be_seen(tmp_path: Path, folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(session: live.LiveSession) -> None:
        raise AssertionError("it stands")

    whole, plan = sink.Sink.__init__, gvisor.plan

    def refusing(self: sink.Sink, directory: int, path: str) -> None:
        whole(self, directory, path)
        self._listener.shutdown(2)

    def deaf(self: sink.Sink, directory: int, path: str) -> None:
        raise OSError(24, "Too many open files")

    def unheard(*args: Any, **more: Any) -> gvisor.Plan:
        made = plan(*args, **more)
        command = tuple(word for word in made.warm.command if not word.startswith("--pod-init-config"))
        return replace(made, warm=replace(made.warm, command=command))

    for where, name, change, code in (
        (sink.Sink, "__init__", refusing, "wall.died"),
        (sink.Sink, "__init__", deaf, "session.setup"),
        (gvisor, "plan", unheard, "gvisor.events"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, change)
            with pytest.raises(WallFailed) as failed:
                within(tmp_path, body)
            assert failed.value.code == code, failed.value


def test_a_wall_without_a_kernel_of_its_own_has_no_such_events(tmp_path: Path, folder: None) -> None:
    async def body(session: live.LiveSession) -> None:
        assert (await session.exec(["/bin/sh", "-c", "/bin/true"])).exit_code == 0

    within(tmp_path, body, Policy())
    assert ledger(tmp_path) == [] and ledger(tmp_path, "session")


def test_a_run_in_the_foreground_has_them_up_to_its_last_moment(place: Place) -> None:
    done = place.run("/bin/sh", "-c", "exec /bin/echo the last", policy=GUEST)
    assert done.returncode == 0, done.stderr
    execs = [event["argv"] for event in place.ledger() if event["kind"] == "guest.exec"]
    assert execs == [["/bin/sh", "-c", "exec /bin/echo the last"], ["/bin/echo", "the", "last"]]
    assert place.ledger()[-1]["kind"] == "session.exit"
