"""Checks a whole ledger: every line, the tree, every checkpoint. Streams, so memory does not grow with the log.

What is found, and what cannot be, is in docs/ledger.md.
"""

from __future__ import annotations

import fcntl
import os

from stockade.core.errors import StockadeError, Tampered
from stockade.core.frozen import frozen
from stockade.core.notes import Verifier
from stockade.record import lines
from stockade.record.checkpoint import CHECKPOINTS, PUBLIC, Checkpoint, Note, beside, check, notes, parse
from stockade.record.ledger import FRONTIER, LOG, State, lock, read_state
from stockade.record.merkle import Frontier, leaf_hash

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import BinaryIO

_STEP = 4096  # entries between two calls of `progress`


@frozen
class Report:
    """A ledger in which nothing wrong was found.

    `signed` of the `entries` are covered by the last of `checkpoints`; the tail behind them is not, and began at `unsigned_since` (Unix seconds,
    0 = there is none). `root` is the tree's root in hex, `key` the verifier key, `notes` are sentences on what a crash left.
    """

    entries: int
    length: int
    root: str
    checkpoints: int
    signed: int
    unsigned_since: float
    key: str
    notes: tuple[str, ...] = ()


def verify(directory: str, *, key: str = "", checkpoint: str = "", progress: Callable[[int, int], None] | None = None) -> Report:
    """Verify the ledger in `directory` with the checkpoints beside it, also while others append.

    `key` is a verifier key and `checkpoint` the text of a checkpoint that were kept elsewhere: with them a replaced key and a rewritten
    history are found too. `progress(bytes done, bytes in all)` is called now and then.
    Raises Tampered, saying which entry or size; StockadeError (`ledger.unreadable`) when a file cannot be read.
    """
    opened: list[BinaryIO] = []
    try:
        log, frontier, signed = (
            _open(path, opened)
            for path in (
                os.path.join(directory, LOG),
                os.path.join(directory, FRONTIER),
                os.path.join(beside(directory, CHECKPOINTS), CHECKPOINTS),
            )
        )
        # One consistent picture: nobody signs or appends between these looks. The order is the signer's: checkpoints, then log.
        if signed is not None:
            lock(signed.fileno(), fcntl.LOCK_SH)
        if log is not None:
            lock(log.fileno(), fcntl.LOCK_SH)
        state = None if frontier is None else read_state(frontier.fileno())
        length, signed_length = (0 if file is None else os.fstat(file.fileno()).st_size for file in (log, signed))
        for file in (log, signed):
            if file is not None:
                fcntl.flock(file.fileno(), fcntl.LOCK_UN)

        verifier = _verifier(directory, key, needed=bool(signed_length or checkpoint))
        every = iter(()) if signed is None else notes(signed, signed_length)
        kept = parse(checkpoint.encode("utf-8", "replace")) if checkpoint else None
        return _Verification(state, verifier, every, kept).run(log, length, progress)
    except OSError as error:
        hint = "A ledger is read by the user who wrote it."
        raise StockadeError(f"cannot read the ledger: {error}", code="ledger.unreadable", hint=hint) from error
    finally:
        for file in opened:
            file.close()


def _open(path: str, opened: list[BinaryIO]) -> BinaryIO | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    file = os.fdopen(descriptor, "rb")
    opened.append(file)
    return file


def _verifier(directory: str, key: str, *, needed: bool) -> Verifier | None:
    if key:
        return _parsed(key)
    try:
        with open(os.path.join(beside(directory, "keys"), PUBLIC), "rb") as file:
            return _parsed(file.read(4096).decode("utf-8", "replace"))
    except FileNotFoundError:
        if not needed:
            return None
        raise Tampered(
            f"there are checkpoints, but the key to check them, {PUBLIC}, is gone",
            code="ledger.key",
            hint="Put it back, or give the verifier key that you kept: --key",
        ) from None


def _parsed(text: str) -> Verifier:
    try:
        return Verifier.from_text(text)
    except Tampered as error:
        raise Tampered("the ledger's verifier key is not one", code="ledger.key", hint=error.hint) from None


