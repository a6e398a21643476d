"""The weights of pipelines, whose layers have files of their own.

Source: DeepSpeed 0.19.8, runtime/pipe/module.py `save_state_dict` and `_build`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from reshard.errors import source_error
from reshard.formats.deepspeed.files import Files
from reshard.formats.deepspeed.folder import Folder
from reshard.formats.deepspeed.grid import Grid
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.formats.deepspeed.node import Node
from reshard.plan.catalog import Coord, LocalTensor
from reshard.run.states import PARAM
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef

TIED = "tied_modules."
Weights = Mapping[str, TensorRef]


class Pipeline:
    """Layer files and the stages that they belong to.

    Args:  models: by mp rank.
    """

    keys: dict[str, dict[str, str]]
    """By layer, once its tensors were asked for: the key in its file -> the tensor's name."""

    def __init__(
        self, files: Files, folder: Folder, grid: Grid, models: Mapping[int, ModelFile]
    ) -> None:
        self.keys = {}
        self._grid = grid
        self._models = models
        self._layers: dict[int, dict[int, tuple[Node, Weights]]] = {}
        for (layer, tp_rank), name in folder.layers.items():
            root = files.root_of(name)
            weights: dict[str, TensorRef] = {}
            for key, item in root.entries():
                if isinstance(item.value, TensorRef):
                    weights[key] = item.value
                elif not item.is_none:
                    files.leave(item, "it is no tensor")
            self._layers.setdefault(tp_rank or 0, {})[layer] = (root, weights)
        self._check_ranks(folder)
        self._stages = self._find_stages()

    def tensors(self, tp_rank: int) -> Iterator[LocalTensor]:
        """Weights of every layer of one tp rank under the names that the optimizer uses.

        Raises: ReshardError[ambiguous-tied-layer].
        """
        for layer, (root, weights) in sorted(self._layers.get(tp_rank, {}).items()):
            coord = self._coord(layer, tp_rank)
            prefix = self._prefix(layer, tp_rank, weights, root.file)
            keys = self.keys.setdefault(str(layer), {})
            for local, ref in weights.items():
                keys[local] = f"{prefix}{local}"
                yield local_tensor(ref, f"{prefix}{local}", PARAM, coord, root.file)

    def _coord(self, layer: int, tp_rank: int) -> Coord:
        out: list[tuple[str, int]] = []
        stage = self._stages.get(layer)
        if self._grid.pp > 1 and stage is not None:
            out.append(("pp", stage))
        if self._grid.tp > 1:
            out.append(("tp", tp_rank))
        return tuple(out)

    def _names(self, stage: int, tp_rank: int) -> dict[str, tuple[int, ...]]:
        """Trained parameters of one rank with their shapes."""
        model = self._models[stage * self._grid.tp + tp_rank]
        return {n: s for shapes in model.param_shapes or () for n, s in shapes.items()}

    def _find_stages(self) -> dict[int, int]:
        """By layer, its stage, as far as the names of trained parameters tell."""
        known: dict[int, int] = {}
        for stage in range(self._grid.pp):
            for name in self._names(stage, 0):
                head = name.split(".", 1)[0]
                if head.isdecimal():
                    known[int(head)] = stage
        out: dict[int, int] = {}
        for layer in {layer for own in self._layers.values() for layer in own}:
            below = max((n for n in known if n <= layer), default=None)
            above = min((n for n in known if n >= layer), default=None)
            low = 0 if below is None else known[below]
            high = self._grid.pp - 1 if above is None else known[above]
            if low == high:
                out[layer] = low
        return out

    def _prefix(self, layer: int, tp_rank: int, weights: Weights, file: str) -> str:
        """What stands before the local names of a layer: its number, or the key it is tied by."""
        own = f"{layer}."
        stages = [self._stages[layer]] if layer in self._stages else range(self._grid.pp)
        keys: dict[str, dict[str, tuple[int, ...]]] = {}
        for stage in stages:
            names = self._names(stage, tp_rank)
            if any(name.startswith(own) for name in names):
                return own
            for name, shape in names.items():
                if name.startswith(TIED):
                    key, _, local = name[len(TIED) :].partition(".")
                    keys.setdefault(key, {})[local] = shape
        fitting = [
            key
            for key, shapes in keys.items()
            if all(n in weights and weights[n].shape == shape for n, shape in shapes.items())
        ]
        if len(fitting) > 1:
            raise source_error(
                "ambiguous-tied-layer",
                f"{file} may be the weights of {len(fitting)} tied modules",
                notes=[
                    "they have the same names and shapes: "
                    + ", ".join(f"`{TIED}{key}`" for key in fitting),
                    "the name of a layer's file does not tell by which key it is tied",
                ],
                helps=["save the checkpoint with tied modules of different names or shapes"],
            )
        return f"{TIED}{fitting[0]}." if fitting else own

    def _check_ranks(self, folder: Folder) -> None:
        wanted = {layer for own in self._layers.values() for layer in own}
        for tp_rank in range(self._grid.tp):
            missing = sorted(wanted - set(self._layers.get(tp_rank, {})))
            if missing:
                raise source_error(
                    "missing-rank-file",
                    f"layer {missing[0]} of tp rank {tp_rank} has no file",
                    notes=[f"{len(folder.layers)} layer files are here"],
                    helps=["copy the files of all ranks"],
                )


def missing_layers(tensors: Sequence[LocalTensor], models: Mapping[int, ModelFile]) -> list[str]:
    """Files of layers that have trained parameters, and are not there."""
    have = {tensor.name for tensor in tensors}
    out: dict[str, None] = {}
    for model in models.values():
        for shapes in model.param_shapes or ():
            for name in shapes:
                head = name.split(".", 1)[0]
                if name in have:
                    continue
                if head.isdecimal():
                    out[f"layer_{int(head):02d}-*"] = None
                elif name.startswith(TIED):
                    key = name[len(TIED) :].partition(".")[0]
                    out[f"the layer_*-* of `{TIED}{key}`"] = None
    return list(out)
