"""Rules changed as a whole: with a bias, without a mesh, stacked, under other names."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TypeVar

from reshard.language import tree
from reshard.language.conditions import conjunction
from reshard.language.expression import Expression, Value, Variable, names
from reshard.language.joined import replaced
from reshard.language.substitute import renamed, with_values

Rename = Callable[[str], str]
Statement = TypeVar("Statement", bound=tree.LayoutStatement)

_SLOT = re.compile(
    r"(?<!\\)\{\s*(?P<local>local\s+)?(?P<axis>[A-Za-z]\w*)"
    r"(?:\s*\+\s*(?P<plus>[A-Za-z]\w*))?(?P<how>[^{}]*)\}"
)


def atoms(rule: tree.RuleStatement) -> tuple[tree.Word, ...]:
    """The atoms that a rule names; none in a layout without a model."""
    if rule.atom is not None:
        return (rule.atom,)
    sums = tree.sum_terms(rule.dims)
    return tuple(part.label for term in sums for part in term.parts if part.label is not None)


def simplified(rule: tree.RuleStatement, values: Mapping[str, Value]) -> tree.RuleStatement:
    """A rule whose condition has the values of some names in their place."""
    if rule.when is None or not {*names(rule.when)} & values.keys():
        return rule
    return replace(rule, when=with_values(rule.when, values))


# ---- bias ----------------------------------------------------------------------------------------


def bias_name(pattern: tree.Word) -> tree.Word | None:
    """The name of the bias beside that of a weight; None where it is not called so."""
    last = pattern.text.rfind(".") + 1
    at = pattern.text.rfind("weight", last)
    return None if at < 0 else replaced(pattern, at, at + len("weight"), "bias")


def bias_of(
    rule: tree.RuleStatement,
    name: tree.Word,
    biases: Mapping[str, str],
    axes: Mapping[str, Collection[str]],
) -> tree.RuleStatement:
    """The rule of the biases of what a rule stores: without the dimensions that they do not have.

    Args:  biases: by atom.  axes: of every atom.
    """
    lost = {
        axis for word in atoms(rule) for axis in {*axes[word.text]} - {*axes[biases[word.text]]}
    }

    def is_left(term: tree.TermTree) -> bool:
        used = {item.name.text for item in tree.axis_terms((term,))}
        return not used or not used <= lost

    def of_bias(word: tree.Word) -> tree.Word:
        return tree.Word(biases[word.text], rule.bias_span)

    return replace(
        rule,
        pattern=name,
        atom=None if rule.atom is None else of_bias(rule.atom),
        dims=tuple(_with_words(item, of_bias) for item in rule.dims if is_left(item)),
        bias=False,
        trivia=tree.NO_TRIVIA,
    )


# ---- whole ---------------------------------------------------------------------------------------


def without_mesh(statements: Collection[tree.LayoutStatement]) -> list[tree.LayoutStatement]:
    """The statements of a layout as they are of whole tensors: on one rank of every axis."""
    mesh = {
        axis.name.text: 1
        for item in statements
        if isinstance(item, tree.MeshStatement)
        for axis in item.axes
    }
    has_files = any(isinstance(item, tree.FileStatement) for item in statements)
    out: list[tree.LayoutStatement] = []
    for item in statements:
        if isinstance(item, tree.MeshStatement | tree.PartitionStatement):
            continue
        if isinstance(item, tree.OrderStatement) and not has_files:
            continue  # the writer of ranks' files obeys it
        if isinstance(item, tree.PlaceStatement):
            placement = _uncut(item.placement, mesh)
            if placement is not None:
                out.append(replace(item, placement=placement))
        elif isinstance(item, tree.RuleStatement):
            rule = simplified(_whole(item, mesh), mesh)
            out.append(rule)
        else:
            out.append(item)
    return out


def _whole(rule: tree.RuleStatement, mesh: Collection[str]) -> tree.RuleStatement:
    def term(item: tree.TermTree) -> tree.TermTree:
        if isinstance(item, tree.ProductTerm):
            return replace(item, factors=tuple(map(term, item.factors)))
        if isinstance(item, tree.SumTerm):
            return replace(
                item, parts=tuple(replace(part, term=term(part.term)) for part in item.parts)
            )
        placement = None if item.placement is None else _uncut(item.placement, mesh)
        return replace(item, placement=placement)

    pattern = rule.pattern
    for found in reversed(list(_SLOT.finditer(pattern.text))):
        if found["local"] or found["how"].strip():
            pattern = replaced(pattern, *found.span(), f"{{{found['axis']}}}")
    return replace(
        rule,
        pattern=pattern,
        dims=tuple(map(term, rule.dims)),
        stage=None,
        stage_span=None,
        averaged_over=(),
    )


def _uncut(placement: tree.Placement, mesh: Collection[str]) -> tree.Placement | None:
    """Padding that does not depend on the mesh; None for none."""

    def is_of_mesh(expression: Expression | None) -> bool:
        return expression is not None and bool({*names(expression)} & {*mesh})

    pad_to = None if is_of_mesh(placement.pad_to) else placement.pad_to
    truncated_to = None if is_of_mesh(placement.truncated_to) else placement.truncated_to
    if pad_to is None and truncated_to is None:
        return None
    return tree.Placement((), "even", (), pad_to, truncated_to, placement.span)


# ---- stack ---------------------------------------------------------------------------------------


def stacked(rule: tree.RuleStatement, axis: tree.Word) -> tree.RuleStatement:
    """A rule whose tensors of all indices of an axis are one, along its first dimension; the rule
    itself where its name has no such index.
    """
    for found in _SLOT.finditer(rule.pattern.text):
        if found["axis"] != axis.text:
            continue
        start, end = found.span()
        text = rule.pattern.text
        if text[end : end + 1] == ".":
            end += 1
        elif text[start - 1 : start] == ".":
            start -= 1
        term = tree.AxisTerm(axis, None, None, axis.span)
        return replace(rule, pattern=replaced(rule.pattern, start, end), dims=(term, *rule.dims))
    return rule


# ---- axes that are whole -------------------------------------------------------------------------


def with_uncut(
    rule: tree.RuleStatement, uncut: Mapping[str, tuple[str, ...]], name: Rename
) -> tree.RuleStatement:
    """A rule in which the axes that its atoms have whole are called so.

    Args:  uncut: by atom.  name: what such an axis is called.
    """
    stored = [word.text for word in atoms(rule)]
    if not any(atom in uncut for atom in stored):
        return rule
    shared = set.intersection(*({*uncut.get(atom, ())} for atom in stored))

    def term(item: tree.TermTree, whole: Collection[str]) -> tree.TermTree:
        if isinstance(item, tree.ProductTerm):
            return replace(item, factors=tuple(term(factor, whole) for factor in item.factors))
        if isinstance(item, tree.SumTerm):
            return replace(
                item,
                parts=tuple(
                    replace(part, term=term(part.term, uncut.get(part.label.text, ())))
                    if part.label is not None
                    else part
                    for part in item.parts
                ),
            )
        axis = item.name.text
        return replace(item, name=replace(item.name, text=name(axis))) if axis in whole else item

    pattern = rule.pattern
    for found in reversed(list(_SLOT.finditer(pattern.text))):
        if found["axis"] in shared:
            pattern = replaced(pattern, *found.span("axis"), name(found["axis"]))
    dims = tuple(term(item, shared) for item in rule.dims)
    return replace(rule, pattern=pattern, dims=dims)


# ---- ties ----------------------------------------------------------------------------------------


def tied(statements: Collection[tree.LayoutStatement]) -> list[tree.LayoutStatement]:
    """Statements with rules in place of each tie: the same atom, under its other name too."""
    out: list[tree.LayoutStatement] = []
    out += (item for item in statements if not isinstance(item, tree.TieStatement))
    rules = [item for item in statements if isinstance(item, tree.RuleStatement)]
    for tie in statements:
        if isinstance(tie, tree.TieStatement):
            out += (
                replace(
                    rule,
                    pattern=tie.alias,
                    optional=True,
                    when=conjunction([rule.when, tie.when]),
                    trivia=tree.NO_TRIVIA,
                    span=tie.span,
                )
                for rule in rules
                if rule.pattern.text == tie.name.text
            )
    return out


def _with_words(
    item: tree.TermTree,
    label: Callable[[tree.Word], tree.Word],
    axis: Callable[[tree.Word], tree.Word] = lambda name: name,
) -> tree.TermTree:
    """A term whose parts have other labels, and whose axes other names."""
    if isinstance(item, tree.ProductTerm):
        factors = tuple(_with_words(factor, label, axis) for factor in item.factors)
        return replace(item, factors=factors)
    if isinstance(item, tree.SumTerm):
        return replace(
            item,
            parts=tuple(
                replace(
                    part,
                    label=part.label and label(part.label),
                    term=_with_words(part.term, label, axis),
                )
                for part in item.parts
            ),
        )
    return replace(item, name=axis(item.name))


# ---- other names ---------------------------------------------------------------------------------


def with_names(item: Statement, rename: Rename) -> Statement:
    """A statement whose axes, atoms, and sizes have other names."""

    def word(name: tree.Word) -> tree.Word:
        return replace(name, text=rename(name.text))

    def term(item: tree.TermTree) -> tree.TermTree:
        return _with_words(item, word, word)

    changed: tree.LayoutStatement = with_variables(item, rename)
    if isinstance(changed, tree.PlaceStatement):
        changed = replace(changed, axes=tuple(map(word, changed.axes)))
    elif isinstance(changed, tree.RuleStatement):
        pattern = changed.pattern
        for found in reversed(list(_SLOT.finditer(pattern.text))):
            if found["plus"]:
                pattern = replaced(pattern, *found.span("plus"), rename(found["plus"]))
            pattern = replaced(pattern, *found.span("axis"), rename(found["axis"]))
        changed = replace(
            changed,
            pattern=pattern,
            atom=changed.atom and word(changed.atom),
            dims=tuple(map(term, changed.dims)),
        )
    return changed  # type: ignore[return-value]


def with_variables(item: Statement, rename: Rename) -> Statement:
    """A statement whose expressions have other names."""
    return with_expressions(
        item, lambda expression: renamed(expression, lambda x: Variable(rename(x.name), x.span))
    )


def with_expressions(item: Statement, change: Callable[[Expression], Expression]) -> Statement:
    """A statement with all of its expressions changed."""

    def maybe(expression: Expression | None) -> Expression | None:
        return None if expression is None else change(expression)

    changed: tree.LayoutStatement = item
    if isinstance(changed, tree.RuleStatement | tree.OrderStatement):
        changed = replace(changed, when=maybe(changed.when))
    elif isinstance(changed, tree.ConfigStatement):
        changed = replace(changed, value=change(changed.value))
    elif isinstance(changed, tree.PartitionStatement):
        changed = replace(
            changed,
            align=maybe(changed.align),
            size=maybe(changed.size),
            starts=maybe(changed.starts),
        )
    elif isinstance(changed, tree.PlaceStatement):
        placement = changed.placement
        changed = replace(
            changed,
            placement=replace(
                placement,
                pad_to=maybe(placement.pad_to),
                truncated_to=maybe(placement.truncated_to),
            ),
        )
    elif isinstance(changed, tree.MeshStatement):
        axes = tuple(replace(axis, size=maybe(axis.size)) for axis in changed.axes)
        changed = replace(changed, axes=axes)
    return changed  # type: ignore[return-value]
