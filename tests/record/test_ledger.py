"""Appending: many at once, killed at any moment, on a full disk."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import unavailable
from stockade.core.errors import StockadeError, Tampered
from stockade.record import ledger as module
from stockade.record.ledger import FRONTIER, LOG, SLOT, Ledger, State, read_state
from stockade.record.merkle import Frontier, leaf_hash
from stockade.record.verify import verify

APPENDER = """
import sys
from stockade.record.ledger import Ledger
ledger = Ledger(sys.argv[1])
for number in range(int(sys.argv[3])):
    receipt = ledger.append({"kind": "test", "session": sys.argv[2], "number": number, "text": "x" * (number * 37 % 900)})
    print(receipt.index, receipt.digest, flush=True)
"""


def appender(directory: str, name: str, count: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", APPENDER, directory, name, str(count)], stdout=subprocess.PIPE, text=True)


def entries(directory: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(directory, LOG).read_bytes().splitlines()]


def digests(directory: str) -> list[str]:
    return [leaf_hash(line).hex() for line in Path(directory, LOG).read_bytes().splitlines()]


@pytest.fixture
def directory(tmp_path: Path) -> str:
    return str(tmp_path / "ledger")


@pytest.fixture
def ledger(directory: str) -> Iterator[Ledger]:
    found = Ledger(directory)
    yield found
    found.close()


def test_receipts_name_the_bytes(ledger: Ledger, directory: str) -> None:
    before = time.time()
    receipts = [ledger.append({"kind": "test", "n": n}) for n in range(20)]
    assert [receipt.index for receipt in receipts] == list(range(20))
    assert [receipt.digest for receipt in receipts] == digests(directory)
    found = entries(directory)
    assert [event["n"] for event in found] == list(range(20))
    assert before - 1 < found[0]["time"] <= found[-1]["time"] < time.time() + 1
    assert verify(directory).entries == 20


def test_several_at_once_are_as_one_after_the_other(ledger: Ledger, directory: str) -> None:
    receipts = [ledger.append({"kind": "test", "n": 0})]
    receipts += ledger.extend([{"kind": "test", "n": n} for n in range(1, 7)])
    receipts += [*ledger.extend([]), ledger.append({"kind": "test", "n": 7})]
    assert [receipt.index for receipt in receipts] == [event["n"] for event in entries(directory)] == list(range(8))
    assert [receipt.digest for receipt in receipts] == digests(directory)
    assert verify(directory).entries == 8


def test_of_several_all_are_written_or_none(ledger: Ledger, directory: str) -> None:
    ledger.append({"kind": "test"})
    size = Path(directory, LOG).stat().st_size
    with pytest.raises(StockadeError) as caught:
        ledger.extend([{"kind": "test"}, {"kind": "test", "what": object()}])
    assert (caught.value.code, Path(directory, LOG).stat().st_size) == ("ledger.event", size)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * SLOT, limit[1]))  # room for the frontier, and for the first of the two
    try:
        with pytest.raises(StockadeError) as caught:
            ledger.extend([{"kind": "test", "text": "x" * 2000}, {"kind": "test", "text": "x" * 7000}])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (caught.value.code, Path(directory, LOG).stat().st_size) == ("ledger.full", size)
    assert ledger.append({"kind": "test"}).index == 1
    assert verify(directory).notes == ()


def test_only_the_user_can_read_it(ledger: Ledger, directory: str) -> None:
    ledger.append({"kind": "test"})
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert {os.stat(Path(directory, name)).st_mode & 0o777 for name in (LOG, FRONTIER)} == {0o600}


@pytest.mark.parametrize("name", [LOG, FRONTIER])
def test_a_symlink_is_not_followed(directory: str, tmp_path: Path, name: str) -> None:
    os.mkdir(directory, 0o700)
    victim = tmp_path / "victim"
    victim.touch()
    Path(directory, name).symlink_to(victim)
    with pytest.raises(StockadeError):
        Ledger(directory).append({"kind": "test"})
    assert victim.read_bytes() == b""


def test_files_that_others_can_write_are_refused(ledger: Ledger, directory: str) -> None:
    ledger.append({"kind": "test"})
    ledger.close()
    os.chmod(Path(directory, LOG), 0o666)
    with pytest.raises(StockadeError) as caught:
        ledger.append({"kind": "test"})
    assert caught.value.code == "place.unsafe"


def test_an_append_reads_only_the_frontier(ledger: Ledger, directory: str) -> None:
    """O(log n): an edit far back goes unnoticed by append, and is verify's to find."""
    ledger.append({"kind": "test", "word": "aaaa"})
    ledger.append({"kind": "test"})
    path = Path(directory, LOG)
    path.write_bytes(path.read_bytes().replace(b"aaaa", b"bbbb"))
    assert ledger.append({"kind": "test"}).index == 2
    with pytest.raises(Tampered):
        verify(directory)


