"""A listener on localhost speaks to whoever the terminal let in, on its own page, under its own name, and to nobody else (M18)."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.pages import Questions, Served
from stockade.cli import approvals
from stockade.core.errors import StockadeError
from stockade.gateway.desk import ask
from stockade.server.access import HEADERS, LARGEST, Access, Asking, Refused
from stockade.server.serve import Server


@pytest.fixture
def cookie(served: Served) -> str:
    return served.enter()


def looking(served: Served, cookie: str, /, **other: str) -> dict[str, str]:
    """The headers of our own page's requests; "" leaves one out."""
    usual = {
        "host": f"127.0.0.1:{served.port}",
        "cookie": cookie,
        "sec-fetch-site": "same-origin",
        **{k.replace("_", "-"): v for k, v in other.items()},
    }
    return {name: value for name, value in usual.items() if value}


def answering(served: Served, cookie: str, /, **other: str) -> dict[str, str]:
    return looking(served, cookie, **{"origin": f"http://127.0.0.1:{served.port}", "content_type": "application/json", **other})


def yes(served: Served) -> bytes:
    """The body of an answer to the one question there is."""
    asked = served.questions.ask()
    served.get("events", looking(served, served.enter()))  # what waits has been looked at
    return json.dumps({"session": "first-session", "ask": asked.number, "digest": asked.digest, "allow": True, "scope": "once"}).encode()


def test_what_comes_from_our_page_counts(served: Served, cookie: str) -> None:
    said = served.call("POST", f"{served.room}answer", answering(served, cookie), yes(served))
    assert said.status == 200 and json.loads(said.body) == {"allow": True, "outcome": "approved", "scope": "once", "told": ""}
    (done,) = served.questions.answered
    assert done.allow and done.channel == "web" and done.by == "person"
    assert served.get("", looking(served, cookie)).body.startswith(b"<!doctype html>")
    host = f"localhost:{served.port}"
    assert served.get("", looking(served, cookie, host=host, sec_fetch_site="none")).status == 200


ELSEWHERE = "http://evil.test"


@pytest.mark.parametrize(
    "other",
    [
        {"cookie": ""},
        {"cookie": "stockade="},
        {"cookie": "stockade=" + "A" * 43},
        {"host": "evil.test"},  # DNS rebinding: another name that leads here
        {"host": "evil.test:PORT"},
        {"host": "127.0.0.1"},
        {"host": "127.0.0.1:PORT.evil.test"},
        {"host": "[::1]:PORT"},
        {"sec_fetch_site": ""},
        {"sec_fetch_site": "none"},
        {"sec_fetch_site": "same-site"},  # another port of this host
        {"sec_fetch_site": "cross-site"},
        {"origin": ""},
        {"origin": "null"},
        {"origin": ELSEWHERE},
        {"origin": "http://127.0.0.1"},
        {"origin": "https://127.0.0.1:PORT"},
        {"origin": "http://localhost:PORT"},  # the page is at the other name
        {"content_type": "text/plain"},  # what a form of another page can send
        {"content_type": ""},
        {"content_length": str(LARGEST + 1)},
        {"content_length": "", "transfer_encoding": "chunked"},
    ],
)
def test_whatever_else_comes_is_refused_and_nothing_is_answered(served: Served, cookie: str, other: dict[str, str]) -> None:
    body = yes(served)
    other = {name: value.replace("PORT", str(served.port)) for name, value in other.items()}
    said = served.call("POST", f"{served.room}answer", answering(served, cookie, **other), body)
    assert said.status == 403 and said.body.startswith(b"Refused. ") and served.questions.answered == []
    if not {"origin", "content_type", "content_length"} & other.keys() and other != {"sec_fetch_site": "none"}:
        for path in ("", "page.js", "events", "stats"):
            refused = served.get(path, looking(served, cookie, **other))
            assert refused.status == 403 and b"example.test" not in refused.body and b"html" not in refused.body


def test_without_the_room_not_even_the_cookie_helps(served: Served, cookie: str) -> None:
    for path in (
        "/",
        "//",
        "/favicon.ico",
        "/answer",
        f"{served.room[:-1]}",
        f"{served.room[:-2]}/",
        f"/x{served.room}",
        "/%2e/",
        f"http://evil.test{served.room}",
    ):
        for method in ("GET", "POST", "HEAD", "OPTIONS"):
            assert served.call(method, path, answering(served, cookie, content_length="0")).status == 403
    for method in ("HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"):
        assert served.call(method, served.room, answering(served, cookie, content_length="0")).status == 403


def test_a_link_works_once_and_then_the_terminal_shows_the_next(served: Served) -> None:
    count, link = len(served.links), served.links[-1].removeprefix(served.base)
    led = {"sec-fetch-site": "cross-site"}  # the address would be in another page's hands: not used up by that
    assert served.get(link, led).status == 403 and served.get("?link=" + "A" * 43, {"sec-fetch-site": "none"}).status == 403
    first = served.get(link, {"sec-fetch-site": "none"})
    assert first.status == 303 and first.headers["location"] == served.room
    made = first.headers["set-cookie"]
    assert made.endswith(f"; Path={served.room}; HttpOnly; SameSite=Strict") and "Domain" not in made
    assert len(served.links) == count + 1 and served.links[-1] != served.links[-2]
    again = served.get(link, {"sec-fetch-site": "none"})
    assert again.status == 403 and b"used already" in again.body and "set-cookie" not in again.headers and len(served.links) == count + 1
    assert served.get(served.links[-1].removeprefix(served.base), {"sec-fetch-site": "none"}).status == 303


