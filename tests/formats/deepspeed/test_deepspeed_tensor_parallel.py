"""What `universal_checkpoint_info` says, as rules, and whole tensors through them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deepspeed_forge import Run, floats
from deepspeed_oracle import arrange, wholes

from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.read import read
from reshard.formats.deepspeed.tp_rules import UniversalInfo, tp_body
from reshard.storage.inert import Record


def body(shapes: list[tuple[int, ...]], **entries: object) -> str | None:
    """The rule of a parameter `w`."""
    info = UniversalInfo(Node(entries, "mp_rank_00_model_states.pt", "universal_checkpoint_info"))
    return tp_body(info, "w", shapes)


def sub(shape: tuple[object, ...], dim: int = 0, **more: object) -> dict[str, object]:
    """The entry of a parameter with parts."""
    entry = {"patterns": ["w"], "shape": shape, "partition_dim": dim}
    return {"parameter_with_sub_params": [entry], **more}


EVEN = [(4, 6), (4, 6)]
RULES = {
    "in no list": (EVEN, {}, "[rows over tp, ...]"),
    "in no list, a vector": ([(4,), (4,)], {}, "[rows over tp]"),
    "in no list, uneven": ([(5, 6), (3, 6)], {}, "[rows over tp as (5, 3), ...]"),
    "a copy": (EVEN, {"tp_replicated_parameter_patterns": ["w"]}, "[...]"),
    "a pattern matches from the start": (EVEN, {"tp_replicated_parameter_patterns": [""]}, "[...]"),
    "averaged": (EVEN, {"parameter_to_average_patterns": ["w"]}, "[...] averaged over tp"),
    "rows of a matrix": (
        EVEN,
        {"parameter_with_row_parallelism_patterns": ["w"]},
        "[_, columns over tp]",
    ),
    "rows of a block": (
        [(4, 6, 2)] * 2,
        {"parameter_with_row_parallelism_patterns": ["w"]},
        "[_, columns over tp, ...]",
    ),
    "two parts": (
        EVEN,
        {"parameter_with_2_sub_params_cat_dim_0": ["w"]},
        "[(a:4 over tp + b:4 over tp), ...]",
    ),
    "two uneven parts": (
        [(4, 6), (2, 6)],
        {"parameter_with_2_sub_params_cat_dim_0": ["w"]},
        "[(a:3 over tp as (2, 1) + b:3 over tp as (2, 1)), ...]",
    ),
    "parts": (EVEN, sub(((4, 2, 2), 6)), "[(a:4 over tp + b:2 over tp + c:2 over tp), ...]"),
    "parts of columns": (EVEN, sub((4, (8, 4)), 1), "[_, (a:8 over tp + b:4 over tp)]"),
    "parts with a size left open": (EVEN, sub(((6, 2), -1)), "[(a:6 over tp + b:2 over tp), ...]"),
    "as many equal parts": (EVEN, sub((2, -1)), "[(a:4 over tp + b:4 over tp), ...]"),
    "one part of the whole length": (EVEN, sub((8, 6)), "[rows over tp, ...]"),
    "parts within heads": (
        [(12, 6), (12, 6)],
        sub((3, (4, 2, 2), 6), 1),
        "[outer:3 (a:4 over tp + b:2 over tp + c:2 over tp), ...]",
    ),
    "parts around heads": (
        [(12, 6), (12, 6)],
        sub(((4, 2, 2), 3, 6)),
        "[(a:4 over tp + b:2 over tp + c:2 over tp) inner:3, ...]",
    ),
    "parts of given widths": (
        [(5, 6), (3, 6)],
        sub(((6, 2), 6), sub_param_shard_widths={"w": [[4, 2], [1, 1]]}),
        "[(a:6 over tp as (4, 2) + b:2 over tp), ...]",
    ),
    "parts, one of them on one rank alone": (
        [(4, 6), (2, 6)],
        sub(((4, 2), 6), sub_param_shard_widths={"w": [[2, 2], [2, 0]]}),
        "[(a:4 over tp + b:2 over tp as (2, 0)), ...]",
    ),
    "a vocabulary": (
        EVEN,
        {"vocabulary_parameter_patterns": ["w"], "original_vocab_size": 7},
        "[rows over tp truncated to 7, ...]",
    ),
    "a vocabulary without padding": (
        EVEN,
        {"vocabulary_parameter_patterns": ["w"], "original_vocab_size": 8},
        "[rows over tp, ...]",
    ),
    "a copied vocabulary": (
        EVEN,
        {
            "vocabulary_parameter_patterns": ["w"],
            "original_vocab_size": 3,
            "tp_replicated_parameter_patterns": ["w"],
        },
        "[rows truncated to 3, ...]",
    ),
    "columns of a vocabulary": (
        EVEN,
        {
            "vocabulary_parameter_patterns": ["w"],
            "original_vocab_size": 3,
            "parameter_with_row_parallelism_patterns": ["w"],
        },
        "[rows truncated to 3, columns over tp]",
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_rule(name: str) -> None:
    shapes, entries, wanted = RULES[name]
    assert body(list(shapes), **entries) == wanted


def test_a_class_of_deepspeed_is_read_like_a_dict() -> None:
    record = Record("deepspeed.checkpoint.universal_checkpoint", "SubparamShape", (), "newobj")
    record.state.append({"patterns": ["w"], "shape": ((4, 4), 6), "partition_dim": 0})
    found = body(EVEN, parameter_with_sub_params=[record])
    assert found == "[(a:4 over tp + b:4 over tp), ...]"


def info(**entries: object) -> dict[str, object]:
    return {"universal_checkpoint_info": {"universal_checkpoint_version": 0.4, **entries}}


def shards(values: np.ndarray, stored: list[list[int]]) -> dict[int, dict[str, list[float]]]:
    """By rank, the rows that it stores of a whole tensor."""
    return {rank: {"w": values[rows].reshape(-1).tolist()} for rank, rows in enumerate(stored)}


JOINED = {
    "parts": (
        sub(((4, 2, 2), 3)),
        [[0, 1, 4, 6], [2, 3, 5, 7]],
    ),
    "parts within heads": (
        sub((2, (2, 2), 3), 1),
        [[0, 2, 4, 6], [1, 3, 5, 7]],
    ),
    "parts around heads": (
        sub(((2, 2), 2, 3)),
        [[0, 1, 4, 5], [2, 3, 6, 7]],
    ),
    "parts of given widths": (
        sub(((6, 2), 3), sub_param_shard_widths={"w": [[5, 1], [1, 1]]}),
        [[0, 1, 2, 3, 4, 6], [5, 7]],
    ),
    "uneven": ({}, [[0, 1, 2, 3, 4], [5, 6, 7]]),
}


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("name", JOINED)
def test_shards_are_joined(name: str, stage: int, tmp_path: Path) -> None:
    entries, stored = JOINED[name]
    whole = np.arange(24, dtype=np.float32).reshape(8, 3) + 1
    groups = {rank: [{"w": (len(rows), 3)}] for rank, rows in enumerate(stored)}
    run = Run(
        tmp_path, groups, tp=2, stage=stage, values=shards(whole, stored), model=info(**entries)
    )
    found = wholes(arrange(read(run.write())))
    assert found["w", "master"].tolist() == whole.tolist()
    assert found["w", "exp_avg"].tolist() == (whole / 4).tolist()


def affine(stored: list[list[int]], copied: set[int]) -> dict[str, object]:
    """An affine map of single rows; some of them are on both ranks."""
    ranks = {}
    for rank, rows in enumerate(stored):
        ranks[rank] = {
            "shard_shape": [len(rows), 3],
            "pieces": [
                {
                    "shape": [1, 3],
                    "source": [3 * row, [3, 1]],
                    "dest": [3 * at, [3, 1]],
                    "locations": [0, 1] if row in copied else [rank],
                }
                for at, row in enumerate(rows)
            ],
        }
    return {"version": 1, "params": {"^w$": {"logical_shape": [8, 3], "ranks": ranks}}}


@pytest.mark.parametrize(
    ("stored", "copied", "layout"),
    [
        ([[0, 1, 2, 3], [4, 5, 6, 7]], set(), "sum"),
        ([[0, 1, 2, 6, 7], [3, 4, 5, 6, 7]], {6, 7}, "sum"),
        ([[4, 0, 7, 2], [1, 3, 5, 6]], set(), "boxes"),
        ([[6, 0, 1, 2], [3, 4, 5, 6, 7]], {6}, "boxes"),
    ],
)
@pytest.mark.parametrize("stage", [2, 3])
def test_affine_maps(
    stored: list[list[int]], copied: set[int], layout: str, stage: int, tmp_path: Path
) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(8, 3) + 1
    groups = {rank: [{"w": (len(rows), 3)}] for rank, rows in enumerate(stored)}
    model = info(affine_map=affine(stored, copied))
    run = Run(tmp_path, groups, tp=2, stage=stage, values=shards(whole, stored), model=model)
    catalog = read(run.write())
    assert ('"**" = [...]' in catalog.layout.text) == (layout == "boxes")
    found = wholes(arrange(catalog))
    assert found["w", "master"].tolist() == whole.tolist()
    assert found["w", "exp_avg_sq"].tolist() == (whole / 16).tolist()


def test_a_layout_of_one_s_own(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(8, 3) + 1
    stored = [[0, 1, 2, 3], [4, 5, 6, 7]]
    groups = {rank: [{"w": (4, 3)}] for rank in (0, 1)}
    run = Run(tmp_path, groups, tp=2, values=shards(whole, stored))
    catalog = read(run.write(), strict_layout=False)
    assert catalog.layout.text == (
        "layout deepspeed {\n"
        "    mesh pp, tp, dp\n"
        "\n"
        "    # The checkpoint does not say how these lie over the ranks:\n"
        "    #   w\n"
        "}\n"
    )
    found = wholes(arrange(catalog, 'layout mine { mesh tp "w" = [rows over tp, _] }'))
    assert found["w", "master"].tolist() == whole.tolist()


def test_buffers_are_copies(tmp_path: Path) -> None:
    groups = {rank: [{"w": (2, 3)}] for rank in (0, 1)}
    run = Run(tmp_path, groups, tp=2, model=info())
    for root in run.models.values():
        root["module"]["mask"] = run.models["mp_rank_00_model_states.pt"]["module"]["w"]
        root["buffer_names"] = ["mask"]
    catalog = read(run.write())
    assert catalog.buffers == ("mask",)
    assert '"mask" = [...]' in catalog.layout.text
    assert wholes(arrange(catalog))["mask", "param"].shape == (2, 3)


def test_an_empty_shard_at_stage_3_is_no_frozen_parameter(tmp_path: Path) -> None:
    whole = np.arange(24, dtype=np.float32).reshape(8, 3) + 1
    stored = [list(range(8)), []]
    groups = {0: [{"w": (8, 3), "n": (2,)}], 1: [{"n": (2,)}]}
    model = info(affine_map=affine(stored, set()), tp_replicated_parameter_patterns=["n"])
    values = {rank: {"w": whole.reshape(-1).tolist(), "n": [1.0, 2.0]} for rank in (0, 1)}
    run = Run(tmp_path, groups, tp=2, stage=3, values=values, model=model)
    for rank in (0, 1):
        root = run.models[f"zero_pp_rank_{rank}_mp_rank_01_model_states.pt"]
        root["frozen_param_shapes"] = {"w": (0, 3)}
        root["frozen_param_fragments"] = {"w": floats([])}
    catalog = read(run.write())
    assert catalog.frozen == ()
    assert '"w" = [rows over tp as (8, 0), ...]' in catalog.layout.text
    found = wholes(arrange(catalog))
    assert found["w", "master"].tolist() == whole.tolist()
    assert found["w", "exp_avg"].tolist() == (whole / 4).tolist()
