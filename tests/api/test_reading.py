"""`open` and `read`: whole tensors and any part of them, from any arrangement of ranks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import reshard
from reshard.api import Checkpoint

Fixture = Callable[[str], Path]
SLICES = [
    (),
    (slice(None),),
    (slice(3, 17),),
    (slice(3, 17), slice(5, 6)),
    (slice(None), slice(2, 30, 7)),
    (slice(-4, None), -1),
    (7,),
    (7, 9),
    (slice(5, 5),),
    (slice(20, 10),),
]


def _truth(folder: Path) -> dict[tuple[str, str], np.ndarray]:
    states = {"fp32": "master", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq"}
    out = {}
    for key, value in load_file(folder / "truth.safetensors").items():
        name, _, state = key.rpartition("/")
        if state in states:
            out[name, states[state]] = value
    return out


@pytest.fixture
def toy(fixture_checkpoint: Fixture) -> Checkpoint:
    """A model whose tensors are cut in every way over two tensor parallel ranks."""
    return reshard.open(fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt")


@pytest.mark.parametrize("name", ["toytp_tp2_dp2_z1_fp32", "z3_bf16_dp3_untied"])
def test_every_tensor_is_the_truth(name: str, fixture_checkpoint: Fixture) -> None:
    folder = fixture_checkpoint(name)
    checkpoint = reshard.open(folder / "ckpt")
    truth = _truth(folder)
    assert {key for key in truth if key[0] not in checkpoint.tensors} == set()
    for (tensor, state), expected in truth.items():
        found = checkpoint.read(tensor, state)
        assert found.dtype == expected.dtype
        # What the running ranks held of a padded vocabulary is longer than the logical tensor.
        assert found.tobytes() == expected[: found.shape[0]].tobytes(), (tensor, state)


@pytest.mark.parametrize("slices", SLICES, ids=str)
@pytest.mark.parametrize("tensor", ["blocks.0.qkv.weight", "blocks.1.o.weight", "pos.weight"])
def test_a_part_is_what_numpy_takes_of_the_whole(
    tensor: str, slices: tuple[int | slice, ...], toy: Checkpoint
) -> None:
    whole = toy.read(tensor, "exp_avg")
    part = toy.read(tensor, "exp_avg", slices)
    assert part.shape == whole[slices].shape
    assert part.tobytes() == whole[slices].tobytes()
    assert part.flags.c_contiguous
    assert part.flags.writeable


def test_one_slice_needs_no_tuple(toy: Checkpoint) -> None:
    whole = toy.read("pos.weight")
    assert (toy.read("pos.weight", slices=3) == whole[3]).all()
    assert (toy.read("pos.weight", slices=slice(3, 5)) == whole[3:5]).all()


def test_a_part_reads_no_more_than_it_needs(
    toy: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reshard.store.source_files import SourceFiles

    read = []
    before = SourceFiles.pread_into

    def counted(self: SourceFiles, file: str, byte_offset: int, out: memoryview) -> None:
        read.append(len(out))
        before(self, file, byte_offset, out)

    monkeypatch.setattr(SourceFiles, "pread_into", counted)
    part = toy.read("blocks.0.h4.weight", "exp_avg", (slice(0, 4),))
    assert sum(read) == part.nbytes


def test_a_scalar_is_an_array_without_dimensions(toy: Checkpoint) -> None:
    step = toy.read("final.weight", "step")
    assert step.shape == ()
    assert step == 3


def test_an_alias_reads_what_it_names(fixture_checkpoint: Fixture) -> None:
    checkpoint = reshard.open(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt")
    stored = checkpoint.aliases["lm_head.weight"]
    assert checkpoint.read("lm_head.weight").tobytes() == checkpoint.read(stored).tobytes()
    assert str(checkpoint.read("lm_head.weight").dtype) == "bfloat16"


def test_what_is_told_of_a_checkpoint(toy: Checkpoint) -> None:
    assert toy.format == "deepspeed"
    assert {axis: size for axis, size in toy.mesh.items() if size > 1} == {"tp": 2, "dp": 2}
    assert toy.states == ("param", "master", "exp_avg", "exp_avg_sq", "step")
    assert len(toy.parameters) == len(toy.tensors) == 18
    assert toy.tensors["blocks.0.qkv.weight"].shape == (64, 32)
    assert toy.layout.startswith("layout ")
    assert repr(toy) == f"<deepspeed checkpoint at {toy.path}, 18 tensors>"


def _message(toy: Checkpoint, *arguments: object) -> str:
    with pytest.raises(reshard.ReshardError) as caught:
        toy.read(*arguments)  # type: ignore[arg-type]
    return str(caught.value).replace(str(toy.path), "ckpt")


def test_an_unknown_tensor(toy: Checkpoint) -> None:
    assert _message(toy, "blocks.0.qvk.weight") == (
        "error[unknown-tensor]: the checkpoint has no tensor `blocks.0.qvk.weight`\n"
        "  = note: it has 18: ckpt\n"
        "  = help: did you mean `blocks.0.qkv.weight`?"
    )


def test_an_unknown_state(toy: Checkpoint) -> None:
    assert _message(toy, "pos.weight", "exp_avgs") == (
        "error[unknown-state]: the checkpoint stores no state `exp_avgs` of `pos.weight`\n"
        "  = note: it stores `param`, `master`, `exp_avg`, `exp_avg_sq`, `step`\n"
        "  = note: source: ckpt\n"
        "  = help: did you mean `exp_avg`?"
    )


@pytest.mark.parametrize(
    ("slices", "what"),
    [
        ((0, 0, 0), "3 slices for 2 dimensions"),
        ((16,), "index 16 of dimension 0, which has 16"),
        ((slice(None, None, -1),), "step -1 of dimension 0"),
    ],
)
def test_slices_that_do_not_fit(
    slices: tuple[int | slice, ...], what: str, toy: Checkpoint
) -> None:
    assert _message(toy, "pos.weight", "param", slices) == (
        f"error[bad-slice]: `pos.weight` (param) cannot be read by {what}\n"
        "  = note: its shape is [16, 32]\n"
        "  = help: give one index or one range with a step above 0 for each dimension"
    )
