"""What the sandbox may have signed: a parser of the SSH agent protocol that knows two requests, and one form of what is signed.

Sources: draft-ietf-sshm-ssh-agent (messages), OpenSSH's PROTOCOL.sshsig (what `ssh-keygen -Y sign` hands to an agent), RFC 8332 (flags of RSA).

Pure: bytes in, a decision out. What is asked of the real agent is built anew from what was understood here; no byte of the sandbox's is passed on
but the digest.

INVARIANT: whatever comes in, what goes to the real agent is "SSHSIG" and an allowed namespace, to be signed with the one key. A login (RFC 4252, section 7)
begins with the length of a session's name, and "SSHS" as a length is more than a gigabyte: no such data is also a login.
"""

from __future__ import annotations

from stockade.core.frozen import frozen
from stockade.core.ssh import LONGEST_KEY, PublicKey, string, strings, take

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

LONGEST = LONGEST_KEY + 1024  # bytes of a request that can be understood
FAILURE = b"\x05"
LIST, LISTED, SIGN, SIGNED = 11, 12, 13, 14
COMMENT = b"stockade"  # the comment of a key is often its owner's address; inside, nobody needs it
_MAGIC = b"SSHSIG"
_DIGESTS = {b"sha256": 32, b"sha512": 64}
_RSA = {2: "rsa-sha2-256", 4: "rsa-sha2-512"}
# Names for the ledger of what else a client may ask for.
_OTHERS = {
    17: "add a key", 18: "remove a key", 19: "remove all keys", 20: "add a token", 21: "remove a token", 22: "lock", 23: "unlock",
    25: "add a key", 26: "add a token", 27: "extension",
}  # fmt: skip


class Refused(ValueError):
    """No. `reason` is one of a few fixed words for the ledger, `detail` printable text that may come out of the sandbox, at most 64 characters."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


@frozen
class Wish:
    """A signature that may be made: over `digest`, by the hash function `algorithm`, for `namespace`. `flags` are the protocol's, 0 but for RSA."""

    namespace: str
    algorithm: str
    digest: bytes
    flags: int = 0


def decide(message: bytes, key: PublicKey, namespaces: Collection[str]) -> Wish | None:
    """What a request (without the length before it) asks for: None = the list of keys. Raises Refused for anything but that and a Wish to be granted."""
    if not 0 < len(message) <= LONGEST:
        raise Refused("malformed")
    kind = message[0]
    if kind == LIST:
        if len(message) != 1:
            raise Refused("malformed")
        return None
    if kind != SIGN:
        raise Refused("not-offered", _OTHERS.get(kind, f"message {kind}"))
    try:
        blob, at = take(message, 1)
        data, at = take(message, at)
    except ValueError:
        raise Refused("malformed") from None
    if len(message) != at + 4:
        raise Refused("malformed")
    flags = int.from_bytes(message[at:], "big")
    if blob != key.blob:
        raise Refused("another-key")
    if flags not in (_RSA if key.kind == "ssh-rsa" else (0,)):
        raise Refused("flags")
    return _signed(data, flags, namespaces)


def _signed(data: bytes, flags: int, namespaces: Collection[str]) -> Wish:
    """What is to be signed (PROTOCOL.sshsig, section 3): the magic, then namespace, reserved, hash algorithm and digest as strings."""
    if not data.startswith(_MAGIC):
        raise Refused("not-sshsig", "an SSH login?" if b"ssh-connection" in data else "")
    try:
        namespace, reserved, algorithm, digest = strings(data, 4, len(_MAGIC))
    except ValueError:
        raise Refused("malformed") from None
    name = namespace.decode("ascii", "replace")
    if name not in namespaces:
        raise Refused("namespace", "".join(letter if letter.isascii() and letter.isprintable() else "?" for letter in name[:64]))
    if reserved or len(digest) != _DIGESTS.get(algorithm):
        raise Refused("malformed")
    return Wish(name, algorithm.decode(), digest, flags)


def listing(key: PublicKey) -> bytes:
    """The answer to a request for the list of keys: this one."""
    return bytes((LISTED,)) + (1).to_bytes(4, "big") + string(key.blob) + string(COMMENT)


def request(wish: Wish, key: PublicKey) -> bytes:
    """What to ask of the real agent."""
    parts = (wish.namespace.encode(), b"", wish.algorithm.encode(), wish.digest)
    data = _MAGIC + b"".join(map(string, parts))
    return bytes((SIGN,)) + string(key.blob) + string(data) + wish.flags.to_bytes(4, "big")


def holds(answer: bytes, key: PublicKey) -> bool:
    """Does the real agent's answer to LIST name the key? Raises ValueError for what is no such answer."""
    if answer[:1] != bytes((LISTED,)) or len(answer) < 5:
        raise ValueError("it does not list its keys")
    return key.blob in strings(answer, 2 * int.from_bytes(answer[1:5], "big"), 5)[::2]


def given(answer: bytes, wish: Wish, key: PublicKey) -> bytes:
    """The answer for the sandbox, built from the real agent's answer to `request`. Raises ValueError for anything but a signature of the right form."""
    if answer[:1] != bytes((SIGNED,)):
        raise ValueError("it did not sign")
    (signature,) = strings(answer, 1, 1)
    name, at = take(signature, 0)
    value, at = take(signature, at)
    rest = signature[at:]
    if name.decode("ascii", "replace") != _RSA.get(wish.flags, key.kind):
        raise ValueError("the signature is of another kind")
    numbers = strings(value, 2) if "ecdsa" in key.kind else [value]
    sizes = (64, 64) if "ed25519" in key.kind else (1, len(key.blob)) if key.kind == "ssh-rsa" else (1, 67)
    # Keys that are touched add flags and a counter (PROTOCOL.u2f).
    if len(rest) != (5 if key.kind.startswith("sk-") else 0) or not all(sizes[0] <= len(number) <= sizes[1] for number in numbers):
        raise ValueError("the signature is not of the right size")
    value = b"".join(map(string, numbers)) if len(numbers) == 2 else value
    return bytes((SIGNED,)) + string(string(name) + string(value) + rest)
