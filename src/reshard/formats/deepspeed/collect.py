"""All local tensors of a checkpoint, under the names that the optimizer uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from reshard.errors import Diagnostic, ReshardError, source_error
from reshard.formats.deepspeed.experts import (
    check_expert_files,
    expert_modules,
    experts_together,
    fused_layers,
    fused_weights,
    global_names,
    group_is_expert,
    native_weights,
    read_experts,
    sharing_ranks,
    stated_ranks,
)
from reshard.formats.deepspeed.groups import StoredGroup
from reshard.formats.deepspeed.model_file import ModelFile, Shapes
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.source import Source, missing_files
from reshard.formats.deepspeed.states_zero0 import Naming
from reshard.formats.deepspeed.weights import (
    TIED,
    Pipeline,
    check_tied,
    find_aliases,
    missing_layers,
    module_tensors,
    zero3_tensors,
)
from reshard.plan.catalog import Coord, LocalTensor
from reshard.run.states import MASTER, PARAM


@dataclass(slots=True)
class Collected:
    """What a checkpoint stores.

    Args:  tensors: weights first, then states.  aliases: other names of parameters.
           buffers, frozen: names.  groups: by param group (sub-group at stage 3), names of its
           parameters on all ranks, with global numbers.
           layer_keys: by layer of a pipeline, key in its file -> name.
           expert_layers: the modules whose experts have files, in the order of their numbers.
           kept: by file, states that are no parameter's by `GROUP.STATE`.
           withheld: why states that are stored are not here.
    """

    tensors: list[LocalTensor] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)
    buffers: dict[str, None] = field(default_factory=dict)
    frozen: dict[str, None] = field(default_factory=dict)
    groups: dict[int, dict[str, None]] = field(default_factory=dict)
    layer_keys: dict[str, dict[str, str]] = field(default_factory=dict)
    expert_layers: dict[str, None] = field(default_factory=dict)
    kept: dict[str, dict[str, Node]] = field(default_factory=dict)
    withheld: tuple[Diagnostic, ...] = ()


def collect(source: Source) -> Collected:
    """Every tensor of every rank.

    Raises: ReshardError, see docs/formats/deepspeed.md.
    """
    out = Collected(aliases=find_aliases(source.models.values()))
    models = {mp_rank: source.models[0, mp_rank] for mp_rank in source.grid.mp_ranks}
    folder = source.folder
    pipeline = Pipeline(source.files, folder, source.grid, models) if folder.layers else None
    weights = {mp_rank: list(_weights(source, mp_rank, out, pipeline)) for mp_rank in models}
    out.tensors += (tensor for rank_weights in weights.values() for tensor in rank_weights)
    if pipeline is not None:
        out.layer_keys = pipeline.keys
        if missing := missing_layers(out.tensors, models.values()):
            raise missing_files(missing, len(folder.layers) + len(missing), "`param_shapes`")
    if source.shards:
        for mp_rank in models:
            _zero_states(source, mp_rank, out)
    elif source.plain:
        _numbered_states(source, weights, out)
    if folder.is_zero3:
        out.tensors = _empty_shards(out.tensors)
    _name_kinds(source, out)
    out.groups = {index: experts_together(names) for index, names in out.groups.items()}
    return out


def _weights(
    source: Source, mp_rank: int, out: Collected, pipeline: Pipeline | None
) -> Iterator[LocalTensor]:
    coord = source.grid.coord(mp_rank)
    if source.folder.is_zero3:
        ranks = sorted(rank for rank in source.models if rank[1] == mp_rank)
        yield from zero3_tensors([source.models[rank] for rank in ranks], coord)
        return
    first = source.models[0, mp_rank]
    check_tied(source.files.root, first, out.aliases)
    yield from module_tensors(first, coord, out.aliases)
    if pipeline is not None:
        stage, tp_rank = divmod(mp_rank, source.grid.tp)
        yield from (
            tensor
            for tensor in pipeline.tensors(tp_rank)
            if dict(tensor.coord).get("pp", 0) == stage and tensor.name not in out.aliases
        )
    experts = read_experts(source.files, source.folder, mp_rank, source.fused)
    out.expert_layers.update(dict.fromkeys(expert_modules(experts)))
    if source.fused:
        yield from fused_weights(source.fused, experts, coord)
    else:
        check_expert_files(source.folder, first.root, mp_rank)
        yield from native_weights(experts, source.expert_size, source.ep_axis, coord)


# States under ZeRO.


def _zero_states(source: Source, mp_rank: int, out: Collected) -> None:
    model = source.models[0, mp_rank]
    coord = source.grid.coord(mp_rank)
    numbers = source.group_numbers[source.grid.stage(mp_rank)]
    flag = model.zero("round_robin_gradients")
    is_round_robin = None if model.config is None else flag is not None and bool(flag.value)
    for index, shapes in enumerate(_shapes(source, model, mp_rank)):
        ep = source.group_ep(mp_rank, index)
        for ep_rank, dp_ranks in _sharing(source, mp_rank, index, ep):
            place = coord if ep_rank is None else (*coord, (source.ep_axis(ep), ep_rank))
            shards = [source.shards[dp, mp_rank].groups[index] for dp in dp_ranks]
            group = StoredGroup(
                index, shapes, shards, dp_ranks, place, source.stage, model.file, is_round_robin
            ).read()
            out.tensors += group.tensors
            for state, nodes in group.kept.items():
                for shard, node in zip(shards, nodes, strict=True):
                    if node is not None and not node.is_none:
                        out.kept.setdefault(shard.file, {})[f"{index}.{state}"] = node
            names = out.groups.setdefault(numbers[index], {})
            names.update(dict.fromkeys(global_names(group.order, ep_rank)))


def _shapes(source: Source, model: ModelFile, mp_rank: int) -> tuple[Shapes, ...]:
    """The parameters of the flat groups, as the model file names them."""
    shard, shapes = source.shards[0, mp_rank], model.param_shapes
    if shapes is not None and len(shapes) == len(shard.groups):
        return shapes
    known = "there are no `param_shapes`"
    if shapes is not None:
        known = f"groups in its `param_shapes`: {len(shapes)}"
    raise source_error(
        "missing-param-shapes",
        f"{model.file} does not say which parameters {shard.file} holds",
        notes=[known, f"groups in the optimizer file: {len(shard.groups)}"],
        helps=["the files may be of different runs, or were written by DeepSpeed before 0.3.16"],
    )


def _sharing(
    source: Source, mp_rank: int, index: int, ep: int
) -> list[tuple[int | None, Sequence[int]]]:
    """Who shares the experts of each expert-parallel rank, or of all."""
    dp_ranks = range(source.grid.dp)
    if ep == 1:
        return [(None, dp_ranks)]
    if source.stage != 3:
        flag = source.first.setting("use_data_before_expert_parallelism")
        data_first = flag is not None and bool(flag.value)
        return [*enumerate(sharing_ranks(source.grid.dp, ep, data_first=data_first))]
    shards = [source.shards[dp, mp_rank] for dp in dp_ranks]
    ranks = [shard.groups[index].ranks or () for shard in shards]
    layers = [fused_layers(source.models[dp, mp_rank].root) for dp in dp_ranks]
    ep_ranks = [fused[0].ep_rank if fused else None for fused in layers]
    return [*stated_ranks(ranks, ep_ranks, shards[0].file).items()]


# States without ZeRO.


def _numbered_states(
    source: Source, weights: Mapping[int, Sequence[LocalTensor]], out: Collected
) -> None:
    """The states of all ranks; none of them where those of one cannot be given names."""
    count = len(out.tensors)
    try:
        for mp_rank in source.grid.mp_ranks:
            _plain_states(source, mp_rank, weights[mp_rank], out)
    except ReshardError as error:
        if {item.code for item in error.diagnostics} != {"ambiguous-optimizer-ids"}:
            raise
        del out.tensors[count:]
        out.groups.clear()
        out.kept.clear()
        out.withheld = error.diagnostics


def _plain_states(
    source: Source, mp_rank: int, weights: Sequence[LocalTensor], out: Collected
) -> None:
    coord = source.grid.coord(mp_rank)
    numbers = source.group_numbers[source.grid.stage(mp_rank)]
    buffers = set(source.models[0, mp_rank].buffer_names)
    # A module lists a pipeline's tied modules before its layers.
    params = sorted(
        (tensor for tensor in weights if tensor.name not in buffers),
        key=lambda tensor: not tensor.name.startswith(TIED),
    )
    expert_files = {ep for ep, mp in source.folder.expert_optimizers if mp == mp_rank}
    for ep_rank in sorted(expert_files) or [0]:
        optimizer = source.plain.get((ep_rank, mp_rank))
        if optimizer is None:
            continue
        place: Coord = (*coord, ("ep", ep_rank)) if source.ep > 1 else coord
        local = [t for t in params if "ep" not in dict(t.coord) or t.coord == place]
        moe = [bool(g.mapping().get("moe")) for g in optimizer.inner.at("param_groups").items()]
        for experts in (False, True) if expert_files else (None,):
            chosen = [index for index, is_moe in enumerate(moe) if experts in (None, is_moe)]
            fitting = [
                t for t in local if experts in (None, group_is_expert((t.name,), source.fused))
            ]
            if not chosen:
                continue
            naming = Naming(optimizer, fitting, source.files.root, chosen)
            tensors, kept = naming.read(place)
            out.tensors += tensors
            if kept:
                out.kept.setdefault(optimizer.file, {}).update(kept)
            for index, names in naming.group_names().items():
                named = global_names(names, ep_rank if source.ep > 1 else None)
                out.groups.setdefault(numbers[index], {}).update(dict.fromkeys(named))


def _empty_shards(tensors: Sequence[LocalTensor]) -> list[LocalTensor]:
    """The tensors, with shards without elements as master weights where others have these.

    DeepSpeed lists a rank's empty shard of a trained parameter among the frozen ones.
    """
    masters = {tensor.name: tensor.dtype for tensor in tensors if tensor.state == MASTER}
    return [
        replace(tensor, state=MASTER, dtype=masters[tensor.name])
        if tensor.state == PARAM and not tensor.numel and tensor.name in masters
        else tensor
        for tensor in tensors
    ]


def _name_kinds(source: Source, out: Collected) -> None:
    """Tell buffers and frozen parameters from those that are trained."""
    models = source.models.values()
    weights = dict.fromkeys(tensor.name for tensor in out.tensors if tensor.state == PARAM)
    named = dict.fromkeys(name for model in models for name in model.buffer_names)
    out.buffers = {name: None for name in named if name in weights}
    trained = {name for model in models for name in model.trained}
    frozen = (name for model in models for name in model.frozen_shapes)
    out.frozen.update(dict.fromkeys(name for name in frozen if name not in trained))
    if source.plain:
        trained = {name for names in out.groups.values() for name in names}
    is_known = bool(source.shards) or (bool(source.plain) and source.ep == 1)
    if is_known and not out.withheld:
        resting = (name for name in weights if name not in trained and name not in out.buffers)
        out.frozen.update(dict.fromkeys(resting))
