"""A model that nobody has saved: its atoms, by its configuration alone."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product

from reshard.algebra.box import Box
from reshard.algebra.piece import Piece, row_major
from reshard.dtypes import DType
from reshard.errors import layout_error
from reshard.language.expression import Expression, evaluate, known_value, names
from reshard.language.layout import Layout, ModelTensor
from reshard.plan.arrangement import SCALAR, Arrangement, Atom, AtomState, StoredPart
from reshard.plan.catalog import Catalog, Fragment
from reshard.plan.environment import environment
from reshard.plan.fit import MAX_FACTS, facts, holds
from reshard.plan.held import held_indices
from reshard.plan.model_values import model_values
from reshard.plan.solve import integer
from reshard.run.states import STEP

_ONE = b"\x00\x00\x80\x3f"
"""The number of steps that a simulated run has done, as a number of fp32."""


def model_source(
    layout: Layout,
    catalog: Catalog,
    states: Mapping[str, DType],
    settings: Mapping[str, float | None],
) -> Arrangement:
    """The atoms of a model, each whole and stored once; its tensors have no names yet.

    Args:  layout: of the model, whose `config` lines say what the configuration means.
           catalog: without tensors; its configuration gives every size.
           states: kinds of state with their types; `step` is one number for each atom.
    Raises: ReshardError[incomplete-model-config] for a size or a fact that the configuration does
            not give, and what evaluating it raises.
    """
    model = layout.model
    assert model is not None
    env = _with_facts(layout, environment(layout, catalog, {}, settings))
    sizes = {
        axis.name: integer(evaluate(axis.size, env), f"the size of axis `{axis.name}`")
        for axis in model.axes.values()
        if axis.size is not None and known_value(axis.size, env) is not None
    }
    atoms: dict[str, Atom] = {}
    parts: dict[AtomState, tuple[StoredPart, ...]] = {}
    for tensor in model.tensors.values():
        if tensor.when is not None and not _known(layout, tensor.when, env):
            continue
        shape = _shape(layout, tensor, sizes, env)
        if 0 in shape:
            continue
        atoms[tensor.name] = Atom(tensor.name, tensor.axes, shape)
        for state, dtype in states.items():
            atom, part = _stored(atoms[tensor.name], state, dtype)
            atoms.setdefault(atom.key, atom)
            parts[atom.key, state] = (part,)
    values = model_values(layout, env, sizes)
    return Arrangement(catalog, layout, {}, atoms, parts, {}, (), {}, values)


def _with_facts(layout: Layout, env: Mapping[str, object]) -> dict[str, object]:
    """What the configuration gives, and the facts that follow from what it gives.

    A fact that it does not state is chosen so that the layout is of the model, every tensor has its
    sizes, and no size that is given goes unused. What has more than one answer stays open.
    """
    open_facts = [name for name in facts(layout) if env.get(name) is None][:MAX_FACTS]
    choices: list[tuple[dict[str, bool], frozenset[str]]] = []
    for values in product((False, True), repeat=len(open_facts)):
        chosen = dict(zip(open_facts, values, strict=True))
        used = _used_axes(layout, {**env, **chosen})
        if used is not None and holds(layout.when, {**env, **chosen}) is not False:
            choices.append((chosen, used))
    most = max((len(used) for _, used in choices), default=0)
    best = [chosen for chosen, used in choices if len(used) == most]
    agreed = {
        name: best[0][name]
        for name in (best[0] if best else ())
        if all(item[name] is best[0][name] for item in best)
    }
    return {**env, **agreed}


def _used_axes(layout: Layout, env: Mapping[str, object]) -> frozenset[str] | None:
    """The axes of the tensors that are there; None if the size of one is not known, or is zero."""
    model = layout.model
    assert model is not None
    used: set[str] = set()
    for tensor in model.tensors.values():
        if tensor.when is None or known_value(tensor.when, env) is True:
            used.update(tensor.axes)
    sizes = (model.axes[axis].size for axis in used)
    if not all(size is None or known_value(size, env) for size in sizes):
        return None
    return frozenset(used)


def _shape(
    layout: Layout, tensor: ModelTensor, sizes: Mapping[str, int], env: Mapping[str, object]
) -> tuple[int, ...]:
    """Of an atom; along the axis where it is only at some indices, how many these are."""
    assert layout.model is not None
    for axis in tensor.axes:
        size = layout.model.axes[axis].size
        if axis not in sizes and size is not None:
            _known(layout, size, env)
    counts = {**sizes}
    if tensor.only is not None:
        along = tensor.along
        counts[along] = len(held_indices(tensor.only, along, sizes[along], env))
    return tuple(counts[axis] for axis in tensor.axes)


def _known(layout: Layout, expression: Expression, env: Mapping[str, object]) -> object:
    """The value of an expression.

    Raises: ReshardError[incomplete-model-config] where the configuration does not give it.
    """
    value = known_value(expression, env)
    if value is not None:
        return value
    missing = [name for name in dict.fromkeys(names(expression)) if env.get(name) is None]
    listed = ", ".join(f"`{name}`" for name in missing)
    assert layout.model is not None
    raise layout_error(
        "incomplete-model-config",
        f"the configuration does not give everything that model `{layout.model.name}` needs",
        notes=[f"without a value: {listed}"],
        helps=[f"state it with `--set {missing[0]}=NUMBER`"],
    )


def _stored(atom: Atom, state: str, dtype: DType) -> tuple[Atom, StoredPart]:
    """Where a state of an atom is taken to lie, and the atom that it is of."""
    if state == STEP:
        number = Atom(f"{atom.key}{SCALAR}", (), ())
        fragment = Fragment(0, 1, "", 0, literal=_ONE)
        piece = Piece(Box.whole(()), 0, ())
        return number, StoredPart(piece, dtype, (fragment,), (), (), atom.key, -1)
    piece = Piece(Box.whole(atom.shape), 0, row_major(atom.shape))
    fragment = Fragment(0, piece.box.volume, f"{state}/{atom.key}", 0)
    return atom, StoredPart(piece, dtype, (fragment,), (), (), atom.key, 0)
