"""What lies beside the weights: configuration, tokenizer, code, and whatever else."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from reshard.formats.hf.links import known_file
from reshard.plan.catalog import Left, SourceFile
from reshard.storage.owned import RECEIPT

MAX_NBYTES = 64 << 20
"""Of all the files that go along; a larger one is no part of a tokenizer."""

_MAX_FILES = 1000
_BEYOND = f"beyond {MAX_NBYTES >> 20} MiB or {_MAX_FILES} files in all"
_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|gguf|h5|msgpack|onnx|ot|distcp|index\.json)"
)
_RESERVED = re.compile(r"manifest\.json|layout\.ucl|extra(/.*)?")
"""Names that a universal checkpoint has a meaning for."""


@dataclass(frozen=True, slots=True)
class SideFiles:
    """What goes along with the weights, and what does not."""

    carried: tuple[SourceFile, ...]
    left: tuple[Left, ...]


def find_side_files(root: Path, weights: Collection[str]) -> SideFiles:
    """Every file of a folder but those of its weights.

    Args:  weights: names of the files that hold these, and of their index.
    Raises: ReshardError[outside-link].
    """
    carried: list[SourceFile] = []
    left: list[Left] = []
    total = 0
    for name in _walk(root):
        if name in weights:
            continue
        if _WEIGHTS.fullmatch(name):
            left.append(Left(name, "", "it looks like a file of other tensors, or their index"))
        elif _RESERVED.fullmatch(name):
            left.append(Left(name, "", "its name is taken in a universal checkpoint"))
        elif not _is_plain(name):
            shown = repr(name)[1:-1][:200]
            left.append(Left(shown, "", "its name has characters that a path here may not have"))
        else:
            found = known_file(root, name, "the folder")
            if total + found.nbytes > MAX_NBYTES or len(carried) == _MAX_FILES:
                left.append(Left(name, "", _BEYOND))
            else:
                total += found.nbytes
                carried.append(found)
    return SideFiles(tuple(carried), tuple(left))


def _walk(root: Path) -> Iterator[str]:
    """Relative names of all files; hidden folders are those of other tools."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(set(files) - {RECEIPT}):
            yield (Path(folder) / name).relative_to(root).as_posix()


def _is_plain(name: str) -> bool:
    return name.isprintable() and "\\" not in name and len(name) <= 250
