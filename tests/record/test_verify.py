"""Checkpoints, and every way to tamper that we know. What cannot be detected is tested too, so that the documentation stays true."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.core.errors import StockadeError, Tampered
from stockade.core.notes import Verifier
from stockade.record.checkpoint import CHECKPOINTS, PUBLIC, SECRET, parse
from stockade.record.ledger import FRONTIER, LOG, SLOT, Ledger, State
from stockade.record.merkle import Frontier, leaf_hash
from stockade.record.verify import verify

pytest.importorskip("cryptography")


class Home:
    """A ledger of 10 entries, checkpoints over 4 and 8 of them, and its files."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.directory = str(top / "ledger")
        self.log, self.frontier = top / "ledger" / LOG, top / "ledger" / FRONTIER
        self.checkpoints = top / "checkpoints" / CHECKPOINTS
        self.secret, self.public = top / "keys" / SECRET, top / "keys" / PUBLIC
        self.ledger = Ledger(self.directory)
        self.add(4)
        self.ledger.checkpoint()
        self.add(4)
        self.ledger.checkpoint()
        self.add(2)

    def add(self, count: int) -> None:
        for number in range(count):
            self.ledger.append({"kind": "test", "session": "s", "word": f"word{number}"})

    def lines(self) -> list[bytes]:
        return self.log.read_bytes().splitlines(keepends=True)

    def write(self, lines: list[bytes]) -> None:
        self.log.write_bytes(b"".join(lines))

    def skilled(self, lines: list[bytes], signed: int) -> None:
        """Rewrite log and frontier to fit each other, as somebody would who has read our source."""
        self.write(lines)
        tree = Frontier()
        for line in lines:
            tree.add(leaf_hash(line[:-1]))
        state = State(2, sum(map(len, lines)), signed, tree)
        self.frontier.write_bytes(state.encode().ljust(2 * SLOT, b"\0"))

    def notes(self) -> list[bytes]:
        lines = self.checkpoints.read_bytes().splitlines(keepends=True)
        return [b"".join(lines[at : at + 6]) for at in range(0, len(lines), 6)]

    def refused(self, *, key: str = "", checkpoint: str = "") -> Tampered:
        with pytest.raises(Tampered) as caught:
            verify(self.directory, key=key, checkpoint=checkpoint)
        return caught.value


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_nothing_yet(tmp_path: Path) -> None:
    assert verify(str(tmp_path / "ledger")).entries == 0


def test_a_sound_ledger(home: Home) -> None:
    seen: list[tuple[int, int]] = []
    report = verify(home.directory, progress=lambda done, whole: seen.append((done, whole)))
    assert (report.entries, report.checkpoints, report.signed) == (10, 2, 8)
    assert report.unsigned_since > 0
    assert report.key == home.public.read_text().strip()
    home.ledger.checkpoint()
    assert verify(home.directory).unsigned_since == 0


def test_a_checkpoint_over_nothing_new_is_not_written_twice(home: Home) -> None:
    first = home.ledger.checkpoint()
    size = home.checkpoints.stat().st_size
    assert home.ledger.checkpoint() == first
    assert home.checkpoints.stat().st_size == size


def test_the_key_is_the_users_alone(home: Home) -> None:
    assert home.secret.stat().st_mode & 0o777 == 0o600
    assert home.secret.parent.stat().st_mode & 0o777 == 0o700
    os.chmod(home.secret, 0o644)
    with pytest.raises(StockadeError) as caught:
        home.ledger.checkpoint()
    assert caught.value.code == "place.unsafe"


def test_the_note_is_what_the_specification_says(home: Home) -> None:
    """signed-note: the signature covers the text up to the blank line; key id = SHA-256(name || 0x0A || 0x01 || public key)[:4]."""
    import base64
    import hashlib

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text, _, tail = home.notes()[0].partition(b"\n\n")
    origin, size, root = text.decode().split("\n")
    dash, name, signature = tail.decode().strip().split(" ")
    raw, public = base64.b64decode(signature), base64.b64decode(home.public.read_text().split("+", 2)[2])
    assert (dash, name, size, len(base64.b64decode(root))) == ("\u2014", origin, "4", 32)
    assert raw[:4] == hashlib.sha256(name.encode() + b"\n" + public).digest()[:4]
    Ed25519PublicKey.from_public_bytes(public[1:]).verify(raw[4:], text + b"\n")


