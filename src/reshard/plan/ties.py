"""Tied weights under the rules of a layout, which may name one of them, or all.

A checkpoint names a tied tensor in one or several ways, and a layout in one or several of its own
(the head of `torchtitan` has a rule of the embedding's atom, that of `hf` has none). The names of
one tensor are one tensor: together they follow rules of one atom.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from reshard.language.layout import Layout
from reshard.plan.catalog import Catalog, LocalTensor
from reshard.run.states import EXTRA


def tie_groups(aliases: Mapping[str, str] | None) -> tuple[tuple[str, ...], ...]:
    """The names of every tied tensor, the one that it is stored under first."""
    out: dict[str, list[str]] = {}
    for alias, stored in (aliases or {}).items():
        out.setdefault(stored, [stored]).append(alias)
    return tuple(tuple(names) for names in out.values())


def hold_one_atom(layout: Layout, rules: Iterable[int]) -> bool:
    """Whether all of some rules, and at least one, hold the same elements."""
    held = {(layout.rules[index].atom, layout.rules[index].dims) for index in rules}
    return len(held) == 1


def settle(layout: Layout, catalog: Catalog, rules: Sequence[int]) -> Catalog:
    """A catalog whose tied tensors go by names that a layout of a model has rules for.

    Args:  rules: of the layout, those that apply.
    """
    if layout.model is None:
        names = dict(catalog.aliases or {})  # all go by the name of the parameter
    else:
        names = {}
        for group in tie_groups(catalog.aliases):
            ruled = [name for name in group if _has_rule(layout, rules, name)]
            names.update((name, ruled[0]) for name in group if ruled and name not in ruled)
    if not names:
        return catalog
    return replace(
        catalog,
        tensors=tuple(_renamed(tensor, names) for tensor in catalog.tensors),
        training=catalog.training.with_params(
            lambda params: dict.fromkeys(names.get(name, name) for name in params)
        ),
        aliases=_other_names(catalog.aliases or {}, names),
        frozen=tuple(dict.fromkeys(names.get(name, name) for name in catalog.frozen)),
    )


def _has_rule(layout: Layout, rules: Sequence[int], name: str) -> bool:
    return any(index in rules for index, _ in layout.matches(name))


def _renamed(tensor: LocalTensor, names: Mapping[str, str]) -> LocalTensor:
    name = names.get(tensor.name)
    return tensor if name is None or tensor.state == EXTRA else replace(tensor, name=name)


def _other_names(aliases: Mapping[str, str], names: Mapping[str, str]) -> dict[str, str]:
    out: dict[str, str] = {}
    for alias, stored in aliases.items():
        first = names.get(stored, stored)
        out.update((name, first) for name in (alias, stored) if name != first)
    return out
