"""Which model a checkpoint is of, and what it may be called after."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import pytest

from reshard.api.naming import find_model, rename_to
from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.language.library import families
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog, Fragment, LocalTensor, Training

TEXT = """
model made {
    axis h = hidden
    tensor w [h]
    tensor p [h] when positions
}

layout one of made when kind == "one" {
    config positions = false
    "w" = w[h]
}

layout two of made when kind == "two" {
    config positions = true
    "w" = w[h]
    "p" = p[h]
}

layout other of made {
    "weight"   = w[h]
    "position" = p[h]
}
"""
(MADE,) = families(TEXT, "made.ucl")


def stored(shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, object]) -> Catalog:
    """A checkpoint of whole tensors, one file each."""
    tensors = tuple(
        LocalTensor(
            name, "param", (), shape, DType.F32, (Fragment(0, prod(shape), f"{name}.bin", 0),)
        )
        for name, shape in shapes.items()
    )
    own = 'layout made { "**" = [...] }'
    return Catalog("made", "", "/made", {}, tensors, own, "made", Training(), config)


def test_a_layout_of_another_kind_of_model_gives_no_names() -> None:
    found = find_model(stored({"weight": (3,)}, {}), extra=(MADE,))
    arrangement = bind(found.layout, found.catalog)
    with pytest.raises(ReshardError) as caught:
        rename_to(arrangement, found.family, "two", {})
    assert str(caught.value) == (
        "error[other-facts]: layout `two` is of models where `positions` is true, and here it is "
        "false\n"
        "  --> made.ucl:14:24\n"
        "   |\n"
        "14 |     config positions = true\n"
        "   |                        ^^^^ said here\n"
        "   |\n"
        "  = note: read through layout `other`\n"
        "  = help: name the tensors as another layout of the model does"
    )
    assert list(rename_to(arrangement, found.family, "one", {}).bound) == ["w"]


def test_the_configuration_tells_layouts_apart() -> None:
    names = {"w": (3,), "p": (3,)}
    twin = families(TEXT.replace("made", "twin").replace('"two"', '"twin"'), "twin.ucl")
    found = find_model(stored(names, {"kind": "twin"}), extra=(MADE, *twin))
    assert (found.family.name, found.layout.name) == ("twin", "two")
    with pytest.raises(ReshardError) as caught:
        find_model(stored(names, {}), extra=(MADE, *twin))
    assert str(caught.value) == (
        "error[several-layouts-fit]: the names of this made checkpoint are those of several "
        "models\n"
        "  = note: these fit: `made.two`, `twin.two`\n"
        "  = help: choose one with `--model NAME`"
    )


def test_another_model_with_the_same_names_is_refused_unless_the_user_says_so() -> None:
    catalog = stored({"w": (3,)}, {"kind": "three"})
    with pytest.raises(ReshardError) as caught:
        find_model(catalog, extra=(MADE,))
    assert str(caught.value) == (
        "error[no-layout-fits]: this made checkpoint is not of a known model, as its configuration "
        "says\n"
        "  = note: its names are those of `made.one`\n"
        '  = note: layout `one` is of checkpoints where kind == "one"\n'
        "  = help: if its tensors mean the same, say `--model made`\n"
        "  = help: describe the model in a UCL file, and give that with `--layout FILE#NAME`"
    )
    assert find_model(catalog, model="made", extra=(MADE,)).layout.name == "one"


def test_the_nearest_layout_is_named_where_none_fits() -> None:
    catalog = stored({"w": (3,), "q": (3,)}, {"kind": "one"})
    with pytest.raises(ReshardError) as caught:
        find_model(catalog, model="made", extra=(MADE,))
    assert str(caught.value).splitlines()[:3] == [
        "error[no-layout-fits]: the names of this made checkpoint are not those of model `made`",
        "  = note: it stores `w`",
        "  = note: the nearest layout is `made.one`, which has no rule for `q`",
    ]


def test_of_two_readings_that_explain_the_names_the_one_is_taken_that_claims_least() -> None:
    text = """
model tied { axis h = hidden tensor e [h] tensor head [h] when not is_tied }
layout both of tied {
    "e"    = e[h]
    "head" = head[h]
    "head" = e[h] when is_tied
}
"""
    found = find_model(stored({"e": (3,), "head": (3,)}, {}), extra=families(text, "tied.ucl"))
    assert found.catalog.config == {"is_tied": False}