def test_threads_and_forks_share_one(ledger: Ledger, directory: str) -> None:
    def work() -> None:
        for _ in range(50):
            ledger.append({"kind": "test"})

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    work()
    os.waitpid(child, 0)
    assert [event["index"] for event in entries(directory)] == list(range(300))
    assert verify(directory).entries == 300


def test_many_processes_lose_nothing(directory: str) -> None:
    running = [appender(directory, f"p{number}", 200) for number in range(8)]
    receipts = [line.split() for process in running for line in process.communicate(timeout=100)[0].splitlines()]
    assert all(process.returncode == 0 for process in running)
    assert sorted(int(index) for index, _ in receipts) == list(range(1600))
    found = digests(directory)
    assert all(found[int(index)] == digest for index, digest in receipts)
    numbers = [(event["session"], event["number"]) for event in entries(directory)]
    assert sorted(numbers) == sorted((f"p{process}", number) for process in range(8) for number in range(200))
    assert verify(directory).entries == 1600


@pytest.mark.wall
def test_kill_9_at_any_moment(directory: str) -> None:
    dice = random.Random(7)
    acknowledged: dict[int, str] = {}
    for round_ in range(25):
        process = appender(directory, f"r{round_}", 100_000)
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(dice.random() * 0.03)
        process.kill()
        lines = (first + process.stdout.read()).split("\n")[:-1]
        process.wait()
        process.stdout.close()
        acknowledged.update((int(line.split()[0]), line.split()[1]) for line in lines)
        verify(directory)
        receipt = Ledger(directory).append({"kind": "after"})
        acknowledged[receipt.index] = receipt.digest
        verify(directory)
    found = digests(directory)
    assert all(found[index] == digest for index, digest in acknowledged.items())


# Every state a kill can leave between the steps of an append, made on purpose.


def line_without_frontier(directory: str, cut: int | None = None) -> None:
    """Append an entry, and put the frontier back as it was before; `cut` bytes of the line are there (None: all)."""
    path, frontier = Path(directory, LOG), Path(directory, FRONTIER)
    before, size = frontier.read_bytes(), path.stat().st_size
    Ledger(directory).append({"kind": "orphan"})
    frontier.write_bytes(before)
    if cut is not None:
        os.truncate(path, size + cut)


def test_a_line_without_frontier_is_adopted(ledger: Ledger, directory: str) -> None:
    ledger.append({"kind": "test"})
    line_without_frontier(directory)
    assert "not counted yet" in verify(directory).notes[0]
    assert ledger.append({"kind": "next"}).index == 3
    kinds = [(event["kind"], event.get("adopted")) for event in entries(directory)]
    assert kinds == [("test", None), ("orphan", None), ("ledger.recovered", 1), ("next", None)]
    report = verify(directory)
    assert report.entries == 4
    assert "counted late" in report.notes[0]


@pytest.mark.parametrize("cut", [1, 5, 20, 52])
def test_a_torn_line_is_replaced_and_put_on_record(ledger: Ledger, directory: str, cut: int) -> None:
    ledger.append({"kind": "test"})
    line_without_frontier(directory, cut)
    assert "unfinished" in verify(directory).notes[0]
    assert ledger.append({"kind": "next"}).index == 2
    found = entries(directory)
    assert [event["kind"] for event in found] == ["test", "ledger.recovered", "next"]
    assert found[1]["torn"] == cut
    assert found[1]["text"].startswith('{"index":1,"time":'[:cut])
    verify(directory)


def test_a_torn_line_longer_than_its_replacement(ledger: Ledger, directory: str) -> None:
    ledger.append({"kind": "test"})
    with open(Path(directory, LOG), "ab") as log:
        log.write(b"z" * 5000)
    ledger.append({"kind": "next"})
    assert entries(directory)[1]["torn"] == 5000
    assert verify(directory).entries == 3


def test_the_first_line_without_frontier(directory: str) -> None:
    os.mkdir(directory, 0o700)
    Path(directory, FRONTIER).write_bytes(bytes(2 * SLOT))
    Path(directory, LOG).touch()
    line_without_frontier(directory)
    assert verify(directory).entries == 1
    assert Ledger(directory).append({"kind": "next"}).index == 2


@pytest.mark.parametrize("keep", [0, 10, 60, 100])
def test_a_torn_slot_leaves_the_other(ledger: Ledger, directory: str, keep: int) -> None:
    for _ in range(5):
        ledger.append({"kind": "test"})
    path = Path(directory, FRONTIER)
    data = bytearray(path.read_bytes())
    newest = SLOT * (5 & 1)
    data[newest + keep : newest + SLOT] = bytes(SLOT - keep)
    path.write_bytes(data)
    assert ledger.append({"kind": "next"}).index == 6
    assert entries(directory)[5]["adopted"] == 1
    verify(directory)


