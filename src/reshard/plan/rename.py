"""Names the atoms of a source as another layout of the same model does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice, product
from math import prod

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece
from reshard.dtypes import DType
from reshard.errors import Diagnostic, Exit, Label, ReshardError, layout_error
from reshard.language.conditions import constant
from reshard.language.expression import Expression, names, to_text
from reshard.language.layout import Layout, Rule, Split
from reshard.plan.arrangement import SCALAR, Arrangement, Bound, Whole
from reshard.plan.axes import AxisCut
from reshard.plan.catalog import Catalog
from reshard.plan.environment import environment
from reshard.plan.fit import facts
from reshard.plan.form import Form
from reshard.plan.framework_config import can_be
from reshard.plan.held import Held
from reshard.plan.holders import Holders
from reshard.plan.index_limit import refuse_many
from reshard.plan.matching import active_rules
from reshard.plan.model_values import model_names, model_values
from reshard.plan.names import group_names, quantity
from reshard.plan.numbers import number_segments
from reshard.plan.offsets import with_offsets
from reshard.plan.rule_atoms import rule_atoms
from reshard.plan.settings import values_by_other_names
from reshard.run.states import EXTRA


def rename(
    arrangement: Arrangement,
    layout: Layout,
    mesh: Mapping[str, int],
    *,
    settings: Mapping[str, float | None] | None = None,
) -> Arrangement:
    """The same atoms and stored parts, with the whole tensors of another layout.

    Args:  layout: of the model that the source was read through.
           mesh: of the target; the layout's `when` may ask for it.
           settings: sizes that the user states.
    Raises: ReshardError[other-model | missing-atom | other-facts | unplaced-atom |
            split-states].
    """
    model, source = layout.model, arrangement.layout.model
    if model is None or source is None or model.name != source.name:
        raise layout_error(
            "other-model",
            f"layout `{layout.name}` cannot rename tensors that were read with layout "
            f"`{arrangement.layout.name}`",
            notes=[f"{_model_of(arrangement.layout)}, {_model_of(layout)}"],
            helps=["use two layouts of the same model; see `--model`"],
        )
    return _Renamer(arrangement, layout, mesh, settings or {}).run()


def atom_sizes(arrangement: Arrangement) -> dict[str, int]:
    """The size of every axis of the model, as the stored atoms show it."""
    sizes: dict[str, int] = {}
    tensors = arrangement.layout.model.tensors if arrangement.layout.model is not None else {}
    for key, atom in arrangement.atoms.items():
        tensor = tensors.get(key.removesuffix(SCALAR))
        along = None if tensor is None else tensor.along
        for axis, size in zip(atom.axes, atom.shape, strict=True):
            if axis != along:
                sizes[axis] = size
    for tensor in tensors.values():
        axis = tensor.along
        if axis and axis not in sizes:
            cuts = (item.cuts[axis] for item in arrangement.bound.values() if axis in item.cuts)
            sizes.update((axis, cut.size) for cut in islice(cuts, 1))
    return sizes


class _Renamer:
    """One renaming: the facts that every rule needs."""

    def __init__(
        self,
        arrangement: Arrangement,
        layout: Layout,
        mesh: Mapping[str, int],
        settings: Mapping[str, float | None],
    ) -> None:
        self._source = arrangement
        self._layout = layout
        self._sizes = atom_sizes(arrangement)
        catalog = arrangement.catalog
        env = environment(layout, catalog, arrangement.mesh, settings)
        known = environment(arrangement.layout, catalog, arrangement.mesh, settings)
        values = {**arrangement.values, **model_values(arrangement.layout, known, self._sizes)}
        for name in _of_padding(arrangement.layout):
            known.pop(name, None)
            values.pop(name, None)
        read = (arrangement.layout, self._sizes)
        values |= values_by_other_names(layout, settings, values, read)
        self._values = {**settings, **values}
        self._values |= {name: value for name, value in settings.items() if value is not None}
        env.update(known)
        env.update(self._values)
        env.update({axis: mesh.get(axis, 1) for axis in (*layout.mesh, *arrangement.mesh)})
        env.update(mesh)
        for name in facts(layout):
            env.setdefault(name, False)  # what only the other layout asks for is not so
        self._env = env
        self._layout = layout = with_offsets(layout, env)
        self._held = Held(layout, self._sizes, env)
        self._refuse_other_facts()
        self._forms: dict[int, Form] = {}
        self._holders: dict[str, dict[str, Holders]] = {}
        for (key, state), parts in arrangement.parts.items():
            self._holders.setdefault(key, {})[state] = Holders(key, parts, ())

    def run(self) -> Arrangement:
        """The arrangement in the other layout's names."""
        bound: dict[str, Bound] = {}
        wholes: list[Whole] = []
        for index in active_rules(self._layout, self._env):
            for item in self._tensors(index):
                bound[item.name] = item
                wholes += self._wholes(item)
        self._refuse_unplaced(bound)
        extras = [whole for whole in self._source.wholes if whole.state == EXTRA]
        return Arrangement(
            self._source.catalog,
            self._layout,
            self._source.mesh,
            self._source.atoms,
            self._source.parts,
            self._source.averaged,
            (*wholes, *extras),
            bound,
            self._values,
        )

    def _refuse_other_facts(self) -> None:
        """Refuse a layout that is of models of another kind: without positions, say."""
        asked = facts(self._layout)
        model = self._layout.model
        assert model is not None
        known = {
            name: self._values[name]
            for name in model_names(model)
            if name not in self._layout.config and isinstance(self._values.get(name), bool)
        }
        for name, expression in self._layout.config.items():
            said = constant(expression, known)
            if (
                isinstance(said, bool)
                and name in asked
                and bool(self._values.get(name)) is not said
            ):
                span = getattr(expression, "span", None)
                raise layout_error(
                    "other-facts",
                    f"layout `{self._layout.name}` is of models where `{name}` is "
                    f"{f'{said}'.lower()}, and here it is {f'{not said}'.lower()}",
                    notes=[f"read with layout `{self._source.layout.name}`"],
                    primary=Label(span, "said here") if span else None,
                    helps=["use another layout of the model"],
                )

            self._refuse_other_size(name, expression)
        if not can_be(self._layout, self._values):
            assert self._layout.when is not None
            raise layout_error(
                "other-facts",
                f"layout `{self._layout.name}` does not apply to this model",
                notes=[
                    f"it requires {to_text(self._layout.when)}",
                    f"read with layout `{self._source.layout.name}`",
                ],
                helps=["use another layout of the model"],
            )

    def _refuse_other_size(self, name: str, expression: Expression) -> None:
        """Refuse a layout whose framework derives a size that is another one here."""
        here = self._values.get(name)
        if isinstance(here, bool) or not isinstance(here, int) or name in names(expression):
            return
        said = constant(expression, self._values) if names(expression) else None
        if said is None or said == here or isinstance(said, bool):
            return
        raise layout_error(
            "other-facts",
            f"layout `{self._layout.name}` is of models where `{name}` is {said}, and here it is "
            f"{here}",
            notes=[
                f"it derives the size: {to_text(expression)}",
                f"read with layout `{self._source.layout.name}`",
            ],
            helps=["convert to another framework; this one has no such models"],
        )

    def _tensors(self, index: int) -> Iterator[Bound]:
        """Every whole tensor of one rule."""
        rule = self._layout.rules[index]
        held = self._held.by_axis(rule)
        if () in held.values():
            return
        atoms, atom_axes = rule_atoms(self._layout, rule)
        stored = [key for key in atoms.values() if key in self._source.atoms]
        if len(stored) < len(atoms):
            if rule.optional and not stored:
                return
            raise self._missing(rule, next(k for k in atoms.values() if k not in stored))
        slots = tuple(slot.axis for slot in rule.pattern.slots)
        used = dict.fromkeys((*slots, *(axis for axes in atom_axes.values() for axis in axes)))
        cuts = {axis: self._cut(axis) for axis in used}
        refuse_many(" ".join(slots), prod(self._sizes[axis] for axis in slots))
        for position in product(*(held.get(axis, range(self._sizes[axis])) for axis in slots)):
            indices = dict(zip(slots, position, strict=True))
            name = rule.pattern.fill(indices, ())
            yield Bound(name, index, indices, (), rule.dims, cuts, atoms, (), held)

    def _cut(self, axis: str) -> AxisCut:
        size = self._sizes[axis]
        return AxisCut(self._layout.places.get(axis, Split()).over, (size,), size)

    def _wholes(self, bound: Bound) -> Iterator[Whole]:
        form = self._forms.get(bound.rule)
        if form is None:
            axes = {labels: self._source.atoms[key].axes for labels, key in bound.atoms.items()}
            form = Form(bound.dims, bound.cuts, axes, bound.indices, {})
            self._forms[bound.rule] = form
        positions = bound.positions
        pieces = tuple(
            (bound.atoms[labels], piece.at(positions)) for labels, piece in form.whole_pieces()
        )
        for state in self._states(key for key, _ in pieces):
            dtype = self._dtype(bound, state, pieces)
            if dtype is not None:
                yield Whole(bound.name, state, form.shape, dtype, pieces, form.axes, bound.rule)
        numbers = number_segments(bound.atoms.values(), positions, self._source.atoms)
        for state in self._states(key for key, _ in numbers):
            dtype = self._dtype(bound, state, numbers)
            if dtype is not None:
                yield Whole(bound.name, state, (), dtype, numbers, (), -1)

    def _states(self, keys: Iterable[str]) -> list[str]:
        return list(dict.fromkeys(state for key in keys for state in self._holders.get(key, ())))

    def _dtype(self, bound: Bound, state: str, pieces: Iterable[tuple[str, Piece]]) -> DType | None:
        """The element type of a state of a whole tensor; None if nothing of it is stored.

        A layer that is not trained has no optimizer states; a tensor of several layers cannot be
        made of some that have.
        """
        by_atom: dict[str, set[DType | None]] = {}
        for key, piece in pieces:
            dtypes = by_atom.setdefault(key, set())
            volume = piece.box.volume
            holders = self._holders.get(key, {}).get(state)
            if holders is None or not volume:
                dtypes.add(None)
                continue
            numel, only = holders.of_first
            if only is not None and numel == prod(self._source.atoms[key].shape):
                dtypes.add(only)
                continue
            stored = holders.find(piece.box, first=True)
            dtypes.update(part.dtype for _, parts in stored for part in parts)
            if sum(box.volume for box, _ in stored) != volume:
                dtypes.add(None)
        kinds = set().union(*by_atom.values())
        if len(kinds) > 1:
            raise self._split(bound, state, by_atom)
        return kinds.pop()

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
                        f"layout `{self._layout.name}` has no rule for `{group}`{quantity(count)}",
                        notes=(f"read with layout `{self._source.layout.name}`",),
                        helps=("add a rule for it, or leave its states out with `--states`",),
                    )
                    for group, count in group_names(left)
                ],
                Exit.LAYOUT,
            )

    def _missing(self, rule: Rule, key: str) -> ReshardError:
        return layout_error(
            "missing-atom",
            f"the source does not store `{key}`, which layout `{self._layout.name}` requires",
            notes=[f"read with layout `{self._source.layout.name}`"],
            primary=Label(rule.span, "wanted here") if rule.span else None,
            helps=["give the model's configuration with `--set`, or end the rule with `optional`"],
        )

    def _split(
        self, bound: Bound, state: str, found: Mapping[str, Collection[DType | None]]
    ) -> ReshardError:
        notes = []
        for key, dtypes in found.items():
            kinds = sorted(f"`{state}` as {item}" if item else f"no `{state}`" for item in dtypes)
            notes.append(f"`{key.removesuffix(SCALAR)}` has {' and '.join(kinds)}")
        return layout_error(
            "split-states",
            f"`{bound.name}` combines atoms that differ in `{state}`",
            notes=notes,
            helps=["leave this state out with `--states`"],
        )


