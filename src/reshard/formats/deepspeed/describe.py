"""The layout of a checkpoint as UCL, from what the checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.piece import Piece, row_major
from reshard.errors import Diagnostic, ReshardError, layout_error
from reshard.formats.deepspeed.affine_map import AffineMap, shard_boxes
from reshard.formats.deepspeed.collect import Collected
from reshard.formats.deepspeed.experts import native_index
from reshard.formats.deepspeed.groups import ranks_disagree
from reshard.formats.deepspeed.source import Source
from reshard.formats.deepspeed.tp_rules import KEY, UniversalInfo, is_default, same_rules, tp_body
from reshard.formats.deepspeed.ucl_text import COPIED, LocalIndex, layout_text
from reshard.formats.deepspeed.weights import compare_copies
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.plan.names import group_names, quantity
from reshard.records import dataclass, field

MAX_GROUPS = 20


@dataclass(slots=True)
class Described:
    """A layout and the tensors that it is of.

    Args:  tensors: as collected, but for parameters whose shards no rule can join: these are whole.
    """

    layout: str
    tensors: list[LocalTensor]
    oddities: tuple[Diagnostic, ...]


@dataclass(slots=True)
class _Rules:
    """The right side of every name's rule.

    Args:  maps: names whose affine map no rule can say.  reasons: why others have no rule.
           constant: names whose copies and cuts look the same.
    """

    bodies: dict[str, str] = field(default_factory=dict)
    maps: dict[str, UniversalInfo] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    constant: list[str] = field(default_factory=list)


def describe(source: Source, found: Collected, *, strict: bool) -> Described:
    """The layout of all that was collected.

    Args:  strict: whether every parameter must have a rule.
    Raises: ReshardError[uncovered-parameter | ranks-disagree | ...].
    """
    by_name = _by_name(found.tensors)
    tensors = found.tensors
    if source.grid.tp == 1:
        experts = _expert_bodies(source)
        rules = _Rules({name: experts.get(name, COPIED) for name in by_name})
    else:
        rules = _tp_rules(source, found, by_name, strict=strict)
        tensors = whole_tensors(tensors, rules.maps, source.grid.tp)
    text = layout_text(
        ("pp", "tp", *source.expert_axes, "dp"),
        rules.bodies,
        local=_local(source, found),
        undescribed=[name for name in by_name if name not in rules.bodies],
    )
    return Described(text, tensors, (_constant(rules.constant),) if rules.constant else ())


def _local(source: Source, found: Collected) -> dict[str, LocalIndex]:
    out = {}
    sizes = {*source.expert_sizes.values()}
    for tensor in found.tensors if source.ep > 1 else ():
        size = source.expert_size(tensor.name)
        axis = source.ep_axis(size) if size > 1 else None
        index = native_index(tensor.name)
        if index is not None:
            slot = "expert" if axis is None else f"local expert over {axis}"
            out[tensor.name] = LocalIndex(index, slot, len(sizes) > 1)
    return out


def _expert_bodies(source: Source) -> dict[str, str]:
    """Rules of AutoEP's tensors, which hold all experts of a rank."""
    out = {}
    for layer in source.fused if source.ep > 1 else ():
        counts = [len(own) for own in layer.experts]
        sizes = "" if len(set(counts)) == 1 else f" as ({', '.join(map(str, counts))})"
        out.update(dict.fromkeys(layer.names, f"[experts over ep{sizes}, ...]"))
    return out


def _by_name(tensors: Sequence[LocalTensor]) -> dict[str, list[LocalTensor]]:
    """One local tensor for every coordinate, by name: the weight, or what has its shape."""
    found: dict[str, dict[object, LocalTensor]] = {}
    for tensor in tensors:
        own = found.setdefault(tensor.name, {})
        known = own.get(tensor.coord)
        if known is None or (known.shape == () and tensor.shape != ()):
            own[tensor.coord] = tensor
    return {name: list(own.values()) for name, own in found.items()}


