"""What all files of a step say: the mesh, the model files, and the optimizers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.experts import (
    FusedLayer,
    expert_of,
    fused_layers,
    group_is_expert,
    largest_size,
)
from reshard.formats.deepspeed.files import (
    MODEL,
    MODEL_ZERO3,
    OPTIMIZERS,
    Files,
    Folder,
    Rank,
    no_model_file,
    read_folder,
)
from reshard.formats.deepspeed.model_file import ModelFile, read_model_file
from reshard.formats.deepspeed.node import (
    Node,
    missing_rank_file,
    mixed_runs,
    not_one_run,
    unsupported_experts,
)
from reshard.formats.deepspeed.optimizer_file import Shard, read_shard
from reshard.formats.deepspeed.states_zero0 import PlainOptimizer, read_optimizer
from reshard.language.place import Pattern
from reshard.plan.catalog import Coord
from reshard.storage.kept import fingerprint

MAX_RANKS = 1 << 20
"""Ranks of a run; more are a damaged number."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Sizes of the mesh: pipeline stages, tensor-parallel ranks, data-parallel ranks.

    An mp rank, as file names number it, is `pp * tp size + tp`.
    """

    pp: int
    tp: int
    dp: int

    @property
    def mp_ranks(self) -> range:
        """Every mp rank."""
        return range(self.pp * self.tp)

    def stage(self, mp_rank: int) -> int:
        """The pipeline stage of an mp rank."""
        return mp_rank // self.tp

    def coord(self, mp_rank: int) -> Coord:
        """Its position on the axes that are longer than one."""
        axes = (("pp", self.pp, mp_rank // self.tp), ("tp", self.tp, mp_rank % self.tp))
        return tuple((axis, index) for axis, size, index in axes if size > 1)


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
        shard = next(iter(self.shards.values()), None)
        return (3 if self.folder.is_zero3 else 0) if shard is None else shard.stage

    def param_groups(self, mp_rank: int) -> list[Node] | None:
        """Param groups of one mp rank's optimizer; None where it does not tell them."""
        return _param_groups(self.shards, self.plain, mp_rank)


def read_source(root: Path) -> Source:
    """Open every file of a step once.

    Raises: ReshardError, see docs/formats/deepspeed.md.
    """
    folder = read_folder(root)
    files = Files(root)
    if not folder.models:
        raise no_model_file(root)
    models = {rank: read_model_file(files.root_of(name)) for rank, name in folder.models.items()}
    first = next(iter(models.values()))
    if _has_sequence_ranks(folder, first):
        folder = replace(
            folder,
            optimizers={(dp, 0): name for (dp, _), name in folder.optimizers.items()},
            models={(dp, 0): name for (dp, _), name in folder.models.items()}
            if folder.is_zero3
            else folder.models,
        )
        models = {(dp, 0): model for (dp, _), model in models.items()}
    grid = _find_grid(folder, first)
    _check_models(models)
    shards = _read_shards(files, folder, grid)
    _check_stages(folder, first, shards)
    fused = fused_layers(first.root)
    if first.root.has("folding") or (fused and grid.tp > 1):
        raise unsupported_experts(
            "experts are folded over tensor-parallel ranks",
            f"AutoEP with {grid.tp} tp ranks, by {first.file}",
        )
    plain = {} if shards else _plain(files, folder, models)
    ep, sizes = _expert_sizes(first, grid, shards, plain, fused)
    numbers = _number_groups(shards, plain, grid)
    return Source(files, folder, grid, models, shards, plain, fused, ep, sizes, numbers)


# The mesh, on which the names of the files and the first model file must agree.


def _has_sequence_ranks(folder: Folder, first: ModelFile) -> bool:
    """Whether the mp rank in files' names is a rank of the sequence (Ulysses), before 0.19.

    Such a run partitions over all ranks, data and sequence; the rank of the sequence is the
    remainder of the other, so that it tells nothing more.

    Source: DeepSpeed 0.18.3 runtime/engine.py `_get_zero_ckpt_name`; runtime/sequence_parallel/
    parallel_state_sp.py `get_model_parallel_rank`.
    """
    stated = first.root.get("mp_world_size")
    ranks = folder.optimizers or (folder.models if folder.is_zero3 else {})
    size = max((mp for _, mp in ranks), default=0) + 1
    wanted = {(dp, dp % size) for dp, _ in ranks}
    return stated is not None and stated.value == 1 and size > 1 and wanted == set(ranks)


