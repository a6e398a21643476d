"""Whole messages that no page of docs/errors shows."""

from __future__ import annotations

import pytest

from reshard.errors import ReshardError, render_all
from reshard.language import parse
from reshard.language.check import check


def message(text: str) -> str:
    """What is said about a text."""
    try:
        return render_all(check(parse(text, "x.ucl")))
    except ReshardError as error:
        return str(error)


_TAILS = (
    "behind the brackets may stand `on first stage`, `optional`, `with bias`, `averaged over ...`, "
    "or `when ...`"
)
_COMPARED = (
    "a condition compares numbers: `layer == 3`, `layer >= 2`, `layer % 4 == 0`; join them with "
    "`and` and `or`"
)


def test_what_is_missing_is_shown_where_it_is_missing() -> None:
    text = 'layout x {\n    mesh tp\n    "a" = [rows over tp\n\n    "b" = [...]\n}\n'
    assert message(text) == (
        "error[syntax]: `[` is not closed\n"
        " --> x.ucl:3:24\n"
        "  |\n"
        '3 |     "a" = [rows over tp\n'
        "  |                        ^ expected `]`\n"
        "  |\n"
        "  = help: write `[rows over tp]`"
    )


def test_the_end_of_the_text() -> None:
    assert message("layout x {\n    mesh tp = 2\n") == (
        "error[syntax]: layout `x` is not closed\n"
        " --> x.ucl:2:16\n"
        "  |\n"
        "1 | layout x {\n"
        "  | -------- opened here\n"
        "2 |     mesh tp = 2\n"
        "  |                ^ expected `}`\n"
        "  |\n"
        "  = help: write `}` behind its last statement"
    )


def test_what_comes_too_early_is_shown_behind_what_it_cuts_short() -> None:
    assert message("model m {\n    axis a = 3 +\n}\nlayout x of m {}") == (
        "error[syntax]: expected an expression after `+`, found `}`\n"
        " --> x.ucl:2:17\n"
        "  |\n"
        "2 |     axis a = 3 +\n"
        "  |                 ^ expected an expression\n"
        "  |"
    )


@pytest.mark.parametrize(
    ("text", "help_line"),
    [
        ("layout x { mesh tp; }", "leave the `;` out"),
        ("// a layout\n", "a comment starts with `#`"),
        ("layout x { 'a' = [...] }", 'write `"a"`'),
        ('layout x { "a" = [b + c] }', "write `(b + c)`"),
        (
            'layout x { "a" = [b c[d]] }',
            "parts of other atoms stand in parentheses: `(wq[q d] + wk[d])`",
        ),
        ('layout x {\n"a" = [...] optinal }', "write `optional`"),
        ('layout x {\n"a" = [b over tp as chunks] }', "write `chunk`"),
        ('layout x {\n"a" -> [...] }', "write `=`"),
        ('layout x {\n"a" = [...] foo }', _TAILS),
        ('layout x\n"a" = [...]\n}', "write `layout x {`"),
        ('lyout x {\n"a" = [...]\n}', "did you mean `layout`?"),
        ("layout x {\n}\n}", "leave it out"),
        ('layout x {\nfile "a.pt" {\nstat param at "x"\n}\n}', "did you mean `state`?"),
        (
            "model m {\nmesh tp\n}",
            "statements of a model are `axis`, `tensor`, `let`, and `include`",
        ),
        ("axis h = 3", "write `model NAME { axis h = 3 }`"),
        ("model m { axis a : 3 }", "write `=`"),
        ("layout x when a | b {}", "write `or`"),
        ("layout x { config a = c ? b : d }", "write `a if condition else b`"),
        ('layout x when kind in ["a"] {}', _COMPARED),
    ],
)
def test_help_with_common_slips(text: str, help_line: str) -> None:
    assert message(text).splitlines()[-1] == f"  = help: {help_line}"


def test_several_faults_at_once() -> None:
    text = (
        "model m {\n    axis local = n\n    tenser a [h]\n\n"
        "layout x of m when kind = 3 {\n    mesh pp tp\n    'a' = a[h]\n"
        '    "b = b[h]\n    "c" = (c[h] + d[h]\n}\n'
    )
    assert [line for line in message(text).splitlines() if line.startswith("error")] == [
        "error[syntax]: `local` is a word of the language and cannot be a name",
        "error[syntax]: `tenser` starts no statement of a model",
        "error[syntax]: model `m` is not closed before this `layout`",
        "error[syntax]: `=` compares nothing",
        "error[syntax]: names are separated by commas",
        "error[syntax]: a string stands in double quotes",
        "error[syntax]: a string that is not closed",
        "error[syntax]: expected `[` or a name, found `(`",
    ]


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
