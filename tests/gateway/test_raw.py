"""Raw TCP: only to the name and port that a grant says, to the byte that it says, and gone when the grant is."""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.harness import Gate, Upstream, running, until
from gateway.test_door import Inside, lookup, made
from stockade.core.values import Grant, Policy
from stockade.gateway.asking import sent
from stockade.gateway.proxy_protocol import proxy_header, read_header
from stockade.session.predict import Rules, predict
from stockade.walls import door

PLANTED = "planted-4d1c9be0-string"


@given(
    st.text(st.characters(codec="ascii", exclude_characters="\0"), max_size=60),
    st.text(max_size=40),
    st.ip_addresses().map(str),
    st.integers(0, 65535),
)
def test_the_doormans_header_is_read_back(name: str, session: str, address: str, port: int) -> None:
    written = address.removeprefix("::ffff:") if "." in address else address
    assert read_header(proxy_header(session, (address, 1), (address, port), name)) == (session, name, written, port, "")
    assert read_header(proxy_header(session, (address, 1), (address, port), name, "17"))[4] == "17"


@given(
    st.binary(max_size=300)
    | st.binary(max_size=100).map(lambda rest: b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + len(rest).to_bytes(2, "big") + rest)
)
def test_any_bytes_are_a_header_or_refused(data: bytes) -> None:
    try:
        read_header(data)
    except (ValueError, KeyError):
        pass


class Echo(socketserver.ThreadingTCPServer):
    """Sends back what it gets, and at the end of it says how much that was."""

    daemon_threads = True
    received = 0

    class RequestHandlerClass(socketserver.BaseRequestHandler):  # type: ignore[misc]
        def handle(self) -> None:
            total = 0
            while data := self.request.recv(1 << 16):
                total += len(data)
                self.server.received += len(data)  # type: ignore[attr-defined]
                self.request.sendall(data)
            self.request.sendall(b"|%d" % total)


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    server = Echo(("127.0.0.1", 0), Echo.RequestHandlerClass)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def opened(echo: Echo) -> Iterator[door.Door]:
    with made(*door.PORTS, echo.server_address[1], 9999) as opened:
        yield opened


def granted(port: int) -> tuple[Grant, ...]:
    def raw(host: str, **more: object) -> Grant:
        return Grant(host, port, "tcp", (), (), private=True, **more)  # type: ignore[arg-type]

    return (
        raw("db.localhost"),
        raw("small.localhost", max_upload=1000),
        raw("budget.localhost", upload_budget=1000, max_upload=900),
        raw("once.localhost", uses=1),
        raw("denied.localhost"),
        raw("denied.localhost", effect="deny"),
        Grant("db.localhost", 9999, "tcp", (), ()),  # private, which this one does not say
        Grant("web.localhost", port, "http", private=True),
    )


@pytest.fixture(scope="module")
def gate(engine_binary: str, upstream: Upstream, opened: door.Door, echo: Echo, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gate]:
    kinds = {door.PROXY: "http-proxy", door.HTTP: "http", door.HTTPS: "https", door.DNS: "dns-tcp"}
    listeners = [(kinds.get(port, "tcp"), socket.socket(fileno=fd)) for port, fd in opened.listeners.items()]
    listeners.append(("dns-udp", socket.socket(fileno=opened.dns)))
    with running(
        tmp_path_factory.mktemp("gate"), upstream, granted(echo.server_address[1]), listeners, canaries={"one": PLANTED}
    ) as started:
        yield started


@pytest.fixture
def inside(opened: door.Door) -> Inside:
    return Inside(opened)


TALK = """
import socket, sys
address, port, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = sys.argv[4].encode() if len(sys.argv) > 4 else b"x" * size
with socket.create_connection((address, port), 5) as sock:
    try:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while piece := sock.recv(65536): got += piece
    except OSError as error:
        print("reset"); sys.exit()
    print(got[-20:].decode() if got else "closed")
"""


def talk(inside: Inside, address: str, port: int, size: int = 5, *text: str) -> str:
    return inside.python(TALK, address, str(port), str(size), *text).decode().strip()


def address_of(inside: Inside, name: str) -> str:
    return lookup(inside, name).answer[0][0].to_text()


pytestmark = pytest.mark.wall


def test_a_granted_name_and_port(gate: Gate, inside: Inside, echo: Echo) -> None:
    port, address = echo.server_address[1], address_of(inside, "db.localhost")
    assert talk(inside, address, port) == "xxxxx|5"
    assert talk(inside, address, port, 500_000).endswith("|500000")  # half-closed, and more than any buffer
    wanted = {"kind": "egress", "effect": "allow", "scheme": "tcp", "host": "db.localhost", "port": port}.items()
    assert any(wanted <= event.items() for event in gate.events)


