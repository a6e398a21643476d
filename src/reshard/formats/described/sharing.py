"""How the ranks of a layout's mesh share a state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.algebra.flat import cut
from reshard.algebra.partition import Buckets, Buffer, Each, Rows, Rule, Share
from reshard.algebra.piece import Piece
from reshard.errors import Label, layout_error
from reshard.language.expression import Expression, evaluate
from reshard.language.layout import Layout, PartitionRule

ALL = "states"
"""What stands in a `partition` for all states but the weights."""


def rule_of(
    layout: Layout, state: str, at: Mapping[str, object] | None = None
) -> PartitionRule | None:
    """How ranks share a state: as the line says that names it, else as that of all states does.

    Args:  at: bindings of a file; one that is of no rank of the line's axis has the state whole.
    """
    rules = {name: rule for rule in layout.partitions for name in rule.states}
    rule = rules.get(state) or (rules.get(ALL) if state != "param" else None)
    return rule if rule is None or at is None or rule.over in at else None


def pieces_of(piece: Piece, shares: Sequence[Share]) -> list[Piece]:
    """The elements of a flat tensor's piece that lie in shares, where these hold them."""
    return [
        part.shift(share.offset - share.start)
        for share in shares
        for part in cut(piece, share.start, share.start + share.numel)
    ]


def sharing_rule(rule: PartitionRule | None, mesh: Mapping[str, int], ranks: int) -> Rule:
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
            primary=None if rule.span is None else Label(rule.span, f"{align} elements"),
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
