"""The laws of resharding, for any layout on any mesh; the oracle cuts element by element."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given, note
from hypothesis import strategies as st

from brute_force import fill
from made_sources import MESHES, Made, Mesh, Stored, made, make_catalog, whole_spec
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.build import build_plan
from reshard.plan.catalog import Coord, Fragment, LocalTensor
from reshard.plan.lay_out import LaidTensor, lay_out
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import ArraySpec
from reshard.plan.prove import prove_sources

runs = st.lists(st.integers(1, 9), max_size=30)

Values = dict[tuple[str, str, Coord], tuple[tuple[int, ...], list[int]]]
"""Shape and elements by name, state, and coordinate."""


def read(stored: Stored, source: Made) -> Arrangement:
    """A checkpoint, bound and proved."""
    arrangement = bind(source.layout, stored.catalog)
    prove_sources(arrangement)
    return arrangement


def to_wholes(arrangement: Arrangement, files: Mapping[str, bytes]) -> Values:
    """The universal form."""
    plan = build_plan(arrangement, [whole_spec(whole) for whole in arrangement.wholes])
    return {
        (item.array.spec.label, item.array.spec.state, ()): (
            item.array.spec.shape or (),
            fill(item.array, files, np.int32).tolist(),
        )
        for item in plan.placed
    }


def to_mesh(arrangement: Arrangement, files: Mapping[str, bytes], mesh: Mesh) -> Values:
    """The local tensors on a mesh, of every state."""
    placed: list[tuple[LaidTensor, PlacedSpec]] = []
    for laid in lay_out(arrangement, mesh):
        for state in arrangement.states_of(laid.whole):
            if state == "step":
                spec = ArraySpec(laid.name, state, DType.I32, 1, laid.numbers, ())
            else:
                numel = prod(laid.shape)
                spec = ArraySpec(laid.name, state, DType.I32, numel, laid.segments, laid.shape)
            placed.append((laid, PlacedSpec(spec, "out", 0)))
    plan = build_plan(arrangement, [spec for _, spec in placed])
    out: Values = {}
    for (laid, _), item in zip(placed, plan.placed, strict=True):
        spec = item.array.spec
        key = spec.label, spec.state, tuple(sorted(laid.coord))
        assert key not in out
        out[key] = spec.shape or (), fill(item.array, files, np.int32).tolist()
    return out


def stored_again(values: Values, text: str, mesh: Mesh) -> Stored:
    """Local tensors, or whole ones, as a checkpoint."""
    tensors, files = [], {}
    for number, ((name, state, coord), (shape, data)) in enumerate(values.items()):
        file = f"{number}.bin"
        files[file] = np.array(data, np.int32).tobytes()
        fragment = Fragment(0, len(data), file, 0)
        fragments = (fragment,) if data else ()
        tensors.append(LocalTensor(name, state, coord, shape, DType.I32, fragments))
    return Stored(make_catalog(text, mesh, tensors), files)


def oracle(source: Made, mesh: Mesh, before: Mesh) -> Values:
    """The local tensors on a mesh, cut by the oracle; `before` is where they come from."""
    out: Values = {}
    for rule, name, stored, state, coord, shape, data in source.local(mesh, source=before):
        where = tuple(sorted(coord))
        out[stored, state, where] = shape, data.tolist()
        if state == rule.states[0]:
            out[stored, "step", where] = (), source.number(name).tolist()
    return out


def can_be_cut(source: Made, mesh: Mesh, before: Mesh) -> bool:
    """Whether the layout says how its tensors are cut on a mesh; `before` is another one."""
    for rule in source.rules:
        axes = [*rule.axes.values(), *([rule.slot] if rule.slot and rule.is_local else [])]
        for axis in axes:
            count = prod(mesh[name] for name in axis.over)
            if axis.rule == "sizes" and count not in (1, len(axis.widths)):
                return False
            plain = axis.rule == "even" and not axis.multiple and not axis.truncated
            if plain and axis.size % count:
                return False
        if "pp" not in rule.over() and mesh["pp"] not in (1, before["pp"]):
            return False
    return True


@given(made(), runs)
def test_a_reshard_to_the_same_mesh_is_the_checkpoint(source: Made, pieces: list[int]) -> None:
    note(source.text)
    stored = source.store(pieces)
    arrangement = read(stored, source)
    assert to_mesh(arrangement, stored.files, source.mesh) == oracle(
        source, source.mesh, source.mesh
    )


@given(made(), MESHES, runs)
def test_another_mesh_is_what_the_oracle_cuts_and_leads_back(
    source: Made, target: dict[str, int], pieces: list[int]
) -> None:
    note(source.text)
    stored = source.store(pieces)
    arrangement = read(stored, source)
    if not can_be_cut(source, target, source.mesh):
        with pytest.raises(ReshardError) as caught:
            lay_out(arrangement, target)
        (fault,) = caught.value.diagnostics
        event(fault.code)
        assert fault.code in ("uneven-target", "target-stages")
        return
    event("laid out")
    direct = to_mesh(arrangement, stored.files, target)
    assert direct == oracle(source, target, source.mesh)
    there = stored_again(direct, source.text, target)
    again = read(there, source)
    whole = to_wholes(arrangement, stored.files)
    assert to_wholes(again, there.files) == whole
    if can_be_cut(source, source.mesh, target):
        assert to_mesh(again, there.files, source.mesh) == oracle(source, source.mesh, target)


@given(made(), MESHES)
def test_through_the_universal_form_is_direct(source: Made, target: dict[str, int]) -> None:
    """The universal form has no mesh: what is whole there has the names that count through."""
    note(source.text)
    if not can_be_cut(source, target, source.mesh) or target["pp"] > 1:
        return
    stored = source.store()
    arrangement = read(stored, source)
    direct: Any = to_mesh(arrangement, stored.files, target)
    universal = stored_again(to_wholes(arrangement, stored.files), source.text, {})
    whole = read(universal, source)
    assert to_wholes(whole, universal.files) == to_wholes(arrangement, stored.files)
    if any(axis.truncated for rule in source.rules for axis in rule.axes.values()):
        return  # the universal form has no padding, so that the layout chooses it anew
    assert to_mesh(whole, universal.files, target) == direct
