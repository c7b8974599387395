"""What a sandbox may have signed.

INVARIANT: whatever bytes come in, the decision is an answer or Refused; and whatever is asked of the real agent is a signature by the one key over "SSHSIG",
an allowed namespace, nothing reserved, and a digest of the right length, to the byte.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stockade.checks import signing
from stockade.checks.signing import Refused, Wish, decide
from stockade.core.ssh import PublicKey, read_key, string, strings

KEY = read_key("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHgxnFRcIn8gybcrpTDb5qX2VzOVZiDe9IYjCd8XsEQO")
OTHER = PublicKey(KEY.kind, KEY.blob[:-1] + bytes([KEY.blob[-1] ^ 1]))
RSA = PublicKey("ssh-rsa", b"".join(map(string, (b"ssh-rsa", b"\1\0\1", b"\0" + b"\xff" * 256))))
ECDSA = PublicKey("ecdsa-sha2-nistp256", b"".join(map(string, (b"ecdsa-sha2-nistp256", b"nistp256", b"\4" * 65))))
TOUCHED = PublicKey("sk-ssh-ed25519@openssh.com", b"".join(map(string, (b"sk-ssh-ed25519@openssh.com", b"k" * 32, b"ssh:"))))
GIT = ("git",)


def sshsig(
    namespace: bytes = b"git", reserved: bytes = b"", algorithm: bytes = b"sha512", digest: bytes = b"d" * 64, magic: bytes = b"SSHSIG"
) -> bytes:
    return magic + b"".join(map(string, (namespace, reserved, algorithm, digest)))


def asks(data: bytes, key: PublicKey = KEY, flags: int = 0) -> bytes:
    return b"\x0d" + string(key.blob) + string(data) + struct.pack(">I", flags)


def login(session: bytes = b"s" * 32) -> bytes:
    """What a client signs to log in (RFC 4252, section 7)."""
    parts = (b"root", b"ssh-connection", b"publickey")
    return string(session) + b"\x32" + b"".join(map(string, parts)) + b"\x01" + string(KEY.kind.encode()) + string(KEY.blob)


def why(message: bytes, key: PublicKey = KEY) -> str:
    with pytest.raises(Refused) as caught:
        decide(message, key, GIT)
    assert caught.value.detail.isascii() and len(caught.value.detail) <= 64
    return caught.value.reason


def test_a_commit_is_signed_and_the_key_is_listed() -> None:
    assert decide(asks(sshsig()), KEY, GIT) == Wish("git", "sha512", b"d" * 64)
    assert decide(asks(sshsig(algorithm=b"sha256", digest=b"d" * 32)), KEY, GIT) == Wish("git", "sha256", b"d" * 32)
    assert decide(asks(sshsig(b"file")), KEY, ("git", "file")) == Wish("file", "sha512", b"d" * 64)
    assert decide(b"\x0b", KEY, GIT) is None
    assert strings(signing.listing(KEY)[5:], 2) == [KEY.blob, b"stockade"]


@pytest.mark.parametrize("flags", [2, 4])
def test_rsa_says_which_hash(flags: int) -> None:
    assert decide(asks(sshsig(), RSA, flags), RSA, GIT) == Wish("git", "sha512", b"d" * 64, flags)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (asks(login()), "not-sshsig"),
        (asks(login(b"SSHSIG")), "not-sshsig"),
        (asks(b""), "not-sshsig"),
        (asks(b"SSHSI"), "not-sshsig"),
        (asks(sshsig(magic=b"sshsig")), "not-sshsig"),
        (asks(string(sshsig())), "not-sshsig"),
        (asks(b"SSHSIG"), "malformed"),
        (asks(sshsig(b"file")), "namespace"),
        (asks(sshsig(b"")), "namespace"),
        (asks(sshsig(b"git\0")), "namespace"),
        (asks(sshsig(b"GIT")), "namespace"),
        (asks(sshsig(b"git\xff")), "namespace"),
        (asks(sshsig(b"\x1b[2J" * 900)), "namespace"),
        (asks(sshsig(reserved=b"x")), "malformed"),
        (asks(sshsig(algorithm=b"sha1", digest=b"d" * 20)), "malformed"),
        (asks(sshsig(algorithm=b"md5", digest=b"d" * 16)), "malformed"),
        (asks(sshsig(algorithm=b"SHA512")), "malformed"),
        (asks(sshsig(digest=b"d" * 32)), "malformed"),
        (asks(sshsig(digest=b"")), "malformed"),
        (asks(sshsig() + b"\0"), "malformed"),
        (asks(sshsig()[:-1]), "malformed"),
        (asks(sshsig()) + b"\0", "malformed"),
        (asks(sshsig())[:-1], "malformed"),
        (asks(sshsig(), OTHER), "another-key"),
        (asks(sshsig(), RSA, 4), "another-key"),
        (asks(sshsig(), PublicKey("", b"")), "another-key"),
        (asks(sshsig(), flags=2), "flags"),
        (asks(sshsig(), flags=1 << 31), "flags"),
        (b"", "malformed"),
        (b"\x0b\0", "malformed"),
        (b"\x0d", "malformed"),
        (b"\x0d" + b"\xff" * 8, "malformed"),
        (b"\x0d" + bytes(8), "malformed"),
        (b"\x0d" + bytes(signing.LONGEST), "malformed"),
        (b"\x11" + string(b"ssh-ed25519"), "not-offered"),
        (b"\x12" + string(KEY.blob), "not-offered"),
        (b"\x13", "not-offered"),
        (b"\x16" + string(b"password"), "not-offered"),
        (b"\x19", "not-offered"),
        (b"\x1b" + string(b"session-bind@openssh.com"), "not-offered"),
        (b"\x01", "not-offered"),
        (b"\x0e" + string(b"x"), "not-offered"),
    ],
)  # fmt: skip
def test_refused(message: bytes, reason: str) -> None:
    assert why(message) == reason


@pytest.mark.parametrize("flags", [0, 1, 3, 6, 8])
def test_rsa_without_a_hash_of_its_own_is_refused(flags: int) -> None:
    """Flag 0 is SHA-1, which no verifier of SSHSIG takes."""
    assert why(asks(sshsig(), RSA, flags), RSA) == "flags"


def whole(data: bytes) -> tuple[bytes, bytes, int]:
    """What an agent understands of a request to sign, read by other means than ours."""
    assert data[0] == 13
    size = struct.unpack_from(">I", data, 1)[0]
    blob = data[5 : 5 + size]
    at = 5 + size
    length = struct.unpack_from(">I", data, at)[0]
    assert len(data) == at + 4 + length + 4
    return blob, data[at + 4 : at + 4 + length], struct.unpack(">I", data[-4:])[0]


PIECES = st.sampled_from([b"SSHSIG", b"git", b"file", b"", b"sha512", b"sha256", b"d" * 64, b"d" * 32, KEY.blob, RSA.blob, login()])
NEAR = st.builds(
    asks,
    st.builds(sshsig, *(PIECES | st.binary(max_size=70) for _ in range(4)), st.just(b"SSHSIG") | st.binary(max_size=6))
    | st.binary(max_size=200),
    st.sampled_from([KEY, OTHER, RSA]),
    st.sampled_from([0, 2, 4, 7]),
)
BENT = st.builds(
    lambda data, at, byte: data[: at % (len(data) + 1)] + byte + data[at % (len(data) + 1) + len(byte) :],
    NEAR,
    st.integers(0, 400),
    st.binary(max_size=3),
)


@given(st.binary(max_size=300) | NEAR | BENT | st.builds(bytes.__add__, NEAR, st.binary(max_size=3)), st.sampled_from([KEY, RSA]))
@example(asks(sshsig()), KEY)
@example(asks(sshsig(), RSA, 4), RSA)
def test_the_invariant(message: bytes, key: PublicKey) -> None:
    try:
        wish = decide(message, key, GIT)
    except Refused as no:
        assert no.reason and no.detail.isascii() and no.detail.isprintable() and len(no.detail) <= 64
        return
    if wish is None:
        assert message == b"\x0b"
        return
    blob, data, flags = whole(signing.request(wish, key))
    assert blob == key.blob and flags in ((2, 4) if key is RSA else (0,))
    assert data == message[5 + len(blob) + 4 : -4]  # a request that passes is asked for as it was: nothing of it is lost or changed
    assert data[:6] == b"SSHSIG" and data[6:13] == string(b"git") and data[13:17] == bytes(4)
    assert data[17:] in (string(b"sha256") + string(data[-32:]), string(b"sha512") + string(data[-64:]))


WISH, RSA_WISH = Wish("git", "sha512", b"d" * 64), Wish("git", "sha512", b"d" * 64, 4)


def signed(kind: bytes, value: bytes, rest: bytes = b"") -> bytes:
    return b"\x0e" + string(string(kind) + string(value) + rest)


NUMBERS = string(b"\0" + b"\x99" * 32) + string(b"\x11" * 31)


@pytest.mark.parametrize(
    ("key", "wish", "answer"),
    [
        (KEY, WISH, signed(b"ssh-ed25519", b"v" * 64)),
        (RSA, RSA_WISH, signed(b"rsa-sha2-512", b"v" * 256)),
        (ECDSA, WISH, signed(b"ecdsa-sha2-nistp256", NUMBERS)),
        (TOUCHED, WISH, signed(b"sk-ssh-ed25519@openssh.com", b"v" * 64, b"\1\0\0\0\7")),
    ],
)
def test_a_signature_of_the_real_agent_is_handed_on(key: PublicKey, wish: Wish, answer: bytes) -> None:
    assert signing.given(answer, wish, key) == answer


@pytest.mark.parametrize(
    ("key", "answer"),
    [
        (KEY, b"\x05"),
        (KEY, b"\x0e"),
        (KEY, b""),
        (KEY, signed(b"ssh-ed25519", b"v" * 63)),
        (KEY, signed(b"ssh-ed25519", b"v" * 64, b"x")),
        (KEY, signed(b"ssh-ed25519", b"v" * 64) + b"x"),
        (KEY, signed(b"ssh-rsa", b"v" * 64)),
        (KEY, b"\x0e" + string(b"-----BEGIN OPENSSH PRIVATE KEY-----")),
        (RSA, signed(b"ssh-rsa", b"v" * 256)),
        (RSA, signed(b"rsa-sha2-256", b"v" * 256)),
        (RSA, signed(b"rsa-sha2-512", b"v" * 2000)),
        (RSA, signed(b"rsa-sha2-512", b"")),
        (ECDSA, signed(b"ecdsa-sha2-nistp256", NUMBERS + b"x")),
        (ECDSA, signed(b"ecdsa-sha2-nistp256", string(b"r" * 90) + string(b"s"))),
        (TOUCHED, signed(b"sk-ssh-ed25519@openssh.com", b"v" * 64)),
    ],
)
def test_anything_else_of_the_real_agent_is_not(key: PublicKey, answer: bytes) -> None:
    with pytest.raises(ValueError):
        signing.given(answer, RSA_WISH if key is RSA else WISH, key)


@given(st.binary(max_size=200))
def test_garbage_of_the_real_agent(answer: bytes) -> None:
    for key in (KEY, RSA, ECDSA, TOUCHED):
        for read in (lambda: signing.given(answer, WISH, key), lambda: signing.holds(answer, key)):  # noqa: B023 - called in the same round
            try:
                assert read() is not True
            except ValueError:
                pass


def test_whether_the_real_agent_holds_the_key() -> None:
    both = b"\x0c\0\0\0\2" + b"".join(map(string, (OTHER.blob, b"other", KEY.blob, b"mine")))
    assert signing.holds(both, KEY) and signing.holds(both, OTHER) and not signing.holds(both, RSA)
    assert not signing.holds(b"\x0c\0\0\0\1" + string(OTHER.blob) + string(KEY.blob), KEY)  # a comment is no key
    assert not signing.holds(b"\x0c\0\0\0\0", KEY)
    for broken in (b"\x05", b"", b"\x0c", b"\x0c\xff\xff\xff\xff", both[:-1], both + b"x"):
        with pytest.raises(ValueError):
            signing.holds(broken, KEY)
