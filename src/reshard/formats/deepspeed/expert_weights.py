"""The weights of experts, each of which has a file of its own at stages 0 to 2."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from reshard.errors import source_error
from reshard.formats.deepspeed.experts import (
    FusedLayer,
    native_index,
    unsupported_experts,
    with_expert,
)
from reshard.formats.deepspeed.files import Files
from reshard.formats.deepspeed.folder import Folder
from reshard.formats.deepspeed.weights import PARAM, tensor_of
from reshard.plan.catalog import Coord, LocalTensor
from reshard.storage.torch_file import TensorRef

Weights = Mapping[str, tuple[TensorRef, str]]
"""By stored name, the tensor and the file that holds it."""


def read_experts(
    files: Files, folder: Folder, mp_rank: int, fused: Sequence[FusedLayer]
) -> dict[int | None, dict[int, Weights]]:
    """What the expert files of one mp rank hold, by MoE layer and global expert."""
    names = {
        f"{name}.{expert}"
        for layer in fused
        for name in layer.names
        for own in layer.experts
        for expert in own
    }
    out: dict[int | None, dict[int, Weights]] = {}
    for (layer, expert, mp), name in folder.experts.items():
        if mp != mp_rank:
            continue
        root = files.root_of(name)
        held: dict[str, tuple[TensorRef, str]] = {}
        for key, item in root.entries():
            if not isinstance(item.value, TensorRef):
                files.leave(item, "it is no tensor")
            elif key in names if fused else native_index(key) is not None:
                held[key] = (item.value, name)
            else:
                files.leave(item, "it is a weight of no expert")
        out.setdefault(layer, {})[expert] = held
    return out


def expert_modules(experts: Mapping[int | None, Mapping[int, Weights]]) -> Iterator[str]:
    """The module that each numbered layer of experts belongs to."""
    for _, members in sorted(experts.items(), key=lambda item: item[0] or 0):
        name = next((key for weights in members.values() for key in weights), "")
        parts = name.split(".")
        ends = [parts.index(part) for part in ("deepspeed_moe", "experts") if part in parts]
        yield ".".join(parts[: min(ends, default=0)])


def native_weights(
    experts: Mapping[int | None, Mapping[int, Weights]],
    size: Callable[[str], int],
    axis: Callable[[int], str],
    coord: Coord,
) -> Iterator[LocalTensor]:
    """Weights of DeepSpeed's own MoE under their local names, each on its ep rank.

    Args:  size: from a name to the expert-parallel size of its layer.
           axis: from such a size to the axis of the mesh.

    Raises: ReshardError[missing-rank-file | unsupported-experts].
    """
    for layer, members in experts.items():
        _check_whole(layer, members)
        ep = max((size(name) for own in members.values() for name in own), default=1)
        if len(members) % ep:
            raise unsupported_experts(
                f"{len(members)} experts of MoE layer {layer} do not divide by {ep} ranks",
                [f"files of experts 0 to {len(members) - 1}"],
            )
        each = len(members) // ep
        for expert, weights in sorted(members.items()):
            place = (*coord, (axis(ep), expert // each)) if ep > 1 else coord
            for name, (ref, file) in weights.items():
                component = native_index(name)
                if component is None:
                    continue
                local = with_expert(name, component, expert % each)
                yield tensor_of(ref, local, PARAM, place, file)


def fused_weights(
    layers: Sequence[FusedLayer],
    experts: Mapping[int | None, Mapping[int, Weights]],
    coord: Coord,
) -> Iterator[LocalTensor]:
    """Weights of AutoEP, put together to the tensor that each ep rank has.

    Raises: ReshardError[missing-rank-file | unsupported-experts].
    """
    found = {
        key: held
        for members in experts.values()
        for w in members.values()
        for key, held in w.items()
    }
    for layer in layers:
        if not layer.files:
            continue
        for name in layer.names:
            for ep_rank, own in enumerate(layer.experts):
                if not own:
                    continue
                place = (*coord, ("ep", ep_rank)) if len(layer.experts) > 1 else coord
                yield _fused(name, own, found, place)


def _fused(name: str, experts: Sequence[int], found: Weights, coord: Coord) -> LocalTensor:
    pieces = []
    for expert in experts:
        held = found.get(f"{name}.{expert}")
        if held is None:
            raise source_error(
                "missing-rank-file",
                f"no file holds expert {expert} of `{name}`",
                notes=["`ds_autoep_layers` tells which experts there are"],
                helps=["copy the files `layer_*_expert_*` of all ranks"],
            )
        ref, file = held
        pieces.append(tensor_of(ref, name, PARAM, coord, file))
    first = pieces[0]
    fragments = []
    for index, piece in enumerate(pieces):
        dense = all(fragment.strides is None for fragment in piece.fragments)
        if (piece.shape, piece.dtype) != (first.shape, first.dtype) or not dense:
            raise unsupported_experts(
                f"experts of `{name}` have different shapes or element types",
                [f"{list(first.shape)} of {first.dtype}, and {list(piece.shape)} of {piece.dtype}"],
            )
        fragments += [
            replace(item, start=item.start + index * first.numel) for item in piece.fragments
        ]
    return LocalTensor(
        name, PARAM, coord, (len(experts), *first.shape), first.dtype, tuple(fragments)
    )


def _check_whole(layer: int | None, members: Mapping[int, Weights]) -> None:
    missing = [expert for expert in range(max(members) + 1) if expert not in members]
    if missing:
        raise source_error(
            "missing-rank-file",
            f"expert {missing[0]} of MoE layer {layer} has no file",
            notes=[f"{len(members)} experts have one, the highest number is {max(members)}"],
            helps=["copy the files `layer_*_expert_*` of all ranks"],
        )
