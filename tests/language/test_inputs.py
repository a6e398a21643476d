"""Texts that a user may write, and all that `reshard layout check` says about them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from reshard import api
from reshard.errors import ReshardError, render_all

INPUTS = Path(__file__).parent / "inputs"
Golden = Callable[[str, str], None]


def checked(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The errors, or the warnings, of a text."""
    monkeypatch.chdir(folder)
    Path("x.ucl").write_text(text, encoding="utf-8")
    try:
        return render_all(api.check_layout("x.ucl").warnings)
    except ReshardError as error:
        return str(error)


@pytest.mark.parametrize("path", sorted(INPUTS.glob("*.ucl")), ids=lambda path: path.stem)
def test_an_input(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    shutil.copy(path, tmp_path / path.name)
    said = checked(path.read_text(encoding="utf-8"), tmp_path, monkeypatch)
    golden(f"ucl-inputs/{path.stem}.txt", f"{said}\n")


MLP = """\
model mlp {{
    axis h = {h}
    axis f = intermediate_size
    tensor up [f, h]
}}

layout own of mlp {{
    mesh tp
    {config}
    "up.weight" = up[f, h]
}}
"""


@pytest.mark.parametrize(
    ("size", "config", "said"),
    [
        ("hidden_size", "", ""),
        ("hiden_size", "", "error[unknown-name]: nothing known is called `hiden_size`"),
        ("hiden_size", "config hiden_size = hiden_size", ""),
        ("hidden_size", "config hidden_size = args.hiden_size", "error[unknown-name]: nothing"),
        ("patch_height", "config patch_height = vision_config.patch_size", "error[unknown-name]"),
        ("vision_patch_size", "config vision_patch_size = vision_config.patch_size", ""),
        ("hidden_sizes", "", "warning[unknown-name]: `hidden_sizes` is in no configuration"),
        ("breadth", "", "warning[unknown-name]: `breadth` is in no configuration"),
        ("d_modle", "", "warning[unknown-name]: `d_modle` is in no configuration"),
        ("hidden_size * tp", "", ""),
        ("hidden_size * tpp", "", "warning[unknown-name]: `tpp` is in no configuration"),
    ],
)
def test_names_of_sizes(
    size: str, config: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checked(MLP.format(h=size, config=config), tmp_path, monkeypatch)
    assert found.startswith(said)
    assert bool(found) == bool(said)


def test_a_name_that_nobody_knows_is_of_the_layout_that_it_stands_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MLP.format(h="hidden_size", config="config hidden_size = breadth")
    text += 'layout other of mlp {\n    "up" = up[f, h]\n}\n'
    assert checked(text, tmp_path, monkeypatch) == (
        "warning[unknown-name]: `breadth` is in no configuration that is known here\n"
        " --> x.ucl:9:26\n"
        "  |\n"
        "9 |     config hidden_size = breadth\n"
        "  |                          ^^^^^^^ the checkpoint must tell it\n"
        "  |\n"
        "  = note: it needs a value from the checkpoint's configuration or from `--set`"
    )


def test_an_index_of_a_name_is_one_axis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "model m {\n    axis n = 4\n    axis kv = 2\n    axis q = 2\n"
        "    tensor norm [kv, q]\n}\n\n"
        'layout own of m {\n    "norms.{n}" = norm[1]\n}\n'
    )
    assert checked(text, tmp_path, monkeypatch) == (
        "error[unknown-axis]: `norm` has no axis `n`\n"
        " --> x.ucl:9:12\n"
        "  |\n"
        "5 |     tensor norm [kv, q]\n"
        "  |     ------------------- `norm` is declared here\n"
        "...\n"
        '9 |     "norms.{n}" = norm[1]\n'
        "  |            ^^^ not an axis of this atom\n"
        "  |\n"
        "  = help: an index in a name is one axis of the atom: `kv` or `q`"
    )


ATTENTION = """\
model m {{
    axis layer
    axis n
    axis d
    axis h
    tensor wq   [layer, n, d, h]
    tensor wo   [layer, h, n, d]
    tensor norm [layer, n, d]
}}

layout own of m {{
    "{{layer}}.q" = wq[{q}]
    "{{layer}}.o" = wo[{o}]
    "{{layer}}.n" = norm[{norm}]
}}
"""


@pytest.mark.parametrize(
    ("q", "o", "norm", "is_right"),
    [
        ("n d, h", "h, n d", "n d", True),
        ("n d, h", "h, n d", "n, d", True),  # a norm of each head is a matrix
        ("n, d, h", "h, n, d", "n, d", True),
        ("h, n, d", "n, d, h", "n d", True),  # as Flax has them
        ("n d, h", "h, n, d", "n d", False),
        ("n, d, h", "h, n d", "n d", False),
    ],
)
def test_axes_of_one_dimension(
    q: str, o: str, norm: str, is_right: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = checked(ATTENTION.format(q=q, o=o, norm=norm), tmp_path, monkeypatch)
    assert found.startswith("error[axes-apart]: `n` and `d` are 2 dimensions here") != is_right
    assert bool(found) != is_right
