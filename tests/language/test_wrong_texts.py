"""Each of many slips has one whole message, where the slip is, that says what to write."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from wrong_texts import EDITS, RIGHT, SHORT, SHORT_EDITS

from reshard import api
from reshard.errors import ReshardError, render_all

Golden = Callable[[str, str], None]
SAME = {
    "34-crlf": RIGHT.replace("\n", "\r\n"),
    "35-tabs": RIGHT.replace("    ", "\t"),
    "39-byte-order-mark": "\ufeff" + RIGHT,
}
MISSPELLED = RIGHT.replace("norm1[h]\n", "norm1[hh]\n")
OTHERS = {
    "36-crlf-and-an-error": MISSPELLED.replace("\n", "\r\n").encode(),
    "37-tabs-and-an-error": MISSPELLED.replace("    ", "\t").encode(),
    "41-latin-1-file": b"# caf\xe9\n" + RIGHT.encode(),
    "62-empty-file": b"",
    "63-rules-alone": b'"a.b" = [rows over tp, _]\n',
}


def edited(right: str, before: str, after: str) -> bytes:
    """A right text with one slip."""
    assert before in right
    return right.replace(before, after, 1).encode()


WRONG = {
    **{name: edited(RIGHT, before, after) for name, before, after in EDITS},
    **OTHERS,
    **{name: edited(SHORT, before, after) for name, before, after in SHORT_EDITS},
}


def message(folder: Path, text: bytes, monkeypatch: pytest.MonkeyPatch) -> str:
    """What `reshard layout check` says about a text; its warnings where it is correct."""
    monkeypatch.chdir(folder)
    Path("x.ucl").write_bytes(text)
    try:
        return render_all(api.check_layout("x.ucl").warnings)
    except ReshardError as error:
        return str(error)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_text(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    said = message(tmp_path, WRONG[name], monkeypatch)
    lines = said.splitlines()
    assert sum(line.startswith("error[") for line in lines) == (name not in MAY_BE_MEANT)
    golden(f"wrong-texts/{name}.txt", f"{said}\n")


def test_the_text_of_short_forms_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert message(tmp_path, SHORT.encode(), monkeypatch) == ""


@pytest.mark.parametrize("name", SAME)
def test_line_ends_tabs_and_a_mark_mean_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message(tmp_path, SAME[name].encode(), monkeypatch) == ""


MAY_BE_MEANT = (
    "07-axes-swapped",
    "69-unused-mesh-axis",
)
