"""How many indices an axis may have where each is looked at: more than any model has layers."""

from __future__ import annotations

from reshard.errors import layout_error

MAX_INDICES = 1 << 20


def refuse_many(axes: str, count: int) -> None:
    """Refuse to count so many indices.

    Args:  axes: their names, for messages.
    Raises: ReshardError[axis-size].
    """
    if count > MAX_INDICES:
        raise layout_error(
            "axis-size",
            f"`{axes}` would have {count} indices",
            notes=[f"at most {MAX_INDICES} can be counted in names"],
            helps=["correct the configuration of the model, or give the size with `--set`"],
        )
