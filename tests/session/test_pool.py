"""Sandboxes that stand ready: bound late to what a session wants, handed out once, and nothing of one session in another (M14, M21, M25, M26)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place, adopting, offspring
from session.test_revoke import server
from stockade.core.errors import CannotEnforce, StockadeError, WallFailed
from stockade.core.frozen import replace
from stockade.core.values import Credential, Grant, Limits, Mount, Policy
from stockade.session import confine
from stockade.session import pool as pools
from stockade.session.live import LiveSession
from stockade.session.pool import Pool
from stockade.session.prepared import Prepared
from stockade.walls import gvisor, limits
from walls.boxes import require, until

pytestmark = pytest.mark.wall
GUEST = Policy(wall="gvisor")
__all__ = ["server"]


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require(gvisor)
    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "whose").write_text(name)


def with_pool(body: Callable[[Pool], Awaitable[None]], policy: Policy = GUEST, **more: int) -> None:
    async def whole() -> None:
        async with Pool(policy, **more) as pool:
            await pool.filled()
            await body(pool)

    asyncio.run(asyncio.wait_for(whole(), 90))


async def said(session: LiveSession, script: str) -> str:
    found = await session.exec(["/bin/sh", "-c", script])
    return (found.stdout + found.stderr).decode().strip()


def ledger(tmp_path: Path, session: str) -> list[dict[str, Any]]:
    lines = (tmp_path / "state/stockade/ledger/log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["session"] == session]


def test_what_is_handed_out_is_a_whole_session_of_its_own(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        seen = []
        for name in ("a", "b", "a"):
            async with pool.session(cwd=str(tmp_path / name)) as session:
                assert session.workspace == str(tmp_path / name)
                assert await said(session, "cat whose; echo mine > new; cat new") == f"{name}mine"
                assert (
                    await said(session, f"ls -A {tmp_path}; ls -A ~ /var/tmp | grep left; echo left > ~/left; echo left > /var/tmp/left")
                    == name
                )
                assert await said(session, "echo $STOCKADE_SESSION") == session.id
                seen.append(session.id)
            assert (tmp_path / name / "new").read_text() == "mine\n"
            kinds = [event["kind"] for event in ledger(tmp_path, session.id)]
            assert kinds[0] == "session.start" and "session.exit" in kinds and "guest.mount" not in kinds
            assert [str(tmp_path / name), str(tmp_path / name), "rw"] in ledger(tmp_path, session.id)[0]["mounts"]
        assert len(set(seen)) == 3 and (pool.hits, pool.misses) == (3, 0)

    with_pool(body, size=3)


def test_two_at_once_see_nothing_of_each_other(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        async with pool.session(cwd=str(tmp_path / "a")) as one, pool.session(cwd=str(tmp_path / "b")) as other:
            await one.exec(["/bin/sh", "-c", "echo secret > /tmp/x; sleep 60 & exec sleep 0"])
            assert await said(other, f"cat /tmp/x {tmp_path}/a/whose; ps ax | grep -c '[s]leep 60'") != ""
            assert "secret" not in await said(other, "cat /tmp/x")
            assert "No such file" in await said(other, f"cat {tmp_path}/a/whose")
            assert await said(other, "grep -c sleep /proc/[0-9]*/comm | grep -v :0") == ""
            assert await said(one, "grep -l sleep /proc/[0-9]*/comm") != ""  # the twin: in its own it is seen

    with_pool(body, size=2)


def test_one_that_waits_has_nothing_of_anybody(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        [waiting] = pool._ready
        assert waiting.box is not None
        init = limits.init_of(waiting.box.pid)
        mounts = Path(f"/proc/{init}/mountinfo").read_text()
        assert str(tmp_path / "a") not in mounts and "ca.pem" not in mounts and " /late " in mounts
        assert Path(f"/proc/{init}/environ").read_bytes() == b"PWD=/\0"
        assert not (tmp_path / "state/stockade/ledger/log.jsonl").exists()  # nothing has happened
        async with pool.session(cwd=str(tmp_path / "a")) as session:
            assert str(tmp_path / "a") in Path(f"/proc/{init}/mountinfo").read_text()
            assert session.id == waiting.id
            assert waiting not in pool._ready

    with_pool(body, size=1)


def test_all_but_the_next_one_stand_still(tmp_path: Path) -> None:
    def still(prepared: Prepared) -> bool:
        assert prepared.box is not None
        return Path(f"/proc/{limits.init_of(prepared.box.pid)}/stat").read_text().rsplit(") ", 1)[1][0] == "T"

    async def body(pool: Pool) -> None:
        assert [still(each) for each in pool._ready] == [False, True]
        async with pool.session(cwd=str(tmp_path / "a")) as one, pool.session(cwd=str(tmp_path / "b")) as other:
            assert [await said(session, "cat whose") for session in (one, other)] == ["a", "b"]
            await pool.filled()
            assert [still(each) for each in pool._ready] == [False, True]
        assert pool.misses == 0

    with_pool(body, size=2)


HIDDEN = """
ls -A /run/stockade-late; echo x > /run/stockade-late/x; umount /run/stockade-late; umount /tmp; mount -t tmpfs none /tmp
python3 - "$1" <<'END'
import os, sys
top = os.lstat(sys.argv[1])
for place, folders, files in os.walk("/"):  # the workspace under another name
    folders[:] = [name for name in folders if os.path.join(place, name) not in ("/proc", "/sys", "/usr")]
    for name in folders:
        found, path = os.lstat(os.path.join(place, name)), os.path.join(place, name)
        if path != sys.argv[1] and (found.st_ino, found.st_dev) == (top.st_ino, top.st_dev): print("found", path)
