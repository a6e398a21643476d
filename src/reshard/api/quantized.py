"""Weights that are stored with scales of their blocks."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.plan.catalog import Catalog
from reshard.run.states import PARAM

_ENDS = ("_scale_inv", "_scale")


def block_scales(catalog: Catalog) -> dict[str, str]:
    """The scale of every quantized weight, by the name of the weight."""
    names = dict.fromkeys(tensor.name for tensor in catalog.tensors if tensor.state == PARAM)
    return {name: f"{name}{end}" for name in names for end in _ENDS if f"{name}{end}" in names}


def quantized_note(catalog: Catalog) -> str:
    """What is stored, for a message; empty if no weight has a scale."""
    scales = block_scales(catalog)
    if not scales:
        return ""
    tensors = {tensor.name: tensor for tensor in catalog.tensors if tensor.state == PARAM}
    weight, scale = next(iter(scales.items()))
    settings = (catalog.config or {}).get("quantization_config")
    block = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
    sizes = [str(size) for size in block] if isinstance(block, list) else []
    blocks = f"blocks of {' x '.join(sizes)}" if sizes else "blocks"
    return (
        f"{len(scales)} weights are quantized, with a scale for each of their {blocks}: `{weight}` "
        f"is {tensors[weight].dtype} {list(tensors[weight].shape)}, `{scale}` "
        f"{list(tensors[scale].shape)}"
    )
