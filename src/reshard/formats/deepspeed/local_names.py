"""Names as a rank of the target says them: experts are numbered on the rank that has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

from reshard.dtypes import DType
from reshard.errors import target_error
from reshard.plan.arrangement import Arrangement, Whole
from reshard.plan.plan import ArraySpec


@dataclass(frozen=True, slots=True)
class NamedTensors:
    """A name as a rank of the target says it, and the whole tensors that it means there.

    Args:  name: of the parameter.  names: of whole tensors, one for each expert-parallel rank; one
           in all for what is not numbered locally.
    """

    name: str
    names: tuple[str, ...]

    def spec(self, wholes: Sequence[Whole], dtype: DType, label: str) -> ArraySpec:
        """The tensors of all ranks one behind the other, joined along the first dimension."""
        first = wholes[0]
        numel = prod(first.shape)
        segments = tuple(
            (key, piece.shift(rank * numel))
            for rank, whole in enumerate(wholes)
            for key, piece in whole.segments
        )
        shape = first.shape
        if len(wholes) > 1:
            shape = (len(wholes) * (shape[0] if shape else 1), *shape[1:])
        return ArraySpec(label, first.state, dtype, len(wholes) * numel, segments, shape)

    def keys(self, shape: tuple[int, ...]) -> dict[str, object] | None:
        """What makes the loader give each rank its own tensor; None for one tensor in all.

        The loader cuts a tensor of experts along its first dimension into one block per rank.

        Args:  shape: of one rank's tensor.
        """
        if len(self.names) == 1:
            return None
        rows = shape[0] if shape else 1
        return {"is_expert_param": True, "ep_num_experts": len(self.names) * rows}


def expert_axis(arrangement: Arrangement, name: str) -> str | None:
    """The axis that numbers experts in a tensor's name, where it is cut over ep."""
    bound = arrangement.bound[name]
    return next((a for a in bound.indices if a in bound.cuts and "ep" in bound.cuts[a].over), None)


def refuse_several_sizes(arrangement: Arrangement) -> None:
    """Refuse a model whose layers of experts lie over several numbers of ranks.

    One size beside layers that every rank has whole is no matter.
    Raises: ReshardError[deepspeed-experts].
    """
    sizes = {axis: n for axis, n in arrangement.mesh.items() if axis.startswith("ep") and n > 1}
    if len(sizes) > 1:
        raise target_error(
            "deepspeed-experts",
            "layers of experts have several expert-parallel sizes, and a target has one",
            notes=[f"the source has {', '.join(f'{a}={n}' for a, n in sizes.items())}"],
            helps=["convert to `universal`, which has every expert by its own number"],
        )


def local_names(
    arrangement: Arrangement, names: Iterable[str], ep_size: int
) -> Iterator[NamedTensors]:
    """The names that ranks of the target use, in the order of the source.

    Raises: ReshardError[deepspeed-experts].
    """
    found: dict[str, dict[int, str]] = {}
    for name in names:
        axis = expert_axis(arrangement, name)
        if axis is None:
            found[name] = {0: name}
            continue
        bound = arrangement.bound[name]
        count = bound.cuts[axis].size
        if count % ep_size:
            raise target_error(
                "deepspeed-experts",
                f"{count} experts cannot be shared by {ep_size} expert-parallel ranks",
                notes=[f"DeepSpeed gives every rank as many; `{name}` is one of them"],
                helps=[f"choose an `ep` that divides {count}"],
            )
        own = count // ep_size
        indices = {**bound.indices, axis: bound.indices[axis] % own}
        pattern = arrangement.layout.rules[bound.rule].pattern
        local = pattern.fill(indices, bound.captures)
        found.setdefault(local, {})[bound.indices[axis] // own] = name
    for local, ranks in found.items():
        yield NamedTensors(local, tuple(ranks[rank] for rank in sorted(ranks)))
