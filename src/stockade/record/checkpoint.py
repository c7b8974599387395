"""Signed checkpoints of the ledger: who held this key said "at this size the tree had this root".

Format: C2SP tlog-checkpoint in a C2SP signed-note with Ed25519 (signature type 0x01), so that other tools can check and countersign them.
A checkpoint is six lines in `checkpoints` (origin, size, root, blank, signature, blank), appended for good. Its directory and the key's lie
beside the ledger's, not in it. The key's name is the origin: "stockade/" and 16 hex digits of the public key's SHA-256.
"""

from __future__ import annotations

import binascii
import fcntl
import os

from stockade.core import places
from stockade.core.errors import StockadeError, Tampered
from stockade.core.frozen import frozen
from stockade.record.ledger import Ledger, lock, open_private
from stockade.record.merkle import HASH_SIZE, sha256

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Literal

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

CHECKPOINTS = "checkpoints"
SECRET, PUBLIC = "ledger.pem", "ledger.vkey"
# RFC 8410, section 7: what stands before the 32 bytes of an Ed25519 key without attributes, as we write it. The library's own reader takes longer to import
# than all the rest of what follows a run.
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
_DASH = "\u2014 ".encode()
_ED25519 = b"\x01"
_MAX_NOTE_LINE = 4096


@frozen
class Checkpoint:
    """What is signed: the log's name, how many entries, and the tree's root over them (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> bytes:
        """The note's text, three lines, as it is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n".encode()


@frozen
class Signature:
    """One signature line: the key's name, its 4-byte id, and what it signed with."""

    name: str
    key_id: bytes
    data: bytes


@frozen
class Note:
    """A checkpoint with its signatures. `raw` is the exact text that they cover."""

    checkpoint: Checkpoint
    raw: bytes
    signatures: tuple[Signature, ...]


@frozen
class Verifier:
    """A public key in the form that signed-note calls a verifier key: "name+id+key"."""

    name: str
    key_id: bytes
    public: bytes

    @classmethod
    def from_public(cls, name: str, public: bytes) -> Verifier:
        return cls(name, sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4], public)

    @classmethod
    def from_text(cls, text: str) -> Verifier:
        """Parse a verifier key. Raises Tampered (`ledger.key`) if it is none."""
        parts = text.strip().split("+", 2)
        if len(parts) == 3 and parts[0].isprintable() and not any(map(str.isspace, parts[0])):
            data = _unbase64(parts[2])
            if data is not None and len(data) == 33 and data[:1] == _ED25519:
                found = cls.from_public(parts[0], data[1:])
                if found.name and found.key_id.hex() == parts[1]:
                    return found
        raise Tampered(
            "the ledger's verifier key is not one", code="ledger.key", hint='It looks like "stockade/0123456789abcdef+01234567+AQ...".'
        )

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{_base64(_ED25519 + self.public)}"

    def wrong(self, raw: bytes, signatures: tuple[Signature, ...]) -> Literal["", "key", "signature"]:
        """What is wrong with the signatures of a note's text: this key made none of them, or the one that it made is not of this text. "" = nothing.

        Raises StockadeError (`ledger.no-cryptography`).
        """
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError as error:
            raise _no_cryptography("check") from error

        for signature in signatures:
            if signature.name == self.name and signature.key_id == self.key_id:
                try:
                    Ed25519PublicKey.from_public_bytes(self.public).verify(signature.data, raw)
                except (InvalidSignature, ValueError):
                    return "signature"
                return ""
        return "key"

    def check(self, note: Note) -> None:
        """Raise Tampered unless this key signed the note: (`ledger.key`) another key did, (`ledger.signature`) the signature is wrong."""
        where, wrong = f"the checkpoint over {note.checkpoint.size} entries", self.wrong(note.raw, note.signatures)
        if wrong == "signature":
            raise Tampered(f"{where} was changed: its signature is wrong", code="ledger.signature")
        if wrong:
            names = ", ".join(signature.name for signature in note.signatures)
            raise Tampered(
                f"{where} is signed by {names}, not by the key {self.name}+{self.key_id.hex()}",
                code="ledger.key",
                hint="The key was replaced, or the checkpoint comes from another ledger.",
            )


