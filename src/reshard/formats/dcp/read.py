"""Reads a distributed checkpoint: every chunk becomes a box of its tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from reshard.algebra.box import Box
from reshard.errors import ReshardError, source_error
from reshard.formats.dcp.detect import dcp_folders
from reshard.storage.dcp_metadata import Chunk, Metadata, StoredTensor, read_metadata
from reshard.formats.dcp.names import Names, group_path
from reshard.plan.catalog import Catalog, Fragment, LocalTensor, SourceFile, Training
from reshard.storage.objects import to_json
from reshard.storage.torch_file import TensorRef, open_torch_file

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout dcp {
    "**" = [...] optional
}
"""


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a distributed checkpoint.

    Args:  path: the folder with `.metadata`; or one with accelerate's two folders; or, with `step`,
           the folder that holds `step-N`.
    Raises: ReshardError[incomplete-dcp | bad-metadata | missing-chunk | chunk-mismatch |
            unsupported-dcp | ambiguous-optimizer-ids | source-unreadable | truncated].
    """
    folder = path if step is None else path / step
    folders = dcp_folders(folder) or (folder,)
    tensors: list[LocalTensor] = []
    files: dict[str, SourceFile] = {}
    groups: dict[str | int, dict[str, object]] = {}
    objects: dict[str, object] = {}
    version = ""
    for item in folders:
        prefix = "" if item == folder else f"{item.name}/"
        metadata = read_metadata(item, shown=prefix)
        version = metadata.version or version
        reader = _Reader(folder, metadata, apart=bool(prefix))
        tensors += reader.tensors()
        for name, value in reader.objects():
            owner = group_path(reader.names.path(name))
            if owner is None:
                objects[name] = value
            else:
                groups.setdefault(owner[0], {})[owner[1]] = value
        files.update(reader.files)
        files[f"{prefix}.metadata"] = _source_file(folder, f"{prefix}.metadata")
    return Catalog(
        format="dcp",
        version=version,
        root=str(folder.resolve()),
        mesh={},
        tensors=tuple(tensors),
        layout=LAYOUT,
        layout_name="dcp",
        training=Training(
            iteration=_iteration(objects),
            param_groups=_param_groups(groups),
            framework={"name": "dcp", "version": version, "objects": objects},
        ),
        files=tuple(files.values()),
    )


@dataclass
class _Reader:
    """Reads one folder; `apart` for accelerate's, whose names lack nothing but the other folder."""

    root: Path
    metadata: Metadata
    apart: bool = False

    def __post_init__(self) -> None:
        keys = [t.name for t in self.metadata.tensors]
        self.names = Names(self.metadata.paths, keys)
        self.files: dict[str, SourceFile] = {}

    def tensors(self) -> Iterator[LocalTensor]:
        """Every tensor with its chunks as fragments."""
        for stored in self.metadata.tensors:
            role = self.names.role(stored.name)
            if isinstance(role, int):
                raise source_error(
                    "ambiguous-optimizer-ids",
                    f"`{stored.name}` belongs to parameter number {role}, which has no name",
                    notes=["the optimizer was saved by its own `state_dict()`, which counts"],
                    helps=["save it through `torch.distributed.checkpoint.state_dict`"],
                )
            _check_volume(stored)
            fragments = [self._fragment(stored, chunk) for chunk in stored.chunks]
            kept = tuple(f for f in fragments if f.numel or not stored.shape) or tuple(
                fragments[:1]
            )
            yield LocalTensor(role.name, role.state, (), stored.shape, stored.dtype, kept)

    def objects(self) -> Iterator[tuple[str, object]]:
        """Every pickled object by name, as tagged JSON."""
        for item in self.metadata.objects:
            self._know(item.file)
            opened = open_torch_file(self.root / item.file, item.byte_offset, item.nbytes)
            yield item.name, to_json(opened.root, tensor=_no_tensor)

    def _know(self, file: str) -> None:
        if file not in self.files:
            self.files[file] = _source_file(self.root, file)

    def _fragment(self, stored: StoredTensor, chunk: Chunk) -> Fragment:
        self._know(chunk.file)
        path = self.root / chunk.file
        root = open_torch_file(path, chunk.byte_offset, chunk.nbytes).root
        if not isinstance(root, TensorRef):
            raise _mismatch(stored, chunk, path, "it is no tensor")
        if root.shape != chunk.size or root.dtype != stored.dtype:
            raise _mismatch(stored, chunk, path, f"it is {root.dtype} of shape {list(root.shape)}")
        dense = root.is_contiguous
        whole = chunk.size == stored.shape
        return Fragment(
            0,
            prod(chunk.size),
            chunk.file,
            root.byte_offset,
            None if dense else root.strides,
            None,
            None if whole else Box(chunk.lo, chunk.size),
        )


def _check_volume(stored: StoredTensor) -> None:
    """Chunks that do not add up; the coverage proof looks closer."""
    held = sum(prod(chunk.size) for chunk in stored.chunks)
    if held < prod(stored.shape):
        raise source_error(
            "missing-chunk",
            f"`{stored.name}` is not stored whole",
            notes=[
                f"its chunks hold {held} of the {prod(stored.shape)} elements "
                f"of shape {list(stored.shape)}"
            ],
            helps=["the checkpoint is damaged, or one rank's part is missing; use an earlier one"],
        )


def _mismatch(stored: StoredTensor, chunk: Chunk, path: Path, why: str) -> ReshardError:
    return source_error(
        "chunk-mismatch",
        f"the chunk of `{stored.name}` at {list(chunk.lo)} is not what `.metadata` says",
        notes=[
            f"{why}, in {path} at byte {chunk.byte_offset}",
            f"wanted: {stored.dtype} of shape {list(chunk.size)}",
        ],
        helps=["the folder mixes files of two checkpoints, or is damaged; copy it again"],
    )


def _source_file(root: Path, file: str) -> SourceFile:
    try:
        stat = (root / file).stat()
    except OSError:
        raise source_error(
            "missing-file",
            f"{root / file} is missing",
            notes=[f"`.metadata` in {root} names it"],
            helps=["copy the whole folder; every rank wrote a part of it"],
        ) from None
    return SourceFile(file, stat.st_size, stat.st_mtime_ns)


def _no_tensor(ref: TensorRef) -> object:
    return {"$tensor": {"dtype": str(ref.dtype), "shape": list(ref.shape)}}


def _iteration(objects: Mapping[str, object]) -> int | None:
    for key in ("train_state.step", "trainer.global_step", "lr_scheduler.last_epoch"):
        value = objects.get(key)
        if isinstance(value, int):
            return value
    return None


def _param_groups(
    groups: Mapping[str | int, Mapping[str, object]],
) -> tuple[Mapping[str, object], ...]:
    """Groups as they were; per-parameter hyper-parameters become groups of equal values."""
    numbered = [groups[key] for key in sorted(k for k in groups if isinstance(k, int))]
    out: list[dict[str, object]] = [dict(item) for item in numbered]
    for name, values in ((k, v) for k, v in groups.items() if isinstance(k, str)):
        for known in out:
            if {k: v for k, v in known.items() if k != "params"} == dict(values):
                params = known["params"]
                assert isinstance(params, list)
                params.append(name)
                break
        else:
            out.append({**values, "params": [name]})
    return tuple(out)


def with_step(catalog: Catalog, iteration: int) -> Catalog:
    """The catalog with an iteration that its folder's name tells."""
    return replace(catalog, training=replace(catalog.training, iteration=iteration))
