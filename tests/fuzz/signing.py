"""INVARIANT: whatever is asked of the agent's socket inside, and whatever the real agent answers, is a wish within the rules, a signature of the right form, or
refused; and what goes to the real agent is what a reader that is not ours finds in the request (the laws of tests/checks/test_signing.py)."""

from __future__ import annotations

from checks import test_signing as tested
from stockade.checks import signing
from stockade.core.ssh import PublicKey, read_key, string

_ASKED, _RSA = tested.asks(tested.sshsig()), tested.asks(tested.sshsig(), tested.RSA, 4)
WORDS = (
    b"\x0b", b"\x0d", b"\x0e", b"\x0c", b"SSHSIG", string(b"git"), string(b"file"), string(b""), string(b"sha512"), string(b"sha256"), string(b"d" * 32),
    string(tested.KEY.blob), b"\0\0\0\0", b"\0\0\0\4", b"\xff\xff\xff\xff", b"ssh-ed25519 AAAA", b"ssh-rsa ", b"ssh-connection", b"\0", b"\x7f",
)  # fmt: skip
KEPT = {
    "the list of keys": b"\x0b",
    "a signature for git": _ASKED,
    "one with the key of another kind": _RSA,
    "another namespace": tested.asks(tested.sshsig(b"file")),
    "a login": tested.asks(tested.login()),
    "a digest that is shorter than its function's": tested.asks(tested.sshsig(digest=b"d" * 32)),
    "something behind it": _ASKED + b"\0",
    "a length beyond the end": _ASKED[:5] + b"\xff" * 4 + _ASKED[9:],
    "an answer of the real agent": tested.signed(b"ssh-ed25519", b"v" * 64),
    "a list of keys that claims more than it has": b"\x0c\xff\xff\xff\xff",
    "a key": str(tested.KEY).encode(),
    "half a key": str(tested.KEY).encode()[:-9],
}
FAULT = ("stockade.checks.signing._DIGESTS", {b"sha256": 32, b"sha512": 32})


def one(data: bytes) -> None:
    for key in (tested.KEY, tested.RSA):
        tested.test_the_invariant.hypothesis.inner_test(data, key)  # type: ignore[attr-defined]  # hypothesis keeps what it wraps there
    for key in (tested.KEY, tested.RSA, tested.ECDSA, tested.TOUCHED):
        _answered(data, key)
    try:
        key = read_key(data.decode("utf-8", "replace"))
    except ValueError as error:
        assert str(error).isprintable()
        return
    assert read_key(str(key)) == key and key.fingerprint.startswith("SHA256:")


def _answered(data: bytes, key: PublicKey) -> None:
    """What the real agent may say to a request, and to one for its list of keys."""
    try:
        handed = signing.given(data, tested.RSA_WISH if key is tested.RSA else tested.WISH, key)
        assert handed == data, "nothing is added to a signature or taken from it"
    except ValueError:
        pass
    try:
        assert not signing.holds(data, key) or string(key.blob) in data
    except ValueError:
        pass
