"""The receipt of a run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stockade.core.errors import StockadeError
from stockade.core.values import Confinement, Enforced, Mount
from stockade.record.ledger import Receipt
from stockade.record.receipts import ReceiptFile, ended, started

ASKED = Confinement(mounts=(Mount("/a\udcff", "/a", "rw"),), environment=(("TOKEN", "s3cret"),))


def test_it_lists_what_was_asked_and_what_holds(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    first = started(
        session="s1",
        asked=ASKED,
        enforced=(Enforced("network none", "network namespace"),),
        versions={"kernel": "6"},
        start=Receipt(3, "ab"),
    )
    with ReceiptFile(str(path)) as file:
        file.write(first)
        assert json.loads(path.read_bytes())["ledger"] == {"start": {"index": 3, "digest": "ab"}}
        file.write(ended(first, end=Receipt(9, "cd"), exit_status=137, limits=("memory",), decisions={"deny": 2}, engine="envoy"))
    found = json.loads(path.read_bytes())
    assert found["enforced"] == [{"rule": "network none", "mechanism": "network namespace", "detail": ""}]
    assert found["asked"]["mounts"][0]["source"] == "/a\\udcff"
    assert found["ledger"]["end"] == {"index": 9, "digest": "cd"}
    assert (found["exit_status"], found["limits_hit"], found["decisions"], found["engine"]) == (137, ["memory"], {"deny": 2}, "envoy")
    assert found["asked"]["environment"] == ["TOKEN"]
    assert b"s3cret" not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["receipt.json"]


def test_a_symlink_is_replaced_not_followed(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "receipt.json"
    victim.write_text("mine")
    path.symlink_to(victim)
    with ReceiptFile(str(path)) as file:
        file.write({"receipt": 1})
    assert victim.read_text() == "mine"
    assert not path.is_symlink()


def test_a_directory_swapped_meanwhile_is_not_entered(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    with ReceiptFile(str(inside / "receipt.json")) as file:
        inside.rename(tmp_path / "moved")
        inside.symlink_to(outside)
        file.write({"receipt": 1})
    assert os.listdir(outside) == []
    assert os.listdir(tmp_path / "moved") == ["receipt.json"]


@pytest.mark.parametrize("name", ["", "absent/receipt.json"])
def test_where_nothing_can_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(StockadeError) as caught:
        ReceiptFile(str(tmp_path / name))
    assert caught.value.code == "receipt.unwritable"
