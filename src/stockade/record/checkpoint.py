"""Signed checkpoints of the ledger: who held this key said "at this size the tree had this root".

Format: C2SP tlog-checkpoint in a C2SP signed-note with Ed25519 (signature type 0x01), so that other tools can check and countersign them.
A checkpoint is six lines in `checkpoints` (origin, size, root, blank, signature, blank), appended for good. Its directory and the key's lie
beside the ledger's, not in it. The key's name is the origin: "stockade/" and 16 hex digits of the public key's SHA-256.
"""

from __future__ import annotations

import fcntl
import os

from stockade.core import places
from stockade.core.errors import StockadeError, Tampered
from stockade.core.frozen import frozen
from stockade.core.notes import OwnKey, Signature, Verifier, base64, signature_line, split, unbase64
from stockade.record.ledger import Ledger, lock, open_private
from stockade.record.merkle import HASH_SIZE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

CHECKPOINTS = "checkpoints"
KEY = "ledger"
SECRET, PUBLIC = f"{KEY}.pem", f"{KEY}.vkey"
_DASH = "\u2014 ".encode()
_MAX_NOTE_LINE = 4096


@frozen
class Checkpoint:
    """What is signed: the log's name, how many entries, and the tree's root over them (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The note's text, three lines, as it is signed."""
        return f"{self.origin}\n{self.size}\n{base64(self.root)}\n".encode()


@frozen
class Note:
    """A checkpoint with its signatures. `raw` is the exact text that they cover."""

    checkpoint: Checkpoint
    raw: bytes
    signatures: tuple[Signature, ...]


def check(verifier: Verifier, note: Note) -> None:
    """Raise Tampered unless this key signed the note: (`ledger.key`) another key did, (`ledger.signature`) the signature is wrong."""
    where, wrong = f"the checkpoint over {note.checkpoint.size} entries", verifier.wrong(note.raw, note.signatures)
    if wrong == "signature":
        raise Tampered(f"{where} was changed: its signature is wrong", code="ledger.signature")
    if wrong:
        names = ", ".join(signature.name for signature in note.signatures)
        raise Tampered(
            f"{where} is signed by {names}, not by the key {verifier.name}+{verifier.key_id.hex()}",
            code="ledger.key",
            hint="The key was replaced, or the checkpoint comes from another ledger.",
        )


def parse(text: bytes) -> Note:
    """Parse one note: text, blank line, signature lines. Raises Tampered (`ledger.checkpoint`)."""
    try:
        raw, signatures = split(text)
        lines = raw.split(b"\n")[:-1]
        if len(lines) < 3 or not all(lines):
            raise ValueError("not text, blank line and signatures")
        origin, size, root = (line.decode("utf-8") for line in lines[:3])
        digest = unbase64(root)
        if (
            digest is None
            or len(digest) != HASH_SIZE
            or not (size.isascii() and size.isdecimal() and len(size) < 20)
            or str(int(size)) != size
        ):
            raise ValueError("no size or root")
    except ValueError as error:
        raise Tampered(f"this is not a checkpoint: {error}", code="ledger.checkpoint") from error
    return Note(Checkpoint(origin, int(size), digest), raw, signatures)


def notes(file: BinaryIO, end: int) -> Iterator[Note]:
    """The notes in the first `end` bytes of a checkpoints file, one after another.

    An unfinished last one (a crash while it was written) is left out. Raises Tampered for anything else that is not a note.
    """
    at, lines, blanks = 0, [], 0
    while at < end:
        line = file.readline(min(_MAX_NOTE_LINE, end - at))
        at += len(line)
        if not line.endswith(b"\n"):
            if at < end or len(line) == _MAX_NOTE_LINE:
                raise Tampered(f"the checkpoints file holds no checkpoint before byte {at}", code="ledger.checkpoint")
            return
        lines.append(line)
        blanks += line == b"\n"
        if len(lines) > 6:
            raise Tampered(f"the checkpoints file holds no checkpoint before byte {at}", code="ledger.checkpoint")
        if blanks == 2:
            yield parse(b"".join(lines[:-1]))
            lines, blanks = [], 0


