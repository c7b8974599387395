"""A session is saved, and others go on from there: what each line of docs/states.md says of clocks, seeds, tokens, sockets and addresses, and how it fails."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import select
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from session import test_revoke
from session.keyring import keyring
from session.supervised import Place
from session.test_pausing import folder as folder
from session.test_revoke import server as server
from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Confinement, Grant, Limits, Mount, Policy
from stockade.session import Session, checkpoints, live, states
from stockade.session.command import SessionEnded
from stockade.session.pool import Pool
from stockade.walls import bubblewrap, gvisor, runsc
from walls.boxes import HOME, PYTHON, require, until
from walls.workspace_box import repository

pytestmark = pytest.mark.wall
GUEST = Policy(wall="gvisor")


@pytest.fixture(autouse=True)
def wall() -> None:
    require(gvisor)


def within(folder: Path, body: Callable[[live.LiveSession], Awaitable[Any]], policy: Policy = GUEST) -> Any:
    async def whole() -> Any:
        async with live.open_session(policy, cwd=str(folder)) as session:
            return await body(session)

    return asyncio.run(asyncio.wait_for(whole(), 90))


async def background(session: live.LiveSession, code: str, *arguments: str) -> None:
    """Start Python code that goes on after its command, with nothing of it outside. What it prints goes to /tmp/said; it has said `up` when this returns."""
    script = 'setsid "$@" </dev/null >/tmp/said 2>&1 & until grep -qs up /tmp/said; do sleep 0.02; done'
    done = await session.exec(["sh", "-c", script, "sh", PYTHON, "-I", "-S", "-u", "-c", code, *arguments], timeout=20)
    assert done.exit_code == 0, (done, (await session.exec(["cat", "/tmp/said"])).stdout)


async def said(session: live.LiveSession, ready: Callable[[list[str]], object] = bool) -> list[str]:
    """What the background has printed, once `ready` of its lines."""
    for _ in range(400):
        lines = (await session.exec(["cat", "/tmp/said"])).stdout.decode().splitlines()
        if ready(lines):
            return lines
        await asyncio.sleep(0.05)
    raise AssertionError(lines)


def of_sessions(place: Place) -> list[dict[str, Any]]:
    return [event for event in place.ledger() if str(event["kind"]).startswith("session.")]


# ---- what goes on, and what does not

CLOCKS = """
import time
began = time.monotonic()
print("up", flush=True)
while True:
    time.sleep(0.05)
    print(time.time(), time.monotonic() - began, flush=True)
"""


def test_clocks_are_right_and_go_on(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        await background(session, CLOCKS)
        before = [float(word) for word in (await said(session, lambda lines: len(lines) > 4))[3].split()]
        made = await session.checkpoint()
        saved = time.time()
        await asyncio.sleep(1.5)
        async with live.open_session(GUEST, cwd=str(folder), restore=made) as other:
            began = time.time()
            lines = await said(other, lambda lines: lines and float(lines[-1].split()[0]) > began)
            pairs = [[float(word) for word in line.split()] for line in lines[1:]]
            assert all(one[0] < two[0] and one[1] < two[1] for one, two in itertools.pairwise(pairs))  # neither goes back
            assert max(two[0] - one[0] for one, two in itertools.pairwise(pairs)) > 1.3  # the gap is seen
            assert pairs[-1][0] > saved + 1.3 and abs(pairs[-1][0] - time.time()) < 1
            assert (pairs[-1][1] - before[1]) - (pairs[-1][0] - before[0]) == pytest.approx(0, abs=0.3)

    within(folder, body)


SEEDS = """
import os, random, ctypes
random.seed(os.urandom(16))
print("up", flush=True)
while not os.path.exists("/tmp/go"):
    __import__("time").sleep(0.02)
