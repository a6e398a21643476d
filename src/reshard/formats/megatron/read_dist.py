"""Reads a `torch_dist` checkpoint.

Source: megatron/core/dist_checkpointing/strategies/torch.py (core 0.5 to 0.20).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from reshard.dtypes import DType
from reshard.errors import source_error
from reshard.formats.megatron.arguments import Arguments, arguments_of
from reshard.formats.megatron.dist_names import FlatKey, key_of
from reshard.formats.megatron.flat_dist import flat_tensors
from reshard.formats.megatron.master_check import check_masters
from reshard.formats.megatron.model_space import original_shape, unfolded
from reshard.formats.megatron.training import Groups, training_of
from reshard.plan.catalog import Catalog, Fragment, LocalTensor
from reshard.storage.bounded_json import load_bounded
from reshard.storage.dcp_chunks import ChunkReader
from reshard.storage.dcp_metadata import Metadata, StoredTensor, read_metadata
from reshard.storage.regular_file import FileTooLargeError, read_regular, unreadable
from reshard.storage.torch_file import TensorRef, open_torch_file, read_small

_MAX_NBYTES = 1 << 20  # of `metadata.json`

LAYOUT = """\
# The checkpoint says itself which box of which tensor each chunk is: nothing is cut by rank.
layout megatron_dist {
    "**" = [...] optional
}
"""


def read_dist(folder: Path) -> Catalog:
    """The catalog of a folder with `metadata.json`.

    Raises: ReshardError[unsupported-backend | shifted-optimizer | buffer-mismatch | no-arguments],
            and what `read_metadata` and `ChunkReader` raise.
    """
    _check_backend(folder)
    metadata = read_metadata(folder)
    chunks = ChunkReader(folder)
    for file in (".metadata", "metadata.json", "common.pt"):
        chunks.know(file)
    common = open_torch_file(folder / "common.pt")
    root = common.root if isinstance(common.root, dict) else {}
    args = arguments_of(common) if "args" in root else Arguments({}, common.path)
    flat: list[tuple[FlatKey, StoredTensor]] = []
    tensors: list[LocalTensor] = []
    for stored in metadata.tensors:
        key = key_of(stored.name)
        if isinstance(key, FlatKey):
            flat.append((key, stored))
            continue
        shape = original_shape(metadata, stored.name)
        if shape is None or shape == stored.shape:
            fragments, shape = chunks.fragments(stored), stored.shape
        else:
            fragments = unfolded(chunks, stored, shape)
        tensors.append(LocalTensor(key.name, key.state, (), shape, stored.dtype, fragments))
    objects = dict(chunks.objects(metadata))
    check_masters(folder, tensors)
    if flat:
        tensors += flat_tensors(folder, metadata, flat, objects, args, chunks, tensors)
    chunks.refuse_overlaps()
    tensors += _steps(root, objects, tensors)
    training = training_of(root, Groups(), [])
    framework = {**(training.framework or {}), "objects": objects, "optimizer": _optimizer(root)}
    return Catalog(
        format="megatron",
        version=str(root.get("checkpoint_version", "")),
        root=str(folder.resolve()),
        mesh={},
        tensors=tuple(tensors),
        layout=LAYOUT,
        layout_name="megatron_dist",
        training=type(training)(training.iteration, _param_groups(root), training.state, framework),
        config=args.config(),
        files=tuple(chunks.files.values()),
    )


def _check_backend(folder: Path) -> None:
    try:
        stated = load_bounded(read_regular(folder / "metadata.json", _MAX_NBYTES))
        backend = stated.get("sharded_backend") if isinstance(stated, dict) else None
    except (OSError, FileTooLargeError) as error:
        raise unreadable(folder / "metadata.json", error) from None
    except ValueError:
        backend = None
    if backend != "torch_dist":
        raise source_error(
            "unsupported-backend",
            f"{folder} is stored by backend `{backend}`",
            notes=["`torch_dist` is read; `zarr` was removed from Megatron-core in 0.16"],
            helps=["convert it with the Megatron that wrote it"],
        )


def _steps(
    root: Mapping[object, object], objects: Mapping[str, object], tensors: list[LocalTensor]
) -> Iterator[LocalTensor]:
    """The number of steps, which the optimizer keeps once for all parameters."""
    data = _common_step(root.get("optimizer"))
    if data is None or any(t.state == "step" for t in tensors):
        return
    for name in dict.fromkeys(t.name for t in tensors if t.state == "exp_avg"):
        number = Fragment(0, 1, "common.pt", 0, None, data)
        yield LocalTensor(name, "step", (), (), DType.F32, (number,))


def _common_step(optimizer: object) -> bytes | None:
    """The step as fp32 bytes; None where it is not stated, or not the same for all groups."""
    found: set[bytes] = set()
    for item in _optimizers(optimizer):
        inner = item.get("optimizer", item)  # of a mixed-precision optimizer
        state = inner.get("state") if isinstance(inner, dict) else None
        if isinstance(state, dict) and isinstance(state.get("common_step"), TensorRef):
            ref = state["common_step"]
            if ref.dtype == DType.F32:
                found.add(read_small(ref))
        groups = inner.get("param_groups") if isinstance(inner, dict) else None
        for group in groups if isinstance(groups, list) else ():
            step = group.get("step") if isinstance(group, dict) else None
            if isinstance(step, TensorRef) and step.dtype == DType.F32:
                found.add(read_small(step))
            elif isinstance(step, (int, float)):
                found.add(struct.pack("<f", step))
    return found.pop() if len(found) == 1 else None


def _optimizers(optimizer: object) -> list[dict[object, object]]:
    """One dict for each chained optimizer."""
    if not isinstance(optimizer, dict):
        return []
    if optimizer and all(isinstance(key, int) for key in optimizer):
        return [item for item in optimizer.values() if isinstance(item, dict)]
    return [optimizer]


def _optimizer(root: Mapping[object, object]) -> object:
    from reshard.storage.dcp_chunks import small_tensor
    from reshard.storage.objects import to_json

    return to_json(root.get("optimizer"), tensor=small_tensor)


def _param_groups(root: Mapping[object, object]) -> tuple[Mapping[str, object], ...]:
    """Hyper-parameters of the groups; which parameters they hold is not stored."""
    from reshard.storage.dcp_chunks import small_tensor
    from reshard.storage.objects import to_json

    out = []
    for item in _optimizers(root.get("optimizer")):
        inner = item.get("optimizer", item)
        groups = inner.get("param_groups") if isinstance(inner, dict) else None
        for group in groups if isinstance(groups, list) else ():
            if isinstance(group, dict):
                out.append(
                    {
                        str(k): to_json(v, tensor=small_tensor)
                        for k, v in group.items()
                        if k not in ("params", "step")
                    }
                )
    return tuple(out)


__all__ = ["Metadata", "read_dist"]
