"""Many sessions in one gate: each has its own grants, its own credential and its own end, and none has anything of another's."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator

import pytest

from gateway.harness import CREDENTIAL, Gate, Guest, Upstream, running, until
from stockade.core.values import Grant

pytestmark = pytest.mark.wall

OTHER = {**CREDENTIAL, "secret": "other-secret-91ab", "placeholder": "stockade-placeholder-other"}


@pytest.fixture(scope="module")
def gate(carrier: str, upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    with running(tmp_path_factory.mktemp("gate"), upstream, kind=carrier) as started:
        yield started


@pytest.fixture
def other(gate: Gate, upstream: Upstream) -> Iterator[Guest]:
    """A second session, with another secret and one more host."""
    with visiting(gate, upstream, "s-other") as guest:
        yield guest


def granted(upstream: Upstream, *hosts: str) -> tuple[Grant, ...]:
    return tuple(
        Grant(host, paths=("/v1/**",), methods=("GET", "POST"), credential="own", port=upstream.port, private=True) for host in hosts
    )


@contextlib.contextmanager
def visiting(gate: Gate, upstream: Upstream, session: str, **named: object) -> Iterator[Guest]:
    hosts = ("api.localhost", "other.localhost")
    with gate.visited(session, granted(upstream, *hosts), **{"credentials": {"own": OTHER}, **named}) as guest:
        yield guest


def test_each_gets_its_own_secret_and_its_own_events(gate: Gate, other: Guest, upstream: Upstream) -> None:
    for guest, secret in ((gate, CREDENTIAL["secret"]), (other, OTHER["secret"])):
        upstream.requests.clear()
        assert guest.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
        [(_, _, headers, _)] = upstream.requests
        assert ("x-api-key", secret) in headers
    assert {event["session"] for event in gate.events} == {"s-test"} and {event["session"] for event in other.events} == {"s-other"}


def test_a_siblings_grants_and_placeholder_are_no_use(gate: Gate, other: Guest, upstream: Upstream) -> None:
    upstream.requests.clear()
    assert other.curl(f"https://other.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
    done = gate.curl(f"https://other.localhost:{upstream.port}/v1/x")
    assert "403" in done.stdout + done.stderr
    done = gate.curl(f"https://api.localhost:{upstream.port}/v1/x", "-H", f"x-api-key: {OTHER['placeholder']}")
    assert "foreign-credential" in done.stdout
    assert len(upstream.requests) == 1


def test_whether_a_sibling_was_granted_a_name_cannot_be_seen(gate: Gate, other: Guest, upstream: Upstream) -> None:
    """A name that only the sibling has, after the sibling has used it, ends like one that nobody has: before any certificate."""
    assert other.curl(f"https://other.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
    context = ssl.create_default_context(cafile=str(gate.ca_file))
    context.check_hostname = False
    seen = []
    for name in ("other.localhost", "nobody.localhost"):
        with socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 5) as connection:
            target = f"api.localhost:{upstream.port}"
            connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            assert b" 200 " in connection.recv(4096)
            with pytest.raises((ssl.SSLError, ConnectionResetError)) as caught:
                context.wrap_socket(connection, server_hostname=name)
            seen.append(caught.type)
    assert seen[0] is seen[1]


def test_revoking_one_leaves_the_other(gate: Gate, other: Guest, upstream: Upstream) -> None:
    url = f"https://api.localhost:{upstream.port}/v1/x"
    with visiting(gate, upstream, "s-third") as third:
        lines = [held(guest, upstream) for guest in (third, other)]
        assert third.revoke(0, 1) < 1
        assert lines[0].recv(100) == b"" and "403" in third.curl(url).stderr + third.curl(url).stdout
        lines[1].setblocking(False)
        with pytest.raises((BlockingIOError, ssl.SSLWantReadError)):
            lines[1].recv(100)
        assert other.curl(url).stdout.endswith("[200]")
        for line in lines:
            line.close()


def held(guest: Guest, upstream: Upstream) -> socket.socket:
    """A tunnel that stays open."""
    connection = socket.create_connection(("127.0.0.1", guest.ports["http-proxy"]), 5)
    target = f"api.localhost:{upstream.port}"
    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    assert b" 200 " in connection.recv(4096)
    return connection


def test_the_end_of_one_closes_what_is_its_own(gate: Gate, other: Guest, upstream: Upstream) -> None:
    with visiting(gate, upstream, "s-short") as short:
        mine, others = held(short, upstream), held(other, upstream)
        short.hang_up()
        assert mine.recv(100) == b""
        others.setblocking(False)
        with pytest.raises(BlockingIOError):
            others.recv(100)
        mine.close()
        others.close()
    assert other.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
    with visiting(gate, upstream, "s-short") as again:  # its name is free again
        assert again.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")


def test_what_cannot_be_served_ends_itself_only(gate: Gate, other: Guest, upstream: Upstream) -> None:
    same = gate.visit("s-other", granted(upstream, "api.localhost"))
    assert same.ended.wait(5) and same.failure and not same.ready.is_set()
    same.close()
    broken = gate.visit("s-broken", granted(upstream, "api.localhost"), credentials={"own": {"header": "x"}})
    assert broken.ended.wait(5) and broken.failure
    broken.close()
    ours, theirs = socket.socketpair()
    socket.send_fds(gate.introductions, [b"session"], [theirs.fileno()])
    theirs.close()
    ours.settimeout(5)
    ours.sendall(b"not json\n")
    assert until(lambda: ours.recv(1 << 16) == b"")
    ours.close()
    assert other.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")


def test_one_that_takes_all_connections_leaves_room(gate: Gate, other: Guest, upstream: Upstream) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(1100):  # more than one session may have
            stack.enter_context(socket.create_connection(("127.0.0.1", gate.ports["http-proxy"]), 5))
        started = time.monotonic()
        assert other.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
        assert time.monotonic() - started < 30


def test_names_are_bounded_for_each_session(gate: Gate, upstream: Upstream) -> None:
    wide = (Grant("*.names.localhost", paths=("/**",), port=upstream.port, private=True),)
    guest = gate.visit("s-wide", wide)
    try:
        assert guest.ready.wait(10)
        answers = []
        with socket.create_connection(("127.0.0.1", guest.ports["http-proxy"]), 10) as connection:
            for number in range(520):
                target = f"n{number}.names.localhost:{upstream.port}"
                with socket.create_connection(("127.0.0.1", guest.ports["http-proxy"]), 10) as connection:
                    connection.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
                    answers.append(connection.recv(4096))
        assert [b" 200 " in answer for answer in answers] == [True] * 512 + [False] * 8
        assert b"too-many-names" in answers[-1]
    finally:
        guest.close()


def test_waiting_for_a_person_holds_up_nobody_else(gate: Gate, upstream: Upstream) -> None:
    asks = tuple(Grant(**{**grant.__dict__, "effect": "ask"}) for grant in granted(upstream, "api.localhost"))
    said = threading.Event()
    asked: list[dict[str, object]] = []

    def approve(event: dict[str, object]) -> bool:
        asked.append(event)
        said.wait(10)
        return event["path"] == "/v1/yes"

    url = f"https://api.localhost:{upstream.port}"
    guest = gate.visit("s-asks", asks, patience=5.0)
    guest.approve = approve
    try:
        assert guest.ready.wait(10)
        answers: dict[str, str] = {}
        callers = [
            threading.Thread(target=lambda path=path: answers.update({path: guest.curl(url + path).stdout}))
            for path in ("/v1/yes", "/v1/no")
        ]
        upstream.requests.clear()
        for caller in callers:
            caller.start()
        assert until(lambda: len(asked) == 2)
        assert gate.curl(f"{url}/v1/x").stdout.endswith("[200]") and [path for _, path, _, _ in upstream.requests] == ["/v1/x"]
        said.set()
        for caller in callers:
            caller.join(15)
        assert answers["/v1/yes"].endswith("[200]") and answers["/v1/no"].endswith("[403]") and "approval-needed" in answers["/v1/no"]
        assert {event["effect"] for event in asked} == {"ask"}
        effects = {
            event["path"]: (event["effect"], str(event["rule"])[:15])
            for event in guest.events
            if event["kind"] == "egress" and "path" in event
        }
        assert effects == {"/v1/yes": ("allow", "approved: appro"), "/v1/no": ("deny", "approval-needed")}
    finally:
        guest.close()


def test_a_rule_that_has_ended_while_somebody_was_asked(gate: Gate, upstream: Upstream) -> None:
    """What was approved too late does not leave, as what is asked too late does not."""
    (asks,) = granted(upstream, "api.localhost")
    for until_when, expected in ((2, "[403]"), (600, "[200]")):
        end = int(time.time()) + until_when
        guest = gate.visit(f"s-ends-{until_when}", (Grant(**{**asks.__dict__, "effect": "ask", "not_after": end}),), patience=20.0)

        def approve(event: dict[str, object], end: int = end) -> bool:
            if end < time.time() + 60:
                assert until(lambda: time.time() > end, 20)
            return True

        guest.approve = approve
        try:
            assert guest.ready.wait(10)
            done = guest.curl(f"https://api.localhost:{upstream.port}/v1/x", "-m", "30", patience=40)
            assert done.stdout.endswith(expected), done
            assert [event["effect"] for event in guest.events if event.get("path") == "/v1/x"] == [
                "deny" if expected == "[403]" else "allow"
            ]
        finally:
            guest.close()


def test_nobody_answers_in_time(gate: Gate, upstream: Upstream) -> None:
    asks = tuple(Grant(**{**grant.__dict__, "effect": "ask"}) for grant in granted(upstream, "api.localhost"))
    for patience, least in ((0.3, 0.3), (0.0, 0.0)):
        guest = gate.visit(f"s-late-{patience}", asks, patience=patience)
        try:
            assert guest.ready.wait(10)
            started = time.monotonic()
            done = guest.curl(f"https://api.localhost:{upstream.port}/v1/x")
            assert done.stdout.endswith("[403]") and "nobody approved it" in done.stdout and time.monotonic() - started >= least
        finally:
            guest.close()


def test_what_a_hundred_sessions_leave_behind(gate: Gate, upstream: Upstream) -> None:
    """Nothing: descriptors of brain and doorman are as before."""

    def descriptors() -> list[int]:
        return [len(os.listdir(f"/proc/{gate.children()[part]}/fd")) for part in ("brain", "doorman")]

    assert gate.curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
    before = descriptors()
    guests = [gate.visit(f"s-{number}", granted(upstream, "api.localhost")) for number in range(100)]
    assert all(guest.ready.wait(20) for guest in guests)
    assert descriptors()[0] >= before[0] + 300
    assert guests[50].curl(f"https://api.localhost:{upstream.port}/v1/x").stdout.endswith("[200]")
    for guest in guests:
        guest.close()
    assert until(lambda: all(now <= old + 4 for now, old in zip(descriptors(), before, strict=True))), (descriptors(), before)
