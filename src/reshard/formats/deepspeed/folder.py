"""The files of one step's folder, by what their names say."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from reshard.errors import ReshardError, source_error

Rank = tuple[int, int]
"""(ZeRO data-parallel rank, model-parallel rank), as file names number them."""

_MODEL = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_MODEL_ZERO3 = re.compile(r"zero_pp_rank_(\d+)_mp_rank_(\d+)_model_states\.pt")
_OPTIMIZER = re.compile(r"((?:bf16_|fp16_)?)zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
_LAYER = re.compile(r"layer_(\d+)(?:-model_(\d+))?-model_states\.pt")
_EXPERT = re.compile(r"(?:layer_(\d+)_)?expert_(\d+)_mp_rank_(\d+)_model_states\.pt")
_EXPERT_OPTIMIZER = re.compile(r"expp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


@dataclass(frozen=True, slots=True)
class Folder:
    """What lies in a step's folder; every value is a file name.

    Args:  models: by mp rank, `mp_rank_*`.  zero3_models: `zero_pp_rank_*_model_states`.
           optimizers: by rank; prefix: what their names start with (`bf16_`, `fp16_`, or nothing).
           layers: by (layer, tp rank); tp rank is None where the name has none.
           experts: by (MoE layer or None, global expert, mp rank).
           expert_optimizers: by (ep rank, mp rank), of runs without ZeRO.
    """

    root: Path
    models: dict[int, str]
    zero3_models: dict[Rank, str]
    optimizers: dict[Rank, str]
    prefix: str
    layers: dict[tuple[int, int | None], str]
    experts: dict[tuple[int | None, int, int], str]
    expert_optimizers: dict[Rank, str]

    @property
    def is_zero3(self) -> bool:
        """Whether weights are partitioned, as the names of the model files tell."""
        return bool(self.zero3_models)


def is_step_folder(path: Path) -> bool:
    """Whether a folder directly holds files of a DeepSpeed checkpoint."""
    try:
        with os.scandir(path) as entries:
            return any(
                _MODEL.fullmatch(entry.name)
                or _MODEL_ZERO3.fullmatch(entry.name)
                or _OPTIMIZER.fullmatch(entry.name)
                for entry in entries
            )
    except OSError:
        return False


def read_folder(root: Path) -> Folder:
    """Sort the files of a step's folder.

    Raises: ReshardError[mixed-runs] when files of two runs lie side by side.
    """
    models: dict[int, str] = {}
    zero3_models: dict[Rank, str] = {}
    optimizers: dict[str, dict[Rank, str]] = {}
    layers: dict[tuple[int, int | None], str] = {}
    experts: dict[tuple[int | None, int, int], str] = {}
    expert_optimizers: dict[Rank, str] = {}
    for name in sorted(os.listdir(root)):
        if found := _MODEL.fullmatch(name):
            models[int(found[1])] = name
        elif found := _MODEL_ZERO3.fullmatch(name):
            zero3_models[int(found[1]), int(found[2])] = name
        elif found := _OPTIMIZER.fullmatch(name):
            optimizers.setdefault(found[1], {})[int(found[2]), int(found[3])] = name
        elif found := _EXPERT.fullmatch(name):
            layer = None if found[1] is None else int(found[1])
            experts[layer, int(found[2]), int(found[3])] = name
        elif found := _LAYER.fullmatch(name):
            layers[int(found[1]), None if found[2] is None else int(found[2])] = name
        elif found := _EXPERT_OPTIMIZER.fullmatch(name):
            expert_optimizers[int(found[1]), int(found[2])] = name
    if len(optimizers) > 1:
        raise _two_prefixes(root, optimizers)
    if models and zero3_models:
        raise _two_stages(root, models, zero3_models)
    if {None} < {tp_rank for _, tp_rank in layers}:
        raise _two_layer_names(root, layers)
    prefix = next(iter(optimizers), "")
    return Folder(
        root,
        dict(sorted(models.items())),
        dict(sorted(zero3_models.items())),
        dict(sorted(optimizers.get(prefix, {}).items())),
        prefix,
        dict(sorted(layers.items(), key=lambda item: (item[0][0], item[0][1] or 0))),
        dict(sorted(experts.items(), key=lambda item: (item[0][0] or 0, item[0][1:]))),
        dict(sorted(expert_optimizers.items())),
    )


def _mixed(root: Path, first: str, second: str, notes: list[str]) -> ReshardError:
    return source_error(
        "mixed-runs",
        f"{root.name} holds files of two runs: {first}, and {second}",
        notes=notes,
        helps=["copy the files of one run into a folder of their own and convert that"],
    )


def _two_prefixes(root: Path, found: dict[str, dict[Rank, str]]) -> ReshardError:
    (_, a), (_, b) = sorted(found.items())[:2]
    first, second = next(iter(a.values())), next(iter(b.values()))
    return _mixed(
        root,
        first,
        second,
        [
            f"{len(a)} optimizer files are named like the first, {len(b)} like the second",
            "DeepSpeed puts `bf16_` before the names of bf16 runs",
        ],
    )


def _two_stages(root: Path, models: dict[int, str], zero3: dict[Rank, str]) -> ReshardError:
    return _mixed(
        root,
        next(iter(models.values())),
        next(iter(zero3.values())),
        ["the first name is of ZeRO stages 0 to 2, the second of stage 3"],
    )


def _two_layer_names(root: Path, layers: dict[tuple[int, int | None], str]) -> ReshardError:
    plain = next(name for (_, tp_rank), name in layers.items() if tp_rank is None)
    other = next(name for (_, tp_rank), name in layers.items() if tp_rank is not None)
    return _mixed(
        root, plain, other, ["the first is of a run without tensor parallelism, the second with"]
    )
