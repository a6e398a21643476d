"""A set of torch files next to the safetensors files of a model, which loaders do not read.

transformers takes safetensors files first (transformers/modeling_utils.py
`_get_resolved_checkpoint_files`); hubs hold both. What the other set holds is compared: names,
shapes, and types always, bytes where a check is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from reshard.errors import Diagnostic, ReshardError
from reshard.formats.hf.torch_set import state_dict
from reshard.formats.hf.weight_files import WeightFiles, find_torch
from reshard.plan.catalog import Catalog, Left, LocalTensor
from reshard.storage.torch_file import TensorRef
from reshard.store.regular_file import open_regular
from reshard.store.source import LocalSource

_SHOWN = 3
_BLOCK = 1 << 20
CODE = "second-weights"


def second_set(
    root: Path, weights: WeightFiles, tensors: Sequence[LocalTensor]
) -> tuple[tuple[Left, ...], tuple[Diagnostic, ...]]:
    """The files of a second set as they are left out, and a warning where it differs.

    Args:  weights: the set that is read, with its tensors.
    """
    present = _torch_names(root)
    if weights.kind == "torch" or not present:
        return (), ()
    read = weights.index or weights.files[0]
    why = f"`{read}` holds the weights that are read, as transformers does"
    left = tuple(Left(name, "", why) for name in present)
    try:
        other = _stored(root)
    except ReshardError as error:
        headline = error.diagnostics[0].headline
        return left, (_warning(read, present[0], [f"it was not compared: {headline}"]),)
    notes = _differences(read, present[0], tensors, other)
    return left, (_warning(read, present[0], notes),) if notes else ()


def differing_bytes(catalog: Catalog, on_bytes: Callable[[int], None]) -> tuple[Diagnostic, ...]:
    """A warning where tensors of both sets have one shape and type, and other bytes.

    Args:  on_bytes: is told how many bytes more were read.
    """
    root = Path(catalog.root)
    present = _torch_names(root)
    first = catalog.tensors[0].file if catalog.tensors else ""
    if not present or not first.endswith(".safetensors"):
        return ()
    try:
        other = _stored(root)
    except ReshardError:
        return ()  # the reader says so
    unlike = []
    for tensor in catalog.tensors:
        file, ref = other.get(tensor.name, ("", None))
        if ref is None or _kind(ref) != (tensor.dtype, tensor.shape) or not ref.is_contiguous:
            continue
        if len(tensor.fragments) != 1 or tensor.fragments[0].box is not None:
            continue
        fragment, nbytes = tensor.fragments[0], ref.numel * ref.dtype.itemsize
        places = ((fragment.file, fragment.byte_offset), (file, ref.byte_offset))
        if not _are_same(root, *places, nbytes, on_bytes):
            unlike.append(tensor.name)
    if not unlike:
        return ()
    examples = ", ".join(f"`{name}`" for name in unlike[:_SHOWN])
    more = f", and {len(unlike) - _SHOWN} more" if len(unlike) > _SHOWN else ""
    return (_warning(first, present[0], [f"other bytes in both: {examples}{more}"]),)


def _torch_names(root: Path) -> list[str]:
    names = LocalSource(root).files()
    return [
        name
        for name in names
        if name.startswith("pytorch_model") and name.endswith((".bin", ".bin.index.json"))
    ]


def _stored(root: Path) -> dict[str, tuple[str, TensorRef]]:
    """By name, the file of a tensor and where it lies there."""
    files = find_torch(root).files
    return {name: (file, ref) for file in files for name, ref in state_dict(root / file).items()}


def _differences(
    read: str,
    second: str,
    tensors: Sequence[LocalTensor],
    other: Mapping[str, tuple[str, TensorRef]],
) -> list[str]:
    by_name = {tensor.name: tensor for tensor in tensors}
    tied = {_place(*other[name]) for name in by_name if name in other}
    lists = {
        f"only in `{read}`": [name for name in by_name if name not in other],
        f"only in `{second}`": [
            name
            for name, where in other.items()
            if name not in by_name and _place(*where) not in tied
        ],
        "of other shapes or types": list(_unlike(by_name, other, second)),
    }
    out = []
    for what, names in lists.items():
        if names:
            more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            texts = names if "types" in what else [f"`{name}`" for name in names]
            out.append(f"{what}: {', '.join(texts[:_SHOWN])}{more}")
    return out


def _unlike(
    by_name: Mapping[str, LocalTensor], other: Mapping[str, tuple[str, TensorRef]], second: str
) -> Iterator[str]:
    for name, tensor in by_name.items():
        entry = other.get(name)
        if entry is not None and _kind(entry[1]) != (tensor.dtype, tensor.shape):
            dtype, shape = _kind(entry[1])
            yield (
                f"`{name}` is {tensor.dtype} {list(tensor.shape)}, and {dtype} {list(shape)} in "
                f"`{second}`"
            )


def _kind(ref: TensorRef) -> tuple[object, tuple[int, ...]]:
    return ref.dtype, ref.shape


def _place(file: str, ref: TensorRef) -> tuple[object, ...]:
    return file, ref.storage_key, ref.storage_offset, ref.shape


def _are_same(
    root: Path,
    one: tuple[str, int],
    other: tuple[str, int],
    nbytes: int,
    on_bytes: Callable[[int], None],
) -> bool:
    files = [open_regular(root / name) for name, _ in (one, other)]
    try:
        for at in range(0, nbytes, _BLOCK):
            size = min(_BLOCK, nbytes - at)
            both = [
                os.pread(fd, size, start + at)
                for fd, (_, start) in zip(files, (one, other), strict=True)
            ]
            on_bytes(size)
            if both[0] != both[1]:
                return False
        return True
    finally:
        for fd in files:
            os.close(fd)


def _warning(read: str, second: str, notes: Sequence[str]) -> Diagnostic:
    return Diagnostic(
        CODE,
        f"`{second}` does not contain the same weights as `{read}`, which is read",
        level="warning",
        notes=(*notes, "transformers reads safetensors files where a folder has both"),
        helps=("remove the set that is out of date; `--check` and `verify` compare the bytes",),
    )
