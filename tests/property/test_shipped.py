"""Every shipped layout leads to every other one of its model, bit for bit, on any mesh."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest

from brute_force import fill
from made_families import NUMBERS, STATES, MadeFamily, Values, facts_of, python, stated
from reshard.api.layouts import check_layout, format_layout
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.language.expression import names as names_of
from reshard.language.layout import Layout, Split
from reshard.language.library import Family, shipped, shipped_text
from reshard.models.find import find_model, rename_to
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.build import build_plan
from reshard.plan.framework_config import can_be
from reshard.plan.lay_out import lay_out
from reshard.plan.output import PlacedSpec
from reshard.plan.place import Placement
from reshard.plan.plan import ArraySpec
from reshard.plan.prove import prove_sources

FAMILIES = {family.name: family for family in shipped()}
MESHES = 540
"""How many pairs of meshes are tried, over all families."""

COPIED = ("pp", "tp", "ep")


def some_mesh(layout: Layout, rng: random.Random) -> tuple[dict[str, int], tuple[int, ...]]:
    """A mesh that can cut the tiny model, and the layers of its stages where they are uneven."""
    sizes = {"vpp": (1, 1, 2), "pp": (1, 2, 3, 4), "tp": (1, 2), "ep": (1, 2, 4), "dp": (1,)}
    mesh = {axis: rng.choice(sizes[axis]) for axis in layout.mesh}
    if "layer" not in layout.places:
        mesh = {axis: 1 if axis in ("pp", "vpp") else size for axis, size in mesh.items()}
    if not any("ep" in split.over for split in layout.places.values()) and "ep" in mesh:
        mesh["ep"] = 1
    stages = mesh.get("vpp", 1) * mesh.get("pp", 1)
    if stages > 4:
        mesh["vpp"], stages = 1, mesh["pp"]
    if 4 % stages == 0 and (stages in (1, 4) or rng.random() < 0.6):
        return mesh, ()
    cuts = sorted(rng.sample(range(1, 4), stages - 1))
    return mesh, tuple(b - a for a, b in zip([0, *cuts], [*cuts, 4], strict=True))


def placed(layout: Layout, layers: tuple[int, ...]) -> Layout:
    """The layout with its stages as uneven as they are."""
    if not layers:
        return layout
    split = replace(layout.places["layer"], rule="sizes", sizes=layers)
    return replace(layout, places={**layout.places, "layer": split})


def placements(layout: Layout, layers: tuple[int, ...]) -> dict[str, Placement]:
    """The same as the user says it."""
    over = layout.places.get("layer", Split()).over
    return {"layer": Placement("layer", over, "sizes", layers)} if layers else {}


def written(
    arrangement: Arrangement, files: Mapping[str, bytes], mesh: Mapping[str, int]
) -> Values:
    """Every local tensor of an arrangement's layout on a mesh."""
    specs = []
    for laid in lay_out(arrangement, mesh, copied=COPIED):
        for state in (*STATES, "step"):
            spec = ArraySpec(
                laid.name, state, DType.I32, prod(laid.shape), laid.segments, laid.shape
            )
            if state == "step":
                spec = ArraySpec(laid.name, state, DType.I32, 1, laid.numbers, ())
            specs.append((laid.coord, PlacedSpec(spec, "out", 0)))
    plan = build_plan(arrangement, [spec for _, spec in specs])
    out: Values = {}
    for (coord, _), item in zip(specs, plan.placed, strict=True):
        spec = item.array.spec
        key = spec.label, spec.state, tuple(sorted(coord))
        assert key not in out
        out[key] = spec.shape or (), fill(item.array, files, np.int32).tolist()
    return out


