"""Reads a distributed checkpoint: every chunk becomes a box of its tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.dcp.detect import dcp_folders
from reshard.formats.dcp.names import Names, group_path
from reshard.plan.catalog import Catalog, LocalTensor, Training
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import Metadata, read_metadata

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout dcp {
    "**" = [...] optional
}
"""


def read(path: Path, *, step: str | None = None, strict_layout: bool = True) -> Catalog:
    """The catalog of a distributed checkpoint.

    Args:  path: the folder with `.metadata`; or one with accelerate's two folders; or, with `step`,
           the folder that holds it.
    Raises: ReshardError[incomplete-dcp | bad-metadata | missing-chunk | missing-file |
            chunk-mismatch | unsupported-dcp | ambiguous-optimizer-ids | source-unreadable |
            truncated].
    """
    folder = path if step is None else path / step
    tensors: list[LocalTensor] = []
    groups: dict[str | int, dict[str, object]] = {}
    objects: dict[str, object] = {}
    version = ""
    chunks = ChunkReader(folder)
    for item in dcp_folders(folder) or (folder,):
        prefix = "" if item == folder else f"{item.name}/"
        metadata = read_metadata(item, shown=prefix)
        chunks.know(f"{prefix}.metadata")
        version = metadata.version or version
        names = Names(metadata.paths, [t.name for t in metadata.tensors])
        tensors += _tensors(metadata, names, chunks)
        for name, value in chunks.objects(metadata):
            owner = group_path(names.path(name))
            if owner is None:
                objects[name] = value
            else:
                groups.setdefault(owner[0], {})[owner[1]] = value
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
        files=tuple(chunks.files.values()),
    )


def _tensors(metadata: Metadata, names: Names, chunks: ChunkReader) -> Iterator[LocalTensor]:
    """Every tensor with its chunks as fragments."""
    for stored in metadata.tensors:
        role = names.role(stored.name)
        if isinstance(role, int):
            raise source_error(
                "ambiguous-optimizer-ids",
                f"`{stored.name}` belongs to parameter number {role}, which has no name",
                notes=["the optimizer was saved by its own `state_dict()`, which counts"],
                helps=["save it through `torch.distributed.checkpoint.state_dict`"],
            )
        fragments = chunks.fragments(stored)
        yield LocalTensor(role.name, role.state, (), stored.shape, stored.dtype, fragments)


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
