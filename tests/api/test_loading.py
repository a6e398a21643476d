"""`load`: each rank's own tensors, held against the files of that rank and against the wholes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest

import reshard
from reshard import formats
from reshard.api.source import open_source
from reshard.engine.compare import read_array
from reshard.errors import ReshardError
from reshard.plan.build import build_array
from reshard.plan.catalog import LocalTensor
from reshard.plan.plan import ArraySpec
from reshard.store.source_files import SourceFiles

Fixture = Callable[[str], Path]


def _stored(folder: Path, tp: int) -> dict[tuple[str, str], LocalTensor]:
    """What the files of one tensor parallel rank hold, by state and name."""
    catalog = open_source(folder).catalog
    return {
        (tensor.state, tensor.name): tensor
        for tensor in catalog.tensors
        if dict(tensor.coord).get("tp", tp) == tp and tensor.shape
    }


def _bytes_of(tensor: LocalTensor, root: str) -> bytes:
    """A local tensor put together from the runs of its files, with nothing of ours between."""
    out = bytearray(tensor.numel * tensor.dtype.itemsize)
    for fragment in tensor.fragments:
        assert fragment.strides is None
        assert fragment.box is None
        data = (Path(root) / fragment.file).read_bytes()
        nbytes = fragment.numel * tensor.dtype.itemsize
        start = fragment.start * tensor.dtype.itemsize
        out[start : start + nbytes] = data[fragment.byte_offset : fragment.byte_offset + nbytes]
    return bytes(out)


@pytest.mark.parametrize("tp", [0, 1])
def test_a_rank_of_the_same_size_gets_what_its_files_hold(
    tp: int, fixture_checkpoint: Fixture
) -> None:
    folder = fixture_checkpoint("autotp_tp2_dp2_z1_fp32") / "ckpt"
    source = open_source(folder)
    mine = reshard.load(folder, "deepspeed", rank={"tp": tp}, framework="numpy")
    stored = _stored(folder, tp)
    checked = 0
    for (state, name), tensor in stored.items():
        if name in mine.tensors.get(state, {}):
            array = mine.tensors[state][name]
            assert array.shape == tensor.shape
            assert array.tobytes() == _bytes_of(tensor, source.catalog.root), (state, name)
            checked += 1
    assert checked == len(stored) > 60


def test_ranks_of_another_size_are_blocks_of_the_whole(fixture_checkpoint: Fixture) -> None:
    folder = fixture_checkpoint("autotp_tp2_dp2_z1_fp32") / "ckpt"
    whole = reshard.open(folder)
    name = "model.layers.1.mlp.down_proj.weight"
    ranks = [
        reshard.load(folder, "deepspeed:tp=4", rank={"tp": tp}, framework="numpy")
        for tp in range(4)
    ]
    for state in ("param", "exp_avg", "exp_avg_sq"):
        joined = np.concatenate([rank.tensors[state][name] for rank in ranks], axis=1)
        assert joined.tobytes() == whole.read(name, state).tobytes()
    assert [float(rank.tensors["step"][name]) for rank in ranks] == [3.0] * 4
    assert ranks[0].training == whole.training


def test_whole_tensors_of_chosen_states(fixture_checkpoint: Fixture) -> None:
    folder = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    whole = reshard.open(folder)
    found = reshard.load(folder, states="exp_avg", framework="numpy")
    assert set(found.tensors) == {"exp_avg"}
    for name, array in found.tensors["exp_avg"].items():
        assert array.tobytes() == whole.read(name, "exp_avg").tobytes()
    assert found.aliases == {"lm_head.weight": "model.embed_tokens.weight"}


def test_no_more_is_read_than_the_rank_needs(
    fixture_checkpoint: Fixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fixture_checkpoint("autotp_tp2_dp2_z1_fp32") / "ckpt"
    seen: list[int] = []

    def count(array: object, files: SourceFiles) -> object:
        seen.append(array.spec.nbytes)  # type: ignore[attr-defined]
        return read_array(array, files)  # type: ignore[arg-type]

    monkeypatch.setattr("reshard.engine.compare.read_array", count)
    one = reshard.load(folder, "deepspeed:tp=4", rank={"tp": 1}, framework="numpy")
    held = sum(array.nbytes for of in one.tensors.values() for array in of.values())
    assert sum(seen) == held
    source = open_source(folder)
    total = sum(
        build_array(
            source.arrangement,
            ArraySpec(w.name, w.state, w.dtype, 1, w.segments, ()),
        ).spec.dtype.itemsize
        * int(np.prod(w.shape, dtype=int))
        for w in source.arrangement.wholes
    )
    assert held < total / 2


@pytest.mark.parametrize(
    ("to", "rank", "text"),
    [
        (
            "deepspeed:tp=2",
            {"tp": 2},
            "error[bad-rank]: target `deepspeed:tp=2` has no such rank: tp=2 is not below tp=2\n"
            "  = note: its mesh is pp=1, tp=2, ep=1\n"
            "  = help: give the position on each axis that is longer than 1: "
            '`rank={"tp": 0, "pp": 1}`\n',
        ),
        (
            "deepspeed:tp=2",
            {},
            "error[bad-rank]: target `deepspeed:tp=2` has no such rank: it does not say tp\n"
            "  = note: its mesh is pp=1, tp=2, ep=1\n"
            "  = help: give the position on each axis that is longer than 1: "
            '`rank={"tp": 0, "pp": 1}`\n',
        ),
        (
            "universal",
            {"tp": 0},
            "error[bad-rank]: target `universal` has no such rank: `tp` is not an axis of its "
            "mesh\n"
            "  = note: its mesh is one rank\n"
            "  = help: give the position on each axis that is longer than 1: "
            '`rank={"tp": 0, "pp": 1}`\n',
        ),
    ],
)
def test_a_rank_that_there_is_not(
    to: str, rank: dict[str, int], text: str, fixture_checkpoint: Fixture
) -> None:
    folder = fixture_checkpoint("autotp_tp2_dp2_z1_fp32") / "ckpt"
    with pytest.raises(ReshardError) as caught:
        reshard.load(folder, to, rank=rank, framework="numpy")
    assert f"{caught.value}\n" == text


def _agrees(folder: Path, tmp_path: Path, to: str, mesh: dict[str, int]) -> int:
    """Holds what every rank loads against what `convert` wrote for it; how many were held."""
    reshard.convert(folder, tmp_path / "out", to)
    catalog = formats.read(formats.recognize(tmp_path / "out"), tmp_path / "out")
    checked = 0
    for position in product(*(range(size) for size in mesh.values())):
        rank = dict(zip(mesh, position, strict=True))
        mine = reshard.load(folder, to, rank=rank, framework="numpy")
        for tensor in catalog.tensors:
            at = dict(tensor.coord)
            if tensor.state == "extra" or any(at.get(axis, i) != i for axis, i in rank.items()):
                continue
            array = mine.tensors[tensor.state][tensor.name]
            assert array.shape == tensor.shape
            if tensor.shape:
                assert array.tobytes() == _bytes_of(tensor, catalog.root), (rank, tensor.name)
            checked += 1
    return checked


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("megatron_untied_tp2_pp2", {"tp": 2, "pp": 1}),
        ("megatron_untied_pp2_vpp2", {"tp": 2, "pp": 2, "vpp": 2}),
        ("megatron_tied_pp2", {"tp": 2, "pp": 2}),
        ("megatron_moe_ep2", {"pp": 2, "ep": 4}),
    ],
)
def test_a_rank_loads_what_convert_writes_for_it(
    name: str, mesh: dict[str, int], fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    to = "megatron:" + ",".join(f"{axis}={size}" for axis, size in mesh.items())
    assert _agrees(fixture_checkpoint(name) / "ckpt", tmp_path, to, mesh) > 40


def test_weights_are_rounded_as_convert_rounds_them(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    """ZeRO-3 has no weights but those that are made of the master weights."""
    folder = fixture_checkpoint("z3_bf16_dp3_untied") / "ckpt"
    mine = reshard.load(folder, states="weights", dtype="bf16", framework="numpy")
    reshard.convert(folder, tmp_path / "out", "universal", states="weights", dtype="bf16")
    written = reshard.open(tmp_path / "out")
    assert set(mine.tensors) == {"param"}
    assert len(mine.tensors["param"]) == len(written.parameters) == 21
    for name, array in mine.tensors["param"].items():
        assert array.tobytes() == written.read(name).tobytes()
