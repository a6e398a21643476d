"""On which meshes a model can be trained, and how much of it a rank then holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from reshard.errors import ReshardError
from reshard.language.layout import Layout, Rule, Split
from reshard.plan.arrangement import Arrangement
from reshard.plan.axes import blocks_of
from reshard.plan.environment import environment
from reshard.plan.fit import facts
from reshard.plan.held import Held
from reshard.plan.matching import active_rules
from reshard.plan.rename import atom_sizes
from reshard.plan.rule_atoms import rule_atoms
from reshard.plan.solve import padded_size

_STAGES = "pp"
_EXPERTS = "ep"


@dataclass(frozen=True, slots=True)
class Share:
    """What the rank with the most of it holds of a model.

    Args:  dense, experts: elements of the weights, padding included; those cut over expert-parallel
                           ranks, which fewer data-parallel ranks share, apart.
    """

    dense: int
    experts: int

    @property
    def numel(self) -> int:
        """Elements of the weights."""
        return self.dense + self.experts


@dataclass(frozen=True, slots=True)
class MeshChoice:
    """A mesh and what becomes of a model on it.

    Args:  sizes: of every axis; `dp` counts the ranks that hold the same dense weights.
           share: of the fullest rank; None where the model cannot be cut so, for the reason `why`.
    """

    sizes: Mapping[str, int]
    share: Share | None
    why: str = ""


def mesh_choices(
    arrangement: Arrangement, layout: Layout, ranks: int, settings: Mapping[str, float | None]
) -> Iterator[MeshChoice]:
    """Every mesh of so many ranks: tensor, pipeline, and expert parallel sizes that divide it.

    Args:  layout: of the model, which says over which axes of the mesh it is cut.
    """
    sizes = atom_sizes(arrangement)
    cut_over = {axis for split in layout.places.values() for axis in split.over}
    for tp in _divisors(ranks) if "tp" in cut_over else (1,):
        for pp in _divisors(ranks // tp) if _STAGES in cut_over else (1,):
            dp = ranks // tp // pp
            for ep in _divisors(dp) if _EXPERTS in cut_over and "e" in sizes else (1,):
                mesh = {"tp": tp, "pp": pp, "ep": ep, "dp": dp}
                try:
                    share = _fullest(arrangement, layout, sizes, mesh, settings)
                except ValueError as error:
                    yield MeshChoice(mesh, None, f"{error}")
                else:
                    yield MeshChoice(mesh, share)


def _divisors(number: int) -> tuple[int, ...]:
    return tuple(item for item in range(1, number + 1) if number % item == 0)


def _fullest(
    arrangement: Arrangement,
    layout: Layout,
    sizes: Mapping[str, int],
    mesh: Mapping[str, int],
    settings: Mapping[str, float | None],
) -> Share:
    """What the fullest rank holds.

    Raises: ValueError with what cannot be cut.
    """
    known = environment(layout, arrangement.catalog, mesh, settings)
    env = {**dict.fromkeys(facts(layout), False), **known, **arrangement.values, **mesh}
    held = Held(layout, sizes, env)
    cuts = {axis: _blocks(axis, size, layout, mesh, env) for axis, size in sizes.items()}
    shares = []
    rules = [layout.rules[index] for index in active_rules(layout, env)]
    for stage in range(mesh[_STAGES]):
        dense = experts = 0
        for rule in rules:
            if not _is_on(rule, stage, mesh[_STAGES]):
                continue
            counts = {axis: max(blocks) for axis, blocks in cuts.items()}
            for axis, blocks in cuts.items():
                if _STAGES in layout.places.get(axis, Split()).over:
                    lo = sum(blocks[:stage])
                    indices = range(lo, min(lo + blocks[stage], sizes[axis]))
                    only = held.of(rule) if rule.along == axis else None
                    counts[axis] = len(
                        indices if only is None else [i for i in only if i in indices]
                    )
            _, atom_axes = rule_atoms(layout, rule)
            for axes in atom_axes.values():
                numel = prod(counts[axis] for axis in axes)
                if any(_EXPERTS in layout.places.get(axis, Split()).over for axis in axes):
                    experts += numel
                else:
                    dense += numel
        shares.append(Share(dense, experts))
    return max(shares, key=lambda share: share.numel)


def _blocks(
    axis: str, size: int, layout: Layout, mesh: Mapping[str, int], env: Mapping[str, object]
) -> tuple[int, ...]:
    split = layout.places.get(axis, Split())
    try:
        return blocks_of(padded_size(axis, size, split, env), split, mesh)
    except ReshardError as error:
        raise ValueError(error.diagnostics[0].headline) from None
    except ValueError:
        over = ", ".join(f"{name}={mesh[name]}" for name in split.over if mesh.get(name, 1) > 1)
        raise ValueError(f"axis `{axis}` has {size}, which {over} does not divide") from None


def _is_on(rule: Rule, stage: int, stages: int) -> bool:
    return rule.stage is None or stage == (0 if rule.stage == "first" else stages - 1)
