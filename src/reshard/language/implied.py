"""What a layout of a model need not spell out: axes of which another one is the product, and atoms
that the models which it is of do not have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction

from reshard.language import tree
from reshard.language.expression import Binary, Expression, Integer, Truth, Unary, Variable
from reshard.language.layout import Model

Monomial = tuple[Fraction, tuple[tuple[str, int], ...]]


def spelled_out(block: tree.LayoutBlock, model: Model) -> tree.LayoutBlock:
    """A layout with the axes of each atom in place of an axis that is their product: where `wq` has
    `two` and `half`, `wq[d]` is `wq[two half]` if `d` is of the size of both.
    """
    return replace(
        block,
        statements=tuple(
            replace(item, dims=_terms(item.dims, item.atom, model))
            if isinstance(item, tree.RuleStatement)
            else item
            for item in block.statements
        ),
    )


def _terms(
    terms: tuple[tree.TermTree, ...], atom: tree.Word | None, model: Model
) -> tuple[tree.TermTree, ...]:
    return tuple(_term(term, atom, model) for term in terms)


def _term(term: tree.TermTree, atom: tree.Word | None, model: Model) -> tree.TermTree:
    if isinstance(term, tree.SumTerm):
        return replace(
            term,
            parts=tuple(
                replace(part, term=_term(part.term, part.label, model)) for part in term.parts
            ),
        )
    if isinstance(term, tree.ProductTerm):
        factors: list[tree.TermTree] = []
        for item in _terms(term.factors, atom, model):
            factors += item.factors if isinstance(item, tree.ProductTerm) else (item,)
        return replace(term, factors=tuple(factors))
    names = () if atom is None else _factors(term.name.text, atom.text, model)
    if not names or term.size is not None or term.placement is not None:
        return term
    return tree.ProductTerm(
        tuple(replace(term, name=tree.Word(name, term.name.span)) for name in names), term.span
    )


def _factors(axis: str, atom: str, model: Model) -> tuple[str, ...]:
    """Neighbouring axes of an atom of which another axis of the model is the product."""
    if atom not in model.tensors or axis not in model.axes or axis in model.tensors[atom].axes:
        return ()
    axes, wanted = model.tensors[atom].axes, _size(axis, model)
    for begin in range(len(axes) - 1):
        product: Monomial | None = Fraction(1), ()
        for end in range(begin, len(axes)):
            product = _times(product, _size(axes[end], model), 1)
            if product is not None and product == wanted and end > begin:
                return axes[begin : end + 1]
    return ()


def _size(axis: str, model: Model) -> Monomial | None:
    declared = model.axes.get(axis)
    return None if declared is None or declared.size is None else _monomial(declared.size)


def _monomial(expression: Expression) -> Monomial | None:
    if isinstance(expression, Integer):
        return Fraction(expression.value), ()
    if isinstance(expression, Variable):
        return Fraction(1), ((expression.name, 1),)
    if isinstance(expression, Binary) and expression.operator in "*/":
        power = 1 if expression.operator == "*" else -1
        return _times(_monomial(expression.left), _monomial(expression.right), power)
    return None


def _times(one: Monomial | None, other: Monomial | None, power: int) -> Monomial | None:
    if one is None or other is None or (power < 0 and not other[0]):
        return None
    powers = Counter(dict(one[1]))
    for name, count in other[1]:
        powers[name] += power * count
    return one[0] * other[0] ** power, tuple(sorted((n, c) for n, c in powers.items() if c))


def implied(block: tree.LayoutBlock, model: Model) -> Mapping[str, Truth]:
    """The facts of models that a layout is of, where it has no rule for an atom that is there under
    a plain condition: without a rule for `bq ... when attention_bias`, `attention_bias` is false.
    """
    stored: set[str] = set()
    said: set[str] = set()
    for item in block.statements:
        if isinstance(item, tree.ConfigStatement):
            said.add(item.name.text)
        elif isinstance(item, tree.RuleStatement):
            stored.update([item.atom.text] if item.atom else ())
            sums = tree.sum_terms(item.dims)
            stored.update(part.label.text for x in sums for part in x.parts if part.label)
    out: dict[str, Truth] = {}
    for tensor in model.tensors.values():
        name, value = tensor.when, False
        if isinstance(name, Unary) and name.operator == "not":
            name, value = name.operand, True
        if tensor.name not in stored and isinstance(name, Variable) and name.name not in said:
            out.setdefault(name.name, Truth(value))
    return out
