"""Round trips of every real checkpoint of the fixtures, and what is told where one fails."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

import reshard
import safetensors_files
from real_cases import FORMATS, READABLE
from reshard.api import stages
from reshard.api.source import open_source
from reshard.api.training_facts import compare_facts
from reshard.engine.made_files import MadeFiles
from reshard.errors import source_error
from reshard.plan.arrangement import Arrangement
from reshard.plan.build import OnDrift, build_plan
from reshard.plan.output import PlacedSpec
from reshard.plan.plan import Copy, Plan

WAYS = ("deepspeed:zero=1,dp=4", "deepspeed:zero=2,dp=2", "deepspeed-universal", "universal")
PIPELINE = ("deepspeed:zero=1,dp=4", "deepspeed-universal", "universal", "deepspeed:zero=1,dp=2")


def ways_of(case: str) -> tuple[str, ...]:
    """Targets that a case can be written as."""
    if FORMATS[case] != "deepspeed":
        return ("universal",)
    if case.startswith("pipe"):
        return PIPELINE
    if case.startswith("moe"):
        return WAYS  # DeepSpeed has no stage 3 for these experts
    if "elastic" in case:
        return ("universal", "deepspeed-universal")  # it does not tell its param groups' settings
    return (*WAYS, "deepspeed:zero=3,dp=4")


@pytest.mark.parametrize(("number", "case"), list(enumerate(READABLE)), ids=READABLE)
def test_every_case_comes_back(
    number: int, case: str, fixture_checkpoint: Callable[[str], Path]
) -> None:
    source = fixture_checkpoint(case) / "ckpt"
    ways = ways_of(case)
    try:
        reshard.open(source)
    except reshard.ReshardError as refused:
        with pytest.raises(reshard.ReshardError, match=refused.diagnostics[0].code):
            reshard.roundtrip(source, ["universal"])
        return
    found = reshard.roundtrip(source, [ways[number % len(ways)]])
    assert found.ok, found.to_text()
    way = found.ways[0]
    assert way.tensors
    assert way.places >= way.tensors
    assert way.missing == ()


def test_a_chain_is_a_way_of_its_own(fixture_checkpoint: Callable[[str], Path]) -> None:
    via = ["deepspeed:zero=1,dp=4", "deepspeed:zero=3,dp=2", "universal", "deepspeed:zero=2,dp=2"]
    found = reshard.roundtrip(fixture_checkpoint("autoep_ep2_dp2_z1_bf16") / "ckpt", via)
    assert [way.ok for way in found.ways] == [True] * 5
    assert found.ways[-1].via == tuple(via)
    # Weights that stage 3 leaves out are made of the master weights again.
    assert {item.state for item in found.ways[1].lost} == {"param"}
    assert found.ways[-1].lost == ()
    assert found.ways[-1].tensors == found.ways[0].tensors


def test_nothing_of_the_tensors_is_written(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What large arrays are read as is made by the plan: the files have holes in their places."""
    seen: list[bytes] = []

    class Watched(MadeFiles):
        def __init__(self, plan: Plan, *args: object, **named: object) -> None:
            super().__init__(plan, *args, **named)  # type: ignore[arg-type]
            folder = named["folder"]
            assert isinstance(folder, Path)
            for item in plan.placed:
                nbytes = item.array.spec.nbytes
                if nbytes > stages.KEPT_NBYTES:
                    with (folder / item.file).open("rb") as file:
                        file.seek(item.byte_offset)
                        seen.append(file.read(nbytes))

    monkeypatch.setattr("reshard.engine.made_files.MadeFiles", Watched)
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    assert reshard.roundtrip(source, ["deepspeed:zero=2,dp=2"], work=tmp_path).ok
    assert len(seen) > 20
    assert not any(map(any, seen))
    assert list(tmp_path.iterdir()) == []


def _swapped(plan: Plan) -> Plan:
    """A plan in which the first two copies of one shape take each other's place."""
    for number, item in enumerate(plan.placed):
        copies = list(item.array.copies)
        for first, second in combinations(range(len(copies)), 2):
            if copies[first].move.shape != copies[second].move.shape:
                continue
            one, other = copies[first], copies[second]
            copies[first], copies[second] = _moved(other, one), _moved(one, other)
            array = replace(item.array, copies=tuple(copies))
            placed = (*plan.placed[:number], replace(item, array=array))
            return Plan(plan.root, (*placed, *plan.placed[number + 1 :]))
    raise AssertionError("no array has two copies of one shape")


