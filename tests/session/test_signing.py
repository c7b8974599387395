"""Commits are signed with a key that is not there (B16): real git, ssh-keygen and ssh-agent, and a thief who speaks the agent's protocol."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from binascii import a2b_base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conftest import unavailable
from session.keyring import Between, Keyring, exchange, keyring
from session.supervised import Place
from session.test_lifecycle import error_of
from stockade.checks import signing as checks
from stockade.core.frozen import replace
from stockade.core.ssh import PublicKey, string
from stockade.core.values import Environment, Limits, Mount, Policy, Signing
from stockade.drills.vectors_signing import THIEF
from stockade.session import live
from stockade.session.confine import AGENT
from stockade.session.signing import SAMPLE
from stockade.walls.vm import wall as vm
from walls.boxes import PYTHON, PYTHON_MOUNTS, require, until
from walls.workspace_box import git, repository

pytestmark = pytest.mark.wall

COMMIT = "echo more >> a.txt && git -c user.name=a -c user.email=a@example.test commit -qam inside"
TAG = "git -c user.name=a -c user.email=a@example.test tag -m t v1"


# Where the socket that signs is one of the host's that is mounted, and where its connections are lent (docs/walls.md): what policies begin with there, and an interpreter.
WALLS = {
    "bubblewrap": (Policy(mounts=PYTHON_MOUNTS), PYTHON),
    "vm": (Policy(wall="vm", limits=Limits(memory=256 << 20)), "/usr/bin/python3"),
}
PATIENCE = 240  # seconds: a machine may have to be booted first, and is slow without KVM


@pytest.fixture(params=WALLS)
def wall(request: pytest.FixtureRequest) -> str:
    if request.param == "vm":
        require(vm)
    return str(request.param)


@pytest.fixture
def ring() -> Iterator[Keyring]:
    with keyring() as made:
        yield made


def signatures(place: Place) -> list[dict[str, object]]:
    return [event for event in place.ledger() if event["kind"] == "sign"]


def payload(where: Path, name: str) -> bytes:
    """What of a commit or tag its signature is over (gitformat-signature(5))."""
    kind = git(where, "cat-file", "-t", name).strip()
    text = git(where, "cat-file", kind, name)
    pattern = r"^gpgsig .*?END SSH SIGNATURE-----\n" if kind == "commit" else r"^-----BEGIN SSH SIGNATURE-----.*"
    return re.sub(pattern, "", text, flags=re.DOTALL | re.MULTILINE).encode()


# ---- the honest use ---------------------------------------------------------------------------------------------------------------


KINDS = [("bubblewrap", ("ed25519",)), ("bubblewrap", ("rsa", "-b", "2048")), ("bubblewrap", ("ecdsa", "-b", "384")), ("vm", ("ed25519",))]


@pytest.mark.parametrize(("wall", "kind"), KINDS, indirect=["wall"])
def test_a_commit_and_a_tag_made_inside_are_accepted_outside_and_the_ledger_names_them(
    place: Place, wall: str, kind: tuple[str, ...]
) -> None:
    repository(place.work / "r")
    config = (place.work / "r/.git/config").read_bytes()
    with keyring(*kind) as ring:
        script = f"cd r; {COMMIT}; {TAG}"
        done = place.run("/bin/sh", "-ec", script, policy=ring.policy(WALLS[wall][0]), before=ring.before(), timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        assert 'Good "git" signature for a@example.test' in ring.verify(place.work / "r", "commit", "HEAD")
        assert 'Good "git" signature for a@example.test' in ring.verify(place.work / "r", "tag", "v1")
        assert "Good" not in ring.verify(place.work / "r", "commit", "HEAD~1")
        events = signatures(place)
        assert [(event["effect"], event["namespace"], event["key"]) for event in events] == [("allow", "git", ring.key.fingerprint)] * 2
        digests = ["sha512:" + hashlib.sha512(payload(place.work / "r", name)).hexdigest() for name in ("HEAD", "v1")]
        assert [event["digest"] for event in events] == digests
    assert (place.work / "r/.git/config").read_bytes() == config and os.listdir(place.work) == ["r"]


def test_settings_of_the_policys_own_stay(place: Place, ring: Keyring) -> None:
    repository(place.work / "r")
    own = Environment(set_values=(("GIT_CONFIG_COUNT", "1"), ("GIT_CONFIG_KEY_0", "core.abbrev"), ("GIT_CONFIG_VALUE_0", "40")))
    script = f"cd r; {COMMIT}; git log -1 --format=%h; git config core.abbrev"
    done = place.run("/bin/sh", "-ec", script, policy=ring.policy(Policy(environment=own)), before=ring.before())
    assert done.returncode == 0 and done.stdout.split() == [git(place.work / "r", "rev-parse", "HEAD").encode().strip(), b"40"]
    assert "Good" in ring.verify(place.work / "r", "commit", "HEAD")


def test_another_namespace_where_it_is_granted_and_git_is_left_alone(place: Place, ring: Keyring) -> None:
    repository(place.work / "r")
    (place.work / "k.pub").write_text(ring.public)
    script = f"ssh-keygen -Y sign -n file -f k.pub r/a.txt; cd r; {COMMIT}; env | grep -c GIT_CONFIG; ssh-keygen -Y sign -n git -f ../k.pub a.txt"
    done = place.run("/bin/sh", "-c", script, policy=ring.policy(namespaces=("file",)), before=ring.before())
    assert done.returncode != 0 and done.stdout.split() == [b"0"], done.stderr
    assert "BEGIN SSH SIGNATURE" in (place.work / "r/a.txt.sig").read_text()
    assert [(event["effect"], event["rule"]) for event in signatures(place)] == [("allow", "signing"), ("deny", "namespace")]
    assert git(place.work / "r", "log", "--format=%s").split() == ["inside", "first"]


def test_a_key_that_is_touched_signs_too(place: Place) -> None:
    """A security key signs over more than it was asked for (PROTOCOL.u2f); the token here is played by the test, the verifier is OpenSSH."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        unavailable("cryptography", "the token of this test signs with it")
    token = Ed25519PrivateKey.generate()
    kind, application = b"sk-ssh-ed25519@openssh.com", b"ssh:"
    blob = b"".join(map(string, (kind, token.public_key().public_bytes_raw(), application)))

    def answer(message: bytes, forward: Callable[[bytes], bytes]) -> bytes:
        if message[0] == checks.LIST:
            return b"\x0c\0\0\0\1" + string(blob) + string(b"token")
        data = message[1 + 4 + len(blob) + 4 : -4]
        state = b"\x01\0\0\0\x2a"  # touched, for the 42nd time
        signature = token.sign(hashlib.sha256(application).digest() + state + hashlib.sha256(data).digest())
        return b"\x0e" + string(string(kind) + string(signature) + state)

    repository(place.work / "r")
    with keyring() as ring:
        key = PublicKey(kind.decode(), blob)
        (ring.folder / "allowed").write_text(f"a@example.test {key}\n")
        between = Between(ring, answer)
        try:
            done = place.run("/bin/sh", "-ec", f"cd r; {COMMIT}", policy=ring.policy(key=str(key)), before=ring.before(between.path))
        finally:
            between.close()
        assert done.returncode == 0, done.stderr
        assert 'Good "git" signature for a@example.test with ED25519-SK key' in ring.verify(place.work / "r", "commit", "HEAD")


