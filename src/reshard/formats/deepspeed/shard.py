"""What one rank's optimizer file holds, in one form for every ZeRO stage."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from reshard.errors import ReshardError
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.scalar import Scalar, scalar_of
from reshard.storage.torch_file import TensorRef

MASTER = "master"
STEP = "step"


@dataclass(frozen=True, slots=True)
class GroupShard:
    """One rank's partition of one flat group (a param group, or a sub-group at stage 3).

    Args:  master: the master weights; with the padding at their end, or without.
           entries: what the optimizer keeps of the group, by state.
           padding: elements at the end of the buffer that belong to no parameter, as the rank says.
           partition_numel: elements of the partition, padding included, as the rank says.
           count: ranks that the group is partitioned over, None if the file does not tell.
           gaps: elements between the parameters, one number for each, behind it.
           slices: name -> (start in the partition, elements), as the writer saw it; wrong for
                   round-robin gradients.
           ranks: global ranks that share the group, None if the file does not tell.
    """

    file: str
    master: TensorRef
    entries: Mapping[str, Node]
    padding: int
    partition_numel: int
    count: int | None
    gaps: tuple[int, ...] | None = None
    slices: Mapping[str, tuple[int, int]] | None = None
    ranks: tuple[int, ...] | None = None

    def fits(self, numel: int) -> bool:
        """Whether the partition is one of so many elements.

        Before 0.19 the last rank alone states the padding of all ranks, which can be more than its
        partition; it stores what `master[: numel - padding]` leaves of it.
        """
        if self.partition_numel == numel:
            return True
        return self.padding > numel and self.master.numel == len(
            range(numel)[: numel - self.padding]
        )


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's optimizer file.

    Args:  root: the whole tree.  optimizer: the optimizer's own state_dict within it.
           stage: ZeRO stage.  groups: by position.
    """

    root: Node
    optimizer: Node
    stage: int
    groups: tuple[GroupShard, ...]

    @property
    def file(self) -> str:
        """Its name."""
        return self.root.file


@dataclass(slots=True)
class SortedStates:
    """The states of one flat group by how ranks hold them; each value is by partition.

    Args:  elements: one number for each element of the partition.
           wholes: one for each element of every parameter of which the partition has some.
           numbers: one number, the same on all ranks.
           kept: everything else.
    """

    elements: dict[str, list[TensorRef]] = field(default_factory=dict)
    wholes: dict[str, list[TensorRef | None]] = field(default_factory=dict)
    numbers: dict[str, Scalar] = field(default_factory=dict)
    kept: dict[str, list[Node | None]] = field(default_factory=dict)


def sort_states(
    shards: Sequence[GroupShard], numel: int, touched: Sequence[int], disagree: Disagree
) -> SortedStates:
    """Sort the states of a group; all ranks must hold a state in the same way.

    Args:  numel: of a partition.  touched: by partition, elements of all parameters in it.
    Raises: ReshardError[ranks-disagree].
    """
    out = SortedStates({MASTER: [shard.master for shard in shards]})
    for state in dict.fromkeys(state for shard in shards for state in shard.entries):
        nodes = [shard.entries.get(state) for shard in shards]
        if all(node is None or node.is_none for node in nodes):
            continue
        flat = [_flat(node) for node in nodes]
        lengths = [{numel, shard.master.numel} for shard in shards]
        if all(ref and ref.numel in own for ref, own in zip(flat, lengths, strict=True)):
            out.elements[state] = [ref for ref in flat if ref is not None]
        elif all((ref.numel if ref else 0) == n for ref, n in zip(flat, touched, strict=True)):
            out.wholes[state] = flat
        elif (number := _number(state, shards, nodes, disagree)) is not None:
            out.numbers[state] = number
        else:
            if any(ref and ref.numel in own for ref, own in zip(flat, lengths, strict=True)):
                _refuse_lack(state, shards, nodes, disagree)
            out.kept[state] = nodes
    return out


Disagree = Callable[[str, str, str, str], ReshardError]
"""The error for what all ranks must say alike: (what, the first rank's, another's, its file)."""


def _flat(node: Node | None) -> TensorRef | None:
    value = None if node is None else node.value
    return value if isinstance(value, TensorRef) and len(value.shape) == 1 else None


def _number(
    state: str, shards: Sequence[GroupShard], nodes: Sequence[Node | None], disagree: Disagree
) -> Scalar | None:
    """The number that a state is on all ranks; None where it is none, or differs between them."""
    found = [None if node is None else scalar_of(node.value, node.file) for node in nodes]
    first = found[0]
    for number, shard in zip(found, shards, strict=True):
        same = number and first and (number.dtype, number.data) == (first.dtype, first.data)
        if not same and state == STEP and any(found):
            raise disagree(f"`{state}`", _show(first), _show(number), shard.file)
        if not same:
            return None
    return first


def _show(scalar: Scalar | None) -> str:
    return "nothing" if scalar is None else f"{scalar}"


def _refuse_lack(
    state: str, shards: Sequence[GroupShard], nodes: Sequence[Node | None], disagree: Disagree
) -> None:
    """Refuse a state that some ranks have and others have not."""
    first = "a tensor" if nodes[0] is not None else "nothing"
    for node, shard in zip(nodes, shards, strict=True):
        own = "a tensor" if node is not None else "nothing"
        if own != first:
            raise disagree(f"`{state}`", first, own, shard.file)
