"""A pickled DTensor or ShardedTensor: which box of the whole tensor a rank holds.

Source: torch/distributed/tensor/{_api,_dtensor_spec,placement_types}.py,
torch/distributed/device_mesh.py, torch/distributed/_mesh_layout.py (2.13).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from math import prod
from typing import cast

from reshard.algebra.box import Box
from reshard.algebra.piece import row_major
from reshard.dtypes import DType
from reshard.storage.inert import Global, Record, Size
from reshard.storage.tensor_ref import TensorRef
from reshard.storage.torch_file import read_small
from reshard.storage.torch_writer import NewTensor, torch_dtype

_LAYOUT = "torch.distributed._mesh_layout"
_INTEGERS = {DType.I32: "i", DType.I64: "q"}


class DTensorError(ValueError):
    """A DTensor that is none, or of a kind that is not read."""


@dataclass(frozen=True, slots=True)
class RankTensor:
    """What a rank holds of a tensor.

    Args:  shape: of the whole.  box: of it.
           copy: which of all that is stored of the tensor it belongs to; ranks of one copy have
           boxes that do not overlap.
           ranks: all that wrote a file; () for a tensor that is not one of a mesh.
    """

    ref: TensorRef
    shape: tuple[int, ...]
    box: Box
    copy: tuple[object, ...]
    ranks: tuple[int, ...]


def rank_tensors(value: object, rank: int) -> list[RankTensor]:
    """What a rank holds of a tensor: one part of a DTensor, any number of parts of a ShardedTensor.

    Raises: DTensorError.
    """
    if isinstance(value, Record) and len(value.args) == 4:
        kind = value.args[1]
        if isinstance(kind, Global) and kind.name == "ShardedTensor":
            return _shards(value.args[3], rank)
    tensor = rank_tensor(value, rank)
    return [] if tensor is None else [tensor]


def _shards(state: object, rank: int) -> list[RankTensor]:
    """Source: torch/distributed/_shard/sharded_tensor/api.py `ShardedTensor.__getstate__`."""
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[0], list):
        raise DTensorError("it is a sharded tensor of a form that is not known")
    whole = state[1].attributes.get("size") if isinstance(state[1], Record) else None
    group = state[2].attributes if isinstance(state[2], Record) else {}
    world, own = group.get("global_world_size"), group.get("global_rank")
    if not isinstance(whole, tuple) or not isinstance(world, int):
        raise DTensorError("it does not say its whole shape, or how many ranks there are")
    if own != rank:
        raise DTensorError(f"it was written by rank {own}")
    out = []
    for shard in state[0]:
        fields = shard.attributes if isinstance(shard, Record) else {}
        ref, metadata = fields.get("tensor"), fields.get("metadata")
        fields_of = metadata.attributes if isinstance(metadata, Record) else {}
        lo, size = fields_of.get("shard_offsets"), fields_of.get("shard_sizes")
        if not (isinstance(ref, TensorRef) and isinstance(lo, list) and isinstance(size, list)):
            raise DTensorError("one of its shards is not one that can be read")
        if tuple(size) != ref.shape or len(lo) != len(whole):
            raise DTensorError(f"a shard of {size} has {list(ref.shape)} elements")
        box = Box(tuple(lo), tuple(size))
        out.append(RankTensor(ref, tuple(whole), box, (), tuple(range(world))))
    return out


def rank_tensor(value: object, rank: int) -> RankTensor | None:
    """A tensor of a rank's file; None for what is no tensor.

    Raises: DTensorError.
    """
    if isinstance(value, TensorRef):
        return RankTensor(value, value.shape, Box.whole(value.shape), (rank,), ())
    if not isinstance(value, Record):
        return None
    if value.name != "_rebuild_from_type_v2":
        raise DTensorError(f"it is a `{value}`")
    state = value.args[3] if len(value.args) == 4 else None
    attributes = state[1] if isinstance(state, tuple) and len(state) == 2 else None
    if not isinstance(attributes, dict) or "_spec" not in attributes:
        raise DTensorError("it is a tensor of a class that is not read")
    local, spec = attributes.get("_local_tensor"), attributes["_spec"]
    if not isinstance(local, TensorRef) or not isinstance(spec, Record):
        raise DTensorError("its local tensor is not one that can be read")
    fields = spec.attributes
    shape = _shape(fields.get("tensor_meta"))
    sizes, ranks, strides = _mesh(fields.get("mesh"))
    if rank not in ranks:
        raise DTensorError(f"its mesh has no rank {rank}")
    at = ranks.index(rank)
    coord = [at // stride % size for size, stride in zip(sizes, strides, strict=True)]
    _check_rank(fields.get("mesh"), rank, coord)
    box, copy = _box(shape, sizes, coord, fields.get("placements"))
    if box.size != local.shape:
        raise DTensorError(f"it has {list(local.shape)} elements, its rank {list(box.size)}")
    # A slice of a mesh lists the ranks of all slices, and has one copy for each.
    part = at - sum(index * stride for index, stride in zip(coord, strides, strict=True))
    return RankTensor(local, shape, box, (ranks, part, copy), ranks)


def _shape(meta: object) -> tuple[int, ...]:
    if isinstance(meta, Record) and meta.args and isinstance(meta.args[0], tuple):
        return tuple(int(size) for size in meta.args[0])
    raise DTensorError("it does not say its whole shape")


def _mesh(mesh: object) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Sizes of the mesh, its ranks, and what a step along each axis is in that list."""
    fields = mesh.attributes if isinstance(mesh, Record) else {}
    ranks = fields.get("mesh", fields.get("_rank_map"))
    if not isinstance(ranks, TensorRef) or ranks.dtype not in _INTEGERS or not ranks.is_contiguous:
        raise DTensorError("it does not say the ranks of its mesh")
    data = read_small(ranks)
    numbers = struct.unpack(f"<{ranks.numel}{_INTEGERS[ranks.dtype]}", data)
    if "mesh" in fields:  # before torch 2.9: the ranks in the shape of the mesh
        sizes = ranks.shape
        return sizes, numbers, tuple(prod(sizes[axis + 1 :]) for axis in range(len(sizes)))
    layout = fields.get("_layout")
    axes = layout.attributes.get("axes") if isinstance(layout, Record) else None
    items = axes if isinstance(axes, tuple) else ()
    flat = [axis.attributes for axis in items if isinstance(axis, Record)]
    shapes = [(axis.get("shape"), axis.get("stride")) for axis in flat]
    if not shapes or not all(_is_one(shape) and _is_one(stride) for shape, stride in shapes):
        raise DTensorError("its mesh is not one of plain axes")
    ones = cast("list[tuple[tuple[int], tuple[int]]]", shapes)
    return tuple(size[0] for size, _ in ones), numbers, tuple(step[0] for _, step in ones)


