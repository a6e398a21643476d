"""The weights in model files and in the layer files of pipelines, and names for one thing.

Source: DeepSpeed 0.19.8, runtime/pipe/module.py `save_state_dict` and `_build`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal

from reshard.algebra.partition import Each, spread
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.files import Files
from reshard.formats.deepspeed.folder import Folder
from reshard.formats.deepspeed.grid import Grid
from reshard.formats.deepspeed.groups import share_of
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.formats.deepspeed.node import Node
from reshard.plan.catalog import Coord, LocalTensor
from reshard.run.states import PARAM
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef


def find_aliases(models: Iterable[ModelFile]) -> dict[str, str]:
    """Other names of a parameter: alias -> the name under which it is stored.

    What the writer says (`shared_params`, which only the first rank knows), and names of one file
    that refer to the same memory.

    Raises: ReshardError[unexpected-content].
    """
    models = tuple(models)
    out: dict[str, str] = {}
    for model in models:
        out.update(model.shared)
    for model in models:
        trained = model.trained
        places: dict[object, str] = {}
        names = list(model.module or ())
        for name in sorted(names, key=lambda n: (n not in trained, n in out)):
            ref = (model.module or {})[name]
            if not ref.numel:
                continue
            place = (ref.storage_key, ref.storage_offset, ref.shape, ref.strides, ref.dtype)
            first = places.setdefault(place, name)
            if first != name and name not in out and name not in trained:
                out[name] = first
    stored = {name for model in models for name in model.module or ()}
    stored |= {name for model in models for name in model.trained}
    resolved = {alias: _resolve(alias, out) for alias in out}
    # A name whose tensor is stored under it alone stays what it is.
    return {a: name for a, name in resolved.items() if name in stored or a not in stored}


def _resolve(alias: str, aliases: Mapping[str, str]) -> str:
    """The name at the end of a chain of names.

    Raises: ReshardError[unexpected-content].
    """
    name = aliases[alias]
    for _ in range(len(aliases)):
        if name not in aliases:
            return name
        name = aliases[name]
    raise source_error(
        "unexpected-content",
        f"`shared_params` says that `{alias}` is another name of itself",
        notes=[f"`{alias}` is `{aliases[alias]}`, and so on, in a circle"],
        helps=["the file was written by another program, or is damaged; copy it again"],
    )


def module_tensors(
    model: ModelFile, coord: Coord, aliases: Mapping[str, str]
) -> Iterator[LocalTensor]:
    """The weights of one model file of stages 0 to 2, each under one name."""
    for name, ref in (model.module or {}).items():
        if name not in aliases:
            yield local_tensor(ref, name, PARAM, coord, model.file)


def zero3_tensors(models: Sequence[ModelFile], coord: Coord) -> Iterator[LocalTensor]:
    """What the files of one coordinate hold of weights at stage 3.

    Buffers, parameters of modules that DeepSpeed does not partition, and frozen parameters from
    their fragments.

    Args:  models: of every data-parallel rank in order.
    Raises: ReshardError[partition-mismatch].
    """
    first = models[0]
    module = first.module or {}
    elsewhere = {*first.trained, *(first.frozen_shapes or ()), *first.shared}
    empty = {module[name].shape for name in elsewhere if name in module}
    for name, ref in module.items():
        is_empty = not ref.numel or ref.shape in empty & {(1,)}  # (1,) is of older versions
        if name in first.buffer_names or (name not in elsewhere and not is_empty):
            yield local_tensor(ref, name, PARAM, coord, first.file)
    for name, shape in (first.frozen_shapes or {}).items():
        yield _frozen(models, name, shape, coord)


def _frozen(
    models: Sequence[ModelFile], name: str, shape: tuple[int, ...], coord: Coord
) -> LocalTensor:
    numel, count = prod(shape), len(models)
    cut = spread(Each(), [shape], count)
    own = cut.lengths[0]
    refs: list[TensorRef] = []
    for model in models:
        ref = (model.frozen_fragments or {}).get(name)
        if ref is None or ref.numel != own or not ref.is_contiguous:
            raise source_error(
                "partition-mismatch",
                f"the frozen parameter `{name}` does not add up",
                notes=[
                    f"{numel} elements over {count} ranks make {own} on each",
                    f"{model.file} has {'none' if ref is None else ref.numel}",
                ],
                helps=["the model files may be of different runs"],
            )
        refs.append(ref)
    files = [model.file for model in models]
    fragments = tuple(share_of(share, refs, files) for share in cut.shares)
    return LocalTensor(name, PARAM, coord, shape, refs[0].dtype, fragments)


def compute_dtype(models: Iterable[ModelFile]) -> DType | None:
    """The element type that most weights of the module have; None if there are none."""
    counts: dict[DType, int] = {}
    for model in models:
        for name, ref in (model.module or {}).items():
            if name not in model.buffer_names:
                counts[ref.dtype] = counts.get(ref.dtype, 0) + 1
    return max(counts, key=lambda dtype: counts[dtype], default=None)


# Pipelines.

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
            stage = self._stages.get(layer)
            coord = self._grid.coord((stage or 0) * self._grid.tp + tp_rank)
            if stage is None:
                coord = tuple(item for item in coord if item[0] != "pp")
            prefix = self._prefix(layer, tp_rank, weights, root.file)
            keys = self.keys.setdefault(str(layer), {})
            for local, ref in weights.items():
                keys[local] = f"{prefix}{local}"
                yield local_tensor(ref, f"{prefix}{local}", PARAM, coord, root.file)

    def _names(self, stage: int, tp_rank: int) -> dict[str, tuple[int, ...]]:
        """Trained parameters of one rank with their shapes."""
        return self._models[stage * self._grid.tp + tp_rank].trained

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
    for name in (name for model in models.values() for name in model.trained if name not in have):
        head, key = name.split(".", 1)[0], name.removeprefix(TIED).partition(".")[0]
        if head.isdecimal():
            out[f"layer_{int(head):02d}-*"] = None
        elif name.startswith(TIED):
            out[f"the layer_*-* of `{TIED}{key}`"] = None
    return list(out)


# Copies.

Verdict = Literal["copies", "constant", "differ"]
_MAX_NBYTES = 1 << 20


def compare_copies(root: Path, tensors: Sequence[LocalTensor]) -> Verdict:
    """Compare a tensor of several ranks.

    Args:  root: what file names are relative to.
    Returns: "copies" if all are equal; "constant" if moreover all their elements are one number,
             which tells nothing; "differ" otherwise, or if they are too large to look at.
    """
    first = tensors[0]
    itemsize = first.dtype.itemsize
    if first.numel * itemsize > _MAX_NBYTES or any(
        (tensor.shape, tensor.dtype) != (first.shape, first.dtype) for tensor in tensors
    ):
        return "differ"
    data = _bytes(root, first)
    if any(_bytes(root, tensor) != data for tensor in tensors[1:]):
        return "differ"
    return "constant" if data == data[:itemsize] * first.numel else "copies"


def check_tied(
    root: Path, file: str, module: Mapping[str, TensorRef], aliases: Mapping[str, str]
) -> None:
    """Compare tied weights that one file stores under several names, each with its own memory.

    Args:  root: what file names are relative to.  aliases: other names of a parameter.
    Raises: ReshardError[replica-mismatch].
    """
    for alias, name in aliases.items():
        one, other = module.get(name), module.get(alias)
        if one is None or other is None or not one.numel or not other.numel:
            continue
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            kinds = (
                f"`{key}` is {ref.dtype} {list(ref.shape)}"
                for key, ref in ((name, one), (alias, other))
            )
            raise _differ(file, name, alias, *kinds)
        if one.storage_key == other.storage_key and one.storage_offset == other.storage_offset:
            continue
        if not one.is_contiguous or not other.is_contiguous:
            continue
        at = _first_difference(root / file, one, other)
        if at is not None:
            raise _differ(file, name, alias, f"the first difference is at element {at}")


def _first_difference(path: Path, one: TensorRef, other: TensorRef) -> int | None:
    """The number of the first element that two tensors of a file do not share."""
    itemsize = one.dtype.itemsize
    nbytes = one.numel * itemsize
    with path.open("rb", buffering=0) as file:
        for start in range(0, nbytes, _MAX_NBYTES):
            pieces = []
            for ref in (one, other):
                file.seek(ref.byte_offset + start)
                pieces.append(file.read(min(_MAX_NBYTES, nbytes - start)))
            a, b = pieces
            if a != b:
                pairs = zip(a, b, strict=False)
                return (start + next(i for i, (x, y) in enumerate(pairs) if x != y)) // itemsize
    return None


def _differ(file: str, name: str, alias: str, *notes: str) -> ReshardError:
    return source_error(
        "replica-mismatch",
        f"copies of `{name}` (param) differ",
        notes=[f"`{alias}` is another name of it, and {file} stores both", *notes],
        helps=[
            "the run that wrote the file would load either into both: find out which one is right"
        ],
    )


def _bytes(root: Path, tensor: LocalTensor) -> bytes:
    """The elements of a one-dimensional tensor."""
    itemsize = tensor.dtype.itemsize
    out = []
    for fragment in tensor.fragments:
        step = (fragment.strides or (1,))[0] * itemsize
        with (root / fragment.file).open("rb", buffering=0) as file:
            if step == itemsize:
                file.seek(fragment.byte_offset)
                out.append(file.read(fragment.numel * itemsize))
                continue
            for index in range(fragment.numel):
                file.seek(fragment.byte_offset + index * step)
                out.append(file.read(itemsize))
    return b"".join(out)
