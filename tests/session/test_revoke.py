"""One session's grants are taken back by its user; another session of the same user goes on (M3)."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from biscuit_auth import Biscuit, BlockBuilder, PublicKey

from gateway.harness import Quiet, Served, require_engine
from session.supervised import Place
from stockade.core.values import Credential, Grant, Policy
from stockade.gateway import desk
from walls.boxes import until

pytestmark = pytest.mark.wall

# Asks once a moment, and writes one line for each answer: its status, or 000 for none.
LOOP = """
while :; do
  curl -s -o /dev/null -m 5 --noproxy '' -x http://127.0.0.1:3128 -H "x-key: $KEY" -w '%{http_code}\\n' http://open.localhost:PORT/public/x >> answers
  sleep 0.05
done
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    seen: list[str | None] = []

    class Handler(Quiet):
        def do_GET(self) -> None:
            seen.append(self.headers.get("x-key"))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    require_engine()
    served: Any = Served(Handler)
    served.seen = seen
    yield served
    served.close()


def policy(server: Any) -> Policy:
    path = ("/public/**",)
    return Policy(
        grants=(
            Grant("open.localhost", server.server_port, "http", paths=path, private=True, credential="own"),
            Grant("open.localhost", server.server_port, "http", paths=("/public/denied",), effect="deny"),
            Grant("unused.localhost", server.server_port, "http", paths=path, private=True),
        ),
        credentials=(Credential("own", "env:TEST_KEY", "x-key", "{}", "KEY"),),
    )


def start(place: Place, name: str, server: Any) -> tuple[subprocess.Popen[bytes], Path, str]:
    """A session that asks and asks: the process, the file of its answers, and the session's id."""
    folder = place.work / name
    folder.mkdir()
    known = set(os.listdir(place.sessions)) if place.sessions.exists() else set()
    before = "import os; os.environ['TEST_KEY'] = 'real-key'"
    run = place.start("/bin/sh", "-c", f"cd {name}; {LOOP.replace('PORT', str(server.server_port))}", policy=policy(server), before=before)
    assert until(lambda: (folder / "answers").exists() and "200" in (folder / "answers").read_text(), 20), run.poll()
    (ident,) = {one for one in os.listdir(place.sessions) if not one.startswith(".")} - known
    return run, folder / "answers", ident


