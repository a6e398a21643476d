"""The tensors of safetensors files, held to the index that names them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.hf.folder import known_files
from reshard.formats.hf.weight_files import WeightFiles
from reshard.plan.catalog import Fragment, LocalTensor, SourceFile
from reshard.run.states import PARAM
from reshard.storage.safetensors import SafetensorsHeader, read_header

_SHOWN = 5


def read_set(
    root: Path, weights: WeightFiles
) -> tuple[tuple[LocalTensor, ...], tuple[SourceFile, ...]]:
    """Every tensor of a set of files, each whole, in the order of the files.

    Raises: ReshardError[missing-file | outside-link | bad-safetensors | index-mismatch |
            duplicate-tensor].
    """
    named_by = f"`{weights.index}`" if weights.index else "the folder"
    files = known_files(root, weights.files, named_by)
    headers = {name: read_header(root / name) for name in weights.files}
    check_index(root, weights, {name: tuple(item.tensors) for name, item in headers.items()})
    tensors = [
        LocalTensor(
            name,
            PARAM,
            (),
            item.shape,
            item.dtype,
            (Fragment(0, prod(item.shape), file, item.byte_offset),),
        )
        for file, header in headers.items()
        for name, item in header.tensors.items()
    ]
    return tuple(tensors), files


def check_index(root: Path, weights: WeightFiles, held: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse files that do not hold what the index says, no more and no less.

    Args:  held: names of tensors by file.
    Raises: ReshardError[index-mismatch].
    """
    if weights.weight_map is None:
        _refuse_twice(root, held)
        return
    names_of = {file: frozenset(names) for file, names in held.items()}
    faults = [
        f"`{name}` is not in `{file}`, where the index has it"
        for name, file in weights.weight_map.items()
        if name not in names_of[file]
    ]
    for file, names in held.items():
        for name in names:
            indexed = weights.weight_map.get(name)
            if indexed is None:
                faults.append(f"`{name}` in `{file}` is not in the index")
            elif indexed != file and name in names_of[indexed]:
                faults.append(f"`{name}` is in `{file}` too, and the index has it in `{indexed}`")
    if faults:
        raise _mismatch(root, weights, faults)


def _refuse_twice(root: Path, names_of: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a name that several files of a set without an index have."""
    first: dict[str, str] = {}
    for file, names in names_of.items():
        for name in names:
            if name in first:
                raise source_error(
                    "index-mismatch",
                    f"two files of {root} contain `{name}`, and no index states which one to use",
                    notes=[f"it is in `{first[name]}` and in `{file}`"],
                    helps=["copy the index of the set too"],
                )
            first[name] = file


def metadata_of(headers: Mapping[str, SafetensorsHeader]) -> Mapping[str, str]:
    """What the files say besides their tensors, where they say anything unusual."""
    out: dict[str, str] = {}
    for header in headers.values():
        out.update(header.metadata)
    return out


def _mismatch(root: Path, weights: WeightFiles, faults: list[str]) -> ReshardError:
    more = [f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
    return source_error(
        "index-mismatch",
        f"{root / str(weights.index)} and the files that it names disagree",
        notes=[*faults[:_SHOWN], *more],
        helps=["the folder mixes two checkpoints, or was not copied whole; copy it again"],
    )
