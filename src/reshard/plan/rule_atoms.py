"""The atoms that a rule of a model's layout stores."""

from __future__ import annotations

from reshard.algebra.term import Extent, segments, term_axes
from reshard.language.layout import Layout, Rule


def rule_atoms(
    layout: Layout, rule: Rule
) -> tuple[dict[tuple[str, ...], str], dict[tuple[str, ...], tuple[str, ...]]]:
    """By the labels of every segment of a rule: its atom, and the axes of the atom."""
    model = layout.model
    assert model is not None
    axes = {axis for term in rule.dims for axis in term_axes(term)}
    atoms: dict[tuple[str, ...], str] = {}
    atom_axes: dict[tuple[str, ...], tuple[str, ...]] = {}
    for segment in segments(rule.dims, {axis: Extent(0, 1, 1) for axis in axes}):
        key = rule.atom if rule.atom is not None else segment.labels[0]
        atoms[segment.labels] = key
        atom_axes[segment.labels] = model.tensors[key].axes
    return atoms, atom_axes
