"""Which model a checkpoint is of, and what it may be called after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import pytest

from reshard.dtypes import DType
from reshard.errors import ReshardError
from reshard.language import load_layout
from reshard.language.library import families
from reshard.models.find import find_model, rename_to
from reshard.plan.bind import bind
from reshard.plan.catalog import Catalog, Fragment, LocalTensor
from reshard.plan.lay_out import lay_out
from reshard.plan.prove import prove_sources
from reshard.run.run import Run

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
    own = load_layout('layout made { "**" = [...] }')
    return Catalog("made", "", "/made", {}, tensors, own, Run(), config)


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
        "  = note: read with layout `other`\n"
        "  = help: use another layout of the model"
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
        "error[several-layouts-fit]: the names of this made checkpoint fit several "
        "models\n"
        "  = note: these match: `made.two`, `twin.two`\n"
        "  = help: choose one with `--model NAME`"
    )


def test_another_model_with_the_same_names_is_refused_unless_the_user_says_so() -> None:
    catalog = stored({"w": (3,)}, {"kind": "three"})
    with pytest.raises(ReshardError) as caught:
        find_model(catalog, extra=(MADE,))
    assert str(caught.value) == (
        "error[no-layout-fits]: by its configuration, this made checkpoint is not a known model\n"
        "  = note: its names fit `made.one`\n"
        '  = note: layout `one` requires kind == "one"\n'
        "  = help: if its tensors have the same meaning, use `--model made`\n"
        "  = help: describe the model in a UCL file, and give it with `--layout FILE#NAME`"
    )
    assert find_model(catalog, model="made", extra=(MADE,)).layout.name == "one"


def test_the_nearest_layout_is_named_where_none_fits() -> None:
    catalog = stored({"w": (3,), "q": (3,)}, {"kind": "one"})
    with pytest.raises(ReshardError) as caught:
        find_model(catalog, model="made", extra=(MADE,))
    assert str(caught.value) == (
        "error[no-layout-fits]: the names of this made checkpoint do not fit model `made`, which "
        "its configuration states\n"
        "  = note: its configuration is that of layout `made.one`\n"
        "  = note: the layout has no rule for `q`\n"
        "  = help: exclude them if the target does not need them: `--leave-out 'q'`\n"
        "  = help: describe the model in a UCL file, and give it with `--layout FILE#NAME`"
    )


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


MIXED = """
model mixed {
    axis layer = layers
    axis h     = hidden
    tensor router [layer, h] when layer >= first and (layer + 1) % step == 0
    tensor up     [layer, h] when layer < first or (layer + 1) % step != 0
    tensor norm_r [layer, h] when layer >= first and (layer + 1) % step == 0
    tensor norm_u [layer, h] when layer < first or (layer + 1) % step != 0
    tensor last   [h]
}

layout names of mixed {
    "{layer}.router" = router[h]
    "{layer}.up"     = up[h]
    "{layer}.norm"   = norm_r[h]
    "{layer}.norm"   = norm_u[h]
    "last"           = last[h]
}

layout stages of mixed {
    mesh pp
    place layer over pp
    "{local layer}.r"  = router[h]
    "{local layer}.u"  = up[h]
    "{local layer}.nr" = norm_r[h]
    "{local layer}.nu" = norm_u[h]
    "last"             = last[h] on last stage
}

