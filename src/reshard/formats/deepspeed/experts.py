"""Mixtures of experts: which names are experts, which ranks share them, and their weight files.

Source: DeepSpeed 0.19.8, runtime/engine.py `_save_moe_checkpoint` and utils/groups.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from reshard.errors import source_error
from reshard.formats.deepspeed.files import Files, Folder
from reshard.formats.deepspeed.node import Node, unsupported_experts
from reshard.plan.catalog import Coord, LocalTensor
from reshard.run.states import PARAM
from reshard.storage.kept import local_tensor
from reshard.storage.torch_file import TensorRef

FUSED = ("ds_autoep_layers", "autoep_layers")
"""Keys of a model file that describe the layers of AutoEP."""

_NATIVE = re.compile(r"((?:.*?\.)?deepspeed_experts)\.(\d+)(?=\.|$)", re.ASCII | re.DOTALL)
"""The name of an expert of DeepSpeed's own MoE: its module, and its number there."""

_FILES = "copy the files `layer_*_expert_*` of all ranks"

# Names.


def expert_of(name: str) -> tuple[str, int] | None:
    """The module that holds the experts of a layer and the number, for a name of one of them."""
    match = _NATIVE.match(name)
    return None if match is None else (match[1], int(match[2]))


def with_expert(name: str, expert: int) -> str:
    """The name of an expert with another number."""
    return _NATIVE.sub(rf"\g<1>.{expert}", name, count=1)


def global_names(names: Sequence[str], ep_rank: int | None) -> list[str]:
    """Names with global expert numbers.

    Args:  names: all that a rank has.  ep_rank: its; None where it has all experts.
    """
    if ep_rank is None:
        return list(names)
    places = {name: place for name in names if (place := expert_of(name)) is not None}
    counts: dict[str, int] = {}
    for module, expert in places.values():
        counts[module] = max(counts.get(module, 0), expert + 1)
    out = {n: with_expert(n, ep_rank * counts[m] + expert) for n, (m, expert) in places.items()}
    return [out.get(name, name) for name in names]


def experts_together(names: Iterable[str]) -> dict[str, None]:
    """Names with all experts of a layer one behind the other, as a single rank would have them."""
    layers: dict[str, dict[int, list[str]]] = {}
    for name in names:
        module, expert = expert_of(name) or (name, 0)
        layers.setdefault(module, {}).setdefault(expert, []).append(name)
    return dict.fromkeys(
        name for layer in layers.values() for expert in sorted(layer) for name in layer[expert]
    )


def group_is_expert(names: Iterable[str], fused: Iterable[FusedLayer]) -> bool:
    """Whether the parameters of a group are experts."""
    known = {name for layer in fused for name in layer.names}
    return any(name in known or expert_of(name) is not None for name in names)


# Layers of AutoEP.


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer of AutoEP: all experts of a rank in one tensor.

    Args:  prefix: of the tensors' names.  experts: global numbers, by ep rank, in stored order.
           ep_rank: of the rank that wrote it.  files: whether each expert has a file of its own.
           number: in the names of these files.  description: all that the file says of it.
    """

    prefix: str
    experts: tuple[tuple[int, ...], ...]
    ep_rank: int
    files: bool
    number: int | None
    description: Mapping[str, object]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its tensors."""
        return tuple(f"{self.prefix}.{part}" for part in ("w1", "w2", "w3"))


def fused_layers(model: Node) -> tuple[FusedLayer, ...]:
    """The layers of AutoEP that the root of a model file tells of.

    Raises: ReshardError[unsupported-experts | missing-key].
    """
    layers = next((node for key in FUSED if (node := model.get(key)) is not None), None)
    return () if layers is None else tuple(_fused_layer(item) for item in layers.items())