class _Verification:
    """One pass over the log, with the checkpoints' sizes coming up in order."""

    def __init__(self, state: State | None, verifier: Verifier | None, every: Iterator[Note], kept: Note | None) -> None:
        self.state, self.verifier, self.every = state, verifier, every
        self.tree = Frontier()
        self.checkpoints = 0
        self.good = 0  # entries that some signed root has confirmed
        self.kept = kept
        self.next: Checkpoint | None = None
        self.notes: list[str] = []
        self.since = 0.0
        self.gap: tuple[int, int] | None = None
        if kept is not None:
            self._check(kept)
        self._advance()

    def run(self, log: BinaryIO | None, length: int, progress: Callable[[int, int], None] | None) -> Report:
        done = 0
        self._compare()
        while log is not None and done < length:
            line = log.readline(min(lines.MAX_LINE + 2, length - done))
            if not line.endswith(b"\n"):
                self._unfinished(line, length - done)
                break
            done += len(line)
            self._entry(line[:-1])
            if progress is not None and self.tree.size % _STEP == 0:
                progress(done, length)
        self._ended(done)
        key = "" if self.verifier is None else str(self.verifier)
        since = self.since if self.tree.size > self.good else 0.0
        return Report(self.tree.size, done, self.tree.root().hex(), self.checkpoints, self.good, since, key, tuple(self.notes))

    def _entry(self, line: bytes) -> None:
        index = self.tree.size
        event = lines.parse(line, index)
        if index == self.good:
            self.since = event["time"]
        if event.get("kind") == "ledger.recovered":
            self._recovery(index, event)
        self.tree.add(leaf_hash(line))
        self._compare()

    def _recovery(self, index: int, event: dict[str, object]) -> None:
        lost, torn, adopted = (event.get(name, 0) for name in ("lost", "torn", "adopted"))
        if "lost" in event:
            self.gap = self.gap or (index, lost if type(lost) is int else 0)
        if torn or adopted:
            self.notes.append(
                f"entry {index}: stockade mended what a crash left ({adopted} entries counted late, {torn} bytes never finished)"
            )
            del self.notes[100:]  # bounded memory

    def _compare(self) -> None:
        """Compare the root at this size with every root that somebody wrote down for it."""
        size = self.tree.size
        while self.next is not None and self.next.size == size:
            if self.next.root != self.tree.root():
                raise self._changed(size, "the signed checkpoint")
            self.good = size
            self._advance()
        if self.kept is not None and self.kept.checkpoint.size == size and self.kept.checkpoint.root != self.tree.root():
            raise self._changed(size, "the checkpoint that you gave")
        if self.state is not None and self.state.tree.size == size and self.state.tree.root() != self.tree.root():
            raise self._changed(size, "the ledger's own frontier")

    def _changed(self, size: int, by: str) -> Tampered:
        where = f"entries {self.good} to {size - 1}" if size - self.good > 1 else f"entry {self.good}"
        return Tampered(
            f"{where}: something was changed, put in, taken out or moved there: the tree does not have the root that {by} over {size} entries names",
            code="ledger.root",
            hint=f"Entries before {self.good} are as they were signed. Do not trust the rest.",
        )

    def _check(self, note: Note) -> None:
        if self.verifier is not None:  # there is one whenever there are notes
            check(self.verifier, note)

    def _advance(self) -> None:
        note = next(self.every, None)
        if note is None:
            self.next = None
            return
        self._check(note)
        size = note.checkpoint.size
        if size < self.good or size < self.tree.size:
            message = f"the checkpoints are out of order: one over {size} entries follows one over {self.tree.size}"
            raise Tampered(message, code="ledger.checkpoint", hint="Somebody moved or rewrote checkpoints.")
        self.checkpoints += 1
        self.next = note.checkpoint

    def _unfinished(self, line: bytes, left: int) -> None:
        if len(line) < left or len(line) > lines.MAX_LINE:
            raise Tampered(f"behind {self.tree.size} entries the log holds something that stockade did not write", code="ledger.line")
        self.notes.append(
            f"the last {len(line)} bytes are an entry that a crash left unfinished; it never counted, and the next append says so"
        )

    def _ended(self, done: int) -> None:
        size = self.tree.size
        wanted = [(self.next.size, "the signed checkpoint")] if self.next is not None else []
        if self.kept is not None:
            wanted.append((self.kept.checkpoint.size, "the checkpoint that you gave"))
        if self.state is not None:
            wanted.append((self.state.tree.size, "the ledger's own count"))
        for count, by in wanted:
            if count > size:
                raise Tampered(
                    f"the log was cut: it ends after {size} entries, and {by} says that there were {count}",
                    code="ledger.truncated",
                    hint=f"Entries {size} to {count - 1} are gone. After a power failure this can happen to entries that no checkpoint covered yet.",
                )
        if self.state is None:
            if size > 1 or (size and self.good):  # a crash can leave one entry without a frontier, the very first
                message = f"the frontier file is gone or unreadable, though the log holds {size} entries"
                raise Tampered(message, code="ledger.frontier", hint="Entries at the end may be gone; the signed ones are all there.")
        elif self.state.signed > self.good:
            message = f"a checkpoint over {self.state.signed} entries was signed and is gone; the last one covers {self.good}"
            raise Tampered(message, code="ledger.checkpoint-gone", hint="Somebody removed it, to hide it or what it covered.")
        elif self.state.tree.size < size:
            self.notes.append(
                f"{size - self.state.tree.size} entries at the end are not counted yet (a crash); the next append counts them and says so"
            )
        elif self.state.length != done:
            raise Tampered(f"the log's {size} entries take {done} bytes, not {self.state.length}", code="ledger.frontier")
        if self.gap is not None:
            index, lost = self.gap
            raise Tampered(
                f"{lost} entries that stood before entry {index} are gone: the ledger found itself cut, and went on",
                code="ledger.gap",
                hint="A power failure or somebody's hand. All else is in order; to start a new ledger, move this one and its checkpoints away.",
            )
