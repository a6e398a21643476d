"""Names for numbered states: the one assignment that is possible, or none."""

from __future__ import annotations

import struct
from itertools import combinations
from pathlib import Path

import pytest
from deepspeed_forge import Run, Tensor, floats
from deepspeed_oracle import arrange, wholes
from hypothesis import given
from hypothesis import strategies as st

from reshard.dtypes import DType
from reshard.formats.deepspeed.read import read
from reshard.run.numbering import NoOneWayError, assign
from reshard.run.rounding import rounds_to


@given(
    st.lists(st.sampled_from("xyz"), min_size=1, max_size=6),
    st.lists(st.lists(st.sampled_from("xyz"), max_size=3), min_size=1, max_size=2),
)
def test_an_assignment_is_found_where_it_is_the_only_one(
    shapes: list[str], groups: list[list[str]]
) -> None:
    names = [f"n{index}" for index in range(len(shapes))]
    ways = slow(shapes, groups)

    def step(group: int, position: int, name: str) -> int | None:
        fits = groups[group][position] == shapes[names.index(name)]
        return position + 1 if fits else None

    goal = [len(group) for group in groups]
    if len(ways) != 1:
        with pytest.raises(NoOneWayError):
            assign(goal, names, step, spare=None)
        return
    found = assign(goal, names, step, spare=None)
    assert {names.index(name): place for name, place in found.items()} == ways[0]


def slow(shapes: list[str], groups: list[list[str]]) -> list[dict[int, tuple[int, int]]]:
    """Every way to give each group an ascending choice of names with its shapes."""
    ways: list[dict[int, tuple[int, int]]] = [{}]
    for number, group in enumerate(groups):
        ways = [
            {**way, **{index: (number, at) for at, index in enumerate(chosen)}}
            for way in ways
            for chosen in combinations([i for i in range(len(shapes)) if i not in way], len(group))
            if [shapes[index] for index in chosen] == group
        ]
    return ways


def bf16(values: list[float]) -> Tensor:
    """Numbers that bf16 holds exactly."""
    words = [struct.unpack("<I", struct.pack("<f", value))[0] >> 16 for value in values]
    return Tensor(DType.BF16, (len(values),), struct.pack(f"<{len(words)}H", *words))


def run(path: Path, module: dict[str, object], optimizer: dict[str, object]) -> Path:
    """A run without ZeRO."""
    made = Run(path, [{}], dp=1)
    made.shards.clear()
    root = made.models["mp_rank_00_model_states.pt"]
    root.update(module=module, optimizer=optimizer, param_shapes=None)
    root["ds_config"] = {"zero_optimization": {"stage": 0}}
    return made.write()


def test_master_weights_tell_parameters_of_one_shape_apart(tmp_path: Path) -> None:
    module = {name: bf16([value, value]) for name, value in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    inner = {
        "state": {n: {"exp_avg": floats([n + 0.5] * 2), "step": 3} for n in (0, 1)},
        "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}],
    }
    masters = [[floats([3.0, 3.0])], [floats([1.0, 1.0])]]
    optimizer = {"optimizer_state_dict": inner, "fp32_groups": masters, "cur_scale": 1.0}
    catalog = read(run(tmp_path, module, optimizer))
    found = wholes(arrange(catalog))
    assert found["c", "exp_avg"].tolist() == [0.5, 0.5]
    assert found["a", "exp_avg"].tolist() == [1.5, 1.5]
    assert found["a", "step"].tolist() == 3
    assert catalog.frozen == ("b",)
    assert [group["params"] for group in catalog.training.param_groups] == [["c"], ["a"]]
    assert catalog.training.framework is not None
    assert catalog.training.framework["optimizer_other"] == {"cur_scale": 1.0}


def test_a_fused_optimizer_s_buffers_are_taken_apart(tmp_path: Path) -> None:
    module = {"a": bf16([1.0, 2.0]), "b": bf16([3.0]), "c": bf16([4.0, 5.0])}
    inner = {
        "state": {0: {"exp_avg": floats([0.25, 0.5, 0.75, 1.0])}, 1: {"exp_avg": floats([8.0])}},
        "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.2, "params": [1]}],
    }
    flat = [floats([1.0, 2.0, 4.0, 5.0]), floats([3.0])]
    optimizer = {"optimizer_state_dict": inner, "fp32_groups_flat": flat}
    found = wholes(arrange(read(run(tmp_path, module, optimizer))))
    assert found["a", "exp_avg"].tolist() == [0.25, 0.5]
    assert found["c", "exp_avg"].tolist() == [0.75, 1.0]
    assert found["b", "exp_avg"].tolist() == [8.0]
    assert found["c", "master"].tolist() == [4.0, 5.0]


@pytest.mark.parametrize(
    ("word", "half"),
    [
        (0x3F800000, 0x3F80),
        (0x3F808000, 0x3F80),  # a tie goes to the even one
        (0x3F818000, 0x3F82),
        (0x3F808001, 0x3F81),
        (0x7F7FFFFF, 0x7F80),  # to infinity
        (0x80000000, 0x8000),
        (0x7FC00001, 0x7FC0),
    ],
)
def test_bf16_is_rounded_to_nearest_and_even(word: int, half: int) -> None:
    master = struct.pack("<I", word)
    assert rounds_to(master, struct.pack("<H", half), DType.BF16)
    assert not rounds_to(master, struct.pack("<H", half ^ 1), DType.BF16)


@pytest.mark.parametrize(("value", "half"), [(1.0, 0x3C00), (65520.0, 0x7C00), (-1e9, 0xFC00)])
def test_fp16_is_rounded(value: float, half: int) -> None:
    assert rounds_to(struct.pack("<f", value), struct.pack("<H", half), DType.F16)