print("seed", random.random(), flush=True)
print("urandom", os.urandom(16).hex(), flush=True)
"""
FRESH = """
import ctypes, os
libc = ctypes.CDLL(None)
libc.getauxval.restype = ctypes.c_ulong
print(os.getrandom(16).hex(), open("/dev/urandom", "rb").read(16).hex(), ctypes.string_at(libc.getauxval(25), 16).hex())  # AT_RANDOM
"""


def test_the_kernel_gives_each_fork_other_random_bytes_and_programs_keep_their_seeds(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        await background(session, SEEDS)
        found = []
        made = await session.checkpoint()
        for _ in range(2):
            async with live.open_session(GUEST, cwd=str(folder), restore=made) as other:
                fresh = (await other.exec([PYTHON, "-I", "-S", "-c", FRESH])).stdout.split()
                boot = (await other.exec(["cat", "/proc/sys/kernel/random/boot_id"])).stdout
                await other.exec(["touch", "/tmp/go"])
                lines = await said(other, lambda lines: len(lines) == 3)
                found.append((fresh, lines, boot))
        (one, first, boot), (two, second, again) = found
        assert len({*one, *two}) == 6
        assert first[2] != second[2]  # urandom of a program that was running
        assert first[1] == second[1] and boot == again  # what docs/states.md warns of

    within(folder, body)


SOCKETS = """
import socket, sys
outer = socket.create_connection((sys.argv[1], 443))
listener = socket.create_server(("127.0.0.1", 5555))
inner = socket.create_connection(("127.0.0.1", 5555))
other = listener.accept()[0]
print("up", flush=True)
while True:
    try:
        print("outer", outer.recv(99), flush=True)
    except OSError as error:
        print("outer", error.__class__.__name__, flush=True)
    inner.sendall(b"inner")
    print(other.recv(99).decode(), flush=True)
    __import__("time").sleep(0.05)
"""
ASK = "import socket, sys; s = socket.create_connection((sys.argv[1], 443)); print(s.getsockname()[0], s.recv(9))"


def test_connections_are_cut_and_the_other_ones_door_is_a_new_one(folder: Path) -> None:
    """At the doors themselves, with no gate between."""

    async def body(session: live.LiveSession) -> None:
        door = session._session.door.listeners[443]
        session.loop.forget(door)  # no gate: the connections are ours
        with socket.socket(fileno=os.dup(door)) as listener:
            await background(session, SOCKETS, "192.0.2.7")
            peer, _ = listener.accept()
            with peer:
                made = await session.checkpoint()
                assert select.select([peer], [], [], 10)[0]
                with pytest.raises(ConnectionError):
                    assert not peer.recv(9), "the connection lives"
                    raise ConnectionResetError  # an orderly end would do, too
                lines = await said(session, lambda lines: "inner" in lines and any("outer" in line for line in lines))
                assert "outer ConnectionAbortedError" in lines, lines
            listener.setblocking(False)
            async with live.open_session(GUEST, cwd=str(folder), restore=made) as other:
                mine = other._session.door.listeners[443]
                other.loop.forget(mine)
                assert "outer ConnectionAbortedError" in await said(other, lambda lines: lines.count("inner") > 1)
                with socket.socket(fileno=os.dup(mine)) as beyond:
                    asking = await other.start([PYTHON, "-I", "-S", "-c", ASK, "192.0.2.7"])
                    beyond.settimeout(20)
                    caller, _ = await asyncio.to_thread(beyond.accept)
                    with caller:
                        caller.sendall(b"answer")
                        assert (await anext(aiter(asking))).data == b"192.0.0.2 b'answer'\n"
                with pytest.raises(BlockingIOError):  # nobody came to the old door
                    listener.accept()

    within(folder, body)


# Asks with the token that it was started with.
OLD = """
import os, sys, time, urllib.request
os.environ.pop("no_proxy"), os.environ.pop("NO_PROXY")
print("up", flush=True)
while not os.path.exists("/tmp/go"):
    time.sleep(0.02)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": sys.argv[1]}))
try:
    print(opener.open(urllib.request.Request(sys.argv[2], headers={"x-key": sys.argv[3]}), timeout=10).status, flush=True)
except Exception as error:
    print(getattr(error, "code", error), flush=True)
