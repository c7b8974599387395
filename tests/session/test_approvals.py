"""A person is asked about a request, by every way there is, and nothing moves that nobody approved (M38, B14)."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from gateway.harness import Quiet, Served, require_engine
from session.screen import Screen
from session.supervised import Place, Terminal, command
from stockade.core.asks import Asked
from stockade.core.errors import StockadeError
from stockade.core.frozen import replace
from stockade.core.values import Asking, Grant, Policy
from stockade.session import inbox, live
from walls.boxes import until

pytestmark = pytest.mark.wall

CURL = "curl -s -m 60 --noproxy '' -x http://127.0.0.1:3128 -o /dev/null -w '%{http_code}\\n'"


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    seen: list[str] = []

    class Handler(Quiet):
        def do_GET(self) -> None:
            seen.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    require_engine()
    served: Any = Served(Handler)
    served.seen = seen
    yield served
    served.close()


@pytest.fixture(autouse=True)
def fresh(server: Any, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    server.seen.clear()
    monkeypatch.setenv("XDG_STATE_HOME", str(place.root / "state"))


def policy(server: Any, *, people: bool = False, **asking: int) -> Policy:
    return Policy(
        grants=(
            Grant("open.localhost", server.server_port, "http", ("GET", "POST"), effect="ask", private=True, people=people),
            Grant("free.localhost", server.server_port, "http", private=True),
        ),
        approvals=replace(Asking(), **asking),
    )


def script(server: Any, *paths: str) -> str:
    """Asks for one path after the other, and prints how each was answered."""
    return "; ".join(f"{CURL} http://open.localhost:{server.server_port}{path}" for path in paths)


def stockade(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stockade", "approvals", *words], env=place.env, capture_output=True, text=True, timeout=60
    )


def end(run: subprocess.Popen[bytes]) -> None:
    run.kill()
    run.wait()
    for stream in (run.stdout, run.stderr):
        if stream is not None:
            stream.close()


def waiting() -> list[dict[str, Any]]:
    return [{**asked, "session": one.session} for one in inbox.waiting() for asked in one.asks]


def asked(path: str) -> dict[str, Any]:
    """The question about this path, once it is there."""
    assert until(lambda: any(one["key"].endswith(path) for one in waiting()), 20), waiting()
    return next(one for one in waiting() if one["key"].endswith(path))


def allow(place: Place, path: str) -> subprocess.CompletedProcess[str]:
    """Approve the question about this path."""
    one = asked(path)
    return stockade(place, "allow", one["session"], str(one["number"]))


def events(place: Place, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in place.ledger() if event["kind"] in kinds]


def test_what_is_approved_happens_once_and_what_is_refused_does_not(place: Place, server: Any) -> None:
    run = place.start("/bin/sh", "-c", script(server, "/yes?q=1", "/no", "/yes?q=1"), policy=policy(server))
    try:
        first = asked("/yes")
        assert first["what"] == f"GET http://open.localhost:{server.server_port}/yes?q=1" and first["risk"] == "medium"
        assert server.seen == []  # it is held, and has not left
        assert "POST" not in (shown := stockade(place).stdout) and "/yes?q=1" in shown and "--for-session: the same" in shown
        assert stockade(place, "allow", first["session"][:8], str(first["number"])).stdout.endswith("Allowed.\n")
        second = asked("/no")
        assert server.seen == ["/yes?q=1"]
        assert stockade(place, "deny", second["session"], str(second["number"])).returncode == 0
        third = asked("/yes")
        assert third["number"] == 3 and stockade(place, "deny", third["session"]).returncode == 0
        assert run.communicate(timeout=20)[0].split() == [b"200", b"403", b"403"]
    finally:
        end(run)
    assert server.seen == ["/yes?q=1"]
    told = events(place, "ask", "answer", "egress")
    assert [event["kind"] for event in told if event.get("way") != "tunnel"] == ["ask", "answer", "egress"] * 3
    answers = events(place, "answer")
    assert [(one["ask"], one["effect"], one["outcome"], one["by"], one["channel"], one["scope"]) for one in answers] == [
        (1, "allow", "approved", "person", "inbox", "once"),
        (2, "deny", "refused", "person", "inbox", "once"),
        (3, "deny", "refused", "person", "inbox", "once"),
    ]
    assert all(one["seconds"] > 0 for one in answers)
    assert "q=1" not in json.dumps(
        events(place, "ask", "answer", "egress")
    )  # what a query says is between the sandbox and whoever is asked


def test_an_approval_for_the_session_holds_for_the_same_and_can_be_taken_back(place: Place, server: Any) -> None:
    wait = "while [ ! -e go ]; do sleep 0.05; done"
    run = place.start("/bin/sh", "-c", f"{script(server, '/a', '/a?other', '/a/b')}; {wait}; {script(server, '/a')}", policy=policy(server))
    try:
        one = asked("/a")
        assert stockade(place, "allow", one["session"], str(one["number"]), "--for-session").returncode == 0
        assert asked("/a/b")["number"] == 3  # another path is another question
        assert server.seen == ["/a", "/a?other"]
        assert "approved until the session ends: GET http://open.localhost" in stockade(place).stdout
        assert stockade(place, "deny", one["session"]).returncode == 0
        assert stockade(place, "revoke", one["session"]).stdout.startswith("Taken back: GET http://open.localhost")
        (place.work / "go").touch()
        assert stockade(place, "deny", asked("/a")["session"]).returncode == 0
        assert run.communicate(timeout=20)[0].split() == [b"200", b"200", b"403", b"403"]
    finally:
        end(run)
    assert [one["outcome"] for one in events(place, "answer")] == ["approved", "earlier", "refused", "refused"]
    assert [one["key"] for one in events(place, "approval.revoke")] == [f"GET http://open.localhost:{server.server_port}/a"]


def test_nobody_answers_others_go_on_and_what_is_not_waited_for_is_not_asked_any_more(place: Place, server: Any) -> None:
    port = server.server_port
    free, late = f"{CURL} http://free.localhost:{port}/free", script(server, "/late")
    gone = f"curl -s -m 1 --noproxy '' -x http://127.0.0.1:3128 http://open.localhost:{port}/gone"
    run = place.start("/bin/sh", "-c", f"{free}; {gone}; {late} > late & {free}; wait; cat late", policy=policy(server, timeout=2))
    try:
        out = run.communicate(timeout=30)[0].split()
    finally:
        end(run)
    assert out == [b"200", b"200", b"403"] and server.seen == ["/free", "/free"]
    assert [one["outcome"] for one in events(place, "answer")] == ["withdrawn", "timed_out"]


def test_hosts_that_no_rule_names_can_be_asked_about(place: Place, server: Any) -> None:
    """Nothing of a name gets out before its request is approved, and hosts that a rule names are that rule's."""
    port = server.server_port
    rules = (*policy(server).grants, Grant("*", port, "http", effect="ask", private=True))
    urls = [f"http://{host}.localhost:{port}{path}" for host, path in (("other", "/a"), ("other", "/b"), ("free", "/free"))]
    calls = "; ".join(f"{CURL} {url}" for url in urls)
    post = (
        f"{CURL} -X POST http://free.localhost:{port}/post; {CURL} -H 'Authorization: Bearer x' {urls[0]}; {CURL} http://127.0.0.1:{port}/"
    )
    run = place.start("/bin/sh", "-c", f"{calls}; {post}", policy=Policy(grants=rules))
    try:
        first = asked("/a")
        assert first["what"] == f"GET {urls[0]}" and server.seen == []
        assert stockade(place, "allow", first["session"], str(first["number"])).returncode == 0
        assert stockade(place, "deny", asked("/b")["session"]).returncode == 0
        assert run.communicate(timeout=20)[0].split() == [b"200", b"403", b"200", b"403", b"403", b"403"]
    finally:
        end(run)
    assert server.seen == ["/a", "/free"]
    assert [one["outcome"] for one in events(place, "answer")] == ["approved", "refused"]


