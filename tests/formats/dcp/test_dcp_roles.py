"""Which key is which state: from the structure and the optimizer's own description."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dcp_forge import Forge, counted
from hypothesis import given, settings
from hypothesis import strategies as st

import reshard
import tiny_llama
from reshard.errors import ReshardError
from reshard.formats.dcp.names import Names
from reshard.formats.dcp.wrappers import called
from reshard.storage.inert import Global

STATES = ("exp_avg", "exp_avg_sq")


def _adam(
    forge: Forge, name: str, shape: tuple[int, ...], at: tuple[str, ...] = ("optim",)
) -> None:
    """The states of one parameter, in a nested dict."""
    key = ".".join(at)
    for index, state in enumerate(STATES):
        path = (*at, "state", name, state)
        forge.tensor(f"{key}.state.{name}.{state}", counted(*shape) + 100 * (index + 1), path=path)
    step = np.array(3.0, dtype="float32")
    forge.tensor(f"{key}.state.{name}.step", step, path=(*at, "state", name, "step"))


def _group(forge: Forge, index: int, **told: object) -> None:
    for key, value in told.items():
        forge.object(
            f"optim.param_groups.{index}.{key}",
            value,
            path=("optim", "param_groups", index, key),
        )


def _weight(forge: Forge, name: str, array: np.ndarray, at: str = "model") -> None:  # type: ignore[type-arg]
    forge.tensor(f"{at}.{name}", array, path=(at, name))


def _frozen(folder: Path) -> list[str]:
    return [item.name for item in reshard.inspect(folder).tensors if item.role == "frozen"]


def test_states_of_a_parameter_that_is_stored_under_other_names(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    _weight(forge, "embed.weight", counted(8, 4))
    for index, name in enumerate(("wq", "wk", "wv")):
        _weight(forge, f"{name}.weight", counted(4, 4) + 16 * index)
    _adam(forge, "embed.weight", (8, 4))
    _adam(forge, "wqkv.weight", (12, 4))
    _group(forge, 0, lr=0.01, params=["embed.weight", "wqkv.weight"])
    source = forge.write()
    assert _frozen(source) == []
    reshard.convert(source, tmp_path / "out", "dcp:dp=2")
    assert reshard.verify(source, tmp_path / "out").ok
    back = reshard.open(tmp_path / "out")
    assert set(back.tensors["wqkv.weight"].dtypes) == {*STATES, "step"}
    assert set(back.tensors["wq.weight"].dtypes) == {"param"}
    assert back.training.param_groups[0]["params"] == ["embed.weight", "wqkv.weight"]


@pytest.mark.parametrize("flat", [False, True])
def test_a_learning_rate_that_is_a_tensor(tmp_path: Path, flat: bool) -> None:
    forge = Forge(tmp_path / "in")
    _weight(forge, "w", counted(8, 4))
    rate = np.array(0.01, dtype="float32")
    if flat:
        for state in STATES:
            path = ("optim", f"state.w.{state}")
            forge.tensor(f"optim.state.w.{state}", counted(8, 4), path=path)
        forge.tensor("optim.param_groups.w.lr", rate, path=("optim", "param_groups.w.lr"))
    else:
        _adam(forge, "w", (8, 4))
        _group(forge, 0, params=["w"])
        forge.tensor("optim.param_groups.0.lr", rate, path=("optim", "param_groups", 0, "lr"))
    source = forge.write()
    for target in ("dcp", "accelerate"):
        reshard.convert(source, tmp_path / target, target)
        opened = reshard.open(tmp_path / target)
        assert set(opened.tensors) == {"w"}
        told = opened.training.param_groups[0]["lr"]
        assert told == reshard.open(source).training.param_groups[0]["lr"]
        assert told == {"$tensor": {"dtype": "F32", "shape": [], "data": "CtcjPA=="}}
    for target in ("deepspeed:zero=1,dp=2", "deepspeed-universal"):
        out = tmp_path / target.partition(":")[0]
        reshard.convert(source, out, target)
        reshard.convert(out, tmp_path / f"{out.name}-dcp", "dcp")
        told = reshard.open(tmp_path / f"{out.name}-dcp").training.param_groups[0]["lr"]
        assert told == {"$tensor": {"dtype": "F32", "shape": [], "data": "CtcjPA=="}}


def test_states_next_to_their_weights_are_never_weights(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    for name, shape in (("layers.0.w", (8, 4)), ("layers.1.w", (8, 4))):
        for index, end in enumerate(("main", *STATES)):
            forge.tensor(f"{name}.{end}", counted(*shape) + 100 * index)
        forge.tensor(f"{name}.step", np.array(3.0, dtype="float32"))
    source = forge.write()
    opened = reshard.open(source)
    assert set(opened.tensors) == {"layers.0.w", "layers.1.w"}
    assert opened.states == ("master", "exp_avg", "exp_avg_sq", "step")
    assert opened.training.iteration == 3
    reshard.convert(source, tmp_path / "out", "dcp")
    assert reshard.verify(source, tmp_path / "out").ok


def test_flat_states_next_to_their_weights_have_no_shapes(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    for name, size in (("embed.weight", 32), ("norm.weight", 4)):
        for end in ("main", *STATES):
            forge.tensor(f"{name}.{end}", counted(size))
    source = forge.write()
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "hf")
    assert str(caught.value) == (
        f"error[unsupported-dcp]: {source} holds the flat weights of OLMo-core's distributed "
        "optimizer\n"
        "  = note: `embed.weight.exp_avg` is [32] elements, as all others are; nothing in "
        "`.metadata` tells the shapes of the parameters\n"
        "  = help: load it where it was trained, and save the state dict of the model itself"
    )


def test_numbers_with_names_next_to_them(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    for name, first in (("embed.weight", 0), ("head.weight", 32)):
        _weight(forge, name, counted(8, 4) + first)
    for number, first in ((0, 100), (1, 200)):
        for state in STATES:
            forge.tensor(
                f"optim.state.{number}.{state}",
                counted(8, 4) + first,
                path=("optim", "state", number, state),
            )
    _group(forge, 0, lr=0.01, params=[0], param_names=["head.weight"])
    _group(forge, 1, lr=0.001, params=[1], param_names=["embed.weight"])
    opened = reshard.open(forge.write())
    assert opened.read("head.weight", "exp_avg")[0, 0] == 100
    assert opened.read("embed.weight", "exp_avg")[0, 0] == 200
    assert [(g["lr"], g["params"]) for g in opened.training.param_groups] == [
        (0.01, ["head.weight"]),
        (0.001, ["embed.weight"]),
    ]


@pytest.mark.parametrize(
    ("weights", "states"),
    [
        ("_orig_mod.{}", "{}"),
        ("module.{}", "module.{}"),
        ("module.{}", "{}"),
        ("layers._checkpoint_wrapped_module.{}", "layers.{}"),
        ("_fsdp_wrapped_module._orig_mod.{}", "{}"),
        ("base_model.{}.lora_A.weight", "base_model.{}.lora_A.default.weight"),
        ("inner.{}", "{}"),
    ],
)
def test_wrappers_are_no_part_of_a_name(tmp_path: Path, weights: str, states: str) -> None:
    forge = Forge(tmp_path / "in")
    for index, name in enumerate(("a.weight", "b.weight")):
        _weight(forge, weights.format(name), counted(8, 4) + index)
        _adam(forge, states.format(name), (8, 4))
    _group(forge, 0, lr=0.01, params=[states.format(name) for name in ("a.weight", "b.weight")])
    source = forge.write()
    opened = reshard.open(source)
    assert len(opened.tensors) == 2
    assert all({*info.dtypes} == {"param", *STATES, "step"} for info in opened.tensors.values())
    assert not any({"_orig_mod", "module"} & {*name.split(".")} for name in opened.tensors)
    assert opened.training.param_groups[0]["params"] == list(opened.tensors)
    # The way back is to the same run, whose dicts have these keys.
    reshard.convert(source, tmp_path / "out", "dcp")
    keys = _keys(tmp_path / "out")
    assert {key for key in _keys(source) if ".param_groups." not in key} <= keys


def _keys(folder: Path) -> set[str]:
    from reshard.storage.dcp_metadata import read_metadata

    return {item.name for item in read_metadata(folder).tensors}


def test_a_parameter_without_states_that_the_optimizer_lists_is_not_frozen(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    for name in ("a", "b", "c"):
        _weight(forge, name, counted(8, 4) + len(forge.entries))
    _adam(forge, "a", (8, 4))
    _group(forge, 0, lr=0.01, params=["a", "b"])
    assert _frozen(forge.write()) == ["c"]


def test_factored_states_are_kept_as_found(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    _weight(forge, "w", counted(8, 4))
    for state, shape in (("row_var", (8, 1)), ("col_var", (1, 4))):
        path = ("optim", "state", "w", state)
        forge.tensor(f"optim.state.w.{state}", counted(*shape), path=path)
    _group(forge, 0, lr=0.01, params=["w"])
    source = forge.write()
    reshard.convert(source, tmp_path / "out", "dcp")
    assert reshard.verify(source, tmp_path / "out").ok
    assert {"optim.state.w.row_var", "optim.state.w.col_var"} <= _keys(tmp_path / "out")
    warnings = [item for item in reshard.inspect(source).oddities if item.code == "kept-as-is"]
    assert [item.render() for item in warnings] == [
        "warning[kept-as-is]: optimizer states `row_var`, `col_var` cannot be resharded, and are "
        "kept unchanged\n"
        "  = note: it has neither the shape of its parameter nor one number (Adafactor keeps rows "
        "and columns)\n"
        "  = note: first `optim.state.w.row_var`\n"
        "  = note: `universal` has it, and `dcp` under the same names; other targets leave it "
        "out"
    ]


PACKED = Global("torchao.optim.subclass_8bit", "OptimState8bit")


def test_packed_states_leave_the_weights_readable(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    _weight(forge, "w", counted(8, 4))
    path = ("optim", "state", "w", "exp_avg")
    forge.tensor("optim.state.w.exp_avg", counted(8, 4), path=path, subclass=PACKED)
    _group(forge, 0, lr=0.01, params=["w"])
    source = forge.write()
    with pytest.raises(ReshardError) as caught:
        reshard.convert(source, tmp_path / "out", "dcp")
    assert str(caught.value) == (
        "error[unsupported-dcp]: `optim.state.w.exp_avg` is stored as a tensor of class "
        "`torchao.optim.subclass_8bit.OptimState8bit`\n"
        f"  = note: in {source}/__0_0.distcp; `.metadata` describes it as F32 of shape [8, 4]\n"
        "  = note: such a class packs its elements (as torchao's optimizers in 8, 4 or fp8 bits "
        "do), and only its own code unpacks them\n"
        "  = help: keep only the weights with `--states weights`\n"
        "  = help: or load it where it was trained, and save it with plain tensors"
    )
    reshard.convert(source, tmp_path / "weights", "dcp", states="weights")
    assert (reshard.open(tmp_path / "weights").read("w") == counted(8, 4)).all()


def test_packed_weights_are_refused_for_what_they_are(tmp_path: Path) -> None:
    forge = Forge(tmp_path / "in")
    packed = Global("torchao.float8", "Float8Tensor")
    forge.tensor("model.w", counted(8, 4), path=("model", "w"), subclass=packed)
    with pytest.raises(ReshardError, match="stored as a tensor of class"):
        reshard.open(forge.write())


NAME = st.lists(
    st.sampled_from(["w", "layers", "0", "1", "attn", "weight", "bias", "block"]),
    min_size=1,
    max_size=4,
).map(lambda parts: ".".join([*parts, "weight"]))


@given(
    names=st.lists(NAME, min_size=1, max_size=5, unique=True),
    above=st.lists(st.sampled_from(["state", "app", "train"]), max_size=2),
    model=st.sampled_from(["model", "net", "actor"]),
    optimizer=st.sampled_from(["optim", "optimizer", "AdamW"]),
    form=st.sampled_from(["nested", "flat"]),
    deep=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_a_walk_gives_every_key_its_role(
    names: list[str], above: list[str], model: str, optimizer: str, form: str, deep: bool
) -> None:
    """Any nesting above, any names: the role is told by where a key lies."""
    paths: dict[str, tuple[str | int, ...]] = {}
    wanted: dict[str, tuple[str, str]] = {}

    def add(path: tuple[str | int, ...], role: tuple[str, str] | None) -> None:
        key = ".".join(map(str, path))
        paths[key] = path
        if role is not None:
            wanted[key] = role

    at = (*above, optimizer)
    for name in names:
        add((*above, model, name), (name, "param"))
        for state in ("exp_avg", "row.sums" if deep else "exp_avg_sq"):
            if form == "flat":
                add((*at, f"state.{name}.{state}"), (name, state))
            else:
                add((*at, "state", name, *state.split(".")), (name, state))
        if form == "flat":
            add((*at, f"param_groups.{name}.lr"), None)
    if form == "nested":
        add((*at, "param_groups", 0, "lr"), None)
    tensors = [key for key in paths if key in wanted]
    found = Names(paths, tensors, [key for key in paths if key not in wanted])
    assert {key: (found.role(key).name, found.role(key).state) for key in tensors} == wanted


WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


@given(
    names=st.lists(NAME, min_size=1, max_size=5, unique=True),
    levels=st.lists(
        st.tuples(st.sampled_from(WRAPPERS), st.integers(0, 3), st.booleans()), max_size=4
    ),
    outermost=st.tuples(st.booleans(), st.booleans()),
)
def test_names_meet_whatever_wraps_them(
    names: list[str], levels: list[tuple[str, int, bool]], outermost: tuple[bool, bool]
) -> None:
    def wrapped(name: str, side: bool) -> str:
        parts = name.split(".")
        for level, at, there in levels:
            if there is side or side:
                parts.insert(min(at, len(parts) - 1), level)
        return ".".join((["module"] if outermost[side] else []) + parts)

    weights = [wrapped(name, False) for name in names]
    states = [wrapped(name, True) for name in names]
    found = called(weights, states)
    assert [found.of(name, "param") for name in weights] == names
    assert [found.of(name, "exp_avg") for name in states] == names


def test_rows_and_columns_of_parameters_with_other_names(tmp_path: Path) -> None:
    """They cannot be named anew, and are not left under a name that no parameter has."""
    forge = Forge(tmp_path / "ckpt")
    for name, shape in tiny_llama.SHAPES.items():
        forge.tensor(f"model.{name}", counted(*shape), path=("model", name))
        rows = {"exp_avg_sq": counted(*shape)}
        if len(shape) == 2:
            rows = {"exp_avg_sq_row": counted(shape[0]), "exp_avg_sq_col": counted(shape[1])}
        for state, value in rows.items():
            forge.tensor(f"optim.state.{name}.{state}", value, path=("optim", "state", name, state))
    source = forge.write()
    (source / "config.json").write_text(json.dumps(tiny_llama.CONFIG))
    reshard.convert(source, tmp_path / "same", "dcp:dp=2")
    assert reshard.verify(source, tmp_path / "same").ok
    why = "it has not the shape of its parameter, which has another name here"
    for target, names in (("dcp", "torchtitan"), ("torchtitan", None), ("olmo-core", None)):
        done = reshard.convert(source, tmp_path / target, target, names=names)
        lost = [(item.name, item.why) for item in done.report.fates if item.kind == "dropped"]
        assert len(lost) == 18 - 2 * (names is not None or target == "torchtitan")
        assert ("optim.state.model.embed_tokens.weight.exp_avg_sq_row", why) in lost
        assert "exp_avg_sq" in reshard.open(tmp_path / target).states
