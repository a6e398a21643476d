"""A journal is read whatever is in it, and says only what was noted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.store.journal import Journal, Making, Record, read_journal

MAKING = Making("reshard 1", "universal", "digest", {"a": 3, "b/c": 5})
RECORDS = [Record(0, "one"), Record(7, "two")]


def written(path: Path) -> bytes:
    """A journal with all that there is."""
    journal = Journal.create(path, MAKING, RECORDS[:1])
    journal.add(RECORDS[1:], 5)
    journal.add_file("late")
    journal.commit(99)
    journal.close()
    return path.read_bytes()


def test_what_was_noted_is_read(tmp_path: Path) -> None:
    written(tmp_path / "journal")
    notes = read_journal(tmp_path / "journal")
    assert notes.making == MAKING
    assert notes.records == {0: RECORDS[0], 7: RECORDS[1]}
    assert notes.files == {"a", "b/c", "late"}
    assert (notes.committed, notes.fault) == (99, "")


def test_a_file_that_cannot_be_trusted_is_a_fault(tmp_path: Path) -> None:
    journal = Journal.create(tmp_path / "journal", MAKING, RECORDS)
    journal.void("b/c")
    journal.close()
    assert read_journal(tmp_path / "journal").fault == "`b/c` could not be flushed to disk"


@given(st.data())
def test_cut_anywhere_it_says_no_more_than_was_noted(tmp_path: Path, data: st.DataObject) -> None:
    whole = written(tmp_path / "journal")
    stop = data.draw(st.integers(0, len(whole)))
    (tmp_path / "journal").write_bytes(whole[:stop])
    notes = read_journal(tmp_path / "journal")
    assert set(notes.records.values()) <= set(RECORDS)
    assert notes.making in (None, MAKING)
    assert notes.fault == ("" if notes.making else "its journal cannot be read")


@given(st.data())
def test_a_changed_byte_is_seen(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(written(tmp_path / "journal"))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "journal").write_bytes(whole)
    notes = read_journal(tmp_path / "journal")
    assert set(notes.records.values()) <= set(RECORDS)
    assert notes.files <= {"a", "b/c", "late"}
    assert notes.committed in (None, 99)
    last = whole.rfind(b"\n", 0, -1)
    assert notes.fault or at > last


@given(st.binary(max_size=200))
def test_whatever_is_in_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal").write_bytes(content)
    notes = read_journal(tmp_path / "journal")
    assert (notes.making, notes.records) == (None, {})
    assert notes.fault


@pytest.mark.parametrize(
    "document",
    [
        {"done": [[1]]},
        {"done": [[-1, "x"]]},
        {"done": [["1", "x"]]},
        {"done": [[1, 2]]},
        {"done": [None]},
    ],
)
def test_a_record_that_makes_no_sense_is_a_fault(
    tmp_path: Path, document: dict[str, object]
) -> None:
    journal = Journal.create(tmp_path / "journal", MAKING, RECORDS)
    journal._add_surely(document)
    journal.close()
    notes = read_journal(tmp_path / "journal")
    assert notes.fault == "its journal contains an invalid record"
