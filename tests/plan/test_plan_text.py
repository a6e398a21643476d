"""Numbers and tables for people."""

from __future__ import annotations

import pytest

from reshard.plan.text import facts, show_count, show_nbytes, table, wrap


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (12_400_000_000, "12.4 GB"),
        (7 * 10**15, "7.0 PB"),
    ],
)
def test_bytes(nbytes: int, text: str) -> None:
    assert show_nbytes(nbytes) == text


def test_counts() -> None:
    assert show_count(1, "file") == "1 file"
    assert show_count(12345, "file") == "12,345 files"


def test_a_table_never_cuts_a_name() -> None:
    rows = [("name", "size"), ("short", "1"), ("a.name.that.is.longer", "12")]
    assert table(rows, right="lr", width=40) == [
        "name                   size",
        "short                     1",
        "a.name.that.is.longer    12",
    ]
    assert table(rows, right="lr", width=16) == [
        "name        size",
        "short          1",
        "a.name.that.is.longer",
        "              12",
    ]


def test_facts_leave_out_what_is_empty() -> None:
    assert facts([("one", "1"), ("none", ""), ("three", "3\n4")]) == [
        "  one    1",
        "  three  3",
        "         4",
    ]


def test_wrapping_keeps_long_words() -> None:
    assert wrap("a bb cccccccc d", 4, indent=" ") == ["a bb", " cccccccc", " d"]