def stockade(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stockade", "session", *words], env=place.env, capture_output=True, text=True, timeout=60)


def test_revoking_one_session_leaves_the_other_alone(place: Place, server: Any) -> None:
    first, answers, ident = start(place, "a", server)
    second, others, _ = start(place, "b", server)
    try:
        assert set(server.seen) == {"real-key"}
        listed = json.loads(stockade(place, "grants", ident, "--json").stdout)
        assert [(one["rule"], one["revoked"], one["grant"]["effect"]) for one in listed] == [
            (1, False, "allow"),
            (2, False, "deny"),
            (3, False, "allow"),
        ]
        done = stockade(place, "revoke", ident, "--credential", "own")
        assert done.returncode == 0 and "Taken back: 1" in done.stdout
        time.sleep(0.3)
        before, count = answers.read_text().split(), others.read_text().count("200")
        time.sleep(1)
        after = answers.read_text().split()[len(before) :]
        assert after and set(after) == {"403"}
        assert others.read_text().count("200") > count + 3 and "403" not in others.read_text()
        assert "revoked" in stockade(place, "grants", ident).stdout
        assert json.loads(stockade(place, "revoke", ident, "--json").stdout) == {"revoked": [3]}
        assert json.loads(stockade(place, "revoke", ident, "--json").stdout) == {"revoked": []}
        events = [event for event in place.ledger() if event["kind"] == "session.revoke"]
        assert [(event["session"], event["rules"]) for event in events] == [(ident, [1]), (ident, [3])]
    finally:
        for run in (first, second):
            run.terminate()
            run.communicate(timeout=30)
    assert stockade(place, "revoke", ident).returncode == 125


def test_what_was_taken_back_before_the_gate_started_never_holds(place: Place, server: Any) -> None:
    script = f"touch ready; while [ ! -e go ]; do sleep 0.05; done; {LOOP.replace('PORT', str(server.server_port))}"
    run = place.start("/bin/sh", "-c", script, policy=policy(server), before="import os; os.environ['TEST_KEY'] = 'real-key'")
    try:
        assert until((place.work / "ready").exists)
        assert stockade(place, "revoke", "s").returncode == 0
        server.seen.clear()
        (place.work / "go").touch()
        assert until(lambda: (place.work / "answers").exists() and (place.work / "answers").read_text().count("403") > 2, 20)
        assert not server.seen and "200" not in (place.work / "answers").read_text()
    finally:
        run.terminate()
        run.communicate(timeout=30)


@pytest.mark.parametrize(
    ("order", "code"),
    [
        (b'{"do": "revoke", "rules": [2]}', "session.widen"),
        (b'{"do": "revoke", "rules": [1, 9]}', "session.rule"),
        (b'{"do": "revoke", "rules": [0]}', "session.rule"),
        (b'{"do": "revoke", "rules": ["1"]}', "session.order"),
        (b'{"do": "revoke"}', "session.order"),
        (b'{"do": "grant", "rules": [1]}', "session.order"),
        (b'{"do": "grants", "more": 1}', "session.order"),
        (b"[]", "session.order"),
        (b"\xff" * 1000, "session.order"),
        (b"[" * 60000, "session.order"),
        (b"", ""),
    ],
)
def test_an_order_that_is_none_changes_nothing_and_ends_nothing(place: Place, server: Any, order: bytes, code: str) -> None:
    run = place.start(
        "/bin/sh",
        "-c",
        "touch ready; for i in $(seq 600); do [ -e go ] && exit; sleep 0.05; done",  # ends by itself, should the test fail
        policy=policy(server),
        before="import os; os.environ['TEST_KEY'] = 'k'",
    )
    assert until((place.work / "ready").exists)
    (ident,) = [one for one in os.listdir(place.sessions) if not one.startswith(".")]
    address = place.sessions / ident / desk.NAME
    assert os.stat(address.parent).st_mode & 0o077 == 0
    fd = os.open(address.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        # The command may run a moment before the session listens.
        assert until(lambda: sock.connect_ex(f"/proc/self/fd/{fd}/{desk.NAME}") == 0)
        if order:
            sock.send(order)
            assert json.loads(sock.recv(65536))["error"] == code
    os.close(fd)
    listed = json.loads(stockade(place, "grants", ident, "--json").stdout)
    assert [one["revoked"] for one in listed] == [False] * 3
    (place.work / "go").touch()
    assert run.wait(20) == 0
    run.communicate()


def test_the_sandbox_cannot_give_orders(place: Place, server: Any) -> None:
    """Its own directory is not visible inside, so there is nothing to connect to."""
    script = f"find / -name {desk.NAME} -type s 2>/dev/null; ls -d {place.sessions} 2>&1"
    done = place.run("/bin/sh", "-c", script, policy=policy(server), before="import os; os.environ['TEST_KEY'] = 'k'")
    assert b"/desk" not in done.stdout and b"No such file" in done.stdout


# Asks with its own key, and with one that somebody puts there, once a moment.
TWO = """
echo "$STOCKADE_TOKEN_KEY" > public; echo "$KEY" > own
while :; do
  for one in own child; do
    [ -e $one ] && curl -s -o /dev/null -m 5 --noproxy '' -x http://127.0.0.1:3128 -H "x-key: $(cat $one)" -w '%{http_code}\\n' http://open.localhost:PORT/public/x >> $one.answers
  done
  sleep 0.05
done
"""


def test_one_token_is_taken_back_and_the_one_it_was_made_from_goes_on(place: Place, server: Any) -> None:
    before = "import os; os.environ['TEST_KEY'] = 'real-key'"
    run = place.start("/bin/sh", "-c", TWO.replace("PORT", str(server.server_port)), policy=policy(server), before=before)

    def answers(name: str) -> list[str]:
        path = place.work / f"{name}.answers"
        return path.read_text().split() if path.exists() else []

    try:
        assert until(lambda: "200" in answers("own"), 20), run.poll()
        (ident,) = (one for one in os.listdir(place.sessions) if not one.startswith("."))
        key, own = ((place.work / name).read_text().strip() for name in ("public", "own"))
        head = "stockade-placeholder-own-"
        token = Biscuit.from_base64(own.removeprefix(head), PublicKey(key)).append(BlockBuilder('check if method("GET")'))
        child = head + token.to_base64()
        (place.work / "new").write_text(child)
        (place.work / "new").rename(place.work / "child")
        assert until(lambda: "200" in answers("child"), 20)
        wrong = stockade(place, "revoke", ident, "--token", child[:-9], "--json")
        assert wrong.returncode == 125 and "session.token" in wrong.stdout + wrong.stderr
        done = stockade(place, "revoke", ident, "--token", child, "--json")
        name = token.revocation_ids[-1]
        assert json.loads(done.stdout) == {"revoked": [], "tokens": [name]}
        seen = len(answers("child")), len(answers("own"))
        assert until(lambda: len(answers("child")) > seen[0] + 4 and len(answers("own")) > seen[1] + 4, 20)
        assert set(answers("child")[seen[0] + 1 :]) == {"403"}
        assert answers("own")[seen[1] + 1 :].count("200") >= 3 and "403" not in answers("own")
        assert json.loads(stockade(place, "revoke", ident, "--token", name, "--json").stdout) == {"revoked": [], "tokens": []}
        assert [event["tokens"] for event in place.ledger() if event["kind"] == "session.revoke"] == [[name]]
    finally:
        run.terminate()
        run.communicate(timeout=30)


def test_a_token_taken_back_before_the_gate_started_never_passes(place: Place, server: Any) -> None:
    waits = "while [ ! -e go ]; do sleep 0.02; done; " + TWO.replace("PORT", str(server.server_port))
    before = "import os; os.environ['TEST_KEY'] = 'real-key'"
    run = place.start("/bin/sh", "-c", "echo $KEY > told; " + waits, policy=policy(server), before=before)
    try:
        assert until(lambda: (place.work / "told").exists() and (place.work / "told").read_text().endswith("\n"), 20)
        (ident,) = (one for one in os.listdir(place.sessions) if not one.startswith("."))
        done = stockade(place, "revoke", ident, "--token", (place.work / "told").read_text().strip())
        assert done.returncode == 0 and "Taken back: the token" in done.stdout
        (place.work / "go").touch()
        assert until(lambda: (place.work / "own.answers").exists() and len((place.work / "own.answers").read_text().split()) > 3, 20)
        assert set((place.work / "own.answers").read_text().split()) == {"403"}
    finally:
        run.terminate()
        run.communicate(timeout=30)
