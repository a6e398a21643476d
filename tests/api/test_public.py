"""What Python's users see of public values: a short line, a text in notebooks, and warnings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import reshard


@pytest.fixture
def source(fixture_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint, by a path that is the same everywhere."""
    case = fixture_checkpoint("z1_bf16_dp4_tied")
    monkeypatch.chdir(case)
    return "ckpt"


def test_the_version_is_that_of_the_package() -> None:
    assert reshard.__version__.split(".")[0].isdigit()


def test_a_value_is_a_short_line(source: str, tmp_path: Path) -> None:
    values = {
        "open": reshard.open(source),
        "inspect": reshard.inspect(source),
        "plan": reshard.plan(source, "universal"),
        "convert": reshard.convert(source, tmp_path / "out", "universal", dry_run=True),
        "verify": reshard.verify(source, source),
        "diff": reshard.diff(source, source),
        "roundtrip": reshard.roundtrip(source, ["universal"], sample=1),
        "load": reshard.load(source, states="param", framework="numpy"),
        "layouts": reshard.layouts(),
    }
    said = {name: repr(value) for name, value in values.items()}
    layouts = said.pop("layouts")
    assert layouts.startswith("<Layouts: ")
    assert layouts.endswith(" layouts>")
    converted = said.pop("convert")
    assert converted.startswith(f"<Converted: would write {tmp_path / 'out'}, ")
    planned = said.pop("plan")
    assert planned.startswith("<PlanReport: ckpt to universal, ")
    assert said == {
        "open": "<deepspeed checkpoint at ckpt, 20 tensors>",
        "inspect": "<Inspection: DeepSpeed checkpoint at ckpt, 20 tensors, 399.0 kB>",
        "verify": "<Verification: equal bit for bit: 100 tensors, 369.7 kB>",
        "diff": "<Diff: the same bit for bit: 100 tensors, 369.7 kB>",
        "roundtrip": "<RoundTrip: ckpt via universal: ok>",
        "load": "<Loaded: param of 20 tensors, iteration 3>",
    }
    for value in values.values():
        html = value._repr_html_()
        assert html.startswith("<pre>")
        assert html.endswith("</pre>")


def test_python_is_warned_of_what_the_command_line_warns_of(source: str, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        done = reshard.convert(source, tmp_path / "out", "deepspeed-universal")
        report = [item.render() for item in done.report.warnings if item.level == "warning"]
    assert report
    assert [str(item.message) for item in caught] == report
    assert {item.category for item in caught} == {reshard.ReshardWarning}
    assert {item.filename for item in caught} == {__file__}
