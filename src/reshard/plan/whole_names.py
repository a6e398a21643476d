"""Stored tensors by the name of the whole tensor that they belong to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from reshard.errors import Diagnostic, Exit, Label, ReshardError
from reshard.language.layout import Layout
from reshard.plan.catalog import Coord
from reshard.plan.matching import Matched
from reshard.plan.names import group_names, quantity


@dataclass(frozen=True, slots=True)
class NamedGroup:
    """What is stored, on any coordinate, of one whole tensor.

    Args:  name: with global indices.  rule: index in the layout.
           indices: global index per slot of the name.
    """

    name: str
    rule: int
    indices: Mapping[str, int]
    items: tuple[Matched, ...]

    @property
    def coords(self) -> tuple[Coord, ...]:
        """Where some of it is."""
        return tuple(dict.fromkeys(item.tensor.coord for item in self.items))


def whole_names(
    layout: Layout,
    matched: Iterable[Matched],
    indices: Callable[[Matched], Mapping[str, int]],
) -> tuple[NamedGroup, ...]:
    """The groups, in order of first appearance.

    Args:  indices: the global index of every slot of a matched name.
    Raises: ReshardError[name-clash].
    """
    members: dict[str, list[Matched]] = {}
    places: dict[str, Mapping[str, int]] = {}
    clashes: dict[tuple[int, int], list[str]] = {}
    for item in matched:
        place = indices(item)
        name = layout.rules[item.rule].pattern.fill(place, item.match.captures)
        items = members.setdefault(name, [])
        if items and items[0].rule != item.rule:
            clashes.setdefault((items[0].rule, item.rule), []).append(name)
        items.append(item)
        places[name] = place
    if clashes:
        raise ReshardError(
            [_clash(layout, rules, names) for rules, names in clashes.items()], Exit.LAYOUT
        )
    return tuple(
        NamedGroup(name, items[0].rule, places[name], tuple(items))
        for name, items in members.items()
    )


def _clash(layout: Layout, rules: tuple[int, int], names: list[str]) -> Diagnostic:
    first, second = (layout.rules[index] for index in rules)
    group, count = group_names(dict.fromkeys(names))[0]
    return Diagnostic(
        "name-clash",
        f"two rules give whole tensors the name `{group}`{quantity(count)}",
        primary=Label(second.span, "gives the same name") if second.span else None,
        secondary=(Label(first.span, "gives this name"),) if first.span else (),
        notes=("a local index is counted through, and becomes the index of another rule",),
        helps=("let one rule match all tensors of this name",),
    )