def test_nothing_else(gate: Gate, inside: Inside, echo: Echo) -> None:
    port, before = echo.server_address[1], echo.received
    db = address_of(inside, "db.localhost")
    assert talk(inside, "127.0.0.1", port) in ("closed", "reset")  # an address that was given out for no name
    assert talk(inside, "198.18.200.1", port) in ("closed", "reset")
    assert talk(inside, address_of(inside, "web.localhost"), port) in ("closed", "reset")  # granted for HTTP only
    assert talk(inside, address_of(inside, "denied.localhost"), port) in ("closed", "reset")
    assert talk(inside, db, 9999) in ("closed", "reset")  # its address is private, and the grant does not say that it may be
    assert echo.received == before
    rules = {(event["host"], event["rule"]) for event in gate.events if event.get("way") == "raw" and event["effect"] == "deny"}
    assert {
        ("", "bare-ip"),
        ("web.localhost", "host-not-granted"),
        ("denied.localhost", "denied-by-rule"),
        ("db.localhost", "address-not-public"),
    } <= rules


@pytest.mark.parametrize("name", ["db", "web", "denied", "none"])
def test_it_was_foreseen(gate: Gate, inside: Inside, echo: Echo, name: str) -> None:
    port = echo.server_address[1]
    rules = Rules(Policy(grants=granted(port), canaries=(("one", PLANTED),)), {})
    foreseen = predict(rules, sent("GET", f"tcp://{name}.localhost:{port}"))
    before = len(gate.events)
    if name == "none":  # a name without an address: nobody is asked
        assert not foreseen.named and not lookup(inside, "none.localhost").answer
        assert (foreseen.effect, foreseen.event) == ("deny", {})
        return
    answered = talk(inside, address_of(inside, f"{name}.localhost"), port) == "xxxxx|5"
    (seen,) = [event for event in gate.events[before:] if event.get("way") == "raw"]
    assert {**foreseen.event, "session": seen["session"]} == seen
    assert (foreseen.effect == "allow") == answered and foreseen.verdict.rule == seen["rule"]


def test_a_tunnel_does_not_lead_there(gate: Gate, inside: Inside, echo: Echo) -> None:
    program = (
        "import socket\ns=socket.create_connection(('127.0.0.1',3128),5)\n"
        f"s.sendall(b'CONNECT db.localhost:{echo.server_address[1]} HTTP/1.1\\r\\nHost: db.localhost:{echo.server_address[1]}\\r\\n\\r\\n')\nprint(s.recv(100)[:12])"
    )
    assert inside.python(program) == b"b'HTTP/1.1 403'\n"


def test_bytes_are_bounded_as_they_pass(gate: Gate, inside: Inside, echo: Echo) -> None:
    port = echo.server_address[1]
    small, budget = address_of(inside, "small.localhost"), address_of(inside, "budget.localhost")
    assert talk(inside, small, port, 1000).endswith("|1000")
    before = echo.received
    assert talk(inside, small, port, 100_000) in ("closed", "reset") and echo.received <= before + 1000
    assert talk(inside, budget, port, 800).endswith("|800")
    before = echo.received
    assert talk(inside, budget, port, 300) in ("closed", "reset") and echo.received == before
    assert talk(inside, budget, port, 200).endswith("|200")
    assert {"upload-too-large", "upload-budget-spent"} <= {event["rule"] for event in gate.events if event.get("way") == "raw"}


def test_uses_are_connections(gate: Gate, inside: Inside, echo: Echo) -> None:
    address = address_of(inside, "once.localhost")
    assert talk(inside, address, echo.server_address[1]) == "xxxxx|5"
    assert talk(inside, address, echo.server_address[1]) in ("closed", "reset")


def test_a_planted_string_does_not_leave(gate: Gate, inside: Inside, echo: Echo) -> None:
    address, port = address_of(inside, "db.localhost"), echo.server_address[1]
    before = echo.received
    assert talk(inside, address, port, 0, f"insert into t values ('{PLANTED}')") in ("closed", "reset")
    assert echo.received == before
    assert talk(inside, address, port, 0, "insert into t values ('something else')").endswith("|39")
    assert any(event.get("canary") == "the canary one" for event in gate.events)


def test_taking_the_grant_back_cuts_it(engine_binary: str, upstream: Upstream, echo: Echo, tmp_path: Path) -> None:
    grant = Grant("db.localhost", echo.server_address[1], "tcp", (), (), private=True)
    with made(door.DNS, echo.server_address[1]) as opened:
        listeners = [("dns-tcp" if port == door.DNS else "tcp", socket.socket(fileno=fd)) for port, fd in opened.listeners.items()]
        listeners.append(("dns-udp", socket.socket(fileno=opened.dns)))
        inside = Inside(opened)
        with running(tmp_path, upstream, (grant,), listeners) as gate:
            address = address_of(inside, "db.localhost")
            program = (
                f"import socket\ns=socket.create_connection(({address!r},{echo.server_address[1]}),5)\ns.sendall(b'a'); print(s.recv(1), flush=True)\n"
                "s.settimeout(10)\ntry: print(s.recv(1))\nexcept ConnectionResetError: print(b'')"
            )
            with inside.start([sys.executable, "-I", "-S", "-c", program]) as run:
                assert run.stdout is not None and run.stdout.readline() == "b'a'\n"
                assert gate.revoke(0) < 1
                assert run.stdout.readline() == "b''\n"
            assert talk(inside, address, echo.server_address[1]) in ("closed", "reset")
            assert until(lambda: gate.events[-1]["rule"] == "host-not-granted")