"""
WITH_TOKEN = 'curl -s -o /dev/null -m 10 -x "$HTTP_PROXY" --noproxy "" -H "x-key: $KEY" -w "%{http_code}" "$1"'


def test_tokens_of_the_one_are_worthless_in_the_other_which_has_its_own(
    folder: Path, place: Place, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", "real-key")
    policy = replace(test_revoke.policy(server), wall="gvisor")
    url = f"http://open.localhost:{server.server_port}/public/x"

    async def body(session: live.LiveSession) -> None:
        token, name = (await session.exec(["sh", "-c", "echo $KEY $STOCKADE_SESSION"])).stdout.decode().split()
        assert name == session.id
        await background(session, OLD, f"http://{gvisor.ADDRESS}:3128", url, token)
        async with session.fork() as other:
            await other.exec(["touch", "/tmp/go"])
            assert (await said(other, lambda lines: len(lines) > 1))[1] == "403"
            new, name = (await other.exec(["sh", "-c", "echo $KEY $STOCKADE_SESSION"])).stdout.decode().split()
            assert new != token and name == other.id != session.id
            assert (await other.exec(["sh", "-c", WITH_TOKEN, "sh", url])).stdout == b"200"
        await session.exec(["touch", "/tmp/go"])  # the twin: where it belongs it is worth something still
        assert (await said(session, lambda lines: len(lines) > 1))[1] == "200"

    before = len(server.seen)
    within(folder, body, policy)
    assert server.seen[before:] == ["real-key"] * 2
    assert "real-key" not in json.dumps(place.ledger())


def test_what_was_taken_back_and_what_is_tainted_stay_so(folder: Path, place: Place, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "real-key")
    secret = place.root / "secret"
    secret.mkdir()
    (secret / "file").write_text("hidden")
    mounts = (Mount(str(secret), "/mnt/secret", "ro", secret=True),)
    policy = replace(test_revoke.policy(server), wall="gvisor", mounts=mounts)
    kept = place.root / "kept"

    async def body(session: live.LiveSession) -> None:
        assert session._gate is not None
        session._gate.revoke([1], lambda said: None)
        await session.checkpoint(str(kept))
        assert (await session.exec(["cat", "/mnt/secret/file"])).stdout == b"hidden"
        async with session.fork() as other:
            assert other._gate is not None
            assert [(one["rule"], one["revoked"], one["off"]) for one in other._gate.grants() if one["grant"]["effect"] == "allow"] == [
                (1, True, True),
                (3, False, True),
            ]

    within(folder, body, policy)
    moved = replace(
        policy, grants=tuple(replace(grant, origin=replace(grant.origin, line=grant.origin.line + 7)) for grant in policy.grants)
    )

    async def later() -> None:
        async with live.open_session(moved, cwd=str(folder), restore=str(kept)) as other:
            assert other._gate is not None
            assert [(one["rule"], one["revoked"], one["off"]) for one in other._gate.grants()] == [
                (1, True, True),  # what goes on could have opened the mount before anybody looked
                (2, False, False),
                (3, False, True),
            ]

    asyncio.run(asyncio.wait_for(later(), 60))
    restored = [event for event in of_sessions(place) if event["kind"] == "session.restore"]
    assert [(event["tainted"], event["revoked"]) for event in restored] == [(True, 1), (True, 1)]


def test_what_may_sign_nothing_any_more_has_forks_that_may_not(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "echo more >> a.txt && git -c user.name=a -c user.email=a@example.test commit -qam inside"
    with keyring() as ring:
        monkeypatch.setenv("SSH_AUTH_SOCK", ring.socket)
        repository(folder / "repository")

        async def body(session: live.LiveSession) -> None:
            async with session.fork() as other:
                assert (await other.exec(["sh", "-c", commit])).exit_code == 0
            assert session._session.signer is not None and session._session.signer.revoke()
            async with session.fork() as other:
                assert (await other.exec(["sh", "-c", commit])).exit_code != 0

        within(folder / "repository", body, ring.policy(GUEST))


def test_a_fork_is_a_session_of_its_own(folder: Path, place: Place) -> None:
    short = Policy(wall="gvisor", limits=Limits(wall_time=30))

    async def body(session: live.LiveSession) -> tuple[str, str]:
        await background(session, CLOCKS)
        await session.write("/tmp/memory", b"carried")
        await session.write("file", b"of the workspace")
        async with session.fork() as other:
            await session.write("/tmp/memory", b"changed")
            assert await other.read("/tmp/memory") == b"carried"
            assert await other.read("file") == b"of the workspace"
            receipt = other._session.receipt()
            assert session.id in json.dumps(receipt) and receipt["session"] == other.id
            async with other.fork() as third:
                assert await third.read("/tmp/memory") == b"carried"
            assert not os.path.exists(f"{session._session.directory}/images/0")
        assert await session.read("/tmp/memory") == b"changed"
        return session.id, other.id

    parent, child = within(folder, body, short)
    found = of_sessions(place)
    saved = [event for event in found if event["kind"] == "session.checkpoint"]
    restored = [event for event in found if event["kind"] == "session.restore"]
    assert [event["session"] for event in saved] == [parent, child]
    assert [event["tainted"] for event in restored] == [False, False]
    assert [(event["parent"], event["digest"]) for event in restored] == [(event["session"], event["digest"]) for event in saved]
    for kind in ("session.start", "session.exit"):
        assert len({event["session"] for event in found if event["kind"] == kind}) == 3
    order = [event["kind"] for event in found if event["session"] == child]
    assert order == ["session.restore", "session.start", "session.checkpoint", "session.exit"]
    # What goes on there is seen from the first moment.
    assert [event for event in place.ledger() if event["kind"] == "guest.exec" and event["session"] == child]


def test_one_that_stood_ready_can_be_forked_like_any_other(folder: Path) -> None:
    async def whole() -> None:
        async with Pool(GUEST, size=1) as pool:
            await pool.filled()
            async with pool.session(cwd=str(folder)) as session:
                assert pool.hits == 1
                await session.write("/tmp/memory", b"carried")
                async with session.fork() as other:
                    assert await other.read("/tmp/memory") == b"carried"

    asyncio.run(asyncio.wait_for(whole(), 60))


# ---- the files


def test_it_is_the_users_alone_holds_what_was_read_and_goes_with_the_session(folder: Path, place: Place) -> None:
    canary, kept = os.urandom(8).hex().encode(), place.root / "kept"

    async def body(session: live.LiveSession) -> tuple[str, str]:
        await session.write("/tmp/canary", canary)
        before = os.umask(0)
        try:
            made, other = await session.checkpoint(), await session.checkpoint(str(kept))
        finally:
            os.umask(before)
        for path in (made.path, other.path):
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
            assert {stat.S_IMODE(os.stat(f"{path}/{name}").st_mode) for name in os.listdir(path)} == {0o600}
        assert any(canary in Path(made.path, name).read_bytes() for name in os.listdir(made.path))  # as the page says
        assert made.size == sum(os.path.getsize(f"{made.path}/{name}") for name in os.listdir(made.path) if name != checkpoints.NAME)
        return made.path, other.digest

    path, digest = within(folder, body)
    assert until(lambda: not os.path.exists(path)) and kept.is_dir()
    assert [event["path"] for event in of_sessions(place) if event["kind"] == "session.checkpoint"] == ["", str(kept)]
    assert [event["digest"] for event in of_sessions(place) if event["kind"] == "session.checkpoint"][1] == digest

    async def later() -> bytes:
        async with live.open_session(GUEST, cwd=str(folder), restore=str(kept)) as other:
            return await other.read("/tmp/canary")

    assert asyncio.run(asyncio.wait_for(later(), 60)) == canary


def _restored(folder: Path, what: checkpoints.Checkpoint | str, policy: Policy = GUEST) -> bytes:
    async def whole() -> bytes:
        async with live.open_session(policy, cwd=str(folder), restore=what) as session:
            return (await session.exec(["echo", "alive"])).stdout

    return asyncio.run(asyncio.wait_for(whole(), 60))


def test_what_is_not_the_one_that_was_made_is_not_restored(folder: Path, place: Place) -> None:
    kept = place.root / "kept"

    async def body(session: live.LiveSession) -> checkpoints.Checkpoint:
        return await session.checkpoint(str(kept))

    made = within(folder, body)
    starts = len([event for event in of_sessions(place) if event["kind"] == "session.start"])

    def refused(what: checkpoints.Checkpoint | str = made, policy: Policy = GUEST) -> str:
        with pytest.raises(StockadeError) as caught:
            _restored(folder, what, policy)
        assert caught.value.hint
        return caught.value.code

    assert refused(replace(made, digest="0" * 64)) == "checkpoint.broken"
    assert refused(str(place.root)) in ("checkpoint.missing", "checkpoint.unsafe")
    assert refused(str(kept / "absent")) == "checkpoint.missing"
    os.chmod(kept, 0o755)
    assert refused() == "checkpoint.unsafe"
    os.chmod(kept, 0o700)
    os.chmod(kept / "pages.img", 0o640)
    assert refused() == "checkpoint.unsafe"
    os.chmod(kept / "pages.img", 0o600)
    os.rename(kept / "pages.img", kept / "away")
    os.symlink("away", kept / "pages.img")
    assert refused() == "checkpoint.unsafe"
    os.rename(kept / "away", kept / "pages.img")
    for name in ("pages.img", "checkpoint.img", checkpoints.NAME):
        good = (kept / name).read_bytes()
        (kept / name).write_bytes(bytes((good[0] ^ 1,)) + good[1:])
        assert refused() == "checkpoint.broken"
        (kept / name).write_bytes(good)
    text = (kept / checkpoints.NAME).read_text()
    for other in ("[]", "{}", text.replace('"version": 1', '"version": 2'), text.replace('"files"', '"others"'), "[" * 100_000):
        (kept / checkpoints.NAME).write_text(other)
        assert refused(str(kept)) == "checkpoint.broken"
    (kept / checkpoints.NAME).write_text(text)
    # Another shape: what runs in it would go by the old limits.
    assert refused(policy=replace(GUEST, limits=Limits(processes=100))) == "checkpoint.differs"
    assert refused(policy=replace(GUEST, mounts=(Mount(str(place.home), "/mnt/more", "ro"),))) == "checkpoint.differs"
    assert refused(policy=Policy(wall="bubblewrap")) == "checkpoint.wall"
    assert len([event for event in of_sessions(place) if event["kind"] == "session.start"]) == starts
    assert until(lambda: os.listdir(place.sessions) == [])
    assert _restored(folder, made, replace(GUEST, grants=(Grant("new.example.test", scheme="http"),))) == b"alive\n"  # the twin


def test_one_of_another_runsc_is_refused_before_anything_is_started(folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one works, as a session of its own shows; by its bytes it is not the same."""

    async def body(session: live.LiveSession) -> checkpoints.Checkpoint:
        return await session.checkpoint(str(place.root / "kept"))

    made = within(folder, body)
    digest = hashlib.sha256(Path(runsc.find().path).read_bytes()).hexdigest()
    assert json.loads((place.root / "kept" / checkpoints.NAME).read_text())["runsc"] == digest
    assert [event["runsc"] for event in of_sessions(place) if event["kind"] == "session.checkpoint"] == [digest]
    other = place.root / "runsc"
    other.write_bytes(Path(runsc.find().path).read_bytes() + b"\0")
    other.chmod(0o755)
    with monkeypatch.context() as patched:
        patched.setattr(runsc, "PROGRAMS", (str(other),))
        patched.setenv("XDG_CACHE_HOME", str(place.root / "cache"))
        patched.setattr(Session, "record", lambda *_, **__: pytest.fail("something was recorded"))
        patched.setattr(gvisor, "warm", lambda *_: pytest.fail("something was started"))
        with pytest.raises(CannotEnforce, match=f"another runsc.*{digest[:16]}") as caught:
            _restored(folder, made)
        assert caught.value.code == "checkpoint.differs"
    with monkeypatch.context() as patched:
        patched.setattr(runsc, "PROGRAMS", (str(other),))
        patched.setenv("XDG_CACHE_HOME", str(place.root / "cache"))

        async def alive(session: live.LiveSession) -> bytes:
            return (await session.exec(["echo", "alive"])).stdout

        assert within(folder, alive) == b"alive\n"
    assert _restored(folder, made) == b"alive\n"


