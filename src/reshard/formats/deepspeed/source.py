"""Everything that was read of a checkpoint's files, before it is put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path

from reshard.errors import source_error
from reshard.formats.deepspeed.experts import (
    FusedLayer,
    expert_of,
    fused_layers,
    group_is_expert,
    largest_size,
    native_index,
    unsupported_experts,
)
from reshard.formats.deepspeed.files import Files
from reshard.formats.deepspeed.folder import Folder, Rank, not_one_run, read_folder
from reshard.formats.deepspeed.grid import Grid, by_data_rank, find_grid, has_sequence_ranks
from reshard.formats.deepspeed.model_file import ModelFile, read_model_file
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.optimizer_file import Shard, read_shards
from reshard.formats.deepspeed.states_zero0 import PlainOptimizer, read_optimizer
from reshard.records import dataclass
from reshard.storage.kept import fingerprint


@dataclass(frozen=True, slots=True)
class Source:
    """One step of a checkpoint.

    Args:  models: by (dp rank, mp rank); dp rank 0 alone at stages 0 to 2.
           shards: optimizer files of ZeRO, by rank.
           plain: optimizers of runs without ZeRO, by (ep rank, mp rank).
           fused: layers of AutoEP.
           ep: expert-parallel size, the largest where layers have several; 1 without experts.
           expert_sizes: by module of DeepSpeed's own experts, its expert-parallel size.
           group_numbers: by pipeline stage, which of the run's groups each of its groups is.
    """

    files: Files
    folder: Folder
    grid: Grid
    models: Mapping[Rank, ModelFile]
    shards: Mapping[Rank, Shard]
    plain: Mapping[Rank, PlainOptimizer]
    fused: tuple[FusedLayer, ...]
    ep: int
    expert_sizes: Mapping[str, int]
    group_numbers: Mapping[int, Sequence[int]]

    def expert_size(self, name: str) -> int:
        """Over how many ranks the experts of a parameter's layer lie; 1 for what is no expert."""
        if group_is_expert((name,), self.fused):
            return self.expert_sizes.get((expert_of(name) or ("",))[0], self.ep)
        return 1

    def group_ep(self, mp_rank: int, index: int) -> int:
        """Over how many ranks the experts of a group lie; 1 for a group without."""
        shapes = (self.models[0, mp_rank].param_shapes or ())[index]
        return max((self.expert_size(name) for name in shapes), default=1)

    def ep_axis(self, size: int) -> str:
        """The axis of the mesh over which experts lie whose expert-parallel size this is."""
        return "ep" if size == self.ep else f"ep{size}"

    @property
    def mesh(self) -> dict[str, int]:
        """The sizes of all axes."""
        return {"pp": self.grid.pp, "tp": self.grid.tp, **self.expert_axes, "dp": self.grid.dp}

    @property
    def expert_axes(self) -> dict[str, int]:
        """The axes of the mesh over which experts lie."""
        sizes = {*self.expert_sizes.values(), self.ep}
        return {self.ep_axis(size): size for size in sorted(sizes, reverse=True) if size > 1}

    @property
    def first(self) -> ModelFile:
        """The model file of the first rank."""
        return self.models[0, 0]

    @property
    def stage(self) -> int:
        """ZeRO stage."""
        if self.shards:
            return next(iter(self.shards.values())).stage
        return 3 if self.folder.is_zero3 else 0

    def stage_models(self, mp_rank: int) -> list[ModelFile]:
        """The model files of one mp rank, by dp rank."""
        return [self.models[rank] for rank in sorted(self.models) if rank[1] == mp_rank]


def read_source(root: Path) -> Source:
    """Open every file of a step once.

    Raises: ReshardError, see docs/formats/deepspeed.md.
    """
    folder = read_folder(root)
    files = Files(root)
    names = {**{(0, mp): name for mp, name in folder.models.items()}, **folder.zero3_models}
    if not names:
        raise source_error(
            "missing-rank-file",
            f"{root} has no model file",
            notes=["looked for `mp_rank_*_model_states.pt` and `zero_pp_rank_*_model_states.pt`"],
            helps=["copy the files of all ranks; on several machines each one has only its own"],
        )
    models = {rank: read_model_file(files.root_of(name)) for rank, name in names.items()}
    first = next(iter(models.values()))
    if has_sequence_ranks(folder, first):
        folder = by_data_rank(folder)
        models = {(dp, 0): model for (dp, _), model in models.items()}
    grid = find_grid(folder, first)
    _check_counters(models)
    shards = read_shards(files, folder, grid)
    _check_needed(folder, first, shards)
    fused = fused_layers(first.root)
    if first.root.has("folding") or (fused and grid.tp > 1):
        raise unsupported_experts(
            "experts are folded over tensor-parallel ranks",
            [f"AutoEP with {grid.tp} tp ranks, by {first.file}"],
        )
    plain = _plain(files, folder, models, shards)
    ep, sizes = _expert_sizes(first, grid, shards, plain, fused)
    numbers = number_groups(shards, plain, grid)
    return Source(files, folder, grid, models, shards, plain, fused, ep, sizes, numbers)