def test_every_answer_says_that_nobody_may_frame_read_or_keep_it(served: Served, cookie: str) -> None:
    for said in (
        served.get("", looking(served, cookie)),
        served.get("", {}),
        served.get("nothing", looking(served, cookie)),
        served.get("events", looking(served, cookie)),
    ):
        assert {name: said.headers.get(name) for name in HEADERS} == HEADERS and "server" not in said.headers
        assert not [name for name in said.headers if name.startswith("access-control")]
    policy = HEADERS["content-security-policy"]
    assert (
        "default-src 'none'" in policy
        and "frame-ancestors 'none'" in policy
        and "unsafe" not in policy
        and "http" not in policy
        and "*" not in policy
    )


def test_it_listens_on_one_address(served: Served) -> None:
    with pytest.raises(ConnectionRefusedError):
        served.call("GET", served.room, {}, address="127.0.0.2")


def test_a_port_that_is_taken_is_a_typed_error(served: Served) -> None:
    with pytest.raises(StockadeError) as caught:
        Server(Questions(), lambda: None, print, served.port).run()  # type: ignore[arg-type, return-value]
    assert caught.value.code == "web.port"


def test_a_port_that_is_none_and_a_missing_library_say_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for port in ("80", "65536", "-1", "http", ""):
        with pytest.raises(SystemExit) as ended:
            approvals.main(["--web", "--port", port])
        assert ended.value.code == 2 and "from 1024 to 65535" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "stockade.server.serve", None)
    with pytest.raises(StockadeError) as caught:
        approvals.main(["--web"])
    assert caught.value.code == "cli.extra" and "stockade[web]" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[" * 10000, 400),
        (b"\xff", 400),
        (b"[]", 400),
        ({"ask": "1"}, 400),
        ({"allow": 1}, 400),
        ({"more": 1}, 400),
        ({"directory": "/tmp"}, 400),  # where a session is, is nothing that a browser says
        ({"digest": "0" * 64}, 409),
        ({"ask": 2}, 409),
        ({"session": "third-session"}, 409),
        ({"session": "../../first-session"}, 409),
    ],
)
def test_what_is_no_answer_to_what_waits_changes_nothing(
    served: Served, cookie: str, change: bytes | dict[str, object], status: int
) -> None:
    good = json.loads(yes(served))
    body = change if isinstance(change, bytes) else json.dumps({**good, **change}).encode()
    said = served.call("POST", f"{served.room}answer", answering(served, cookie), body)
    assert said.status == status and json.loads(said.body)["error"] in ("web.request", "approval.gone", "approval.other")
    assert served.questions.answered == [] and len(served.questions.waiting()) == 1


def test_who_answers_first_wins_and_the_other_is_told(served: Served, cookie: str) -> None:
    body = yes(served)
    (asked,) = served.questions.sessions["first-session"].pending.values()
    served.questions.elsewhere(asked, False)
    said = served.call("POST", f"{served.room}answer", answering(served, cookie), body)
    assert said.status == 409 and json.loads(said.body)["error"] == "approval.gone" and served.questions.answered == []


TEXT = st.text(st.characters(codec="latin-1"), max_size=20)
NAMES = st.sampled_from(["host", "origin", "cookie", "sec-fetch-site", "content-type", "content-length"])


@given(st.sampled_from(["GET", "POST", "HEAD", "PUT"]), TEXT, TEXT, st.lists(st.tuples(NAMES, TEXT)), st.booleans())
def test_law_nothing_passes_without_the_cookie(method: str, path: str, query: str, headers: list[tuple[str, str]], here: bool) -> None:
    access = Access(4000)
    access.link()
    with pytest.raises(Refused):
        access.enter(Asking(method, f"/{access.room}/{path}" if here else path, query, tuple(headers)))


@given(
    st.lists(st.sampled_from(["host", "origin", "cookie", "sec-fetch-site", "content-type", "content-length"]), min_size=1, unique=True),
    TEXT,
)
def test_law_each_header_that_counts_counts_and_stands_there_once(names: list[str], text: str) -> None:
    access = Access(4000)
    link = access.link()
    made = access.enter(Asking("GET", f"/{access.room}/", link.partition("?")[2], (("host", "localhost:4000"), ("sec-fetch-site", "none"))))
    good = {
        "host": "localhost:4000",
        "origin": "http://localhost:4000",
        "cookie": f"other=1; stockade=tossed; {made.partition(';')[0]}",
        "sec-fetch-site": "same-origin",
        "content-type": "application/json",
        "content-length": "2",
    }
    path = f"/{access.room}/answer"
    assert access.enter(Asking("POST", path, "", tuple(good.items()))) == ""
    for bad in ({**good, **dict.fromkeys(names, text)}, {name: value for name, value in good.items() if name not in names}):
        if any(bad.get(name) != good[name] for name in names if name != "content-length" or not bad.get(name, "x").isdigit()):
            with pytest.raises(Refused):
                access.enter(Asking("POST", path, "", tuple(bad.items())))
    with pytest.raises(Refused):
        access.enter(Asking("POST", path, "", (*good.items(), *((name, good[name]) for name in names))))


def test_a_session_whose_directory_has_just_gone_is_silent(tmp_path: object) -> None:
    with pytest.raises(StockadeError) as caught:
        ask(f"{tmp_path}/gone", {"do": "asks"})
    assert caught.value.code == "session.silent"