# ---- the thief --------------------------------------------------------------------------------------------------------------------

WORDS = ("login", "bytes", "namespace", "other-key", "list", "lock", "remove", "remove-all")


def thief(place: Place, ring: Keyring, *words: str, python: str = PYTHON) -> tuple[str, ...]:
    """The command of a thief who tries `words`."""
    for name, path in (("thief.py", ""), ("own.pub", "id.pub"), ("other.pub", "other.pub")):
        (place.work / name).write_text((ring.folder / path).read_text() if path else THIEF)
    return (python, "-I", "-S", *(f"{place.work}/{name}" for name in ("thief.py", "own.pub", "other.pub")), *words)


def test_what_a_forwarded_agent_gives_away_ours_does_not_and_the_commit_it_does(place: Place, ring: Keyring, wall: str) -> None:
    policy, python = WALLS[wall]
    command = thief(place, ring, *WORDS, "commit", python=python)
    done = place.run(*command, policy=ring.policy(policy), before=ring.before(), timeout=PATIENCE)
    assert done.stdout.split() == [b"commit", b"gave-away"], done.stderr
    assert ring.run("ssh-add", "-l").stdout.count("ED25519") == 2  # still there, and no other
    rules = ["not-sshsig", "not-sshsig", "namespace", "another-key", "not-offered", "not-offered", "not-offered", "signing"]
    assert [event["rule"] for event in signatures(place)] == rules
    assert signatures(place)[0]["detail"] == "an SSH login?"
    # The control: the same thief with the agent itself, as `ssh -A` or a mounted socket hands it over.
    assert ring.run(*thief(place, ring, *WORDS)).stdout.split() == [*WORDS, "gave-away"]