def _of_padding(layout: Layout) -> frozenset[str]:
    """What a layout says of how it pads: nothing of the model, and of no other layout."""
    asked = (split.pad_to for split in layout.places.values() if split.pad_to is not None)
    of_mesh = {*layout.mesh}
    return frozenset(name for item in asked for name in names(item) if name not in of_mesh)


def _model_of(layout: Layout) -> str:
    if layout.model is None:
        return f"`{layout.name}` has no model"
    return f"`{layout.name}` is of model `{layout.model.name}`"


def renamed_catalog(old: Arrangement, new: Arrangement) -> Catalog:
    """The catalog with its lists of names in the names of another layout.

    A parameter of the new layout is in a list, or in a param group, where the parameters that
    hold its numbers in the old layout are.  What is known of the model is part of its
    configuration, so that a checkpoint made of it tells that by itself.
    """
    owners = _owners(old, new)
    catalog = old.catalog

    def names(of: Iterable[str]) -> tuple[str, ...]:
        wanted = set(of)
        return tuple(
            name
            for name, parts in owners.items()
            if parts and all(not wanted.isdisjoint(copies) for copies in parts)
        )

    def ordered(of: Iterable[str]) -> tuple[str, ...]:
        """Those of a param group, in its order: an optimizer counts its parameters."""
        place = {name: at for at, name in enumerate(of)}
        first = {
            name: min(place[copy] for copies in owners[name] for copy in copies if copy in place)
            for name in names(place)
        }
        return tuple(sorted(first, key=lambda name: first[name]))

    return replace(
        catalog,
        config={**(catalog.config or {}), **new.values},
        training=catalog.training.with_params(ordered),
        buffers=names(catalog.buffers),
        frozen=names(catalog.frozen),
        padded=names(catalog.padded),
        names_of="",
        aliases=_aliases(old, new, owners),
    )


