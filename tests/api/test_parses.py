"""No UCL text is parsed twice in one call, and no family that the configuration rules out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.formats.megatron import modules
from reshard.language import blocks, library, parser
from reshard.language.compile import compile_layouts
from reshard.language.expand import expand
from reshard.language.library import shipped, shipped_text

Parsed = list[str]

LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "intermediate_size": 53,
    "vocab_size": 97,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
}


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Parsed:
    """The texts that are parsed, and the blocks that are made of those that ship."""
    names: Parsed = []
    parse, find = parser.parse, blocks.ShippedBlocks._find

    def noted(text: str, name: str = "<text>") -> object:
        names.append(f"text {name}")
        return parse(text, name)

    def found(self: blocks.ShippedBlocks, name: blocks.BlockName) -> object:
        if name not in self._made and name in self._trees:
            names.append(" ".join(filter(None, name)))
        return find(self, name)

    monkeypatch.setattr(parser, "parse", noted)
    monkeypatch.setattr(blocks.ShippedBlocks, "_find", found)
    for function in (
        library.shipped,
        library._blocks,
        library._expander,
        library._shipped_model,
        library.shipped_layout,
        modules.description,
    ):
        function.cache_clear()
    return names


def test_no_text_is_parsed_twice(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, parsed: Parsed
) -> None:
    source = fixture_checkpoint("z3_fp32_dp2_untied") / "ckpt"
    reshard.convert(source, tmp_path / "universal", "universal")
    assert parsed == ["layout deepspeed"]
    reshard.inspect(tmp_path / "universal").to_text()
    assert parsed == ["layout deepspeed", "layout deepspeed"]


def test_a_configuration_says_which_layouts_are_parsed(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, parsed: Parsed
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    reshard.convert(source, tmp_path / "out", "hf", config=tmp_path / "config.json")
    assert parsed == [
        "layout deepspeed",
        *("model llama", "layout llama hf", "config transformers"),
    ]


def test_the_names_say_which_layouts_are_parsed(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, parsed: Parsed
) -> None:
    source = fixture_checkpoint("megatron_untied_tp2_pp2") / "ckpt"
    reshard.convert(source, tmp_path / "out", "universal", names="hf")
    assert parsed == [
        *("layout megatron", "text megatron layout"),
        *("model gemma", "model llama", "layout gemma megatron", "layout llama megatron"),
        *("config megatron_groups", "config megatron_args"),
        *("model gpt", "layout gpt megatron", "model qwen_moe", "layout qwen_moe megatron"),
        *("layout llama hf", "config transformers"),
    ]


@pytest.mark.parametrize("family", shipped(), ids=lambda family: family.name)
def test_a_layout_by_itself_is_as_in_its_text(family: library.Family) -> None:
    document = expand(parser.parse(shipped_text(family.name) or "", family.file), library.known())
    assert family.document == document
    whole = compile_layouts(document)
    assert family.layout_names == tuple(whole)
    for name, layout in whole.items():
        alone = family.layout(name)
        assert alone == layout
        assert alone.text == layout.text
        assert alone.document is not None
        own = [block for block in document.layouts if block.name.text == name]
        assert alone.document.blocks == (*document.models, *own)
