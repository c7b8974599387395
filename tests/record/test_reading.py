"""Reading a log that grows, is replaced, vanishes or shrinks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stockade.core.errors import StockadeError, Tampered
from stockade.record.ledger import LOG
from stockade.record.lines import MAX_LINE
from stockade.record.reading import Reader, events


def test_lines_come_once_and_only_when_they_are_finished(tmp_path: Path) -> None:
    log, reader = tmp_path / LOG, Reader(str(tmp_path))
    assert list(reader.lines()) == [] and not reader.found
    log.write_bytes(b"one\ntwo\nthr")
    assert list(reader.lines()) == [b"one\n", b"two\n"] and reader.found
    assert list(reader.lines()) == []
    with log.open("ab") as file:
        file.write(b"ee\n")
    assert list(reader.lines()) == [b"three\n"]
    reader.close()
    reader.close()


def test_who_stops_in_the_middle_goes_on_there(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"one\ntwo\n")
    reader = Reader(str(tmp_path))
    assert next(reader.lines()) == b"one\n"
    assert list(reader.lines()) == [b"two\n"]
    reader.close()


def test_a_line_longer_than_any_entry_comes_in_pieces(tmp_path: Path) -> None:
    (tmp_path / LOG).write_bytes(b"x" * (3 * MAX_LINE) + b"\nend\n")
    reader = Reader(str(tmp_path))
    found = list(reader.lines())
    assert b"".join(found) == b"x" * (3 * MAX_LINE) + b"\nend\n" and max(map(len, found)) <= MAX_LINE + 2
    reader.close()


def test_another_log_in_its_place_follows(tmp_path: Path) -> None:
    log, reader = tmp_path / LOG, Reader(str(tmp_path))
    log.write_bytes(b"one\n")
    assert list(reader.lines()) == [b"one\n"]
    log.rename(tmp_path / "old")
    assert list(reader.lines()) == []
    log.write_bytes(b"new\n")
    assert list(reader.lines()) == [b"new\n"]
    (tmp_path / "next").write_bytes(b"a\nb\n")
    os.replace(tmp_path / "next", log)
    assert list(reader.lines()) == [b"a\n", b"b\n"]
    reader.close()


def test_a_log_that_shrank_or_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    log, reader = tmp_path / LOG, Reader(str(tmp_path))
    log.write_bytes(b"one\ntwo\n")
    assert len(list(reader.lines())) == 2
    os.truncate(log, 2)
    with pytest.raises(Tampered) as caught:
        list(reader.lines())
    assert caught.value.code == "ledger.truncated"
    reader.close()
    log.unlink()
    log.mkdir()
    with pytest.raises(StockadeError) as other:
        list(Reader(str(tmp_path)).lines())
    assert other.value.code == "ledger.unreadable"


def test_lines_that_are_no_event_of_a_session_are_left_out() -> None:
    lines = [
        b"\xff{one\n",
        b"[1]\n",
        b"[" * 100_000,
        b"{}\n",
        b'{"session":5}\n',
        b'{"session":"one"}\n',
        b'{"session":"two","of":"one"}\n',
    ]
    assert [session for session, _ in events(lines)] == ["one", "two"]
    assert list(events(lines, ["one"])) == [("one", {"session": "one"})]
