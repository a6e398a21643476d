"""Short forms mean the long text that they stand for; faults in them point to what was written."""

from __future__ import annotations

from pathlib import Path

import pytest

from reshard.errors import ReshardError, render_all
from reshard.language import compile_layout, format_document, parse
from reshard.language.check import check
from reshard.language.parser import parse as parse_as_written

RIGHT = (Path(__file__).parent / "right_short.ucl").read_text(encoding="utf-8")

MODEL = """\
model m {
    axis layer = n
    axis e     = experts
    axis f     = inner
    axis h     = width

    tensor up    [layer, f, h]
    tensor up_b  [layer, f] when bias
    tensor gate  [layer, f, h]
    tensor norm  [h]
    tensor exp   [layer, e, f, h] when moe
}
"""

A = """\
layout a of m {
    mesh pp, tp
    place layer over pp
    place f over tp
    config n = layers
    config bias = has_bias

    "h.{local layer}.up.weight"   = up[f, h]
    "h.{local layer}.up.bias"     = up_b[f]
    "h.{local layer}.gate.weight" = gate[f, h] when not te
    "h.{local layer}.w.weight"    = gate[f, h] when te
    "norm.weight"                 = norm[h] on last stage
    "norm.weight"                 = norm[h] on first stage when tied and pp > 1
    "h.{local layer}.{e}.w"       = exp[f, h]
}
"""


def written_out(text: str, layout: str | None = None) -> str:
    """The canonical long text of a document, or of one of its layouts, without its model."""
    document = parse(text, "x.ucl")
    blocks = document.blocks if layout is None else ()
    if layout is not None:
        blocks = tuple(block for block in document.layouts if block.name.text == layout)
    return format_document(type(document)(blocks))


def lines(text: str) -> list[str]:
    """The lines of a canonical text, without those of alignment and order."""
    return sorted(" ".join(line.split()) for line in text.splitlines() if line.strip())


def same(short: str, long: str, layout: str) -> None:
    """Hold a layout in short form to its long text."""
    got = lines(written_out(MODEL + A + short, layout))
    assert got == lines(written_out(MODEL + long, layout))


def test_like_takes_what_is_not_said_anew() -> None:
    same(
        """layout b of m like a when kind == "b" {
            mesh tp
            place layer padded to a multiple of 2
            config n = depth
            config inner = width * 4
            "h.{layer}.up.weight" = up[h, f]
        }""",
        """layout b of m when kind == "b" {
            mesh tp
            place layer padded to a multiple of 2
            place f over tp
            config n = depth
            config bias = has_bias
            config inner = width * 4
            "h.{layer}.up.weight"         = up[h, f]
            "h.{local layer}.up.bias"     = up_b[f]
            "h.{local layer}.gate.weight" = gate[f, h] when not te
            "h.{local layer}.w.weight"    = gate[f, h] when te
            "norm.weight"                 = norm[h] on last stage
            "norm.weight"                 = norm[h] on first stage when tied and pp > 1
            "h.{local layer}.{e}.w" = exp[f, h]
        }""",
        "b",
    )


def test_whole_is_without_mesh_cuts_and_stages() -> None:
    same(
        "layout b of m like a whole {}",
        """layout b of m {
            config n = layers
            config bias = has_bias
            "h.{layer}.up.weight"   = up[f, h]
            "h.{layer}.up.bias"     = up_b[f]
            "h.{layer}.gate.weight" = gate[f, h] when not te
            "h.{layer}.w.weight"    = gate[f, h] when te
            "norm.weight"           = norm[h]
            "h.{layer}.{e}.w"       = exp[f, h]
        }""",
        "b",
    )


def test_fix_and_stack() -> None:
    same(
        "layout b of m like a whole { fix te = true stack layer, e }",
        """layout b of m {
            config n = layers
            config bias = has_bias
            "h.up.weight" = up[layer, f, h]
            "h.up.bias"   = up_b[layer, f]
            "h.w.weight"  = gate[layer, f, h]
            "norm.weight" = norm[h]
            "h.w"         = exp[e, layer, f, h]
        }""",
        "b",
    )


def test_a_rule_without_a_condition_covers_all_where_none_has_none() -> None:
    out = written_out(MODEL + A + 'layout b of m like a { "g{local layer}" = gate[f, h] }', "b")
    assert out.count("gate[f, h]") == 1