def _plain(
    files: Files, folder: Folder, models: Mapping[Rank, ModelFile], shards: Mapping[Rank, Shard]
) -> dict[Rank, PlainOptimizer]:
    if shards:
        return {}
    out: dict[Rank, PlainOptimizer] = {}
    for (_, mp_rank), model in models.items():
        node = model.root.get("optimizer")
        if node is not None:
            out[0, mp_rank] = read_optimizer(node)
    for rank, name in folder.expert_optimizers.items():
        node = files.root_of(name).get("optimizer")
        if node is not None:
            out[rank] = read_optimizer(node)
    return out


def _check_counters(models: Mapping[Rank, ModelFile]) -> None:
    """All model files must be of one step of one run."""
    first = next(iter(models.values()))
    for key in ("global_steps", "dp_world_size", "mp_world_size", "ds_version"):
        wanted = first.root.mapping().get(key)
        for model in models.values():
            found = model.root.mapping().get(key)
            if found != wanted:
                raise source_error(
                    "mixed-runs",
                    f"{first.file} and {model.file} are not of one step of one run",
                    notes=[f"`{key}` is {wanted} in the one and {found} in the other"],
                    helps=["copy the files of one step into a folder of their own"],
                )
    for (_, mp_rank), model in models.items():
        _check_shapes(models[0, mp_rank], model)


def _check_shapes(first: ModelFile, model: ModelFile) -> None:
    """The data-parallel ranks of stage 3 must state the same parameters, in one order."""
    stated, others = (
        [(name, shape) for own in item.param_shapes or () for name, shape in own.items()]
        for item in (first, model)
    )
    if stated == others:
        return
    pairs = zip_longest(stated, others, fillvalue=("no parameter", ()))
    one, other = next((a, b) for a, b in pairs if a != b)
    raise source_error(
        "mixed-runs",
        f"{first.file} and {model.file} are not of one run",
        notes=[
            f"`param_shapes` of the one has `{one[0]}` {list(one[1])} where that of the other has "
            f"`{other[0]}` {list(other[1])}"
        ],
        helps=["copy the files of one run into a folder of their own"],
    )


def _check_needed(folder: Folder, first: ModelFile, shards: Mapping[Rank, Shard]) -> None:
    """Refuse files that do not belong together, and what keeps its states elsewhere."""
    stage = first.setting("zero_optimization", "stage")
    if not shards:
        # DeepSpeed before 0.19 saves no optimizer of bf16 at stage 0 with gradients in bf16: 0.18.3
        # runtime/engine.py `_do_optimizer_sanity_check`, `save_checkpoint`.
        gradients = first.setting("data_types", "grad_accum_dtype")
        wide = gradients is not None and gradients.value in ("fp32", "float32")
        saves_none = stage is not None and stage.value == 0 and not wide
        if first.param_shapes is not None and not saves_none:
            raise source_error(
                "missing-rank-file",
                f"{folder.root} has no optimizer file",
                notes=[f"`param_shapes` in {first.file} are those of a run with ZeRO"],
                helps=["copy the files `*zero_pp_rank_*_optim_states.pt` of all ranks"],
            )
        return
    shard = next(iter(shards.values()))
    stated = None if stage is None else stage.integer()
    # BF16_Optimizer runs below stage 1, and its files are as those of stage 1.
    if stated not in (None, shard.stage) and (stated, shard.stage) != (0, 1):
        note = f"ZeRO stage {stated} by `ds_config` in the one, {shard.stage} in the other"
        raise not_one_run(first.file, shard.file, note)
    if (shard.stage == 3) != folder.is_zero3:
        note = f"the optimizer file is of ZeRO stage {shard.stage}"
        raise not_one_run(first.file, shard.file, note)
    offload = first.setting("zero_optimization", "offload_optimizer")
    device = offload.get("device") if offload is not None and offload.mapping() else None
    if device is not None and str(device.value) == "nvme":
        raise source_error(
            "unsupported-offload",
            "the optimizer states of this run are not in its checkpoint files",
            notes=[f"`offload_optimizer.device` is nvme in {first.file}"],
            helps=["load it with DeepSpeed and save it with the states on the cpu"],
        )
    mics = first.setting("zero_optimization", "mics_shard_size")
    if mics is not None and mics.integer() > 0:
        raise source_error(
            "unsupported-partitioning",
            "MiCS partitions over part of the data-parallel ranks, which is not read",
            notes=[f"`mics_shard_size` is {mics.integer()} in {first.file}"],
            helps=["load it with DeepSpeed and save it without MiCS"],
        )


