"""The in-process API, with real sandboxes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.core.values import PLACEHOLDER, Credential, Grant, Limits, Mount, Policy, Root, Workspace
from stockade.session import after, live
from stockade.session import command as begun
from stockade.session.command import SessionEnded
from stockade.session.exchange import AsyncioLoop
from stockade.walls import limits, probe
from walls.boxes import until

pytestmark = pytest.mark.wall


@pytest.fixture(scope="session", autouse=True)
def wall(tmp_path_factory: pytest.TempPathFactory) -> None:
    broken = [check for check in probe.bubblewrap_wall() if check.status == "missing"]
    if broken:
        unavailable("bubblewrap", "; ".join(f"{check.name}: {check.seen}" for check in broken))


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("STOCKADE_TEST_SECRET", "must-not-enter")


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """After every test: no descriptor more than before. (Nor a sandbox: conftest.py.)"""
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def within(folder: Path, body: Callable[[live.LiveSession], Awaitable[Any]], policy: Policy | None = None) -> Any:
    """Run `body` with an open session."""

    async def whole() -> Any:
        async with live.open_session(policy or Policy(), cwd=str(folder)) as session:
            return await body(session)

    return asyncio.run(asyncio.wait_for(whole(), 60))


def events(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "state/stockade/ledger/log.jsonl").read_text().splitlines()]


def host_processes(mark: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes() and int(pid) != os.getpid():
                found.append(pid)
        except OSError:
            continue
    return found


def test_what_a_command_says_is_what_is_returned(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        found = await session.exec(["sh", "-c", "cat; echo out; echo err >&2; exit 7"], stdin=b"in\n")
        assert (found.exit_code, found.stdout, found.stderr) == (7, b"in\nout\n", b"err\n")
        assert not found.truncated and not found.timed_out
        assert (await session.exec(["cat"])).stdout == b""
        assert (await session.exec(["sh", "-c", "kill -9 $$"])).exit_code == 128 + signal.SIGKILL
        assert (await session.exec(["/no/such/program"])).exit_code == 127
        assert (await session.exec(["/usr"])).exit_code == 126

    within(folder, body)


def test_a_key_of_aws_stays_outside(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"):
        monkeypatch.setenv(f"AWS_{name}", "must-not-enter-either")
    key = Credential("aws", "env:AWS_ACCESS_KEY_ID", env="AWS", services=("s3",), regions=("eu-central-1",))
    policy = Policy(grants=(Grant("s3.example.com", credential="aws"),), credentials=(key,))

    async def body(session: live.LiveSession) -> None:
        found = dict(line.split("=", 1) for line in (await session.exec(["env"])).stdout.decode().splitlines() if line.startswith("AWS_"))
        assert found.pop("AWS_CA_BUNDLE")
        assert found["AWS_ACCESS_KEY_ID"] == found["AWS_SECRET_ACCESS_KEY"] and found["AWS_ACCESS_KEY_ID"].startswith(f"{PLACEHOLDER}aws-")
        assert found.keys() == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_DEFAULT_REGION"}
        assert found["AWS_REGION"] == "eu-central-1" and "must-not-enter" not in str(found)

    within(folder, body, policy)


def test_environment_and_folder(folder: Path) -> None:
    (folder / "sub").mkdir()

    async def body(session: live.LiveSession) -> None:
        found = (await session.exec(["env"], env={"GIVEN": "yes"})).stdout.decode()
        assert "GIVEN=yes" in found and f"STOCKADE_SESSION={session.id}" in found and "must-not-enter" not in found
        assert (await session.exec(["pwd"])).stdout.decode().strip() == session.workspace == str(folder)
        assert (await session.exec(["pwd"], cwd="sub")).stdout.decode().strip() == str(folder / "sub")
        assert (await session.exec(["pwd"], cwd="/tmp")).stdout == b"/tmp\n"

    within(folder, body)


def test_bad_arguments_are_refused_and_the_session_lives_on(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        for argv in ([], ["a\0b"]):
            with pytest.raises(ValueError, match="argv"):
                await session.exec(argv)
        assert (await session.exec(["true"])).exit_code == 0

    within(folder, body)


ALIVE = ["sh", "-c", "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline; echo; done"]


async def gone(session: live.LiveSession, mark: bytes) -> bool:
    """Whether no process inside has `mark` in its command line, soon."""
    for _ in range(50):
        if mark not in (await session.exec(ALIVE)).stdout:
            return True
        await asyncio.sleep(0.05)
    return False


def test_a_timeout_ends_the_whole_process_group(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        began = time.monotonic()
        found = await session.exec(["sh", "-c", "echo before; sleep 4711 & sleep 4711"], timeout=0.3)
        assert found.timed_out and found.exit_code == 137 and found.stdout == b"before\n" and time.monotonic() - began < 60
        assert await gone(session, b"4711")

    within(folder, body)


STOPPER = """
import os, signal
if os.fork():
    os._exit(0)
