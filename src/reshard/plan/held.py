"""At which indices of an axis an atom is there: the experts of the layers that have some.

Atoms that are only at some indices are kept without gaps: their axis counts those alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.errors import Label, ReshardError, layout_error
from reshard.language.expression import Expression, evaluate, to_text
from reshard.language.layout import Layout, Rule
from reshard.plan.index_limit import refuse_many


class Held:
    """At which indices the atoms of the rules of a layout are there.

    Args:  sizes: of axes, by name.  env: for the conditions.
    """

    def __init__(self, layout: Layout, sizes: Mapping[str, int], env: Mapping[str, object]) -> None:
        self._layout = layout
        self._sizes = sizes
        self._env = env
        self._known: dict[Expression, tuple[int, ...]] = {}

    def of(self, rule: Rule) -> tuple[int, ...] | None:
        """The indices of axis `rule.along`, ascending; None where they are there at all of them.

        Raises: what evaluating the condition raises, and ReshardError[indexed-atom] where the axis
                is in the shape and some indices are not held.
        """
        if rule.only is None:
            return None
        held = self._known.get(rule.only)
        if held is None:
            held = self._known[rule.only] = held_indices(
                rule.only, rule.along, self._sizes[rule.along], self._env
            )
        is_named = rule.along in {slot.axis for slot in rule.pattern.slots}
        if held and len(held) < self._sizes[rule.along] and not is_named:
            raise _not_stacked(self._layout, rule, held, self._sizes[rule.along])
        return held

    def by_axis(self, rule: Rule) -> dict[str, tuple[int, ...]]:
        """The same by the name of the axis, as in `Bound.held`."""
        held = self.of(rule)
        return {} if held is None else {rule.along: held}


def held_indices(
    only: Expression, along: str, size: int, env: Mapping[str, object]
) -> tuple[int, ...]:
    """The indices of an axis at which a condition holds, ascending.

    Raises: what evaluating the condition raises.
    """
    refuse_many(along, size)
    return tuple(i for i in range(size) if evaluate(only, {**env, along: i}) is True)


def _not_stacked(layout: Layout, rule: Rule, held: Sequence[int], size: int) -> ReshardError:
    """A rule that has the axis in its shape, where the atoms are not there at all indices."""
    assert rule.only is not None
    return layout_error(
        "indexed-atom",
        f'rule `"{rule.pattern.text}"` of layout `{layout.name}` stacks `{rule.along}`, '
        f"but its atoms exist only at {len(held)} of {size} indices",
        notes=[f"it exists when {to_text(rule.only)}"],
        helps=[f"use a layout that has `{rule.along}` in the name"],
        primary=Label(rule.span, "stacked here") if rule.span else None,
    )


def wrong_index(layout: Layout, rule: Rule, name: str, index: int, file: str) -> ReshardError:
    """A tensor that is stored where its atom is not."""
    assert rule.only is not None
    return layout_error(
        "indexed-atom",
        f"`{name}` is stored, but its atom does not exist at {rule.along} {index}",
        notes=[f"it exists when {to_text(rule.only)}", f"in {file}"],
        helps=["correct the model's configuration with `--set`"],
        primary=Label(rule.span, "this rule matches it") if rule.span else None,
    )
