"""A storage reader of torch.distributed.checkpoint for every checkpoint that reshard reads.

Source: torch/distributed/checkpoint/storage.py `StorageReader`, state_dict_loader.py (2.13).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from reshard.algebra.box import Box
from reshard.api.request import Request
from reshard.api.source import open_source
from reshard.engine.compare import read_array
from reshard.engine.torch_tensors import as_tensor, torch_dtype
from reshard.plan.build import Builder, OnDrift
from reshard.plan.slice import slice_spec
from reshard.store.source_files import SourceFiles
from reshard.torch.keys import Keys, keys_of

MAX_NBYTES = 1 << 26
"""Bytes of a tensor that are in memory at once, beside the tensor that they go into."""


class ReshardReader(StorageReader):
    """Reads any checkpoint into the state dict that `torch.distributed.checkpoint.load` is given.

    Each rank reads the bytes that it needs. Weights are found as `<name>` and `model.<name>`,
    states of the optimizer as `optim.state.<name>.exp_avg` and `optimizer.state.<name>.exp_avg`,
    flattened or not, and hyper-parameters beside them. Where the checkpoint has master weights and
    weights in another type, a tensor gets those of its own type; else what is there is converted,
    as torch's reader does.

    Args:  path: the folder of a run or of one step; step: which one.
           names: a layout of the model whose names the state dict has (`hf`, `torchtitan`, ...).
           layout, layout_name, model, settings: as for `reshard.convert`.
           model_keys, optimizer_keys: what may stand before the names.
           on_drift: what to do where copies differ that should not.
    Raises: ReshardError[source-missing | unknown-source], and all that is wrong with the source.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        step: str | None = None,
        names: str | None = None,
        layout: str | os.PathLike[str] | None = None,
        layout_name: str | None = None,
        model: str | None = None,
        settings: Mapping[str, float | None] | None = None,
        model_keys: Iterable[str] = ("", "model"),
        optimizer_keys: Iterable[str] = ("optim", "optimizer"),
        on_drift: OnDrift = "error",
    ) -> None:
        self._path = Path(path)
        request = Request.of(locals())
        self._source = open_source(self._path, request)
        self._builder = Builder(self._source.arrangement, on_drift)
        self._keys: Keys = keys_of(
            self._source.arrangement, tuple(model_keys), tuple(optimizer_keys)
        )

    @property
    def checkpoint_id(self) -> Path:
        """The folder."""
        return self._path

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it can be a folder."""
        return Path(checkpoint_id).is_dir()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing: a reader is of one checkpoint."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Every key that can be asked for, each tensor as one chunk."""
        entries: dict[str, Any] = {}
        for key, states in self._keys.tensors.items():
            whole = states[0]
            size = torch.Size(whole.shape)
            chunk = ChunkStorageMetadata(torch.Size([0] * len(size)), size)
            properties = TensorProperties(dtype=torch_dtype(whole.dtype))
            entries[key] = TensorStorageMetadata(properties, size, [chunk])
        entries.update({key: BytesStorageMetadata() for key in self._keys.objects})
        places = {
            MetadataIndex(key, item.chunks[0].offsets if hasattr(item, "chunks") else None): key
            for key, item in entries.items()
        }
        return Metadata(entries, storage_data=places)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing: all is known."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Fill the tensors of this rank, and hand over its objects.

        Raises: ReshardError[replica-mismatch], and what is wrong with the files.
        """
        with self._source.files() as files:
            for item in plan.items:
                if item.type == LoadItemType.BYTE_IO:
                    self._read_object(item, planner)
                else:
                    self._read_tensor(item, planner, files)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def _read_object(self, item: ReadItem, planner: LoadPlanner) -> None:
        stream = io.BytesIO()
        torch.save(self._keys.objects[item.storage_index.fqn](), stream)
        stream.seek(0)
        planner.load_bytes(item, stream)

    def _read_tensor(self, item: ReadItem, planner: LoadPlanner, files: SourceFiles) -> None:
        target = planner.resolve_tensor(item).detach()
        states = self._keys.tensors[item.storage_index.fqn]
        same = (each for each in states if torch_dtype(each.dtype) == target.dtype)
        whole = next(same, states[0])
        lo, size = tuple(item.storage_offsets), tuple(item.lengths)
        for start, count in _slabs(size, whole.dtype.itemsize):
            box = Box((lo[0] + start, *lo[1:]), (count, *size[1:])) if size else Box((), ())
            array = self._builder.array(slice_spec(whole, box))
            part = as_tensor(read_array(array, files), whole.dtype).reshape(box.size)
            (target[start : start + count] if size else target).copy_(part)
        planner.commit_tensor(item, target)


def _slabs(size: Sequence[int], itemsize: int) -> Iterable[tuple[int, int]]:
    """Start and count along the first dimension, so that each slab is small."""
    if not size:
        return [(0, 1)]
    row = itemsize
    for length in size[1:]:
        row *= length
    step = max(1, MAX_NBYTES // max(1, row))
    return [(at, min(step, size[0] - at)) for at in range(0, size[0], step)]