def split(note: bytes) -> tuple[bytes, tuple[Signature, ...]]:
    """The text of a signed note, as it is signed, and its signatures, which nobody has checked. Raises ValueError."""
    body, blank, tail = note.rpartition(b"\n\n")
    if not blank or not tail.endswith(b"\n"):
        raise ValueError("not text, blank line and signatures")
    signatures = tuple(_signature(line) for line in tail[:-1].split(b"\n"))
    if not body.decode("utf-8").replace("\n", "").isprintable():
        raise ValueError("control characters")
    return body + b"\n", signatures


def signature_line(verifier: Verifier, data: bytes) -> bytes:
    """What stands in a note for a signature by this key."""
    return _DASH + f"{verifier.name} {_base64(verifier.key_id + data)}\n".encode()


def parse(text: bytes) -> Note:
    """Parse one note: text, blank line, signature lines. Raises Tampered (`ledger.checkpoint`)."""
    try:
        raw, signatures = split(text)
        lines = raw.split(b"\n")[:-1]
        if len(lines) < 3 or not all(lines):
            raise ValueError("not text, blank line and signatures")
        origin, size, root = (line.decode("utf-8") for line in lines[:3])
        digest = _unbase64(root)
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


def _signature(line: bytes) -> Signature:
    name, space, data = line.removeprefix(_DASH).decode("utf-8").partition(" ")
    raw = _unbase64(data)
    if not line.startswith(_DASH) or not space or not name.isprintable() or not name or raw is None or len(raw) < 5:
        raise ValueError("no signature")
    return Signature(name, raw[:4], raw[4:])


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
        key = _key(beside(ledger.directory, "keys"), make=last is None)
        verifier = _verifier(key)
        if last is not None:
            verifier.check(last)
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


def _key(directory: str, *, make: bool) -> Ed25519PrivateKey:
    """The signing key; made on first use, unencrypted PKCS #8 that only the user can read. Raises Tampered (`ledger.key`) if it went missing."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError as error:
        raise _no_cryptography("sign") from error
    places.private(directory)
    path = os.path.join(directory, SECRET)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        if not make:
            raise Tampered(
                f"the key that signed the ledger's checkpoints is gone from {path}",
                code="ledger.key",
                hint="Put it back, or move the ledger and its checkpoints away to start anew.",
            ) from None
        from cryptography.hazmat.primitives import serialization

        key = Ed25519PrivateKey.generate()
        form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        _replace(path, key.private_bytes(*form))
    else:
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(file.fileno())
            if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                raise StockadeError(f"{path} is not yours alone", code="place.unsafe", hint=f"Others could sign with it: chmod 600 {path}")
            pem = file.read(_MAX_NOTE_LINE)
        try:
            der = binascii.a2b_base64(b"".join(pem.split()[3:-3]), strict_mode=True)
            if len(der) != len(_PKCS8) + 32 or not der.startswith(_PKCS8):
                raise ValueError
            key = Ed25519PrivateKey.from_private_bytes(der[len(_PKCS8) :])
        except ValueError as error:
            raise Tampered(f"{path} does not hold the ledger's key", code="ledger.key") from error
    public = os.path.join(directory, PUBLIC)
    if not os.path.exists(public):
        _replace(public, f"{_verifier(key)}\n".encode())
    return key


def _verifier(key: Ed25519PrivateKey) -> Verifier:
    public = key.public_key().public_bytes_raw()
    return Verifier.from_public(f"stockade/{sha256(public).hexdigest()[:16]}", public)


def _replace(path: str, data: bytes) -> None:
    """Make `path` hold `data`, 0600, wholly or not at all, and wait for the disk."""
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


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


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def _unbase64(text: str) -> bytes | None:
    """The bytes of canonical standard base64 (RFC 4648, section 4), or None."""
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        return None
    return data if _base64(data) == text else None


def _no_cryptography(what: str) -> StockadeError:
    return StockadeError(
        f"cannot {what} a checkpoint: the Python package `cryptography` is missing",
        code="ledger.no-cryptography",
        hint="Install stockade with its `ledger` extra: pip install 'stockade[ledger]'. The ledger's entries are written without it.",
    )


def _unwritable(error: OSError) -> StockadeError:
    hint = "The entries themselves are written; the next checkpoint covers them."
    return StockadeError(f"cannot write a checkpoint of the ledger: {error.strerror}", code="ledger.checkpoint-unwritable", hint=hint)