def test_the_example_of_the_specification_parses() -> None:
    text = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    )
    note = parse(text.encode())
    assert (note.checkpoint.origin, note.checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert note.checkpoint.text() == note.raw


Tamper = Callable[[Home], object]


def edit(home: Home, index: int) -> None:
    lines = home.lines()
    lines[index] = lines[index].replace(b"word", b"lord")
    home.write(lines)


def swap(home: Home, renumber: bool) -> None:
    lines = home.lines()
    lines[5], lines[6] = lines[6], lines[5]
    if renumber:
        lines[5], lines[6] = lines[5].replace(b'"index":6', b'"index":5'), lines[6].replace(b'"index":5', b'"index":6')
    home.write(lines)


def renumbered(lines: list[bytes]) -> list[bytes]:
    return [b'{"index":%d' % number + line[line.index(b",") :] for number, line in enumerate(lines)]


def edit_and_fit(home: Home) -> None:
    edit(home, 5)
    home.skilled(home.lines(), 8)


def cut_without_frontier(home: Home) -> None:
    home.write(home.lines()[:9])
    home.frontier.unlink()


def remove_log_and_frontier(home: Home) -> None:
    home.log.unlink()
    home.frontier.unlink()


def cut_log_and_checkpoints(home: Home) -> None:
    home.checkpoints.write_bytes(home.notes()[0])
    home.write(home.lines()[:6])


MATRIX: dict[str, tuple[Tamper, str, str]] = {
    "edit a signed entry": (lambda home: edit(home, 5), "ledger.root", "entries 4 to 7"),
    "edit the first entry": (lambda home: edit(home, 0), "ledger.root", "entries 0 to 3"),
    "edit an unsigned entry": (lambda home: edit(home, 9), "ledger.root", "entries 8 to 9"),
    "edit and fit the frontier": (edit_and_fit, "ledger.root", "entries 4 to 7"),
    "delete an entry": (lambda home: home.write(home.lines()[:5] + home.lines()[6:]), "ledger.index", "entry 5 is missing"),
    "delete the first": (lambda home: home.write(home.lines()[1:]), "ledger.index", "entry 0 is missing"),
    "delete and renumber": (lambda home: home.skilled(renumbered(home.lines()[:5] + home.lines()[6:]), 8), "ledger.root", "entries 4 to 7"),
    "insert and renumber": (lambda home: home.skilled(renumbered(home.lines()[:3] + home.lines()[2:]), 8), "ledger.root", "entries 0 to 3"),
    "swap": (lambda home: swap(home, False), "ledger.index", "entry 5"),
    "swap and renumber": (lambda home: swap(home, True), "ledger.root", "entries 4 to 7"),
    "a blank line": (lambda home: home.write([*home.lines()[:5], b"\n", *home.lines()[5:]]), "ledger.line", "entry 5"),
    "carriage returns": (lambda home: home.log.write_bytes(home.log.read_bytes().replace(b"\n", b"\r\n")), "ledger.root", "entries 0 to 3"),
    "zeros": (lambda home: home.log.write_bytes(bytes(300_000)), "ledger.line", "behind 0 entries"),
    "truncate signed": (lambda home: home.write(home.lines()[:6]), "ledger.truncated", "ends after 6 entries"),
    "truncate unsigned": (lambda home: home.write(home.lines()[:9]), "ledger.truncated", "there were 10"),
    "truncate in a line": (lambda home: home.log.write_bytes(home.log.read_bytes()[:-20]), "ledger.truncated", "ends after 9 entries"),
    "truncate and fit the frontier": (lambda home: home.skilled(home.lines()[:6], 4), "ledger.truncated", "there were 8"),
    "truncate and remove the frontier": (
        cut_without_frontier,
        "ledger.frontier",
        "9 entries",
    ),
    "empty the log": (lambda home: home.write([]), "ledger.truncated", "ends after 0 entries"),
    "remove log and frontier": (remove_log_and_frontier, "ledger.truncated", "ends after 0 entries"),
    "remove the frontier": (lambda home: home.frontier.unlink(), "ledger.frontier", "gone"),
    "remove the last checkpoint": (lambda home: home.checkpoints.write_bytes(home.notes()[0]), "ledger.checkpoint-gone", "over 8 entries"),
    "remove all checkpoints": (lambda home: home.checkpoints.unlink(), "ledger.checkpoint-gone", "over 8 entries"),
    "remove the last checkpoint and what it covers": (
        cut_log_and_checkpoints,
        "ledger.truncated",
        "there were 10",
    ),
    "swap checkpoints": (lambda home: home.checkpoints.write_bytes(b"".join(home.notes()[::-1])), "ledger.checkpoint", "out of order"),
    "edit a checkpoint": (
        lambda home: home.checkpoints.write_bytes(home.checkpoints.read_bytes().replace(b"\n4\n", b"\n5\n")),
        "ledger.signature",
        "over 5",
    ),
    "write into the checkpoints": (
        lambda home: home.checkpoints.write_bytes(b"hello\n\n\n" + home.checkpoints.read_bytes()),
        "ledger.checkpoint",
        "",
    ),
    "replace the key": (lambda home: replace_key(home), "ledger.key", "not by the key"),
    "remove the public key": (lambda home: home.public.unlink(), "ledger.key", "gone"),
    "spoil the public key": (lambda home: home.public.write_text("x+y+z"), "ledger.key", "not one"),
}


def replace_key(home: Home) -> None:
    """Another key of the same form in place of ours."""
    with tempfile.TemporaryDirectory() as top:
        other = Home(Path(top))
        shutil.copy(other.secret, home.secret)
        shutil.copy(other.public, home.public)


@pytest.mark.parametrize("name", MATRIX)
def test_tampering_is_found(home: Home, name: str) -> None:
    tamper, code, words = MATRIX[name]
    verify(home.directory)
    tamper(home)
    error = home.refused()
    assert (error.code, words in error.message) == (code, True), error.message


@pytest.mark.parametrize("name", [name for name in MATRIX if name.startswith(("edit", "delete", "truncate", "remove the last", "replace"))])
def test_going_on_does_not_heal_it(home: Home, name: str) -> None:
    """After tampering the ledger is used on; whether it refuses to or not, verify still finds it."""
    MATRIX[name][0](home)
    try:
        home.add(5)
        home.ledger.checkpoint()
    except StockadeError:
        pass
    if name == "truncate and remove the frontier":  # in the unsigned tail: what is left is that the ledger says it had to count anew
        assert any("counted late" in note for note in verify(home.directory).notes)
    else:
        home.refused()


def test_a_truncated_ledger_is_not_signed(home: Home) -> None:
    home.skilled(home.lines()[:6], 4)
    size = home.checkpoints.stat().st_size
    with pytest.raises(Tampered) as caught:
        home.ledger.checkpoint()
    assert caught.value.code == "ledger.truncated"
    assert home.checkpoints.stat().st_size == size


def test_a_lost_key_is_not_replaced(home: Home) -> None:
    home.secret.unlink()
    with pytest.raises(Tampered) as caught:
        home.ledger.checkpoint()
    assert caught.value.code == "ledger.key"


@pytest.mark.parametrize("spoil", [b"", b"x", b"\0" * 200, lambda key: key[:70], lambda key: key.replace(b"MC4C", b"MC4D")])
def test_a_spoiled_key_is_not_used(home: Home, spoil: Any) -> None:
    home.secret.write_bytes(spoil(home.secret.read_bytes()) if callable(spoil) else spoil)
    with pytest.raises(Tampered) as caught:
        home.ledger.checkpoint()
    assert caught.value.code == "ledger.key"


def test_an_unfinished_checkpoint_does_not_count(home: Home) -> None:
    whole = home.checkpoints.read_bytes()
    home.ledger.checkpoint()
    longer = home.checkpoints.read_bytes()
    for cut in range(len(whole) + 1, len(longer)):
        home.checkpoints.write_bytes(longer[:cut])
        home.skilled(home.lines(), 8)
        assert verify(home.directory).signed == 8
    home.ledger.checkpoint()
    assert home.checkpoints.read_bytes() == longer  # Ed25519 is deterministic (RFC 8032)
    assert verify(home.directory).signed == 10


def test_what_the_files_alone_cannot_show(home: Home) -> None:
    """Somebody with the user's rights who fits everything together. A checkpoint or key kept elsewhere shows it."""
    key, last = home.public.read_text(), home.notes()[1].decode()[:-1]
    home.skilled(home.lines()[:6], 4)
    home.checkpoints.write_bytes(home.notes()[0])
    assert verify(home.directory).entries == 6
    assert home.refused(checkpoint=last).code == "ledger.truncated"

    shutil.rmtree(home.top)
    home.top.mkdir()
    forged = Home(home.top)
    assert verify(forged.directory).entries == 10
    assert forged.refused(key=key).code == "ledger.key"
    assert forged.refused(checkpoint=last).code == "ledger.key"


def test_a_rewritten_history_against_a_kept_checkpoint(home: Home) -> None:
    last = home.notes()[1].decode()[:-1]
    assert verify(home.directory, checkpoint=last).entries == 10
    lines = home.lines()
    lines[6] = lines[6].replace(b"word", b"lord")
    home.skilled(lines, 4)
    home.checkpoints.write_bytes(home.notes()[0])
    home.ledger.checkpoint()
    assert verify(home.directory).signed == 10
    assert home.refused(checkpoint=last).code == "ledger.root"


def test_verifying_while_others_append(home: Home) -> None:
    import threading

    stop = threading.Event()

    def work() -> None:
        ledger = Ledger(home.directory)
        while not stop.is_set():
            ledger.append({"kind": "test"})
            ledger.checkpoint()
        ledger.close()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(20):
            report = verify(home.directory)
            assert report.notes == ()
    finally:
        stop.set()
        thread.join()


BYTES = st.binary(max_size=400)


@settings(max_examples=150, deadline=None)
@given(
    log=st.none() | BYTES,
    frontier=st.none() | BYTES,
    checkpoints=st.none() | BYTES,
    public=st.none() | BYTES,
    kept=BYTES,
    key=st.text(max_size=60),
)
def test_any_bytes_are_refused_or_fine(
    log: bytes | None, frontier: bytes | None, checkpoints: bytes | None, public: bytes | None, kept: bytes, key: str
) -> None:
    with tempfile.TemporaryDirectory() as top:
        names = {f"ledger/{LOG}": log, f"ledger/{FRONTIER}": frontier, f"checkpoints/{CHECKPOINTS}": checkpoints, f"keys/{PUBLIC}": public}
        for name, data in names.items():
            if data is not None:
                Path(top, name).parent.mkdir(exist_ok=True)
                Path(top, name).write_bytes(data)
        for chosen in ("", key):
            try:
                verify(f"{top}/ledger", key=chosen, checkpoint=kept.decode("latin-1"))
            except Tampered:
                pass


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("shared"))


@settings(max_examples=200, deadline=None)
@given(which=st.sampled_from(["log", "frontier", "checkpoints", "public"]), data=st.data())
def test_any_change_of_a_byte(shared: Home, which: str, data: st.DataObject) -> None:
    """INVARIANT: a changed byte is found, or does not change what the log says (an unused byte of the frontier; the end of the checkpoints)."""
    path: Path = getattr(shared, which)
    before = path.read_bytes()
    after = bytearray(before)
    at = data.draw(st.integers(0, len(before) - 1))
    after[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(after)
    try:
        report = verify(shared.directory)
    except Tampered:
        pass
    else:
        assert which in ("frontier", "public")
        assert report.entries == 10
    finally:
        path.write_bytes(before)


@given(st.text(max_size=80))
def test_any_text_is_a_key_or_refused(text: str) -> None:
    try:
        found = Verifier.from_text(text)
    except Tampered:
        return
    assert str(found) == text.strip()


@given(st.binary(max_size=300))
def test_any_bytes_are_a_note_or_refused(text: bytes) -> None:
    try:
        parse(text)
    except Tampered:
        pass