os.setsid()
while True:
    try:
        os.kill(-1, signal.SIGSTOP)  # everybody, whoever is about to become a command among them
    except OSError:
        pass
"""
STUCK = """
import asyncio, sys
from stockade.core.values import Policy
from stockade.session import live

async def main():
    async with live.open_session(Policy(), cwd=sys.argv[1]) as session:
        await session.exec(["python3", "-c", sys.argv[2]])
        while True:
            task = asyncio.create_task(session.exec(["true", sys.argv[3]], timeout=0.5))
            await asyncio.wait([task], timeout=3)
            if not task.done() and any(not command.begun for command in session._commands.values()):
                break
        print("stuck", flush=True)
        await asyncio.sleep(300)

asyncio.run(main())
"""


def test_whoever_stops_all_that_begins_stops_neither_a_timeout_nor_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGSTOP cannot be blocked, and comes from anybody of the same user. What holds the session up is over within a limit, and said."""
    monkeypatch.setattr(begun, "ANSWER", 2.0)

    def late(*_: object) -> None:
        raise AssertionError("the program waits for what runs inside")

    async def body(session: live.LiveSession) -> str:
        await session.exec(["python3", "-c", STOPPER])
        for _ in range(300):
            try:
                if (await session.exec(["true"], timeout=0.5)).timed_out:
                    return "stopped"
            except WallFailed as error:
                return error.code
        return "never stopped"

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(50)
    try:
        assert within(folder, body) in ("stopped", "wall.silent")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_command_that_was_stopped_before_it_began_outlives_nobody(folder: Path) -> None:
    """Its init may not wait for it: it would not notice that the supervisor was killed."""
    mark = f"mark-{os.getpid()}-{time.monotonic_ns()}"
    driver = subprocess.Popen([sys.executable, "-c", STUCK, str(folder), STOPPER, mark], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    try:
        assert driver.stdout.readline() == "stuck\n"
        assert host_processes(str(folder))
    finally:
        driver.kill()
        driver.communicate()
    assert until(lambda: not host_processes(str(folder)), 20), host_processes(str(folder))


def test_cancelling_the_await_kills_the_command(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        task = asyncio.create_task(session.exec(["sh", "-c", "sleep 4712 & sleep 4712"]))
        while b"4712" not in (await session.exec(ALIVE)).stdout:
            await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await gone(session, b"4712")

    within(folder, body)


def test_many_at_once(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        began = time.monotonic()
        found = await asyncio.gather(*(session.exec(["sh", "-c", f"sleep 2; echo {number}"]) for number in range(20)))
        assert [int(one.stdout) for one in found] == list(range(20)) and time.monotonic() - began < 35  # one after the other: 40 s and more
        many = await asyncio.gather(*(session.exec(["true"]) for _ in range(300)))
        assert {one.exit_code for one in many} == {0}

    within(folder, body)


def test_ten_mebibytes_both_ways(folder: Path) -> None:
    data = os.urandom(10 << 20)

    async def body(session: live.LiveSession) -> None:
        found = await session.exec(["tee", "/dev/stderr"], stdin=data)
        for stream in (found.stdout, found.stderr):
            assert hashlib.sha256(stream).digest() == hashlib.sha256(data).digest()
        assert (await session.exec(["head", "-c", "3"], stdin=data)).stdout == data[:3]  # it reads no more, and that is no error

    within(folder, body)


def test_output_beyond_the_cap_is_cut_and_said(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        found = await session.exec(["head", "-c", "1000000", "/dev/zero"], max_output=1000)
        assert found == live.Result(0, bytes(1000), b"", True, False)

    within(folder, body)


def test_the_policys_limits_end_the_session(folder: Path, tmp_path: Path) -> None:
    async def loud(session: live.LiveSession) -> None:
        with pytest.raises(SessionEnded, match="output") as caught:
            await session.exec(["yes"])
        assert caught.value.code == "session.limit"
        with pytest.raises(SessionEnded):
            await session.exec(["true"])

    async def long(session: live.LiveSession) -> None:
        with pytest.raises(SessionEnded, match="wall time"):
            await session.exec(["sleep", "30"])

    async def busy(session: live.LiveSession) -> None:
        with pytest.raises(SessionEnded, match="CPU"):
            await session.exec(["sh", "-c", "for i in 1 2 3; do (while :; do :; done) & done; wait"])

    within(folder, loud, Policy(limits=Limits(output=100_000)))
    within(folder, long, Policy(limits=Limits(wall_time=1)))
    within(folder, busy, Policy(limits=Limits(cpu_time=1)))
    assert [event["limit"] for event in events(tmp_path) if event["kind"] == "limit"] == ["output", "wall_time", "watchdog"]


def test_a_sandbox_that_is_full_says_so_and_goes_on(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        running = [await session.start(["sleep", "30"]) for _ in range(2)]
        with pytest.raises(StockadeError) as caught:
            for _ in range(10):
                running.append(await session.start(["sleep", "30"]))
        assert caught.value.code == "exec.resources" and "limits.processes" in caught.value.hint
        for command in running:
            command.kill()
            assert await command.wait() == 128 + signal.SIGKILL
        assert (await session.exec(["true"])).exit_code == 0

    within(folder, body, Policy(limits=Limits(processes=6)))


def test_what_outlives_a_command_does_not_hold_it_up_and_ends_with_the_session(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        began = time.monotonic()
        found = await session.exec(["sh", "-c", "(setsid sh -c 'while :; do echo x; sleep 0.05; done; : 4713') & echo started"])
        assert b"started" in found.stdout and time.monotonic() - began < 60
        await asyncio.sleep(0.3)
        assert not await gone_now(session, b"4713"), "what a command left behind should live on in its session"
        assert host_processes("4713")

    within(folder, body)
    assert not host_processes("4713")


async def gone_now(session: live.LiveSession, mark: bytes) -> bool:
    return mark not in (await session.exec(ALIVE)).stdout


def test_streams(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        async with await session.start(
            ["sh", "-c", "while read word; do echo got $word; done; echo end >&2; exit 3"], stdin=True
        ) as command:
            assert command.stdin is not None
            await command.stdin.write(b"one\n")
            assert await anext(command) == live.Piece("stdout", b"got one\n")  # it runs, and has not ended
            await command.stdin.write(b"two\n")
            assert (await anext(command)).data == b"got two\n"
            command.stdin.close()
            assert [piece async for piece in command] == [live.Piece("stderr", b"end\n")]
            assert await command.wait() == 3
            with pytest.raises(BrokenPipeError):
                await command.stdin.write(b"more")

    within(folder, body)


def test_a_reader_that_is_slow_holds_up_the_command_and_loses_nothing(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        script = "head -c 4000000 /dev/zero; touch done"
        async with await session.start(["sh", "-c", script]) as command:
            await asyncio.sleep(0.5)
            assert not (folder / "done").exists(), "4 MB fit into no pipe: somebody kept on reading"
            assert sum([len(piece.data) async for piece in command]) == 4_000_000
            assert (folder / "done").exists() and await command.wait() == 0

    within(folder, body)


def test_leaving_the_block_kills_a_started_command(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        async with await session.start(["sleep", "4714"]):
            pass
        assert await gone(session, b"4714")
        command = await session.start(["sh", "-c", "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"])
        assert (await anext(command)).data == b"ready\n"
        command.kill(signal.SIGTERM)
        assert await command.wait() == 5
        assert not [piece async for piece in command if piece.stream == "stdout"]  # the shell may remark that its child was ended

    within(folder, body)


def test_files(folder: Path, tmp_path: Path) -> None:
    data = bytes(range(256)) * 5000
    secret = tmp_path / "secret"
    secret.write_text("not in the sandbox")
    (folder / "link").symlink_to(secret)

    async def body(session: live.LiveSession) -> None:
        for name in ("plain", "-", "--help", "with space", "/tmp/elsewhere"):
            await session.write(name, data)
            assert await session.read(name) == data
        await session.write("plain", b"short")
        assert await session.read("plain") == b"short" == (folder / "plain").read_bytes()
        with pytest.raises(StockadeError) as caught:
            await session.read("link")
        assert caught.value.code == "file.read"
        with pytest.raises(StockadeError) as caught:
            await session.write("/usr/new", b"")
        assert caught.value.code == "file.write"
        with pytest.raises(StockadeError) as caught:
            await session.read("/tmp/elsewhere", max_size=10)
        assert caught.value.code == "file.size"

    within(folder, body)
    assert secret.read_text() == "not in the sandbox"


def test_the_ledger_has_it_all(folder: Path, tmp_path: Path) -> None:
    async def body(session: live.LiveSession) -> str:
        await session.exec(["sh", "-c", "exit 4"])
        return session.id

    ident = within(folder, body)
    found = events(tmp_path)
    assert {event["session"] for event in found} == {ident}
    assert [event["kind"] for event in found] == ["session.start", "exec.start", "exec.exit", "session.exit"]
    assert found[1]["command"] == ["sh", "-c", "exit 4"] and found[1]["cwd"] == str(folder)
    assert found[2]["code"] == 4 and found[3]["code"] == 0 and found[3]["commands"] == 1


def test_commits_made_inside_come_back(folder: Path, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True).stdout

    git("init", "-q", "-b", "main")
    git("-c", "user.name=a", "-c", "user.email=a@example.test", "commit", "-q", "--allow-empty", "-m", "first")

    async def body(session: live.LiveSession) -> None:
        script = "echo new >file; git add file; git -c user.name=b -c user.email=b@example.test commit -q -m second; echo x >.git/hooks/post-commit"
        done = await session.exec(["sh", "-c", script])
        assert b"Read-only" in done.stderr or done.exit_code, done

    within(folder, body)
    assert git("log", "--format=%s").split() == ["second", "first"] and not (folder / ".git/hooks/post-commit").exists()
    assert "git.import" in [event["kind"] for event in events(tmp_path)]


def test_without_a_ledger_nothing_runs(folder: Path, tmp_path: Path) -> None:
    ledger = tmp_path / "state/stockade/ledger"
    ledger.parent.mkdir(parents=True, mode=0o700)
    ledger.write_text("in the way")

    async def body(session: live.LiveSession) -> None:
        raise AssertionError("it opened")

    with pytest.raises(StockadeError):
        within(folder, body)


def test_sessions_side_by_side_share_nothing_but_the_workspace(folder: Path) -> None:
    async def whole() -> None:
        async with live.open_session(Policy(), cwd=str(folder)) as one, live.open_session(Policy(), cwd=str(folder)) as two:
            await one.write("/tmp/mark", b"1")
            assert (await two.exec(["cat", "/tmp/mark"])).exit_code == 1
            await one.write("mark", b"2")
            assert await two.read("mark") == b"2"
            assert one.id != two.id

    asyncio.run(whole())


def test_a_killed_sandbox_is_a_typed_error_and_never_the_host(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        running = asyncio.create_task(session.exec(["sleep", "30"]))
        await session.exec(["true"])
        os.kill(limits.init_of(session._session.box.pid), signal.SIGKILL)
        with pytest.raises(WallFailed):
            await running
        with pytest.raises(WallFailed):
            await session.exec(["true"])

    within(folder, body)


def test_a_closed_session_runs_nothing(folder: Path) -> None:
    async def whole() -> None:
        async with live.open_session(Policy(), cwd=str(folder)) as session:
            pass
        with pytest.raises(SessionEnded) as caught:
            await session.exec(["true"])
        assert caught.value.code == "session.closed"
        await session.close()

    asyncio.run(whole())


def test_commands_that_still_run_when_the_session_closes_fail(folder: Path) -> None:
    async def whole() -> None:
        async with live.open_session(Policy(), cwd=str(folder)) as session:
            task = asyncio.create_task(session.exec(["sleep", "30"]))
            command = await session.start(["cat"], stdin=True)
        for waiting in (task, command.wait()):
            with pytest.raises(SessionEnded):
                await waiting

    asyncio.run(whole())


def test_what_cannot_be_opened_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    async def whole(policy: Policy) -> None:
        async with live.open_session(policy, cwd=str(folder)):
            raise AssertionError("it opened")

    for policy in (
        Policy(root=Root(writable="memory")),
        Policy(workspace=Workspace(path="missing")),
        Policy(mounts=(Mount(str(folder), "/proc/here"),)),
        Policy(mounts=(Mount("/", "/mnt/all"),)),
    ):
        with pytest.raises(StockadeError) as caught:
            asyncio.run(whole(policy))
        assert caught.value.hint
    with pytest.raises(CannotEnforce):
        asyncio.run(whole(Policy(root=Root(writable="memory"))))


@pytest.mark.parametrize("mode", ["rw", "review"])
def test_a_link_where_a_mount_belongs_leads_nowhere(mode: Any, folder: Path, tmp_path: Path) -> None:
    """The place of a mount is made from outside, by a program that follows links: also to the host's own files, which it still has at /oldroot then."""
    for name in ("victim", "data"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/here").write_text("")
    policy = Policy(mounts=(Mount(str(tmp_path / "data"), f"{folder}/link/x/y", "ro"),), workspace=Workspace(mode=mode))

    async def listed(session: live.LiveSession) -> bytes:
        return (await session.exec(["ls", "link/x/y"])).stdout

    assert within(folder, listed, policy) == b"here\n"
    if mode == "rw":
        shutil.rmtree(folder / "link")  # the places that were made for it
    for number, link in enumerate((f"/oldroot{tmp_path}/victim", f"{'../' * (len(folder.parts) - 1)}oldroot{tmp_path}/victim", "inside")):
        (folder / "link").unlink(missing_ok=True)
        within(folder, lambda session: session.exec(["ln", "-s", link, "link"]))  # noqa: B023 - it is called at once
        with pytest.raises(CannotEnforce) as caught:
            within(folder, listed, policy)
        assert caught.value.code == "mount.target" and f"{folder}/link is a symbolic link" in caught.value.message, number
        assert os.listdir(tmp_path / "victim") == []


def test_a_forked_child_does_not_hold_the_sandbox_open(folder: Path) -> None:
    async def body(session: live.LiveSession) -> int:
        await session.exec(["true"])
        pid = os.fork()  # as a program that uses multiprocessing does: it has a copy of every descriptor
        if pid == 0:
            time.sleep(100)
            os._exit(0)
        return pid

    began = time.monotonic()
    child = within(folder, body)
    try:
        assert time.monotonic() - began < 60
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_opening_the_certificates_does_not_end_the_program(folder: Path, tmp_path: Path) -> None:
    """The kernel announces a broken lease by a signal, whose default is to end the process."""

    async def body(session: live.LiveSession) -> bytes:
        found = await session.exec(["cat", "/etc/ssl/certs/ca-certificates.crt"], timeout=30)
        assert not found.timed_out
        return found.stdout

    from stockade.gateway import engine

    try:
        engine.find()
    except StockadeError as error:
        unavailable("envoy", error.message)
    assert within(folder, body).startswith(b"-----BEGIN CERTIFICATE-----")
    assert "gate.start" in [event["kind"] for event in events(tmp_path)]


def test_names_that_are_not_granted_are_refused_on_record(folder: Path, tmp_path: Path) -> None:
    from stockade.gateway import engine

    try:
        engine.find()
    except StockadeError as error:
        unavailable("envoy", error.message)

    async def body(session: live.LiveSession) -> None:
        assert (await session.exec(["getent", "hosts", "secret.evil.test"], timeout=30)).exit_code == 2

    within(folder, body)
    assert next((event["name"], event["effect"]) for event in events(tmp_path) if event["kind"] == "dns") == ("secret.evil.test", "deny")


def test_an_error_of_ours_ends_the_sandbox(folder: Path) -> None:
    """INVARIANT of the loop: a callback that raises is not logged and forgotten."""

    async def body(session: live.LiveSession) -> None:
        def broken() -> None:
            raise RuntimeError("a bug")

        session.loop.later(0.05, broken)
        with pytest.raises(WallFailed, match="a bug"):
            await session.exec(["sleep", "30"])

    within(folder, body)


def test_the_adapter_keeps_the_loops_contract() -> None:
    async def whole() -> None:
        failures: list[BaseException] = []
        loop = AsyncioLoop(failures.append)
        reader, writer = os.pipe()
        seen: list[int] = []
        try:
            loop.watch(reader, 1, seen.append)
            await asyncio.sleep(0.01)
            assert seen == []
            os.write(writer, b"x")
            await asyncio.sleep(0.01)
            assert seen and set(seen) == {1}
            loop.forget(reader)
            loop.forget(reader)
            count = len(seen)
            loop.watch(writer, 4, seen.append)
            await asyncio.sleep(0.01)
            assert 4 in seen[count:]
            loop.watch(writer, 1, seen.append)  # replaces
            seen.clear()
            await asyncio.sleep(0.01)
            assert 4 not in seen
            ran: list[str] = []
            loop.cancel(loop.later(0.01, lambda: ran.append("cancelled")))
            loop.later(0.01, lambda: ran.append("due"))
            await asyncio.sleep(0.05)
            assert ran == ["due"] and not failures
        finally:
            loop.clear()
            os.close(reader)
            os.close(writer)

    asyncio.run(whole())


def test_a_scan_is_collected_by_its_own_session_only(folder: Path) -> None:
    """Sessions of one program end at the same time, each in a thread of its own, and each collects what is nobody's."""

    async def body() -> None:
        async with live.open_session(Policy(), cwd=str(folder)) as session:
            pid = 0
            while not pid:
                await asyncio.sleep(0.02)
                pid = session._session._scan[0]
            os.kill(pid, signal.SIGKILL)
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has collected it
            after.sweep()
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # raises ChildProcessError if somebody has by now
        with pytest.raises(ChildProcessError):
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)

    asyncio.run(asyncio.wait_for(body(), 30))
