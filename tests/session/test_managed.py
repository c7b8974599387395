"""The administrator's policy from a server (M22): what is in force stays until a newer edition, signed by the pinned key, has passed every check."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from gateway.harness import Quiet, Served, certified
from stockade.core.errors import PolicyError, StockadeError
from stockade.core.notes import Verifier, signature_line
from stockade.gateway.certs import Authority
from stockade.policy import files
from stockade.policy.compile import compile_policy
from stockade.policy.problems import each
from stockade.session import managed

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
VERIFIER = Verifier.from_public("corp", KEY.public_key().public_bytes_raw())
POLICY = 'version = 1\nserial = {}\n\n# edition {}\n[caps]\negress_hosts = ["api.example.test"]\n\n[limits]\nprocesses = {}\n'


def text(serial: int) -> bytes:
    return POLICY.format(serial, serial, 10 + serial).encode()


def edition(data: bytes, key: Ed25519PrivateKey = KEY, name: str = "corp") -> bytes:
    verifier = Verifier.from_public(name, key.public_key().public_bytes_raw())
    return data + b"\n" + signature_line(verifier, key.sign(data))


class Place:
    """A server, and a machine that has pinned its key. `served` is what it serves: (status, headers, body)."""

    def __init__(self, root: Path) -> None:
        self.served: tuple[int, dict[str, str], bytes] = (200, {}, b"")
        self.endless = b""  # instead of an answer: this again and again
        self.etc = root / "etc"
        self.etc.mkdir(mode=0o755)
        self.pinned, self.target = self.etc / "policy.vkey", self.etc / "policy.toml"
        self.pinned.write_text(f"{VERIFIER}\n")
        self.pinned.chmod(0o644)
        authority = Authority("a company's")
        self.roots = root / "roots.pem"
        self.roots.write_text(authority.pem)
        place = self

        class Handler(Quiet):
            def do_GET(self) -> None:
                status, headers, body = place.served
                if place.endless[:1] == b"x":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\n")
                while place.endless:
                    try:
                        self.wfile.write(place.endless)
                    except OSError:
                        return
                    time.sleep(0.05)
                self.send_response(status)
                for name, value in {"content-length": str(len(body)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self.server = Served(Handler, certified(authority, root, "localhost"))
        self.url = f"https://localhost:{self.server.server_port}/policy.signed"

    def fetch(self, body: bytes | None = None, *, status: int = 200, **headers: str) -> managed.Fetched:
        if body is not None:
            self.served = (status, headers, body)
        return managed.fetch(self.url, pinned=str(self.pinned), target=str(self.target))

    def refused(self, body: bytes | None = None, **more: Any) -> str:
        """The error's code, after a look whether what was in force still is."""
        before = self.target.read_bytes() if self.target.exists() else None
        with pytest.raises(StockadeError) as caught:
            self.fetch(body, **more)
        assert (self.target.read_bytes() if self.target.exists() else None) == before
        assert {path.name for path in self.etc.iterdir()} <= {"policy.vkey", "policy.toml"}  # nothing half-written is left
        return caught.value.code


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    made = Place(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.roots))
    yield made
    made.server.close()


def test_an_edition_that_is_signed_and_newer_is_put_in_force(place: Place) -> None:
    assert place.fetch(edition(text(1))) == managed.Fetched(1, 0, True)
    assert place.target.read_bytes() == text(1) and place.target.stat().st_mode & 0o777 == 0o644
    first = place.target.stat().st_ino
    assert place.fetch() == managed.Fetched(1, 1, False) and place.target.stat().st_ino == first
    assert place.fetch(edition(text(7)) + edition(b"", OTHER, "someone")[1:]) == managed.Fetched(
        7, 1, True
    )  # a second signature is no harm
    work = place.etc.parent / "work"
    work.mkdir()
    policy = compile_policy(str(work), managed=str(place.target), managed_owner=os.geteuid()).policy
    assert policy.limits.processes == 17  # and it is what starts


def test_no_older_edition_ever_takes_the_place_of_a_newer(place: Place) -> None:
    place.fetch(edition(text(5)))
    assert place.refused(edition(text(4))) == "policy.rollback"
    assert place.refused(edition(text(5).replace(b"edition 5", b"edition V"))) == "policy.rollback"
    assert place.fetch(edition(text(6))).changed


