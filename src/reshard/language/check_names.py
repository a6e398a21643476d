"""Checks of names that only a checkpoint gives values to: those that are probably misspelled."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from difflib import get_close_matches

from reshard.language import tree
from reshard.language.expression import Expression, Variable, variables
from reshard.language.faults import Faults

_LONG = 8
"""Characters of a name from which on one that is nearly the same is not another one."""

_ALIKE = 0.9


def check_names(faults: Faults, document: tree.Document, vocabulary: Collection[str]) -> None:
    """Fault names that nearly are known ones, and tell of others that nobody knows.

    Args:  vocabulary: what configurations call sizes and facts; of dotted names the last part.
    """
    declared = {word for block in document.layouts for word in _declared(block)}
    shapes = {
        item.name.text
        for block in document.models
        for item in block.statements
        if isinstance(item, tree.AxisStatement)
    }
    unknown: dict[str, Variable] = {}
    blocks: list[tree.ModelBlock | tree.LayoutBlock] = [*document.models, *document.layouts]
    for block in blocks:
        mesh = _mesh(block) if isinstance(block, tree.LayoutBlock) else ()
        for expression in _expressions(block):
            for variable in variables(expression):
                name = variable.name
                last = name.rpartition(".")[2]
                if name in declared or name in shapes or name in mesh or last in vocabulary:
                    continue
                near = _meant(name, mesh, vocabulary)
                if near is None:
                    unknown.setdefault(name, variable)
                    continue
                faults.add(
                    "unknown-name",
                    f"nothing known is called `{name}`",
                    variable.span,
                    "no such name",
                    helps=[
                        f"did you mean `{near}`?",
                        "if the configuration does have this name, say so in the layout: "
                        f"`config {last} = {name}`",
                    ],
                    once=name,
                )
    new: list[Variable] = []
    for name, variable in unknown.items():
        close = get_close_matches(name.rpartition(".")[2], vocabulary, 1, 0.8)
        if close:
            _add_unknown(faults, (variable,), [f"did you mean `{close[0]}`?"])
        else:
            new.append(variable)
    if new:
        _add_unknown(faults, new, [])


def _add_unknown(faults: Faults, unknown: Sequence[Variable], helps: list[str]) -> None:
    """Warn of names that nobody knows, at the first of them."""
    first, count = unknown[0], len(unknown)
    headline = f"`{first.name}` is in no configuration that is known here"
    note = "it needs a value from the checkpoint's configuration or from `--set`"
    if count > 1:
        listed = ", ".join(f"`{item.name}`" for item in unknown)
        headline = f"{count} names are in no configuration that is known here: {listed}"
        note = "they need values from the checkpoint's configuration or from `--set`"
    faults.add(
        "unknown-name",
        headline,
        first.span,
        "the checkpoint must tell it",
        notes=[note],
        helps=helps,
        level="warning",
    )


def _meant(name: str, mesh: Collection[str], vocabulary: Collection[str]) -> str | None:
    """The name that was surely meant; None where it may be another one."""
    if len(name) <= 4:
        near = get_close_matches(name, mesh, 1, 0.75)
        return near[0] if near else None
    before, dot, last = name.rpartition(".")
    if len(last) < _LONG:
        return None
    near = [
        word
        for word in get_close_matches(last, vocabulary, 3, _ALIKE)
        if _stem(word) != _stem(last)
    ]
    return f"{before}{dot}{near[0]}" if near else None


def _stem(name: str) -> str:
    """A name without what frameworks differ in: numbers, the plural, and the word for a count."""
    return re.sub(r"(?<![A-Za-z])(?:n|nb|num)_", "", re.sub(r"\d+", "", name)).rstrip("s")


def _mesh(block: tree.LayoutBlock) -> tuple[str, ...]:
    return tuple(
        axis.name.text
        for item in block.statements
        if isinstance(item, tree.MeshStatement)
        for axis in item.axes
    )


def _declared(block: tree.LayoutBlock) -> Iterator[str]:
    for item in block.statements:
        if isinstance(item, tree.ConfigStatement):
            yield item.name.text
            if isinstance(item.value, Variable) and _is_same(item.name.text, item.value.name):
                yield item.value.name


def _is_same(name: str, spelled: str) -> bool:
    """Whether a line repeats a name on purpose: `config vision_patch = vision_config.patch`."""
    return spelled.endswith(name) or name.endswith(f"_{spelled.rpartition('.')[2]}")


def _expressions(block: tree.ModelBlock | tree.LayoutBlock) -> Iterator[Expression]:
    """Every expression of a block that a configuration gives values to."""
    if isinstance(block, tree.LayoutBlock) and block.when is not None:
        yield block.when
    for item in block.statements:
        if isinstance(item, tree.AxisStatement):
            yield from _some(item.size)
        elif isinstance(item, tree.ConfigStatement):
            yield item.value
        elif isinstance(item, tree.MeshStatement):
            for axis in item.axes:
                yield from _some(axis.size)
        elif isinstance(item, tree.PlaceStatement):
            yield from _some(item.placement.pad_to)
            yield from _some(item.placement.truncated_to)
        elif isinstance(item, tree.RuleStatement):
            yield from _some(item.when)
            for term in tree.axis_terms(item.dims):
                yield from _some(term.size)
        elif isinstance(item, (tree.TensorStatement, tree.OrderStatement)):
            yield from _some(item.when)


def _some(expression: Expression | None) -> Iterator[Expression]:
    if expression is not None:
        yield expression