def test_a_lost_frontier_is_made_again(ledger: Ledger, directory: str) -> None:
    for _ in range(5):
        ledger.append({"kind": "test"})
    os.unlink(Path(directory, FRONTIER))
    assert ledger.append({"kind": "next"}).index == 6
    assert entries(directory)[5]["adopted"] == 5
    verify(directory)


def test_a_lost_log_starts_again_and_says_so(ledger: Ledger, directory: str) -> None:
    for _ in range(5):
        ledger.append({"kind": "test"})
    os.unlink(Path(directory, LOG))
    ledger.append({"kind": "next"})
    assert entries(directory)[0]["lost"] == 5
    with pytest.raises(Tampered) as caught:
        verify(directory)
    assert caught.value.code == "ledger.gap"


@pytest.mark.parametrize("tail", [b"hello\n", b'{"index":9,"time":1.0}\n', b"z" * 70_000])
def test_a_foreign_tail_stops_the_ledger(ledger: Ledger, directory: str, tail: bytes) -> None:
    ledger.append({"kind": "test"})
    path = Path(directory, LOG)
    with open(path, "ab") as log:
        log.write(tail)
    before = path.read_bytes()
    with pytest.raises(Tampered) as caught:
        ledger.append({"kind": "next"})
    assert directory in caught.value.hint
    assert path.read_bytes() == before


def test_a_stopped_holder_does_not_hang_us(ledger: Ledger, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.append({"kind": "test"})
    monkeypatch.setattr(module, "LOCK_WAIT", 0.05)
    with open(Path(directory, LOG), "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StockadeError) as caught:
            ledger.append({"kind": "test"})
    assert caught.value.code == "ledger.busy"
    assert ledger.append({"kind": "test"}).index == 1


def test_a_file_size_limit_counts_as_full(directory: str) -> None:
    """RLIMIT_FSIZE makes a short write and then EFBIG, as a full disk makes a short write and then ENOSPC."""
    ledger = Ledger(directory)
    for _ in range(200):
        ledger.append({"kind": "test"})
    size = Path(directory, LOG).stat().st_size
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 30, limit[1]))
    try:
        with pytest.raises(StockadeError) as caught:
            ledger.append({"kind": "test"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.code == "ledger.full"
    assert Path(directory, LOG).stat().st_size == size
    assert ledger.append({"kind": "test"}).index == 200
    assert verify(directory).notes == ()
    ledger.close()


FULL_DISK = """
import os, sys
from stockade.core.errors import StockadeError
from stockade.record.ledger import Ledger
from stockade.record.verify import verify
top = sys.argv[1]
def fill():
    with open(top + "/ballast", "wb", buffering=0) as file:
        try:
            while file.write(b"b" * 4096): pass
        except OSError: pass
def refused():
    try: ledger.append({"kind": "test", "text": "y" * 3000})
    except StockadeError as error: assert error.code == "ledger.full", error.code
    else: raise SystemExit("appended on a full disk")
ledger = Ledger(top + "/ledger")
fill()
refused()                                   # not even the files can be made
os.unlink(top + "/ballast")
done = 0
for round in range(3):
    for _ in range(5): ledger.append({"kind": "test", "text": "x" * 700}); done += 1
    fill()
    while True:                             # what still fits into the last page
        try: ledger.append({"kind": "test", "text": "x" * 700}); done += 1
        except StockadeError as error: assert error.code == "ledger.full"; break
    refused()
    assert verify(top + "/ledger").entries == done
    os.unlink(top + "/ballast")
    assert ledger.append({"kind": "test"}).index == done; done += 1
report = verify(top + "/ledger")
assert (report.entries, report.notes) == (done, ()), report
print("held")
"""


@pytest.mark.wall
def test_a_full_disk(tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o size=64k none {tmp_path} && exec {sys.executable} -c "$0" {tmp_path}'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, FULL_DISK]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        unavailable("userns", "unshare(1) is missing")
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        unavailable("userns", done.stderr.strip())
    assert (done.stdout, done.stderr) == ("held\n", "")


def test_the_state_survives_its_encoding() -> None:
    tree = Frontier()
    for number in range(100):
        tree.add(leaf_hash(b"%d" % number))
        state = State(number, number * 3, number // 2, tree)
        found = State.decode(state.encode().ljust(SLOT, b"\0"))
        assert found is not None
        assert (found.generation, found.length, found.signed, found.tree.root()) == (number, number * 3, number // 2, tree.root())
        assert State.decode(state.encode()[:-1]) is None


def test_an_empty_file_has_no_state(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    with open(tmp_path / "f", "rb") as file:
        assert read_state(file.fileno()) is None


def test_loading_it_stays_cheap() -> None:
    code = "import sys; import stockade.record.ledger; print(*sorted(sys.modules))"
    loaded = set(
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    assert not loaded & {"json", "re", "hashlib", "typing", "dataclasses", "contextlib", "functools", "pathlib", "cryptography", "socket"}