def _aliases(
    old: Arrangement, new: Arrangement, owners: Mapping[str, Sequence[set[str]]]
) -> dict[str, str]:
    """The other names of tied tensors, where the new layout has one tensor for all of them.

    What the layout calls the tensor that there would be if they were not tied is that name: the
    one whose atom has the same axes, and is not there.
    """
    out = {}
    layout = new.layout
    tensors = layout.model.tensors if layout.model is not None else {}
    for alias, stored in (old.catalog.aliases or {}).items():
        names = [name for name, parts in owners.items() if len(parts) == 1 and stored in parts[0]]
        if len(names) != 1 or alias in owners:
            continue
        [name] = names
        if any(True for _ in layout.matches(alias)):
            out[alias] = name
            continue
        atom = layout.rules[new.bound[name].rule].atom if name in new.bound else None
        tensor = tensors.get(atom or "")
        alike = {
            key
            for key, item in tensors.items()
            if tensor is not None and item.axes == tensor.axes and key not in new.atoms
        }
        others = [
            rule.pattern.text
            for rule in layout.rules
            if rule.atom in alike and all(isinstance(piece, str) for piece in rule.pattern.pieces)
        ]
        if len(others) == 1:
            out[others[0]] = name
    return out


def _owners(old: Arrangement, new: Arrangement) -> dict[str, list[set[str]]]:
    """By name of the new layout: for each part of it, the names in the old one that hold it.

    Several names hold a part that is stored more than once (tied weights).
    """
    held: dict[str, dict[Box, set[str]]] = {}
    for whole in old.wholes:
        for key, piece in whole.segments:
            held.setdefault(key, {}).setdefault(piece.box, set()).add(whole.name)
    out: dict[str, list[set[str]]] = {}
    for whole in new.wholes:
        if whole.name in out:
            continue
        parts = out.setdefault(whole.name, [])
        for key, piece in whole.segments:
            boxes = held.get(key, {})
            same = boxes.get(piece.box)
            if same is not None:
                parts.append(same)
                continue
            parts += [copies for box, copies in boxes.items() if box.intersect(piece.box)]
    return out
