"""The page in a real browser: what it shows, what a person does by keyboard, and what must not happen by a habit, an accident or another page (M18)."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from gateway.harness import Quiet, require_engine
from gateway.harness import Served as Elsewhere
from server.pages import Served, serving
from session.supervised import Place, share_cache
from stockade.core.frozen import replace
from stockade.core.values import Asking, Grant, Policy
from walls.boxes import require, scratch, until

pytestmark = pytest.mark.wall

CHROMIUM = shutil.which("chromium-headless-shell") or shutil.which("chromium") or ""  # the first takes half the time


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        unavailable("chromium", "Debian's chromium-headless-shell is not here (scripts/setup --tests)")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        # evil.test leads here, as it would after DNS rebinding. Its own sandbox does not work for root; it sees only what these tests serve.
        arguments = ["--host-resolver-rules=MAP evil.test 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--disable-background-networking"]
        started = playwright.chromium.launch(executable_path=CHROMIUM, chromium_sandbox=False, args=arguments)
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, served: Served) -> Iterator[Callable[[], Any]]:
    """Opens the page in a browser of its own. Whatever the page complains about, or asks of anybody else, fails the test."""
    contexts, wrong = [], []

    def make() -> Any:
        contexts.append(browser.new_context())
        contexts[-1].set_default_timeout(20_000)
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if "Content Security" in said.text else None)
        page.on("request", lambda request: None if request.url.startswith(served.base) else wrong.append(request.url))
        page.goto(served.links[-1])
        shows(page, "#summary", re.compile("[Ww]ait"))
        return page

    yield make
    for context in contexts:
        context.close()
    assert wrong == []


def choose(page: Any, times: int = 1) -> None:
    page.wait_for_selector(".row")
    for _ in range(times):
        page.keyboard.press("ArrowDown")


def letters(page: Any) -> str:
    """What was drawn, once it may be typed."""
    page.wait_for_selector("#letters:not([readonly])")
    return page.text_content(".drawn")


def shows(page: Any, where: str, text: str | re.Pattern[str]) -> None:
    """It comes to stand there. (The page's own policy lets no test wait by a script in it.)"""
    from playwright.sync_api import expect

    expect(page.locator(where)).to_contain_text(text)


def says(page: Any, text: str) -> None:
    shows(page, "#became", text)


def waits(page: Any, count: int) -> None:
    from playwright.sync_api import expect

    expect(page).to_have_title(f"({count}) stockade approvals" if count else "stockade approvals")


def shuts(page: Any) -> None:
    page.wait_for_selector("#confirm", state="hidden")


def disabled(page: Any) -> list[bool]:
    return page.eval_on_selector_all("#actions button", "all => all.map(one => one.disabled)")


def test_a_question_is_shown_whole_and_answered_by_keyboard_alone(served: Served, opened: Any) -> None:
    page = opened()
    assert page.is_visible("#none")
    asked = served.questions.ask(
        "POST https://api.example.test/v1/deploy",
        what="POST https://api.example.test/v1/deploy?env=prod, with your credential deploy; it sends 9 bytes: image=new",
        risk="high", tainted=True, review="small-model is unsure: it cannot be undone",
    )  # fmt: skip
    choose(page)
    shown = page.inner_text("#detail")
    for text in (
        asked.what,
        "high",
        "policy.toml:3",
        asked.digest,
        asked.also,
        "something secret was read",
        asked.review,
        "first-session",
        "/home/me/work",
    ):
        assert text in shown, text
    assert shown.count(asked.review) == 1
    assert re.search(r"\b(10:00|9:5\d), then it is refused", shown) and page.title() == "(1) stockade approvals"
    page.keyboard.press("a")
    drawn = letters(page)
    assert re.fullmatch("[a-z]{3}", drawn) and page.text_content("#confirm-what") == asked.what
    page.keyboard.type(drawn)
    page.keyboard.press("Enter")
    says(page, "Allowed, once.")
    (done,) = served.questions.answered
    assert (done.allow, done.scope, done.channel, done.asked.digest) == (True, "once", "web", asked.digest)
    page.keyboard.press("a")  # it is done with
    assert not page.is_visible("#confirm") and disabled(page) == [True] * 4
    waits(page, 0)


def test_for_the_session_and_taking_back_and_refusing_all_like_it(served: Served, opened: Any) -> None:
    page = opened()
    for session in ("first-session", "first-session", "second-session"):
        served.questions.ask("GET https://api.example.test/a", session)
    waits(page, 3)
    choose(page)
    page.keyboard.press("s")
    drawn = letters(page)
    assert "the same until the session ends. 1 like it waits, and is allowed at once." in page.inner_text("#confirm")
    page.keyboard.type(drawn.upper() + "\n")  # Caps Lock
    says(page, "Allowed until the session ends.")
    served.questions.sessions["first-session"].covered(time.time())
    served.questions.sessions["second-session"].pending.clear()
    page.wait_for_selector(".held")
    for _ in range(3):
        served.questions.ask("PUT https://api.example.test/b")
    other = served.questions.ask("PUT https://api.example.test/b", session="second-session")
    waits(page, 4)
    page.click(".row:has(.held)")
    page.keyboard.press("r")
    says(page, "Taken back.")
    assert served.questions.sessions["first-session"].standing == {}
    page.click(".row >> text=PUT >> nth=0")
    page.keyboard.press("Shift+d")
    says(page, "Refused, all 3.")
    assert [done.outcome for done in served.questions.answered] == ["approved", "refused", "refused", "refused"]
    assert [*served.questions.sessions["second-session"].pending.values()] == [other]  # of another session: not like it
    people = served.questions.ask("PUT https://api.example.test/people", people=True)
    waits(page, 2)
    page.click(".row >> text=people")
    page.keyboard.press("s")
    assert not page.is_visible("#confirm") and "once at a time" in page.inner_text("#all") and disabled(page) == [False, True, False, True]
    page.keyboard.press("d")
    says(page, "Refused.")
    assert served.questions.answered[-1].asked.number == people.number


def test_no_habit_and_no_accident_allows(served: Served, opened: Any) -> None:
    page = opened()
    first, second = served.questions.ask("GET https://api.example.test/1"), served.questions.ask("GET https://api.example.test/2")
    page.wait_for_selector(".row >> nth=1")
    page.click(".row >> nth=0")
    for keys in ("y\n\n", "aaa\n"):  # typed ahead, or by habit: nobody has read anything yet
        page.keyboard.type(keys)
        page.keyboard.press("Escape")
        shuts(page)
    allow = "#actions button >> nth=0"
    page.dblclick(allow)
    letters(page)
    page.click("#confirm-yes", force=True)  # where it would be
    page.focus("#letters")
    page.keyboard.type("zzz")
    page.keyboard.press("Enter")  # not the letters: they go, and nothing happens
    assert page.is_visible("#confirm") and page.input_value("#letters") == ""
    page.keyboard.press("Enter")  # Enter alone leaves it
    shuts(page)
    page.keyboard.press("a")
    stale = letters(page)
    page.keyboard.press("Escape")
    shuts(page)
    page.keyboard.press("a")
    if letters(page) != stale:  # drawn anew
        page.keyboard.type(stale + "\n")
        assert page.is_visible("#confirm")
    page.keyboard.press("Escape")
    shuts(page)
    # The list moves: what was under the pointer and under the keys is gone, and what has come there is not answered.
    box = page.locator(".row >> nth=0").bounding_box()
    page.hover(allow)
    served.questions.elsewhere(first, False)
    says(page, "Answered elsewhere")
    page.mouse.down()
    page.mouse.up()
    for keys in ("a", "d", "D", "s"):
        page.keyboard.press(keys)
    assert not page.is_visible("#confirm") and "/1" in page.inner_text("#all .what")
    page.mouse.click(box["x"] + 9, box["y"] + 9, click_count=2)
    assert served.questions.answered == [] and [*served.questions.sessions["first-session"].pending] == [second.number]


def test_the_first_answer_wins_and_the_others_are_told(served: Served, opened: Any) -> None:
    page, other = opened(), opened()
    asked = served.questions.ask()
    for each in (page, other):
        choose(each)
    page.keyboard.press("a")
    drawn = letters(page)
    other.keyboard.press("d")
    says(other, "Refused.")
    says(page, "Answered elsewhere")
    shuts(page)
    page.keyboard.type(drawn + "\n")
    assert [done.outcome for done in served.questions.answered] == ["refused"]
    # Sooner than the page can know: it is said what the session said.
    again = served.questions.ask()
    waits(page, 1)
    page.click(".row:not(.over)")
    page.keyboard.press("a")
    drawn = letters(page)
    page.evaluate("update = () => undefined")
    served.questions.elsewhere(again, False)
    page.keyboard.type(drawn + "\n")
    says(page, "nothing with the number 2 waits for an answer")
    assert len(served.questions.answered) == 1 and asked.number == 1


def test_after_its_time_nothing_is_answered(served: Served, opened: Any) -> None:
    page = opened()
    asked = served.questions.ask()
    choose(page)
    page.keyboard.press("a")
    drawn = letters(page)
    served.questions.sessions["first-session"].pending[asked.number] = replace(asked, expires=time.time() + 0.5)
    says(page, "Its time is over: it was refused.")
    shuts(page)
    page.keyboard.type(f"{drawn}\n")
    page.keyboard.press("a")
    assert not page.is_visible("#confirm") and disabled(page) == [True] * 4 and served.questions.answered == []


HOSTILE = "<img src=x onerror=alert(1)><script>alert(1)</script>\x1b[2J\u202ehttps://\u0430pple.test\u2066\n\ud800</pre></body>"


def test_hostile_text_stays_text(served: Served, opened: Any) -> None:
    page = opened()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: dialogs.append(dialog.message))
    served.questions.ask(HOSTILE, also=HOSTILE, rule=HOSTILE, review=HOSTILE)
    trap = served.questions.ask("GET https://trap.example.test/", trap=HOSTILE)
    choose(page)
    escaped = r"<img src=x onerror=alert(1)><script>alert(1)</script>\x1b[2J\u202ehttps://\u0430pple.test\u2066\n\ud800</pre></body>"
    assert page.text_content("#all .what") == escaped == page.text_content(".place >> nth=0")
    page.keyboard.press("s")
    drawn = letters(page)
    assert page.text_content("#confirm-what") == f"{escaped}\n\nnow: {escaped}" and escaped in page.text_content("#confirm-also")
    page.keyboard.type(drawn + "\n")
    page.wait_for_selector(".held")
    page.click(".row:has(.held)")
    page.keyboard.press("r")
    says(page, "Taken back.")
    page.click(".row >> text=trap")
    page.keyboard.press("d")  # a canary: what it was is said
    says(page, escaped)
    assert served.questions.answered[-1].asked.number == trap.number
    assert page.evaluate("[document.images.length, document.scripts.length, document.body.innerText.match(/[^ -~\\n·●…⇧↑↓]/)]") == [
        0,
        1,
        None,
    ]
    assert dialogs == []