def test_an_answer_about_something_else_or_too_late_changes_nothing(place: Place, server: Any) -> None:
    run = place.start("/bin/sh", "-c", script(server, "/a"), policy=policy(server))
    try:
        asked("/a")
        (one,) = inbox.waiting()
        for change, code in (({"digest": "0" * 64}, "approval.other"), ({"number": 2}, "approval.gone")):
            with pytest.raises(StockadeError) as caught:
                inbox.answer(one, {**one.asks[0], **change}, True, channel="inbox")
            assert caught.value.code == code
        with pytest.raises(StockadeError) as caught:
            inbox.answer(one, one.asks[0], True, channel="inbox", scope="project")
        assert caught.value.code == "approval.scope" and server.seen == []
        inbox.answer(one, one.asks[0], False, channel="inbox")
        with pytest.raises(StockadeError) as caught:
            inbox.answer(one, one.asks[0], True, channel="inbox")
        assert caught.value.code == "approval.gone"
        assert run.communicate(timeout=20)[0] == b"403\n" and server.seen == []
    finally:
        end(run)


def test_what_only_people_may_approve_is_approved_once_at_a_time(place: Place, server: Any) -> None:
    run = place.start("/bin/sh", "-c", script(server, "/a"), policy=policy(server, people=True))
    try:
        one = asked("/a")
        assert "once at a time" in stockade(place).stdout
        assert (
            "approval.people" in stockade(place, "allow", one["session"], str(one["number"]), "--for-session", "--json").stderr
            and server.seen == []
        )
        assert stockade(place, "allow", one["session"], str(one["number"])).returncode == 0
        assert run.communicate(timeout=20)[0] == b"200\n"
    finally:
        end(run)


