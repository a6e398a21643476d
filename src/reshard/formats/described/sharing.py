"""How the ranks of a layout's mesh share a state."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.algebra.partition import (
    Buckets,
    Buffer,
    Each,
    Partition,
    Rows,
    Rule,
    spread,
)
from reshard.errors import label, layout_error
from reshard.language.expression import Expression, evaluate
from reshard.language.layout import Layout, PartitionRule
from reshard.run.states import PARAM

ALL = "states"
"""What stands in a `partition` for all states but the weights."""


class Sharing:
    """How the ranks of a mesh share states, as a layout says; asked by the reader and the writer.

    Args:  mesh: sizes of its axes.
    """

    def __init__(self, layout: Layout, mesh: Mapping[str, int]) -> None:
        self._rules = {name: rule for rule in layout.partitions for name in rule.states}
        self._mesh = mesh
        self._cuts: dict[tuple[object, ...], Partition] = {}

    def rule(self, state: str, at: Mapping[str, object] | None = None) -> PartitionRule | None:
        """The line that names a state, else that of all states.

        Args:  at: bindings of a file; one that is of no rank of the line's axis has it whole.
        """
        rule = self._rules.get(state) or (self._rules.get(ALL) if state != PARAM else None)
        return rule if rule is None or at is None or rule.over in at else None

    def cuts(self, rule: PartitionRule | None, *shapes: tuple[int, ...]) -> Partition:
        """What each rank has of the tensors that lie in one place; one rank has all by no rule."""
        key = (rule, *shapes)
        if key not in self._cuts:
            ranks = 1 if rule is None else self._mesh.get(rule.over, 1)
            self._cuts[key] = spread(_algebraic(rule, self._mesh, ranks), shapes, ranks)
        return self._cuts[key]


def _algebraic(rule: PartitionRule | None, mesh: Mapping[str, int], ranks: int) -> Rule:
    """The rule of the algebra for a line of a layout; without a line, one rank has a plain buffer.

    Raises: ReshardError[share-mismatch] for an alignment that is not shared by all ranks alike.
    """
    if rule is None:
        return Buffer()
    if rule.kind == "rows":
        return Rows()
    if rule.kind in ("each", "balanced"):
        return Each("balanced" if rule.kind == "balanced" else "padded")
    align, size, starts = (_number(item, mesh) for item in (rule.align, rule.size, rule.starts))
    if rule.kind == "buckets":
        return Buckets(size, align or 1, starts or 1)
    if align is not None and align % ranks:
        raise layout_error(
            "share-mismatch",
            f"an alignment of {align} elements does not cut into {ranks} equal shares",
            notes=[f"`{rule.over}` has {ranks} ranks"],
            helps=[f"write a multiple of `{rule.over}`: `align 2 * {rule.over}`"],
            primary=label(rule.span, f"{align} elements"),
        )
    return Buffer(align or 1, (), starts or 1, rule.is_round_robin)


def _number(item: Expression | None, mesh: Mapping[str, int]) -> int | None:
    """A number of elements, which is one at least."""
    value = None if item is None else evaluate(item, dict(mesh))
    if item is not None and (not isinstance(value, int) or value < 1):
        raise layout_error(
            "share-mismatch",
            f"a partition speaks of {value} elements",
            helps=["write a number that is 1 at least"],
        )
    return value if isinstance(value, int) else None