# Looks for sys.argv[1] (hexadecimal, backwards, so that no other process holds it because of us) in every file, environment and memory.
SEARCH = r"""
import os, stat, sys
secret = bytes.fromhex(sys.argv[1])[::-1]
hits, looked = [], 0
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if not (folder == "/" and name in ("proc", "sys", "usr"))]
    for name in files:
        path = os.path.join(folder, name)
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                with open(path, "rb") as file: hits += [name] * (secret in file.read(1 << 20))
        except OSError: pass
for pid in os.listdir("/proc"):
    if not pid.isdigit() or pid == str(os.getpid()): continue
    looked += 1
    for name in ("environ", "cmdline", "mem"):
        try:
            with open(f"/proc/{pid}/{name}", "rb", 0) as file:
                if name != "mem":
                    hits += [name] * (secret in file.read())
                    continue
                for line in open(f"/proc/{pid}/maps"):
                    start, end = (int(part, 16) for part in line.split()[0].split("-"))
                    try:
                        file.seek(start)
                        hits += ["mem"] * (secret in file.read(end - start))
                    except (OSError, ValueError, OverflowError): pass
        except OSError: pass
print(hits, looked > 0, [os.path.exists(path) for path in sys.argv[2:]])
"""


def test_the_private_key_is_nowhere_inside(place: Place, ring: Keyring, wall: str) -> None:
    """As whoever is there, and while signatures are made: neither the key, as it stands in its file or in memory, nor the real agent's socket."""
    body = ring.file.read_bytes().splitlines()[1:-1]
    raw, public = a2b_base64(b"".join(body)), ring.key.blob[-32:]
    at = raw.rindex(public)
    repository(place.work / "r")
    policy, python = WALLS[wall]
    script = f"cd r; ({COMMIT}) >&2\n"
    for secret in (raw[at - 32 : at], body[2][:40]):
        hidden = secret[::-1].hex()
        search = f"{python} -I -S -c '{SEARCH}' {hidden} {ring.socket} {ring.file}\n"
        plant = f'{python} -c \'import sys; open("/tmp/id", "wb").write(bytes.fromhex(sys.argv[1])[::-1])\' {hidden}\n'
        script += f"{search}{plant}{search}rm /tmp/id\n"  # the search finds what is there
    done = place.run("/bin/sh", "-c", script, policy=ring.policy(policy), before=ring.before(), timeout=PATIENCE)
    assert done.stdout == b"[] True [False, False]\n['id'] True [False, False]\n" * 2, done.stderr
    assert "Good" in ring.verify(place.work / "r", "commit", "HEAD")


def test_the_real_agent_is_asked_only_for_what_was_understood_and_after_the_ledger_was_written(place: Place, ring: Keyring) -> None:
    asked: list[tuple[bytes, int]] = []

    def answer(message: bytes, forward: Callable[[bytes], bytes]) -> bytes:
        asked.append((message, len(signatures(place))))
        return forward(message)

    between = Between(ring, answer)
    policy = ring.policy(Policy(mounts=PYTHON_MOUNTS))
    try:
        place.run(*thief(place, ring, *WORDS, "commit"), policy=policy, before=ring.before(between.path))
    finally:
        between.close()
    wish = checks.Wish("git", "sha512", b"d" * 64)
    assert [message for message, _ in asked] == [bytes([checks.LIST]), checks.request(wish, ring.key)]
    assert asked[1][1] == len(signatures(place))  # of what the ledger holds at the end nothing was missing when the signature was asked for


