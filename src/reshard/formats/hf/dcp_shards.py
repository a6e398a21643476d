"""Folders of torch's distributed writer for Hugging Face: every rank's files, boxes of tensors.

A file says where its boxes begin, and nothing says how large the whole tensors are: they end where
the last box ends. So a lost file is looked for by the numbers in the names, and by the rule that
DTensor cuts by (all parts are as long as the first, but for the last ones).

Source: torch/distributed/checkpoint/hf_storage.py, `_hf_utils.py` (2.13).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.dtypes import DType
from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.hf.folder import known_files
from reshard.formats.hf.weight_files import WeightFiles
from reshard.plan.catalog import Fragment, LocalTensor, SourceFile
from reshard.run.states import PARAM
from reshard.storage.safetensors import SafetensorsHeader, StoredTensor, read_header

_NAME = re.compile(r"shard-([0-9]+)-model-([0-9]+)-of-([0-9]+)\.safetensors")
_INFO = "DCP_SHARDING_INFO"


@dataclass(frozen=True, slots=True)
class _Part:
    """A box of a tensor and where it lies."""

    lo: tuple[int, ...]
    stored: StoredTensor
    file: str

    @property
    def hi(self) -> tuple[int, ...]:
        return tuple(a + n for a, n in zip(self.lo, self.stored.shape, strict=True))


def read_shards(
    root: Path, weights: WeightFiles
) -> tuple[tuple[LocalTensor, ...], tuple[SourceFile, ...], tuple[Diagnostic, ...]]:
    """Every tensor with its boxes, the files, and a warning if the last rank may be missing.

    Raises: ReshardError[missing-file | outside-link | bad-safetensors | bad-shard].
    """
    files = known_files(root, weights.files, "the folder")
    parts: dict[str, list[_Part]] = {}
    for name in weights.files:
        header = read_header(root / name)
        offsets = _offsets(root / name, header)
        for tensor, stored in header.tensors.items():
            parts.setdefault(tensor, []).append(_Part(offsets[tensor], stored, name))
    _refuse_missing(root, weights.files, parts)
    tensors = tuple(_tensor(root, name, parts_of) for name, parts_of in parts.items())
    return tensors, files, _unproved(root, weights.files, parts)


def _tensor(root: Path, name: str, parts: Sequence[_Part]) -> LocalTensor:
    first = parts[0]
    for part in parts:
        if part.stored.dtype != first.stored.dtype or len(part.lo) != len(first.lo):
            raise _bad(
                root / part.file,
                f"`{name}` is {_told(part.stored)}, and {_told(first.stored)} in `{first.file}`",
            )
    shape = tuple(max(ends) for ends in zip(*(part.hi for part in parts), strict=True))
    fragments = tuple(
        _fragment(part, shape)
        for part in sorted(parts, key=lambda item: item.lo)
        if prod(part.stored.shape) or not prod(shape)
    )
    return LocalTensor(name, PARAM, (), shape, first.stored.dtype, fragments)


def _fragment(part: _Part, shape: tuple[int, ...]) -> Fragment:
    size = part.stored.shape
    box = None if size == shape else Box(part.lo, size)
    return Fragment(0, prod(size), part.file, part.stored.byte_offset, None, None, box)


def _offsets(path: Path, header: SafetensorsHeader) -> Mapping[str, tuple[int, ...]]:
    text = header.metadata.get(_INFO)
    if text is None:
        raise _bad(path, f"it has no `{_INFO}`")
    try:
        info = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"its `{_INFO}` is no JSON: {error}") from None
    if not isinstance(info, dict):
        raise _bad(path, f"its `{_INFO}` is no object")
    out: dict[str, tuple[int, ...]] = {}
    for name, stored in header.tensors.items():
        entry = info.get(name)
        offsets = entry.get("saved_offsets") if isinstance(entry, dict) else None
        values = offsets if isinstance(offsets, list) else []
        good = [n for n in values if type(n) is int and 0 <= n < 2**63]
        if offsets != good or len(good) != len(stored.shape):
            raise _bad(path, f"its `{_INFO}` has no offsets for `{name}` {list(stored.shape)}")
        if stored.dtype == DType.F4 and good:
            if good[-1] % 2:
                raise _bad(path, f"`{name}` in F4 begins within a byte")
            good[-1] //= 2
        out[name] = tuple(good)
    return out


def _refuse_missing(root: Path, files: Sequence[str], parts: Mapping[str, Sequence[_Part]]) -> None:
    """Refuse a grid of ranks and numbers with holes, but for files of uncut tensors."""
    grid = {tuple(map(int, match.groups())) for match in map(_NAME.fullmatch, files) if match}
    totals = {total for _, _, total in grid}
    if len(totals) > 1:
        raise source_error(
            "ambiguous-weights",
            f"{root} holds more than one set of weights",
            notes=[f"its files say that there are {' and '.join(map(str, sorted(totals)))} files"],
            helps=["move one of them out of the folder"],
        )
    shared = [part for parts_of in parts.values() if len(parts_of) > 1 for part in parts_of]
    cut = {int(_NAME.sub(r"\2", part.file)) for part in shared}
    total = totals.pop()
    ranks = range(1, max(rank for rank, _, _ in grid) + 1)
    present = {number for _, number, _ in grid}
    expected = [(rank, number) for number in range(1, total + 1) for rank in ranks]
    missing = [
        f"shard-{rank:05}-model-{number:05}-of-{total:05}.safetensors"
        for rank, number in expected
        if (rank, number, total) not in grid and (number in cut or number not in present)
    ]
    if missing:
        raise source_error(
            "missing-file",
            f"{root} lacks shards that other files show to be missing",
            notes=[
                f"{len(grid)} of them are there, of {len(ranks)} ranks with {total} files each",
                *(f"`{name}` is not" for name in missing[:5]),
                *([f"and {len(missing) - 5} more are not"] if len(missing) > 5 else []),
            ],
            helps=["copy the folders of all ranks into one"],
        )


def _unproved(
    root: Path, files: Sequence[str], parts: Mapping[str, Sequence[_Part]]
) -> tuple[Diagnostic, ...]:
    """A warning where no tensor's last part is shorter than its first, so none is surely last."""
    cut = [parts_of for parts_of in parts.values() if len(parts_of) > 1]
    for parts_of in cut:
        ordered = sorted(parts_of, key=lambda part: part.lo)
        if prod(ordered[-1].stored.shape) < prod(ordered[0].stored.shape):
            return ()
    if not cut:
        return ()
    ranks = max(int(_NAME.sub(r"\1", name)) for name in files)
    return (
        Diagnostic(
            "unproved-shapes",
            f"nothing says that rank {ranks - 1} of {root} was the last",
            level="warning",
            notes=(
                "its files do not say how large the whole tensors are; every tensor ends where its "
                "last part ends",
                "all parts of each tensor are equally long, so that more may have followed",
            ),
            helps=(
                "name the model with `--model`, to hold the shapes against its configuration; give "
                "that with `--config DIR` if the folder has no `config.json`",
            ),
        ),
    )


def _told(stored: StoredTensor) -> str:
    return f"{stored.dtype} with {len(stored.shape)} dimensions"


def _bad(path: Path, why: str) -> ReshardError:
    return source_error(
        "bad-shard",
        f"{path} is not a shard of a distributed checkpoint",
        notes=[why],
        helps=["the folder mixes two checkpoints, or is damaged; copy it again"],
    )
