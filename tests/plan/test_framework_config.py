"""A framework's configuration from a model's sizes, and the model's sizes from stored shapes."""

from __future__ import annotations

from reshard.language import load_layout
from reshard.plan.framework_config import framework_config
from reshard.plan.model_values import model_values

TEXT = """
model m {
    axis layer = layers
    axis kv    = key_heads
    axis q     = heads / key_heads
    axis d     = head_dim
    axis f     = 2 * inner
    tensor w [layer, kv, q, d, f]
    tensor b [layer, f] when bias
}

layout other of m {
    config layers    = args.num_layers
    config heads     = args.heads or args.num_attention_heads
    config key_heads = args.groups
    config head_dim  = args.kv_channels or args.hidden / args.heads
    config inner     = model.ffn
    config bias      = not args.no_bias
    config is_new    = kind == "new"
    config unset     = args.unset
    "w.{layer}" = w[kv q d, f]
    "b.{layer}" = b[f]
}
"""


def test_config_lines_are_read_backwards_through_their_first_alternative() -> None:
    layout = load_layout(TEXT, "m.ucl", "other")
    values = {"layers": 3, "heads": 8, "key_heads": 2, "head_dim": 4, "inner": 5, "bias": False}
    assert framework_config(layout, {**values, "is_new": True}) == {
        "args": {"num_layers": 3, "heads": 8, "groups": 2, "kv_channels": 4, "no_bias": True},
        "model": {"ffn": 5},
        "kind": "new",
    }


ARITHMETIC = """
model m {
    axis s = positions + 2
    axis f = inner
    axis e = shared
    tensor w [s, f, e]
}

layout other of m {
    config positions = args.positions - 2
    config inner     = args.inner
    config shared    = args.all / args.inner
    "w" = w[s, f, e]
}
"""


def test_arithmetic_is_inverted_as_sizes_are_solved() -> None:
    layout = load_layout(ARITHMETIC, "m.ucl", "other")
    values = {"positions": 2048, "inner": 3, "shared": 4}
    assert framework_config(layout, values) == {
        "args": {"positions": 2050, "inner": 3, "all": 12},
    }


def test_sizes_of_axes_are_solved_for_the_names_in_them() -> None:
    layout = load_layout(TEXT, "m.ucl", "other")
    sizes = {"layer": 3, "kv": 2, "q": 4, "d": 4, "f": 10}
    env: dict[str, object] = {"bias": True, "head_dim": 99, "unrelated": 1}
    assert model_values(layout, env, sizes) == {
        "layers": 3,
        "heads": 8,
        "key_heads": 2,
        "head_dim": 4,
        "inner": 5,
        "bias": True,
    }


WHEN = """
model m { axis h = hidden tensor w [h] tensor n [h] when qk_norm tensor b [h] when bias }
layout hf of m
    when kind == "three" and qk_norm or kind == "two" and bias and not odd
        or kind == "one" and v == 1
{
    config hidden = hidden
    "w" = w[h] "n" = n[h] "b" = b[h]
}
"""


def test_a_layouts_condition_is_made_true_by_its_first_alternative_that_agrees() -> None:
    layout = load_layout(WHEN, "m.ucl", "hf")
    assert framework_config(layout, {"hidden": 2, "qk_norm": True, "bias": True}) == {
        "hidden": 2,
        "kind": "three",
    }
    assert framework_config(layout, {"bias": True}) == {"kind": "two", "odd": False}
    assert framework_config(layout, {"bias": False}) == {"kind": "one", "v": 1}
