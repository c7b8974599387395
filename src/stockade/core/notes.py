"""Signed notes (C2SP signed-note, https://c2sp.org/signed-note), with Ed25519 (signature type 0x01), and the keys of the user's that sign them.

Checkpoints of the ledger, an administrator's policy and the manifests of machines are such notes: other tools can check and countersign them.
"""

from __future__ import annotations

import binascii
import os

from stockade.core import places
from stockade.core.errors import StockadeError, Tampered
from stockade.core.frozen import frozen

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256 as sha256
    from typing import Literal

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
else:
    try:
        from _sha2 import sha256  # hashlib loads OpenSSL: 4 ms on the start of every run
    except ImportError:  # another Python than CPython >= 3.12
        from hashlib import sha256

# RFC 8410, section 7: what stands before the 32 bytes of an Ed25519 key without attributes, as we write it. The library's own reader takes longer to import
# than all the rest of what follows a run.
_PKCS8 = bytes.fromhex("302e020100300506032b657004220420")
_DASH = "\u2014 ".encode()
_ED25519 = b"\x01"
_MOST = 4096  # bytes of a file with a key


@frozen
class Signature:
    """One signature line: the key's name, its 4-byte id, and what it signed with."""

    name: str
    key_id: bytes
    data: bytes


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
        """Parse a verifier key. Raises Tampered (`note.key`) if it is none."""
        parts = text.strip().split("+", 2)
        if len(parts) == 3 and parts[0].isprintable() and not any(map(str.isspace, parts[0])):
            data = unbase64(parts[2])
            if data is not None and len(data) == 33 and data[:1] == _ED25519:
                found = cls.from_public(parts[0], data[1:])
                if found.name and found.key_id.hex() == parts[1]:
                    return found
        raise Tampered("this is no verifier key", code="note.key", hint='One looks like "stockade/0123456789abcdef+01234567+AQ...".')

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64(_ED25519 + self.public)}"

    def wrong(self, raw: bytes, signatures: tuple[Signature, ...]) -> Literal["", "key", "signature"]:
        """What is wrong with the signatures of a note's text: this key made none of them, or the one that it made is not of this text. "" = nothing.

        Raises StockadeError (`note.no-cryptography`).
        """
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ImportError as error:
            raise _no_cryptography("check a signature") from error

        for signature in signatures:
            if signature.name == self.name and signature.key_id == self.key_id:
                try:
                    Ed25519PublicKey.from_public_bytes(self.public).verify(signature.data, raw)
                except (InvalidSignature, ValueError):
                    return "signature"
                return ""
        return "key"


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
    return _DASH + f"{verifier.name} {base64(verifier.key_id + data)}\n".encode()


def _signature(line: bytes) -> Signature:
    name, space, data = line.removeprefix(_DASH).decode("utf-8").partition(" ")
    raw = unbase64(data)
    if not line.startswith(_DASH) or not space or not name.isprintable() or not name or raw is None or len(raw) < 5:
        raise ValueError("no signature")
    return Signature(name, raw[:4], raw[4:])


@frozen
class OwnKey:
    """A signing key of the user's: NAME.pem, unencrypted PKCS #8 that only the user can read, and NAME.vkey beside it. `signs` says what, for people;
    `origin` is how the key's own name begins, before 16 hex digits of the public key's SHA-256; `code` goes with errors about it.
    """

    directory: str
    name: str
    origin: str
    signs: str
    code: str

    def open(self, *, make: bool) -> Ed25519PrivateKey:
        """The key, made on first use if it may be.

        Raises Tampered (`code`) if it went missing or is none, StockadeError (`note.no-cryptography`, `place.unsafe`, `place.unwritable`), OSError.
        """
        try:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        except ImportError as error:
            raise _no_cryptography(f"sign {self.signs}") from error
        places.private(self.directory)
        path = os.path.join(self.directory, f"{self.name}.pem")
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if not make:
                hint = "Put it back, or move what it signed away to start anew."
                raise Tampered(f"the key that signs {self.signs} is gone from {path}", code=self.code, hint=hint) from None
            from cryptography.hazmat.primitives import serialization

            key = Ed25519PrivateKey.generate()
            form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            put(path, key.private_bytes(*form))
        else:
            with os.fdopen(descriptor, "rb") as file:
                found = os.fstat(file.fileno())
                if found.st_uid != os.geteuid() or found.st_mode & 0o077:
                    raise StockadeError(
                        f"{path} is not yours alone", code="place.unsafe", hint=f"Others could sign with it: chmod 600 {path}"
                    )
                pem = file.read(_MOST)
            try:
                der = binascii.a2b_base64(b"".join(pem.split()[3:-3]), strict_mode=True)
                if len(der) != len(_PKCS8) + 32 or not der.startswith(_PKCS8):
                    raise ValueError
                key = Ed25519PrivateKey.from_private_bytes(der[len(_PKCS8) :])
            except ValueError as error:
                raise Tampered(f"{path} does not hold the key that signs {self.signs}", code=self.code) from error
        public = os.path.join(self.directory, f"{self.name}.vkey")
        if not os.path.exists(public):
            put(public, f"{self.verifier(key)}\n".encode())
        return key

    def verifier(self, key: Ed25519PrivateKey) -> Verifier:
        """What checks what `key` signed."""
        public = key.public_key().public_bytes_raw()
        return Verifier.from_public(f"{self.origin}/{sha256(public).hexdigest()[:16]}", public)


def put(path: str, data: bytes, mode: int = 0o600) -> None:
    """Make `path` hold `data`, wholly or not at all, and wait for the disk."""
    temporary = f"{path}.{os.getpid()}"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def base64(data: bytes) -> str:
    """Standard base64 (RFC 4648, section 4)."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def unbase64(text: str) -> bytes | None:
    """The bytes of canonical standard base64, or None."""
    try:
        data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (ValueError, UnicodeEncodeError):
        return None
    return data if base64(data) == text else None


def _no_cryptography(what: str) -> StockadeError:
    return StockadeError(
        f"cannot {what}: the Python package `cryptography` is missing",
        code="note.no-cryptography",
        hint="Install stockade with its `ledger` extra: pip install 'stockade[ledger]'.",
    )
