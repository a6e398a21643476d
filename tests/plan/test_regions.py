"""Planning does not grow with fragments, with ranks that are not asked for, or with copies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest

import reshard
from reshard.dtypes import DType
from reshard.language import load_layout
from reshard.plan.bind import bind
from reshard.plan.build import Builder, build_plan
from reshard.plan.catalog import Catalog, Coord, Fragment, LocalTensor
from reshard.plan.fate import fates
from reshard.plan.lay_out import lay_out
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import ArraySpec, Plan, Region
from reshard.plan.prove import prove_sources
from reshard.run.run import Run
from reshard.store.source_files import SourceFiles

LAYOUT = """
layout made {
    mesh tp, ep
    "layers.{layer}.experts.{local e over ep}.up" = [rows over tp, _]
    "layers.{layer}.norm"                         = [_]
}
"""
LAYERS, EXPERTS, ROWS, COLUMNS = 5, 8, 12, 6


def _source(tp: int, ep: int, pieces: int) -> Catalog:
    """Every local tensor in so many fragments, of a file of its own each."""
    tensors = []
    for t in range(tp):
        for e in range(ep):
            coord: Coord = (("tp", t), ("ep", e))
            for layer in range(LAYERS):
                tensors.append(_tensor(f"layers.{layer}.norm", coord, (COLUMNS,), 1))
                tensors += [
                    _tensor(
                        f"layers.{layer}.experts.{expert}.up", coord, (ROWS // tp, COLUMNS), pieces
                    )
                    for expert in range(EXPERTS // ep)
                ]
    mesh = {"tp": tp, "ep": ep}
    return Catalog("made", "", "/made", mesh, tuple(tensors), load_layout(LAYOUT), Run())


def _tensor(name: str, coord: Coord, shape: tuple[int, ...], pieces: int) -> LocalTensor:
    numel = prod(shape)
    bounds = [round(numel * n / pieces) for n in range(pieces + 1)]
    fragments = tuple(
        Fragment(start, stop - start, f"{coord}-{name}-{n}", 4 * n)
        for n, (start, stop) in enumerate(pairwise(bounds))
    )
    return LocalTensor(name, "param", coord, shape, DType.F32, fragments)


def _planned(source: Catalog, mesh: dict[str, int]) -> tuple[Plan, object]:
    arrangement = bind(source.layout, source)
    prove_sources(arrangement)
    placed = [
        PlacedSpec(
            ArraySpec(laid.name, "param", DType.F32, prod(laid.shape), laid.segments),
            f"{laid.coord}",
            0,
        )
        for laid in lay_out(arrangement, mesh)
    ]
    plan = build_plan(arrangement, placed)
    return plan, fates(arrangement, plan)


@pytest.mark.parametrize("mesh", [{"tp": 1, "ep": 1}, {"tp": 3, "ep": 4}])
def test_fragments_are_no_work_for_a_plan(
    mesh: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, _ = _planned(_source(2, 2, 1), mesh)
    many, fate = _planned(_source(2, 2, 24), mesh)
    boxes = [[len(item.array.boxes) for item in plan.placed] for plan in (few, many)]
    assert boxes[0] == boxes[1]
    copies = [copy for item in many.placed for copy in item.array.copies]
    assert len(copies) == sum(len(item.array.copies) for item in many.placed)
    assert len(copies) > 3 * sum(boxes[1])
    assert sum(copy.numel for copy in copies) == sum(item.array.copied for item in many.placed)
    origins = {(o.file, o.byte_offset) for copy in copies for o in copy.origins}
    assert {place for i in many.placed for box in i.array.boxes for place in box.places} == origins
    files = {file for copy in copies for o in copy.origins for file in o.files}
    assert {file for i in many.placed for box in i.array.boxes for file in box.files} == files
    assert many.bytes_read == sum(copy.nbytes_read for copy in copies)
    monkeypatch.setattr(Region, "copies", None)  # planning places no fragment
    assert _planned(_source(2, 2, 24), mesh)[1] == fate


def test_copies_of_a_box_are_compared_once() -> None:
    source = _source(2, 2, 1)
    arrangement = bind(source.layout, source)
    prove_sources(arrangement)
    builder = Builder(arrangement)
    laid = next(iter(lay_out(arrangement, {"tp": 1, "ep": 1})))
    assert laid.name == "layers.0.norm"
    spec = ArraySpec(laid.name, "param", DType.F32, COLUMNS, laid.segments)
    modes = [
        [(copy.mode, len(copy.origins)) for copy in builder.array(spec).copies] for _ in range(3)
    ]
    assert modes == [[("agree", 4)], [("first", 1)], [("first", 1)]]


@pytest.mark.parametrize("mesh", [{"tp": 1, "ep": 1}, {"tp": 3, "ep": 4}, {"tp": 4, "ep": 2}])
def test_one_rank_is_laid_out_by_itself(mesh: dict[str, int]) -> None:
    source = _source(2, 2, 1)
    arrangement = bind(source.layout, source)
    everything = lay_out(arrangement, mesh)
    for tp in range(mesh["tp"]):
        for ep in range(mesh["ep"]):
            rank = {"tp": tp, "ep": ep}
            own = tuple(
                laid
                for laid in everything
                if all(rank[axis] == index for axis, index in laid.coord)
            )
            assert lay_out(arrangement, mesh, rank=rank) == own
            assert len(own) == LAYERS * (1 + EXPERTS // mesh["ep"])


def test_a_rank_reads_and_plans_its_own_part(
    fixture_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fixture_checkpoint("megatron_moe_ep2") / "ckpt"
    nbytes, arrays = [], []
    read, made = SourceFiles.pread_into, Builder.array

    def pread_into(self: SourceFiles, file: str, byte_offset: int, out: memoryview) -> None:
        nbytes.append(len(out))
        read(self, file, byte_offset, out)

    def array(self: Builder, spec: ArraySpec) -> object:
        arrays.append(spec.label)
        return made(self, spec)

    monkeypatch.setattr(SourceFiles, "pread_into", pread_into)
    monkeypatch.setattr(Builder, "array", array)
    counts = []
    for target, rank in (("megatron", {}), ("megatron:ep=2", {"ep": 1})):
        nbytes.clear()
        arrays.clear()
        got = reshard.load(folder, target, rank=rank, states="weights", framework="numpy")
        assert sum(map(len, got.tensors.values())) == len(arrays)
        kept = sum(np.asarray(x).nbytes for of in got.tensors.values() for x in of.values())
        assert sum(nbytes) < 4 * kept
        counts.append((len(arrays), kept))
    assert counts[1][0] < counts[0][0]
    assert counts[1][1] < counts[0][1]
