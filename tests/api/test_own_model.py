"""A model that nobody has, added by one UCL file: to Megatron's ranks and back, on disk."""

from __future__ import annotations

import json
import re
import struct
from math import prod
from pathlib import Path

import pytest

import reshard

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-model.md"
LAYERS, HEADS, DIM, INNER, WORDS = 4, 2, 3, 4, 10
WIDTH = HEADS * DIM


def shapes() -> dict[str, tuple[int, ...]]:
    out: dict[str, tuple[int, ...]] = {"words.weight": (WORDS, WIDTH), "last.weight": (WIDTH,)}
    for layer in range(LAYERS):
        block = f"blocks.{layer}."
        out |= {
            f"{block}first.weight": (WIDTH,),
            f"{block}mix.in.weight": (3 * WIDTH, WIDTH),
            f"{block}mix.out.weight": (WIDTH, WIDTH),
            f"{block}second.weight": (WIDTH,),
            f"{block}gate.weight": (INNER, WIDTH),
            f"{block}up.weight": (INNER, WIDTH),
            f"{block}down.weight": (WIDTH, INNER),
        }
    return out


@pytest.fixture
def orchid(tmp_path: Path) -> Path:
    """A checkpoint in one file of safetensors, every element another number, and `orchid.ucl`."""
    text = re.search(r"^```ucl file=orchid.ucl\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    assert text is not None
    (tmp_path / "orchid.ucl").write_text(text[1], encoding="utf-8")
    header, data = {}, b""
    for name, shape in shapes().items():
        first = len(data) // 4
        blob = struct.pack(f"<{prod(shape)}f", *range(first, first + prod(shape)))
        span = [len(data), len(data) + len(blob)]
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": span}
        data += blob
    head = json.dumps(header).encode()
    folder = tmp_path / "orchid"
    folder.mkdir()
    raw = struct.pack("<Q", len(head)) + head + data
    (folder / "model.safetensors").write_bytes(raw)
    config = {"n_blocks": LAYERS, "n_heads": HEADS, "width": WIDTH, "inner": INNER}
    config |= {"n_words": WORDS, "model_type": "orchid"}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2), (2, 1), (1, 4)])
def test_to_megatron_and_back(orchid: Path, tp: int, pp: int) -> None:
    ucl = orchid.parent / "orchid.ucl"
    ranks, back = orchid.parent / "ranks", orchid.parent / "back"
    reshard.convert(orchid, ranks, f"megatron:tp={tp},pp={pp}", layout=ucl, layout_name="hf")
    assert len(list(ranks.glob("release/mp_rank_*"))) == tp * pp
    reshard.convert(ranks, back, "hf", layout=ucl, layout_name="megatron", names="hf")
    same = reshard.verify(orchid, back)
    assert same.ok
    assert json.loads((back / "config.json").read_text("utf-8"))["n_heads"] == HEADS


def test_a_rank_holds_the_heads_of_its_block(orchid: Path) -> None:
    ucl = orchid.parent / "orchid.ucl"
    ranks = orchid.parent / "ranks"
    reshard.convert(orchid, ranks, "megatron:tp=2,pp=2", layout=ucl, layout_name="hf")
    name = "decoder.layers.2.self_attention.linear_qkv.weight"
    fused = reshard.open(ranks, layout=ucl, layout_name="megatron").read(name, "param")
    stored = reshard.open(orchid).read("blocks.2.mix.in.weight", "param")
    assert fused.shape == (3 * WIDTH, WIDTH)
    for head in range(HEADS):
        for part in range(3):  # query, key, value
            at = (3 * head + part) * DIM
            wanted = stored[part * WIDTH + head * DIM :][:DIM]
            assert fused[at : at + DIM].tobytes() == wanted.tobytes()
