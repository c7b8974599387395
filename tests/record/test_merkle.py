"""The tree against the vectors of RFC 6962's reference tests and against another implementation."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockade.record.merkle import Frontier, leaf_hash, node_hash

# The eight entries and roots of certificate-transparency's merkle_tree_test.
ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def test_the_roots_of_the_reference_tree() -> None:
    tree = Frontier()
    assert tree.root().hex() == EMPTY
    for entry, root in zip(ENTRIES, ROOTS, strict=True):
        tree.add(leaf_hash(bytes.fromhex(entry)))
        assert tree.root().hex() == root
        assert len(tree.hashes) == tree.size.bit_count()


def test_leaves_and_nodes_are_hashed_apart() -> None:
    left, right = leaf_hash(b"a"), leaf_hash(b"b")
    assert leaf_hash(left + right) != node_hash(left, right)


def test_a_copy_goes_its_own_way() -> None:
    tree = Frontier()
    tree.add(leaf_hash(b"a"))
    copy = tree.copy()
    copy.add(leaf_hash(b"b"))
    assert (tree.size, len(tree.hashes)) == (1, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=70))
def test_equals_another_implementation(entries: list[bytes]) -> None:
    pymerkle = pytest.importorskip("pymerkle")
    other, tree = pymerkle.InmemoryTree(algorithm="sha256"), Frontier()
    for entry in entries:
        other.append_entry(entry)
        tree.add(leaf_hash(entry))
    assert tree.root() == other.get_root()
