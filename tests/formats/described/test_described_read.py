"""Checkpoints that no format knows, read through a text that says what lies where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard
from reshard.errors import ReshardError
from torch_trees import counted, write_tree

HOME = """
layout home {
    mesh tp
    file "rank{tp}.pt" {
        state param   at "model/{name}"
        run iteration = "step"
    }
    "tok.w"      = [rows over tp, _]
    "blk{i}.gu"  = [(gate over tp + up over tp), _]
    "blk{i}.dn"  = [_, cols over tp]
    "norm"       = [...]
}
"""


def same(found: Any, wanted: Any) -> bool:
    """Whether two arrays are equal bit for bit."""
    return bool(
        found.dtype == wanted.dtype
        and found.shape == wanted.shape
        and found.tobytes() == np.ascontiguousarray(wanted).tobytes()
    )


def layout_file(folder: Path, text: str) -> Path:
    """A file with a layout."""
    path = folder / "x.ucl"
    path.write_text(text, encoding="utf-8")
    return path


def home(folder: Path) -> dict[str, Any]:
    """Two tensor-parallel ranks of a home-grown format; returns the whole tensors."""
    whole = {"tok.w": counted(8, 3), "norm": counted(3)}
    for i in range(2):
        whole[f"blk{i}.gu"] = counted(12, 3, start=100 * i)
        whole[f"blk{i}.dn"] = counted(3, 6, start=1000 * i)
    for rank in range(2):
        part = {}
        for name, value in whole.items():
            if name.endswith(".gu"):
                gate, up = value[:6], value[6:]
                rows = slice(3 * rank, 3 * rank + 3)
                part[name] = np.concatenate([gate[rows], up[rows]])
            elif name.endswith(".dn"):
                part[name] = value[:, 3 * rank : 3 * rank + 3].copy()
            elif name == "tok.w":
                part[name] = value[4 * rank : 4 * rank + 4].copy()
            else:
                part[name] = value.copy()
        write_tree(folder / f"rank{rank}.pt", {"model": part, "step": 7})
    return whole


def test_a_home_grown_run_of_two_ranks(tmp_path: Path) -> None:
    whole = home(tmp_path / "run")
    text = layout_file(tmp_path, HOME)
    checkpoint = reshard.open(tmp_path / "run", layout=text)
    assert checkpoint.mesh == {"tp": 2}
    assert checkpoint.training.iteration == 7
    assert set(checkpoint.parameters) == set(whole)
    assert all(same(checkpoint.read(name), value) for name, value in whole.items())
    reshard.convert(tmp_path / "run", tmp_path / "u", "universal", layout=text)
    again = reshard.open(tmp_path / "u")
    assert all(same(again.read(name), value) for name, value in whole.items())
    assert again.training.iteration == 7


def numbered(
    names: Mapping[str, Any], groups: list[list[str]], **settings: object
) -> dict[str, object]:
    """What `Optimizer.state_dict()` gives."""
    numbers = {name: at for at, name in enumerate(n for group in groups for n in group)}
    state = {
        numbers[name]: {
            "step": np.array(3, np.float32),
            "exp_avg": value * np.float32(0.5),
            "exp_avg_sq": value * value,
        }
        for name, value in names.items()
    }
    listed = [{"lr": 0.1, **settings, "params": [numbers[n] for n in group]} for group in groups]
    return {"state": dict(sorted(state.items())), "param_groups": listed}


NET = {"a.weight": counted(6, 4), "a.bias": counted(6, start=50), "b.weight": counted(3, 6)}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        ("model", "optimizer"),
        ("model_state_dict", "optimizer_state_dict"),
        ("state_dict", "optimizer"),
    ],
)
def test_one_file_with_weights_and_numbered_states(
    tmp_path: Path, prefix: str, model: str, optimizer: str
) -> None:
    weights = {prefix + name: value for name, value in NET.items()}
    tree = {"epoch": 1, model: weights, optimizer: numbered(NET, [list(NET)]), "loss": 0.5}
    write_tree(tmp_path / "run" / "checkpoint.pt", tree)
    for path in (tmp_path / "run", tmp_path / "run" / "checkpoint.pt"):
        checkpoint = reshard.open(path)
        assert checkpoint.format == "single-file"
        assert checkpoint.parameters == tuple(NET)
        assert checkpoint.states == ("param", "exp_avg", "exp_avg_sq", "step")
        assert checkpoint.training.iteration == 3
        (group,) = checkpoint.training.param_groups
        assert group == {"lr": 0.1, "params": list(NET)}
        for name, value in NET.items():
            assert same(checkpoint.read(name), value)
            assert same(checkpoint.read(name, "exp_avg"), value * np.float32(0.5))
            assert same(checkpoint.read(name, "exp_avg_sq"), value * value)


def test_a_state_dict_alone_and_tied_weights(tmp_path: Path) -> None:
    tied = counted(5, 2)
    write_tree(tmp_path / "model.pth", {"embed.weight": tied, "b": counted(2), "head.weight": tied})
    checkpoint = reshard.open(tmp_path / "model.pth")
    assert checkpoint.parameters == ("embed.weight", "b")
    assert checkpoint.aliases == {"head.weight": "embed.weight"}


def test_groups_by_decay_and_names_beside_the_numbers(tmp_path: Path) -> None:
    groups = [["a.weight", "b.weight"], ["a.bias"]]
    tree = {
        "model": NET,
        "optimizer": numbered(NET, groups),
        "model_args": {"n_layer": 1},
        "iter_num": 3,
        "best_val_loss": np.array(2.5, np.float32),
        "config": {"out_dir": "out"},
    }
    write_tree(tmp_path / "nano" / "ckpt.pt", tree)
    checkpoint = reshard.open(tmp_path / "nano")
    assert checkpoint.format == "described"
    assert [group["params"] for group in checkpoint.training.param_groups] == groups
    assert all(same(checkpoint.read(n, "exp_avg_sq"), v * v) for n, v in NET.items())


def test_numbers_that_may_be_of_several_parameters(tmp_path: Path) -> None:
    names = {"c": counted(4), "b": counted(4), "a": counted(4)}
    write_tree(
        tmp_path / "x.pt", {"model": names, "optimizer": numbered(names, [["a", "c"], ["b"]])}
    )
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "x.pt")
    text = str(caught.value)
    assert text.startswith("error[ambiguous-optimizer-ids]: the optimizer states in x.pt cannot")
    assert "number 0 has shape [4]: it may be `c`, `b`, or `a`" in text
    layout = layout_file(tmp_path, NUMBERS)
    with pytest.raises(ReshardError, match="ambiguous-optimizer-ids") as caught:
        reshard.open(tmp_path / "x.pt", layout=layout)
    assert "number 0 may be `" in str(caught.value)


NUMBERS = """
layout own {
    file "x.pt" {
        state param at "model/{name}"
        states at "optimizer/state/{number}/{state}"
        number by "optimizer/param_groups[{group}]/params"
        run param_groups = "optimizer/param_groups"
    }
}
"""

TWINS = {
    f"{part}.{name}": value
    for part, start in (("encoder", 0), ("decoder", 100))
    for name, value in (
        ("0.weight", counted(4, 3, start=start)),
        ("0.bias", counted(4, start=start)),
        ("1.weight", counted(3, 4, start=start + 40)),
    )
}
SWAPPED = [*list(TWINS)[3:], *list(TWINS)[:3]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (SWAPPED, "number 0 has shape [4, 3]: it may be `encoder.0.weight` or `decoder.0.weight`"),
        ([*TWINS], "number 0 has shape [4, 3]: it may be `encoder.0.weight` or `decoder.0.weight`"),
        (SWAPPED[:3], "number 0 has shape [4, 3]: it may be `encoder.0.weight` or "),
        (
            ["decoder.1.weight", "encoder.1.weight"],
            "number 0 has shape [3, 4]: it may be `encoder.1.weight` or `decoder.1.weight`",
        ),
    ],
)
def test_states_of_an_optimizer_whose_order_nothing_says_are_withheld(
    tmp_path: Path, given: list[str], said: str
) -> None:
    optimizer = numbered({name: TWINS[name] for name in given}, [given])
    source = tmp_path / "x.pt"
    write_tree(source, {"model": TWINS, "optimizer": optimizer})
    for command in (reshard.open, lambda path: reshard.convert(path, tmp_path / "u", "universal")):
        with pytest.raises(ReshardError) as caught:
            command(source)
        text = str(caught.value)
        assert said in text
        assert text.partition("\n")[0] == (
            "error[ambiguous-optimizer-ids]: the optimizer states in x.pt cannot be given names"
        )
        assert text.partition("them\n")[2] == (
            "  = help: leave the states out with `--states weights`\n"
            "  = help: or, if it was made of `model.parameters()`, in the order of the module: "
            "`reshard layout show SRC > own.ucl`, then `--layout own.ucl`\n"
            "  = help: or say another order in that layout: "
            '`order "embed", "layers.{i}.attn", ...`\n'
            "  = help: or make it of `model.named_parameters()`, whose names torch 2.6 and later "
            "save"
        )
    assert "nothing in the file says in which order the optimizer was given" in text
    assert not (tmp_path / "u").exists()
    assert "ambiguous-optimizer-ids" in [x.code for x in reshard.inspect(source).oddities]
    reshard.convert(source, tmp_path / "w", "universal", states="weights")
    weights = reshard.open(tmp_path / "w")
    assert all(same(weights.read(name), value) for name, value in TWINS.items())


def test_a_layout_says_the_order_of_the_optimizer(tmp_path: Path) -> None:
    source = tmp_path / "x.pt"
    write_tree(source, {"model": TWINS, "optimizer": numbered(TWINS, [SWAPPED])})
    shown = reshard.inspect(source).layout
    order = '    order "decoder.{i}", "encoder.{i}"\n'
    at = shown.index("    wrapper")
    ordered = layout_file(tmp_path, shown[:at] + order + shown[at:])
    reshard.convert(source, tmp_path / "u", "universal", layout=ordered)
    made = reshard.open(tmp_path / "u")
    assert all(same(made.read(name, "exp_avg_sq"), v * v) for name, v in TWINS.items())
    assert not reshard.inspect(source, layout=ordered).oddities


def test_the_order_of_the_module_in_a_layout_of_ones_own_is_warned_of(tmp_path: Path) -> None:
    source = tmp_path / "x.pt"
    write_tree(source, {"model": TWINS, "optimizer": numbered(TWINS, [list(TWINS)])})
    own = layout_file(tmp_path, reshard.inspect(source).layout)
    done = reshard.convert(source, tmp_path / "u", "universal", layout=own)
    (warning,) = done.report.warnings
    assert warning.render() == (
        "warning[order-assumed]: the optimizer is taken to count parameters in the order of the "
        "module\n"
        "  = note: 6 of 6 parameters share their shape with another one\n"
        '  = help: say the order in the layout: `order "embed", "layers.{i}.attn", ...`'
    )
    made = reshard.open(tmp_path / "u")
    assert all(same(made.read(name, "exp_avg_sq"), v * v) for name, v in TWINS.items())


def test_names_beside_the_numbers_and_shapes_of_one_parameter_need_no_order(tmp_path: Path) -> None:
    for folder, names, given in (("a", TWINS, SWAPPED), ("b", NET, list(NET)[::-1])):
        optimizer = numbered(names, [given], **({"param_names": given} if folder == "a" else {}))
        write_tree(tmp_path / folder / "x.pt", {"model": names, "optimizer": optimizer})
        checkpoint = reshard.open(tmp_path / folder / "x.pt")
        assert all(
            same(checkpoint.read(n, "exp_avg"), v * np.float32(0.5)) for n, v in names.items()
        )


def test_factored_states_have_the_shape_of_no_parameter(tmp_path: Path) -> None:
    tree: dict[str, object] = {"model": {"b": counted(4, 3), "a": counted(4)}}
    rows = {"step": np.array(3, np.float32), "row_var": counted(4, 1), "col_var": counted(1, 3)}
    plain = {"step": np.array(3, np.float32), "variance": counted(4)}
    tree["optimizer"] = {"state": {0: rows, 1: plain}, "param_groups": [{"params": [0, 1]}]}
    write_tree(tmp_path / "x.pt", tree)
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "x.pt")
    assert str(caught.value) == (
        "error[ambiguous-optimizer-ids]: the optimizer states in x.pt cannot be given names\n"
        "  = note: number 0 has a state of shape [4, 1], and no parameter has that shape; "
        "names are given by shapes, and factored states have others\n"
        "  = note: `Optimizer.state_dict()` numbers parameters and does not name them\n"
        "  = help: load it where it was trained, and save it with "
        "`torch.distributed.checkpoint.state_dict.get_state_dict`\n"
        "  = help: or leave the states out with `--states weights`"
    )


def test_names_that_were_sorted_tell_no_order(tmp_path: Path) -> None:
    names = {"k.weight": counted(4, 4), "o.weight": counted(4, 4), "q.weight": counted(4, 4)}
    tree = {"model": names, "optimizer": numbered(names, [["q.weight", "k.weight", "o.weight"]])}
    write_tree(tmp_path / "x.pt", tree)
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "x.pt")
    assert "sorts their names, so the model's order is not known" in str(caught.value)
    reshard.convert(tmp_path / "x.pt", tmp_path / "u", "universal", states="weights")


ZERO = """
layout zero {
    mesh dp
    file "weights.pt" {
        state param      at "model/{name}"
        order            by "order[{group}]/{name}"
        run iteration    = "step"
        leave out "mask" because "it is made anew"
    }
    file "optim_rank{dp}.pt" {
        state master     at "master[{group}]"
        states           at "state/{group}/{state}"
        run param_groups = "groups"
        keep "rng"
    }
    partition master, exp_avg over dp as KIND
}
"""


def zero_run(folder: Path, kind: str, ranks: int = 2) -> dict[str, dict[str, Any]]:
    """A home-grown ZeRO run; returns whole tensors by state."""
    whole = {"l0.w": counted(3, 5), "l0.b": counted(3, start=100), "l1.w": counted(2, 5, start=200)}
    groups = [["l0.w", "l1.w"], ["l0.b"]]
    states = {"param": whole}
    states["master"] = {name: value.copy() for name, value in whole.items()}
    states["exp_avg"] = {name: value * np.float32(0.5) for name, value in whole.items()}

    def shares(state: str, group: list[str]) -> list[Any]:
        tensors = [states[state][name].reshape(-1) for name in group]
        if kind == "each":
            widths = [-(-len(t) // ranks) for t in tensors]
            padded = [
                np.pad(t, (0, w * ranks - len(t))) for t, w in zip(tensors, widths, strict=True)
            ]
            cut = [p.reshape(ranks, -1) for p in padded]
            return [np.concatenate([part[rank] for part in cut]) for rank in range(ranks)]
        flat = np.concatenate(tensors)
        flat = np.pad(flat, (0, -len(flat) % (2 * ranks)))
        return list(flat.reshape(ranks, -1))

    order = [{name: tuple(whole[name].shape) for name in group} for group in groups]
    write_tree(
        folder / "weights.pt", {"model": whole, "order": order, "step": 4, "mask": counted(2)}
    )
    for rank in range(ranks):
        write_tree(
            folder / f"optim_rank{rank}.pt",
            {
                "master": [shares("master", group)[rank].copy() for group in groups],
                "state": {
                    at: {"step": 4, "exp_avg": shares("exp_avg", group)[rank].copy()}
                    for at, group in enumerate(groups)
                },
                "groups": [{"lr": 0.1}, {"lr": 0.2}],
                "rng": np.full(3, rank, np.uint8),
            },
        )
    return states


@pytest.mark.parametrize(("kind", "ranks"), [("buffer align 2 * dp", 2), ("each", 2), ("each", 3)])
def test_ranks_that_share_buffers(tmp_path: Path, kind: str, ranks: int) -> None:
    states = zero_run(tmp_path / "run", kind.split()[0], ranks)
    text = layout_file(tmp_path, ZERO.replace("KIND", kind))
    checkpoint = reshard.open(tmp_path / "run", layout=text)
    assert checkpoint.mesh == {"dp": ranks}
    assert checkpoint.training.iteration == 4
    for state, tensors in states.items():
        for name, value in tensors.items():
            assert same(checkpoint.read(name, state), value), (name, state)
    assert int(checkpoint.read("l0.b", "step")) == 4
    assert [group["params"] for group in checkpoint.training.param_groups] == [
        ["l0.w", "l1.w"],
        ["l0.b"],
    ]


KINDS = [
    "buffer",
    "buffer align 4 * dp starts 4",
    "buffer round_robin",
    "each",
    "balanced",
    "buckets",
    "buckets of 8 align 6 starts 2",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [1, 3, 8])
def test_every_way_to_share_is_written_and_read(tmp_path: Path, kind: str, ranks: int) -> None:
    states = zero_run(tmp_path / "run", "buffer")
    source = layout_file(tmp_path, ZERO.replace("KIND", "buffer align 2 * dp"))
    text = tmp_path / "y.ucl"
    text.write_text(ZERO.replace("KIND", kind).replace("layout zero", "layout other"))
    reshard.convert(tmp_path / "run", tmp_path / "new", f"{text}:dp={ranks}", layout=source)
    checkpoint = reshard.open(tmp_path / "new", layout=text)
    assert checkpoint.mesh == {"dp": ranks}
    for state, tensors in states.items():
        for name, value in tensors.items():
            assert same(checkpoint.read(name, state), value), (name, state)


def test_a_partition_that_is_not_how_the_shares_lie(tmp_path: Path) -> None:
    zero_run(tmp_path / "run", "buffer")
    text = layout_file(tmp_path, ZERO.replace("KIND", "each"))
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", layout=text)
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[share-mismatch]: a share of master has 14 elements, and `as each` gives 13\n"
        "  --> .../x.ucl:16:5\n"
        "   |\n"
        "16 |     partition master, exp_avg over dp as each\n"
        "   |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ cut so\n"
        "   |\n"
        "  = note: it is `master[0]` in optim_rank0.pt\n"
        "  = note: 2 parameters of 25 elements are shared\n"
        "  = help: correct how ranks share it, the alignment, or the order of the parameters"
    )


def test_tensors_that_no_statement_names(tmp_path: Path) -> None:
    home(tmp_path / "run")
    write_tree(tmp_path / "run/rank0.pt", {"model": {}, "step": 7, "ema": {"tok.w": counted(4)}})
    text = layout_file(
        tmp_path,
        HOME.replace('state param   at "model/{name}"', 'state param   at "model/{name}" optional'),
    )
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", layout=text)
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[unnamed-tensor]: 1 tensor in rank0.pt is named by no statement\n"
        " --> .../x.ucl:4:10\n"
        "  |\n"
        '4 |     file "rank{tp}.pt" {\n'
        "  |          ^^^^^^^^^^^^^ in this file\n"
        "  |\n"
        "  = note: `ema/tok.w`\n"
        '  = help: say what they are: `state param at "..."`, `keep "ema/tok.w"`, or `leave out '
        '"ema/tok.w" because "..."`'
    )


def test_a_place_where_nothing_lies(tmp_path: Path) -> None:
    home(tmp_path / "run")
    text = layout_file(tmp_path, HOME.replace("model/{name}", "model.{name}"))
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", layout=text)
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[missing-place]: nothing lies at `model.{name}` in rank0.pt\n"
        " --> .../x.ucl:5:26\n"
        "  |\n"
        '5 |         state param   at "model.{name}"\n'
        "  |                          ^^^^^^^^^^^^^^ nothing lies here\n"
        "  |\n"
        "  = note: it has `model`, `step`\n"
        "  = help: keys of nested dicts are separated by `/`, as in `model/{name}`"
    )


def test_a_rank_that_is_missing(tmp_path: Path) -> None:
    home(tmp_path / "run")
    (tmp_path / "run/rank0.pt").rename(tmp_path / "run/rank2.pt")
    text = layout_file(tmp_path, HOME)
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", layout=text)
    assert "error[missing-rank-file]: 1 of 3 files are missing: rank0.pt" in str(caught.value)


def test_a_fact_that_is_none(tmp_path: Path) -> None:
    write_tree(tmp_path / "run/rank0.pt", {"model": {"w": counted(2)}, "step": "three"})
    text = layout_file(tmp_path, HOME.partition('    "tok.w"')[0] + "}\n")
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path / "run", layout=text)
    assert str(caught.value).replace(str(tmp_path), "...") == (
        "error[bad-fact]: `step` in rank0.pt is not what the layout says\n"
        " --> .../x.ucl:6:9\n"
        "  |\n"
        '6 |         run iteration = "step"\n'
        "  |         ^^^^^^^^^^^^^^^^^^^^^^ read here\n"
        "  |\n"
        "  = note: the iteration is no whole number\n"
        "  = note: it is of type str"
    )


@pytest.mark.parametrize(
    ("file", "entry", "why"),
    [
        ("rank{tp}.pt", 'slices by "at"', "`slices` stands in a file that is not of one parameter"),
        ("{module}.pt", 'state param at "data"', "`state` does not say whose states lie at `data`"),
        ("x.pt", 'state param at "{module}/{parameter}"', "`{module}` cannot stand here"),
    ],
)
def test_parts_of_names_and_slices_elsewhere(
    file: str, entry: str, why: str, tmp_path: Path
) -> None:
    text = layout_file(tmp_path, f'layout x {{ mesh tp file "{file}" {{ {entry} }} }}')
    with pytest.raises(ReshardError) as caught:
        reshard.open(tmp_path, layout=text)
    assert f"error[bad-place]: {why}\n" in str(caught.value)
