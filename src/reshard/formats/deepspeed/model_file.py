"""What one model file says: weights, names, shapes, and the state of training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reshard.formats.deepspeed.node import Node
from reshard.storage.torch_file import TensorRef

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class ModelFile:
    """The parts of a model file that say where tensors are.

    Args:  root: the whole tree.
           module: weights by name; None where layers have files of their own (pipelines).
           param_shapes: per param group (stages 1 and 2) or sub-group (stage 3), in the order of
                 the flat buffer; None without ZeRO.
           frozen_shapes, frozen_fragments: of parameters that are not trained, None where the
                 writer does not tell.
           shared: alias -> stored name.
    """

    root: Node
    module: Mapping[str, TensorRef] | None
    param_shapes: tuple[Shapes, ...] | None
    buffer_names: tuple[str, ...]
    frozen_shapes: Shapes | None
    frozen_fragments: Mapping[str, TensorRef] | None
    shared: Mapping[str, str]

    @property
    def file(self) -> str:
        """Its name."""
        return self.root.file


def read_model_file(root: Node) -> ModelFile:
    """The parts of a model file.

    Raises: ReshardError[missing-key | unexpected-content].
    """
    module = root.get("module")
    if not root.has("module"):
        raise root.lacks("module")
    buffers = root.get("buffer_names")
    frozen_shapes = root.get("frozen_param_shapes")
    frozen_fragments = root.get("frozen_param_fragments")
    shared = root.get("shared_params")
    return ModelFile(
        root,
        None if module is None else _tensors(module),
        _param_shapes(root),
        () if buffers is None else tuple(item.text() for item in buffers.items()),
        None if frozen_shapes is None else _shapes(frozen_shapes),
        None if frozen_fragments is None else _tensors(frozen_fragments),
        {} if shared is None else _shared(shared),
    )


def _param_shapes(root: Node) -> tuple[Shapes, ...] | None:
    node = root.get("param_shapes")
    if node is None:
        return None
    if isinstance(node.value, dict):  # one group, before DeepSpeed 0.4
        return (_shapes(node),)
    return tuple(_shapes(item) for item in node.items())


def _shapes(node: Node) -> dict[str, tuple[int, ...]]:
    return {name: item.shape() for name, item in node.entries()}


def _tensors(node: Node) -> dict[str, TensorRef]:
    """Tensors by name; what a module adds to its state besides tensors is kept by `training`."""
    return {
        name: item.tensor() for name, item in node.entries() if isinstance(item.value, TensorRef)
    }


def _shared(node: Node) -> dict[str, str]:
    if isinstance(node.value, dict):
        return {name: item.text() for name, item in node.entries()}
    out = {}
    for pair in node.items():  # a list of pairs, before DeepSpeed 0.8.1
        alias, stored = pair.items()
        out[alias.text()] = stored.text()
    return out
