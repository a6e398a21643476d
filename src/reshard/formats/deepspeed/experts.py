"""Mixtures of experts: which names are experts, which ranks share them, and their weight files.

Source: DeepSpeed 0.19.8, runtime/engine.py `_save_moe_checkpoint` and utils/groups.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from reshard.errors import ReshardError, source_error
from reshard.formats.deepspeed.layout_text import LocalIndex
from reshard.formats.deepspeed.model_file import ModelFile
from reshard.formats.deepspeed.node import Node

NATIVE = "deepspeed_experts"
_SIZE = re.compile(r"ep_size_(\d+)")


@dataclass(frozen=True, slots=True)
class FusedLayer:
    """One layer of AutoEP: all experts of a rank in one tensor.

    Args:  prefix: of the tensors' names.  experts: global numbers, by ep rank, in stored order.
           ep_rank: of the rank that wrote it.  files: whether each expert has a file of its own.
    """

    prefix: str
    experts: tuple[tuple[int, ...], ...]
    ep_rank: int
    files: bool

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its tensors."""
        return tuple(f"{self.prefix}.{part}" for part in ("w1", "w2", "w3"))

    @property
    def counts(self) -> tuple[int, ...]:
        """Experts on each ep rank."""
        return tuple(len(own) for own in self.experts)


def native_index(name: str) -> int | None:
    """Where the number of an expert stands among the parts of a name, for DeepSpeed's own MoE."""
    parts = name.split(".")
    for index, part in enumerate(parts[:-1]):
        if part == NATIVE and parts[index + 1].isdecimal():
            return index + 1
    return None


def local_expert(name: str, axis: str | None, *, by_layer: bool) -> LocalIndex | None:
    """The local number in an expert's name, as a slot.

    Args:  axis: over which the experts of its layer lie; None where each rank has them all.
           by_layer: whether layers differ in this, so that each has a rule of its own.
    """
    index = native_index(name)
    slot = "expert" if axis is None else f"local expert over {axis}"
    return None if index is None else LocalIndex(index, slot, by_layer)


def with_expert(name: str, component: int, expert: int) -> str:
    """A name with another expert's number."""
    parts = name.split(".")
    parts[component] = str(expert)
    return ".".join(parts)


def fused_layers(model: ModelFile) -> tuple[FusedLayer, ...]:
    """The layers of AutoEP that a model file tells of.

    Raises: ReshardError[unsupported-experts | missing-key].
    """
    for key in ("ds_autoep_layers", "autoep_layers"):
        node = model.root.get(key)
        if node is not None:
            return tuple(_fused(item) for item in node.items())
    return ()


def _fused(node: Node) -> FusedLayer:
    prefix = node.at("expert_key_prefix").text()
    size, local = node.at("ep_size").integer(), node.at("num_local_experts").integer()
    total = node.at("num_experts").integer()
    placement = node.get("expert_placement")
    if placement is None:
        experts = [tuple(range(rank * local, (rank + 1) * local)) for rank in range(size)]
    else:
        found = {
            item.at("rank").integer(): tuple(e.integer() for e in item.at("experts").items())
            for item in placement.at("ranks").items()
        }
        experts = [found.get(rank, ()) for rank in range(size)]
    if [expert for own in experts for expert in own] != list(range(total)):
        raise unsupported_experts(
            f"the experts of `{prefix}` do not lie in order over the ranks",
            [f"ranks hold {_placement(experts)}", f"`ds_autoep_layers` in {node.file}"],
        )
    files = node.get("checkpoint_format")
    return FusedLayer(
        prefix,
        tuple(experts),
        node.at("ep_rank").integer(),
        files is None or files.value == "per_expert_files",
    )


def _placement(experts: Sequence[tuple[int, ...]]) -> str:
    return ", then ".join(" ".join(map(str, own)) or "none" for own in experts)