layout stacked of mixed {
    "router" = router[layer, h]
    "up"     = up[layer, h]
    "norm_r" = norm_r[layer, h]
    "norm_u" = norm_u[layer, h]
    "last"   = last[h]
}
"""
(MIXED_FAMILY,) = families(MIXED, "mixed.ucl")


def mixed(routed: set[int], layers: int, config: Mapping[str, object]) -> Catalog:
    """A checkpoint whose layers in `routed` have a router, and the others none."""
    names = [f"{i}.{'router' if i in routed else 'up'}" for i in range(layers)]
    names += [f"{i}.norm" for i in range(layers)]
    return stored(dict.fromkeys([*names, "last"], (3,)), config)


@pytest.mark.parametrize(
    ("routed", "numbers"),
    [
        ({1, 2, 3}, (1, 1)),
        ({0, 1, 2, 3}, (0, 1)),
        ({1, 3}, (0, 2)),
        ({3}, (2, 2)),
        ({2, 3}, (2, 1)),
    ],
)
def test_names_tell_in_which_layers_atoms_are(routed: set[int], numbers: tuple[int, int]) -> None:
    catalog = mixed(routed, 4, {})
    found = find_model(catalog, extra=(MIXED_FAMILY,))
    assert found.catalog.config == dict(zip(("first", "step"), numbers, strict=True))
    arrangement = bind(found.layout, found.catalog)
    assert arrangement.atoms["router"].shape == (len(routed), 3)
    assert arrangement.atoms["norm_r"].shape == (len(routed), 3)
    prove_sources(arrangement)
    staged = rename_to(arrangement, found.family, "stages", {"pp": 2})
    laid = {(item.name, dict(item.coord).get("pp")) for item in lay_out(staged, {"pp": 2})}
    assert laid >= {(f"{i % 2}.r", i // 2) for i in routed}
    assert len(laid) == 9
    back = rename_to(staged, found.family, "names", {})
    assert {item.name for item in back.wholes} == {t.name for t in catalog.tensors}


def test_a_layout_that_stacks_layers_has_no_place_for_some_of_them() -> None:
    found = find_model(mixed({1, 2}, 3, {}), extra=(MIXED_FAMILY,))
    with pytest.raises(ReshardError) as caught:
        rename_to(bind(found.layout, found.catalog), found.family, "stacked", {})
    assert str(caught.value) == (
        'error[indexed-atom]: rule `"router"` of layout `stacked` stacks `layer`, but its atoms '
        "exist only at 2 of 3 indices\n"
        "  --> mixed.ucl:31:5\n"
        "   |\n"
        '31 |     "router" = router[layer, h]\n'
        "   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^ stacked here\n"
        "   |\n"
        "  = note: it exists when layer >= first and (layer + 1) % step == 0\n"
        "  = help: use a layout that has `layer` in the name"
    )
    every = find_model(mixed({0, 1, 2}, 3, {}), extra=(MIXED_FAMILY,))
    stacked = rename_to(bind(every.layout, every.catalog), every.family, "stacked", {})
    assert {item.name for item in stacked.wholes} == {"router", "norm_r", "last"}


def test_a_tensor_where_its_atom_is_not_is_refused_and_so_is_one_that_is_missing() -> None:
    layout = MIXED_FAMILY.layout("names")
    config = {"layers": 3, "hidden": 3, "first": 2, "step": 1}
    with pytest.raises(ReshardError) as caught:
        bind(layout, mixed({1, 2}, 3, config))
    assert str(caught.value) == (
        "error[indexed-atom]: `1.router` is stored, but its atom does not exist at layer 1\n"
        "  --> mixed.ucl:13:5\n"
        "   |\n"
        '13 |     "{layer}.router" = router[h]\n'
        "   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^ this rule matches it\n"
        "   |\n"
        "  = note: it exists when layer >= first and (layer + 1) % step == 0\n"
        "  = note: in 1.router.bin\n"
        "  = help: correct the model's configuration with `--set`"
    )
    whole = mixed({2}, 3, config)
    lacking = replace(whole, tensors=tuple(t for t in whole.tensors if t.name != "2.router"))
    with pytest.raises(ReshardError, match=r"unused-rule.*router"):
        bind(layout, lacking)


def test_a_layout_whose_condition_no_model_like_this_one_meets_gives_no_names() -> None:
    late = 'layout late of made when kind == "late" and positions { "l" = w[h] "p" = p[h] }'
    text = f"{TEXT}\n{late}"
    (family,) = families(text, "made.ucl")
    found = find_model(stored({"weight": (3,)}, {}), extra=(family,))
    with pytest.raises(ReshardError) as caught:
        rename_to(bind(found.layout, found.catalog), found.family, "late", {})
    assert str(caught.value) == (
        "error[other-facts]: layout `late` does not apply to this model\n"
        '  = note: it requires kind == "late" and positions\n'
        "  = note: read with layout `other`\n"
        "  = help: use another layout of the model"
    )


def test_two_layouts_that_say_the_same_of_whole_tensors_are_as_good_as_one() -> None:
    text = TEXT + 'layout again of made { "weight" = w[h] "position" = p[h] }'
    (family,) = families(text, "made.ucl")
    found = find_model(stored({"weight": (3,), "position": (3,)}, {}), extra=(family,))
    assert found.layout.name == "other"