def test_no_receipt_no_signature(place: Place, ring: Keyring) -> None:
    repository(place.work / "r")
    broken = """
from stockade.core.errors import StockadeError
from stockade.record.ledger import Ledger
append = Ledger.append
def failing(self, event):
    if event["kind"] == "sign": raise StockadeError("the disk is full", code="ledger.full")
    return append(self, event)
Ledger.append = failing
"""
    asked: list[int] = []

    def answer(message: bytes, forward: Callable[[bytes], bytes]) -> bytes:
        asked.append(message[0])
        return forward(message)

    between = Between(ring, answer)
    try:
        done = place.run("/bin/sh", "-c", f"cd r; {COMMIT}", policy=ring.policy(), before=f"{ring.before(between.path)}\n{broken}")
    finally:
        between.close()
    assert done.returncode == 125 and error_of(done)["error"] == "ledger.full"
    assert asked == [checks.LIST]


# ---- bounds -----------------------------------------------------------------------------------------------------------------------


def test_uses_and_rate_are_counted_for_the_session(place: Place, ring: Keyring) -> None:
    repository(place.work / "r")
    script = f"cd r; {COMMIT} && {COMMIT} && {COMMIT}"
    for bounds, rule in (({"uses": 2}, "uses-spent"), ({"rate": 2, "rate_seconds": 3600}, "rate-exceeded")):
        before = len(signatures(place))
        done = place.run("/bin/sh", "-c", script, policy=ring.policy(**bounds), before=ring.before())
        assert done.returncode != 0 and f"a signature was refused: {rule}".encode() in done.stderr
        assert [event["rule"] for event in signatures(place)[before:]] == ["signing", "signing", rule]


FLOOD = """
import os, socket, struct
sock = socket.socket(socket.AF_UNIX)
sock.connect(os.environ["SSH_AUTH_SOCK"])
answers = 0
for _ in range(3000):
    sock.sendall(b"\\0\\0\\0\\1\\x13")
    answers += sock.recv(5, socket.MSG_WAITALL) == b"\\0\\0\\0\\1\\5"
print(answers)
"""


def test_the_ledger_is_not_flooded_by_refusals_and_says_how_many_there_were(place: Place, ring: Keyring) -> None:
    done = place.run(PYTHON, "-I", "-S", "-c", FLOOD, policy=ring.policy(Policy(mounts=PYTHON_MOUNTS)), before=ring.before())
    assert done.stdout == b"3000\n"
    *events, last = signatures(place)
    assert [event["refused"] for event in events] == [*range(1, SAMPLE + 1), 32, 64, 128, 256, 512, 1024, 2048]
    assert (last["rule"], last["refused"], last["unrecorded"]) == ("more", 3000, 3000 - len(events))
    assert done.stderr.count(b"a signature was refused") == 1


# ---- what is not there stops the start --------------------------------------------------------------------------------------------


def test_without_what_it_needs_nothing_is_run(place: Place, ring: Keyring) -> None:
    elsewhere = Signing("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgxnFRcIn8gybcrpTDb5qX2VzOVZiDe9IYjCd8XsEQO", "/k.pub")
    locked = exchange(ring.socket, b"\x16" + string(b"pw"))
    assert locked == b"\x06"
    command = ("/bin/sh", "-c", "echo ran > ran")
    cases = [
        ("signing.no-key", ring.policy(), ring.before()),  # locked
        ("signing.no-agent", ring.policy(), ""),
        ("signing.no-agent", ring.policy(), ring.before("/nonexistent")),
        ("signing.no-agent", ring.policy(), ring.before(str(ring.file))),
    ]
    for code, policy, before in cases:
        done = place.run(*command, policy=policy, before=before)
        assert done.returncode == 125 and error_of(done)["error"] == code, done.stderr
        assert error_of(done)["hint"]
    assert exchange(ring.socket, b"\x17" + string(b"pw")) == b"\x06"
    set_values = (("GIT_CONFIG_COUNT", "many"),)
    for code, policy in (
        ("signing.no-key", replace(Policy(), signing=elsewhere)),
        ("signing.environment", ring.policy(Policy(environment=Environment(set_values=set_values)))),
        ("signing.no-ssh-keygen", ring.policy(Policy(environment=Environment(set_values=(("PATH", "/nonexistent"),))))),
        ("signing.agent-visible", ring.policy(Policy(mounts=(Mount(str(ring.folder), "/mnt", "ro"),)))),
    ):
        done = place.run(*command, policy=policy, before=ring.before())
        assert done.returncode == 125 and error_of(done)["error"] == code, done.stderr
        assert error_of(done)["hint"]
    assert not (place.work / "ran").exists() and not place.ledger()
    assert until(lambda: not os.listdir(place.sessions))
    assert place.run(*command, policy=ring.policy(), before=ring.before()).returncode == 0 and (place.work / "ran").exists()  # the twin


