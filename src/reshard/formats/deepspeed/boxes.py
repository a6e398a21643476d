"""Parameters whose affine map no rule can say: put together from boxes, as the map has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from reshard.algebra.box import Box
from reshard.algebra.flat import cut
from reshard.algebra.piece import Piece, row_major
from reshard.errors import ReshardError, layout_error
from reshard.formats.deepspeed.affine_map import AffineMap, shard_boxes
from reshard.formats.deepspeed.universal_info import UniversalInfo
from reshard.plan.catalog import Coord, Fragment, LocalTensor


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
