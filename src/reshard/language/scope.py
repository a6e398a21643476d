"""What the rules of one layout may refer to, and the checks of references to its mesh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from reshard.algebra.split import SplitRule, split_sizes
from reshard.errors import Span
from reshard.language import tree
from reshard.language.check_single import check_constant
from reshard.language.conditions import constant
from reshard.language.expression import Expression
from reshard.language.faults import Faults, near
from reshard.language.words import listed


@dataclass(frozen=True, slots=True)
class Scope:
    """One layout while it is checked.

    Args:  mesh: its axes, where declared.  sizes: of mesh axes, where the text states them.
           places: by axis, the `place` statement's word and placement.
    """

    faults: Faults
    name: str
    mesh: Mapping[str, tree.Word]
    sizes: Mapping[str, object]
    places: Mapping[str, tuple[tree.Word, tree.Placement]]

    def check_mesh_axis(self, name: str, span: Span | None) -> None:
        """Fault a mesh axis that is not declared."""
        if name in self.mesh:
            return
        first = next(iter(self.mesh.values()), None)
        beside = []
        if first is not None:
            beside = [(first.span, f"this mesh declares {listed(self.mesh)}")]
        helps = near(name, self.mesh) or [f"declare it with `mesh {name}`"]
        self.faults.add(
            "unknown-axis",
            f"mesh axis `{name}` is not declared",
            span,
            "no such mesh axis",
            beside=beside,
            helps=helps,
            once=f"mesh {name}",
        )

    def check_placement(
        self, placement: tree.Placement, axis: str, size: Expression | None = None
    ) -> None:
        """Fault what is wrong with a placement by itself.

        Args:  axis: for messages.  size: of the axis, where the rule states it.
        """
        over = tuple((word.text, word.span) for word in placement.over)
        self.check_split(over, placement.rule, placement.sizes, placement.span, axis)
        check_constant(self.faults, placement.pad_to, "the multiple", int, least=1)
        check_constant(self.faults, placement.truncated_to, "the length", int)
        total = constant(size, self.sizes)
        parts = self._ranks(over)
        if (
            total is None
            or parts is None
            or placement.pad_to is not None
            or placement.truncated_to is not None
            or (placement.rule == "sizes" and len(placement.sizes) != parts)
        ):
            return
        try:
            split_sizes(int(total), parts, placement.rule, placement.sizes)
        except ValueError as error:
            self.faults.add(
                "split-sizes",
                f"axis `{axis}` of size {total} cannot be cut over {listed(n for n, _ in over)}",
                placement.span,
                str(error),
                notes=[f"the mesh has {parts} ranks there"],
                helps=["state the sizes: `as (A, B, ...)`, or a rule: `as chunk`, `as balanced`"],
            )

    def check_split(
        self,
        over: tuple[tuple[str, Span | None], ...],
        rule: SplitRule,
        sizes: tuple[int, ...],
        span: Span | None,
        axis: str,
    ) -> None:
        """Fault mesh axes that are not declared or stand twice, and a wrong number of sizes."""
        seen: dict[str, Span | None] = {}
        for name, where in over:
            if name in seen:
                self.faults.add(
                    "mesh-axis-twice",
                    f"`{axis}` is cut over mesh axis `{name}` twice",
                    where,
                    "the second time",
                    beside=[(seen[name], "the first time")],
                )
            else:
                self.check_mesh_axis(name, where)
            seen.setdefault(name, where)
        parts = self._ranks(over)
        if rule == "sizes" and parts is not None and len(sizes) != parts:
            self.faults.add(
                "split-sizes",
                f"{len(sizes)} sizes are given for `{axis}`, and the mesh has {parts} ranks there",
                span,
                f"{len(sizes)} sizes",
                beside=[
                    (self.mesh[name].span, f"`{name}` has size {self.sizes[name]}")
                    for name, _ in over
                ],
            )

    def _ranks(self, over: tuple[tuple[str, Span | None], ...]) -> int | None:
        sizes = [self.sizes.get(name) for name, _ in over]
        numbers = [size for size in sizes if isinstance(size, int)]
        return prod(numbers) if over and len(numbers) == len(sizes) else None