def _fused_layer(node: Node) -> FusedLayer:
    prefix = node.at("expert_key_prefix").text()
    size, local = node.at("ep_size").integer(), node.at("num_local_experts").integer()
    placement = node.get("expert_placement")
    if placement is None:
        experts = [tuple(range(rank * local, (rank + 1) * local)) for rank in range(size)]
    else:
        ranks = placement.at("ranks").items()
        known = {item.at("rank").integer(): item.at("experts").integers() for item in ranks}
        experts = [known.get(rank, ()) for rank in range(size)]
    numbers = [expert for members in experts for expert in members]
    if numbers != list(range(node.at("num_experts").integer())):
        listed = ", then ".join(" ".join(map(str, members)) or "none" for members in experts)
        raise unsupported_experts(
            f"the experts of `{prefix}` do not lie in order over the ranks",
            f"ranks hold {listed}",
            f"`{FUSED[0]}` in {node.file}",
        )
    form, number = node.get("checkpoint_format"), node.get("moe_layer_id")
    return FusedLayer(
        prefix,
        tuple(experts),
        node.at("ep_rank").integer(),
        form is None or form.value == "per_expert_files",
        None if number is None else number.integer(),
        {key: item.value for key, item in node.entries()},
    )


# Ranks.


def sharing_ranks(dp: int, ep: int, *, data_first: bool) -> list[range]:
    """By expert-parallel rank, the data-parallel ranks that share its experts, by partition.

    Args:  data_first: whether `use_data_before_expert_parallelism` was set.
    """
    count = dp // ep
    if data_first:
        return [range(rank * count, (rank + 1) * count) for rank in range(ep)]
    return [range(rank, dp, ep) for rank in range(ep)]


def stated_ranks(
    ranks: Sequence[tuple[int, ...]], ep_ranks: Sequence[int | None], file: str
) -> dict[int, Sequence[int]]:
    """Who shares the experts of each rank, as every rank's file states (stage 3).

    Args:  ranks: by dp rank, those that share its experts.  ep_ranks: by dp rank.
    Raises: ReshardError[unsupported-experts].
    """
    out: dict[int, Sequence[int]] = {}
    for dp_rank, (sharing, ep_rank) in enumerate(zip(ranks, ep_ranks, strict=True)):
        if ep_rank is None or dp_rank not in sharing or out.setdefault(ep_rank, sharing) != sharing:
            raise unsupported_experts(
                f"dp rank {dp_rank} shares its experts with ranks that do not say the same",
                f"ranks {list(sharing)} by `ds_zero_partition_groups`",
                f"first read from {file}",
            )
    return dict(sorted(out.items()))


def largest_size(sizes: Mapping[str, int]) -> int:
    """The largest expert-parallel size of a model's layers; 1 if there are no experts.

    Args:  sizes: by what tells them.
    Raises: ReshardError[unsupported-experts] where another does not divide it.
    """
    largest = max(sizes.values(), default=1)
    if any(largest % size for size in sizes.values()):
        raise unsupported_experts(
            "experts of one model have expert-parallel sizes that do not divide each other",
            *(f"{size} by {what}" for what, size in sizes.items()),
        )
    return largest


# Weights, each expert in a file of its own (stages 0 to 2).

Weights = Mapping[str, tuple[TensorRef, str]]
"""By stored name, the tensor and the file that holds it."""
Experts = Mapping[int | None, Mapping[int, Weights]]
"""What the expert files of one mp rank hold, by MoE layer and global expert."""


def read_experts(
    files: Files, folder: Folder, mp_rank: int, fused: Sequence[FusedLayer]
) -> Experts:
    """Every expert file of one mp rank."""
    fused_names = {
        f"{n}.{e}"
        for layer in fused
        for n in layer.names
        for numbers in layer.experts
        for e in numbers
    }
    out: dict[int | None, dict[int, Weights]] = {}
    for (layer, expert, mp), file in folder.experts.items():
        if mp != mp_rank:
            continue
        weights: dict[str, tuple[TensorRef, str]] = {}
        out.setdefault(layer, {})[expert] = weights
        for key, item in files.root_of(file).entries():
            if not isinstance(item.value, TensorRef):
                files.leave(item, "it is no tensor")
            elif key in fused_names if fused else expert_of(key) is not None:
                weights[key] = (item.value, file)
            else:
                files.leave(item, "it is a weight of no expert")
    return out