# ---- how it fails


def test_what_cannot_be_saved_is_an_error_and_the_session_goes_on(folder: Path, place: Place) -> None:
    target = place.root / "target"

    async def body(session: live.LiveSession) -> None:
        async def refused(code: str) -> None:
            with pytest.raises(StockadeError) as caught:
                await session.checkpoint(str(target))
            assert (caught.value.code, bool(caught.value.hint)) == (code, True)
            assert not target.exists() and not session._session.saving

        running = await session.start(["sleep", "300"])
        await refused("checkpoint.busy")
        running.kill()
        await running.wait()
        left = await session.exec(["sh", "-c", "setsid sleep 300 & echo $!"])
        await refused("checkpoint.held")
        await session.exec(["kill", left.stdout.decode().strip()])
        target.mkdir()
        with pytest.raises(StockadeError, match="File exists"):
            await session.checkpoint(str(target))
        target.rmdir()
        session.pause()
        await refused("session.paused")
        session.resume()
        both = await asyncio.gather(session.checkpoint(), session.checkpoint(), session.exec(["echo", "meanwhile"]), return_exceptions=True)
        assert isinstance(both[0], checkpoints.Checkpoint) and isinstance(both[2], live.Result)
        assert isinstance(both[1], StockadeError) and both[1].code == "session.saving"
        await session.checkpoint(str(target))

    within(folder, body)
    assert target.is_dir()


