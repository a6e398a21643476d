"""What one rank's optimizer file holds, in one form for every ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.scalar import Scalar, scalar_of
from reshard.storage.torch_file import TensorRef

MASTER = "master"


@dataclass(frozen=True, slots=True)
class GroupShard:
    """One rank's partition of one flat group (a param group, or a sub-group at stage 3).

    Args:  states: tensors with one element per element of the partition, the master weights among
                 them; each may or may not have the padding at its end.
           scalars: numbers of the whole group.
           other: states that are neither.
           padding: elements at the end of the partition that belong to no parameter.
           partition_numel: elements of the partition, padding included.
           count: ranks that the group is partitioned over, None if the file does not tell.
           gaps: elements between the parameters, one number for each, behind it.
           slices: name -> (start in the partition, elements), as the writer saw it; wrong for
                   round-robin gradients.
           ranks: global ranks that share the group, None if the file does not tell.
    """

    file: str
    states: Mapping[str, TensorRef]
    scalars: Mapping[str, Scalar]
    other: Mapping[str, Node]
    padding: int
    partition_numel: int
    count: int | None
    gaps: tuple[int, ...] | None = None
    slices: Mapping[str, tuple[int, int]] | None = None
    ranks: tuple[int, ...] | None = None


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


def sort_states(
    entries: Iterable[tuple[str, Node]], lengths: Iterable[int]
) -> tuple[dict[str, TensorRef], dict[str, Scalar], dict[str, Node]]:
    """States of a partition: by element, one number, and the rest.

    Args:  lengths: how many elements a state by element may have.
    """
    allowed = set(lengths)
    tensors: dict[str, TensorRef] = {}
    scalars: dict[str, Scalar] = {}
    other: dict[str, Node] = {}
    for name, node in entries:
        value = node.value
        if isinstance(value, TensorRef) and len(value.shape) == 1 and value.numel in allowed:
            tensors[name] = value
        elif (scalar := scalar_of(value, node.file)) is not None:
            scalars[name] = scalar
        else:
            other[name] = node
    return tensors, scalars, other