def some_pair(family: Family, rng: random.Random) -> tuple[MadeFamily, MadeFamily] | None:
    """One model in two layouts, each on a mesh; None if no model is of both."""
    one, other = (family.layout(rng.choice(family.layout_names)) for _ in range(2))
    assert one.model is not None
    said = stated(one)
    if any(said.get(name, value) != value for name, value in stated(other).items()):
        return None
    said.update(stated(other))
    facts = {name: rng.random() < 0.5 for name in facts_of(one.model, [one, other])}
    facts.update({name: value for name, value in said.items() if isinstance(value, bool)})
    numbers = {
        "first_k_dense_replace": rng.choice([0, 0, 1, 2]),
        "decoder_sparse_step": rng.choice([1, 1, 2]),
    }
    if any("dist" in layout.name and "_" not in layout.name[9:] for layout in (one, other)):
        numbers = {"first_k_dense_replace": 0, "decoder_sparse_step": 1}  # layers are stacked
    numbers.update({name: value for name, value in said.items() if type(value) is int})
    meshes = [some_mesh(layout, rng) for layout in (one, other)]
    if all(mesh.get("tp", 1) == 1 for mesh, _ in meshes) and rng.random() < 0.5:
        numbers["num_key_value_heads"] = 1
    elif rng.random() < 0.1:
        numbers.update({"num_attention_heads": 4, "hidden_size": 8})
    for name in ("num_key_value_heads", "intermediate_size"):
        for layout in (one, other):  # some layouts are of models with one such number alone
            line = layout.config.get(name)
            if line is not None and set(names_of(line)) <= NUMBERS.keys() - {name}:
                numbers[name] = python(line, {**NUMBERS, **numbers})
    for layout in (one, other):
        for name, line in layout.config.items():
            if name in facts and names_of(line) and set(names_of(line)) <= facts.keys():
                facts[name] = python(line, facts)
    values = {**NUMBERS, **numbers, **facts}
    if any(values.get(name, value) != value for name, value in said.items()):
        return None
    if not all(can_be(layout, values) for layout in (one, other)):
        return None
    first, second = (
        MadeFamily(family, layout.name, mesh, facts, numbers, layers)
        for layout, (mesh, layers) in zip((one, other), meshes, strict=True)
    )
    return first, second


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_any_layout_on_any_mesh_leads_to_any_other(name: str) -> None:
    family = FAMILIES[name]
    rng = random.Random(name)
    share = len(family.layout_names) / sum(len(item.layout_names) for item in FAMILIES.values())
    left = round(MESHES * share) + 1
    while left:
        pair = some_pair(family, rng)
        if pair is None:
            continue
        left -= 1
        source, target = pair
        catalog, files = source.store()
        layout = placed(source.layout, source.layers)
        arrangement = bind(layout, catalog)
        prove_sources(arrangement)
        renamed = rename_to(
            arrangement,
            family,
            target.name,
            target.mesh,
            places=placements(target.layout, target.layers),
        )
        assert written(renamed, files, target.mesh) == target.values(), f"{source} {target}"


@pytest.mark.parametrize("name", FAMILIES)
def test_the_model_of_any_layout_is_found_by_its_names_alone(name: str) -> None:
    family = FAMILIES[name]
    for seed, layout in enumerate(family.layouts.values()):
        assert layout.model is not None
        rng = random.Random(seed)
        facts = {fact: rng.random() < 0.5 for fact in facts_of(layout.model, [layout])}
        facts.update((fact, said) for fact, said in stated(layout).items() if fact in facts)
        for fact, line in layout.config.items():
            if fact in facts and names_of(line) and set(names_of(line)) <= facts.keys():
                facts[fact] = python(line, facts)
        if name == "qwen_moe":
            facts["qk_norm"] = True
        numbers = {"first_k_dense_replace": 0 if layout.name == "megatron_dist" else 1}
        numbers.update((n, said) for n, said in stated(layout).items() if n in numbers)
        made = MadeFamily(family, layout.name, {}, facts, numbers)
        if not can_be(layout, made.env):
            continue
        catalog = replace(made.store()[0], config=None)
        if layout.name == "olmo_core" and facts.get("qk_norm", True):
            with pytest.raises(ReshardError, match="several-layouts-fit"):
                find_model(catalog)  # the norms of queries and keys differ in their shapes alone
        found = find_model(catalog, model=name if layout.name == "olmo_core" else None)
        assert (found.family.name, found.layout.name) == (name, layout.name)
        told = found.catalog.config
        assert told is not None
        tied = made.layout.name in ("torchtitan", "meta", "olmo_core")
        for fact, value in told.items():
            if not (tied and fact == "tie_word_embeddings"):
                assert value == made.env[fact], fact


@pytest.mark.parametrize("name", FAMILIES)
def test_shipped_layouts_are_proved_without_data(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.ucl"
    path.write_text(shipped_text(name), encoding="utf-8")
    checked = check_layout(path)
    assert checked.warnings == ()
    assert format_layout(path) == (path.read_text(encoding="utf-8"), True)
    assert [item.name for item in checked.layouts] == list(FAMILIES[name].layout_names)