def test_after_refusals_in_a_row_the_session_stands_still(place: Place, server: Any) -> None:
    run = place.start("/bin/sh", "-c", script(server, "/a", "/b", "/c"), policy=policy(server, refusals=2))
    try:
        for path in ("/a", "/b"):
            assert stockade(place, "deny", asked(path)["session"]).returncode == 0
        assert until(lambda: len(events(place, "session.pause")) == 1)
        time.sleep(0.5)
        assert waiting() == []
        (ident,) = [name for name in os.listdir(place.sessions) if not name.startswith(".")]
        subprocess.run([sys.executable, "-m", "stockade", "session", "resume", ident], env=place.env, check=True, capture_output=True)
        assert allow(place, "/c").returncode == 0
        assert run.communicate(timeout=20)[0].split() == [b"403", b"403", b"200"]
    finally:
        end(run)


def test_no_receipt_no_effect(place: Place, server: Any) -> None:
    """A ledger that cannot take the answer makes it a no."""
    break_it = """
import stockade.record.ledger as ledger
from stockade.core.errors import StockadeError
append = ledger.Ledger.append
def broken(self, event):
    if event["kind"] == "answer":
        raise StockadeError("the disk is full", code="ledger.write")
    return append(self, event)
ledger.Ledger.append = broken
"""
    run = place.start("/bin/sh", "-c", script(server, "/a"), policy=policy(server), before=break_it)
    try:
        one = asked("/a")
        assert "ledger.write" in stockade(place, "allow", one["session"], str(one["number"]), "--json").stderr
        assert run.communicate(timeout=20)[0] == b"403\n"
    finally:
        end(run)
    assert server.seen == []


def test_a_supervisor_that_is_killed_allows_nothing(place: Place, server: Any) -> None:
    run = place.start("/bin/sh", "-c", script(server, "/a"), policy=policy(server))
    one = asked("/a")
    run.kill()
    run.communicate()
    done = stockade(place, "allow", one["session"], str(one["number"]), "--json")
    assert done.returncode == 125 and server.seen == []