def test_a_hole_in_the_script_would_run_nothing_and_reach_nobody(browser: Any, served: Served) -> None:
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(served.links[-1])
        for attempt, done in (
            ("document.body.innerHTML = '<b>x</b>'", False),
            ("window.eval('1')", False),
            (
                "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.ran = 1'})) || window.ran || no()",
                False,
            ),
            ("fetch('http://127.0.0.1:1/').catch(() => no())", False),
            (
                "new Promise((yes, no) => Object.assign(new Image(), {onload: yes, onerror: no, src: 'data:image/gif;base64,R0lGODlhAQABAAAAACw='}))",
                False,
            ),
            ("document.body.append('<b>x</b>')", True),
            ("fetch('stats')", True),
        ):
            # Later, since what a debugger evaluates is exempt from the page's policy.
            script = "new Promise((end) => setTimeout(async () => { const no = () => { throw Error(); }; try { await (async () => %s)(); end(true); } catch { end(false); } }))"
            assert page.evaluate(script % attempt) is done, attempt
    finally:
        context.close()


def test_a_yes_needs_the_end_of_a_long_text_in_sight(served: Served, opened: Any) -> None:
    page = opened()
    served.questions.ask(what="GET https://api.example.test/" + "a/" * 3000 + ", with your credential deploy")
    choose(page)
    page.keyboard.press("a")
    shows(page, "#confirm-how", "goes on below")
    page.keyboard.type("aaa\n")
    assert page.locator(".drawn").count() == 0 and page.is_disabled("#confirm-yes") and page.is_visible("#confirm")
    page.keyboard.press("End")
    page.keyboard.type(letters(page) + "\n")
    says(page, "Allowed, once.")
    assert len(served.questions.answered) == 1


