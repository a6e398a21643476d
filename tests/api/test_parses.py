"""No UCL text is parsed twice in one call, and no family that the configuration rules out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.language import library, parser
from reshard.language.library import shipped
from reshard.models.stated import types_of

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
    """The names of the texts that are parsed."""
    names: Parsed = []
    parse = parser.parse

    def noted(text: str, name: str = "<text>") -> object:
        names.append(name)
        return parse(text, name)

    monkeypatch.setattr(parser, "parse", noted)
    for function in (library.shipped, library._written):
        function.cache_clear()
    return names


def test_no_text_is_parsed_twice(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, parsed: Parsed
) -> None:
    source = fixture_checkpoint("z3_fp32_dp2_untied") / "ckpt"
    reshard.convert(source, tmp_path / "universal", "universal")
    assert parsed == ["deepspeed layout"]
    reshard.inspect(tmp_path / "universal").to_text()
    assert parsed == ["deepspeed layout", "universal layout"]


def test_a_configuration_says_which_families_are_parsed(
    fixture_checkpoint: Callable[[str], Path], tmp_path: Path, parsed: Parsed
) -> None:
    source = fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    reshard.convert(source, tmp_path / "out", "hf", config=tmp_path / "config.json")
    assert parsed == ["deepspeed layout", "llama.ucl", "shared.ucl"]


def test_the_types_of_a_family_stand_in_its_text() -> None:
    for family in shipped():
        assert all(family.may_be_of(kind) for kind in types_of(family))
        assert not types_of(family) or not family.may_be_of("no such type")