def test_without_anybody_to_ask_it_is_refused_at_once(place: Place, server: Any) -> None:
    began = time.monotonic()
    unattended = replace(policy(server), oversight="none", wall="bubblewrap")
    done = place.run("/bin/sh", "-c", script(server, "/a"), policy=unattended)
    assert done.stdout == b"403\n" and time.monotonic() - began < 60 and server.seen == [] and events(place, "ask", "answer") == []


def test_what_was_approved_becomes_a_rule_after_it_was_shown(place: Place, server: Any) -> None:
    user = place.home / ".config/stockade/policy.toml"
    assert "approval.none" in stockade(place, "rule", "--json").stderr
    run = place.start("/bin/sh", "-c", script(server, "/a", "/no"), policy=policy(server))
    try:
        assert allow(place, "/a").returncode == 0
        assert stockade(place, "deny", asked("/no")["session"]).returncode == 0
        assert run.communicate(timeout=20)[0].split() == [b"200", b"403"]
    finally:
        end(run)
    shown = stockade(place, "rule").stdout
    assert '+paths = ["/a"]' in shown and "/no" not in shown and '+query = "none"' in shown and not user.exists()
    assert "goes on asking" in shown  # the rule that asked is none of the user's file
    assert stockade(place, "rule", "--write").returncode == 0
    check = subprocess.run(
        [sys.executable, "-m", "stockade", "policy", "show"], cwd=place.work, env=place.env, capture_output=True, text=True
    )
    assert check.returncode == 0 and "open.localhost" in check.stdout, check
    assert "approval.none" in stockade(place, "rule", "--json").stderr  # it is there already


def test_a_canary_looks_like_any_other_and_is_never_done_whoever_approves_it(place: Place, server: Any) -> None:
    """With `canaries = 50` one comes after each real question was answered, here sooner than some seconds later."""
    wait = "while [ ! -e go ]; do sleep 0.05; done"
    words = f"{script(server, '/a')}; {wait}; {script(server, '/b')}; while [ ! -e end ]; do sleep 0.05; done"
    sooner = "from stockade.checks import lures; lures.pause = lambda: 0.2"
    run = place.start("/bin/sh", "-c", words, policy=policy(server, canaries=50), before=sooner)

    def lured() -> dict[str, Any]:
        assert until(waiting, 40)
        (trap,) = waiting()
        return trap

    try:
        real = asked("/a")
        assert stockade(place, "allow", real["session"], str(real["number"])).stdout.endswith("Allowed.\n")
        trap = lured()
        assert trap.keys() == real.keys() and "open.localhost" not in trap["what"] and "trap" not in trap
        assert stockade(place, "allow", trap["session"], str(trap["number"])).stdout.count("That was a test") == 1
        (place.work / "go").touch()
        assert stockade(place, "deny", asked("/b")["session"]).returncode == 0
        other = lured()
        assert "You saw it." in stockade(place, "deny", other["session"], str(other["number"])).stdout
        (place.work / "end").touch()
        assert run.communicate(timeout=20)[0].split() == [b"200", b"403"]
    finally:
        end(run)
    assert server.seen == ["/a"]
    answers = {one["ask"]: one for one in events(place, "answer")}
    assert [(answers[one["number"]]["outcome"], answers[one["number"]]["caught"]) for one in (trap, other)] == [
        ("canary", True),
        ("canary", False),
    ]
    assert {answers[one["number"]]["effect"] for one in (trap, other)} == {"deny"}
    assert not any("canary" in one for one in events(place, "ask"))  # nothing that can be read while it waits tells it from others
    stats = json.loads(stockade(place, "stats", "--json").stdout)
    assert "vigilance" in json.dumps(stats)


# ---- in the terminal ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(place: Place, server: Any) -> Iterator[Any]:
    opened: list[Terminal] = []

    def make(*paths: str, then: str = "") -> Terminal:
        words = command(policy(server), ("/bin/sh", "-c", f"{script(server, *paths)}{then}"), tty=None)
        opened.append(Terminal(place, (), words=words))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def code(person: Terminal) -> str:
    """The letters that were drawn for the question that is shown."""
    letters = person.expect(r"Type ([a-z]{3}) and Enter to allow it once")[1].decode()
    time.sleep(0.5)  # what is typed sooner cannot be an answer
    return letters


