"""Names the atoms of a source as another layout of the same model does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

from reshard.algebra.term import segment_piece, segments
from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, Label, ReshardError, layout_error
from reshard.language.layout import Layout, Rule, Split
from reshard.plan.arrangement import SCALAR, Arrangement, Bound, Whole
from reshard.plan.axes import AxisCut
from reshard.plan.environment import environment
from reshard.plan.matching import active_rules
from reshard.plan.names import group_names, quantity
from reshard.plan.rule_atoms import rule_atoms
from reshard.plan.show import show_term


def rename(
    arrangement: Arrangement,
    layout: Layout,
    mesh: Mapping[str, int],
    *,
    settings: Mapping[str, int] | None = None,
) -> Arrangement:
    """The same atoms and stored parts, with the whole tensors of another layout.

    Args:  layout: of the model that the source was read through.
           mesh: of the target; the layout's `when` may ask for it.
           settings: sizes that the user states.
    Raises: ReshardError[other-model | missing-atom | unplaced-atom | split-states].
    """
    model, source = layout.model, arrangement.layout.model
    if model is None or source is None or model.name != source.name:
        raise layout_error(
            "other-model",
            f"layout `{layout.name}` cannot name what was read through `{arrangement.layout.name}`",
            notes=[f"{_model_of(arrangement.layout)}, {_model_of(layout)}"],
            helps=["read and write through two layouts of one model; see `--model`"],
        )
    return _Renamer(arrangement, layout, mesh, settings or {}).run()


def atom_sizes(arrangement: Arrangement) -> dict[str, int]:
    """The size of every axis of the model, as the stored atoms show it."""
    sizes: dict[str, int] = {}
    for atom in arrangement.atoms.values():
        sizes.update(zip(atom.axes, atom.shape, strict=True))
    return sizes


class _Renamer:
    """One renaming: the facts that every rule needs."""

    def __init__(
        self,
        arrangement: Arrangement,
        layout: Layout,
        mesh: Mapping[str, int],
        settings: Mapping[str, int],
    ) -> None:
        self._source = arrangement
        self._layout = layout
        self._sizes = atom_sizes(arrangement)
        env = environment(arrangement.layout, arrangement.catalog, arrangement.mesh, settings)
        env.update({axis: mesh.get(axis, 1) for axis in (*layout.mesh, *arrangement.mesh)})
        env.update(mesh)
        self._env = env
        self._states: dict[str, dict[str, DType]] = {}
        for (key, state), parts in arrangement.parts.items():
            self._states.setdefault(key, {})[state] = parts[0].dtype

    def run(self) -> Arrangement:
        """The arrangement in the other layout's names."""
        bound: dict[str, Bound] = {}
        wholes: list[Whole] = []
        for index in active_rules(self._layout, self._env):
            for item in self._tensors(index):
                bound[item.name] = item
                wholes += self._wholes(item)
        self._refuse_unplaced(bound)
        extras = [whole for whole in self._source.wholes if whole.state == "extra"]
        return Arrangement(
            self._source.catalog,
            self._layout,
            self._source.mesh,
            self._source.atoms,
            self._source.parts,
            self._source.averaged,
            (*wholes, *extras),
            bound,
        )

    def _tensors(self, index: int) -> Iterator[Bound]:
        """Every whole tensor of one rule."""
        rule = self._layout.rules[index]
        atoms, atom_axes = rule_atoms(self._layout, rule)
        stored = [key for key in atoms.values() if key in self._source.atoms]
        if len(stored) < len(atoms):
            if rule.optional and not stored:
                return
            raise self._missing(rule, next(k for k in atoms.values() if k not in stored))
        slots = tuple(slot.axis for slot in rule.pattern.slots)
        used = dict.fromkeys((*slots, *(axis for axes in atom_axes.values() for axis in axes)))
        cuts = {axis: self._cut(axis) for axis in used}
        for position in product(*(range(self._sizes[axis]) for axis in slots)):
            indices = dict(zip(slots, position, strict=True))
            name = rule.pattern.fill(indices, ())
            yield Bound(name, index, indices, (), rule.dims, cuts, atoms, ())

    def _cut(self, axis: str) -> AxisCut:
        size = self._sizes[axis]
        return AxisCut(self._layout.places.get(axis, Split()).over, (size,), size)

    def _wholes(self, bound: Bound) -> Iterator[Whole]:
        keys = list(dict.fromkeys(bound.atoms.values()))
        extents = bound.whole_extents()
        pieces = tuple(
            (
                bound.atoms[s.labels],
                segment_piece(s, self._source.atoms[bound.atoms[s.labels]].axes, extents),
            )
            for s in segments(bound.dims, extents)
        )
        for state in dict.fromkeys(state for key in keys for state in self._states.get(key, {})):
            found = {key: self._states[key].get(state) for key in keys}
            if len(set(found.values())) > 1:
                raise self._split(bound, state, found)
            dtype = found[keys[0]]
            assert dtype is not None
            axes = tuple(show_term(term) for term in bound.dims)
            yield Whole(bound.name, state, bound.shape, dtype, pieces, axes, bound.rule)

    def _refuse_unplaced(self, bound: Mapping[str, Bound]) -> None:
        placed = {key for item in bound.values() for key in item.atoms.values()}
        left = [
            key
            for key in self._source.atoms
            if key not in placed and not key.endswith(SCALAR) and not key.startswith("extra:")
        ]
        if left:
            raise ReshardError(
                [
                    Diagnostic(
                        "unplaced-atom",
                        f"layout `{self._layout.name}` has no place for `{group}`{quantity(count)}",
                        notes=(f"read through layout `{self._source.layout.name}`",),
                        helps=("add a rule for it, or leave its states out with `--states`",),
                    )
                    for group, count in group_names(left)
                ],
                Exit.LAYOUT,
            )

    def _missing(self, rule: Rule, key: str) -> ReshardError:
        return layout_error(
            "missing-atom",
            f"the source does not store `{key}`, which layout `{self._layout.name}` wants",
            notes=[f"read through layout `{self._source.layout.name}`"],
            primary=Label(rule.span, "wanted here") if rule.span else None,
            helps=["give the model's configuration with `--set`, or end the rule with `optional`"],
        )

    def _split(self, bound: Bound, state: str, found: Mapping[str, DType | None]) -> ReshardError:
        notes = [
            f"`{key}` has {'no ' + state if dtype is None else f'{state} as {dtype}'}"
            for key, dtype in found.items()
        ]
        return layout_error(
            "split-states",
            f"`{bound.name}` would hold atoms whose {state} is not stored alike",
            notes=notes,
            helps=["leave this state out with `--states`"],
        )


def _model_of(layout: Layout) -> str:
    if layout.model is None:
        return f"`{layout.name}` has no model"
    return f"`{layout.name}` is of model `{layout.model.name}`"