def _moved(copy: Copy, to: Copy) -> Copy:
    origin = copy.origins[0]
    move = replace(origin.move, dst_offset=to.move.dst_offset)
    return replace(copy, origins=(replace(origin, move=move),))


@pytest.mark.parametrize("how", [False, True], ids=["planned", "written"])
def test_a_writer_that_mixes_up_two_pieces_is_caught(
    how: bool, fixture_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tensors of one shape take each other's place in a flat buffer."""

    def broken(arrangement: Arrangement, placed: Iterable[PlacedSpec], **named: OnDrift) -> Plan:
        made = build_plan(arrangement, placed, **named)
        native = any(item.file.endswith("optim_states.pt") for item in made.placed)
        return _swapped(made) if native else made

    monkeypatch.setattr("reshard.api.converting.build_plan", broken)
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    found = reshard.roundtrip(source, ["deepspeed:zero=1,dp=1"], materialize=how)
    assert not found.ok
    way = found.ways[0]
    assert [item.what for item in way.mismatches] == ["values", "values"]
    first, second = way.mismatches
    assert (first.state, first.numel) == (second.state, second.numel)
    assert first.a is not None
    assert first.b is not None
    assert second.a is not None
    assert (first.b.value, second.a.value) == (second.a.value, second.a.value)
    assert [item.b.file for item in way.mismatches if item.b] == 2 * [
        "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    ]
    text = " ".join(found.to_text().split())
    assert f"first at {list(first.index)} of {first.name} ({first.state})" in text
    for side, element in (("A", first.a), ("B", first.b)):
        assert f"{side} {element.value} in {element.file}, byte {element.byte_offset:,}" in text
    assert found.to_junit().count("<failure") == 1


def test_a_target_that_holds_less_is_a_failure_unless_it_may_be(
    fixture_checkpoint: Callable[[str], Path],
) -> None:
    """Stage 3 has no place for weights; here they are not the master weights rounded."""
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    found = reshard.roundtrip(source, ["deepspeed:zero=3,dp=2"], states="param,master")
    assert found.ok
    assert {item.derived for item in found.ways[0].lost} == {"master"}


def test_weights_that_are_not_the_master_weights_rounded_are_lost(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "universal"
    reshard.convert(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt", folder, "universal")
    entry = next(
        item
        for item in open_source(folder).catalog.tensors
        if (item.name, item.state) == ("model.norm.weight", "param")
    )
    with (folder / entry.file).open("r+b") as file:
        file.seek(entry.fragments[0].byte_offset)
        file.write(np.array([3], "<u2").tobytes())
    via = ["deepspeed:zero=3,dp=2"]
    found = reshard.roundtrip(folder, via)
    assert [(x.name, x.state) for x in found.ways[0].missing] == [("model.norm.weight", "param")]
    assert not found.ok
    assert "failed: 1 of 1 round trip" in found.to_text()
    assert "lost: param of 1 tensor" in found.to_text()
    assert found.to_junit().count("<failure") == 1
    assert reshard.roundtrip(folder, via, allow_loss=True).ok
    assert reshard.roundtrip(folder, via, states="master,exp_avg,exp_avg_sq,step").ok


def test_facts_are_compared_by_value(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    other = tmp_path / "other"
    reshard.convert(source, other, "deepspeed:zero=3,dp=2")
    left, right = (open_source(path).catalog for path in (source, other))
    assert [str(item) for item in compare_facts(left, right)] == ["training.state.clip_grad: 1.0"]
    assert compare_facts(left, left) == ()


def test_a_source_that_is_damaged_is_no_failed_proof(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = tmp_path / "ckpt"
    shutil.copytree(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt", folder)
    (folder / "global_step3" / "bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt").unlink()
    with pytest.raises(reshard.ReshardError) as caught:
        reshard.roundtrip(folder, ["universal"])
    assert caught.value.exit_code == 4


def test_what_belongs_to_no_parameter_is_not_lost_in_silence(
    fixture_checkpoint: Callable[[str], Path],
) -> None:
    source = fixture_checkpoint("dcp_titan_dp2") / "ckpt"
    found = reshard.roundtrip(source, ["deepspeed-universal"])
    assert {(item.name, item.state) for item in found.ways[0].missing} == {
        ("train_state.step", "extra"),
        ("train_state.ntokens_seen", "extra"),
    }
    assert (found.ok, found.ways[0].mismatches) == (False, ())


SIZES = {"num_attention_heads": 4, "num_key_value_heads": 2}


def test_what_no_reader_reads_is_taken_as_it_was_planned(
    fixture_checkpoint: Callable[[str], Path],
) -> None:
    """DeepSpeed's universal form joins the experts of its ranks, and does not state of how many."""
    source = fixture_checkpoint("moe_ep2_dp2_z1_fp32") / "ckpt"
    way = reshard.roundtrip(source, ["deepspeed-universal"]).ways[0]
    assert (way.ok, way.held[0].is_read, way.facts) == (True, False, ())
    assert way.tensors == 152


def test_a_target_of_other_names_comes_back_under_the_first_ones(
    fixture_checkpoint: Callable[[str], Path],
) -> None:
    """And a reader that holds tensors against each other at once is given them."""
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    found = reshard.roundtrip(source, ["megatron:tp=1", "megatron-dist"], settings=SIZES)
    assert found.ok, found.to_text()
    assert [way.tensors for way in found.ways] == [100, 100, 100]
    assert [way.held[0].is_written for way in found.ways] == [True, False, True]


def test_weights_that_others_tell_are_not_lost(fixture_checkpoint: Callable[[str], Path]) -> None:
    """FSDP keeps fp32 weights alone: those of bf16 are these rounded."""
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    way = reshard.roundtrip(source, ["dcp:dp=2"]).ways[0]
    assert way.ok, way.mismatches
    assert way.lost
    assert {item.state for item in way.lost} <= {"param", "master"}
    assert all(item.derived for item in way.lost)


def test_a_model_folder_holds_weights_alone(fixture_checkpoint: Callable[[str], Path]) -> None:
    source = fixture_checkpoint("megatron_untied_tp2_pp2") / "ckpt"
    found = reshard.roundtrip(source, ["hf"])
    assert (found.ok, found.ways[0].mismatches) == (False, ())
    assert {item.why for item in found.ways[0].missing} == {"a model folder holds weights only"}
    assert reshard.roundtrip(source, ["hf"], states="weights").ok


def test_layers_that_a_target_stacks_come_back_one_by_one(
    fixture_checkpoint: Callable[[str], Path],
) -> None:
    source = fixture_checkpoint("megatron_dist_layers") / "ckpt"
    found = reshard.roundtrip(source, ["megatron-dist"])
    assert found.ok, found.to_text()
    assert found.ways[0].tensors == 60


def test_a_target_that_cannot_be_read_is_a_failure_of_the_way(
    fixture_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source is sound: exit code 6, not 4."""

    def broken(*_: object) -> str:
        raise source_error("replica-mismatch", "copies of `x` (param) differ")

    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    monkeypatch.setattr("reshard.engine.compare.compare", broken)
    found = reshard.roundtrip(source, ["deepspeed:zero=1,dp=3"])
    assert not found.ok
    assert [item.code for item in found.ways[0].faults] == ["replica-mismatch"]
    assert "via deepspeed:zero=1,dp=3: cannot be read back" in found.to_text()
    assert found.to_junit().count("<failure") == 2


def test_a_mask_comes_back_as_a_mask(tmp_path: Path) -> None:
    source = safetensors_files.save(
        tmp_path / "s" / "model.safetensors",
        {"a.mask": ("BOOL", [4], b"\1\0\1\1"), "w": ("F32", [2], b"12345678")},
    )
    assert reshard.roundtrip(source, ["deepspeed-universal", "dcp:dp=2"]).ok


def test_arguments_that_come_back_as_others(fixture_checkpoint: Callable[[str], Path]) -> None:
    """A model folder has no place for those that change nothing of the model."""
    source = fixture_checkpoint("megatron_untied_tp2_pp2") / "ckpt"
    settings = {"rms_norm_eps": 1e-5, "rope_theta": 10000}
    ways = reshard.roundtrip(
        source, ["hf", "megatron:tp=1"], states="weights", settings=settings
    ).ways
    kept, through = ways[1], ways[2]
    assert not [item for item in kept.facts if item.path.startswith("args.")]
    lost = {item.path for item in through.facts if item.fate == "not kept"}
    assert {"args.transformer_impl", "args.attention_backend"} <= lost
    assert "args.num_query_groups" not in {item.path for item in through.facts}