def _expert_sizes(
    first: ModelFile,
    grid: Grid,
    shards: Mapping[Rank, Shard],
    plain: Mapping[Rank, PlainOptimizer],
    fused: tuple[FusedLayer, ...],
) -> tuple[int, dict[str, int]]:
    """The expert-parallel size of the model, and that of every module of DeepSpeed's own MoE."""
    modules: dict[str, int] = {}
    sizes = {f"`ds_autoep_layers`, `{layer.prefix}`": len(layer.experts) for layer in fused}
    shard = shards.get((0, 0))
    for index, shapes in enumerate(first.param_shapes or ()):
        if shard is None or not group_is_expert(shapes, fused):
            continue
        if shard.stage == 3 and not fused:
            name = next(name for name in shapes if native_index(name) is not None)
            raise unsupported_experts(
                f"`{name}` is an expert at ZeRO stage 3",
                [f"{shard.file} does not tell which ranks share it"],
            )
        count = shard.groups[index].count
        size = grid.dp // count if count else _named_size(shard, index)
        if size is None:
            raise unsupported_experts(
                f"group {index} has experts, and nothing tells which ranks share them",
                [f"{shard.file} has no `partition_count`"],
            )
        sizes[f"group {index} of {shard.file}"] = size
        modules.update((found[0], size) for name in shapes if (found := expert_of(name)))
    expert_ranks = {ep_rank for ep_rank, _ in plain}
    if len(expert_ranks) > 1:
        sizes["files `expp_rank_*`"] = len(expert_ranks)
    return largest_size(sizes), modules


def _named_size(shard: Shard, index: int) -> int | None:
    """The expert-parallel size in a param group's name, `ep_size_4`."""
    group = (shard.param_groups or ())[index:]
    name = group[0].get("name") if group else None
    found = None if name is None else re.search(r"ep_size_(\d+)", str(name.value))
    return None if found is None else int(found[1])


def group_nodes(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], mp_rank: int
) -> list[Node] | None:
    """Param groups of one mp rank's optimizer; None where it does not tell them."""
    shard, optimizer = shards.get((0, mp_rank)), plain.get((0, mp_rank))
    if shard is not None:
        return shard.param_groups
    return [] if optimizer is None else list(optimizer.inner.at("param_groups").items())


def number_groups(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], grid: Grid
) -> dict[int, tuple[int, ...]]:
    """By pipeline stage, which of the run's groups each of its groups is.

    Every stage has an optimizer of its own, which has no group without parameters.  Groups of two
    stages are one if their settings are equal, the first with the first, the second with the
    second, and so on; the groups of each stage keep their order.
    """
    stages: list[list[object]] = []
    for stage in range(grid.pp):
        shard = shards.get((0, stage * grid.tp))
        nodes = group_nodes(shards, plain, stage * grid.tp)
        if nodes is None or (shard is not None and shard.stage == 3):  # there, of sub-groups
            stages.append(list(range(len(shard.groups) if shard is not None else 0)))
            continue
        stages.append(
            [
                [(key, fingerprint(node.value)) for key, node in group.entries() if key != "params"]
                for group in nodes
            ]
        )
    if all(own == stages[0] for own in stages):
        return {stage: tuple(range(len(own))) for stage, own in enumerate(stages)}
    merged: list[object] = []
    for own in stages:
        position = 0
        for group in own:
            if group in merged[position:]:
                position = merged.index(group, position) + 1
            else:
                merged.insert(position, group)
                position += 1
    out: dict[int, tuple[int, ...]] = {}
    for stage, own in enumerate(stages):
        places: list[int] = []
        for group in own:
            places.append(merged.index(group, places[-1] + 1 if places else 0))
        out[stage] = tuple(places)
    return out
