"""One model in several layouts: each leads to each other, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brute_force import fill
from made_models import SIZES, MadeModel, Values, config, layout, store
from reshard.dtypes import DType
from reshard.plan.arrangement import Arrangement
from reshard.plan.bind import bind
from reshard.plan.build import build_plan
from reshard.plan.lay_out import lay_out
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import ArraySpec
from reshard.plan.prove import prove_sources
from reshard.plan.rename import rename

MESHES = [
    {"vpp": vpp, "pp": pp, "tp": tp, "dp": 1}
    for vpp, pp, tp in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2), (2, 2, 2), (1, 4, 1)]
]


def read(made: MadeModel, runs: list[int]) -> tuple[Arrangement, dict[str, bytes]]:
    """A checkpoint, bound and proved."""
    catalog, files = made.store(runs)
    arrangement = bind(layout(made.name), catalog)
    prove_sources(arrangement)
    return arrangement, files


def written(
    arrangement: Arrangement, files: Mapping[str, bytes], name: str, mesh: Mapping[str, int]
) -> Values:
    """Every local tensor of another layout on a mesh."""
    if name != arrangement.layout.name:
        arrangement = rename(arrangement, layout(name), mesh)
    placed = []
    for laid in lay_out(arrangement, mesh):
        for state in arrangement.states_of(laid.whole):
            spec = ArraySpec(
                laid.name, state, DType.I32, prod(laid.shape), laid.segments, laid.shape
            )
            if state == "step":
                spec = ArraySpec(laid.name, state, DType.I32, 1, laid.numbers, ())
            placed.append((laid.coord, PlacedSpec(spec, "out", 0)))
    plan = build_plan(arrangement, [spec for _, spec in placed])
    out: Values = {}
    for (coord, _), item in zip(placed, plan.placed, strict=True):
        spec = item.array.spec
        key = spec.label, spec.state, tuple(sorted(coord))
        assert key not in out
        out[key] = spec.shape or (), fill(item.array, files, np.int32).tolist()
    return out


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "-".join(map(str, mesh.values())))
def test_hf_and_megatron(mesh: dict[str, int], tied: bool) -> None:
    """The central promise: to Megatron's ranks, and back to Hugging Face's tensors."""
    hf, megatron = MadeModel("hf", {}, tied), MadeModel("megatron", mesh, tied)
    arrangement, files = read(hf, [])
    there = written(arrangement, files, "megatron", mesh)
    assert there == megatron.values()
    catalog, files = store(there, "megatron", mesh, config("megatron", tied=tied))
    again = bind(layout("megatron"), catalog)
    prove_sources(again)
    assert written(again, files, "hf", {}) == hf.values()


@settings(max_examples=25)
@given(st.sampled_from(MESHES), st.sampled_from(MESHES), st.booleans(), st.lists(st.integers(1, 9)))
def test_megatron_on_another_mesh(
    source: dict[str, int], target: dict[str, int], tied: bool, runs: list[int]
) -> None:
    """Runs of optimizer states as ZeRO cuts them, directly and through the universal form."""
    arrangement, files = read(MadeModel("megatron", source, tied), runs)
    wanted = MadeModel("megatron", target, tied).values()
    if tied and (source["pp"] > 1) != (target["pp"] > 1):
        # the tied copy is there on several stages alone: the names are others
        assert written(rename(arrangement, layout("hf"), {}), files, "megatron", target) == wanted
        return
    assert written(arrangement, files, "megatron", target) == wanted
    hf = rename(arrangement, layout("hf"), {})
    assert written(hf, files, "megatron", target) == wanted


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: "-".join(map(str, mesh.values())))
def test_two_layouts_of_a_model_give_the_same_universal_form(mesh: dict[str, int]) -> None:
    hf, hf_files = read(MadeModel("hf", {}, same_steps=True), [])
    megatron, files = read(MadeModel("megatron", mesh, same_steps=True), [5] * 100)
    stacked = written(hf, hf_files, "stacked", {})
    assert written(megatron, files, "stacked", {}) == stacked
    assert stacked["mlp", "param", ()][0] == (SIZES["layer"], SIZES["h"], 2 * SIZES["f"])


def test_the_steps_of_all_layers_must_agree_where_there_is_one_number() -> None:
    hf, _ = read(MadeModel("hf", {}), [])
    stacked = rename(hf, layout("stacked"), {})
    (qkv,) = [item for item in lay_out(stacked, {}) if item.name == "qkv"]
    spec = ArraySpec("qkv", "step", DType.I32, 1, qkv.numbers, ())
    (copy,) = build_plan(stacked, [PlacedSpec(spec, "out", 0)]).placed[0].array.copies
    assert copy.mode == "agree"
    assert len(copy.origins) == 3 * SIZES["layer"]
