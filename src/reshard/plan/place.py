"""A layout whose axes lie along the mesh as the user says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import cast

from reshard.algebra.split import SplitRule
from reshard.errors import ReshardError, target_error
from reshard.language.layout import Layout, Split

_RULES = ("chunk", "balanced", "even")


@dataclass(frozen=True, slots=True)
class Placement:
    """`--place axis=mesh:how`, split but not yet held against a layout.

    Args:  axis: of the model.  over: mesh axes, the first one major.
           rule, sizes: as in `language.layout.Split`.
    """

    axis: str
    over: tuple[str, ...]
    rule: SplitRule
    sizes: tuple[int, ...] = ()

    def __str__(self) -> str:
        how = ",".join(map(str, self.sizes)) if self.rule == "sizes" else self.rule
        return f"{self.axis}={'+'.join(self.over)}:{how}"


def parse_placement(text: str) -> Placement:
    """`layer=pp:1,2,1`, `layer=vpp+pp:1,1,2,2`, `f=tp:chunk`.

    Raises: ReshardError[bad-placement].
    """
    axis, equals, rest = text.partition("=")
    over, colon, how = rest.partition(":")
    mesh = tuple(item.strip() for item in over.split("+"))
    if not equals or not colon or not axis or not how or not all(mesh):
        raise _bad(text, "it is not AXIS=MESH:HOW")
    if how in _RULES:
        return Placement(axis.strip(), mesh, cast(SplitRule, how))
    items = how.split(",")
    if not all(item.strip().isascii() and item.strip().isdigit() for item in items):
        raise _bad(text, f"`{how}` is neither a list of sizes, `chunk`, nor `balanced`")
    return Placement(axis.strip(), mesh, "sizes", tuple(int(item) for item in items))


def place(layout: Layout, placements: Mapping[str, Placement]) -> Layout:
    """The layout with some axes placed otherwise; what it says of their padding stays.

    Raises: ReshardError[bad-placement].
    """
    places = dict(layout.places)
    for axis, item in placements.items():
        known = layout.model.axes if layout.model is not None else layout.places
        if axis not in known:
            raise _unknown(layout, item, f"has no axis `{axis}`", axis, list(known))
        for mesh in item.over:
            if mesh not in layout.mesh:
                text = f"has no mesh axis `{mesh}`"
                raise _unknown(layout, item, text, mesh, list(layout.mesh))
        old = places.get(axis, Split())
        over = old.over if set(item.over) <= set(old.over) else item.over
        places[axis] = replace(old, over=over, rule=item.rule, sizes=item.sizes)
    return replace(layout, places=places)


def _bad(text: str, why: str) -> ReshardError:
    return target_error(
        "bad-placement",
        f"`--place {text}` cannot be read: {why}",
        helps=["write it like `layer=pp:8,9,9,6`, or `layer=pp:balanced`"],
    )


def _unknown(
    layout: Layout, item: Placement, why: str, name: str, known: list[str]
) -> ReshardError:
    near = get_close_matches(name, known, 1)
    listed = ", ".join(f"`{each}`" for each in known)
    return target_error(
        "bad-placement",
        f"layout `{layout.name}` {why}, which `--place {item}` places",
        notes=[f"it has {listed}" if known else "it has none"],
        helps=[f"did you mean `{near[0]}`?"] if near else [],
    )
