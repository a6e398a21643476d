"""Compiled models."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from reshard.language import tree
from reshard.language.conditions import conjunction
from reshard.language.expression import names, operands
from reshard.language.layout import Axis, Model, ModelTensor

NO_MODELS: Mapping[str, Model] = MappingProxyType({})


def compile_model(block: tree.ModelBlock) -> Model:
    """What a model block declares; of names declared twice, the first."""
    axes: dict[str, Axis] = {}
    tensors: dict[str, ModelTensor] = {}
    for item in block.statements:
        if isinstance(item, tree.AxisStatement):
            axes.setdefault(item.name.text, Axis(item.name.text, item.size, item.span))
        elif isinstance(item, tree.TensorStatement):
            tensors.setdefault(item.name.text, _tensor(item))
    return Model(block.name.text, MappingProxyType(axes), MappingProxyType(tensors), block)


def _tensor(item: tree.TensorStatement) -> ModelTensor:
    axes = tuple(word.text for word in item.axes)
    parts = operands("and", item.when)
    along = indexed_axes(item)
    if not along:
        return ModelTensor(item.name.text, axes, item.when, span=item.span)
    of_model = conjunction(part for part in parts if not {*names(part)} & {*along})
    of_index = conjunction(part for part in parts if {*names(part)} & {*along})
    return ModelTensor(item.name.text, axes, of_model, of_index, along[0], item.span)


def indexed_axes(item: tree.TensorStatement) -> tuple[str, ...]:
    """The axes of a tensor that its condition names: at which of their indices it is there."""
    asked = () if item.when is None else names(item.when)
    return tuple(word.text for word in item.axes if word.text in asked)
