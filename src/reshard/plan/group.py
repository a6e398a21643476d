"""One whole tensor and every stored local tensor that holds some of it."""

from __future__ import annotations

from dataclasses import dataclass

from reshard.errors import ReshardError, layout_error
from reshard.plan.arrangement import Bound
from reshard.plan.catalog import LocalTensor
from reshard.plan.form import Form


@dataclass(frozen=True, slots=True)
class Group:
    """Local tensors of all coordinates and states that together are one whole tensor.

    Args:  shaped: those with the shape of the parameter.  scalars: one number per parameter.
           form: what it shares with others of its rule.
    """

    bound: Bound
    shaped: tuple[LocalTensor, ...]
    scalars: tuple[LocalTensor, ...]
    form: Form


def shape_mismatch(tensor: LocalTensor, shape: tuple[int, ...]) -> ReshardError:
    """A local tensor of another shape than its rule says."""
    return layout_error(
        "shape-mismatch",
        f"`{tensor.name}` ({tensor.state}) has shape {list(tensor.shape)} "
        f"where the layout says {list(shape)}",
        notes=[f"in {tensor.file}"],
    )
