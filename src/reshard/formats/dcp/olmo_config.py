"""What OLMo-core's `config.json` says of the model, in the words of the shipped models.

Source: OLMo-core nn/transformer/config.py, nn/attention/__init__.py, nn/rope.py (1.8 to 3.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reshard.models.transformers import FACTS
from reshard.storage.bounded_json import load_bounded
from reshard.store.regular_file import read_regular

NAME = "config.json"
_MAX_NBYTES = 16 << 20

_HARMLESS = frozenset(
    """
    name type dtype backend use_flash dropout full_precision bias init_method init_seed init_std
    embedding_init_std freeze_params loss_implementation compile fused_ops _CLASS_
    use_recompute_qkv_prep tie_word_embeddings attention_rescale_factor
    """.split()  # noqa: SIM905
)
"""Last parts of names of settings that change no number that the model computes as it is trained,
or that are read below by their whole names.
"""
_PLAIN = {"partial_rotary_factor": 1.0, "activation": "silu"}
_BLOCKS = {"default": False, "reordered_norm": True}
"""Blocks that shipped models have: whether they norm what their layers give."""


def read_olmo_config(folder: Path) -> Mapping[str, object] | None:
    """The configuration of the model of a step's folder; None where there is none of OLMo-core."""
    try:
        root = load_bounded(read_regular(folder / NAME, _MAX_NBYTES))
    except (OSError, ValueError):
        return None
    if not isinstance(root, dict):
        return None
    model = root.get("model")
    if not isinstance(model, dict) or not {"d_model", "n_layers", "block"} <= model.keys():
        return None
    known = _Model(_flat(model, "")).config()
    for section, key in (("train_module", "max_sequence_length"), ("dataset", "sequence_length")):
        part = root.get(section)
        length = part.get(key) if isinstance(part, dict) else None
        if isinstance(length, int):
            return {**known, "max_position_embeddings": length}
    return known


def _flat(value: Mapping[str, object], start: str) -> dict[str, object]:
    """Every value by its name; of what is nested, the parts of the name are joined by dots."""
    out: dict[str, object] = {}
    for key, item in value.items():
        name = f"{start}{key}"
        out |= _flat(item, f"{name}.") if isinstance(item, dict) else {name: item}
    return out


class _Model:
    """The section `model`, with every value that was asked for noted."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self._used: set[str] = set()
        # Until 2.x the attention of a block was under `attention`.
        new = any(name.startswith("block.sequence_mixer.") for name in values)
        self._mixer = "block.sequence_mixer" if new else "block.attention"

    def config(self) -> dict[str, object]:
        """The same in the words of transformers, with what has no name there as facts."""
        heads = self._integer(f"{self._mixer}.n_heads")
        width = self._integer("d_model")
        sizes = {
            "num_hidden_layers": self._integer("n_layers"),
            "hidden_size": width,
            "vocab_size": self._integer("vocab_size"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._integer(f"{self._mixer}.n_kv_heads") or heads,
            "head_dim": self._integer(f"{self._mixer}.head_dim")
            or (width // heads if width and heads else None),
            "intermediate_size": self._integer("block.feed_forward.hidden_size"),
            "rms_norm_eps": self._get("block.layer_norm.eps"),
            "rope_theta": self._get(f"{self._mixer}.rope.theta"),
            "tie_word_embeddings": self._get("tie_word_embeddings") is True,
        }
        kind = self._kind()
        facts = self._facts(sizes["rms_norm_eps"])
        known: dict[str, object] = {} if kind is None else {"model_type": kind}
        known |= {name: value for name, value in sizes.items() if value is not None}
        return {**known, **({FACTS: facts} if facts else {})}

    def _kind(self) -> str | None:
        """The type of transformers that computes the same."""
        after = _BLOCKS.get(str(self._get("block.name") or "default"))
        normed = self._has(f"{self._mixer}.qk_norm")
        by_head = self._get(f"{self._mixer}.use_head_qk_norm") is True
        window = self._has(f"{self._mixer}.sliding_window")
        if after is True and normed and not by_head:
            return "olmo3" if window else "olmo2"
        if after is False and not window and (not normed or by_head):
            return "qwen3" if normed else "llama"
        return None

    def _facts(self, eps: object) -> dict[str, object]:
        """What the model computes that its family need not."""
        facts: dict[str, object] = {}

        def note(name: str, *usual: object) -> None:
            if (value := self._get(name)) not in usual:
                facts[name] = value

        scaling = self._scaling(f"{self._mixer}.rope.scaling")
        if scaling:
            facts["rope_scaling"] = scaling
        for name, key in ((self._mixer, "attention_bias"), ("block.feed_forward", "mlp_bias")):
            if self._get(f"{name}.bias"):
                facts[key] = True
        for norm in ("block.layer_norm", f"{self._mixer}.qk_norm", "lm_head.layer_norm"):
            note(f"{norm}.name", None, "rms", "fused_rms", "cute_rms")
            note(f"{norm}.eps", None, eps)
            if self._get(f"{norm}.bias"):
                facts[f"{norm}.bias"] = True
        note(f"{self._mixer}.rope.name", None, "default", "fused")
        if not self._has(f"{self._mixer}.rope"):
            facts["rope"] = False
        for name in ("name", "block.name", "lm_head.name", "block.feed_forward.name"):
            note(name, None, "default", *_BLOCKS)
        for name, value in self._values.items():
            last = name.rpartition(".")[2]
            is_plain = last in _HARMLESS or last.startswith("mxfp8_") or _PLAIN.get(last) == value
            if value and name not in self._used and not is_plain:
                facts[name] = value
        return facts

    def _scaling(self, start: str) -> dict[str, object]:
        """The scaling of rotary positions as transformers writes it."""
        if not self._has(start):
            return {}
        kind = str(self._get(f"{start}._CLASS_")).rpartition(".")[2]
        factor = self._get(f"{start}.factor")
        context = self._get(f"{start}.old_context_len")
        if kind.startswith("PI"):
            return {"rope_type": "linear", "factor": factor}
        if kind.startswith("Stepwise"):
            low = self._number(f"{start}.low_freq_proportion", 0.0)
            high = self._number(f"{start}.high_freq_proportion", 0.25)
            return {
                "rope_type": "llama3",
                "factor": factor,
                "original_max_position_embeddings": context,
                "low_freq_factor": 1.0 / (1.0 - low),
                "high_freq_factor": 1.0 / high,
            }
        return {}  # its settings are facts without a name in transformers

    def _has(self, start: str) -> bool:
        return any(
            name.startswith(f"{start}.") and value is not None
            for name, value in self._values.items()
        )

    def _get(self, name: str) -> object:
        self._used.add(name)
        return self._values.get(name)

    def _integer(self, name: str) -> int | None:
        value = self._get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def _number(self, name: str, default: float) -> float:
        value = self._get(name)
        return float(value) if isinstance(value, int | float) else default
