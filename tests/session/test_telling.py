"""Others are told what is asked and answered: signed, without what a request holds, and without anybody waiting for it."""

from __future__ import annotations

import base64
import contextlib
import hmac
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from select import PIPE_BUF
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.harness import Quiet, Served, require_engine
from session.supervised import Place
from stockade.core.asks import Answered, Asked
from stockade.core.frozen import replace
from stockade.core.loop import Loop
from stockade.core.values import Asking, Grant, Policy
from stockade.gateway.errand import Errand
from stockade.session import courier, inbox, telling
from walls.boxes import until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
SAME = {"action": "egress", "risk": "medium", "reversible": False, "tainted": False, "people": False, "asked": 1.0, "expires": 2.0}


def event(number: int = 1, kind: str = "asked", **other: Any) -> dict[str, Any]:
    return {"kind": kind, "ask": number, "what": "GET https://api.example.test/a", "rule": "policy.toml:3", **SAME, **other}


@pytest.fixture
def receiver() -> Iterator[Any]:
    """Notes what it is told, and answers with one status after the other, the last for ever."""

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            served.got.append((self.path, dict(self.headers), body))
            status = served.statuses.pop(0) if len(served.statuses) > 1 else served.statuses[0]
            self.send_response(status)
            self.send_header("content-length", "0")
            if status in (302, 307, 308):
                self.send_header("location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST

    served: Any = Served(Handler)
    served.got, served.statuses = [], [200]
    served.url = f"http://127.0.0.1:{served.server_port}/hook"
    yield served
    served.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """In this process, whose alarm belongs to the tests' own timeout. Returns where the ledger is."""
    monkeypatch.setattr(courier, "TRIES", (0.0, 0.01, 0.02))
    monkeypatch.setattr(courier, "_within", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(courier.Courier, "_ended", lambda *_: False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOOK", SECRET)
    return tmp_path / "state"


def made(receiver: Any, **other: Any) -> courier.Courier:
    return courier.Courier({"session": "s1", "webhook": receiver.url, "secret": "env:HOOK", "notify": False, **other})


def untold(state: Path) -> list[dict[str, Any]]:
    place = Place.__new__(Place)
    place.root = state.parent
    return [one for one in place.ledger() if one["kind"] == "approval.untold"] if state.exists() else []


def checked(headers: dict[str, str], body: bytes, secret: str = SECRET) -> dict[str, Any]:
    """As a receiver would (Standard Webhooks, "Verifying")."""
    said = {name.lower(): value for name, value in headers.items()}
    assert abs(time.time() - int(said["webhook-timestamp"])) < 300 and said["content-type"] == "application/json"
    text = f"{said['webhook-id']}.{said['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.digest(base64.b64decode(secret[6:]), text, "sha256")).decode()
    assert said["webhook-signature"] == f"v1,{mac}"
    return {"id": said["webhook-id"], **json.loads(body)}


def test_the_signature_is_that_of_the_specification() -> None:
    """The vector of Standard Webhooks' own libraries."""
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    found = courier.signed(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert found["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_receiver_that_stumbles_gets_the_same_again_and_one_that_refuses_does_not(receiver: Any, quick: Path) -> None:
    one = made(receiver)
    receiver.statuses = [500, 503, 204]
    one.deliver(event())
    ids = [checked(headers, body)["id"] for _, headers, body in receiver.got]
    assert ids == ["s1-1-asked"] * 3 and untold(quick) == []
    receiver.got.clear()
    receiver.statuses = [404]
    one.deliver(event(2))
    one.deliver(event(3))  # to one that was down a moment ago once is enough, and it is on record once
    assert len(receiver.got) == 2
    (noted,) = untold(quick)
    assert noted["to"] == "webhook 127.0.0.1" and noted["reason"] == "it answered 404" and noted["session"] == "s1"
    receiver.statuses = [503, 200]
    one.deliver(event(4))
    one.deliver(event(5, "answered", outcome="approved"))
    assert [checked(headers, body)["id"] for _, headers, body in receiver.got[2:]] == ["s1-4-asked", "s1-5-answered"]


def test_what_was_signed_for_one_address_goes_to_no_other(receiver: Any, quick: Path) -> None:
    for status in (302, 307, 308):
        receiver.got.clear()
        receiver.statuses = [status]
        made(receiver).deliver(event())
        assert [path for path, _, _ in receiver.got] == ["/hook"] and untold(quick)[-1]["reason"] == f"it answered {status}"


@pytest.mark.parametrize("secret", ["whsec_c2hvcnQ=", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_&&&&", "whsec_" + "A" * 96, ""])
def test_nothing_is_sent_that_nobody_could_check(receiver: Any, quick: Path, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("HOOK", secret)
    made(receiver).deliver(event())
    assert receiver.got == [] and len(untold(quick)) == 1 and (not secret or secret not in json.dumps(untold(quick)))


def test_nobody_there_and_nobody_certified(receiver: Any, quick: Path) -> None:
    made(receiver, webhook=receiver.url.replace("http", "https")).deliver(event())  # no TLS there
    gone = receiver.url
    receiver.close()
    made(receiver, webhook=gone).deliver(event())
    assert len(untold(quick)) == 2 and "/hook" not in json.dumps(untold(quick)) and receiver.got == []


HOSTILE = "GET https://x.example.test/<b>&amp;<img src=x>\\342\\200\\256\\n" + "a" * 500


def test_the_desktop_shows_no_markup(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Any) -> None:
    program = tmp_path / "notify-send"
    program.write_text(f'#!/bin/sh\nfor one; do printf "%s\\0" "$one"; done >{tmp_path}/shown\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    one = made(receiver, webhook="", secret="", notify=True)
    one.deliver(event(what=HOSTILE, risk="high"))
    *options, dashes, title, text, _ = (tmp_path / "shown").read_text().split("\0")
    assert options == ["--app-name=stockade", "--urgency=critical"] and dashes == "--" and title == "stockade asks (high risk)"
    assert (
        "<" not in text and "\\" not in text and text.startswith("GET https://x.example.test/&lt;b&gt;&amp;amp;&lt;img") and len(text) < 300
    )
    (tmp_path / "shown").unlink()
    one.deliver(event(kind="answered"))
    assert not (tmp_path / "shown").exists()
    program.write_text("#!/bin/sh\nexit 3\n")
    one.deliver(event())
    one.deliver(event())
    (noted,) = untold(quick)
    assert noted["to"] == "desktop" and receiver.got == []


def test_a_long_or_strange_text_is_told_shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[bytes] = []

    class Kept:
        def __init__(self, *_: object) -> None: ...
        def tell(self, line: bytes) -> bool:
            lines.append(line)
            return len(line) <= PIPE_BUF

    monkeypatch.setattr(telling, "Errand", Kept)
    said: list[str] = []
    session: Any = SimpleNamespace(id="s1", policy=Policy(approvals=replace(Asking(), notify=True)))
    heard: list[object] = []
    one = telling.Telling(session, Loop(), said.append, lambda *both: heard.append(both))
    strange = Asked(1, "egress", "w", "d", 'GET "\\' * 2000, rule='"' * 2000)
    one.hear(strange, None)
    for outcome in ("earlier", "earlier"):
        one.hear(None, Answered(strange, True, outcome, "rule"))
    setup, asked, answered = map(json.loads, lines)  # the second was of nobody who had been asked
    assert setup["notify"] and asked["what"].endswith("...") and answered["outcome"] == "earlier" and len(heard) == 3 and said == []


def test_whoever_does_not_read_holds_nobody_up() -> None:
    loop = Loop()
    errand = Errand(["/bin/sleep", "60"], {}, loop, lambda _: None)
    try:
        line = b"x" * 4095 + b"\n"
        told = 0
        while errand.tell(line):
            told += 1
            assert told < 1000
        assert told > 1 and not errand.tell(b"x" * 4096 + b"\n")
    finally:
        subprocess.run(["kill", str(errand._pid)], check=True)
        errand.close()


@pytest.mark.wall
def test_a_receiver_that_drips_and_a_session_that_ends_keep_it_no_longer(tmp_path: Path) -> None:
    class Drips(Quiet):
        def do_POST(self) -> None:
            tries.append(time.monotonic())
            with contextlib.suppress(OSError):
                for _ in range(600):
                    self.wfile.write(b"H")
                    time.sleep(0.1)

    tries: list[float] = []
    served = Served(Drips)
    setup = {"session": "s1", "webhook": f"http://127.0.0.1:{served.server_port}/", "secret": "env:HOOK", "notify": False}
    program = "from stockade.session import courier; courier.SECONDS, courier.LAST = 1, 2.5; courier.main()"
    env = {"HOOK": SECRET, "XDG_STATE_HOME": str(tmp_path / "state"), "HOME": str(tmp_path)}
    lines = "".join(json.dumps(one) + "\n" for one in (setup, event(1), event(2), event(3)))
    try:
        done = subprocess.run([sys.executable, "-c", program], input=lines, env=env, capture_output=True, text=True, timeout=60)
    finally:
        served.close()
    assert done.returncode == 0 and done.stderr == "" and 1 <= len(tries) <= 2
    assert done.stdout.count("\n") == 1 and len(untold(tmp_path / "state")) == 1


@pytest.mark.wall
def test_a_real_session_tells_what_is_asked_and_what_became_of_it(place: Place, receiver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    require_engine()
    monkeypatch.setenv("XDG_STATE_HOME", str(place.root / "state"))
    (place.home / "hook").write_text(SECRET)
    seen: list[str] = []

    class Upstream(Quiet):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    upstream = Served(Upstream)
    port = upstream.server_port
    policy = Policy(
        grants=(Grant("open.localhost", port, "http", ("POST",), effect="ask", private=True),),
        approvals=replace(Asking(), webhook=receiver.url, webhook_secret=f"file:{place.home}/hook"),
    )
    curl = "curl -s -m 60 --noproxy '' -x http://127.0.0.1:3128 -o /dev/null -w '%{http_code}' -d body=hidden"
    run = place.start("/bin/sh", "-c", f"{curl} 'http://open.localhost:{port}/a?query=hidden'", policy=policy)
    try:
        assert until(lambda: len(receiver.got) == 1, 30), run.poll()
        (one,) = inbox.waiting()
        assert seen == []
        inbox.answer(one, one.asks[0], True, channel="web")
        out, err = run.communicate(timeout=30)
        assert (out, seen) == (b"200", ["/a?query=hidden"]), err
        assert until(lambda: len(receiver.got) == 2, 30)  # it may come after the session has ended
    finally:
        run.kill()
        run.communicate()
        upstream.close()
    asked, answered = (checked(headers, body) for _, headers, body in receiver.got)
    what = f"POST http://open.localhost:{port}/a"
    assert (asked["type"], asked["data"]["what"], asked["data"]["risk"]) == ("approval.asked", what, "medium")
    told = answered["data"]
    assert (answered["type"], told["what"], told["effect"], told["outcome"], told["channel"]) == (
        "approval.answered",
        what,
        "allow",
        "approved",
        "web",
    )
    assert asked["id"] != answered["id"] and told["session"] == one.session
    assert "hidden" not in json.dumps([asked, answered]) and "digest" not in told
    events = place.ledger()
    assert not [each for each in events if each["kind"] == "approval.untold"] and SECRET not in json.dumps(events)
