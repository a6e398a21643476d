"""Checks of single statements that models and layouts share."""

from __future__ import annotations

from collections.abc import Iterable

from reshard.errors import ReshardError
from reshard.language import tree
from reshard.language.expression import Expression, evaluate, names, to_text
from reshard.language.faults import Faults


def check_twice(faults: Faults, kind: str, words: Iterable[tree.Word], where: str) -> None:
    """Fault names that are declared twice."""
    seen: dict[str, tree.Word] = {}
    for word in words:
        if word.text in seen:
            faults.add(
                "duplicate-name",
                f"{kind} `{word.text}` is declared twice in {where}",
                word.span,
                "declared again",
                beside=[(seen[word.text].span, "first declared here")],
                helps=["remove one of them, or give it another name"],
            )
        seen.setdefault(word.text, word)


def check_constant(
    faults: Faults,
    expression: Expression | None,
    what: str,
    wanted: type[int] | type[bool],
    least: int = 0,
) -> None:
    """Fault an expression without names whose value is wrong already."""
    if expression is None or names(expression):
        return
    try:
        value = evaluate(expression, {})
    except ReshardError as error:
        faults.take(error)
        return
    is_truth = isinstance(value, bool)
    if is_truth is not (wanted is bool) or not isinstance(value, int):
        faults.add(
            "wrong-type",
            f"{what} is `{to_text(expression)}`",
            expression.span,
            "not true or false" if wanted is bool else "not a whole number",
        )
    elif not is_truth and value < least:
        faults.add("axis-size", f"{what} is {value}", expression.span, f"less than {least}")
