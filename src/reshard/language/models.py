"""Compiled models."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from reshard.language import tree
from reshard.language.layout import Axis, Model, ModelTensor

NO_MODELS: Mapping[str, Model] = MappingProxyType({})


def compile_model(block: tree.ModelBlock) -> Model:
    """What a model block declares; of names declared twice, the first."""
    axes: dict[str, Axis] = {}
    tensors: dict[str, ModelTensor] = {}
    for item in block.statements:
        name = item.name.text
        if isinstance(item, tree.AxisStatement):
            axes.setdefault(name, Axis(name, item.size, item.span))
        else:
            words = tuple(word.text for word in item.axes)
            tensors.setdefault(name, ModelTensor(name, words, item.when, item.span))
    return Model(block.name.text, MappingProxyType(axes), MappingProxyType(tensors))
