"""DeepSpeed's universal form as a source: it holds what the checkpoint held that it was made of."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import reshard
from reshard.errors import ReshardError
from reshard.storage.torch_file import open_torch_file
from reshard.storage.torch_output import TorchOutput

Fixture = Callable[[str], Path]
MADE = {
    "z1_bf16_dp4_tied": "master,exp_avg,exp_avg_sq,step",
    "z1_fp32_dp2_frozen": "exp_avg,exp_avg_sq,step",
    "z3_bf16_dp3_untied": "master,exp_avg,exp_avg_sq,step",
    "toytp_tp2_dp2_z1_fp32": "exp_avg,exp_avg_sq,step",
    "autoep_ep2_dp2_z1_bf16": "master,exp_avg,exp_avg_sq,step",
}


def _made(source: Path, tmp_path: Path) -> Path:
    reshard.convert(source, tmp_path / "form", "deepspeed-universal")
    return tmp_path / "form"


@pytest.mark.parametrize("name", MADE)
def test_states_are_those_of_the_checkpoint(
    name: str, fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint(name) / "ckpt"
    form = _made(source, tmp_path)
    assert reshard.verify(source, form, states=MADE[name]).ok
    assert reshard.open(form).format == "deepspeed-universal"
    assert reshard.open(form).training.iteration == reshard.open(source).training.iteration


def test_frozen_parameters_come_from_the_model_file(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    source = fixture_checkpoint("z1_fp32_dp2_frozen") / "ckpt"
    before, after = reshard.open(source), reshard.open(_made(source, tmp_path))
    frozen = [name for name, info in before.tensors.items() if set(info.dtypes) == {"param"}]
    assert frozen
    for name in frozen:
        assert after.read(name).tobytes() == before.read(name).tobytes()


def test_its_universal_checkpoint_verifies_and_settings_stay(
    fixture_checkpoint: Fixture, tmp_path: Path
) -> None:
    form = _made(fixture_checkpoint("z1_bf16_dp4_tied") / "ckpt", tmp_path)
    reshard.convert(form, tmp_path / "universal", "universal")
    assert reshard.verify(tmp_path / "universal").ok
    assert reshard.verify(form, tmp_path / "universal").ok
    groups = reshard.open(tmp_path / "universal").training.param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]


def _rewrite(file: Path, root: object) -> None:
    """Write a torch file with bytes that are all zero where tensors are."""
    output = TorchOutput()
    output.add(file.name, root)
    assert not output.placed
    written = (*output.head, *output.finish(()))
    with file.open("wb") as handle:
        for item in written:
            handle.seek(item.byte_offset)
            handle.write(item.data)


def _said(path: Path) -> str:
    with pytest.raises(ReshardError) as caught:
        reshard.open(path)
    return f"{caught.value}\n".replace(str(path), "FORM")


def test_what_is_wrong_with_a_folder_is_told(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    form = _made(fixture_checkpoint("z1_fp32_dp2_untied") / "ckpt", tmp_path)
    inside = form / "global_step3_universal"
    folder = inside / "zero" / "model.norm.weight"

    file = folder / "exp_avg.pt"
    kept = file.read_bytes()
    _rewrite(file, {"param": "text"})
    assert _said(form) == (
        "error[unexpected-content]: zero/model.norm.weight/exp_avg.pt holds neither a tensor nor a "
        "number\n"
        "  = help: the file was written by another program, or by a version that is not known\n"
    )
    file.write_bytes(kept)

    (folder / "fp32.pt").rename(folder / "fp32.pt.bak")
    assert _said(form) == (
        "error[missing-file]: FORM/global_step3_universal/zero/model.norm.weight has no `fp32.pt`\n"
        "  = note: it has `exp_avg.pt`, `exp_avg_sq.pt`, `step.pt`\n"
        "  = help: copy the folder again, or convert the checkpoint that it was made from\n"
    )
    (folder / "fp32.pt.bak").rename(folder / "fp32.pt")

    models = sorted(inside.glob("*_model_states.pt"))
    for model in models:
        model.rename(model.with_suffix(".bak"))
    assert _said(form) == (
        "error[missing-rank-file]: FORM/global_step3_universal has no model file\n"
        "  = note: looked for `mp_rank_*_model_states.pt` and `zero_pp_rank_*_model_states.pt`\n"
        "  = help: copy the files of all ranks; on several machines each one has only its own\n"
    )
    for model in models:
        model.with_suffix(".bak").rename(model)
    assert isinstance(open_torch_file(models[0]).root, dict)

    (form / "latest_universal").write_text("../elsewhere")
    assert _said(form) == (
        "error[unknown-step]: FORM has no universal checkpoint `elsewhere`\n"
        "  = note: it has `global_step3_universal`\n"
        "  = help: give the name of one of these folders with `--step`\n"
    )


def test_joined_experts_are_refused(fixture_checkpoint: Fixture, tmp_path: Path) -> None:
    form = _made(fixture_checkpoint("moe_ep2_dp2_z1_fp32") / "ckpt", tmp_path)
    name = "moe1.deepspeed_moe.experts.deepspeed_experts.0.a.bias"
    assert _said(form) == (
        f"error[unsupported-experts]: `{name}` holds the experts of several ranks, joined\n"
        f"  = note: zero/{name}/fp32.pt does not state of how many\n"
        "  = help: convert the checkpoint that the folder was made from\n"
    )
