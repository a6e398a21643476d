"""Cases as files: a text with `# output` and its canonical form, or with the errors it must give.

An error line is `# error: LINE:COLUMN [code] "words of the headline or label"`; all errors of the
text must be listed, in their order (`# warning:` likewise).
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reshard.errors import Diagnostic, ReshardError
from reshard.language import format_document, parse
from reshard.language.check import check

CASES = sorted((Path(__file__).resolve().parents[1] / "cases").glob("*.ucl"))
_EXPECTED = re.compile(r'^# (error|warning): (\d+):(\d+) \[([a-z-]+)\] "(.*)"$', re.M)


def _diagnostics(text: str) -> tuple[Diagnostic, ...]:
    try:
        return check(parse(text))
    except ReshardError as error:
        return error.diagnostics


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_case(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    source, mark, output = text.partition("# output\n")
    expected = _EXPECTED.findall(text)
    assert bool(mark) != bool(expected), "a case has either an output or errors"
    if mark:
        document = parse(source)
        assert check(document) == ()
        assert format_document(document) == output
        assert parse(output) == document
        assert format_document(parse(output)) == output
        return
    found = _diagnostics(text)
    shown = [
        (item.level, str(item.primary.span.line), str(item.primary.span.column), item.code)
        for item in found
        if item.primary is not None
    ]
    assert shown == [line[:4] for line in expected]
    for item, line in zip(found, expected, strict=True):
        assert item.primary is not None
        assert line[4] in f"{item.headline}\n{item.primary.text}"