def _infos(source: Source) -> dict[int, UniversalInfo]:
    """By pipeline stage, what its files say; a stage that says nothing is left out."""
    out: dict[int, UniversalInfo] = {}
    for mp_rank in source.grid.mp_ranks:
        node = source.models[0, mp_rank].root.get(KEY)
        if node is None and source.shards:
            node = source.shards[0, mp_rank].optimizer.get(KEY)
        if node is None:
            continue
        first = out.setdefault(source.grid.stage(mp_rank), UniversalInfo(node))
        if not same_rules(first.node, node):
            raise ranks_disagree(f"`{KEY}`", "one description", first.file, "another", node.file)
    return out


def _tp_rules(
    source: Source, found: Collected, by_name: Mapping[str, list[LocalTensor]], *, strict: bool
) -> _Rules:
    """The rules of a tensor-parallel checkpoint."""
    out = _Rules()
    infos = _infos(source)
    for name, tensors in by_name.items():
        if name in found.buffers:
            out.bodies[name] = COPIED
            continue
        info = infos.get(dict(tensors[0].coord).get("pp", 0))
        why = f"there is no `{KEY}`"
        if info is not None:
            try:
                why = _add_rule(source, info, name, tensors, out)
            except ReshardError:
                if strict:
                    raise
                why = "what it says does not fit"
        if why:
            out.reasons.setdefault(why, []).append(name)
    if strict and out.reasons:
        raise _uncovered(source, out.reasons)
    return out


def _add_rule(
    source: Source, info: UniversalInfo, name: str, tensors: Sequence[LocalTensor], out: _Rules
) -> str:
    """The rule of one name; returns why there is none."""
    by_rank = {dict(tensor.coord).get("tp", 0): tensor for tensor in tensors}
    missing = [rank for rank in range(source.grid.tp) if rank not in by_rank]
    if missing:
        have, held = next(iter(by_rank.items()))
        raise ranks_disagree(
            f"`{name}`",
            f"tp rank {have} has it",
            held.fragments[0].file if held.fragments else info.file,
            f"tp rank {missing[0]} has not",
            f"the files of tp rank {missing[0]}",
        )
    ordered = [by_rank[rank] for rank in range(source.grid.tp)]
    body = tp_body(info, name, [tensor.shape for tensor in ordered])
    if body is None:
        out.maps[name] = info
    elif is_default(info, name) and len(ordered[0].shape) == 1:
        verdict = compare_copies(source.files.root, ordered)
        if verdict == "copies":
            return "no list has it, and all ranks hold the same values"
        if verdict == "constant":
            out.constant.append(name)
    out.bodies[name] = COPIED if body is None else body
    return ""


def _listed(names: Sequence[str]) -> str:
    groups = group_names(names)
    listed = [f"`{group}`{quantity(count)}" for group, count in groups[:MAX_GROUPS]]
    if len(groups) > MAX_GROUPS:
        listed.append(f"and {len(groups) - MAX_GROUPS} more kinds of names")
    return ", ".join(listed)


def _uncovered(source: Source, reasons: Mapping[str, Sequence[str]]) -> ReshardError:
    count = sum(map(len, reasons.values()))
    what = "parameter lies" if count == 1 else "parameters lie"
    return layout_error(
        "uncovered-parameter",
        f"nothing says how {count} {what} over {source.grid.tp} tensor-parallel ranks",
        notes=[
            *(f"{why}: {_listed(own)}" for why, own in reasons.items()),
            f"looked for in {source.first.file}",
        ],
        helps=[
            "state it in a layout: start from `reshard layout show SRC`, and give it with "
            "`--layout FILE`",
        ],
    )


def _constant(names: Sequence[str]) -> Diagnostic:
    what = "1 parameter is" if len(names) == 1 else f"{len(names)} parameters are"
    return Diagnostic(
        "undecided-parameter",
        f"{what} in no list of `{KEY}`, and equal everywhere",
        level="warning",
        notes=(
            _listed(names),
            "one number fills the shards of all ranks, so that a copy and a cut look the same",
            "joined along dimension 0, as DeepSpeed does",
        ),
        helps=("for a copy, write `[...]` in a layout and give it with `--layout FILE`",),
    )


