"""From a checked tree to the values that the planner reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import count
from types import MappingProxyType

from reshard.algebra.term import Leaf, Part, Product, Sum, Term
from reshard.errors import Diagnostic, Exit, Label, ReshardError
from reshard.language import tree
from reshard.language.conditions import conjunction
from reshard.language.expression import Expression
from reshard.language.implied import implied, spelled_out
from reshard.language.layout import (
    Axis,
    Entry,
    FileRule,
    Layout,
    LeftOut,
    Model,
    ModelTensor,
    ParameterOrder,
    PartitionRule,
    Rule,
    Split,
    Tie,
)
from reshard.language.models import NO_MODELS, compile_model
from reshard.language.pattern import NamePattern, unescaped
from reshard.language.place import FileName, Place
from reshard.language.words import listed


def compile_layout(
    document: tree.Document,
    name: str | None = None,
    *,
    models: Mapping[str, Model] = NO_MODELS,
    is_checked: bool = False,
) -> Layout:
    """One layout of a document, checked.

    Args:  name: which one; None for the only one.  models: those that the document may refer to
           without declaring them; its own come first.
           is_checked: the text ships, and the tests have checked it.
    Raises: unknown-layout, and everything that `check` finds wrong.
    """
    if not is_checked:
        _raise_faults(document, models)
    return _modelled(document, _chosen(document, name), models)


def compile_layouts(
    document: tree.Document,
    *,
    models: Mapping[str, Model] = NO_MODELS,
    is_checked: bool = False,
) -> dict[str, Layout]:
    """Every layout of a document, checked, by name.

    Args and Raises: as for `compile_layout`.
    """
    if not is_checked:
        _raise_faults(document, models)
    return {block.name.text: _modelled(document, block, models) for block in document.layouts}


def compile_block(block: tree.LayoutBlock, model: Model, document: tree.Document) -> Layout:
    """One layout that ships, which the tests have checked."""
    return replace(_layout(block, model), document=document)


def _modelled(
    document: tree.Document, block: tree.LayoutBlock, models: Mapping[str, Model]
) -> Layout:
    model = None
    if block.model is not None:
        known = {**models, **{item.name.text: compile_model(item) for item in document.models}}
        model = known[block.model.text]
    return replace(_layout(block, model), document=document)


def compile_models(
    document: tree.Document, *, models: Mapping[str, Model] = NO_MODELS
) -> dict[str, Model]:
    """Every model of a document, by name.

    Args:  models: those that the document's layouts may refer to without declaring them.
    Raises: everything that `check` finds wrong.
    """
    _raise_faults(document, models)
    return {block.name.text: compile_model(block) for block in document.models}


def _raise_faults(document: tree.Document, models: Mapping[str, Model]) -> None:
    from reshard.language.check import check

    faults = [item for item in check(document, models=models) if item.level == "error"]
    if faults:
        raise ReshardError(faults, Exit.LAYOUT)


def one_layout(document: tree.Document, name: str) -> tree.Document:
    """A document with one of its layouts alone, without its model.

    Raises: unknown-layout.
    """
    return replace(document, blocks=(_chosen(document, name),), closing=())


def _chosen(document: tree.Document, name: str | None) -> tree.LayoutBlock:
    layouts = {block.name.text: block for block in document.layouts}
    if name is not None and name in layouts:
        return layouts[name]
    if name is None and len(layouts) == 1:
        return next(iter(layouts.values()))
    where = document.source.name
    primary = None
    if name is None and layouts:
        headline = f"`{where}` has {len(layouts)} layouts, and none was chosen"
        second = document.layouts[1].name.span
        primary = None if second is None else Label(second, "this is a second one")
    else:
        headline = f"`{where}` has no layout" + (f" `{name}`" if name is not None else "")
    raise ReshardError(
        Diagnostic(
            "unknown-layout",
            headline,
            primary=primary,
            notes=(f"it has {listed(layouts)}",) if layouts else (),
            helps=(f"choose one with `{where}#{next(iter(layouts))}`",) if layouts else (),
        ),
        Exit.LAYOUT,
    )


def _layout(block: tree.LayoutBlock, model: Model | None) -> Layout:
    facts = {} if model is None else implied(block, model)
    block = block if model is None else spelled_out(block, model)
    mesh = {}
    places = {}
    partitions = []
    config: dict[str, Expression] = {}
    rules = []
    files = []
    ties = []
    left_out = []
    wrappers: list[str] = []
    orders = []
    names = ""
    for item in block.statements:
        if isinstance(item, tree.MeshStatement):
            mesh.update({axis.name.text: axis.size for axis in item.axes})
        elif isinstance(item, tree.PlaceStatement):
            places.update({axis.text: compile_split(item.placement) for axis in item.axes})
        elif isinstance(item, tree.ConfigStatement):
            config[item.name.text] = item.value
        elif isinstance(item, tree.PartitionStatement):
            states = _texts(item.states)
            partitions.append(
                PartitionRule(
                    states,
                    item.over.text,
                    "rows" if item.kind == "dtensor" else item.kind,
                    item.align,
                    item.size,
                    item.starts,
                    item.is_round_robin,
                    item.kind == "dtensor",
                    item.span,
                )
            )
        elif isinstance(item, tree.FileStatement):
            files.append(_file(item))
        elif isinstance(item, tree.TieStatement):
            ties.append(Tie(unescaped(item.alias.text), unescaped(item.name.text), item.when))
        elif isinstance(item, tree.LeaveStatement):
            pattern = NamePattern.parse(item.pattern.text, item.pattern.span)
            left_out.append(LeftOut(pattern, unescaped(item.because.text), item.span))
        elif isinstance(item, tree.WrapperStatement):
            wrappers += [unescaped(part.text) for part in item.parts]
        elif isinstance(item, tree.NamesStatement):
            names = item.layout.text
        elif isinstance(item, tree.OrderStatement):
            orders.append(ParameterOrder(tuple(unescaped(x.text) for x in item.names), item.when))
        elif isinstance(item, tree.RuleStatement):
            rules.append(item)
    if files and not rules and model is None:
        rules.append(_ANY)
    config.update(facts)
    return Layout(
        block.name.text,
        model,
        MappingProxyType(mesh),
        tuple(_rule(item, model, places) for item in rules),
        MappingProxyType(places),
        tuple(partitions),
        MappingProxyType(config),
        block.when,
        block.span,
        tuple(files),
        tuple(ties),
        tuple(left_out),
        tuple(wrappers),
        tuple(orders),
        names,
    )


_ANY = tree.RuleStatement(tree.Word("**"), None, (), rest=True, optional=True)
"""The rule of a layout that says of its files alone: every tensor is whole."""


def _file(item: tree.FileStatement) -> FileRule:
    entries = tuple(
        Entry(
            entry.role,
            _texts(entry.names),
            tuple(Place.parse(place.text, place.span) for place in entry.places),
            entry.optional,
            unescaped(entry.because.text) if entry.because else "",
            entry.value,
            entry.span,
        )
        for entry in item.statements
    )
    names = tuple(FileName.parse(name.text, name.span) for name in item.names)
    return FileRule(names, entries, item.optional, item.span)


def _rule(item: tree.RuleStatement, model: Model | None, places: Mapping[str, Split]) -> Rule:
    axes: dict[str, Axis] = {}
    splits: dict[str, Split] = {}
    anonymous = count()
    dims = tuple(_term(term, model is None, axes, splits, anonymous) for term in item.dims)
    if model is None:
        # a layout without a model has no axes but those of its rules, so they take its places here
        splits = {axis: places[axis] for axis in axes if axis in places} | splits
    first = None if model is None else _first_atom(item, dims, model)
    return Rule(
        NamePattern.parse(item.pattern.text, item.pattern.span),
        None if item.atom is None else item.atom.text,
        dims,
        item.rest,
        MappingProxyType(axes),
        MappingProxyType(splits),
        _texts(item.averaged_over),
        item.stage,
        _condition(item, dims, model),
        item.optional,
        None if first is None else first.only,
        "" if first is None else first.along,
        item.span,
    )


def _condition(
    item: tree.RuleStatement, dims: tuple[Term, ...], model: Model | None
) -> Expression | None:
    """When a rule applies: its own condition, and those of the atoms that it stores."""
    if model is None:
        return item.when
    atoms = _atoms(item, dims)
    return conjunction([item.when, *(model.tensors[atom].when for atom in atoms)])


def _atoms(item: tree.RuleStatement, dims: tuple[Term, ...]) -> list[str]:
    return _labels(dims) if item.atom is None else [item.atom.text]


def _first_atom(item: tree.RuleStatement, dims: tuple[Term, ...], model: Model) -> ModelTensor:
    """One of the atoms that a rule stores; all of them are there at the same indices."""
    return model.tensors[_atoms(item, dims)[0]]


def _labels(terms: tuple[Term, ...]) -> list[str]:
    out = []
    for term in terms:
        if isinstance(term, Product):
            out += _labels(term.terms)
        elif isinstance(term, Sum):
            out += [part.label for part in term.parts]
    return out


def _term(
    term: tree.TermTree,
    own: bool,
    axes: dict[str, Axis],
    splits: dict[str, Split],
    anonymous: Iterator[int],
) -> Term:
    """A term, with its axes and their placements added where the rule declares them itself."""
    if isinstance(term, tree.ProductTerm):
        return Product(tuple(_term(item, own, axes, splits, anonymous) for item in term.factors))
    if isinstance(term, tree.SumTerm):
        parts = []
        for part in term.parts:
            inner = _term(part.term, own, axes, splits, anonymous)
            label = part.label.text if part.label else inner.axis if isinstance(inner, Leaf) else ""
            parts.append(Part(label, inner))
        return Sum(tuple(parts))
    name = term.name.text
    if name == "_":
        name = f"_{next(anonymous)}"
    if own:
        known = axes.get(name)
        if known is None or known.size is None:
            axes[name] = Axis(name, term.size, term.span)
        if term.placement is not None:
            splits[name] = compile_split(term.placement)
    return Leaf(name)


def compile_split(placement: tree.Placement) -> Split:
    """How an axis lies, as the planner reads it."""
    return Split(
        _texts(placement.over),
        placement.rule,
        placement.sizes,
        placement.pad_to,
        placement.truncated_to,
        placement.span,
    )


def _texts(words: tuple[tree.Word, ...]) -> tuple[str, ...]:
    return tuple(word.text for word in words)
