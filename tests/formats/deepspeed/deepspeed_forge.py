"""Writes files as DeepSpeed does, small and with known numbers, for what no real run would show."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.storage.inert import Record, Size
from reshard.storage.torch_writer import NewStorage, NewTensor, plan_torch_file

Shapes = Mapping[str, tuple[int, ...]]
SCALES = {"master": 1.0, "exp_avg": 0.25, "exp_avg_sq": 0.0625}


class Tensor:
    """A tensor that is to be saved; bytes are little-endian."""

    def __init__(self, dtype: DType, shape: tuple[int, ...], data: bytes) -> None:
        self.dtype, self.shape, self.data = dtype, shape, data


def floats(values: Sequence[float], shape: tuple[int, ...] | None = None) -> Tensor:
    """An fp32 tensor."""
    own = (len(values),) if shape is None else shape
    return Tensor(DType.F32, own, struct.pack(f"<{len(values)}f", *values))


def save(path: Path, root: object) -> None:
    """What `torch.save(root, path)` writes, with `Tensor`s in place of tensors."""
    data: dict[int, bytes] = {}
    keep: list[object] = []

    def convert(value: object) -> object:
        if isinstance(value, Tensor):
            storage = NewStorage(value.dtype, prod(value.shape))
            data[id(storage)] = value.data
            keep.append(storage)
            return NewTensor(storage, 0, value.shape, row_major(value.shape))
        if isinstance(value, dict):
            return {key: convert(item) for key, item in value.items()}
        if isinstance(value, list):
            return [convert(item) for item in value]
        return value

    image = plan_torch_file(convert(root), path.stem)
    out = bytearray(image.nbytes)
    for at, raw in image.head:
        out[at : at + len(raw)] = raw
    crcs = {}
    for slot in image.storages:
        raw = data[id(slot.storage)]
        out[slot.byte_offset : slot.byte_offset + len(raw)] = raw
        crcs[slot.key] = zlib.crc32(raw)
    for at, raw in image.tail(crcs):
        out[at : at + len(raw)] = raw
    path.write_bytes(out)


def numbers(shapes: Shapes, state: str, base: int = 0) -> dict[str, list[float]]:
    """Values of one state: every element of every parameter has its own."""
    out = {}
    for index, (name, shape) in enumerate(shapes.items()):
        first = base + 1000 * (index + 1)
        out[name] = [SCALES[state] * (first + i) for i in range(prod(shape))]
    return out


class Run:
    """A run whose checkpoint is written file by file; change `models` and `shards` before.

    Args:  groups: per param group, shapes of its parameters; by mp rank where they are cut.
    """

    def __init__(
        self,
        folder: Path,
        groups: Sequence[Shapes] | Mapping[int, Sequence[Shapes]],
        *,
        dp: int = 2,
        tp: int = 1,
        pp: int = 1,
        stage: int = 1,
        steps: int = 3,
        values: Mapping[int, Mapping[str, list[float]]] | None = None,
        model: Mapping[str, Any] | None = None,
        step: object = None,
        trained: bool = True,
    ) -> None:
        self.folder = folder / f"global_step{steps}"
        self.models: dict[str, dict[str, Any]] = {}
        self.shards: dict[str, dict[str, Any]] = {}
        for mp_rank in range(tp * pp):
            own = groups[mp_rank] if isinstance(groups, Mapping) else groups
            given = (values or {}).get(mp_rank, {})
            self._model(mp_rank, own, given, dp, tp, pp, stage, steps, model or {})
            for dp_rank in range(dp):
                name = f"zero_pp_rank_{dp_rank}_mp_rank_{mp_rank:02d}_optim_states.pt"
                self.shards[name] = self._shard(
                    dp_rank, mp_rank, own, given, dp, stage, step, trained
                )

    def _model(
        self,
        mp_rank: int,
        groups: Sequence[Shapes],
        given: Mapping[str, list[float]],
        dp: int,
        tp: int,
        pp: int,
        stage: int,
        steps: int,
        more: Mapping[str, Any],
    ) -> None:
        module = {
            name: floats(given.get(name, values), shapes[name])
            for shapes in groups
            for name, values in numbers(shapes, "master", 100_000 * mp_rank).items()
        }
        for dp_rank in range(dp if stage == 3 else 1):
            file = f"mp_rank_{mp_rank:02d}_model_states.pt"
            if stage == 3:
                file = f"zero_pp_rank_{dp_rank}_{file}"
                module = {name: floats([]) for name in module}
            self.models[file] = {
                "module": module,
                "buffer_names": [],
                "optimizer": None,
                "param_shapes": [
                    {name: Size(shape) for name, shape in shapes.items()} for shapes in groups
                ],
                "frozen_param_shapes": None if stage == 1 else {},
                "shared_params": {},
                "frozen_param_fragments": None if stage == 1 else {},
                "lr_scheduler": None,
                "data_sampler": None,
                "random_ltd": None,
                "skipped_steps": 0,
                "global_steps": steps,
                "global_samples": 12 * steps,
                "dp_world_size": dp,
                "mp_world_size": tp * pp,
                "checkpoint_parallel_dimensions": {"pp_degree": pp, "tp_degree": tp},
                "ds_config": {"zero_optimization": {"stage": stage}},
                "ds_version": "0.19.8",
                **more,
            }

    def _shard(
        self,
        dp_rank: int,
        mp_rank: int,
        groups: Sequence[Shapes],
        given: Mapping[str, list[float]],
        dp: int,
        stage: int,
        step: object,
        trained: bool,
    ) -> dict[str, Any]:
        flat: list[dict[str, list[float]]] = []
        paddings = []
        for shapes in groups:
            parts, padding = {}, 0
            for state, scale in SCALES.items():
                values = numbers(shapes, state, 100_000 * mp_rank)
                values = {
                    n: [scale * x for x in given[n]] if n in given else v for n, v in values.items()
                }
                cut = _each if stage == 3 else _buffer
                parts[state], padding = cut(list(values.values()), dp_rank, dp)
            flat.append(parts)
            paddings.append(padding)
        states = {
            index: {
                "step": floats([3.0], ()) if step is None else step,
                "exp_avg": floats(parts["exp_avg"]),
                "exp_avg_sq": floats(parts["exp_avg_sq"]),
            }
            for index, parts in enumerate(flat)
            if trained
        }
        base = {
            "state": states,
            "param_groups": [{"lr": 0.01, "params": [index]} for index in range(len(flat))],
        }
        common = {"overflow": False, "clip_grad": 1.0}
        if stage == 3:
            inner = {
                **common,
                "zero_stage": _stage(3),
                "partition_count": dp,
                "optimizer_state_dict": base,
                "fp32_flat_groups": [floats(parts["master"]) for parts in flat],
            }
        else:
            inner = {
                **common,
                "base_optimizer_state": base,
                "single_partition_of_fp32_groups": [
                    floats(parts["master"][: len(parts["master"]) - padding])
                    for parts, padding in zip(flat, paddings, strict=True)
                ],
                "zero_stage": _stage(stage),
                "group_paddings": paddings,
                "partition_count": [dp] * len(flat),
            }
        return {"optimizer_state_dict": inner, "ds_config": {}, "ds_version": "0.19.8"}

    def optimizer(self, name: str) -> dict[str, Any]:
        """The optimizer's state in one optimizer file."""
        found: dict[str, Any] = self.shards[name]["optimizer_state_dict"]
        return found

    def write(self) -> Path:
        """The folder that holds `latest`."""
        self.folder.mkdir(parents=True)
        for name, root in {**self.models, **self.shards}.items():
            save(self.folder / name, root)
        (self.folder.parent / "latest").write_text(self.folder.name, encoding="utf-8")
        return self.folder.parent


def _stage(number: int) -> Record:
    return Record("deepspeed.runtime.zero.config", "ZeroStageEnum", (number,))


def _buffer(values: list[list[float]], dp_rank: int, dp: int) -> tuple[list[float], int]:
    """A rank's partition of one flat buffer, and how much of it is padding."""
    flat = [x for own in values for x in own]
    total = len(flat)
    flat += [0.0] * (-total % (2 * dp))
    own = len(flat) // dp
    start = dp_rank * own
    return flat[start : start + own], min(own, max(0, start + own - total))


def _each(values: list[list[float]], dp_rank: int, dp: int) -> tuple[list[float], int]:
    """A rank's pieces of every parameter, each padded by itself."""
    out: list[float] = []
    for flat in values:
        own = -(-len(flat) // dp)
        piece = flat[dp_rank * own : (dp_rank + 1) * own]
        out += piece + [0.0] * (own - len(piece))
    return out, 0