def test_a_copy_of_a_tensor_stays_where_the_tensor_gets_another_name() -> None:
    text = "\n".join(line for line in A.splitlines() if "tied" not in line).replace("} ", "}")
    copy = text.rstrip("}\n") + '\n    "copy.weight" = norm[h] on last stage when tied\n}\n'
    out = written_out(f'{MODEL}{copy}layout b of m like a {{ "n" = norm[h] }}', "b")
    assert '"copy.weight"' in out
    assert '"norm.weight"' not in out


def test_what_a_layout_says_is_never_there_has_no_rule() -> None:
    out = written_out(MODEL + A + "layout b of m like a { config bias = false }", "b")
    assert "up_b" not in out


def test_places_and_partitions_are_said_anew_one_by_one() -> None:
    text = """\
    layout a {
        mesh dp
        file "{dp}.pt" { states at "{state}/{name}" }
        partition exp_avg, exp_avg_sq over dp as rows
        tie "a" = "b"
        leave out "*.x" because "of no use"
    }
    layout b like a {
        partition exp_avg over dp as each
        tie "a" = "c"
        leave out "*.y" because "neither"
    }
    """
    assert lines(written_out(text, "b")) == lines(
        written_out(
            """layout b {
        mesh dp
        file "{dp}.pt" { states at "{state}/{name}" }
        partition exp_avg over dp as each
        partition exp_avg_sq over dp as rows
        tie "a" = "c"
        leave out "*.x" because "of no use"
        leave out "*.y" because "neither"
    }"""
        )
    )


def test_a_tie_is_a_rule_for_the_same_atom() -> None:
    tie = 'tie "copy" = "norm.weight" when tied\n'
    out = written_out(MODEL + A.replace("{", "{ " + tie, 1))
    assert '"copy"                        = norm[h] on last stage optional when tied' in out
    assert '"copy"                        = norm[h] on first stage optional when tied and' in out
    assert message(MODEL + A.replace("{", "{ " + tie.replace("norm.w", "nrm.w"), 1)) == (
        'error[not-obeyed]: no rule of layout `a` has the name "nrm.weight"\n'
        "  --> x.ucl:13:30\n"
        "   |\n"
        '13 | layout a of m { tie "copy" = "nrm.weight" when tied\n'
        "   |                              ^^^^^^^^^^^^ tied to nothing\n"
        "   |\n"
        "  = help: did you mean `norm.weight`?"
    )


def test_a_layout_without_a_model() -> None:
    out = written_out(
        """layout a {
            mesh tp
            "{local e over tp}.w" = [rows over tp padded to a multiple of 8, ...] averaged over tp
        }
        layout b like a whole { "x" = [...] }""",
        "b",
    )
    assert out == (
        'layout b {\n    "{e}.w" = [rows padded to a multiple of 8, ...]\n    "x"     = [...]\n}\n'
    )


def test_a_bias_goes_with_its_weight() -> None:
    out = written_out(
        """model m {
            axis layer
            axis e
            axis n
            axis d
            axis h
            tensor q [layer, n, d, h] bias qb when b
            tensor k [layer, n, d, h] bias kb [layer, n, d] when b
            tensor o [layer, h, n, d] when wide bias ob [layer, h] when b
            tensor w [layer, e, h, d] bias wb [layer, e, h]
        }
        layout l of m {
            under "x.{layer}." {
                "qkv.weight" = [n (q[d] + k[d]), h] with bias
                "o.weight"   = o[h, n d] with bias when te
                "w.weight{e}" = w[h, d] with bias optional
            }
        }"""
    )
    assert out.partition("layout")[0].splitlines()[6:-2] == [
        "    tensor q  [layer, n, d, h]",
        "    tensor qb [layer, n, d] when b",
        "    tensor k  [layer, n, d, h]",
        "    tensor kb [layer, n, d] when b",
        "    tensor o  [layer, h, n, d] when wide",
        "    tensor ob [layer, h] when wide and b",
        "    tensor w  [layer, e, h, d]",
        "    tensor wb [layer, e, h]",
    ]
    assert out.partition("layout")[2].splitlines()[1:-1] == [
        '    "x.{layer}.qkv.weight"  = [n (q[d] + k[d]), h]',
        '    "x.{layer}.qkv.bias"    = [n (qb[d] + kb[d])]',
        '    "x.{layer}.o.weight"    = o[h, n d] when te',
        '    "x.{layer}.o.bias"      = ob[h] when te',
        '    "x.{layer}.w.weight{e}" = w[h, d] optional',
        '    "x.{layer}.w.bias{e}"   = wb[h] optional',
    ]