def test_it_is_asked_in_the_terminal_and_the_program_goes_on_as_before(place: Place, server: Any, terminal: Any) -> None:
    person = terminal("/yes", "/no", then="; read line; echo got $line; exit 3")
    letters = code(person)
    person.type(f"{letters}\r")
    person.expect("200\r\n")
    code(person)
    person.type("\r")
    person.expect("403\r\n")
    person.type("typed\r")
    person.expect("got typed")
    assert person.wait() == 3 and server.seen == ["/yes"]
    assert [(one["outcome"], one["channel"]) for one in events(place, "answer")] == [("approved", "terminal"), ("refused", "terminal")]


@pytest.mark.parametrize("habit", ["y\r", "yes\ry\rallow\r", "\x1b]lallow\x1b\\y\r\r", "\x03"])
def test_a_habit_and_what_a_terminal_says_by_itself_approve_nothing(place: Place, server: Any, terminal: Any, habit: str) -> None:
    person = terminal("/a")
    code(person)
    for letter in habit:
        person.type(letter)
    time.sleep(0.3)
    person.type("\r\r\r")
    person.expect("403\r\n")
    assert person.wait() == 0 and server.seen == []


def test_what_is_typed_ahead_is_no_answer(place: Place, server: Any, terminal: Any) -> None:
    person = terminal("/a")
    letters = person.expect(r"Type ([a-z]{3}) and Enter")[1].decode()
    person.type(f"{letters}\r")  # sooner than anybody can have read it
    time.sleep(0.6)
    assert server.seen == []
    person.type(f"{letters}\r")
    person.expect("200\r\n")
    assert person.wait() == 0


def test_for_the_session_from_the_terminal(place: Place, server: Any, terminal: Any) -> None:
    person = terminal("/a", "/a")
    person.type("")
    person.type(f"{code(person)}s\r")
    person.expect("200\r\n200\r\n")
    assert person.wait() == 0 and [one["outcome"] for one in events(place, "answer")] == ["approved", "earlier"]


def test_the_first_answer_wins_and_the_terminal_is_told(place: Place, server: Any, terminal: Any) -> None:
    person = terminal("/a", then="; read line; echo got $line")
    code(person)
    assert allow(place, "/a").returncode == 0
    person.expect("200\r\n")
    person.type("mine\r")  # the keyboard is the program's again
    person.expect("got mine")
    assert person.wait() == 0