def sign(ledger: Ledger) -> Checkpoint:
    """Sign the ledger's present state, and return the checkpoint (the last one if nothing was added since).

    Waits until the entries are on the disk, so that no checkpoint ever covers more than a crash leaves. Raises StockadeError when a file cannot
    be written or `cryptography` is absent, Tampered when the ledger is shorter than the last checkpoint, or the key is not the one that signed it.
    """
    directory = places.private(beside(ledger.directory, CHECKPOINTS))
    try:
        descriptor = open_private(os.path.join(directory, CHECKPOINTS))
    except OSError as error:
        raise _unwritable(error) from error
    try:
        lock(descriptor, fcntl.LOCK_EX)
        end = os.fstat(descriptor).st_size
        last, whole = _last(descriptor, end)
        own = OwnKey(beside(ledger.directory, "keys"), KEY, "stockade", "the ledger's checkpoints", "ledger.key")
        key = own.open(make=last is None)
        verifier = own.verifier(key)
        if last is not None:
            check(verifier, last)
        state = ledger.settle()
        if state.signed > (0 if last is None else last.checkpoint.size):
            message = f"a checkpoint over {state.signed} entries was signed and is gone"
            raise Tampered(message, code="ledger.checkpoint-gone", hint="Nothing was signed. See `stockade log verify`.")
        checkpoint = Checkpoint(verifier.name, state.tree.size, state.tree.root())
        same = last is not None and last.checkpoint.size == checkpoint.size
        if last is not None and (last.checkpoint.size > checkpoint.size or (same and last.checkpoint != checkpoint)):
            raise Tampered(
                f"the ledger has {checkpoint.size} entries that are not the {last.checkpoint.size} that were signed",
                code="ledger.truncated",
                hint="Nothing was signed. See `stockade log verify`.",
            )
        if not same:
            text = checkpoint.text()
            line = signature_line(verifier, key.sign(text)) + b"\n"
            _append(descriptor, text + b"\n" + line, whole)
        ledger.signed(checkpoint.size)
        return checkpoint
    except OSError as error:
        raise _unwritable(error) from error
    finally:
        os.close(descriptor)


def beside(directory: str, name: str) -> str:
    """The directory `name` next to the ledger's."""
    return os.path.join(os.path.dirname(os.path.abspath(directory)), name)


def _last(descriptor: int, end: int) -> tuple[Note | None, int]:
    """The last whole note, and the offset where it ends. What stands behind it is an unfinished one that nobody has seen."""
    start = max(0, end - 4 * _MAX_NOTE_LINE)
    tail = os.pread(descriptor, end - start, start)
    blank = tail.rfind(b"\n\n" + _DASH)
    if blank >= 0 and tail.find(b"\n\n", blank + 2) < 0:  # the last signature is unfinished
        blank = tail.rfind(b"\n\n" + _DASH, 0, blank)
    if blank < 0:
        if end > _MAX_NOTE_LINE:
            raise Tampered(
                "the checkpoints file does not end with a checkpoint", code="ledger.checkpoint", hint="See `stockade log verify`."
            )
        return None, 0
    whole = tail.index(b"\n\n", blank + 2) + 2
    body = b"\n".join(tail[:blank].split(b"\n")[-3:])
    return parse(body + tail[blank : whole - 1]), start + whole


def _append(descriptor: int, data: bytes, offset: int) -> None:
    os.ftruncate(descriptor, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, offset)
        raise


def _unwritable(error: OSError) -> StockadeError:
    hint = "The entries themselves are written; the next checkpoint covers them."
    return StockadeError(f"cannot write a checkpoint of the ledger: {error.strerror}", code="ledger.checkpoint-unwritable", hint=hint)
