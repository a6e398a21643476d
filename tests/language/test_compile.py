"""Compiled layouts: what the planner gets of a text."""

from __future__ import annotations

import pytest

from reshard.algebra.term import Leaf, Part, Product, Sum
from reshard.errors import ReshardError
from reshard.language import compile_layout, compile_models, load_layout, parse, to_text
from reshard.language.expression import Integer, Variable
from reshard.language.layout import Axis, ModelTensor, PartitionRule, Split

MODEL = """
model m {
    axis layer = num_layers
    axis kv
    axis q
    axis h
    tensor wq [layer, kv, q, h]
    tensor wk [layer, kv, h] when grouped
    tensor norm [h]
}
"""

LAYOUT = """
layout mega of m {
    mesh pp, tp = 2, dp
    config num_layers = args.n
    place layer over pp as 8, 9
    place kv over tp padded to a multiple of 2 * tp
    "q.{local layer}" = [kv (wq[q] + wk[1]), h] when tp > 1 and grouped
    "norm" = norm[h] on last stage averaged over tp optional
    "s.{layer}" = wq[kv q, h] when not (tp > 1 and grouped)
    "k.{layer}" = wk[kv, h] when tp == 1
    file "dp{dp}.pt" { states at "{group}/{state}" }
    partition exp_avg, master over dp as buffer align 2 * dp
}
"""

TP = Split(("tp",))


def test_layout_of_a_model() -> None:
    layout = load_layout(MODEL + LAYOUT)
    assert layout.name == "mega"
    assert layout.model is not None
    assert dict(layout.model.axes) == {
        "layer": Axis("layer", Variable("num_layers")),
        "kv": Axis("kv", None),
        "q": Axis("q", None),
        "h": Axis("h", None),
    }
    assert layout.model.tensors["wk"] == ModelTensor(
        "wk", ("layer", "kv", "h"), Variable("grouped")
    )
    assert dict(layout.mesh) == {"pp": None, "tp": Integer(2), "dp": None}
    assert list(layout.mesh) == ["pp", "tp", "dp"]
    assert layout.places["layer"] == Split(("pp",), "sizes", (8, 9))
    padding = layout.places["kv"].pad_to
    assert padding is not None
    assert to_text(padding) == "2 * tp"
    assert {name: to_text(value) for name, value in layout.config.items()} == {
        "num_layers": "args.n"
    }
    (partition,) = layout.partitions
    assert isinstance(partition, PartitionRule)
    assert (partition.states, partition.over, partition.kind) == (
        ("exp_avg", "master"),
        "dp",
        "buffer",
    )
    fused, norm, single, key = layout.rules
    assert fused.atom is None
    assert fused.dims == (
        Product((Leaf("kv"), Sum((Part("wq", Leaf("q")), Part("wk", Product(())))))),
        Leaf("h"),
    )
    assert not fused.axes
    assert not fused.splits
    assert norm.atom == "norm"
    assert (norm.stage, norm.averaged_over, norm.optional) == ("last", ("tp",), True)
    assert single.pattern.fill({"layer": 3}) == "s.3"
    assert key.when is not None


def test_rules_take_the_conditions_of_their_atoms() -> None:
    layout = load_layout(MODEL + LAYOUT)
    shown = [None if rule.when is None else to_text(rule.when) for rule in layout.rules]
    assert shown == [
        "tp > 1 and grouped",
        None,
        "not (tp > 1 and grouped)",
        "tp == 1 and grouped",
    ]


def test_layout_without_a_model() -> None:
    layout = load_layout(
        """
        layout free {
            mesh tp, ep
            place cols over tp as chunk
            "a.{local e over ep}.{i}" = [_ rows:3 over tp truncated to n, _, ...]
            "b" = [(gate + up[cols x:2]), 1]
            "c" = [cols over ep]
            "d" = []
        }
        """
    )
    first, second, third, fourth = layout.rules
    assert layout.model is None
    assert first.dims == (Product((Leaf("_0"), Leaf("rows"))), Leaf("_1"))
    assert first.rest
    assert dict(first.axes) == {
        "_0": Axis("_0", None),
        "rows": Axis("rows", Integer(3)),
        "_1": Axis("_1", None),
    }
    assert dict(first.splits) == {"rows": Split(("tp",), truncated_to=Variable("n"))}
    assert [slot.axis for slot in first.pattern.slots] == ["e", "i"]
    up = Product((Leaf("cols"), Leaf("x")))
    assert second.dims == (Sum((Part("gate", Leaf("gate")), Part("up", up))), Product(()))
    assert dict(second.splits) == {"cols": Split(("tp",), "chunk")}
    assert dict(third.splits) == {"cols": Split(("ep",))}
    assert fourth.dims == ()
    assert not fourth.rest


def test_models_from_elsewhere() -> None:
    models = compile_models(parse(MODEL, "library.ucl"))
    layout = load_layout(LAYOUT, "mine.ucl", models=models)
    assert layout.model is models["m"]
    own = load_layout(MODEL.replace("axis kv", "axis kv = 3") + LAYOUT, models=models)
    assert own.model is not None
    assert own.model.axes["kv"].size == Integer(3)
    with pytest.raises(ReshardError, match=r"unknown-model"):
        load_layout(LAYOUT)


def test_all_faults_at_once_and_no_warnings_alone() -> None:
    with pytest.raises(ReshardError) as caught:
        load_layout('layout x { config y = 1 "a" = [b over tp] "b" = [c over pp] }')
    assert [item.code for item in caught.value.diagnostics] == ["unknown-axis", "unknown-axis"]
    assert caught.value.exit_code == 3
    assert load_layout('layout x { config y = 1 "a" = [b] }').name == "x"


def test_choosing_a_layout() -> None:
    document = parse('layout x { "a" = [] } layout y { "a" = [] }', "two.ucl")
    assert compile_layout(document, "y").name == "y"
    with pytest.raises(ReshardError) as caught:
        compile_layout(document, "z")
    assert str(caught.value) == (
        "error[unknown-layout]: `two.ucl` has no layout `z`\n"
        "  = note: it has `x` and `y`\n"
        "  = help: choose one with `two.ucl#x`"
    )
    with pytest.raises(ReshardError) as caught:
        load_layout("model m { }", "none.ucl")
    assert str(caught.value) == "error[unknown-layout]: `none.ucl` has no layout"
