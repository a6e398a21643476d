"""The manifest of a universal checkpoint, as a value, and its text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from reshard.dtypes import DType
from reshard.plan.catalog import Fragment, LocalTensor
from reshard.run.run import Run
from reshard.store.digest import PREFIX, digest_bytes

FORMAT = "reshard-universal"
VERSION = 1

_DIGEST_DIGITS = 32
_OWN_DIGEST = b'"digest": "' + PREFIX.encode("ascii")
_EXPANDED = {"training": 1, "tensors": 2, "files": 1, "provenance": 2}
"""How many levels below a key are written one value a line."""


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of one state kind.

    Args:  axes: for each dimension the axes in it, for people.
           byte_offset: absolute.  digest: of its bytes.
    """

    name: str
    state: str
    dtype: DType
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    file: str
    byte_offset: int
    nbytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file besides the manifest.

    Args:  head_nbytes: None, and `digest` is of the whole file; or the length of the header of a
           safetensors file, and `digest` is of that (its tensors have their own).
    """

    path: str
    nbytes: int
    digest: str
    head_nbytes: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything that the manifest says.

    Args:  written_by: program and version.  layout_name: which layout of `layout.ucl`.
           weights_from: state kinds that `model.safetensors.index.json` points at.
           tensors: in the order of the source.  training: without `framework`, which has a file.
           sizes: of the model's axes.  provenance: one record a conversion, the oldest first.
    """

    written_by: str
    layout_name: str
    weights_from: tuple[str, ...]
    tensors: tuple[TensorEntry, ...]
    files: tuple[FileEntry, ...]
    aliases: Mapping[str, str]
    buffers: tuple[str, ...]
    frozen: tuple[str, ...]
    config: Mapping[str, object] | None
    sizes: Mapping[str, int]
    training: Run
    provenance: tuple[Mapping[str, object], ...]


def local_tensors(entries: Iterable[TensorEntry]) -> tuple[LocalTensor, ...]:
    """Every tensor as one run on a mesh of one rank."""
    return tuple(
        LocalTensor(
            item.name,
            item.state,
            (),
            item.shape,
            item.dtype,
            (Fragment(0, prod(item.shape), item.file, item.byte_offset),),
        )
        for item in entries
    )


def manifest_bytes(manifest: Manifest) -> bytes:
    """The text of a manifest, its own digest included; the same manifest gives the same bytes."""
    tensors: dict[str, dict[str, object]] = {}
    for item in manifest.tensors:
        tensors.setdefault(item.name, {})[item.state] = _tensor(item)
    training = manifest.training
    value: dict[str, object] = {
        "format": FORMAT,
        "version": VERSION,
        "digest": PREFIX + "0" * _DIGEST_DIGITS,
        "written_by": manifest.written_by,
        "layout": manifest.layout_name,
        "weights_from": manifest.weights_from,
        "aliases": manifest.aliases,
        "buffers": manifest.buffers,
        "frozen": manifest.frozen,
        "config": manifest.config,
        "sizes": manifest.sizes,
        "training": {
            "iteration": training.iteration,
            "param_groups": training.param_groups,
            "state": training.state or None,
        },
        "tensors": tensors,
        "files": {item.path: _file(item) for item in manifest.files},
        "provenance": manifest.provenance,
    }
    lines = [
        f"  {json.dumps(key)}: {_expanded(item, _EXPANDED.get(key, 0), '  ')}"
        for key, item in value.items()
    ]
    data = ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")
    return with_digest(data, digest_bytes(data))


def json_bytes(value: object) -> bytes:
    """A JSON file."""
    return (_compact(value) + "\n").encode("ascii")


def with_digest(data: bytes, digest: str) -> bytes:
    """The text of a manifest with another digest of itself; unchanged where it has none."""
    at = data.find(_OWN_DIGEST)
    if at < 0:
        return data
    start = at + len(_OWN_DIGEST)
    digits = digest.removeprefix(PREFIX).encode("ascii")
    return data[:start] + digits + data[start + _DIGEST_DIGITS :]


def own_digest(data: bytes) -> str:
    """What a manifest's digest of itself must be: taken with zeros in its place."""
    return digest_bytes(with_digest(data, "0" * _DIGEST_DIGITS))


def _tensor(item: TensorEntry) -> dict[str, object]:
    return {
        "dtype": item.dtype.value,
        "shape": item.shape,
        "axes": item.axes,
        "file": item.file,
        "byte_range": (item.byte_offset, item.byte_offset + item.nbytes),
        "digest": item.digest,
    }


def _file(item: FileEntry) -> dict[str, object]:
    if item.head_nbytes is None:
        return {"nbytes": item.nbytes, "digest": item.digest}
    return {"nbytes": item.nbytes, "head_nbytes": item.head_nbytes, "head_digest": item.digest}


def _expanded(value: object, levels: int, indent: str) -> str:
    """JSON text with the upper levels one value a line."""
    inner = indent + "  "
    if levels and isinstance(value, Mapping) and value:
        items = [
            f"{json.dumps(key)}: {_expanded(item, levels - 1, inner)}"
            for key, item in value.items()
        ]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{indent}}}"
    if levels and isinstance(value, list | tuple) and value:
        items = [_expanded(item, levels - 1, inner) for item in value]
        return "[\n" + ",\n".join(inner + item for item in items) + f"\n{indent}]"
    return _compact(value)


def _compact(value: object) -> str:
    return json.dumps(value, allow_nan=False, default=_plain)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is no JSON value")