def test_a_change_to_a_file_is_shown_whole_and_once_only(served: Served, opened: Any) -> None:
    page = opened()
    lines = ["@@ -1,2 +1,2 @@", " same", "-" + "x" * 300, "+" + HOSTILE, *(f"+{number}" for number in range(200))]
    served.questions.ask(
        "file ci.yml", what="change the file ci.yml: 201 lines more", detail=tuple(lines), people=True, also="nothing else"
    )
    choose(page)
    shown = page.locator("#all .what .line").all_text_contents()
    assert (
        shown[:3] == lines[:3]
        and shown[3].startswith("+<img src=x onerror=alert(1)>")
        and "\\x1b[2J\\u202e" in shown[3]
        and len(shown) == len(lines)
    )
    assert page.locator("#all .what .gone").count() == 1 and page.locator("#actions button >> nth=1").is_disabled()
    page.keyboard.press("a")
    shows(page, "#confirm-how", "goes on below")
    assert page.locator("#confirm-what .line").count() == len(lines)
    page.keyboard.press("End")
    page.keyboard.type(letters(page) + "\n")
    says(page, "Allowed, once.")


def test_the_numbers_are_those_of_the_ledger(served: Served, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stockade.record.measures import added, approvals

    events: list[dict[str, Any]] = [{"kind": "ask", "ask": 1, "key": "k", "risk": "low", "time": 1.0, "session": "one"}]
    events += [
        {
            "kind": "answer",
            "ask": 1,
            "effect": "allow",
            "outcome": "approved",
            "by": "person",
            "seconds": 1.5,
            "time": 2.5,
            "session": "one",
        }
    ]
    monkeypatch.setattr(
        served.server._page, "_measures", lambda: approvals(added(json.dumps(one).encode() + b"\n" for one in events).values())
    )
    page = opened()
    page.keyboard.press("n")
    page.wait_for_selector("#numbers table")
    text = page.inner_text("#numbers")
    assert re.search(r"low risk\s+1 of 1\s+100% \(95% interval: 21% to 100%\)", text) and re.search(r"half within\s+1.5 s", text)
    page.keyboard.press("Escape")
    page.keyboard.press("?")
    assert page.is_visible("#keys")


# ---- other pages --------------------------------------------------------------------------------------------------------------------

ATTACK = """<!doctype html><body><script>
const [room, body] = [%r, %r];
const json = {method: "POST", body, credentials: "include"};
const tries = [
  fetch(room + "answer", {...json, mode: "no-cors"}),
  fetch(room + "answer", {...json, headers: {"content-type": "application/json"}}),
  fetch(room + "events", {credentials: "include"}).then((said) => said.text()).then((text) => { document.body.dataset.read = text; }),
  new Promise((done) => {
    const one = new EventSource(room + "events", {withCredentials: true});
    one.onmessage = (event) => { document.body.dataset.read = event.data; one.close(); done(); };
    one.onerror = () => { one.close(); done(); };
  }),
];
for (const [tag, name] of [["script", "src"], ["iframe", "src"], ["img", "src"]]) {
  const node = document.createElement(tag);
  tries.push(new Promise((done) => { node.onload = node.onerror = done; }));
  node[name] = room + (tag === "script" ? "page.js" : "");
  document.body.append(node);
}
const form = document.createElement("form");
const frame = document.createElement("iframe");
frame.name = "sent";
Object.assign(form, {method: "POST", action: room + "answer", enctype: "text/plain", target: "sent"});
form.append(Object.assign(document.createElement("input"), {name: body.slice(0, -1) + ', "x": "', value: '"}'}));
document.body.append(form, frame);
tries.push(new Promise((done) => { frame.onload = () => frame.contentWindow !== null && done(); }));
form.submit();
Promise.allSettled(tries).then(() => { document.title = "done"; });
</script></body>"""


class Naive(Quiet):
    """What listens on localhost and asks nobody who they are: the control."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append(("POST", self.headers.get("cookie", "")))  # type: ignore[attr-defined]
        self.do_GET()

    def do_OPTIONS(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.got.append(("GET", self.headers.get("cookie", "")))  # type: ignore[attr-defined]
        page, events = self.path == "/attack", self.path == "/events"
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if events else "text/html")
        self.send_header("connection", "close")
        for name, value in (("origin", self.headers.get("origin", "*")), ("credentials", "true"), ("headers", "content-type")):
            self.send_header(f"access-control-allow-{name}", value)
        self.end_headers()
        self.wfile.write(self.server.attack.encode() if page else b"data: secret\n\n")  # type: ignore[attr-defined]


@pytest.fixture
def naive() -> Iterator[Any]:
    served: Any = Elsewhere(Naive)
    served.got, served.attack = [], ""
    yield served
    served.close()


@pytest.mark.parametrize("host", ["evil.test", "127.0.0.1"])
def test_another_page_reads_nothing_and_answers_nothing(browser: Any, served: Served, naive: Any, host: str) -> None:
    """Also one on this very host, and even if it knew the room; in a browser that is let in."""
    from playwright.sync_api import expect

    asked = served.questions.ask("GET https://secret.example.test/")
    body = json.dumps({"session": "first-session", "ask": asked.number, "digest": asked.digest, "allow": True, "scope": "once"})
    context = browser.new_context()
    try:
        page = context.new_page()
        page.goto(served.links[-1])
        page.wait_for_selector(".row")
        evil = context.new_page()
        for room, reached in ((f"http://127.0.0.1:{naive.server_port}/", True), (served.base, False)):
            naive.attack, naive.got = ATTACK % (room, body), []
            evil.goto(f"http://{host}:{naive.server_port}/attack", wait_until="commit")
            expect(evil).to_have_title("done")
            assert ([method for method, _ in naive.got].count("POST") >= 2) is reached
            assert ("secret" in (evil.evaluate("document.body.dataset.read") or "")) is reached
            assert not any("stockade" in cookie for _, cookie in naive.got)  # what else listens on this host does not get to see the cookie
        context.add_cookies([{"name": "stockade", "value": "everywhere", "url": f"http://127.0.0.1:{naive.server_port}/"}])
        naive.got = []
        page.goto(f"http://127.0.0.1:{naive.server_port}/")
        assert ("GET", "stockade=everywhere") in naive.got  # bound to no room, it would have
        page.goto(served.base)
        page.wait_for_selector(".row")  # nor does that one shut anybody out
    finally:
        context.close()
    assert served.questions.answered == []


def test_a_name_that_leads_here_gets_nothing_from_the_browser(browser: Any, served: Served) -> None:
    served.questions.ask("GET https://secret.example.test/")
    context = browser.new_context()
    try:
        page = context.new_page()
        link = served.links[-1]
        said = page.goto(link.replace("127.0.0.1", "evil.test"))
        assert said.status == 403 and "not the address" in page.inner_text("body")
        assert page.evaluate(f"fetch('{served.room}events').then((said) => said.status)") == 403
        assert page.goto(served.base).status == 403  # no link, no cookie
        assert page.goto(link).status == 200 and page.goto(link).status == 403  # once
    finally:
        context.close()


def test_when_it_has_ended_the_page_says_so_and_answers_nothing(browser: Any) -> None:
    context = browser.new_context()
    try:
        with serving() as served:
            page = context.new_page()
            served.questions.ask()
            page.goto(served.links[-1])
            choose(page)
            page.keyboard.press("a")
            letters(page)
        page.wait_for_selector("#trouble:not([hidden])")
        shuts(page)
        assert "Nothing can be answered here" in page.inner_text("#trouble") and disabled(page) == [True] * 4
        assert served.questions.answered == []
    finally:
        context.close()


# ---- a real session -----------------------------------------------------------------------------------------------------------------


def test_a_real_session_is_answered_and_the_link_is_in_no_record(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require()
    require_engine()
    share_cache(f"{scratch()}/xdg_cache_home")
    place = Place(tmp_path)
    seen: list[str] = []

    class Handler(Quiet):
        def do_GET(self: BaseHTTPRequestHandler) -> None:
            seen.append(self.path)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

    upstream = Elsewhere(Handler)
    port = upstream.server_port
    policy = Policy(
        grants=(Grant("open.localhost", port, "http", ("GET",), effect="ask", private=True),), approvals=replace(Asking(), refusals=0)
    )
    curl = "curl -s -m 60 --noproxy '' -x http://127.0.0.1:3128 -o /dev/null -w '%{http_code}\\n' http://open.localhost:" + str(port)
    web = subprocess.Popen(
        [sys.executable, "-m", "stockade", "approvals", "--web", "--json"],
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run = place.start("/bin/sh", "-c", f"{curl}/yes; {curl}/no", policy=policy)
    context = browser.new_context()
    try:
        assert web.stdout
        link = json.loads(web.stdout.readline())["link"]
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.goto(link)
        choose(page)
        assert page.text_content("#all .what") == f"GET http://open.localhost:{port}/yes" and seen == []
        page.keyboard.press("a")
        page.keyboard.type(letters(page) + "\n")
        says(page, "Allowed, once.")
        page.wait_for_selector(".row >> text=/no")
        page.click(".row >> text=/no")
        page.keyboard.press("d")
        says(page, "Refused.")
        assert run.communicate(timeout=30)[0].split() == [b"200", b"403"] and seen == ["/yes"]
        page.keyboard.press("n")
        page.wait_for_selector("#numbers table")
        assert re.search(r"a person was asked\s+2\b", page.inner_text("#numbers"))
    finally:
        context.close()
        web.send_signal(2)
        out, err = web.communicate(timeout=20)
        run.kill()
        run.communicate()
        upstream.close()
    assert web.returncode == 0 and err == "" and json.loads(out)["link"] != link  # the next one
    answers = [event for event in place.ledger() if event["kind"] == "answer"]
    assert [(one["outcome"], one["channel"], one["by"], one["scope"]) for one in answers] == [
        ("approved", "web", "person", "once"),
        ("refused", "web", "person", "once"),
    ]
    assert all(one["seconds"] > 0 for one in answers)  # type: ignore[operator]
    room = link.split("/")[3]
    found = [str(path) for path in place.root.rglob("*") if path.is_file() and room.encode() in path.read_bytes()]
    assert found == [] and until(lambda: not any(place.sessions.iterdir()))
