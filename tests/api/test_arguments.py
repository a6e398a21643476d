"""Arguments of other kinds than the public functions take are refused by name, before anything."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import count, repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reshard


class _Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


ODD: list[Any] = [
    *(0, -1, 3, 10**30, 10**5000, 1.5, float("nan"), True, b"x", object(), _Unprintable()),
    *([1], {1: 2}, {"tp": True}, {"tp": 1.0}, {"tp": 10**5000}, np.zeros((2, 2)), ["a", 1]),
    *("", "\0", "x" * 5000, Path("nowhere"), slice(0, 1, 0), "\ud800", ..., print),
]
ARGUMENTS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "open": {"path": (), "step layout layout_name settings model names": ("path",)},
    "inspect": {"path": (), "check on_progress settings": ("path",)},
    "plan": {
        "src": ("to",),
        "to": ("src",),
        "places states dtype on_drift check threads max_memory max_file_size on_progress config "
        "leave_out": ("src", "to"),
    },
    "convert": {"src": ("dst", "to"), "dst": ("src", "to"), "force dry_run": ("src", "dst", "to")},
    "load": {"path": (), "to rank states framework threads": ("path",)},
    "verify": {"a": (), "b states dtype config leave_out on_progress": ("a",)},
    "diff": {"a": (), "b states on_progress": ("a",)},
    "roundtrip": {
        "src": ("via",),
        "via": ("src",),
        "sample allow_loss strict materialize work threads max_memory keep_going": ("src", "via"),
    },
    "layouts": {"path": ()},
}
CASES = [
    (function, name, given)
    for function, names in ARGUMENTS.items()
    for listed, given in names.items()
    for name in listed.split()
]


@pytest.fixture
def source(fixture_checkpoint: Callable[[str], Path]) -> Path:
    return fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt"


@pytest.mark.parametrize(("function", "name", "given"), CASES, ids=lambda v: v if v else "-")
def test_an_odd_argument_is_an_error_of_ours_or_is_taken(
    function: str,
    name: str,
    given: tuple[str, ...],
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    good = {**dict.fromkeys(("path", "src", "a"), source), "dst": tmp_path / "out"}
    good |= {"to": "universal", "via": ["universal"]}
    fixed: dict[str, Any] = {"load": {"framework": "numpy"}, "roundtrip": {"sample": 1}}.get(
        function, {}
    )
    monkeypatch.chdir(tmp_path)
    for value in ODD:
        arguments = {**fixed, **{key: good[key] for key in given}, name: value}
        with suppress(reshard.ReshardError):
            getattr(reshard, function)(**arguments)


def _message(function: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(reshard.ReshardError) as caught:
        function(*args, **options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said", "kind"),
    [
        ({"rank": {"tp": True}}, "`rank` is {'tp': True}", _RANK := (
            "a mapping of mesh axes to whole numbers of at most 64 bits"
        )),
        ({"rank": {"tp": 1.5}}, "`rank` is {'tp': 1.5}", _RANK),
        ({"rank": 3}, "`rank` is 3", _RANK),
        ({"rank": {"tp": 10**5000}}, "`rank` is a value of type dict", _RANK),
        ({"threads": 0}, "`threads` is 0", "a whole number from 1 to 1024"),
        ({"threads": 10**6}, "`threads` is 1000000", "a whole number from 1 to 1024"),
        ({"framework": "jax"}, "`framework` is 'jax'", '"torch" or "numpy"'),
        ({"on_drift": "last"}, "`on_drift` is 'last'", '"error", "average" or "first"'),
        ({"settings": {"heads": "4"}}, "`settings` is {'heads': '4'}",
         "a mapping of names to finite numbers of at most 64 bits or None"),
        ({"places": [1]}, "`places` is [1]", "a str, or a list of them"),
        ({"states": 1}, "`states` is 1", "a str, or a list of kinds of state"),
        ({"model": 1}, "`model` is 1", "a str"),
        ({"layout": 1}, "`layout` is 1",
         "a path: a str or an os.PathLike, not empty, not longer than the system allows"),
    ],
)  # fmt: skip
def test_what_is_said(options: dict[str, object], said: str, kind: str, source: Path) -> None:
    assert _message(reshard.load, source, **options) == (
        f"error[bad-argument]: argument {said}\n  = note: it must be {kind}"
    )


def test_what_is_said_of_switches_and_functions(source: Path, tmp_path: Path) -> None:
    to = (source, tmp_path / "out", "universal")
    assert _message(reshard.convert, *to, force="no") == (
        "error[bad-argument]: argument `force` is 'no'\n  = note: it must be True or False"
    )
    assert _message(reshard.convert, *to, max_memory=0) == (
        "error[bad-argument]: argument `max_memory` is 0\n"
        "  = note: it must be a whole number from 1 to 2**63 - 1"
    )
    assert _message(reshard.verify, source, on_progress=1) == (
        "error[bad-argument]: argument `on_progress` is 1\n"
        "  = note: it must be a function of one argument"
    )
    assert not (tmp_path / "out").exists()


def test_integers_of_other_libraries_are_whole_numbers(
    fixture_checkpoint: Callable[[str], Path],
) -> None:
    rank = {"tp": np.int64(1)}
    source = fixture_checkpoint("toytp_tp2_dp2_z1_fp32") / "ckpt"
    given: dict[str, Any] = {"to": "deepspeed:tp=2", "framework": "numpy"}
    one = reshard.load(source, rank=rank, threads=np.int32(1), **given)
    two = reshard.load(source, rank={"tp": 1}, **given)
    assert one.tensors.keys() == two.tensors.keys()


def test_one_target_is_a_list_of_one(source: Path) -> None:
    found = reshard.roundtrip(source, "universal", sample=1)
    assert [way.via for way in found.ways] == [("universal",)]
    assert reshard.roundtrip(source, iter(["universal"]), sample=1).ok  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("slices", "said"),
    [
        (True, "True of dimension 0"),
        ("ab", "'ab' of dimension 0"),
        (1.0, "1.0 of dimension 0"),
        (..., "Ellipsis of dimension 0"),
        ((None,), "None of dimension 0"),
        (slice(None, None, 0), "slice(None, None, 0) of dimension 0"),
        (slice("a"), "slice(None, 'a', None) of dimension 0"),
        ((0, {}), "{} of dimension 1"),
        (10**5000, "index a value of type int of dimension 0, which has 97"),
        (count(), "more than 2 slices for 2 dimensions"),
        (repeat(0), "more than 2 slices for 2 dimensions"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_slices_of_other_kinds(slices: Any, said: str, source: Path) -> None:
    checkpoint = reshard.open(source)
    name, info = next(item for item in checkpoint.tensors.items() if len(item[1].shape) == 2)
    said = said.replace("97", str(info.shape[0]))
    assert _message(checkpoint.read, name, "param", slices) == (
        f"error[bad-slice]: `{name}` (param) cannot be read by {said}\n"
        f"  = note: its shape is {list(info.shape)}\n"
        "  = help: give one index or one range with a step above 0 for each dimension"
    )


def test_indices_of_numpy(source: Path) -> None:
    checkpoint = reshard.open(source)
    name = next(name for name, info in checkpoint.tensors.items() if len(info.shape) == 2)
    whole = checkpoint.read(name)
    for index in (np.int64(1), np.array(1), (np.uint8(1), slice(np.int64(0), np.int64(2)))):
        taken = index if isinstance(index, tuple) else int(index)
        assert checkpoint.read(name, "param", index).tobytes() == whole[taken].tobytes()  # type: ignore[arg-type,index]


def test_torch_tensors_without_torch(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert _message(reshard.load, source) == (
        "error[bad-argument]: argument `framework` is 'torch', but torch is not installed\n"
        '  = help: install torch, or ask for numpy arrays: `framework="numpy"`'
    )