# Parameters whose affine map no rule can say: put together from boxes, as the map has them.


def whole_tensors(
    tensors: Iterable[LocalTensor], infos: Mapping[str, UniversalInfo], tp: int
) -> list[LocalTensor]:
    """The tensors, with those of `infos` replaced by one whole tensor on every tp rank.

    The whole tensor of a rank has the blocks that this rank holds from its own shard, so that
    blocks which several ranks hold are compared.

    Args:  infos: by name, where the affine map stands.  tp: number of ranks.
    Raises: ReshardError[unsupported-affine-map].
    """
    maps = {name: info.affine_map(name) for name, info in infos.items()}
    shards: dict[tuple[str, str, Coord], dict[int, LocalTensor]] = {}
    out: list[LocalTensor] = []
    for tensor in tensors:
        if tensor.name not in maps or tensor.shape == ():
            out.append(tensor)
            continue
        rest = tuple(item for item in tensor.coord if item[0] != "tp")
        own = shards.setdefault((tensor.name, tensor.state, rest), {})
        own[dict(tensor.coord).get("tp", 0)] = tensor
        found = maps[tensor.name]
        if len(own) == tp and found is not None:
            out += _wholes(found, own, infos[tensor.name])
    return out


def _wholes(
    found: AffineMap, shards: Mapping[int, LocalTensor], info: UniversalInfo
) -> list[LocalTensor]:
    name = next(iter(shards.values())).name
    try:
        boxes = {rank: list(shard_boxes(found, rank)) for rank in shards}
    except ValueError as error:
        raise _unsupported(name, info, f"it has {error}") from None
    holders: dict[Box, list[int]] = {}
    for rank, own in boxes.items():
        for box, _, _ in own:
            holders.setdefault(box, []).append(rank)
    out = []
    for rank, shard in sorted(shards.items()):
        fragments: list[Fragment] = []
        for box, ranks in holders.items():
            source = rank if rank in ranks else ranks[0]
            for other, offset, strides in boxes[source]:
                if other == box:
                    fragments += _held(Piece(other, offset, strides), shards[source])
        out.append(
            LocalTensor(
                shard.name, shard.state, shard.coord, found.shape, shard.dtype, tuple(fragments)
            )
        )
    return out


def _held(piece: Piece, shard: LocalTensor) -> Sequence[Fragment]:
    """What the runs of a shard hold of a block."""
    out = []
    for run in shard.fragments:
        if run.strides is not None:
            strides = _through(piece, shard, run)
            out.append(strides)
            continue
        for held in cut(piece, run.start, run.start + run.numel):
            offset = run.byte_offset + (held.offset - run.start) * shard.dtype.itemsize
            out.append(
                Fragment(0, held.box.volume, run.file, offset, held.strides, run.literal, held.box)
            )
    return out


def _through(piece: Piece, shard: LocalTensor, run: Fragment) -> Fragment:
    """A block of a shard that is not stored row-major: each of its steps is one of the shard's."""
    steps = dict(zip(row_major(shard.shape), run.strides or (), strict=True))
    offset, left = 0, piece.offset
    for dense, stored in zip(row_major(shard.shape), run.strides or (), strict=True):
        index = left // dense if dense else 0
        left -= index * dense
        offset += index * stored
    strides = tuple(steps.get(step, 0) for step in piece.strides)
    return Fragment(
        0,
        piece.box.volume,
        run.file,
        run.byte_offset + offset * shard.dtype.itemsize,
        strides,
        None,
        piece.box,
    )


def _unsupported(name: str, info: UniversalInfo, why: str) -> ReshardError:
    return layout_error(
        "unsupported-affine-map",
        f"the `affine_map` of `{name}` is of a form that is not read",
        notes=[why, f"in {info.file}"],
        helps=["give a layout of your own with `--layout FILE`"],
    )
