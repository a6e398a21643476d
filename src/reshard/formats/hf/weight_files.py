"""Which files of a folder hold the weights of the model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NoReturn

from reshard.errors import source_error
from reshard.models import adapters
from reshard.storage.index import SUFFIX, read_index
from reshard.store.source import LocalSource

Kind = Literal["safetensors", "torch", "shards"]

_SHARD = re.compile(r"shard-([0-9]+)-model-([0-9]+)-of-([0-9]+)\.safetensors")
_NUMBERED = re.compile(r"(.+)-([0-9]+)-of-([0-9]+)(\.safetensors|\.bin)")
_SHOWN = 5
_TORCH = "pytorch_model.bin"
_TORCH_INDEX = "pytorch_model.bin.index.json"


@dataclass(frozen=True, slots=True)
class WeightFiles:
    """The files of a model.

    Args:  kind: `shards` are those of torch's distributed writer, each with parts of tensors.
           files: relative names, in the order of their numbers.
           index: name of the index, if there is one.  weight_map: what it says.
    """

    kind: Kind
    files: tuple[str, ...]
    index: str | None = None
    weight_map: Mapping[str, str] | None = None


def find_weights(path: Path) -> WeightFiles:
    """The one set of weight files that a folder holds; safetensors before torch files.

    Raises: ReshardError[ambiguous-weights | incomplete-hf | bad-index].
    """
    names = list(LocalSource(path).files())
    plain = [name for name in names if name.endswith(".safetensors")]
    index = _index(path, names)
    shards = [name for name in plain if _SHARD.fullmatch(name)]
    if index is not None:
        weights = _indexed(path, "safetensors", index)
        _refuse_second(path, weights, [name for name in plain if _is_of(name, index)])
        if shards:
            _ambiguous(path, f"`{index}`", f"`{shards[0]}`")
        return weights
    if shards:
        if len(shards) < len(plain):
            other = next(name for name in plain if name not in shards)
            _ambiguous(path, f"`{shards[0]}`", f"`{other}`")
        return WeightFiles("shards", tuple(sorted(shards, key=_numbers)))
    if "model.safetensors" in plain or (len(plain) == 1 and not _is_whole_set(plain)):
        file = "model.safetensors" if "model.safetensors" in plain else plain[0]
        _refuse_unindexed(path, [file] if len(plain) == 1 else plain)
        return WeightFiles("safetensors", (file,))
    if _is_whole_set(plain):
        return WeightFiles("safetensors", tuple(plain))
    if plain:
        _refuse_unindexed(path, plain)
        _ambiguous(path, f"`{plain[0]}`", f"`{plain[1]}`")
    return _torch_files(path, names)


def find_torch(path: Path) -> WeightFiles:
    """The one set of torch files that a folder holds.

    Raises: ReshardError[ambiguous-weights | incomplete-hf | bad-index].
    """
    return _torch_files(path, list(LocalSource(path).files()))


def _index(path: Path, names: list[str]) -> str | None:
    indices = [name for name in names if name.endswith(SUFFIX)]
    if f"model{SUFFIX}" in indices:
        return f"model{SUFFIX}"
    if len(indices) > 1:
        _ambiguous(path, f"`{indices[0]}`", f"`{indices[1]}`")
    return indices[0] if indices else None


def _is_of(name: str, index: str) -> bool:
    """Whether a file is, by its name, of the set of an index."""
    stem = index.removesuffix(SUFFIX)
    match = _NUMBERED.fullmatch(name)
    return name == f"{stem}.safetensors" or (match is not None and match[1] == stem)


def _indexed(path: Path, kind: Kind, index: str) -> WeightFiles:
    weight_map = read_index(path / index).weight_map
    files = tuple(sorted(set(weight_map.values())))
    return WeightFiles(kind, files, index, weight_map)


def _torch_files(path: Path, names: list[str]) -> WeightFiles:
    numbered = [n for n in names if n.startswith("pytorch_model-") and n.endswith(".bin")]
    if _TORCH_INDEX in names:
        weights = _indexed(path, "torch", _TORCH_INDEX)
        _refuse_second(path, weights, [*numbered, *([_TORCH] if _TORCH in names else [])])
        return weights
    if _TORCH not in names and _is_whole_set(numbered):
        return WeightFiles("torch", tuple(numbered))
    if numbered:
        _refuse_unindexed(path, [*numbered, *([_TORCH] if _TORCH in names else [])])
    is_adapter = adapters.TORCH in names and _TORCH not in names
    return WeightFiles("torch", (adapters.TORCH if is_adapter else _TORCH,))


def _refuse_second(path: Path, weights: WeightFiles, candidates: list[str]) -> None:
    """Refuse files that by their names belong to the set and that its index does not name."""
    for name in candidates:
        if name not in weights.files:
            _ambiguous(path, f"`{weights.index}`", f"`{name}`, which it does not name")


def _refuse_unindexed(path: Path, names: list[str]) -> None:
    numbered = [name for name in names if _NUMBERED.fullmatch(name)]
    if not numbered:
        return
    if len(numbered) < len(names):
        other = next(name for name in names if name not in numbered)
        _ambiguous(path, f"`{other}`", f"`{numbered[0]}`")
    matches = [match for name in numbered if (match := _NUMBERED.fullmatch(name))]
    stem, total, ending = matches[0][1], matches[0][3], matches[0][4]
    for match in matches:
        if match.group(1, 3, 4) != (stem, total, ending):
            _ambiguous(path, f"`{matches[0][0]}`", f"`{match[0]}`")
    present = {int(match[2]) for match in matches}
    count = int(total)
    less = count - sum(1 <= number <= count for number in present)
    if not less:
        _ambiguous(path, f"`{matches[0][0]}`", f"`{matches[-1][0]}`")
    missing = (n for n in range(1, count + 1) if n not in present)
    examples = [f"`{stem}-{n:0{len(total)}}-of-{total}{ending}`" for n in islice(missing, _SHOWN)]
    more = f", and {less - _SHOWN:,} more" if less > _SHOWN else ""
    raise source_error(
        "incomplete-hf",
        f"{path} lacks {less:,} of the {count:,} files of a set of weights",
        notes=[f"by the names of the others there are also {', '.join(examples)}{more}"],
        helps=["copy the missing files; a set that is whole needs no index"],
    )


def _is_whole_set(names: list[str]) -> bool:
    """Whether numbered files are all of one set, as their names say; an index tells no more."""
    matches = [match for name in names if (match := _NUMBERED.fullmatch(name))]
    stems = {(match[1], match[3], match[4]) for match in matches}
    numbers = sorted(int(match[2]) for match in matches)
    is_one = len(matches) == len(names) and len(stems) == 1
    return (
        is_one
        and int(matches[0][3]) == len(numbers)
        and numbers == [*range(1, int(matches[0][3]) + 1)]
    )


def _numbers(name: str) -> tuple[int, ...]:
    match = _SHARD.fullmatch(name)
    assert match is not None
    return tuple(int(group) for group in match.groups())


def _ambiguous(path: Path, one: str, other: str) -> NoReturn:
    raise source_error(
        "ambiguous-weights",
        f"{path} holds more than one set of weights",
        notes=[f"it has {one} and {other}"],
        helps=["move one of them out of the folder"],
    )
