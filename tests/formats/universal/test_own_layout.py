"""The layout that a universal checkpoint carries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from universal_source import arrange, convert, local, make_catalog, numbers, read_whole

from reshard.formats.universal.read import read
from reshard.language import compile_models, load_layout, parse
from reshard.plan.bind import bind
from reshard.plan.lay_out import lay_out


def written(tmp_path: Path, layout: str, mesh: dict[str, int], tensors: Any, **facts: Any) -> str:
    """The layout of what is written of a source; it reads as the same atoms."""
    source = arrange(make_catalog(tmp_path / "src", layout, mesh, tensors, **facts))
    output = convert(source, tmp_path / "out")
    assert output.warnings == ()
    again = arrange(read(tmp_path / "out"))
    assert again.atoms == source.atoms
    assert again.wholes == source.wholes
    return again.catalog.layout.text


def test_the_placements_of_the_source_are_kept(tmp_path: Path) -> None:
    layout = """
    layout gpt {  # tensor parallel
        mesh tp = 2, dp = 1
        "w" = [rows over tp, _]
        "h.{local i over tp}.w" = [...]
    }
    """
    tensors = [local("w", "param", {"tp": tp}, numbers(tp, 2, 2)) for tp in range(2)]
    tensors += [local("h.0.w", "param", {"tp": tp}, numbers(tp, 2, 2)) for tp in range(2)]
    assert written(tmp_path, layout, {"tp": 2, "dp": 1}, tensors) == (
        "layout gpt {  # tensor parallel\n"
        "    mesh tp, dp\n"
        '    "w"                     = [rows over tp, _]\n'
        '    "h.{local i over tp}.w" = [...]\n'
        "}\n"
    )
    assert ("h.1.w", "param") in read_whole(read(tmp_path / "out"))


def test_padding_is_kept_for_whoever_cuts_it_again(tmp_path: Path) -> None:
    layout = """
    layout gpt {
        mesh tp
        place long over tp padded to a multiple of 8
        "w" = [rows:(words + 2) over tp padded to a multiple of 2 * tp, _:(columns)]
        "v" = [rows over tp truncated to words, _]
        "u" = [long:5]
    }
    """
    tensors = [local("w", "param", {"tp": tp}, numbers(9 * tp, 4, 2)) for tp in range(2)]
    tensors += [local("v", "param", {"tp": tp}, numbers(9 * tp, 2, 2)) for tp in range(2)]
    tensors += [local("u", "param", {"tp": tp}, numbers(9 * tp, 4)) for tp in range(2)]
    config = {"words": 3, "columns": 2}
    text = written(tmp_path, layout, {"tp": 2}, tensors, config=config)
    assert text == (
        "layout gpt {\n"
        "    mesh tp\n"
        "    place long over tp padded to a multiple of 8\n"
        '    "w" = [rows:5 over tp padded to a multiple of 2 * tp, _:2]\n'
        '    "v" = [rows over tp truncated to 3, _]\n'
        '    "u" = [long:5]\n'
        "}\n"
    )
    again = arrange(read(tmp_path / "out"))
    shapes = [(item.name, item.shape) for item in lay_out(again, {"tp": 2})]
    assert shapes == [("w", (4, 2))] * 2 + [("v", (2, 2))] * 2 + [("u", (4,))] * 2


def test_stated_widths_are_kept(tmp_path: Path) -> None:
    layout = """
    layout gpt {
        mesh tp, ep
        "w"                              = [rows over tp as (3, 1)]
        "e.{local e over ep as (2, 1)}.w" = [...]
    }
    """
    tensors = [
        local("w", "param", {"tp": 0}, numbers(0, 3)),
        local("w", "param", {"tp": 1}, numbers(3, 1)),
        local("e.0.w", "param", {"ep": 0}, numbers(0, 2)),
        local("e.1.w", "param", {"ep": 0}, numbers(2, 2)),
        local("e.0.w", "param", {"ep": 1}, numbers(4, 2)),
    ]
    text = written(tmp_path, layout, {"tp": 2, "ep": 2}, tensors)
    assert "[rows over tp as (3, 1)]" in text
    again = arrange(read(tmp_path / "out"))
    shapes = [item.shape for item in lay_out(again, {"tp": 2}) if item.name == "w"]
    assert shapes == [(3,), (1,)]


def test_conditions_that_hold_go_and_rules_that_do_not_apply(tmp_path: Path) -> None:
    layout = """
    layout gpt {
        mesh pp
        "head" = [rows, _] when pp > 1
        "other" = [...] when pp == 1
        "spare" = [...] optional
    }
    """
    tensors = [local("head", "param", {"pp": 1}, numbers(0, 2, 2))]
    assert written(tmp_path, layout, {"pp": 2}, tensors) == (
        'layout gpt {\n    mesh pp\n    "head" = [rows, _]\n}\n'
    )


def test_a_layout_that_does_not_read_whole_tensors_gives_way_to_a_plain_one(
    tmp_path: Path,
) -> None:
    layout = """
    model mlp {
        axis f = width
        axis g
        axis h
        tensor up [f, g, h]
    }

    layout heads of mlp {
        "up.weight" = up[f g, h]
    }
    """
    tensors = [local("up.weight", "param", {}, numbers(0, 6, 2), 1)]
    catalog = make_catalog(tmp_path / "src", layout, {}, tensors)
    source = bind(load_layout(layout), catalog, settings={"width": 3})
    output = convert(source, tmp_path / "out")
    (warning,) = output.warnings
    assert warning.render() == (
        "warning[plain-layout]: `layout.ucl` will not say how layout `heads` cuts its tensors\n"
        "  = note: read through that layout, the whole tensors would be others: "
        "dimension 0 of `up.weight` is not enough to infer the sizes of its axes\n"
        "  = help: to cut them again, give a layout with `--layout`"
    )
    again = read(tmp_path / "out")
    assert again.layout.text == 'layout universal {\n    "**" = [...]\n}\n'
    assert read_whole(again) == {("up.weight", "param"): numbers(0, 6, 2).tobytes()}


def test_a_parameter_that_is_one_number_keeps_its_rule(tmp_path: Path) -> None:
    layout = 'layout l { "scale" = [] "w" = [...] }'
    tensors = [
        local(name, state, {}, numbers(1), 1)
        for name in ("scale", "w")
        for state in ("param", "exp_avg", "step")
    ]
    text = written(tmp_path, layout, {}, tensors)
    assert text == 'layout l {\n    "scale" = []\n    "w"     = [...]\n}\n'


def test_a_model_from_another_text_comes_along(tmp_path: Path) -> None:
    model = "model mlp {\n    axis f\n    axis h\n\n    tensor up [f, h]\n}\n"
    layout = 'layout sharded of mlp { mesh tp place f over tp "up.weight" = up[f, h] }'
    tensors = [local("up.weight", "param", {"tp": tp}, numbers(tp, 2, 3)) for tp in range(2)]
    catalog = make_catalog(tmp_path / "src", 'layout l { "**" = [...] }', {"tp": 2}, tensors)
    source = bind(load_layout(layout, models=compile_models(parse(model))), catalog)
    output = convert(source, tmp_path / "out")
    assert output.warnings == ()
    again = read(tmp_path / "out")
    assert again.layout.text == (
        model + "\nlayout sharded of mlp {\n    mesh tp\n    place f over tp\n"
        '    "up.weight" = up[f, h]\n}\n'
    )
    assert arrange(again).atoms == source.atoms
