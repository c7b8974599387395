"""The ledger: what was decided, started and ended, as JSON lines that a Merkle tree covers. HOT.

One ledger a user; any number of processes append at once. Two files in its directory:

- `log.jsonl`: one entry a line (record/lines.py). The tree's leaves are the bytes of the lines without their newlines.
- `frontier`: two slots of 4096 bytes, written in turn, each with a checksum: how many entries and bytes of the log are counted, and the tree's
  frontier over them. So an append reads and hashes only its own line, and a torn write of one slot leaves the other.

An append takes the lock (flock on the log), writes the line, then the frontier. What a crash can leave behind is mended by the next append, and
the ledger then says so itself in an entry of kind `ledger.recovered`: complete lines that were not counted yet are counted ("adopted"), an
unfinished last line was never acknowledged and is overwritten ("torn", bytes), and counted entries that are gone are reported ("lost").

INVARIANT: a Receipt is returned only for an entry that is in the log and in the frontier. Nothing here waits for the disk; `settle` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from _thread import allocate_lock

from stockade.core import places
from stockade.core.errors import StockadeError, Tampered
from stockade.core.frozen import frozen
from stockade.record import lines
from stockade.record.merkle import HASH_SIZE, Frontier, leaf_hash, sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from stockade.record.checkpoint import Checkpoint

LOG = "log.jsonl"
FRONTIER = "frontier"
SLOT = 4096
LOCK_WAIT = 30.0  # seconds; an append holds the lock well under a millisecond, a recovery as long as it takes to read the log
_MAGIC = b"stkdfr1\n"
_FIELDS = 4  # generation, entries, bytes, signed: 8 bytes each, big-endian
_HEAD = len(_MAGIC) + 8 * _FIELDS


@frozen
class Receipt:
    """Proof of an entry: its index (from 0) and the hex digest of its leaf (SHA-256 of 0x00 and the line)."""

    index: int
    digest: str


class State:
    """What the frontier file says. `length` bytes of the log are counted; `signed` is the size that the last checkpoint covers."""

    __slots__ = ("generation", "length", "signed", "tree")

    def __init__(self, generation: int = 0, length: int = 0, signed: int = 0, tree: Frontier | None = None) -> None:
        self.generation, self.length, self.signed = generation, length, signed
        self.tree = Frontier() if tree is None else tree

    def encode(self) -> bytes:
        numbers = (self.generation, self.tree.size, self.length, self.signed)
        body = _MAGIC + b"".join(number.to_bytes(8, "big") for number in numbers) + b"".join(self.tree.hashes)
        return body + sha256(body).digest()

    @staticmethod
    def decode(slot: bytes) -> State | None:
        """The state in a slot, or None if the slot is empty, torn or not ours."""
        if slot[: len(_MAGIC)] != _MAGIC or len(slot) < _HEAD:
            return None
        generation, size, length, signed = (int.from_bytes(slot[at : at + 8], "big") for at in range(len(_MAGIC), _HEAD, 8))
        end = _HEAD + HASH_SIZE * size.bit_count()
        if sha256(slot[:end]).digest() != slot[end : end + HASH_SIZE]:
            return None
        hashes = [slot[at : at + HASH_SIZE] for at in range(_HEAD, end, HASH_SIZE)]
        return State(generation, length, signed, Frontier(size, hashes))


def read_state(descriptor: int) -> State | None:
    """The newest whole state in the frontier file, or None."""
    both = os.pread(descriptor, 2 * SLOT, 0)
    slots = sorted(
        (both[:SLOT], both[SLOT:]), key=lambda slot: slot[: len(_MAGIC) + 8], reverse=True
    )  # the magic, then the generation: newest first
    return State.decode(slots[0]) or State.decode(slots[1])


def lock(descriptor: int, how: int) -> None:
    """flock(2) with a deadline, because a stopped process may hold it. Raises StockadeError (`ledger.busy`) after LOCK_WAIT seconds."""
    deadline = 0.0
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            now = time.monotonic()
            deadline = deadline or now + LOCK_WAIT
            if now > deadline:
                raise _busy() from None
            time.sleep(0.0005)


class Ledger:
    """The ledger in `directory`, which is made (0700) on the first append. Safe to share between threads, and across fork."""

    def __init__(self, directory: str) -> None:
        self.directory = os.path.abspath(directory)
        self._mutex = allocate_lock()
        self._pid = os.getpid()
        self._log = self._frontier = -1  # closed

    def append(self, event: dict[str, object]) -> Receipt:
        """Write one event and return its receipt. The ledger adds "index" and "time"; the rest is plain data, "kind" and "session" first.

        Raises StockadeError (`ledger.full`, `ledger.unwritable`, `ledger.busy`, `ledger.event`, `place.*`) or Tampered: then nothing was written,
        and what the event stands for must not happen.
        """
        return self.extend((event,))[0]

    def extend(self, events: Sequence[dict[str, object]]) -> list[Receipt]:
        """Write several events for the price of little more than one, all or none of them: a receipt each. Raises as `append`."""
        state = self._enter()
        try:
            return self._write(state, events)
        finally:
            self._leave()

    def settle(self) -> State:
        """Wait until everything counted so far is on the disk, and return the state. Raises as `append`."""
        state = self._enter()
        self._leave()
        try:
            os.fdatasync(self._log)
        except OSError as error:
            raise _unwritable(error, self.directory) from error
        return state

    def signed(self, size: int) -> None:
        """Remember that a checkpoint over `size` entries exists, so that its removal is found. Raises as `append`."""
        state = self._enter()
        try:
            if size > state.signed:
                state.signed = size
                self._count(state)
        except OSError as error:
            raise _unwritable(error, self.directory) from error
        finally:
            self._leave()

    def checkpoint(self) -> Checkpoint:
        """Sign the ledger as it stands now (record/checkpoint.py). Slow: waits for the disk and loads a cryptography library."""
        from stockade.record import checkpoint

        return checkpoint.sign(self)

    def close(self) -> None:
        """Close the files. The next append opens them again."""
        with self._mutex:
            self._close()

    # --- the rest runs with the lock held

    def _enter(self) -> State:
        """Take the lock, and return the state after mending whatever a crash left."""
        if self._pid != os.getpid():  # forked: flock is shared with the parent, and a thread that is not here may hold the mutex
            self._mutex, self._pid = allocate_lock(), os.getpid()
            self._close()
        if not self._mutex.acquire(timeout=LOCK_WAIT):
            raise _busy()
        try:
            while True:
                if self._frontier < 0:
                    self._close()
                    self._open()
                lock(self._log, fcntl.LOCK_EX)
                found = os.fstat(self._log)
                if found.st_nlink and os.fstat(self._frontier).st_nlink:
                    return self._settled(found.st_size)
                self._close()  # deleted meanwhile: what we would write nobody could read
        except BaseException as error:
            self._leave()
            if isinstance(error, OSError):
                raise _unwritable(error, self.directory) from error
            raise

    def _leave(self) -> None:
        if self._log >= 0:
            fcntl.flock(self._log, fcntl.LOCK_UN)
        self._mutex.release()

    def _open(self) -> None:
        places.private(self.directory)
        self._log = open_private(os.path.join(self.directory, LOG))
        self._frontier = open_private(os.path.join(self.directory, FRONTIER))
        if os.fstat(self._frontier).st_size < 2 * SLOT:  # take the space now: later writes only replace what is there
            lock(self._log, fcntl.LOCK_EX)
            size = os.fstat(self._frontier).st_size
            if size < 2 * SLOT:
                _write_all(self._frontier, bytes(2 * SLOT - size), size)

    def _close(self) -> None:
        for descriptor in (self._log, self._frontier):
            if descriptor >= 0:
                os.close(descriptor)
        self._log = self._frontier = -1

    def _settled(self, size: int) -> State:
        """The state, equal to what the log of `size` bytes holds. The common case reads 8 KiB and nothing else."""
        state = read_state(self._frontier)
        if state is not None and state.length == size:
            return state
        if state is None and size == 0:
            return State()
        return self._recovered(state or State(), size)

    def _recovered(self, state: State, size: int) -> State:
        """Count what is in the log beyond the state, or all of it if the log is shorter than the state says; then put that on record."""
        event: dict[str, object] = {"kind": "ledger.recovered"}
        known = state.tree.size
        shorter = size < state.length
        if shorter:
            state = State(state.generation, 0, state.signed)
        with os.fdopen(os.dup(self._log), "rb") as log:
            log.seek(state.length)
            while True:
                line = log.readline(lines.MAX_LINE + 2)
                if not line.endswith(b"\n"):
                    break
                try:
                    lines.parse(line[:-1], state.tree.size)
                except Tampered as error:
                    raise self._foreign(error.message, error.code) from error
                state.tree.add(leaf_hash(line[:-1]))
                state.length += len(line)
        if len(line) > lines.MAX_LINE:
            raise self._foreign(f"behind {state.tree.size} entries the log holds something that stockade did not write", "ledger.line")
        if shorter:
            event["lost"] = max(known - state.tree.size, 0)
        else:
            event["adopted"] = state.tree.size - known
        if line:
            event["torn"] = len(line)
            event["text"] = line[:512]
        self._write(state, (event,))
        return state

    def _foreign(self, message: str, code: str) -> Tampered:
        hint = f"Nothing is written behind it. See `stockade log verify`; to start a new ledger, move {self.directory} and its checkpoints away."
        return Tampered(message, code=code, hint=hint)

    def _write(self, state: State, events: Sequence[dict[str, object]]) -> list[Receipt]:
        """Write `events` behind what `state` counts, and count them: `state` becomes the new state."""
        first, now, tree = state.tree.size, time.time(), state.tree.copy()
        written, leaves = [], []
        for index, event in enumerate(events, first):
            line = lines.encode(index, now, event)
            leaves.append(leaf_hash(line))
            tree.add(leaves[-1])
            written.append(line + b"\n")
        data = b"".join(written)
        new = State(state.generation, state.length + len(data), state.signed, tree)
        size = os.fstat(self._log).st_size
        try:
            _write_all(self._log, data, state.length)
            if size > new.length:  # the rest of a torn line that was longer than this one
                os.ftruncate(self._log, new.length)
            self._count(new)
        except OSError as error:
            try:
                os.ftruncate(self._log, size)
            except OSError:
                pass  # then the next append finds the lines and counts them
            raise _unwritable(error, self.directory) from error
        state.generation, state.length, state.tree = new.generation, new.length, tree
        return [Receipt(index, leaf.hex()) for index, leaf in enumerate(leaves, first)]

    def _count(self, state: State) -> None:
        """Write the state into the slot that does not hold the last one."""
        state.generation += 1
        _write_all(self._frontier, state.encode(), SLOT * (state.generation & 1))


def open_private(path: str) -> int:
    """Open a file of ours for reading and writing (made 0600 if absent), never through a symlink.

    Raises OSError, or StockadeError (`place.unsafe`) if it is not a plain file that only we can write to.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid() or found.st_mode & 0o022 or (found.st_mode & 0o170000) != 0o100000:
        os.close(descriptor)
        raise StockadeError(
            f"{path} is not a plain file that only you can write to",
            code="place.unsafe",
            hint=f"Somebody else could rewrite it. Check it, then: chown {os.geteuid()} {path} && chmod 600 {path}",
        )
    return descriptor


def _write_all(descriptor: int, data: bytes, offset: int) -> None:
    """pwrite(2) until all is written: a short write is how a full disk announces itself, the next call says why."""
    while data:
        written = os.pwrite(descriptor, data, offset)
        if not written:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        data, offset = data[written:], offset + written


def _busy() -> StockadeError:
    return StockadeError(
        f"another process has held the ledger for {LOCK_WAIT:.0f} s",
        code="ledger.busy",
        hint="Look for a stopped stockade process (`ps x -o pid,stat,args | grep stockade`) and continue or end it.",
    )


def _unwritable(error: OSError, directory: str) -> StockadeError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return StockadeError(
        f"cannot write to the ledger in {directory}: {error.strerror}",
        code="ledger.full" if full else "ledger.unwritable",
        hint=("Free some space" if full else "Make it writable") + "; stockade does nothing that it cannot record.",
    )