def _check_rank(mesh: object, rank: int, coord: list[int]) -> None:
    """Refuse a file under the name of another rank; some versions of torch pickle the rank."""
    fields = mesh.attributes if isinstance(mesh, Record) else {}
    own, place = fields.get("_rank"), fields.get("_coordinate_on_dim")
    if isinstance(own, int) and own != rank:
        raise DTensorError(f"it was written by rank {own}")
    if isinstance(place, (tuple, list)) and list(place) != coord:
        raise DTensorError(
            f"it was written at {list(place)} of its mesh, and rank {rank} is {coord}"
        )


def _is_one(value: object) -> bool:
    """Whether a size or stride is that of a single axis."""
    return (
        isinstance(value, tuple) and len(value) == 1 and isinstance(value[0], int) and value[0] > 0
    )


def _box(
    shape: tuple[int, ...], sizes: tuple[int, ...], coord: list[int], placements: object
) -> tuple[Box, int]:
    """The box of a rank, and its number among the ranks that have the same."""
    if not isinstance(placements, tuple) or len(placements) != len(sizes):
        raise DTensorError("its placements are not those of its mesh")
    lo, size = [0] * len(shape), list(shape)
    copy = 0
    late: list[tuple[int, int]] = []
    for axis, item in enumerate(placements):
        name = item.name if isinstance(item, Record) else ""
        dim = item.attributes.get("dim") if isinstance(item, Record) else None
        if name == "Replicate":
            copy = copy * sizes[axis] + coord[axis]
        elif name in ("Shard", "_StridedShard") and isinstance(dim, int) and 0 <= dim < len(shape):
            if name == "Shard":
                _cut(lo, size, dim, sizes[axis], coord[axis])
            else:
                late.append((axis, dim))
        else:
            raise DTensorError(f"it is placed as `{name or item}`")
    if len({dim for _, dim in late}) < len(late):
        raise DTensorError("two axes of its mesh cut a dimension in strides")
    for axis, dim in late:  # it cuts within what the axes behind it have cut
        _cut(lo, size, dim, sizes[axis], coord[axis])
    return Box(tuple(lo), tuple(size)), copy


