"""Everything that was read of a checkpoint's files, before it is put together."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from reshard.formats.deepspeed.folder import Folder, Rank, read_folder
from reshard.formats.deepspeed.grid import Grid, by_data_rank, find_grid, has_sequence_ranks
from reshard.formats.deepspeed.model_file import ModelFile, read_model_file
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.optimizer_file import Shard, read_shards
from reshard.formats.deepspeed.states_zero0 import PlainOptimizer, read_optimizer
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
    _check_counters(models, grid)
    shards = read_shards(files, folder, grid)
    _check_needed(folder, first, shards)
    fused = fused_layers(first.root)
    _refuse_folding(first.root, grid, fused)
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


def _check_counters(models: Mapping[Rank, ModelFile], grid: Grid) -> None:
    """All model files must be of one step of one run."""
    first = next(iter(models.values()))
    for key in ("global_steps", "dp_world_size", "mp_world_size", "ds_version"):
        wanted = first.root.get(key)
        for model in models.values():
            found = model.root.get(key)
            if (None if found is None else found.value) != (
                None if wanted is None else wanted.value
            ):
                a, b = (None if n is None else n.value for n in (wanted, found))
                raise source_error(
                    "mixed-runs",
                    f"{first.file} and {model.file} are not of one step of one run",
                    notes=[f"`{key}` is {a} in the one and {b} in the other"],
                    helps=["copy the files of one step into a folder of their own"],
                )


def _check_needed(folder: Folder, first: ModelFile, shards: Mapping[Rank, Shard]) -> None:
    zero = first.zero_config
    stage = None if zero is None else zero.get("stage")
    if not shards:
        if first.param_shapes is not None and not _saves_weights_alone(first):
            raise source_error(
                "missing-rank-file",
                f"{folder.root} has no optimizer file",
                notes=[f"`param_shapes` in {first.file} are those of a run with ZeRO"],
                helps=["copy the files `*zero_pp_rank_*_optim_states.pt` of all ranks"],
            )
        return
    shard = next(iter(shards.values()))
    if (
        stage is not None
        and stage.integer() != shard.stage
        and not (
            stage.integer() == 0 and shard.stage == 1  # BF16_Optimizer below stage 1
        )
    ):
        raise source_error(
            "mixed-runs",
            f"{first.file} and {shard.file} are not of one run",
            notes=[
                f"ZeRO stage {stage.integer()} by `ds_config` in the one, "
                f"{shard.stage} in the other"
            ],
            helps=["copy the files of one run into a folder of their own and convert that"],
        )
    if (shard.stage == 3) != folder.is_zero3:
        raise source_error(
            "mixed-runs",
            f"{first.file} and {shard.file} are not of one run",
            notes=[f"the optimizer file is of ZeRO stage {shard.stage}"],
            helps=["copy the files of one run into a folder of their own and convert that"],
        )
    _check_partitioning(zero, first)


def _saves_weights_alone(first: ModelFile) -> bool:
    """Whether the run had an optimizer that its DeepSpeed does not save.

    That is bf16 at stage 0 with gradients in bf16, before 0.19.
    Source: DeepSpeed 0.18.3 runtime/engine.py `_do_optimizer_sanity_check`, `save_checkpoint`.
    """
    zero = first.zero_config
    stage = None if zero is None else zero.get("stage")
    settings = {} if first.config is None else first.config.mapping()
    types = settings.get("data_types")
    wide = isinstance(types, dict) and types.get("grad_accum_dtype") in ("fp32", "float32")
    return stage is not None and stage.value == 0 and not wide


def _check_partitioning(zero: Node | None, first: ModelFile) -> None:
    """Refuse what keeps its states elsewhere, or partitions over other ranks."""
    if zero is None:
        return
    offload = zero.get("offload_optimizer")
    device = offload.get("device") if offload is not None and offload.mapping() else None
    if device is not None and str(device.value) == "nvme":
        raise source_error(
            "unsupported-offload",
            "the optimizer states of this run are not in its checkpoint files",
            notes=[f"`offload_optimizer.device` is nvme in {first.file}"],
            helps=["load it with DeepSpeed and save it with the states on the cpu"],
        )
    mics = zero.get("mics_shard_size")
    if mics is not None and mics.integer() > 0:
        raise source_error(
            "unsupported-partitioning",
            "MiCS partitions over part of the data-parallel ranks, which is not read",
            notes=[f"`mics_shard_size` is {mics.integer()} in {first.file}"],
            helps=["load it with DeepSpeed and save it without MiCS"],
        )


def _refuse_folding(root: Node, grid: Grid, fused: tuple[FusedLayer, ...]) -> None:
    if root.has("folding") or (fused and grid.tp > 1):
        raise unsupported_experts(
            "experts are folded over tensor-parallel ranks",
            [f"AutoEP with {grid.tp} tp ranks, by {root.file}"],
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
    if plain:
        expert_ranks = {ep_rank for ep_rank, _ in plain}
        if len(expert_ranks) > 1:
            sizes["files `expp_rank_*`"] = len(expert_ranks)
    return largest_size(sizes), modules


def _named_size(shard: Shard, index: int) -> int | None:
    """The expert-parallel size in a param group's name, `ep_size_4`."""
    groups = shard.param_groups
    name = None if groups is None else groups[index].get("name")
    found = None if name is None else re.search(r"ep_size_(\d+)", str(name.value))
    return None if found is None else int(found[1])


def number_groups(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], grid: Grid
) -> dict[int, tuple[int, ...]]:
    """By pipeline stage, which of the run's groups each of its groups is.

    Every stage has an optimizer of its own, which has no group without parameters.  Groups of two
    stages are one if their settings are equal, the first with the first, the second with the
    second, and so on; the groups of each stage keep their order.
    """
    stages = {stage: _settings(shards, plain, stage * grid.tp) for stage in range(grid.pp)}
    counts = {stage: len(own) for stage, own in stages.items()}
    if len({repr(own) for own in stages.values()}) == 1:
        return {stage: tuple(range(count)) for stage, count in counts.items()}
    merged: list[object] = []
    for own in stages.values():
        merged = _merge(merged, own)
    return {stage: _places(own, merged) for stage, own in stages.items()}


def group_nodes(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], mp_rank: int
) -> list[Node] | None:
    """Param groups of one mp rank's optimizer; None where it does not tell them."""
    shard = shards.get((0, mp_rank))
    if shard is not None:
        return shard.param_groups
    optimizer = plain.get((0, mp_rank))
    return [] if optimizer is None else list(optimizer.inner.at("param_groups").items())


def _settings(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], mp_rank: int
) -> list[object]:
    """By group, what is equal for groups with equal settings."""
    shard = shards.get((0, mp_rank))
    nodes = group_nodes(shards, plain, mp_rank)
    if nodes is None or (shard is not None and shard.stage == 3):  # there, groups are sub-groups
        return list(range(len(shard.groups) if shard is not None else 0))
    return [
        [(key, fingerprint(node.value)) for key, node in group.entries() if key != "params"]
        for group in nodes
    ]


def _merge(merged: Sequence[object], own: Sequence[object]) -> list[object]:
    """The groups of several stages and of one more, each in its order."""
    out = list(merged)
    position = 0
    for group in own:
        if group in out[position:]:
            position = out.index(group, position) + 1
        else:
            out.insert(position, group)
            position += 1
    return out


def _places(own: Sequence[object], merged: Sequence[object]) -> tuple[int, ...]:
    out: list[int] = []
    for group in own:
        out.append(merged.index(group, out[-1] + 1 if out else 0))
    return tuple(out)