def test_shared_lines_are_there_once_and_give_way() -> None:
    out = written_out(
        """config one { config a, b config c = args.c }
        config two { use one config c = args.d }
        layout l { use two config a = args.x "y" = [rows:(a), cols:(b * c)] }"""
    )
    assert out == (
        "layout l {\n"
        "    config b = b\n    config c = args.d\n    config a = args.x\n"
        '    "y" = [rows:(a), cols:(b * c)]\n}\n'
    )


TOWERS = """\
model vit {
    axis layer = depth
    axis h     = width
    tensor w [layer, h] bias b [layer] when has_bias
    tensor x [h] when deep
}

layout plain of vit {
    mesh tp
    place h over tp
    config depth    = num_hidden_layers or n_layers
    config width    = depth * 2
    config has_bias = kind == "b"
    "blocks.{layer}.weight" = w[h] with bias
    "x"                     = x[h]
}

model both {
    include vit as eye
    include vit as ear
    axis joint
    tensor p [joint]
}

layout hf of both {
    include vit.plain as eye under "eye." from eye_config
    include vit.plain as ear under "ear."
    "p" = p[joint]
}
"""


def test_towers() -> None:
    out = written_out(TOWERS)
    both = out[out.index("model both") : out.index("layout hf of both")]
    layout = out[out.index("layout hf of both") :]
    assert lines(both + layout) == lines(
        """model both {
            axis eye_layer = eye_depth
            axis eye_h     = eye_width
            axis ear_layer = ear_depth
            axis ear_h     = ear_width
            axis joint
            tensor eye_w [eye_layer, eye_h]
            tensor eye_b [eye_layer] when eye_has_bias
            tensor eye_x [eye_h] when eye_deep
            tensor ear_w [ear_layer, ear_h]
            tensor ear_b [ear_layer] when ear_has_bias
            tensor ear_x [ear_h] when ear_deep
            tensor p     [joint]
        }
        layout hf of both {
            mesh tp
            place eye_h over tp
            config eye_depth    = eye_config.num_hidden_layers or eye_config.n_layers
            config eye_width    = eye_depth * 2
            config eye_has_bias = eye_config.kind == "b"
            "eye.blocks.{eye_layer}.weight" = eye_w[eye_h]
            "eye.blocks.{eye_layer}.bias"   = eye_b[]
            "eye.x"                         = eye_x[eye_h]
            place ear_h over tp
            config ear_depth    = num_hidden_layers or n_layers
            config ear_width    = ear_depth * 2
            config ear_has_bias = kind == "b"
            "ear.blocks.{ear_layer}.weight" = ear_w[ear_h]
            "ear.blocks.{ear_layer}.bias"   = ear_b[]
            "ear.x"                         = ear_x[ear_h]
            "p" = p[joint]
        }"""
    )
    assert [item.code for item in check(parse(TOWERS)) if item.level == "error"] == []


def test_a_layout_of_a_model_that_ships_may_be_like_one_that_ships() -> None:
    text = """layout hf of llama like hf when model_type == "mine" {
        config qk_norm = false
        "embed.weight" = embed[v, h]
        "model.layers.{layer}.self_attn.q_proj.weight" = wq[kv q d, h] with bias
    }"""
    from reshard.language.library import missing_models

    document = parse(text)
    models = missing_models(document)
    assert [x for x in check(document, models=models) if x.level == "error"] == []
    layout = compile_layout(document, models=models)
    found = {rule.pattern.text for rule in layout.rules}
    assert "embed.weight" in found
    assert "model.embed_tokens.weight" not in found
    assert "model.layers.{layer}.self_attn.q_proj.bias" in found
    assert "model.norm.weight" in found
    assert not any("q_norm" in name for name in found)


def test_a_model_may_be_like_one_that_ships() -> None:
    text = """
    model mine like llama {
        tensor extra [layer, h]
        tensor head  [v, h]
    }
    layout hf of mine like llama.hf when model_type == "mine" {
        "model.layers.{layer}.extra.weight" = extra[h]
    }
    """
    document = parse(text)
    assert check(document) == ()
    rules = compile_layout(document).rules
    assert sum(rule.atom == "extra" for rule in rules) == 1
    assert sum(rule.atom == "wq" for rule in rules) == 1


def test_the_text_as_written_is_kept_by_its_canonical_form() -> None:
    written = parse_as_written(RIGHT)
    text = format_document(written)
    assert parse_as_written(text) == written
    assert "like megatron whole" in text
    assert "with bias" in text


