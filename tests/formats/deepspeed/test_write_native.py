"""DeepSpeed's own files at another size or stage hold what the source holds, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from deepspeed_forge import Run
from deepspeed_targets import array, bits, converted, held, same, tree
from hypothesis import given, settings
from hypothesis import strategies as st

from reshard.formats.deepspeed.read import read

Open = Callable[[str], Path]

ROUND = [
    ("z1_fp32_dp2_untied", "zero=2,dp=3"),
    ("z1_fp32_dp2_untied", "zero=1,dp=1"),
    ("z1_fp32_dp2_untied", "zero=3,dp=5"),
    ("z1_bf16_dp4_tied", "zero=3,dp=3"),
    ("z1_bf16opt_dp2_untied", "dp=4"),
    ("z1_fp32_dp2_frozen", "zero=3,dp=4"),
    ("z1_fp32_dp4_rr", "dp=3"),
    ("z1_fp32_dp4_rr", "dp=3,round_robin=0"),
    ("z2_bf16_dp2_align", "dp=3"),
    ("z2_bf16_dp2_tied", "zero=1,dp=3,param_alignment=1"),
    ("z2_bf16_dp2_tied", "zero=1,dp=3,round_robin=1"),
    ("z3_fp32_dp2_untied", "dp=3"),
    ("z3_fp32_dp2_untied", "zero=1,dp=7"),
    ("z3_bf16_dp3_untied", "zero=2,dp=2"),
    ("z3_bf16_dp2_subgroups", "dp=3"),
    ("z3_bf16_dp3_untied", "dp=2,sub_group_size=1000"),
    ("z3_fp32_dp2_frozen", "zero=2,dp=3"),
    ("z3_fp32_dp2_frozen", "dp=3"),
    ("z0_bf16_dp2", "zero=2,dp=3"),
    ("pipe_pp2_dp2_z1_fp32_tied", "dp=3"),
    ("pipe_pp2_dp2_z1_fp32_tied", "dp=1,pp=1"),
    ("toytp_tp2_dp2_z1_fp32", "zero=3,dp=3"),
    ("toytp_tp2_dp2_z1_fp32", "zero=2,dp=1"),
    ("autotp_tp2_dp2_z1_fp32", "dp=3"),
    ("autotp_tp2_dp2_z3_bf16", "zero=2,dp=1"),
    ("moe_ep2_dp2_z1_fp32", "dp=4"),
    ("moe_ep2_dp4_z1_bf16", "zero=2,dp=4,ep=4"),
    ("moe_ep2_dp4_z1_bf16", "dp=2,ep=1"),
    ("autoep_ep2_dp2_z1_bf16", "zero=2,dp=4"),
    ("autoep_ep2_dp2_z1_bf16", "zero=3,dp=4"),
    ("autoep_ep2_dp2_z3_bf16", "dp=4"),
]


@pytest.mark.parametrize(("case", "options"), ROUND)
def test_everything_is_read_back(
    case: str, options: str, fixture_checkpoint: Open, tmp_path: Path
) -> None:
    source = fixture_checkpoint(case) / "ckpt"
    target = converted(source, tmp_path / "new", f"deepspeed:{options}")
    wanted, found = held(source), held(target)
    stored = "zero=3" in options or ("z3" in case and "zero=" not in options)
    for key in list(wanted):
        name, state = key
        # Stage 3 keeps weights as master weights alone; other stages have both.
        if state == "param" and stored and (name, "master") in wanted:
            del wanted[key]
    made = {key for key in found if key not in wanted and key[1] in ("param", "master")}
    for name, state in made:
        other = wanted.get((name, "master" if state == "param" else "param"))
        assert other is not None
        values = found.pop((name, state))
        assert bits(other.astype(values.dtype)).tobytes() == bits(values).tobytes(), name
    same(wanted, found)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("z1_bf16_dp4_tied", "zero=3,dp=3"),
        ("z3_fp32_dp2_untied", "zero=1,dp=7"),
        ("z1_fp32_dp4_rr", "zero=2,dp=3"),
        ("pipe_pp2_dp2_z1_fp32_tied", "dp=3"),
        ("moe_ep2_dp4_z1_bf16", "dp=2"),
    ],
)
def test_the_state_of_training_comes_along(
    case: str, options: str, fixture_checkpoint: Open, tmp_path: Path
) -> None:
    source = read(fixture_checkpoint(case) / "ckpt")
    target = read(converted(Path(source.root).parent, tmp_path / "new", f"deepspeed:{options}"))
    assert target.training.iteration == source.training.iteration
    assert target.training.param_groups == source.training.param_groups
    state = dict(source.training.state or {})
    if "zero=3" in options or "z3" in case:
        state.pop("clip_grad", None)  # stage 3 does not keep it
    assert (target.training.state or {}) == state
    for key in ("counters", "client_state", "universal_checkpoint_info", "other", "pipeline"):
        assert (target.training.framework or {}).get(key) == (source.training.framework or {}).get(
            key
        ), key
    assert target.aliases == source.aliases


def test_the_same_source_gives_the_same_bytes(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    first = converted(source, tmp_path / "first", "deepspeed:zero=3,dp=2", threads=1)
    second = converted(source, tmp_path / "second", "deepspeed:zero=3,dp=2", threads=2)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert len(files) == 6  # the list of them included
    for file in files:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file


def test_every_checksum_in_the_files_holds(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    target = converted(source, tmp_path / "new", "deepspeed:zero=2,dp=3")
    assert (target / "latest").read_text() == "global_step3"
    names = sorted(path.name for path in (target / "global_step3").iterdir())
    assert names == [
        "mp_rank_00_model_states.pt",
        "zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "zero_pp_rank_1_mp_rank_00_optim_states.pt",
        "zero_pp_rank_2_mp_rank_00_optim_states.pt",
    ]
    for name in names:
        tree(target / "global_step3" / name)


def test_a_flat_buffer_is_laid_out_as_deepspeed_does(tmp_path: Path) -> None:
    shapes = {"w": (3, 5), "v": (7,)}
    source = Run(tmp_path / "run", [shapes], dp=2).write()
    target = converted(source, tmp_path / "new", "deepspeed:dp=3")
    # 22 elements, padded to a multiple of 2 * 3 and cut in three parts of 8.
    flat = np.array([1000.0 + i for i in range(15)] + [2000.0 + i for i in range(7)] + [0, 0])
    masters = []
    for rank in range(3):
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        optimizer = tree(target / "global_step3" / name)["optimizer_state_dict"]
        assert optimizer["group_paddings"] == [2 if rank == 2 else 0]
        assert optimizer["partition_count"] == [3]
        master = optimizer["single_partition_of_fp32_groups"][0]
        masters.append(array(master).view("<f4"))
        moment = array(optimizer["base_optimizer_state"]["state"][0]["exp_avg"]).view("<f4")
        assert moment.tolist() == (flat[8 * rank : 8 * rank + 8] / 4).tolist()
        slices = {
            key: (item.attributes["start"], item.attributes["numel"])
            for key, item in optimizer["param_slice_mappings"][0].items()
        }
        assert slices == [{"w": (0, 8)}, {"w": (0, 7), "v": (7, 1)}, {"v": (0, 6)}][rank]
    assert [len(master) for master in masters] == [8, 8, 6]
    assert np.concatenate(masters).tolist() == flat[:22].tolist()


def test_stage_3_cuts_every_parameter_by_itself(tmp_path: Path) -> None:
    source = Run(tmp_path / "run", [{"w": (3, 3), "v": (2,)}], dp=2).write()
    target = converted(source, tmp_path / "new", "deepspeed:zero=3,dp=4")
    parts = []
    for rank in range(4):
        name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        optimizer = tree(target / "global_step3" / name)["optimizer_state_dict"]
        assert optimizer["partition_count"] == 4
        parts.append(array(optimizer["fp32_flat_groups"][0]).view("<f4").tolist())
    assert parts == [
        [1000.0, 1001.0, 1002.0, 2000.0],
        [1003.0, 1004.0, 1005.0, 2001.0],
        [1006.0, 1007.0, 1008.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
    ]
    model = tree(target / "global_step3" / "zero_pp_rank_1_mp_rank_00_model_states.pt")
    assert {name: ref.shape for name, ref in model["module"].items()} == {"w": (0,), "v": (0,)}
    assert model["param_shapes"] == [{"w": (3, 3), "v": (2,)}]


def test_another_precision_rounds_from_the_master_weights(
    fixture_checkpoint: Open, tmp_path: Path
) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    target = converted(source, tmp_path / "new", "deepspeed:zero=1,dp=2,dtype=bf16")
    assert (target / "global_step3" / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt").is_file()
    config = tree(target / "global_step3" / "mp_rank_00_model_states.pt")["ds_config"]
    assert config["bf16"] == {"enabled": True}
    found = held(target)
    for (name, state), values in held(source).items():
        if state == "master":
            assert found[name, "master"].tobytes() == values.tobytes()
            rounded = values.astype(ml_dtypes.bfloat16)
            assert found[name, "param"].tobytes() == rounded.tobytes()


def test_weights_alone(fixture_checkpoint: Open, tmp_path: Path) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt"
    target = converted(source, tmp_path / "new", "deepspeed:zero=2,dp=3", states="weights")
    found = held(target)
    wanted = {key: values for key, values in held(source).items() if key[1] == "param"}
    same(wanted, {key: values for key, values in found.items() if key[1] == "param"})
    assert {state for _, state in found} == {"param", "master"}


def test_what_single_ranks_say_stays_with_the_ranks(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", [{"w": (3, 4)}], dp=2, stage=3)
    for rank in range(2):
        run.models[f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"]["seed"] = 40 + rank
    del run.models["zero_pp_rank_1_mp_rank_00_model_states.pt"]["random_ltd"]
    source = run.write()
    target = converted(source, tmp_path / "same", "deepspeed:dp=2,sub_group_size=1")
    for rank in range(2):
        name = f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
        model = tree(target / "global_step3" / name)
        assert model["seed"] == 40 + rank
        assert ("random_ltd" in model) == (rank == 0)
    target = converted(source, tmp_path / "other", "deepspeed:dp=1")
    name = "zero_pp_rank_0_mp_rank_00_model_states.pt"
    assert tree(target / "global_step3" / name)["seed"] == 40


SHAPES = st.lists(st.lists(st.integers(1, 5), max_size=3).map(tuple), min_size=1, max_size=5)


@settings(max_examples=6, deadline=None)
@given(
    st.lists(SHAPES, min_size=1, max_size=3),
    st.tuples(st.integers(1, 3), st.integers(1, 5)),
    st.tuples(st.integers(1, 3), st.integers(1, 5)),
    st.sampled_from(["", ",round_robin=1", ",param_alignment=1", ",sub_group_size=3"]),
)
def test_any_sizes_are_read_back_from_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory,
    groups: list[list[tuple[int, ...]]],
    before: tuple[int, int],
    after: tuple[int, int],
    more: str,
) -> None:
    folder = tmp_path_factory.mktemp("sizes")
    named = [
        {f"g{group}.{index}": shape for index, shape in enumerate(own)}
        for group, own in enumerate(groups)
    ]
    source = Run(folder / "source", named, stage=before[0], dp=before[1]).write()
    to = f"deepspeed:zero={after[0]},dp={after[1]}{more}"
    target = converted(source, folder / "target", to)
    back = converted(target, folder / "back", f"deepspeed:zero={before[0]},dp={before[1]}")
    wanted = {key: value for key, value in held(source).items() if key[1] != "param"}
    for written in (target, back):
        same(wanted, {key: value for key, value in held(written).items() if key[1] != "param"})
