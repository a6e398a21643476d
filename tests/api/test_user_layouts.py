"""A user's file of layouts is read like one that ships: names decide, and stages are fitted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.errors import ReshardError
from reshard.language.library import shipped_text

Fixture = Callable[[str], Path]

CASES = ("megatron_untied_pp2_uneven", "megatron_untied_tp2_pp2", "megatron_tied_pp2")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The shipped text of llama under another name."""
    path = tmp_path / "mine.ucl"
    text = shipped_text("llama").replace("model llama", "model mine")
    path.write_text(text.replace(" of llama", " of mine"), encoding="utf-8")
    return path


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [None, "megatron"])
def test_a_users_file_is_fitted_like_one_that_ships(
    case: str, name: str | None, file: Path, tmp_path: Path, fixture_checkpoint: Fixture
) -> None:
    source = fixture_checkpoint(case) / "ckpt"
    reshard.convert(source, tmp_path / "a", "universal", layout=file, layout_name=name, names="hf")
    reshard.convert(source, tmp_path / "b", "universal", model="llama", names="hf")
    assert reshard.verify(tmp_path / "a", tmp_path / "b").ok
    named = reshard.open(tmp_path / "a").parameters
    assert "model.layers.0.self_attn.q_proj.weight" in named


def test_no_layout_of_the_file_fits(file: Path, fixture_checkpoint: Fixture) -> None:
    with pytest.raises(ReshardError) as caught:
        reshard.open(fixture_checkpoint("moe_ep2_dp2_z1_fp32") / "ckpt", layout=file)
    assert caught.value.diagnostics[0].code == "no-layout-fits"


HOME = """\
layout home of llama {
    mesh tp
    place kv over tp
    place f, v over tp as chunk
    file "rank{tp}.pt" {
        state param at "model/{name}"
    }
    "tok.w"            = embed[v, h]
    "out_norm.w"       = norm[h]
    "blk{layer}.qkv.w" = [kv (wq[q d] + wk[d] + wv[d]), h]
    "blk{layer}.out.w" = wo[h, kv q d]
    "blk{layer}.gu.w"  = [(gate[f] + up[f]), h]
    "blk{layer}.dn.w"  = down[h, f]
    "blk{layer}.n1.w"  = norm1[h]
    "blk{layer}.n2.w"  = norm2[h]
}
"""


def test_a_layout_of_a_shipped_model_needs_neither_the_model_nor_all_of_its_atoms(
    tmp_path: Path, fixture_checkpoint: Fixture
) -> None:
    file = tmp_path / "home.ucl"
    file.write_text(HOME, encoding="utf-8")
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2}
    target = f"{file}#home:tp=2"
    reshard.convert(source, tmp_path / "a", "universal", states="param")
    reshard.convert(source, tmp_path / "b", target, states="param", settings=sizes)
    reshard.convert(
        tmp_path / "b", tmp_path / "c", "universal", layout=file, names="hf", settings=sizes
    )
    assert reshard.verify(tmp_path / "a", tmp_path / "c").ok

    other = fixture_checkpoint("megatron_tied_pp2") / "ckpt"  # with biases
    with pytest.raises(ReshardError) as caught:
        reshard.convert(other, tmp_path / "d", target, states="param")
    assert {item.code for item in caught.value.diagnostics} == {"unplaced-atom"}