def test_a_silent_agent_stops_the_start_in_time(place: Place, ring: Keyring) -> None:
    between = Between(ring, lambda message, forward: time.sleep(3) or None)
    try:
        fast = "import stockade.session.signing as s; s.START = 0.3"
        done = place.run("true", policy=ring.policy(), before=f"{ring.before(between.path)}; {fast}")
    finally:
        between.close()
    assert done.returncode == 125 and error_of(done)["error"] == "signing.silent"


@pytest.mark.parametrize("how", ["gone", "hangs up", "garbage", "refuses"])
def test_an_agent_that_fails_later_means_no_signature_and_nothing_else(place: Place, ring: Keyring, how: str) -> None:
    repository(place.work / "r")
    answers = {"hangs up": None, "garbage": b"\x0e" + string(b"-----BEGIN OPENSSH PRIVATE KEY-----"), "refuses": b"\x05"}

    def answer(message: bytes, forward: Callable[[bytes], bytes]) -> bytes | None:
        return forward(message) if message[0] == checks.LIST or how == "gone" or (place.work / "well").exists() else answers[how]

    between = Between(ring, answer)
    path = f"{ring.folder}/moved"
    script = f"cd r; touch ../ready; while [ ! -e ../go ]; do sleep 0.02; done; {COMMIT} || echo failed; touch ../well; until [ -e ../go2 ]; do sleep 0.02; done; {COMMIT}"
    run = place.start("/bin/sh", "-c", script, policy=ring.policy(), before=ring.before(between.path))
    try:
        assert until((place.work / "ready").exists)
        if how == "gone":
            os.rename(between.path, path)
        (place.work / "go").touch()
        assert until((place.work / "well").exists, 20)
        if how == "gone":
            os.rename(path, between.path)
        (place.work / "go2").touch()
        out, err = run.communicate(timeout=30)
    finally:
        between.close()
    assert run.returncode == 0 and out == b"failed\n", err
    assert [(event["effect"], event["rule"]) for event in signatures(place)] == [
        ("allow", "signing"),
        ("deny", "agent"),
        ("allow", "signing"),
    ]
    assert git(place.work / "r", "log", "--format=%s").split() == ["inside", "first"]
    assert "Good" in ring.verify(place.work / "r", "commit", "HEAD")


# ---- taking back, and the other way in --------------------------------------------------------------------------------------------


def stockade(place: Place, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "stockade", "session", *words], env=place.env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("words", [(), ("--signing",)])
def test_signing_is_shown_and_taken_back(place: Place, ring: Keyring, words: tuple[str, ...]) -> None:
    repository(place.work / "r")
    script = f"cd r; {COMMIT}; touch ../ready; while [ ! -e ../go ]; do sleep 0.02; done; {COMMIT}"
    run = place.start("/bin/sh", "-c", script, policy=ring.policy(), before=ring.before())
    assert until((place.work / "ready").exists, 20)
    listed = json.loads(stockade(place, "grants", "s", "--json").stdout)
    assert [(one["rule"], one["revoked"], one["signing"]["fingerprint"]) for one in listed] == [("signing", False, ring.key.fingerprint)]
    assert re.search(rf"- +sign +git with the key {re.escape(ring.key.fingerprint)}", stockade(place, "grants", "s").stdout)
    done = stockade(place, "revoke", "s", *words)
    assert (done.returncode, done.stdout) == (0, "Taken back: signing.\n"), done.stderr
    assert "Nothing was left" in stockade(place, "revoke", "s", *words).stdout
    assert re.search("- +revoked +git", stockade(place, "grants", "s").stdout)
    (place.work / "go").touch()
    _, err = run.communicate(timeout=30)
    assert run.returncode != 0 and b"a signature was refused: revoked" in err
    events = [
        (event["kind"], event.get("rule"), event.get("signing")) for event in place.ledger() if event["kind"] in ("sign", "session.revoke")
    ]
    taken = ("session.revoke", None, ring.key.fingerprint)
    assert events[:2] == [("sign", "signing", None), taken] and set(events[2:]) == {("sign", "revoked", None)}


