"""The weights in model files: parameters, buffers, frozen parameters, and names for one thing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

from reshard.algebra.partition import Each, spread
from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.deepspeed.groups import share_of
from reshard.formats.deepspeed.model_file import ModelFile
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
        trained = {name for shapes in model.param_shapes or () for name in shapes}
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
    stored |= {name for model in models for shapes in model.param_shapes or () for name in shapes}
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
    elsewhere = {name for shapes in first.param_shapes or () for name in shapes}
    elsewhere.update(first.frozen_shapes or (), first.shared)
    empty = {(first.module or {})[n].shape for n in elsewhere if n in (first.module or {})}
    for name, ref in (first.module or {}).items():
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
