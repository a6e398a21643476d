"""A layout of a model, cut over mesh axes that a checkpoint has and the layout does not know."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from reshard.algebra.term import term_axes
from reshard.language.layout import Layout, Rule, Split
from reshard.language.pattern import NamePattern

_SLOT = re.compile(r"\{[^}]*\}|\*+")


def over_own_axes(layout: Layout, own: Layout) -> Layout:
    """The layout whose axes are over the mesh axes that the checkpoint's own rules are over.

    Experts may be cut over ranks of their own (`etp`), where a layout of their model says that
    they are cut over those of dense layers (`tp`). An axis that is over one mesh axis which the
    checkpoint's rules for the same names are not over is over the one that they are over instead.

    Args:  own: what the checkpoint says of itself, without a model.
    """
    further = [axis for axis in own.mesh if axis not in layout.mesh]
    if not further or layout.model is None:
        return layout
    stated = {_skeleton(rule.pattern): _over(rule, own.places) for rule in own.rules}
    found: dict[str, set[tuple[str, str] | None]] = {}
    for rule in layout.rules:
        here = stated.get(_skeleton(rule.pattern))
        if here is not None:
            change = _change(rule, layout.places, here, further)
            for axis in _axes(rule):
                if layout.places.get(axis, Split()).over:
                    found.setdefault(axis, set()).add(change)
    places = dict(layout.places)
    for axis, changes in found.items():
        (change,) = changes if len(changes) == 1 else (None,)
        if change is not None and change[0] in places[axis].over:
            over = tuple(change[1] if item == change[0] else item for item in places[axis].over)
            places[axis] = replace(places[axis], over=over)
    mesh = {**layout.mesh, **{axis: own.mesh[axis] for axis in further}}
    return replace(layout, mesh=mesh, places=places)


def _change(
    rule: Rule, places: Mapping[str, Split], stated: frozenset[str], further: list[str]
) -> tuple[str, str] | None:
    """The mesh axis that the checkpoint does not cut a rule's tensors over, and the one it does."""
    axes = [axis for axis in further if axis in stated]
    known = {over for axis in _axes(rule) for over in places.get(axis, Split()).over} - stated
    return (known.pop(), axes[0]) if len(axes) == len(known) == 1 else None


def _over(rule: Rule, places: Mapping[str, Split]) -> frozenset[str]:
    slots = {over for slot in rule.pattern.slots for over in slot.over}
    known = [rule.splits.get(axis) or places.get(axis, Split()) for axis in _axes(rule)]
    return frozenset({over for split in known for over in split.over} | slots)


def _axes(rule: Rule) -> list[str]:
    """The axes of a rule's shape."""
    return list(dict.fromkeys(axis for term in rule.dims for axis in term_axes(term)))


def _skeleton(pattern: NamePattern) -> str:
    """A pattern with every index and wildcard alike."""
    return _SLOT.sub("*", pattern.text)
