"""AutoEP's layers of experts, as a model file describes them."""

from __future__ import annotations

from collections.abc import Mapping

LAYERS = ("ds_autoep_layers", "autoep_layers")
"""Keys under which a model file describes them."""


def described_layers(model: Mapping[str, object]) -> tuple[Mapping[str, object], ...]:
    """Every layer that is described; () for a model without AutoEP.

    Args:  model: entries of a model file.
    """
    for key in LAYERS:
        found = model.get(key)
        if isinstance(found, list):
            return tuple(item for item in found if isinstance(item, dict))
    return ()


def expert_ranks(model: Mapping[str, object]) -> int | None:
    """How many expert-parallel ranks share the experts, whatever form they are in now.

    A universal checkpoint has no ranks, but its experts were placed on some, and go back to these.
    """
    for layer in described_layers(model):
        size = layer.get("ep_size")
        if isinstance(size, int):
            return size
    return None