def check_expert_files(folder: Folder, model: Node, mp_rank: int) -> None:
    """Refuse weights of DeepSpeed's own MoE that lack the file of an expert.

    `num_experts` lists how many each layer has, in the order of the layers' numbers.

    Args:  model: the root of the model file of the mp rank.
    Raises: ReshardError[missing-rank-file].
    """
    present: dict[int | None, set[int]] = {}
    for layer, expert, mp in folder.experts:
        if mp == mp_rank:
            present.setdefault(layer, set()).add(expert)
    counts = {layer: max(members) + 1 for layer, members in present.items()}
    node = model.get("num_experts")
    is_listed = node is not None and isinstance(node.value, (list, tuple)) and None not in present
    listed_counts = dict(enumerate(node.integers() if node is not None and is_listed else ()))
    for layer, count in listed_counts.items():
        counts[layer] = max(counts.get(layer, 0), count)
    for number, count in counts.items():
        members = present.get(number, set())
        missing = next((expert for expert in range(count) if expert not in members), None)
        if missing is not None:
            source = f"the highest number is {max(members, default=0)}"
            if number in listed_counts:
                source = f"`num_experts` in {model.file} says {count}"
            raise source_error(
                "missing-rank-file",
                f"expert {missing} of MoE layer {number} has no file",
                notes=[f"{len(members)} experts have one, {source}"],
                helps=[_FILES],
            )


def expert_modules(experts: Experts) -> Iterator[str]:
    """The module that each numbered layer of experts belongs to."""
    for _, members in sorted(experts.items(), key=lambda item: item[0] or 0):
        name = next((key for weights in members.values() for key in weights), "")
        parts = name.split(".")
        ends = [parts.index(part) for part in ("deepspeed_moe", "experts") if part in parts]
        yield ".".join(parts[: min(ends, default=0)])


def native_weights(
    experts: Experts, size: Callable[[str], int], axis: Callable[[int], str], coord: Coord
) -> Iterator[LocalTensor]:
    """Weights of DeepSpeed's own MoE under their local names, each on its ep rank.

    Args:  size: from a name to the expert-parallel size of its layer.
           axis: from such a size to the axis of the mesh.
    Raises: ReshardError[unsupported-experts].
    """
    for layer, members in experts.items():
        ep = max((size(name) for tensors in members.values() for name in tensors), default=1)
        if len(members) % ep:
            raise unsupported_experts(
                f"{len(members)} experts of MoE layer {layer} do not divide by {ep} ranks",
                f"files of experts 0 to {len(members) - 1}",
            )
        each = len(members) // ep
        for expert, weights in sorted(members.items()):
            place = (*coord, (axis(ep), expert // each)) if ep > 1 else coord
            for name, (ref, file) in weights.items():
                yield local_tensor(ref, with_expert(name, expert % each), PARAM, place, file)


def fused_weights(
    layers: Sequence[FusedLayer], experts: Experts, coord: Coord
) -> Iterator[LocalTensor]:
    """Weights of AutoEP, put together to the tensor that each ep rank has.

    Raises: ReshardError[missing-rank-file | unsupported-experts].
    """
    stored = {
        key: item
        for members in experts.values()
        for weights in members.values()
        for key, item in weights.items()
    }
    for layer in layers:
        for name in layer.names if layer.files else ():
            for ep_rank, numbers in enumerate(layer.experts):
                place = (*coord, ("ep", ep_rank)) if len(layer.experts) > 1 else coord
                if numbers:
                    yield _joined(name, numbers, stored, place)


def _joined(name: str, experts: Collection[int], stored: Weights, coord: Coord) -> LocalTensor:
    pieces = []
    for expert in experts:
        if f"{name}.{expert}" not in stored:
            raise source_error(
                "missing-rank-file",
                f"no file holds expert {expert} of `{name}`",
                notes=[f"`{FUSED[0]}` lists the experts"],
                helps=[_FILES],
            )
        ref, file = stored[f"{name}.{expert}"]
        pieces.append(local_tensor(ref, name, PARAM, coord, file))
    first = pieces[0]
    fragments = []
    for index, piece in enumerate(pieces):
        dense = all(fragment.strides is None for fragment in piece.fragments)
        if (piece.shape, piece.dtype) != (first.shape, first.dtype) or not dense:
            raise unsupported_experts(
                f"experts of `{name}` have different shapes or element types",
                f"{list(first.shape)} of {first.dtype}, and {list(piece.shape)} of {piece.dtype}",
            )
        fragments += [
            replace(item, start=item.start + index * first.numel) for item in piece.fragments
        ]
    shape = (len(experts), *first.shape)
    return LocalTensor(name, PARAM, coord, shape, first.dtype, tuple(fragments))
