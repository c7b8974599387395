"""A gate that several sessions of one user share: started on demand or as a service, and nothing goes round it when it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from session.supervised import Place, adopting, offspring
from session.test_revoke import LOOP, server
from stockade.core.frozen import replace
from stockade.core.values import Grant, Mount, Policy
from walls.boxes import until

pytestmark = pytest.mark.wall
__all__ = ["server"]

ONCE = "curl -s -o /dev/null -m 10 --noproxy '' -x http://127.0.0.1:3128 -w '%{http_code}' http://open.localhost:PORT/public/x"


def policy(server: Any) -> Policy:
    grant = Grant("open.localhost", server.server_port, "http", paths=("/public/**",), private=True)
    return replace(Policy(grants=(grant,)), gate="shared")


def serve(place: Place, *words: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "stockade", "gate", "serve", *words]
    return subprocess.Popen(argv, env=place.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def service(place: Place, server: Any) -> Iterator[subprocess.Popen[str]]:
    started = serve(place)
    assert until((place.root / "state/stockade/gate/hall").exists, 20), started.communicate(timeout=5)
    yield started
    started.terminate()
    started.communicate(timeout=20)


def asking(place: Place, name: str, server: Any, given: Policy | None = None) -> tuple[subprocess.Popen[bytes], Path]:
    folder = place.work / name
    folder.mkdir()
    run = place.start("/bin/sh", "-c", f"cd {name}; {LOOP.replace('PORT', str(server.server_port))}", policy=given or policy(server))
    assert until(lambda: (folder / "answers").exists() and "200" in (folder / "answers").read_text(), 30), run.poll()
    return run, folder / "answers"


def test_two_sessions_one_gate_and_when_it_is_killed_both_are_without_a_network(
    place: Place, server: Any, service: subprocess.Popen[str]
) -> None:
    runs = [asking(place, name, server) for name in ("a", "b")]
    try:
        houses = [pid for pid, line in offspring().items() if "stockade.gatehouse" in line]
        assert len(houses) == 2  # brain and doorman, once
        service.kill()
        assert until(lambda: all("000" in answers.read_text().split()[-3:] for _, answers in runs), 20)
        seen = len(server.seen)
        time.sleep(0.5)
        assert len(server.seen) == seen and not any(pid in offspring() for pid in houses)
    finally:
        for run, _ in runs:
            run.terminate()
            run.communicate(timeout=30)
    events = place.ledger()
    assert [event["gate"] for event in events if event["kind"] == "gate.start"] == ["shared", "shared"]
    assert len([event for event in events if event["kind"] == "gate.exit"]) == 2


def test_what_one_session_has_opened_narrows_that_one_only(place: Place, server: Any, service: subprocess.Popen[str]) -> None:
    (place.root / "crm").mkdir()
    marked = replace(policy(server), mounts=(Mount(str(place.root / "crm"), "/crm", secret=True),))
    runs = [asking(place, "a", server, marked), asking(place, "b", server)]
    try:
        os.listdir(place.root / "crm")
        answers, others = (answers for _, answers in runs)
        assert until(lambda: answers.read_text().split()[-3:] == ["403"] * 3, 20)
        (taint,) = [event for event in place.ledger() if event["kind"] == "taint"]
        url = f"http://open.localhost:{server.server_port}/public/x"
        words = [sys.executable, "-m", "stockade", "gate", "explain", "GET", url, "--session", str(taint["session"]), "--json"]
        said = subprocess.run(words, env=place.env, cwd=place.work, capture_output=True, text=True, timeout=60)
        assert json.loads(said.stdout)["rule"] == "after-secret"
        before = len(others.read_text().split())
        assert until(lambda: len(others.read_text().split()) > before + 5) and set(others.read_text().split()) == {"200"}
    finally:
        for run, _ in runs:
            run.terminate()
            run.communicate(timeout=30)


def test_the_first_session_starts_it_and_the_next_finds_it(place: Place, server: Any) -> None:
    with adopting():
        try:
            for _ in range(2):
                done = place.run("/bin/sh", "-c", ONCE.replace("PORT", str(server.server_port)), policy=policy(server))
                assert done.stdout == b"200", done
            (found,) = [pid for pid, line in offspring().items() if "gate serve" in line]
            os.kill(found, signal.SIGTERM)
            assert until(lambda: not any("stockade.gatehouse" in line or "gate serve" in line for line in offspring().values()), 10)
            done = place.run("/bin/sh", "-c", ONCE.replace("PORT", str(server.server_port)), policy=policy(server))
            assert done.stdout == b"200", done  # it is started anew
        finally:
            for pid, line in offspring().items():
                if "gate serve" in line:
                    os.kill(pid, signal.SIGTERM)
            until(lambda: not any("stockade.gatehouse" in line for line in offspring().values()), 10)


def test_it_leaves_when_nobody_needs_it_and_there_is_only_one(place: Place, server: Any) -> None:
    first = serve(place, "--idle", "4")
    assert until((place.root / "state/stockade/gate/hall").exists, 20)
    second = serve(place)
    assert second.wait(20) != 0 and "runs already" in second.communicate()[1]
    done = place.run("/bin/sh", "-c", ONCE.replace("PORT", str(server.server_port)), policy=policy(server))
    assert done.stdout == b"200", done
    assert first.wait(20) == 0
    first.communicate()
    assert not (place.root / "state/stockade/gate/hall").exists()


def test_a_gate_that_cannot_be_reached_means_no_network(place: Place, server: Any) -> None:
    """Somebody else sits where it should be, and does not answer."""
    (place.root / "state/stockade").mkdir(parents=True)
    (place.root / "state/stockade/gate").mkdir(mode=0o700)
    (place.root / "state/stockade/gate/hall").mkdir()  # nothing can be bound here
    before, seen = "from stockade.session import shared; shared._START = 0.5", len(server.seen)
    done = place.run("/bin/sh", "-c", ONCE.replace("PORT", str(server.server_port)), policy=policy(server), before=before)
    assert done.stdout == b"000" and b"the shared gate did not start" in done.stderr
    assert len(server.seen) == seen