def test_a_long_text_is_not_changed() -> None:
    document = parse(MODEL + A)
    assert document is not None
    assert document == parse_as_written(MODEL + A)


def message(text: str) -> str:
    """What is said about a text."""
    try:
        return render_all(check(parse(text, "x.ucl")))
    except ReshardError as error:
        return str(error)


@pytest.mark.parametrize(
    ("text", "headline"),
    [
        ("layout a like b {} layout b like a {}", "[circular-layout]: layout `b` is like itself"),
        ("model a like b {} model b like a {}", "[circular-layout]: model `b` is like itself"),
        ("model a like b {}", "[unknown-model]: there is no model `b` that this could be like"),
        ("config a { use a } layout l { use a }", "[unknown-name]: `config a` uses itself"),
        (
            'layout a { "x.weight" = [b] with bias }',
            "[no-bias]: a rule that names no atom has no bias",
        ),
        (
            "model a { axis x = 1 } model b { axis x = 2 } model c { include a include b }",
            "[duplicate-name]: two models that are included here have axis x, each another one",
        ),
        (
            'model a { axis x tensor t [x] } layout l of a { wrapper "m." "t" = t[x] }'
            'model c { include a } layout l of c { include a.l under "z." }',
            "[not-obeyed]: layout `a.l` has statements that cannot be included",
        ),
    ],
)
def test_what_cannot_be_written_out(text: str, headline: str) -> None:
    assert message(text).startswith(f"error{headline}")


def test_a_fault_in_a_name_points_into_the_string_that_it_stands_in() -> None:
    text = 'layout a {\n    under "x.{layer." {\n        under "y." { "z" = [...] }\n    }\n}\n'
    assert message(text) == (
        "error[name-pattern]: `{` in a name is not closed\n"
        " --> x.ucl:2:14\n"
        "  |\n"
        '2 |     under "x.{layer." {\n'
        "  |              ^ no `}` behind it\n"
        "  |\n"
        "  = help: write a brace that is part of the name as `\\{`"
    )


def test_a_fault_that_a_layout_inherits_is_said_with_its_name() -> None:
    text = MODEL + A + "layout b of m like a { mesh pp }"
    assert message(text) == (
        "error[unknown-axis]: mesh axis `tp` is not declared\n"
        "  --> x.ucl:16:18\n"
        "   |\n"
        "16 |     place f over tp\n"
        "   |                  ^^ no such mesh axis\n"
        "...\n"
        "28 | layout b of m like a { mesh pp }\n"
        "   |        - this layout is like it\n"
        "   |                             -- this mesh declares `pp`\n"
        "   |\n"
        "  = help: declare it with `mesh tp`"
    )


def test_an_axis_that_is_whole_on_every_rank() -> None:
    out = written_out(
        """model m {
            axis layer
            axis e = experts
            axis h
            tensor router [layer, e uncut, h] bias rb [layer, e]
            tensor up [layer, e, h]
        }
        layout l of m {
            mesh ep
            place e over ep
            "{layer}.router.weight" = router[e, h] with bias
            "{layer}.{local e}.up" = up[h]
        }
        layout apart of m {
            "{layer}.{e}.router.weight" = router[h] with bias
            "{layer}.{e}.up" = up[h]
        }"""
    )
    assert lines(out) == lines(
        """model m {
            axis layer
            axis e = experts
            axis h
            axis e_uncut = experts
            tensor router [layer, e_uncut, h]
            tensor rb [layer, e_uncut]
            tensor up [layer, e, h]
        }
        layout l of m {
            mesh ep
            place e over ep
            "{layer}.router.weight" = router[e_uncut, h]
            "{layer}.router.bias" = rb[e_uncut]
            "{layer}.{local e}.up" = up[h]
        }
        layout apart of m {
            "{layer}.{e_uncut}.router.weight" = router[h]
            "{layer}.{e_uncut}.router.bias" = rb[]
            "{layer}.{e}.up" = up[h]
        }"""
    )
    written = parse_as_written("model m { tensor router [layer, e uncut, h] }")
    assert format_document(written) == "model m {\n    tensor router [layer, e uncut, h]\n}\n"


def test_a_layout_says_sizes_in_place_of_those_that_it_includes() -> None:
    text = TOWERS.replace('"p" = p[joint]', 'config eye_depth = d config ear_depth "p" = p[joint]')
    out = written_out(text, "hf")
    assert [line for line in lines(out) if "_depth =" in line] == [
        "config ear_depth = ear_depth",
        "config eye_depth = d",
    ]
