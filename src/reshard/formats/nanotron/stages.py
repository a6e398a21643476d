"""Which pipeline rank nanotron gives each block of a model.

Blocks are taken in order, each by the rank that is due; a rank is done when more than its share of
the whole cost has been given away. A decoder layer and the output layer have a cost, others none.

Source: nanotron/models/base.py `build_model`, models/llama.py and models/qwen.py
`get_block_compute_costs` (2411b02).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reshard.errors import target_error
from reshard.formats.described.write_states import Placement
from reshard.plan.arrangement import Arrangement
from reshard.plan.recut import CutTensor, cut_tensors
from reshard.plan.rename import atom_sizes

_BLOCK = ".pp_block"
_HEAD = "model.lm_head"


def place(arrangement: Arrangement, mesh: Mapping[str, int], *, has_group_each: bool) -> Placement:
    """Where the parameters lie; what holds the embedding of tied ones is on two stages.

    Raises: ReshardError[uneven-target | target-stages].
    """
    cut = cut_tensors(arrangement, arrangement.layout, {"tp": mesh["tp"]})
    order = list(dict.fromkeys(map(_block, _names(arrangement))))
    stages = _stages(order, _costs(arrangement, order, cut), mesh["pp"])
    position = {block: index for index, block in enumerate(order)}
    bound = arrangement.bound
    names = sorted(cut, key=lambda name: (position[_block(name)], bound[name].rule))
    homes = {name: stages[_block(name)] for name in names}
    holders = {name: frozenset((home,)) for name, home in homes.items()}
    if _HEAD in order and not any(_block(name) == _HEAD for name in names):  # it is tied
        for name in names:
            if _block(name) == order[0]:
                holders[name] |= {stages[_HEAD]}
    axes = {n: tuple(axis for c in bound[n].cuts.values() for axis in c.over) for n in names}
    return Placement({n: cut[n] for n in names}, axes, homes, holders, has_group_each)


def rows(cut: Mapping[str, list[CutTensor]]) -> int:
    """Rows of the embedding, the first of the parameters, padding included."""
    return sum(item.shape[0] for item in next(iter(cut.values())))


def _block(name: str) -> str:
    """The block that a parameter is in."""
    return name.partition(_BLOCK)[0]


def _names(arrangement: Arrangement) -> Iterator[str]:
    """Every name of the model in order, that of the output layer also where it is tied."""
    sizes = atom_sizes(arrangement)
    for rule in arrangement.layout.rules:
        axes = [slot.axis for slot in rule.pattern.slots]
        for index in range(sizes.get(axes[0], 0)) if axes else (0,):
            yield rule.pattern.fill(dict.fromkeys(axes, index), ())


def _costs(
    arrangement: Arrangement, order: list[str], cut: Mapping[str, list[CutTensor]]
) -> dict[str, int]:
    hidden, inner, heads = (
        _size(arrangement.values, name)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    layer = 4 * heads * (hidden // max(heads, 1)) * hidden + 3 * inner * hidden
    costs = {block: layer for block in order if block.rpartition(".")[2].isdigit()}
    first = {name: items for name, items in cut.items() if _block(name) == order[0]}
    return {**costs, _HEAD: rows(first) * hidden}


def _size(values: Mapping[str, object], name: str) -> int:
    value = values.get(name)
    if isinstance(value, int):
        return value
    raise target_error(
        "target-stages",
        f"the model's `{name}` is not known, and nanotron balances its pipeline by it",
        helps=[f"state it: `--set {name}=...`"],
    )


def _stages(order: list[str], costs: Mapping[str, int], ranks: int) -> dict[str, int]:
    """The pipeline rank of every block.

    Args:  costs: by block; 0 for one that is left out.
    Raises: ReshardError[target-stages].
    """
    total = sum(costs.get(block, 0) for block in order)
    done = rank = 0
    out: dict[str, int] = {}
    for block in order:
        out[block] = rank
        done += costs.get(block, 0)
        if done > total * ((rank + 1) / ranks):
            rank += 1
    used = max(out.values(), default=0) + 1
    if used != ranks:
        raise target_error(
            "target-stages",
            f"nanotron gives blocks to {used} of {ranks} pipeline ranks",
            notes=["it balances them by what they compute, and the model has too few"],
            helps=["choose a smaller `pp`"],
        )
    return out