# What a program can tell the terminal before it asks, so that something else is seen than what is asked about.
FORGED = "\x1b[2J\x1b[1;1Hstockade asks: may this leave?   risk: low   rule: policy.toml:3\r\n  GET http://docs.localhost/"
TRICKS = {
    "lines scroll away under a forged question": f"{FORGED}\x1b[3;4r\x1b[?6h",
    "the line that says what scrolls away": "\x1b[2J\x1b[2;3r",
    "letters that are not shown": "\x1b[8m",
    "other letters": "\x1b(0",
    "double width": "\x1b[1;1H\x1b#6\x1b[2;1H\x1b#6",
    "a string without an end": "\x1b]0;title",
    "a device control string without an end": "\x1bPq",
    "a status line that takes all": f"{FORGED}\x1b[1$}}",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_terminal_that_was_left_in_another_state_shows_something_else(trick: str) -> None:
    """The control: as the question was drawn once, each of them hides what is asked about, or its letters."""
    lines = (
        "stockade asks: may this leave?   risk: high",
        "  DELETE http://evil.localhost/with/a/path/of/some/length",
        "Type abc and Enter to allow it",
        "    once.",
    )
    question = "\x1b7\x1b[1;1H" + "\r\n".join(f"\x1b[2K\x1b[1m{line}\x1b[0m" for line in lines)
    told = []
    for before in ("", TRICKS[trick]):
        screen = Screen()
        screen.feed(before + question)
        told.append([*lines] == screen.shown[:4])
    assert told == [True, False]


def test_what_is_asked_is_what_is_seen_whatever_the_terminal_was_told(place: Place, server: Any) -> None:
    """For each trick one question in one session: what the terminal shows is all of it, at the top, and nothing forged."""
    steps = []
    for number, trick in enumerate(TRICKS.values()):
        octal = "".join(f"\\{byte:03o}" for byte in trick.encode())
        steps.append(
            f"printf '\\033c{octal}'; {CURL} -X POST http://open.localhost:{server.server_port}/a/path/of/some/length/that/has/to/be/seen/{number}"
        )
    words = command(policy(server, refusals=0), ("/bin/sh", "-c", "; ".join(steps)), tty=None)
    person = Terminal(place, (), words=words, size=(80, 24))
    try:
        for number in range(len(TRICKS)):
            found = person.expect(r"Type ([a-z]{3}) and Enter to allow it once.*?> .*?\x1b\[\d+;\d+H")
            screen = Screen()
            screen.feed(found.string[: found.end()].decode().rpartition("\x1bc")[2])
            seen = "\n".join(screen.shown)
            assert screen.shown[0].startswith("stockade asks: may this leave?   risk: medium"), (number, seen)
            assert f"seen/{number}" in seen.replace("\n    ", "") and f"Type {found[1].decode()} and Enter" in seen, (number, seen)
            assert "risk: low" not in screen.shown[0] and "docs.localhost" not in "".join(screen.shown[:2]), (number, seen)
            time.sleep(0.5)
            person.type("\r")
            person.expect("403")
        assert person.wait() == 0 and server.seen == []
    finally:
        person.close()


def test_what_does_not_fit_the_terminal_is_not_approved_there(place: Place, server: Any) -> None:
    words = command(policy(server), ("/bin/sh", "-c", f"{script(server, '/' + 'x' * 900)}; {script(server, '/short')}"), tty=None)
    person = Terminal(place, (), words=words, size=(80, 8))
    try:
        shown = person.expect(r"All of it, and how to allow it: stockade approvals\. Enter refuses")[0]
        assert b"and Enter to allow" not in shown
        time.sleep(0.5)
        person.type("\r")
        person.expect("403\r\n")
        person.type(f"{code(person)}\r")  # the twin, which fits
        person.expect("200\r\n")
        assert person.wait() == 0 and server.seen == ["/short"]
    finally:
        person.close()


def test_a_long_query_says_that_there_is_more_and_a_long_path_is_not_asked_about(place: Place, server: Any) -> None:
    run = place.start("/bin/sh", "-c", script(server, "/q?a=" + "b" * 700, "/" + "c" * 1100), policy=policy(server))
    try:
        one = asked("/q")
        assert one["what"].endswith("b and 190 more characters of the query, which are not shown") and one["risk"] == "high"
        looking = Terminal(place, (), words=[sys.executable, "-P", "-m", "stockade", "approvals", "list"], size=(60, 24))
        assert looking.wait() == 0
        looking.close()
        screen = Screen(60)
        screen.feed((looking.whole + looking.seen).decode())
        long = [line for line in screen.shown if "bbbb" in line]
        assert len(long) > 6 and all(line.startswith("      ") for line in long[1:])  # no line of the client's begins where ours do
        assert stockade(place, "allow", one["session"], str(one["number"])).returncode == 0
        assert run.communicate(timeout=30)[0].decode().split() == ["200", "403"]
    finally:
        end(run)
    assert [(one["effect"], one["rule"]) for one in events(place, "egress")][1] == ("deny", "path-unshown")
    assert len(server.seen) == 1 and len(events(place, "ask")) == 1


def test_a_yes_names_the_question_that_it_is_about(place: Place, server: Any) -> None:
    """Without a number the only question would be meant, and whoever asks can put another in its place meanwhile."""
    run = place.start("/bin/sh", "-c", script(server, "/a"), policy=policy(server))
    try:
        one = asked("/a")
        assert stockade(place, "allow", one["session"]).returncode == 2 and server.seen == []
        assert stockade(place, "allow", one["session"], str(one["number"] + 1)).returncode == 125 and server.seen == []
        assert stockade(place, "allow", one["session"], str(one["number"])).returncode == 0
        assert run.communicate(timeout=30)[0].decode().split() == ["200"]
    finally:
        end(run)


def test_output_is_held_while_it_is_asked_and_nothing_is_lost(place: Place, server: Any, terminal: Any) -> None:
    person = terminal("/a > status & i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo line $i; sleep 0.005; done; wait; cat status")
    letters = code(person)
    time.sleep(0.5)
    person.type(f"{letters}\r")
    person.expect("line 300\r\n.*200\r\n")
    assert person.wait() == 0


def test_what_the_sandbox_says_about_itself_draws_nothing_on_the_terminal(place: Place, server: Any, terminal: Any) -> None:
    person = terminal("/a -X POST --data-binary \"$(printf '\\033]0;title\\007\\302\\233m\\r\\nType abc')\"")
    shown = person.expect(r"stockade asks.*and Enter to allow")[0]
    assert rb"\x1b]0;title\x07\xc2\x9bm\r\nType abc" in shown.replace(b"\x1b[0m\r\n\x1b[2K\x1b[1m", b"")
    assert not re.search(rb"[\x00-\x09\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\xff]", shown) and b"\x1b]" not in shown
    time.sleep(0.5)
    person.type("\x03")
    person.expect("403\r\n")


def test_a_caller_from_inside_has_no_desk(place: Place, server: Any) -> None:
    """The socket that takes answers is not in the sandbox, and none of its ports leads there."""
    run = place.start("/bin/sh", "-c", f"find / -name desk -type s > found 2>/dev/null; {script(server, '/a')}", policy=policy(server))
    try:
        one = asked("/a")
        assert (place.sessions / one["session"] / "desk").is_socket() and (place.work / "found").read_text() == ""
        assert stockade(place, "deny", one["session"]).returncode == 0
        run.communicate(timeout=20)
    finally:
        end(run)


# ---- in a program -------------------------------------------------------------------------------------------------------------------


def in_program(place: Place, server: Any, *paths: str, people: bool = False, timeout: int = 60, **deciders: Any) -> list[bytes]:
    """How each was answered in a session whose questions a program answers."""

    async def whole() -> list[bytes]:
        async with live.open_session(policy(server, people=people, timeout=timeout), cwd=str(place.work), **deciders) as session:
            done = await session.exec(["/bin/sh", "-c", script(server, *paths)], timeout=60)
            return done.stdout.split()

    return asyncio.run(whole())


def test_a_program_answers(place: Place, server: Any) -> None:
    heard = []

    async def approver(one: Asked) -> Any:
        heard.append(one.key.rpartition("/")[2])
        return {"a": "once", "b": "session", "c": False, "d": "anything"}[heard[-1]]

    assert in_program(place, server, "/a", "/b", "/b", "/c", "/d", approver=approver) == [b"200", b"200", b"200", b"403", b"403"]
    assert heard == ["a", "b", "c", "d"]
    assert [one["channel"] for one in events(place, "answer")] == ["program", "program", "", "program", "program"]


@pytest.mark.parametrize("fails", ["reviewer", "approver", "both"])
def test_who_fails_allows_nothing(place: Place, server: Any, fails: str) -> None:
    async def broken(_: Asked) -> Any:
        raise RuntimeError

    async def yes(_: Asked) -> Any:
        return "once"

    found = in_program(
        place, server, "/a", reviewer=broken if fails != "approver" else None, approver=broken if fails != "reviewer" else yes
    )
    # A reviewer that is down leaves it to a person; there is nobody after the approver.
    assert found == ([b"200"] if fails == "reviewer" else [b"403"])
    assert [one["by"] for one in events(place, "answer")] == ["person"]
    assert len(events(place, "review")) == (fails != "approver")


def test_a_reviewer_never_answers_for_people(place: Place, server: Any) -> None:
    async def yes(_: Asked) -> Any:
        return "session"

    assert in_program(place, server, "/a", reviewer=yes) == [b"200"]
    assert in_program(place, server, "/b", people=True, reviewer=yes, timeout=1) == [b"403"]
    assert [(one["by"], one["outcome"]) for one in events(place, "answer")] == [("reviewer", "approved"), ("rule", "timed_out")]


def test_an_approver_that_never_answers_holds_up_nothing_but_the_question(place: Place, server: Any) -> None:
    async def never(_: Asked) -> Any:
        await asyncio.sleep(3600)

    began = time.monotonic()
    assert in_program(place, server, "/a", approver=never, timeout=1) == [b"403"]
    assert time.monotonic() - began < 120 and [one["outcome"] for one in events(place, "answer")] == ["timed_out"]


# ---- on a full screen ---------------------------------------------------------------------------------------------------------------


def test_the_inbox_on_a_full_screen(place: Place, server: Any) -> None:
    """As a person sees and uses it: through a pty, by its keys."""
    wait = "while [ ! -e go ]; do sleep 0.05; done"
    run = place.start("/bin/sh", "-c", f"{script(server, '/a', '/b', '/c')}; {wait}; {script(server, '/c')}", policy=policy(server))
    screen = Terminal(place, (), words=[sys.executable, "-m", "stockade", "approvals"])

    def choose(text: str, beside: str = "be undone") -> None:
        screen.expect(text, 30)
        screen.type("\x1b[B")  # down
        screen.expect(beside, 30)

    try:
        screen.resize(120, 30)
        asked("/a")
        choose(r"open\.localhost:\d+/a")
        screen.type("a")
        screen.expect(r"Allow this\?")
        screen.type("\r")  # Enter leaves it
        time.sleep(0.5)
        assert server.seen == []
        screen.type("a")
        screen.expect(r"Allow this\?")
        screen.type("y")
        asked("/b")
        assert server.seen == ["/a"]
        screen.expect(r"open\.localhost:\d+/b", 30)
        screen.type("d")  # nothing is chosen any more: what was, has gone
        time.sleep(0.5)
        assert [one["key"][-2:] for one in waiting()] == ["/b"]
        screen.type("\x1b[B")
        screen.expect("be undone", 30)
        screen.type("d")
        asked("/c")
        choose(r"open\.localhost:\d+/c")
        screen.type("s")
        screen.expect(r"Allow this\?")
        screen.type("y")
        choose("approved", "takes it back")
        screen.type("r")
        assert until(lambda: inbox.waiting() == [], 10)
        (place.work / "go").touch()
        assert stockade(place, "deny", asked("/c")["session"]).returncode == 0
        assert run.communicate(timeout=20)[0].split() == [b"200", b"403", b"200", b"403"]
        screen.type("q")
        assert screen.wait() == 0
    finally:
        screen.close()
        end(run)
    assert server.seen == ["/a", "/c"]


def test_a_full_screen_draws_nothing_that_a_sandbox_sends(place: Place, server: Any) -> None:
    body = "$(printf '\\033]0;title\\007[red]markup[/red]\\302\\233m')"
    run = place.start("/bin/sh", "-c", script(server, f'/a -X POST --data-binary "{body}"'), policy=policy(server))
    screen = Terminal(place, (), words=[sys.executable, "-m", "stockade", "approvals"])
    try:
        screen.resize(120, 30)
        asked("/a")
        screen.expect(r"open\.localhost:\d+/a", 30)
        screen.type("\x1b[B")
        seen = screen.expect(r"\[red\]markup\[/red\]")[0]
        assert b"\x1b]0;title" not in seen and b"\x9bm" not in seen
    finally:
        screen.close()
        end(run)
