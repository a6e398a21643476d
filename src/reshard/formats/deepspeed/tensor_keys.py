"""What a file of a universal folder says about how its tensor is cut over ranks."""

from __future__ import annotations

from collections.abc import Iterator

from reshard.algebra.term import Leaf, Product, Sum, Term, term_size
from reshard.errors import target_error
from reshard.plan.arrangement import Arrangement, Bound
from reshard.storage.inert import Record

SUBPARAMS = ("deepspeed.checkpoint.universal_checkpoint", "SubparamShape")


def tensor_keys(arrangement: Arrangement, bound: Bound) -> dict[str, object]:
    """The keys beside `param` that tell DeepSpeed's loader how to cut a whole tensor.

    Raises: ReshardError[deepspeed-tensor-cut] when the loader has no way to make that cut.
    Source: DeepSpeed 0.19.8 checkpoint/universal_checkpoint.py `load_hp_checkpoint_state`.
    """
    expert = _expert_dim(bound)
    if expert is not None:
        return {"is_expert_param": True, "ep_num_experts": expert}
    cut = {axis for axis, item in bound.cuts.items() if "tp" in item.over}
    dims = [k for k, term in enumerate(bound.dims) if cut & set(_axes(term))]
    if not dims:
        return {}
    if len(dims) > 1:
        raise _unlike(bound, "it is cut along two dimensions")
    dim = dims[0]
    return _cut_keys(bound, dim, cut, _padded(arrangement, bound, cut))


def _cut_keys(bound: Bound, dim: int, cut: set[str], padded: bool) -> dict[str, object]:
    term = bound.dims[dim]
    extents = bound.whole_extents()
    if padded:
        if dim or not isinstance(term, Leaf):
            raise _unlike(bound, "its padded dimension is not the first one")
        return {"cat_dim": 0, "vocab_tensor": True}
    if isinstance(term, Sum):
        if not all(_leads(part.term, cut) for part in term.parts):
            raise _unlike(bound, "a part of its sum is not cut, or not along its slowest axis")
        sizes = tuple(term_size(part.term, extents) for part in term.parts)
        if len(set(sizes)) == 1:
            return {"cat_dim": dim, "param_n_sub_params": len(sizes)}
        shape: list[object] = list(bound.shape)
        shape[dim] = sizes
        record = Record(*SUBPARAMS, (), "newobj")
        record.state.append({"patterns": [], "shape": tuple(shape), "partition_dim": dim})
        return {"sub_param_shape": record}
    if not _leads(term, cut):
        raise _unlike(bound, "it is not cut along the slowest axis of a dimension")
    return {"cat_dim": dim}


def _leads(term: Term, cut: set[str]) -> bool:
    """Whether equal blocks of the whole term are what the ranks hold."""
    if isinstance(term, Leaf):
        return term.axis in cut
    if isinstance(term, Product):
        rest = {axis for inner in term.terms[1:] for axis in _axes(inner)}
        return bool(term.terms) and _leads(term.terms[0], cut) and not rest & cut
    return False


def _expert_dim(bound: Bound) -> int | None:
    """The size of the first dimension, where that numbers experts that are cut over ep."""
    if not bound.dims:
        return None
    first = bound.dims[0]
    if isinstance(first, Leaf) and "ep" in bound.cuts[first.axis].over:
        return bound.cuts[first.axis].size
    return None


def _padded(arrangement: Arrangement, bound: Bound, cut: set[str]) -> bool:
    rule = arrangement.layout.rules[bound.rule]
    splits = (rule.splits.get(axis) or arrangement.layout.places.get(axis) for axis in cut)
    return any(bound.cuts[axis].stored != bound.cuts[axis].size for axis in cut) or any(
        split is not None and (split.pad_to is not None or split.truncated_to is not None)
        for split in splits
    )


def _axes(term: Term) -> Iterator[str]:
    if isinstance(term, Leaf):
        yield term.axis
    elif isinstance(term, Product):
        for inner in term.terms:
            yield from _axes(inner)
    else:
        for part in term.parts:
            yield from _axes(part.term)


def _unlike(bound: Bound, why: str) -> Exception:
    return target_error(
        "deepspeed-tensor-cut",
        f"DeepSpeed cannot cut `{bound.name}` over tensor-parallel ranks as its layout says",
        notes=[
            why,
            "its loader cuts one dimension in equal blocks, or every part of a sum in equal blocks",
        ],
        helps=["convert to a universal checkpoint, or to the native form with the same tp"],
    )
