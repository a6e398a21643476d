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
    factors = [
        (dim, position, factor)
        for dim, term in enumerate(bound.dims)
        for position, factor in enumerate(_factors(term))
    ]
    found = [index for index, (_, _, factor) in enumerate(factors) if cut & set(_axes(factor))]
    if not found:
        return {}
    if len(found) > 1:
        raise _unlike(bound, "it is cut along two of its axes")
    dim, position, factor = factors[found[0]]
    if _padded(arrangement, bound, cut):
        if dim or position or not isinstance(factor, Leaf):
            raise _unlike(bound, "it is padded along another axis than the first")
        return {"cat_dim": 0, "vocab_tensor": True}
    if isinstance(factor, Leaf) and position == 0:
        return {"cat_dim": dim}
    extents = bound.whole_extents()
    sizes = _part_sizes(bound, factor, cut)
    if position == 0 and len(set(sizes)) == 1:
        return {"cat_dim": dim, "param_n_sub_params": len(sizes)}
    view: list[object] = [term_size(item, extents) for _, _, item in factors]
    view[found[0]] = sizes
    record = Record(*SUBPARAMS, (), "newobj")
    record.state.append({"patterns": [], "shape": tuple(view), "partition_dim": found[0]})
    return {"sub_param_shape": record}


def _part_sizes(bound: Bound, factor: Term, cut: set[str]) -> tuple[int, ...]:
    """Lengths of the parts of a factor, each of which is cut in equal blocks."""
    extents = bound.whole_extents()
    parts = [part.term for part in factor.parts] if isinstance(factor, Sum) else [factor]
    if not all(_leads(part, cut) for part in parts):
        raise _unlike(bound, "a part of it is not cut, or not along its slowest axis")
    return tuple(term_size(part, extents) for part in parts)


def _factors(term: Term) -> Iterator[Term]:
    """The factors of one dimension, the slowest first."""
    if isinstance(term, Product):
        for inner in term.terms:
            yield from _factors(inner)
    else:
        yield term


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
            "its loader cuts one axis in equal blocks, or every part of a sum in equal blocks",
        ],
        helps=["convert to `universal`, or to `deepspeed` with the same `tp`"],
    )
