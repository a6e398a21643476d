"""Which pipeline rank nanotron gives each block of a model.

Blocks are taken in order, each by the rank that is due; a rank is done when more than its share of
the whole cost has been given away. A decoder layer and the output layer have a cost, others none.

Source: nanotron/models/base.py `build_model`, models/llama.py and models/qwen.py
`get_block_compute_costs` (2411b02).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from reshard.errors import target_error
from reshard.language.layout import Layout

BLOCK = ".pp_block"
HEAD = "model.lm_head"


def block_of(name: str) -> str:
    """The block that a parameter is in."""
    return name.partition(BLOCK)[0]


def blocks(layout: Layout, sizes: Mapping[str, int]) -> tuple[str, ...]:
    """Every block in the order of the model, that of the output layer also where it is tied.

    Args:  sizes: of the axes of the model.
    """
    return tuple(dict.fromkeys(block_of(name) for name in _names(layout, sizes)))


def _names(layout: Layout, sizes: Mapping[str, int]) -> Iterator[str]:
    for rule in layout.rules:
        axes = [slot.axis for slot in rule.pattern.slots]
        for index in range(sizes.get(axes[0], 0)) if axes else (0,):
            yield rule.pattern.fill(dict.fromkeys(axes, index), ())


def stages(order: tuple[str, ...], costs: Mapping[str, int], ranks: int) -> dict[str, int]:
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