def test_a_daemon_without_any_redirection_of_its_input_can_be_saved(folder: Path) -> None:
    """The /dev/null that a command is given is the guest's own."""

    async def body(session: live.LiveSession) -> None:
        code = "import subprocess; subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)"
        assert (await session.exec([PYTHON, "-I", "-c", code])).exit_code == 0
        async with session.fork() as other:
            assert (await other.exec(["sh", "-c", "grep -l sleep /proc/[0-9]*/comm | wc -l"])).stdout.strip() != b"0"

    within(folder, body)


def test_without_a_receipt_there_is_no_checkpoint(folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise StockadeError("no space", code="ledger.write", hint="")

    async def body(session: live.LiveSession) -> None:
        made = await session.checkpoint()
        with monkeypatch.context() as patched:
            patched.setattr(session._session, "record", full)
            with pytest.raises(StockadeError, match="no space"):
                await session.checkpoint(str(place.root / "kept"))
        assert not (place.root / "kept").exists()
        with monkeypatch.context() as patched:  # and nothing goes on before that is on record
            patched.setattr("stockade.session.Session.record", full)
            with pytest.raises(StockadeError, match="no space"):
                async with live.open_session(GUEST, cwd=str(folder), restore=made):
                    raise AssertionError("it stands")

    within(folder, body)


def test_a_failure_in_the_middle_leaves_nothing(folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(session: live.LiveSession) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(checkpoints, "describe", full)
            with pytest.raises(WallFailed) as caught:
                await session.checkpoint(str(place.root / "one"))
        assert caught.value.code == "checkpoint.failed"
        with monkeypatch.context() as patched:
            patched.setattr(gvisor, "CONTAINER", "another")
            with pytest.raises(WallFailed) as caught:
                await session.checkpoint(str(place.root / "two"))
        assert caught.value.code == "checkpoint.failed" and "loading container" in caught.value.message
        task = asyncio.ensure_future(session.checkpoint(str(place.root / "three")))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await session.exec(["echo", "on"])).stdout == b"on\n"
        task = asyncio.ensure_future(session.checkpoint(str(place.root / "four")))
        await asyncio.sleep(0.02)
        await session.close()
        with pytest.raises(SessionEnded):
            await task
        for call in (session.checkpoint("/nowhere/else"), session.checkpoint()):
            with pytest.raises(SessionEnded):
                await call

    within(folder, body)
    assert not [name for name in ("one", "two", "three", "four") if (place.root / name).exists()]
    assert until(lambda: os.listdir(place.sessions) == [])


def test_a_guest_that_is_not_saved_in_time_is_ended(folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "LATE", 0.0)

    async def body(session: live.LiveSession) -> None:
        with pytest.raises(WallFailed) as caught:
            await session.checkpoint(str(place.root / "kept"))
        assert caught.value.code == "checkpoint.slow"
        with pytest.raises(WallFailed, match="was not saved"):
            await session.exec(["true"])

    within(folder, body)
    assert not (place.root / "kept").exists()


def test_a_file_that_is_gone_is_a_typed_end_of_the_restored_one(folder: Path, place: Place) -> None:
    (folder / "file").write_text("here")
    kept = place.root / "kept"

    async def body(session: live.LiveSession) -> None:
        await background(session, "import sys, time; f = open(sys.argv[1]); print('up', flush=True); time.sleep(300)", str(folder / "file"))
        await session.checkpoint(str(kept))

    within(folder, body)
    assert _restored(folder, str(kept)) == b"alive\n"
    (folder / "file").unlink()
    with pytest.raises(WallFailed) as caught:
        _restored(folder, str(kept))
    assert caught.value.code == "wall.died" and "no such file" in caught.value.message
    assert until(lambda: os.listdir(place.sessions) == [])


KILLED = """
import asyncio, os, signal, sys
from stockade.core.values import Policy
from stockade.session import live
async def main():
    async with live.open_session(Policy(wall="gvisor"), cwd=sys.argv[1]) as session:
        made = await session.checkpoint()
        assert os.path.exists(made.path)
        print(made.path, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""


def test_a_program_that_is_killed_leaves_no_checkpoint(folder: Path, place: Place) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], env=place.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == -9 and done.stdout.strip(), done
    place.run("true")  # whoever ends next looks after the dead
    assert until(lambda: not os.path.exists(done.stdout.strip()), 20)


def test_the_bubblewrap_wall_says_that_it_cannot(folder: Path) -> None:
    async def body(session: live.LiveSession) -> None:
        for call in (session.checkpoint(), session.fork().__aenter__()):
            with pytest.raises(CannotEnforce) as caught:
                await call
            assert caught.value.code == "checkpoint.wall" and "gvisor" in caught.value.hint
        assert (await session.exec(["echo", "on"])).stdout == b"on\n"

    within(folder, body, Policy(wall="bubblewrap"))
    with pytest.raises(CannotEnforce) as caught:
        bubblewrap.plan(Confinement(image="/some/where"), bubblewrap.look(HOME))
    assert caught.value.code == "checkpoint.wall"
