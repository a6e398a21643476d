"""A layout's text over whole, unpadded tensors."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import count

from reshard.language import tree
from reshard.language.expression import Integer
from reshard.language.layout import Layout
from reshard.plan.arrangement import Arrangement, Bound

Sizes = Mapping[str, int | None]
"""The logical size of each axis; None where tensors differ in it."""


def whole_layout(arrangement: Arrangement, names: Collection[str]) -> tree.Document:
    """A source's layout, for its tensors as they are when whole.

    Sizes of the mesh go, since there is one rank, and sizes of axes are written as numbers.  In a
    layout without a model, rules that nothing follows go, and conditions, since those that are
    left hold.

    Args:  names: the whole tensors that there are.
    """
    layout = arrangement.layout
    assert layout.document is not None, "it was compiled from a text"
    block = next(item for item in layout.document.layouts if item.name.text == layout.name)
    bounds = [bound for name, bound in arrangement.bound.items() if name in names]
    whole = replace(block, statements=tuple(_statements(block, layout, bounds)))
    model = None if layout.model is None else layout.model.block
    return tree.Document((whole,) if model is None else (model, whole))


def _statements(
    block: tree.LayoutBlock, layout: Layout, bounds: Collection[Bound]
) -> Iterator[tree.LayoutStatement]:
    everywhere = _sizes(bounds)
    by_rule: dict[int, list[Bound]] = {}
    for bound in bounds:
        by_rule.setdefault(bound.rule, []).append(bound)
    rules = count()
    for item in block.statements:
        if isinstance(item, tree.RuleStatement):
            index = next(rules)
            if layout.model is not None:
                yield item
            elif index in by_rule:
                anonymous = count()
                sizes = _sizes(by_rule[index])
                dims = tuple(_term(term, sizes, anonymous) for term in item.dims)
                yield replace(item, dims=dims, when=None, optional=False)
        elif isinstance(item, tree.MeshStatement):
            yield replace(item, axes=tuple(tree.MeshAxis(axis.name) for axis in item.axes))
        elif isinstance(item, tree.PlaceStatement):
            sizes_of = {everywhere.get(axis.text) for axis in item.axes}
            size = sizes_of.pop() if len(sizes_of) == 1 else None
            yield replace(item, placement=_placement(item.placement, size))
        elif isinstance(item, tree.ConfigStatement):
            yield item
    if layout.model is None and not next(rules):
        yield tree.RuleStatement(tree.Word("**"), None, (), rest=True)


def _sizes(bounds: Iterable[Bound]) -> Sizes:
    out: dict[str, int | None] = {}
    for bound in bounds:
        for axis, cut in bound.cuts.items():
            out[axis] = cut.size if out.get(axis, cut.size) == cut.size else None
    return out


def _term(term: tree.TermTree, sizes: Sizes, anonymous: Iterator[int]) -> tree.TermTree:
    if isinstance(term, tree.ProductTerm):
        return replace(term, factors=tuple(_term(item, sizes, anonymous) for item in term.factors))
    if isinstance(term, tree.SumTerm):
        return replace(
            term,
            parts=tuple(
                replace(part, term=_term(part.term, sizes, anonymous)) for part in term.parts
            ),
        )
    # Anonymous axes are counted as the compiler counts them.
    name = term.name.text if term.name.text != "_" else f"_{next(anonymous)}"
    size = sizes.get(name)
    placement = term.placement
    is_padded = placement is not None and placement.pad_to is not None
    if size is not None and (is_padded or term.size is not None):
        term = replace(term, size=Integer(size))
    return replace(term, placement=None if placement is None else _placement(placement, size))


def _placement(placement: tree.Placement, size: int | None) -> tree.Placement:
    if size is None or placement.truncated_to is None:
        return placement
    return replace(placement, truncated_to=Integer(size))