def _find_grid(folder: Folder, first: ModelFile) -> Grid:
    """The grid; the files of all its ranks are there, and no others.

    Raises: ReshardError[missing-rank-file | mixed-runs].
    """
    mp_size = _stated(first, "mp_world_size", len({mp for _, mp in folder.models}))
    pp, tp = _degrees(folder, first, mp_size)
    ranks = {dp for dp, _ in (*folder.optimizers, *folder.models)}
    grid = Grid(pp, tp, _stated(first, "dp_world_size", max(ranks, default=0) + 1))
    model_ranks, kind = (grid.dp, MODEL_ZERO3) if folder.is_zero3 else (1, MODEL)
    _check_complete(folder.models, model_ranks, grid, kind, first)
    if folder.optimizers or folder.is_zero3:
        _check_complete(folder.optimizers, grid.dp, grid, OPTIMIZERS[folder.prefix], first)
    return grid


def _stated(first: ModelFile, key: str, default: int) -> int:
    node = first.root.get(key)
    return default if node is None else node.integer()


def _degrees(folder: Folder, first: ModelFile, mp_size: int) -> tuple[int, int]:
    """Pipeline stages and tensor-parallel ranks."""
    stated = first.root.get("checkpoint_parallel_dimensions")
    if stated is not None:
        pp, tp = stated.at("pp_degree").integer(), stated.at("tp_degree").integer()
        if pp * tp == mp_size:
            return pp, tp
        raise mixed_runs(
            f"{first.file} speaks of {pp} pipeline stages and {tp} tensor-parallel ranks, "
            f"and of {mp_size} model-parallel ranks",
            "`checkpoint_parallel_dimensions` and `mp_world_size` disagree",
        )
    if not folder.layers:
        return 1, mp_size
    tp = len({tp_rank for _, tp_rank in folder.layers})
    if mp_size % tp:
        raise mixed_runs(
            f"{mp_size} model-parallel ranks cannot be stages of {tp} tensor-parallel ranks each",
            f"layer files name {tp} tensor-parallel ranks",
            f"`mp_world_size` in {first.file}",
        )
    return mp_size // tp, tp


def _check_complete(
    files: Mapping[Rank, str], dp: int, grid: Grid, kind: Pattern, first: ModelFile
) -> None:
    count = dp * len(grid.mp_ranks)
    if count > MAX_RANKS:
        raise source_error(
            "missing-rank-file",
            f"{count} ranks have not written {len(files)} files",
            notes=[f"the sizes are read from {first.file}"],
            helps=["the file is damaged; copy it again"],
        )
    wanted = dict.fromkeys((rank, mp) for rank in range(dp) for mp in grid.mp_ranks)
    extra = [name for rank, name in files.items() if rank not in wanted]
    if extra:
        raise mixed_runs(
            f"{extra[0]} is of a rank that this run does not have",
            f"{first.file} is of a run with dp={grid.dp}, tp={grid.tp}, and pp={grid.pp}",
            *([f"{len(extra)} files too many: {_listed(extra)}"] if len(extra) > 1 else []),
        )
    missing = [kind.fill({"dp": rank, "mp": mp}) for rank, mp in wanted if (rank, mp) not in files]
    if missing:
        raise missing_files(missing, count, first.file)


def missing_files(names: Sequence[str], wanted: int, named_by: str) -> ReshardError:
    """The error for files that are not there."""
    headline = f"{len(names)} of {wanted} files are missing: {_listed(names)}"
    return missing_rank_file(headline, f"{named_by} says which files there must be")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names if len(names) <= 4 else (names[0], names[1], "...", names[-1]))


# The files of one run.


def _check_models(models: Mapping[Rank, ModelFile]) -> None:
    """All model files must be of one step of one run; those of one mp rank, of equal parameters."""
    first = next(iter(models.values()))
    for key in ("global_steps", "dp_world_size", "mp_world_size", "ds_version"):
        wanted = first.root.mapping().get(key)
        for model in models.values():
            value = model.root.mapping().get(key)
            if value != wanted:
                note = f"`{key}` is {wanted} in the one and {value} in the other"
                raise mixed_runs(
                    f"{first.file} and {model.file} are not of one step of one run", note
                )
    for (_, mp_rank), model in models.items():
        one = models[0, mp_rank]
        listed = ([*item.trained_shapes()] for item in (one, model))
        pairs = zip_longest(*listed, fillvalue=("no parameter", ()))
        for (name, shape), (other, its) in ((a, b) for a, b in pairs if a != b):
            raise not_one_run(
                one.file,
                model.file,
                f"`param_shapes` of the one has `{name}` {list(shape)} where that of the other "
                f"has `{other}` {list(its)}",
            )


def _read_shards(files: Files, folder: Folder, grid: Grid) -> dict[Rank, Shard]:
    """Every rank's optimizer file."""
    out: dict[Rank, Shard] = {}
    firsts: dict[int, Shard] = {}
    for rank, name in folder.optimizers.items():
        shard = out[rank] = read_shard(files.root_of(name))
        # Each pipeline stage has an optimizer of its own, and groups.
        first = firsts.setdefault(grid.stage(rank[1]), shard)
        if shard.stage != first.stage or len(shard.groups) != len(first.groups):
            raise not_one_run(
                first.file,
                shard.file,
                f"ZeRO stage {first.stage} and {len(first.groups)} groups in the one, "
                f"stage {shard.stage} and {len(shard.groups)} groups in the other",
            )
    return out


