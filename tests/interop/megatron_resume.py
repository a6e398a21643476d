"""Resumes a run with the real Megatron-core and reports what it restored.  Not a test itself.

    PYTHON tests/interop/megatron_resume.py CASE_DIR FOLDER REPORT.json SAVED [--tp N] ...

What was loaded is saved again, by Megatron, in SAVED, so that it can be compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures" / "make"))

from make_megatron import run_on_ranks
from megatron_case import MegatronCase

STEPS = 3
AXES = ("tp", "pp", "vpp", "ep", "etp", "dp", "distributed", "bucket_size")


def resume(case: MegatronCase, folder: Path, report: Path, saved: Path) -> None:
    """Load `folder` at the layout of the case, save it, and train some steps."""
    run_on_ranks(lambda: _on_rank(case, folder, report, saved), case.world_size)


def _on_rank(case: MegatronCase, folder: Path, report: Path, saved: Path) -> None:
    import torch
    from megatron.core import parallel_state
    from megatron_run import Run

    run = Run(case)
    for chunk in run.chunks:
        for parameter in chunk.parameters():
            torch.nn.init.normal_(parameter.data)  # so that nothing can look restored by luck
    if case.form == "torch":
        _load_ranks(run, folder / f"iter_{case.steps:07d}")
    else:
        run.load(folder)
    run.case = dataclasses.replace(case, form="torch_dist", sharding="fully_reshardable")
    run.save(saved)
    losses = run.train(STEPS, case.steps)
    rank = parallel_state.get_tensor_and_data_parallel_group().rank()
    if losses and rank == 0:
        report.write_text(json.dumps({"losses": losses}), encoding="utf-8")


def _load_ranks(run: Any, folder: Path) -> None:
    """What Megatron-LM's `load_checkpoint` does with the files of ranks."""
    import torch
    from megatron.core import parallel_state

    name = f"mp_rank_{parallel_state.get_tensor_model_parallel_rank():02d}"
    if run.case.pp > 1:
        name += f"_{parallel_state.get_pipeline_model_parallel_rank():03d}"
    if run.case.ep > 1:
        name += f"_{parallel_state.get_expert_model_parallel_rank():03d}"
    state = torch.load(folder / name / "model_optim_rng.pt", weights_only=False)
    assert state["checkpoint_version"] == 3.0
    assert state["iteration"] == run.case.steps
    for arg, size in (("tensor", run.case.tp), ("pipeline", run.case.pp), ("expert", run.case.ep)):
        assert getattr(state["args"], f"{arg}_model_parallel_size") == size
    for index, chunk in enumerate(run.chunks):
        key = "model" if len(run.chunks) == 1 else f"model{index}"
        chunk.load_state_dict(state[key], strict=True)
    run.optimizer.load_state_dict(state["optimizer"])
    if run.case.distributed:
        run.optimizer.load_parameter_state(str(folder / name / "distrib_optim.pt"))
    run.scheduler.load_state_dict(state["opt_param_scheduler"])


def main() -> None:
    """Resume as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name in ("case_dir", "folder", "report", "saved"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--form", choices=("torch", "torch_dist"), required=True)
    for axis in AXES:
        parser.add_argument(f"--{axis}", type=int)
    said = parser.parse_args()
    changes = {axis: getattr(said, axis) for axis in AXES if getattr(said, axis) is not None}
    if "distributed" in changes:
        changes["distributed"] = bool(changes["distributed"])
    made = MegatronCase.read(said.case_dir / "case.json")
    case = dataclasses.replace(
        made, form=said.form, per_layer=False, single_shards=False, first_layers=0, **changes
    )
    resume(case, said.folder.resolve(), said.report.resolve(), said.saved.resolve())


if __name__ == "__main__":
    main()
