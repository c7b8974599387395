"""SSH's encoding of strings and public keys (RFC 4251 section 5; RFC 4253 section 6.6, RFC 5656, RFC 8332, RFC 8709; OpenSSH's PROTOCOL.u2f). Pure."""

from __future__ import annotations

from binascii import Error, a2b_base64, b2a_base64

from stockade.core.frozen import frozen

_CURVE, _APPLICATION = (8, 8), (1, 256)
# Key types, and the least and most bytes of each string that follows the type's name in a key.
_KINDS: dict[str, tuple[tuple[int, int], ...]] = {
    "ssh-ed25519": ((32, 32),),
    "ssh-rsa": ((1, 8), (128, 2049)),
    "ecdsa-sha2-nistp256": (_CURVE, (65, 65)),
    "ecdsa-sha2-nistp384": (_CURVE, (97, 97)),
    "ecdsa-sha2-nistp521": (_CURVE, (133, 133)),
    "sk-ssh-ed25519@openssh.com": ((32, 32), _APPLICATION),
    "sk-ecdsa-sha2-nistp256@openssh.com": (_CURVE, (65, 65), _APPLICATION),
}
KINDS = tuple(_KINDS)
LONGEST_KEY = 4096  # bytes of a key; RSA's largest, of 16384 bits, has 2078


@frozen
class PublicKey:
    """A public key: its type's name, and the encoded key, which begins with that name too."""

    kind: str
    blob: bytes

    def __str__(self) -> str:
        return f"{self.kind} {b2a_base64(self.blob, newline=False).decode()}"

    @property
    def fingerprint(self) -> str:
        """As `ssh-keygen -l` prints it: "SHA256:" and base64 without padding."""
        from _sha2 import sha256  # type: ignore[import-not-found]  # hashlib costs 4 ms to import and ends up here

        return f"SHA256:{b2a_base64(sha256(self.blob).digest(), newline=False).decode().rstrip('=')}"


def string(data: bytes) -> bytes:
    """`data` as a string: its length in four bytes, big-endian, before it."""
    return len(data).to_bytes(4, "big") + data


def take(data: bytes, at: int) -> tuple[bytes, int]:
    """The string that begins at `at`, and where the next thing begins. Raises ValueError if it is not there whole."""
    start = at + 4
    if at < 0 or start > len(data):
        raise ValueError("a string's length is cut off")
    end = start + int.from_bytes(data[at:start], "big")
    if end > len(data):
        raise ValueError("a string is cut off")
    return data[start:end], end


def strings(data: bytes, count: int, at: int = 0) -> list[bytes]:
    """Exactly `count` strings and nothing behind them. Raises ValueError."""
    found = []
    for _ in range(count):
        one, at = take(data, at)
        found.append(one)
    if at != len(data):
        raise ValueError("something follows")
    return found


def read_key(line: str) -> PublicKey:
    """A public key as a .pub file holds it: type, base64, and a comment that is ignored. Raises ValueError with a sentence for people."""
    kind, _, rest = line.strip().partition(" ")
    if kind not in _KINDS:
        raise ValueError(f"{kind[:40]!r} is not a type of key that can sign here; known are {', '.join(KINDS)}")
    words = rest.split(None, 1)
    try:
        blob = a2b_base64(words[0].encode("ascii") if words else b"", strict_mode=True)
        name, *fields = strings(blob, 1 + len(_KINDS[kind])) if len(blob) <= LONGEST_KEY else [b""]
    except (Error, ValueError):
        raise ValueError("the key is not whole") from None
    sizes = zip(fields, _KINDS[kind], strict=False)
    if name != kind.encode() or not all(least <= len(field) <= most for field, (least, most) in sizes):
        raise ValueError("the key is not what its type says")
    return PublicKey(kind, blob)
