"""The Merkle tree of RFC 9162 (section 2.1.1; the same tree as RFC 6962), kept as a frontier so that adding a leaf costs O(log n).

A leaf's hash is SHA-256(0x00 || entry), an inner node's SHA-256(0x01 || left || right), the empty tree's SHA-256 of nothing. HOT.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from hashlib import sha256 as sha256
else:
    try:
        from _sha2 import sha256  # hashlib loads OpenSSL: 4 ms on the start of every run
    except ImportError:  # another Python than CPython >= 3.12
        from hashlib import sha256

HASH_SIZE = 32


def leaf_hash(entry: bytes) -> bytes:
    """The 32-byte hash of one entry."""
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The 32-byte hash of an inner node over its two children's hashes."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The roots of the perfect subtrees that a tree of `size` leaves consists of, largest (leftmost) first.

    INVARIANT: len(hashes) == size.bit_count(): one perfect subtree for each bit set in `size`.
    """

    __slots__ = ("hashes", "size")

    def __init__(self, size: int = 0, hashes: list[bytes] | None = None) -> None:
        self.size = size
        self.hashes: list[bytes] = [] if hashes is None else hashes

    def add(self, leaf: bytes) -> None:
        """Append a leaf, given by its hash. As in binary addition, each trailing 1 of `size` is a subtree that now becomes complete."""
        size = self.size
        while size & 1:
            leaf = node_hash(self.hashes.pop(), leaf)
            size >>= 1
        self.hashes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The tree's 32-byte root hash."""
        if not self.hashes:
            return sha256(b"").digest()
        root = self.hashes[-1]
        for left in reversed(self.hashes[:-1]):
            root = node_hash(left, root)
        return root

    def copy(self) -> Frontier:
        """An independent frontier of the same tree."""
        return Frontier(self.size, list(self.hashes))