def _cut(lo: list[int], size: list[int], dim: int, parts: int, index: int) -> None:
    """One more cut of a dimension, as `torch.chunk` makes it."""
    step = -(-size[dim] // parts)
    start = min(index * step, size[dim])
    lo[dim] += start
    size[dim] = min(step, size[dim] - start)


def rank_mesh(ranks: int, rank: int, numbers: NewTensor, device: str) -> Record:
    """The mesh of one axis, as torch 2.13 pickles that of a rank.

    Args:  numbers: the ranks in order, of type int32.  device: the kind that they have.
    """
    axis = Record(_LAYOUT, "_FlatLayout", (), "newobj", [{"shape": (ranks,), "stride": (1,)}])
    fields: dict[object, object] = {
        "_device_type": device,
        "_layout": Record(_LAYOUT, "_MeshLayout", (), "newobj", [{"axes": (axis,)}]),
        "_rank_map": numbers,
        "_mesh_dim_names": ("fsdp",),
        "_root_mesh": None,
        "_flatten_rank_map": tuple(range(ranks)),
        "_thread_id": None,
        "_flatten_mapping": {},
        "_dim_group_names": ["0"],
        "_rank": rank,
        "_coordinate_on_dim": (rank,),
        "_hash": None,
    }
    return Record("torch.distributed.device_mesh", "DeviceMesh", (), "newobj", [fields])


def row_shard(local: NewTensor, shape: tuple[int, ...], mesh: Record) -> Record:
    """A DTensor that is cut along its first dimension, as a rank pickles it.

    Args:  local: the rank's rows.  shape: of the whole.
    """
    specs, places = (
        "torch.distributed.tensor._dtensor_spec",
        "torch.distributed.tensor.placement_types",
    )
    kind, dtype = Global("torch.distributed.tensor", "DTensor"), torch_dtype(local.storage.dtype)
    strides = row_major(shape)
    spec = {
        "mesh": mesh,
        "placements": (Record(places, "Shard", (), "newobj", [{"dim": 0}]),),
        "tensor_meta": Record(specs, "TensorMeta", (Size(shape), strides, dtype), "newobj"),
        "shard_order": (Record(specs, "ShardOrderEntry", (0, (0,)), "newobj"),),
        "use_strided_shard_as_shard_order": False,
        "_hash": None,
    }
    strided = Record("torch.serialization", "_get_layout", ("torch.strided",))
    device = Record("torch", "device", ("cpu",))
    arguments = (kind, dtype, shape, strides, 0, strided, device, False)
    state = {"_local_tensor": local, "_spec": Record(specs, "DTensorSpec", (), "newobj", [spec])}
    build = Global("torch._utils", "_rebuild_wrapper_subclass")
    return Record("torch._tensor", "_rebuild_from_type_v2", (build, kind, arguments, (None, state)))