def _check_stages(folder: Folder, first: ModelFile, shards: Mapping[Rank, Shard]) -> None:
    """Refuse files that do not belong together, and what keeps its states elsewhere."""
    stage = first.zero("stage")
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
    device = first.zero("offload_optimizer", "device")
    if device is not None and str(device.value) == "nvme":
        raise source_error(
            "unsupported-offload",
            "the optimizer states of this run are not in its checkpoint files",
            notes=[f"`offload_optimizer.device` is nvme in {first.file}"],
            helps=["load it with DeepSpeed and save it with the states on the cpu"],
        )
    mics = first.zero("mics_shard_size")
    if mics is not None and mics.integer() > 0:
        raise source_error(
            "unsupported-partitioning",
            "MiCS partitions over part of the data-parallel ranks, which is not read",
            notes=[f"`mics_shard_size` is {mics.integer()} in {first.file}"],
            helps=["load it with DeepSpeed and save it without MiCS"],
        )


def _plain(
    files: Files, folder: Folder, models: Mapping[Rank, ModelFile]
) -> dict[Rank, PlainOptimizer]:
    """The optimizers of a run without ZeRO."""
    roots = {(0, mp): model.root for (_, mp), model in models.items()}
    roots |= {rank: files.root_of(name) for rank, name in folder.expert_optimizers.items()}
    nodes = {rank: root.get("optimizer") for rank, root in roots.items()}
    return {rank: read_optimizer(node) for rank, node in nodes.items() if node is not None}


# Experts and param groups.


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
        experts = {name: place[0] for name in shapes if (place := expert_of(name)) is not None}
        if shard.stage == 3 and not fused:
            raise unsupported_experts(
                f"`{next(iter(experts))}` is an expert at ZeRO stage 3",
                f"{shard.file} does not state which ranks share it",
            )
        count = shard.groups[index].count
        size = grid.dp // count if count else _named_size(shard, index)
        if size is None:
            raise unsupported_experts(
                f"group {index} has experts, and no file states which ranks share them",
                f"{shard.file} has no `partition_count`",
            )
        sizes[f"group {index} of {shard.file}"] = size
        modules.update(dict.fromkeys(experts.values(), size))
    expert_ranks = {ep_rank for ep_rank, _ in plain}
    if len(expert_ranks) > 1:
        sizes["files `expp_rank_*`"] = len(expert_ranks)
    return largest_size(sizes), modules


def _named_size(shard: Shard, index: int) -> int | None:
    """The expert-parallel size in a param group's name, `ep_size_4`."""
    group = (shard.param_groups or ())[index:]
    name = group[0].get("name") if group else None
    match = None if name is None else re.search(r"ep_size_(\d+)", str(name.value))
    return None if match is None else int(match[1])


def _param_groups(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], mp_rank: int
) -> list[Node] | None:
    shard, optimizer = shards.get((0, mp_rank)), plain.get((0, mp_rank))
    if shard is not None:
        return shard.param_groups
    return [] if optimizer is None else list(optimizer.inner.at("param_groups").items())


def _number_groups(
    shards: Mapping[Rank, Shard], plain: Mapping[Rank, PlainOptimizer], grid: Grid
) -> dict[int, Sequence[int]]:
    """By pipeline stage, which of the run's groups each of its groups is.

    Every stage has an optimizer of its own, which has no group without parameters.  Groups of two
    stages are one if their settings are equal, the first with the first, the second with the
    second, and so on; the groups of each stage keep their order.
    """
    stages: list[list[object]] = []
    for stage in range(grid.pp):
        shard = shards.get((0, stage * grid.tp))
        nodes = _param_groups(shards, plain, stage * grid.tp)
        if nodes is None or (shard is not None and shard.stage == 3):  # there, of sub-groups
            stages.append(list(range(len(shard.groups) if shard is not None else 0)))
            continue
        stages.append(
            [
                [(key, fingerprint(node.value)) for key, node in group.entries() if key != "params"]
                for group in nodes
            ]
        )
    if all(groups == stages[0] for groups in stages):
        return {stage: range(len(groups)) for stage, groups in enumerate(stages)}
    merged: list[object] = []
    for groups in stages:
        position = 0
        for group in groups:
            if group not in merged[position:]:
                merged.insert(position, group)
            position = merged.index(group, position) + 1
    out: dict[int, Sequence[int]] = {}
    for stage, groups in enumerate(stages):
        places: list[int] = []
        for group in groups:
            places.append(merged.index(group, places[-1] + 1 if places else 0))
        out[stage] = places
    return out
