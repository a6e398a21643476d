"""How the ranks of a layout's mesh share a state."""

from __future__ import annotations

from collections.abc import Mapping

from reshard.errors import Label, layout_error
from reshard.language.expression import evaluate
from reshard.language.layout import Layout, PartitionRule

ALL = "states"
"""What stands in a `partition` for all states but the weights."""


def rule_of(layout: Layout, state: str) -> PartitionRule | None:
    """How ranks share a state: as the line says that names it, else as that of all states does."""
    rules = {name: rule for rule in layout.partitions for name in rule.states}
    return rules.get(state) or (rules.get(ALL) if state != "param" else None)


def alignment(rule: PartitionRule, mesh: Mapping[str, int], ranks: int) -> int:
    """The number of elements that the length of a buffer is a multiple of.

    Raises: ReshardError[share-mismatch] for one that is not shared by all ranks alike.
    """
    if rule.align is None:
        return ranks
    value = evaluate(rule.align, dict(mesh))
    align = value if isinstance(value, int) else 0
    if align < 1 or align % ranks:
        raise layout_error(
            "share-mismatch",
            f"an alignment of {align} elements does not cut into {ranks} equal shares",
            notes=[f"`{rule.over}` has {ranks} ranks"],
            helps=[f"write a multiple of `{rule.over}`: `align 2 * {rule.over}`"],
            primary=None if rule.span is None else Label(rule.span, f"{align} elements"),
        )
    return align