def test_a_signature_that_waits_for_the_user_is_not_given_after_it_was_taken_back(place: Place, ring: Keyring) -> None:
    repository(place.work / "r")

    def answer(message: bytes, forward: Callable[[bytes], bytes]) -> bytes:
        if message[0] == checks.SIGN:
            (place.work / "asked").touch()
            assert until((place.work / "answer").exists, 30)
        return forward(message)

    between = Between(ring, answer)
    run = place.start("/bin/sh", "-c", f"cd r; {COMMIT}", policy=ring.policy(), before=ring.before(between.path))
    try:
        assert until((place.work / "asked").exists, 20)
        assert stockade(place, "revoke", "s", "--signing").returncode == 0  # it is obeyed while the agent asks the user
        (place.work / "answer").touch()
        run.communicate(timeout=30)
    finally:
        between.close()
    assert run.returncode != 0 and [event["rule"] for event in signatures(place)] == ["signing", "revoked"]


HOLD = """
import os, socket, sys, time
held = []
for _ in range(20):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(0.1)
    try:
        sock.connect(os.environ["SSH_AUTH_SOCK"])
        sock.send(b"\\0\\0")
    except OSError: pass
    held.append(sock)
print("held", flush=True)
time.sleep(60)
"""


def test_a_program_with_many_sandboxes_signs_and_a_client_that_hogs_the_socket_holds_up_nothing_else(
    tmp_path: Path, ring: Keyring, monkeypatch: pytest.MonkeyPatch, wall: str
) -> None:
    from stockade.gateway import agent

    for name in ("STATE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    monkeypatch.setenv("SSH_AUTH_SOCK", ring.socket)
    monkeypatch.setattr(agent, "PATIENCE", 5.0)
    repository(tmp_path / "work")

    policy, python = WALLS[wall]

    async def main() -> None:
        async with live.open_session(ring.policy(policy), cwd=str(tmp_path / "work")) as session:
            assert (await session.exec(["sh", "-c", COMMIT])).exit_code == 0
            async with await session.start([python, "-I", "-S", "-c", HOLD]) as hog:
                assert (await anext(hog)).data == b"held\n"
                began = time.monotonic()
                assert (await session.exec(["echo", "alive"])).stdout == b"alive\n"
                assert time.monotonic() - began < 5
                while True:  # its connections are hung up on, one is free again
                    done = await session.exec(["sh", "-c", COMMIT])
                    if done.exit_code == 0 or time.monotonic() > began + 30:
                        break
                assert done.exit_code == 0, done.stderr

    asyncio.run(main())
    assert "Good" in ring.verify(tmp_path / "work", "commit", "HEAD") and "Good" in ring.verify(tmp_path / "work", "commit", "HEAD~1")


def test_without_signing_there_is_no_agent_inside(place: Place, ring: Keyring) -> None:
    done = place.run("/bin/sh", "-c", f"env | grep -c -e SSH -e GIT_CONFIG; ls {AGENT}", before=ring.before())
    assert done.stdout == b"0\n" and b"No such file" in done.stderr


def test_addresses_of_sockets_may_be_long(ring: Keyring, tmp_path: Path) -> None:
    """The session's directory may lie deeper than the address of a Unix socket can say (108 bytes)."""
    deep = Path(tempfile.mkdtemp(dir=tmp_path)) / ("d" * 100)
    deep.mkdir()
    place = Place(deep)
    repository(place.work / "r")
    assert place.run("/bin/sh", "-ec", f"cd r; {COMMIT}", policy=ring.policy(), before=ring.before()).returncode == 0
    assert "Good" in ring.verify(place.work / "r", "commit", "HEAD")