@dataclass(frozen=True, slots=True)
class ExpertRanks:
    """Which data-parallel ranks share the experts of one ep rank.

    Args:  ep_rank: its index.  dp_ranks: in the order of their partitions.
    """

    ep_rank: int
    dp_ranks: tuple[int, ...]


def expert_ranks(dp: int, count: int, *, data_first: bool) -> tuple[ExpertRanks, ...]:
    """Who shares the experts of a group that is partitioned over `count` of `dp` ranks.

    Args:  data_first: whether `use_data_before_expert_parallelism` was set.
    """
    ep = dp // count
    if data_first:
        return tuple(ExpertRanks(e, tuple(range(e * count, (e + 1) * count))) for e in range(ep))
    return tuple(ExpertRanks(e, tuple(range(e, dp, ep))) for e in range(ep))


def stated_ranks(
    ranks: Sequence[tuple[int, ...]], ep_ranks: Sequence[int | None], file: str
) -> tuple[ExpertRanks, ...]:
    """Who shares the experts of a sub-group, as every rank's file states (stage 3).

    Args:  ranks: by dp rank, those that share its experts.  ep_ranks: by dp rank.
    Raises: ReshardError[unsupported-experts].
    """
    out: dict[int, tuple[int, ...]] = {}
    for dp_rank, own in enumerate(ranks):
        ep_rank = ep_ranks[dp_rank]
        if ep_rank is None or dp_rank not in own or out.setdefault(ep_rank, own) != own:
            raise unsupported_experts(
                f"dp rank {dp_rank} shares its experts with ranks that do not say the same",
                [f"ranks {list(own)} by `ds_zero_partition_groups`", f"first read from {file}"],
            )
    return tuple(ExpertRanks(ep_rank, out[ep_rank]) for ep_rank in sorted(out))


def group_is_expert(names: Iterable[str], fused: Iterable[FusedLayer]) -> bool:
    """Whether the parameters of a group are experts."""
    own = {name for layer in fused for name in layer.names}
    return any(native_index(name) is not None or name in own for name in names)


def named_size(group: Node | None) -> int | None:
    """The expert-parallel size in a param group's name, `ep_size_4`."""
    name = None if group is None else group.get("name")
    found = None if name is None else _SIZE.search(str(name.value))
    return None if found is None else int(found[1])


def data_before_expert(model: ModelFile) -> bool:
    """Whether neighbouring dp ranks share experts."""
    config = model.config
    flag = None if config is None else config.get("use_data_before_expert_parallelism")
    return flag is not None and bool(flag.value)


def expert_module(name: str) -> str | None:
    """The module that holds the experts of a layer, for a name of one of them."""
    component = native_index(name)
    return None if component is None else ".".join(name.split(".")[:component])


def largest_size(sizes: Mapping[str, int]) -> int:
    """The largest expert-parallel size of a model's layers; 1 if there are no experts.

    Args:  sizes: by what tells them.
    Raises: ReshardError[unsupported-experts] where another does not divide it.
    """
    largest = max(sizes.values(), default=1)
    if any(largest % size for size in sizes.values()):
        raise unsupported_experts(
            "experts of one model have expert-parallel sizes that do not divide each other",
            [f"{size} by {what}" for what, size in sizes.items()],
        )
    return largest


def local_names(
    names: Iterable[str], experts: Iterable[int], ep: int
) -> Iterator[tuple[str, str, int]]:
    """Global expert names as (name, local name, ep rank).

    Args:  experts: all global numbers of the layer.
    """
    own = sorted(set(experts))
    each = len(own) // ep
    for name in names:
        component = native_index(name)
        if component is None:
            continue
        expert = int(name.split(".")[component])
        yield name, with_expert(name, component, expert % each), expert // each


def unsupported_experts(headline: str, notes: Sequence[str]) -> ReshardError:
    """The error for a placement of experts that is not read."""
    return source_error(
        "unsupported-experts",
        headline,
        notes=notes,
        helps=["load the checkpoint and save it with experts in order, as many on every rank"],
    )
