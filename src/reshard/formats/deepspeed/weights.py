"""The weights in model files and in the layer files of pipelines, and names for one thing.

Source: DeepSpeed 0.19.8, runtime/pipe/module.py `save_state_dict` and `_build`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal

from reshard.algebra.partition import Each, spread
from reshard.dtypes import DType
from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.files import Files, Folder
from reshard.formats.deepspeed.groups import share_of
from reshard.formats.deepspeed.model_file import ModelFile, Shapes
from reshard.formats.deepspeed.node import missing_rank_file, partition_mismatch, unexpected
from reshard.formats.deepspeed.source import Grid
from reshard.plan.catalog import Coord, LocalTensor
from reshard.run.states import PARAM
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef
from reshard.store.regular_file import pread_regular


def find_aliases(models: Iterable[ModelFile]) -> dict[str, str]:
    """Other names of a parameter: alias -> the name under which it is stored.

    What the writer says (`shared_params`, which only the first rank knows), and names of one file
    that refer to the same memory.

    Raises: ReshardError[unexpected-content].
    """
    models = tuple(models)
    out = {alias: name for model in models for alias, name in model.shared.items()}
    stored: set[str] = set()
    for model in models:
        trained = model.trained
        stored |= {*model.module, *trained}
        places: dict[object, str] = {}
        for name in sorted(model.module, key=lambda n: (n not in trained, n in out)):
            ref = model.module[name]
            if not ref.numel:
                continue
            place = (ref.storage_key, ref.storage_offset, ref.shape, ref.strides, ref.dtype)
            first = places.setdefault(place, name)
            if first != name and name not in out and name not in trained:
                out[name] = first
    resolved = {alias: _resolve(alias, out) for alias in out}
    # A name whose tensor is stored under it alone stays what it is.
    return {a: name for a, name in resolved.items() if name in stored or a not in stored}


def _resolve(alias: str, aliases: Mapping[str, str]) -> str:
    """The name at the end of a chain of names."""
    name = aliases[alias]
    for _ in range(len(aliases)):
        if name not in aliases:
            return name
        name = aliases[name]
    raise unexpected(
        f"`shared_params` says that `{alias}` is another name of itself",
        f"`{alias}` is `{aliases[alias]}`, and so on, in a circle",
    )


def module_tensors(
    model: ModelFile, coord: Coord, aliases: Mapping[str, str]
) -> Iterator[LocalTensor]:
    """The weights of one model file of stages 0 to 2, each under one name."""
    for name, ref in model.module.items():
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
    elsewhere = {*first.trained, *first.frozen_shapes, *first.shared}
    empty = {first.module[name].shape for name in elsewhere if name in first.module}
    for name, ref in first.module.items():
        is_empty = not ref.numel or ref.shape in empty & {(1,)}  # (1,) is of older versions
        if name in first.buffer_names or (name not in elsewhere and not is_empty):
            yield local_tensor(ref, name, PARAM, coord, first.file)
    for name, shape in first.frozen_shapes.items():
        yield _frozen(models, name, shape, coord)


def _frozen(
    models: Sequence[ModelFile], name: str, shape: tuple[int, ...], coord: Coord
) -> LocalTensor:
    cut = spread(Each(), [shape], len(models))
    refs: list[TensorRef] = []
    for model in models:
        ref = model.frozen_fragments.get(name)
        if ref is None or ref.numel != cut.lengths[0] or not ref.is_contiguous:
            raise partition_mismatch(
                f"the frozen parameter `{name}` does not add up",
                f"{prod(shape)} elements over {len(models)} ranks make {cut.lengths[0]} on each",
                f"{model.file} has {'none' if ref is None else ref.numel}",
            )
        refs.append(ref)
    files = [model.file for model in models]
    fragments = tuple(share_of(share, refs, files) for share in cut.shares)
    return LocalTensor(name, PARAM, coord, shape, refs[0].dtype, fragments)


def compute_dtype(models: Iterable[ModelFile]) -> DType | None:
    """The element type that most weights of the module have; None if there are none."""
    counts = Counter(
        ref.dtype
        for model in models
        for name, ref in model.module.items()
        if name not in model.buffer_names
    )
    return max(counts, key=lambda dtype: counts[dtype], default=None)


# Pipelines.

TIED = "tied_modules."


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
        self._trained = {mp_rank: model.trained for mp_rank, model in models.items()}
        self._layers: dict[int, dict[int, tuple[str, dict[str, TensorRef]]]] = {}
        for (layer, tp_rank), file in folder.layers.items():
            weights: dict[str, TensorRef] = {}
            for key, item in files.root_of(file).entries():
                if isinstance(item.value, TensorRef):
                    weights[key] = item.value
                elif not item.is_none:
                    files.leave(item, "it is no tensor")
            self._layers.setdefault(tp_rank or 0, {})[layer] = (file, weights)
        self._numbers = {
            layer for files_of_rank in self._layers.values() for layer in files_of_rank
        }
        for tp_rank in range(grid.tp):
            missing = sorted(self._numbers - set(self._layers.get(tp_rank, {})))
            if missing:
                raise missing_rank_file(
                    f"layer {missing[0]} of tp rank {tp_rank} has no file",
                    f"{len(folder.layers)} layer files are here",
                )
        self._stages = self._find_stages()

    def tensors(self, tp_rank: int) -> Iterator[LocalTensor]:
        """Weights of every layer of one tp rank under the names that the optimizer uses.

        Raises: ReshardError[ambiguous-tied-layer].
        """
        for layer, (file, weights) in sorted(self._layers.get(tp_rank, {}).items()):
            stage = self._stages.get(layer)
            coord = self._grid.coord((stage or 0) * self._grid.tp + tp_rank)
            if stage is None:
                coord = tuple(item for item in coord if item[0] != "pp")
            prefix = self._prefix(layer, tp_rank, weights, file)
            keys = self.keys.setdefault(str(layer), {})
            for local, ref in weights.items():
                keys[local] = f"{prefix}{local}"
                yield local_tensor(ref, f"{prefix}{local}", PARAM, coord, file)

    def _names(self, stage: int, tp_rank: int) -> Shapes:
        """Trained parameters of one rank with their shapes."""
        return self._trained[stage * self._grid.tp + tp_rank]

    def _find_stages(self) -> dict[int, int]:
        """By layer, its stage, as far as the names of trained parameters tell."""
        known = {
            int(head): stage
            for stage in range(self._grid.pp)
            for name in self._names(stage, 0)
            if (head := name.split(".", 1)[0]).isdecimal()
        }
        out: dict[int, int] = {}
        for layer in self._numbers:
            below = max((n for n in known if n <= layer), default=None)
            above = min((n for n in known if n >= layer), default=None)
            low = 0 if below is None else known[below]
            high = self._grid.pp - 1 if above is None else known[above]
            if low == high:
                out[layer] = low
        return out

    def _prefix(self, layer: int, tp_rank: int, weights: Mapping[str, TensorRef], file: str) -> str:
        """What stands before the local names of a layer: its number, or the key it is tied by."""
        number = f"{layer}."
        stages = [self._stages[layer]] if layer in self._stages else range(self._grid.pp)
        ties: dict[str, dict[str, tuple[int, ...]]] = {}
        for stage in stages:
            names = self._names(stage, tp_rank)
            if any(name.startswith(number) for name in names):
                return number
            for name, shape in names.items():
                if name.startswith(TIED):
                    key, _, local = name.removeprefix(TIED).partition(".")
                    ties.setdefault(key, {})[local] = shape
        fitting = [
            f"{TIED}{key}"
            for key, shapes in ties.items()
            if all(n in weights and weights[n].shape == shape for n, shape in shapes.items())
        ]
        if len(fitting) > 1:
            listed = ", ".join(f"`{name}`" for name in fitting)
            raise source_error(
                "ambiguous-tied-layer",
                f"{file} may be the weights of {len(fitting)} tied modules",
                notes=[
                    f"they have the same names and shapes: {listed}",
                    "the name of a layer's file does not state by which key it is tied",
                ],
                helps=["save the checkpoint with tied modules of different names or shapes"],
            )
        return f"{fitting[0]}." if fitting else number


def missing_layers(tensors: Sequence[LocalTensor], models: Iterable[ModelFile]) -> list[str]:
    """Files of layers that have trained parameters, and are not there."""
    present = {tensor.name for tensor in tensors}
    out: dict[str, None] = {}
    for name in dict.fromkeys(name for model in models for name in model.trained):
        head, key = name.split(".", 1)[0], name.removeprefix(TIED).partition(".")[0]
        if name not in present and head.isdecimal():
            out[f"layer_{int(head):02d}-*"] = None
        elif name not in present and name.startswith(TIED):
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
    kind = (first.shape, first.dtype)
    too_large = first.numel * itemsize > _MAX_NBYTES
    if too_large or any((tensor.shape, tensor.dtype) != kind for tensor in tensors):
        return "differ"
    data = _bytes(root, first)
    if any(_bytes(root, tensor) != data for tensor in tensors[1:]):
        return "differ"
    return "constant" if data == data[:itemsize] * first.numel else "copies"


def _bytes(root: Path, tensor: LocalTensor) -> bytes:
    """The elements of a one-dimensional tensor."""
    itemsize = tensor.dtype.itemsize
    out = []
    for part in tensor.fragments:
        count, numel, step = 1, part.numel, (part.strides or (1,))[0] * itemsize
        if step != itemsize:
            count, numel = numel, 1
        for at in range(count):
            out.append(
                pread_regular(root / part.file, part.byte_offset + at * step, numel * itemsize)
            )
    return b"".join(out)


def check_tied(root: Path, model: ModelFile, aliases: Mapping[str, str]) -> None:
    """Compare tied weights that one file stores under several names, each with its own memory.

    Args:  root: what file names are relative to.  aliases: other names of a parameter.
    Raises: ReshardError[replica-mismatch].
    """
    for alias, name in aliases.items():
        one, other = model.module.get(name), model.module.get(alias)
        if one is None or other is None or not one.numel or not other.numel:
            continue
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            kinds = [
                f"`{n}` is {r.dtype} {list(r.shape)}" for n, r in ((name, one), (alias, other))
            ]
            raise _differ(model.file, name, alias, *kinds)
        if one.storage_key == other.storage_key and one.storage_offset == other.storage_offset:
            continue
        if one.is_contiguous and other.is_contiguous:
            at = _first_difference(root, model.file, one, other)
            if at is not None:
                where = f"the first difference is at element {at}"
                raise _differ(model.file, name, alias, where)


def _first_difference(root: Path, file: str, one: TensorRef, other: TensorRef) -> int | None:
    """The number of the first element that two tensors of a file do not share."""
    nbytes = one.numel * one.dtype.itemsize
    for start in range(0, nbytes, _MAX_NBYTES):
        size = min(_MAX_NBYTES, nbytes - start)
        a, b = (pread_regular(root / file, ref.byte_offset + start, size) for ref in (one, other))
        if a != b:
            first = next(at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
            return (start + first) // one.dtype.itemsize
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
