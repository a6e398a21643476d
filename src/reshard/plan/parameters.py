"""The tensors of one parameter: those of its shape, and those that are one number for all of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from reshard.errors import Label, ReshardError, layout_error, source_error
from reshard.language.layout import Rule
from reshard.plan.catalog import Coord, LocalTensor
from reshard.plan.matching import Matched
from reshard.plan.solve_faults import Observation
from reshard.run.states import MOMENTS, STEP, WEIGHTS

_LIKE_PARAMETER = (*WEIGHTS, *MOMENTS)
"""State kinds that have the shape of their parameter, the surest first."""

_REST = ("name every dimension, or end the list with `...`",)


def scalar_states(tensors: Iterable[LocalTensor]) -> frozenset[str]:
    """The state kinds that are one number for a parameter, whatever its shape.

    A parameter without dimensions does not tell such a state from others, so all are looked at;
    `step` is always one.
    """
    ranks: dict[str, int] = {}
    flat: dict[str, set[str]] = {}
    for tensor in tensors:
        if tensor.shape:
            ranks[tensor.name] = len(tensor.shape)
        elif tensor.state not in _LIKE_PARAMETER:
            flat.setdefault(tensor.state, set()).add(tensor.name)
    return frozenset(
        state
        for state, names in flat.items()
        if state == STEP or not ranks.keys().isdisjoint(names)
    )


def sort_states(
    name: str, items: Sequence[Matched], scalars: frozenset[str]
) -> tuple[tuple[LocalTensor, ...], tuple[LocalTensor, ...]]:
    """Those with the parameter's shape at their coordinate, and those that are one number.

    Args:  name: of the whole tensor.  scalars: as `scalar_states` found them.
    Raises: ReshardError[state-shape | not-stored].
    """
    tensors = [item.tensor for item in items]
    shaped = tuple(t for t in tensors if t.shape or t.state not in scalars)
    if not shaped:
        raise _numbers_alone(name, tensors)
    by_coord = _references(shaped)
    for tensor in shaped:
        reference = by_coord[tensor.coord]
        if tensor.shape != reference.shape:
            raise _state_shape(name, reference, tensor)
    return shaped, tuple(t for t in tensors if not t.shape and t.state in scalars)


def observe(tensors: Iterable[LocalTensor]) -> list[Observation]:
    """The shape at each coordinate."""
    return [
        Observation(t.name, t.coord, t.shape, t.file)
        for t in {tensor.coord: tensor for tensor in tensors}.values()
    ]


def rank_mismatch(rule: Rule, seen: Observation) -> ReshardError:
    """A tensor with more or fewer dimensions than its rule has terms."""
    wanted = f"at least {len(rule.dims)}" if rule.rest else f"{len(rule.dims)}"
    return layout_error(
        "rank-mismatch",
        f"`{seen.name}` has {len(seen.shape)} dimensions, and its rule has {wanted}",
        notes=[f"shape {list(seen.shape)} in {seen.file}"],
        primary=Label(rule.span, "this rule") if rule.span else None,
        helps=["name every dimension"] if rule.rest or rule.atom else _REST,
    )


def _references(tensors: Sequence[LocalTensor]) -> dict[Coord, LocalTensor]:
    """By coordinate, the tensor whose shape is the parameter's."""
    out: dict[Coord, LocalTensor] = {}
    for tensor in tensors:
        known = out.get(tensor.coord)
        if known is None or _order(tensor) < _order(known):
            out[tensor.coord] = tensor
    return out


def _order(tensor: LocalTensor) -> tuple[int, int]:
    if tensor.state in _LIKE_PARAMETER:
        return _LIKE_PARAMETER.index(tensor.state), 0
    return len(_LIKE_PARAMETER), -len(tensor.shape)


def _numbers_alone(name: str, tensors: Sequence[LocalTensor]) -> ReshardError:
    states = ", ".join(f"`{state}`" for state in dict.fromkeys(t.state for t in tensors))
    return source_error(
        "not-stored",
        f"of `{name}`, {states} and nothing else is stored",
        notes=[f"one number in {tensors[0].file}; the parameter has a shape, which is not known"],
        helps=["look for a missing file"],
    )


def _state_shape(name: str, reference: LocalTensor, tensor: LocalTensor) -> ReshardError:
    return layout_error(
        "state-shape",
        f"state `{tensor.state}` of `{name}` has shape {list(tensor.shape)}, "
        f"and its `{reference.state}` has {list(reference.shape)}",
        notes=[
            f"`{tensor.state}` in {tensor.file}",
            f"`{reference.state}` in {reference.file}",
        ],
        helps=["leave this state out with `--states`"],
    )