def test_what_the_pinned_key_has_not_signed_is_nothing(place: Place) -> None:
    place.fetch(edition(text(1)))
    good = edition(text(2))
    for bad in (
        text(2),
        edition(text(2), OTHER),
        edition(text(2), OTHER, "other"),
        edition(text(2), KEY, "other"),
        good.replace(b"egress_hosts", b"egress_methods"),
        text(3) + b"\n" + good.rpartition(b"\n\n")[2],  # another edition's signature
        good[:-1],
        good[: len(good) // 2],
        b"",
        b"\xff" + good,
        text(9) + b"\n" + good,  # something put in front
    ):
        assert place.refused(bad) == "policy.signature", bad


@given(st.data())
def test_law_no_change_of_an_edition_is_taken(data: st.DataObject) -> None:
    good = edition(text(2))
    at = data.draw(st.integers(0, len(good)))
    cut = data.draw(st.integers(0, 3))
    bad = good[:at] + data.draw(st.binary(max_size=3)) + good[at + cut :]
    try:
        assert managed.opened(bad, VERIFIER) == text(2)
    except StockadeError as error:
        assert error.code == "policy.signature" and bad != good


@pytest.mark.parametrize(
    "made, code",
    [
        (lambda: edition(b"version = 1\n"), "policy.serial"),
        (lambda: edition(b"version = 1\nserial = 0\n"), "policy.serial"),
        (lambda: edition(b"version = 1\nserial = true\n"), "policy.serial"),
        (lambda: edition(b"version = 1\nserial = 9\ncolour = 1\n"), "policy.unknown-key"),
        (lambda: edition(b"version = 1\nserial = 9\n[caps\n"), "policy.syntax"),
        (lambda: edition(b"version = 1\nserial = 9\n#" + b"x" * files.MAX_BYTES + b"\n"), "policy.fetch"),
    ],
)
def test_what_is_signed_and_no_policy_changes_nothing(place: Place, made: Callable[[], bytes], code: str) -> None:
    place.fetch(edition(text(1)))
    if code == "policy.fetch":
        place.served = (200, {}, made() + b"x" * 8192)
        assert place.refused() == code
    else:
        assert place.refused(made()) == code


def test_a_server_that_is_not_there_or_another_changes_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fetch(edition(text(1)))
    newer = edition(text(2))
    assert place.refused(newer, status=404) == "policy.fetch"
    assert place.refused(newer, status=302, location=place.url) == "policy.fetch"  # nobody sends us elsewhere
    assert place.refused(newer, **{"content-length": str(len(newer) - 9)}) == "policy.signature"
    place.url = place.url.replace("https:", "http:")
    assert place.refused(newer) == "policy.fetch"
    place.url = "file:///etc/passwd"
    assert place.refused() == "policy.fetch"
    place.url = f"https://localhost:{place.server.server_port}/"
    monkeypatch.setenv("SSL_CERT_FILE", os.devnull)  # its certificate is not known here
    assert place.refused(newer) == "policy.fetch"
    monkeypatch.setenv("SSL_CERT_FILE", str(place.roots))
    assert place.fetch().serial == 2
    place.url = "https://localhost:1/"  # nobody listens there
    assert place.refused() == "policy.fetch"


def test_a_server_that_never_comes_to_an_end_is_left(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says a little again and again, so that no time of the socket's ever runs out: headers, and answers that are only provisional (RFC 9110, section 15.2)."""
    place.fetch(edition(text(1)))
    monkeypatch.setattr(managed, "_LONGEST", 1.0)
    for piece in (b"x: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"):
        place.endless = piece
        assert place.refused(edition(text(2))) == "policy.fetch"
    place.endless = b""
    monkeypatch.undo()
    monkeypatch.setenv("SSL_CERT_FILE", str(place.roots))
    assert place.fetch().serial == 2


def test_files_that_others_could_change_are_not_relied_on(place: Place) -> None:
    newer = edition(text(2))
    place.pinned.chmod(0o666)
    assert place.refused(newer) == "policy.unsafe-file"
    place.pinned.chmod(0o644)
    place.etc.chmod(0o777)
    assert place.refused(newer) == "policy.unsafe-file"
    place.etc.chmod(0o755)
    place.pinned.write_text("not a key")
    assert place.refused(newer) == "policy.pin"
    place.pinned.unlink()
    assert place.refused(newer) == "policy.pin"


def test_a_policy_in_force_that_nobody_can_read_is_not_replaced_unseen(place: Place) -> None:
    place.target.write_text("version = 1\nserial = 9\n[caps\n")
    place.target.chmod(0o644)
    assert place.refused(edition(text(10))) == "policy.syntax"


def test_a_disk_that_fails_leaves_the_old_one_whole(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.fetch(edition(text(1)))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        assert place.refused(edition(text(2))) == "policy.unwritable"
    assert place.fetch().serial == 2


def test_of_two_at_once_the_newer_stays(place: Place) -> None:
    place.fetch(edition(text(1)))
    older, failed = edition(text(2)), []
    directory = os.open(place.etc, os.O_RDONLY)
    fcntl.flock(directory, fcntl.LOCK_EX)  # another is just putting edition 3 in place
    place.served = (200, {}, older)

    def late() -> None:
        try:
            place.fetch()
        except StockadeError as error:
            failed.append(error.code)

    waiting = threading.Thread(target=late)
    waiting.start()
    place.target.write_bytes(text(3))
    os.close(directory)
    waiting.join(30)
    assert failed == ["policy.rollback"] and place.target.read_bytes() == text(3)


def pem(key: Any, password: bytes = b"") -> bytes:
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, how))


def test_what_is_signed_here_is_taken_there(place: Place, tmp_path: Path) -> None:
    policy, key = tmp_path / "policy.toml", tmp_path / "key.pem"
    policy.write_bytes(text(3))
    key.write_bytes(pem(KEY, b"a password"))
    made = managed.sign(str(policy), str(key), name="corp", password=lambda: "a password")
    assert (made.serial, made.verifier) == (3, VERIFIER) and place.fetch(made.data).serial == 3
    with pytest.raises(StockadeError) as caught:
        managed.sign(str(policy), str(key), name="corp", password=lambda: "another")
    assert caught.value.code == "policy.key"


@pytest.mark.parametrize(
    "data, key, name, code",
    [
        (b"version = 1\n", pem(KEY), "corp", "policy.serial"),
        (text(1).replace(b" = 1\n", b"\t= 1\n", 1), pem(KEY), "corp", "policy.text"),
        (text(1)[:-1], pem(KEY), "corp", "policy.text"),
        (text(1) + b"[[egress]]\nhost = 'a.test'\n", pem(KEY), "corp", "policy.grants-nothing"),  # not only its shape is looked at
        (text(1), b"nothing", "corp", "policy.key"),
        (text(1), pem(X25519PrivateKey.generate()), "corp", "policy.key"),
        (text(1), pem(KEY), "two words", "policy.key"),
        (text(1), pem(KEY), "a+b", "policy.key"),
    ],
)
def test_what_is_not_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, key: bytes, name: str, code: str) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "policy.toml").write_bytes(data)
    (tmp_path / "key.pem").write_bytes(key)
    with pytest.raises(StockadeError) as caught:
        managed.sign(str(tmp_path / "policy.toml"), str(tmp_path / "key.pem"), name=name, password=str)
    assert code in ({one.code for one in each(caught.value)} if isinstance(caught.value, PolicyError) else {caught.value.code})


def test_by_the_command_line(place: Place, tmp_path: Path) -> None:
    (tmp_path / "key.pem").write_bytes(pem(KEY))
    (tmp_path / "policy.toml").write_bytes(text(4))

    def stockade(*words: str) -> tuple[int, dict[str, Any]]:
        env = {**os.environ, "XDG_CONFIG_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-m", "stockade", "policy", *words, "--json"], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        return done.returncode, json.loads(done.stdout)

    status, said = stockade("sign", "policy.toml", "--key", "key.pem", "--name", "corp")
    assert status == 0 and said == {"ok": True, "file": "policy.toml.signed", "serial": 4, "key": str(VERIFIER)}
    place.served = (200, {}, (tmp_path / "policy.toml.signed").read_bytes())
    where = ("--key", str(place.pinned), "--output", str(place.target))
    status, said = stockade("fetch", place.url, *where)
    assert status == 0 and said == {"ok": True, "file": str(place.target), "serial": 4, "before": 0, "changed": True}
    place.served = (200, {}, edition(text(3)))
    status, said = stockade("fetch", place.url, *where)
    assert status == 125 and (said["ok"], said["error"]) == (False, "policy.rollback") and place.target.read_bytes() == text(4)
