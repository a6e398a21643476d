"""Any tree can be written and read again; any text is read or refused with spans inside it."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import example, given
from hypothesis import strategies as st

from reshard.errors import Diagnostic, ReshardError
from reshard.language import (
    compile_layout,
    evaluate,
    format_document,
    parse,
    parser,
    to_text,
    tree,
)
from reshard.language import expression as ex
from reshard.language.check import check
from reshard.language.expression import COMPARISONS, PRECEDENCE
from reshard.language.parse_terms import RESERVED

LETTERS = "abcdefghijklmnopqrstuvwxyzABCZ"
names = st.one_of(
    st.sampled_from(["layer", "kv", "rows", "a", "first", "model", "to", "each", "stage", "tp"]),
    st.text(LETTERS, min_size=1, max_size=3).filter(lambda text: text not in RESERVED),
)
words = names.map(tree.Word)
some_words = st.lists(words, min_size=1, max_size=3).map(tuple)
paths = st.lists(names, min_size=1, max_size=3).map(".".join)
strings = st.text(st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=5)
integers = st.integers(0, 2**63 - 1)


def _grown(inner: st.SearchStrategy[ex.Expression]) -> st.SearchStrategy[ex.Expression]:
    return st.one_of(
        st.builds(ex.Unary, st.sampled_from(["-", "not"]), inner),
        st.builds(ex.Binary, st.sampled_from(sorted(PRECEDENCE)), inner, inner),
        st.builds(ex.Member, inner, paths.map(ex.Variable)),
        st.builds(ex.Item, paths.map(ex.Variable), inner),
        st.builds(ex.Conditional, inner, inner, inner),
    )


expressions = st.recursive(
    st.one_of(
        st.builds(ex.Integer, integers),
        st.builds(ex.Text, strings),
        st.builds(ex.Truth, st.booleans()),
        st.builds(ex.Variable, paths),
    ),
    _grown,
    max_leaves=8,
)
maybe_expressions = st.none() | expressions


@st.composite
def placements(draw: st.DrawFn, *, needs_over: bool = False) -> tree.Placement:
    over = draw(some_words) if needs_over or draw(st.booleans()) else ()
    rule = draw(st.sampled_from(["even", "chunk", "balanced", "sizes"])) if over else "even"
    sizes = tuple(draw(st.lists(integers, min_size=1, max_size=3))) if rule == "sizes" else ()
    pad_to = draw(maybe_expressions)
    truncated_to = draw(maybe_expressions if over or pad_to is not None else expressions)
    return tree.Placement(over, rule, sizes, pad_to, truncated_to)  # type: ignore[arg-type]


axis_terms = st.builds(
    tree.AxisTerm,
    words | st.just(tree.Word("_")),
    maybe_expressions,
    st.none() | placements(),
)


def _product(factors: list[tree.TermTree]) -> tree.TermTree:
    flat: list[tree.TermTree] = []
    for factor in factors:
        flat += factor.factors if isinstance(factor, tree.ProductTerm) else [factor]
    return flat[0] if len(flat) == 1 else tree.ProductTerm(tuple(flat))


def _sum(parts: list[tuple[tree.Word | None, tree.TermTree]]) -> tree.TermTree:
    flat: list[tree.SumPart] = []
    for label, term in parts:
        if label is None and isinstance(term, tree.SumTerm):
            flat += term.parts
        else:
            flat.append(tree.SumPart(label, term))
    return flat[0].term if len(flat) == 1 and flat[0].label is None else tree.SumTerm(tuple(flat))


terms: st.SearchStrategy[tree.TermTree] = st.recursive(
    axis_terms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(_product),
        st.lists(st.tuples(st.none() | words, inner), min_size=1, max_size=3).map(_sum),
    ),
    max_leaves=6,
)

comments = st.text(
    st.characters(exclude_characters="\n", exclude_categories=["Cs"]), max_size=6
).map(lambda text: f"#{text}".rstrip())


@st.composite
def comment_lines(draw: st.DrawFn, *, end_blank: bool = True) -> tuple[str, ...]:
    """Comment lines with single blank lines between them, and perhaps one behind."""
    out: list[str] = []
    for line in draw(st.lists(comments, max_size=2)):
        if out and draw(st.booleans()):
            out.append("")
        out.append(line)
    if out and end_blank and draw(st.booleans()):
        out.append("")
    return tuple(out)


def trivia(*, blanks: bool = True) -> st.SearchStrategy[tree.Trivia]:
    blank = st.booleans() if blanks else st.just(False)
    return st.builds(tree.Trivia, comment_lines(), st.none() | comments, blank)


patterns = st.sampled_from(
    [
        "a",
        "",
        "*.w",
        "**",
        "layers.{layer}.w",
        "{local e over (ep, tp) as (1, 2)}",
        r"\*\{\"\\",
        "{",
        "é#",
    ]
).map(tree.Word)


@st.composite
def uncut_tensors(draw: st.DrawFn) -> tree.TensorsStatement:
    axes = draw(some_words)
    named = st.lists(st.sampled_from(axes), min_size=1, max_size=3).map(
        lambda chosen: tuple(x.text for x in axes if x.text in {y.text for y in chosen})
    )
    when, bias = draw(maybe_expressions), draw(st.none() | st.builds(tree.Bias, words))
    return tree.TensorsStatement((draw(words),), axes, when, bias, draw(named), draw(trivia()))


model_statements = st.one_of(
    uncut_tensors(),
    st.builds(tree.AxisStatement, words, maybe_expressions, trivia()),
    st.builds(tree.TensorStatement, words, some_words | st.just(()), maybe_expressions, trivia()),
    st.builds(
        tree.TensorsStatement,
        st.lists(words, min_size=2, max_size=3).map(tuple),
        some_words | st.just(()),
        maybe_expressions,
        st.none(),
        st.just(()),
        trivia(),
    ),
    st.builds(
        tree.TensorsStatement,
        words.map(lambda word: (word,)),
        some_words | st.just(()),
        maybe_expressions,
        st.builds(tree.Bias, words, st.none() | some_words | st.just(()), maybe_expressions),
        st.just(()),
        trivia(),
    ),
    st.builds(tree.LetStatement, words, expressions, trivia()),
    st.builds(tree.TowerStatement, words, st.none() | words, trivia()),
)
rules = st.builds(
    tree.RuleStatement,
    patterns,
    st.none() | words,
    st.lists(terms, max_size=3).map(tuple),
    st.booleans(),
    st.sampled_from([None, "first", "last"]),
    some_words | st.just(()),
    st.booleans(),
    maybe_expressions,
    trivia(),
    bias=st.booleans(),
)


@st.composite
def under(draw: st.DrawFn, inner: st.SearchStrategy[tree.Statement]) -> tree.UnderStatement:
    inside = draw(st.lists(inner, max_size=2))
    closing = draw(comment_lines(end_blank=False))
    opening = draw(st.none() | comments)
    return tree.UnderStatement(draw(patterns), _first(inside), opening, closing, draw(trivia()))


unders = st.recursive(under(rules), under, max_leaves=2)
short_configs = st.one_of(
    st.builds(
        tree.ConfigsStatement,
        st.lists(words, min_size=2, max_size=3).map(tuple),
        maybe_expressions,
        trivia(),
    ),
    st.builds(tree.ConfigsStatement, words.map(lambda word: (word,)), st.none(), trivia()),
    st.builds(tree.UseStatement, some_words, trivia()),
)
layout_statements = st.one_of(
    st.builds(
        tree.MeshStatement,
        st.lists(st.builds(tree.MeshAxis, words, maybe_expressions), min_size=1, max_size=3).map(
            tuple
        ),
        trivia(),
    ),
    st.builds(tree.ConfigStatement, words, expressions, trivia()),
    st.builds(tree.PlaceStatement, some_words, placements(), trivia()),
    st.builds(
        tree.PartitionStatement,
        some_words,
        words,
        st.sampled_from(["buffer", "each", "balanced", "rows", "dtensor", "buckets"]),
        maybe_expressions,
        maybe_expressions,
        maybe_expressions,
        st.booleans(),
        trivia(),
    ),
    short_configs,
    st.builds(tree.FixStatement, words, expressions, trivia()),
    st.builds(tree.StackStatement, some_words, trivia()),
    st.builds(
        tree.IncludeStatement,
        paths.map(tree.Word),
        patterns,
        st.none() | words,
        st.none() | paths.map(tree.Word),
        trivia(),
    ),
    unders,
    rules,
)


@st.composite
def blocks(draw: st.DrawFn) -> tree.Block:
    name = draw(words)
    opening = draw(st.none() | comments)
    around = draw(trivia(blanks=False))
    closing = draw(comment_lines(end_blank=False))
    like = draw(st.none() | words)
    kind = draw(st.sampled_from(["model", "layout", "config"]))
    if kind == "model":
        inside = draw(st.lists(model_statements, max_size=4))
        return tree.ModelBlock(name, _first(inside), opening, closing, around, like=like)
    if kind == "config":
        inside = draw(
            st.lists(
                st.builds(tree.ConfigStatement, words, expressions, trivia()) | short_configs,
                max_size=3,
            )
        )
        return tree.SharedBlock(name, _first(inside), opening, closing, around)
    lines = draw(st.lists(layout_statements, max_size=4))
    if lines and closing and draw(st.booleans()):
        closing = ("", *closing)
    model = draw(st.none() | words)
    when = draw(maybe_expressions)
    whole = like is not None and draw(st.booleans())
    return tree.LayoutBlock(
        name, model, _first(lines), opening, closing, around, when=when, like=like, whole=whole
    )


def _first(statements: list) -> tuple:  # type: ignore[type-arg]
    """Statements, the first one without a blank line before it."""
    return tuple(
        replace(item, trivia=replace(item.trivia, blank=item.trivia.blank and place > 0))
        for place, item in enumerate(statements)
    )


documents = st.builds(
    tree.Document, st.lists(blocks(), max_size=3).map(tuple), comment_lines(end_blank=False)
)


@given(documents)
def test_written_trees_read_back(document: tree.Document) -> None:
    text = format_document(document)
    again = parser.parse(text)
    assert again == document
    assert format_document(again) == text


@given(expressions)
def test_written_expressions_read_back(expression: ex.Expression) -> None:
    statement = parse(f"layout x {{ config a = {to_text(expression)} }}").layouts[0].statements[0]
    assert isinstance(statement, tree.ConfigStatement)
    assert statement.value == expression


values = st.none() | st.booleans() | st.integers() | st.floats() | strings


@given(
    expressions,
    st.dictionaries(paths, values | st.lists(values, max_size=3)),
)
def test_expressions_have_a_value_or_a_reason(
    expression: ex.Expression, env: dict[str, object]
) -> None:
    try:
        value = evaluate(expression, env)
    except ReshardError as error:
        codes = {item.code for item in error.diagnostics}
        assert codes <= {"unknown-name", "wrong-type", "inexact-division", "no-such-item"}
        return
    assert isinstance(value, (int, str, float))
    if isinstance(expression, ex.Binary) and expression.operator in COMPARISONS:
        assert isinstance(value, bool)


PIECES = [
    *[
        "model",
        "layout",
        "of",
        "mesh",
        "config",
        "place",
        "over",
        "as",
        "chunk",
        "balanced",
        "padded",
        "to",
        "a",
        "multiple",
        "truncated",
    ],
    *[
        "partition",
        "buffer",
        "each",
        "rows",
        "align",
        "averaged",
        "on",
        "first",
        "last",
        "stage",
        "optional",
        "when",
        "or",
        "and",
        "not",
    ],
    *["axis", "tensor", "true", "false", "local", "x", "y", "tp", "pp", "1", "2", "12"],
    *["layout k of m like l {", 'under "u." {'],
    *["in", "if", "else", "x[1]"],
    *["like", "whole", "use", "fix", "stack", "under", "include", "from", "let", "with", "bias"],
    *["{", "}", "[", "]", "(", ")", ",", ":", "=", "...", "_", "+", "-", "*", "/", "%", "==", "<"],
    *[
        '"a"',
        '"b.{i}"',
        '"{local e over tp}"',
        '"**"',
        '"',
        "#",
        "# c\n",
        "\n",
        " ",
        "\t",
        "\\",
        "é",
    ],
    *[
        "model m { axis x tensor t [x] }",
        "layout l of m {",
        "layout l {",
        "layout k of m like l {",
        'under "u." {',
        '"a" = [',
        '"b" = t[x]',
    ],
]


def _inside(diagnostics: tuple[Diagnostic, ...], text: str) -> None:
    for item in diagnostics:
        assert item.primary is not None
        for label in (item.primary, *item.secondary):
            span = label.span
            assert span.source.text == text
            assert 0 <= span.start <= span.end <= len(text)
            assert text.count("\n", 0, span.start) + 1 == span.line
            assert span.start - (text.rfind("\n", 0, span.start) + 1) + 1 == span.column
        assert item.render()


def _read(text: str) -> None:
    try:
        written = parser.parse(text)
        document = parse(text)
    except ReshardError as error:
        _inside(error.diagnostics, text)
        return
    found = check(document)
    _inside(found, text)
    again = format_document(document)
    assert parse(again) == document
    codes = [item.code for item in check(parse(again))], [item.code for item in found]
    if written == document:
        assert codes[0] == codes[1]
    else:  # a fault of an inherited rule is told once
        assert {*codes[0]} == {*codes[1]}
    if not any(item.level == "error" for item in found):
        for block in document.layouts:
            compile_layout(document, block.name.text)


@given(st.lists(st.sampled_from(PIECES), max_size=25).map(" ".join))
@example("layout x { " + '"a" = [' + "(" * 3000 + "b" + ")" * 3000 + "] }")
@example("layout x { config a = " + "-" * 3000 + "1 }")
@example("layout x { config a = " + "(" * 3000 + "1" + ")" * 3000 + " }")
@example("layout x { config a = 1" + " + 1" * 3000 + " }")
@example("layout x { mesh a = " + "9" * 6000 + " }")
@example('\ufefflayout x {\r\n"a" = [b]\r\n\r\n# c\r\n}')
@example("layout x { # {\n }")
@example("layout x # {\n { }")
@example('model m { tensor t [] } layout l of m { "a.{i" = t[] }')
def test_token_soup_is_read_or_refused(text: str) -> None:
    _read(text)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    _read(text)


@given(documents, st.data())
def test_damaged_texts_are_read_or_refused(document: tree.Document, data: st.DataObject) -> None:
    text = format_document(document)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 5)))
    _read(text[:start] + data.draw(st.sampled_from(["", *PIECES])) + text[end:])