print("looked")
END
"""


def test_mounts_have_one_place_and_the_guests_root_cannot_mount(tmp_path: Path) -> None:
    (tmp_path / "a/deep").mkdir()
    policy = replace(
        GUEST, mounts=(Mount(str(tmp_path / "b"), str(tmp_path / "a/deep"), "ro"), Mount(str(tmp_path / "b"), "/data/b", "ro"))
    )

    async def body(pool: Pool) -> None:
        async with pool.session(cwd=str(tmp_path / "a")) as session:
            found = await session.exec(["/bin/sh", "-c", HIDDEN, "sh", session.workspace])
            assert found.stdout == b"looked\n", found
            assert (
                found.stderr.count(b"ermission denied") + found.stderr.count(b"must be superuser") + found.stderr.count(b"ead-only") >= 4
            ), found
            assert await said(session, "cat deep/whose /data/b/whose whose") == "bba"
            for change in ("mv deep other", "echo x > deep/whose", "echo x > /data/b/whose", "rm -r deep", "mkdir /data/c"):
                assert (await session.exec(["/bin/sh", "-c", change])).exit_code != 0, change
            assert (await session.exec(["/bin/sh", "-c", "mv whose other && echo x > deeper"])).exit_code == 0

    with_pool(body, policy, size=1)
    assert (tmp_path / "b/whose").read_text() == "b"


def test_a_link_where_a_mount_belongs_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/link").symlink_to("/etc")
    policy = replace(GUEST, mounts=(Mount(str(tmp_path / "b"), str(tmp_path / "a/link"), "ro"),))

    async def body(pool: Pool) -> None:
        with pytest.raises(CannotEnforce) as caught:
            async with pool.session(cwd=str(tmp_path / "a")):
                raise AssertionError("it stands")
        assert caught.value.code == "mount.target"
        with monkeypatch.context() as patched, pytest.raises(WallFailed, match="Too many levels of symbolic links"):
            patched.setattr(confine, "_straight", lambda *_: None)  # somebody puts it there after that look
            async with pool.session(cwd=str(tmp_path / "a")):
                raise AssertionError("it stands")
        (tmp_path / "a/link").unlink()
        async with pool.session(cwd=str(tmp_path / "a")) as session:
            assert await said(session, "cat link/whose") == "b"

    with_pool(body, policy, size=1)


def test_a_policy_that_fits_no_waiting_one_gets_a_new_one(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        small = replace(GUEST, limits=Limits(memory=300 << 20))
        async with pool.session(small, cwd=str(tmp_path / "a")) as session:
            assert await said(session, "head -1 /proc/meminfo | tr -dc 0-9") == str(300 << 10)
        assert (pool.hits, pool.misses, pool.ready) == (0, 1, 1)
        granted = replace(GUEST, grants=(Grant("example.test"),))
        async with pool.session(granted, cwd=str(tmp_path / "a")) as session:
            assert await said(session, "cat whose") == "a"
        assert (pool.hits, pool.misses) == (1, 1)  # grants are given late

    with_pool(body, size=1)


def test_one_that_went_stale_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(pool: Pool) -> None:
        [waiting] = pool._ready
        look = gvisor.look
        monkeypatch.setattr(gvisor, "look", lambda home: replace(look(home), etc=str(tmp_path / "etc")))  # the host's settings have changed
        shutil.copytree(look("/root").etc, tmp_path / "etc", symlinks=True)
        (tmp_path / "etc/new").touch()
        async with pool.session(cwd=str(tmp_path / "a")) as session:
            assert session.id != waiting.id and waiting.box is not None and waiting.box.dead
            assert await said(session, "ls /etc/new") == "/etc/new"
        assert (pool.hits, pool.misses) == (0, 1)

    with_pool(body, size=1)


def killed(pool: Pool) -> Prepared:
    """The one that waits, whose runsc is dead."""
    [waiting] = pool._ready
    os.kill(limits.init_of(waiting.guest.pid), signal.SIGKILL)
    return waiting


def test_one_that_dies_while_it_waits_is_replaced(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        waiting = killed(pool)
        while waiting in pool._ready:
            await asyncio.sleep(0.01)
        await pool.filled()
        async with pool.session(cwd=str(tmp_path / "a")) as session:
            assert await said(session, "cat whose") == "a"
        assert pool.misses == 0

    with_pool(body, size=1)


def test_one_that_dies_when_it_is_wanted_is_a_typed_error(tmp_path: Path) -> None:
    async def body(pool: Pool) -> None:
        waiting = killed(pool)
        with suppress(WallFailed):
            async with pool.session(cwd=str(tmp_path / "a")) as session:
                await session.exec(["/bin/true"])
                assert session.id != waiting.id, "it was dead"
        async with pool.session(cwd=str(tmp_path / "a")) as session:
            assert await said(session, "cat whose") == "a"

    with_pool(body, size=1)


def test_as_many_are_kept_as_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CALM", 0.2)

    async def body(pool: Pool) -> None:
        async with pool.session(cwd=str(tmp_path / "a")), pool.session(cwd=str(tmp_path / "a")):
            pass
        assert pool.misses == 1 and pool._wanted == 2
        deadline = asyncio.get_running_loop().time() + 20
        while (pool._wanted, pool.ready) != (1, 1):
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.05)

    with_pool(body, size=1)


def test_when_none_can_be_started_the_session_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(home: str) -> gvisor.Host:
        raise CannotEnforce("there is no runsc", code="gvisor.missing", hint="Install it.")

    monkeypatch.setattr(gvisor, "look", missing)

    async def whole() -> None:
        async with Pool(GUEST) as pool:
            with pytest.raises(StockadeError, match="could not be started"):
                await pool.filled()
            with pytest.raises(CannotEnforce, match="there is no runsc"):
                async with pool.session(cwd=str(tmp_path / "a")):
                    raise AssertionError("it stands")

    asyncio.run(whole())
    assert os.listdir(tmp_path / "state/stockade/sessions") == []


def test_a_wall_without_waiting_sandboxes_says_so() -> None:
    with pytest.raises(CannotEnforce, match="bubblewrap"):
        Pool(Policy())


def test_grants_and_credentials_come_late(tmp_path: Path, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", "the-secret")
    keys = (Credential("own", "env:KEY", "x-key", "{}", "OWN_KEY"),)
    grant = Grant("open.localhost", server.server_port, "http", paths=("/public/**",), private=True, credential="own")
    ask = f"curl -s -o /dev/null -m 20 --noproxy '' -x http://192.0.0.1:3128 -H \"x-key: $OWN_KEY\" -w '%{{http_code}}' http://open.localhost:{server.server_port}/public/x"

    async def body(pool: Pool) -> None:
        async with pool.session(replace(GUEST, grants=(grant,), credentials=keys), cwd=str(tmp_path / "a")) as session:
            assert await said(session, ask) == "200"
            assert "the-secret" not in await said(session, "env")
        async with pool.session(cwd=str(tmp_path / "b")) as other:
            assert await said(other, ask) != "200"
        assert (pool.hits, server.seen) == (2, ["the-secret"])

    with_pool(body, size=2)


DRIVER = """
import asyncio, sys
from stockade.core.values import Policy
from stockade.session.pool import Pool
from stockade.session.prepared import Prepared
async def whole():
    async with Pool(Policy(wall="gvisor"), size=2) as pool:
        await pool.filled()
        async with pool.session(cwd=sys.argv[1]) as session:
            print((await session.exec(["/bin/cat", "whose"])).stdout.decode(), flush=True)
            await session.exec(["/bin/sleep", "300"])
asyncio.run(whole())
"""


def test_a_killed_holder_of_a_pool_leaves_nothing(tmp_path: Path, place: Place) -> None:
    import subprocess

    with adopting():
        argv = [sys.executable, "-c", DRIVER, str(tmp_path / "a")]
        with subprocess.Popen(argv, env=place.env, stdout=subprocess.PIPE, text=True) as holder:
            assert holder.stdout is not None and holder.stdout.readline() == "a\n"
            assert len(offspring()) > 4
            holder.kill()
        assert until(lambda: not offspring(), 20), offspring()
    assert place.run("/bin/cat", "whose", policy=GUEST).returncode == 1  # the next start cleans up
    assert until(lambda: os.listdir(place.sessions) == [])
