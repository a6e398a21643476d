"""Whole messages that no page of docs/errors shows."""

from __future__ import annotations

import pytest

from reshard.errors import ReshardError, render_all
from reshard.language import check, parse


def message(text: str) -> str:
    """What is said about a text."""
    try:
        return render_all(check(parse(text, "x.ucl")))
    except ReshardError as error:
        return str(error)


def test_what_is_missing_is_shown_where_it_is_missing() -> None:
    text = 'layout x {\n    mesh tp\n    "a" = [rows over tp\n\n    "b" = [...]\n}\n'
    assert message(text) == (
        "error[syntax]: expected an axis, `,`, `]`, `as`, `padded`, or `truncated` after `tp`, "
        'found `"b"`\n'
        " --> x.ucl:3:24\n"
        "  |\n"
        '3 |     "a" = [rows over tp\n'
        "  |                        ^ expected an axis, `,`, `]`, `as`, `padded`, or `truncated`\n"
        "  |"
    )


def test_the_end_of_the_text() -> None:
    assert message("layout x {\n    mesh tp = 2\n") == (
        "error[syntax]: expected an operator, `,`, a new statement, or `}` after `2`, "
        "found the end of the text\n"
        " --> x.ucl:2:16\n"
        "  |\n"
        "2 |     mesh tp = 2\n"
        "  |                ^ expected an operator, `,`, a new statement, or `}`\n"
        "  |"
    )


@pytest.mark.parametrize(
    ("text", "help_line"),
    [
        ("layout x { mesh tp; }", "statements need no separator; leave the `;` out"),
        ("// a layout\n", "a comment starts with `#`"),
        ("layout x { 'a' = [...] }", 'strings stand in double quotes: `"..."`'),
        ('layout x { "a" = [b + c] }', "a sum stands in parentheses: `(a + b)`"),
        (
            'layout x { "a" = [b c[d]] }',
            "parts of other atoms stand in parentheses: `(wq[q d] + wk[d])`",
        ),
    ],
)
def test_help_with_common_slips(text: str, help_line: str) -> None:
    assert message(text).splitlines()[-1] == f"  = help: {help_line}"


def test_a_model_with_two_faults_and_a_warning() -> None:
    text = (
        "model m {\n    axis h\n    tensor a [h, g]\n    tensor b [h]\n}\n"
        'layout x of m {\n    config hh = n\n    "a" = a[h, g]\n    "b" = b[h]\n    "c" = c[h]\n}\n'
    )
    assert message(text) == (
        "error[unknown-axis]: model `m` declares no axis `g`\n"
        " --> x.ucl:3:18\n"
        "  |\n"
        "3 |     tensor a [h, g]\n"
        "  |                  ^ no such axis\n"
        "  |\n"
        "  = help: declare it with `axis g`\n"
        "\n"
        "warning[unused-config]: nothing uses the size `hh`\n"
        " --> x.ucl:7:12\n"
        "  |\n"
        "7 |     config hh = n\n"
        "  |            ^^ no expression has this name\n"
        "  |\n"
        "\n"
        "error[unknown-atom]: model `m` has no tensor `c`\n"
        "  --> x.ucl:10:11\n"
        "   |\n"
        '10 |     "c" = c[h]\n'
        "   |           ^ no such atom\n"
        "   |\n"
        "  = help: declare it with `tensor c [...]`"
    )
