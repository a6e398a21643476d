"""Expressions: values, precedence, exact division, and what is said when there is no value."""

from __future__ import annotations

import pytest

from reshard.errors import ReshardError
from reshard.language import evaluate, names, parse, to_text
from reshard.language.expression import Expression
from reshard.language.tree import ConfigStatement

ENV: dict[str, object] = {
    "args": {"num_layers": 32, "groups": None, "swiglu": True, "deep": {"er": 7}},
    "args.flat": 3,
    "tp": 4,
    "kind": "rope",
    "theta": 10000.5,
    "shape": [1, 2],
    "no": False,
    "zero": 0,
}


def expression(text: str) -> Expression:
    statement = parse(f"layout x {{ config value = {text} }}", "x.ucl").layouts[0].statements[0]
    assert isinstance(statement, ConfigStatement)
    return statement.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("10 - 4 - 3", 3),
        ("-2 * -3", 6),
        ("12 / 4 / 3", 1),
        ("7 % 4", 3),
        ("128 * tp", 512),
        ("args.num_layers / tp", 8),
        ("args.deep.er + args.flat", 10),
        ("tp > 1", True),
        ("tp <= 3 or tp >= 4", True),
        ("not tp == 4", False),
        ("not no and args.swiglu", True),
        ("no and unknown", False),
        ('kind == "rope"', True),
        ('kind != "a\\"b"', True),
        ("true", True),
        ("unknown or tp", 4),
        ("2 in shape", True),
        ("tp in shape", False),
        ("tp not in shape", True),
        ("not tp in shape", True),
        ("tp - 2 in shape and tp > 1", True),
        ("shape[1]", 2),
        ("shape[tp - 4] + 1", 2),
        ('tp if kind == "rope" else unknown', 4),
        ("1 if no else 2 if not no else 3", 2),
        ("unknown if no else shape[0]", 1),
        ("args.groups or args.num_layers", 32),
        ("zero or 5", 0),
        ("no or 5", 5),
        ("unknown.name or args.groups or 6", 6),
        ("args.groups + 1 or 2", 2),
    ],
)
def test_value(text: str, value: object) -> None:
    found = evaluate(expression(text), ENV)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "code", "label"),
    [
        ("tp + unknown", "unknown-name", "no such name"),
        ("args.groups", "unknown-name", "no such name"),
        ("args.num_layer", "unknown-name", "no such name"),
        ("args.num_layers.x", "unknown-name", "no such name"),
        ("10 / tp", "inexact-division", "10 / 4 leaves remainder 2"),
        ("tp / zero", "inexact-division", "4 / 0"),
        ("tp % 0", "inexact-division", "4 % 0"),
        ("10 / tp or 3", "inexact-division", "10 / 4 leaves remainder 2"),
        ("theta + 1", "wrong-type", "this is 10000.5"),
        ("shape", "wrong-type", "this is a list"),
        ("args", "wrong-type", "this is a group of values"),
        ("kind * 2", "wrong-type", 'this is the string "rope"'),
        ("true + 1", "wrong-type", "this is true"),
        ("not tp", "wrong-type", "this is 4"),
        ("tp and true", "wrong-type", "this is 4"),
        ("tp == true", "wrong-type", "these are never equal"),
        ('kind < "s"', "wrong-type", 'this is the string "rope"'),
        ("-no", "wrong-type", "this is false"),
        ("1 in kind", "wrong-type", 'this is the string "rope"'),
        ("1 in unknown", "unknown-name", "no such name"),
        ("unknown[0]", "unknown-name", "no such name"),
        ("kind[0]", "wrong-type", 'this is the string "rope"'),
        ("shape[no]", "wrong-type", "this is false"),
        ("shape[-1]", "no-such-item", "no such item"),
        ("1 if tp else 2", "wrong-type", "this is 4"),
    ],
)
def test_no_value(text: str, code: str, label: str) -> None:
    with pytest.raises(ReshardError) as caught:
        evaluate(expression(text), ENV)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == code
    assert diagnostic.primary is not None
    assert diagnostic.primary.text == label


def test_unknown_name_in_full() -> None:
    with pytest.raises(ReshardError) as caught:
        evaluate(expression("args.num_layer + 1"), ENV)
    assert str(caught.value) == (
        "error[unknown-name]: `args.num_layer` has no value\n"
        " --> x.ucl:1:27\n"
        "  |\n"
        "1 | layout x { config value = args.num_layer + 1 }\n"
        "  |                           ^^^^^^^^^^^^^^ no such name\n"
        "  |\n"
        "  = note: it is in neither the checkpoint's configuration nor the command line\n"
        "  = help: did you mean `args.num_layers`?"
    )


def test_no_such_item_in_full() -> None:
    with pytest.raises(ReshardError) as caught:
        evaluate(expression("shape[tp]"), ENV)
    assert str(caught.value) == (
        "error[no-such-item]: `shape[tp]` is item 4 of a list of 2\n"
        " --> x.ucl:1:27\n"
        "  |\n"
        "1 | layout x { config value = shape[tp] }\n"
        "  |                           ^^^^^^^^^ no such item\n"
        "  |\n"
        "  = note: items are counted from 0"
    )


def test_names() -> None:
    assert names(expression("a.b + c * -(a.b or not d)")) == ("a.b", "c", "d")


@pytest.mark.parametrize(
    "text",
    [
        "a - (b - c)",
        "a / (b * c) * d",
        "(a or b) and c",
        "a or b and c",
        "not (a or b)",
        "(not a) == b",
        "(a < b) == (c < d)",
        "-(a + b)",
        "--a",
        "(not a) + b",
        '"\\\\ \\""',
        "a in b",
        "(a in b) == c",
        "not a in b.c",
        "a[b + c.d[e]] * 2",
        "a if b else c if d else e",
        "(a if b else c) if d or e else f",
        "(a if b else c) + 1",
        "a if (b if c else d) else e",
    ],
)
def test_canonical_text_keeps_the_tree(text: str) -> None:
    tree = expression(text)
    assert expression(to_text(tree)) == tree
    assert to_text(tree) == text
