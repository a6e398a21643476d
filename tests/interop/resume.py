"""Resumes a training run with the real DeepSpeed and reports what it restored.  Not a test itself.

    PYTHON tests/interop/resume.py CASE_DIR FOLDER REPORT.json [--universal] [--dp N] [--zero N]

The model starts from other weights than the case did, so that nothing can look restored by luck.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures" / "make"))

from case import Case
from ranks import run_on_ranks

OTHER_SEED = 4242


def resume(
    case_dir: Path, folder: Path, report: Path, *, universal: bool, changes: dict[str, int]
) -> None:
    """Load `folder`, compare every state with the case's truth, and train three steps."""
    import torch.distributed  # after `ranks` has set the environment
    from safetensors.torch import load_file
    from training import build_engine, train_step, whole_states

    made = Case.read(case_dir / "case.json")
    # Options such as round robin are the old run's; the resuming one goes without.
    run = dataclasses.replace(made, zero_options={}, **changes)
    truth = load_file(case_dir / "truth.safetensors")

    def body(rank: int) -> None:
        engine = build_engine(run, seed=OTHER_SEED, universal=universal)
        path, client_state = engine.load_checkpoint(str(folder))
        if path is None:
            raise SystemExit(f"DeepSpeed found no checkpoint in {folder}")
        states = whole_states(engine)
        different = [
            key
            for key in sorted(truth.keys() | states.keys())
            if key not in truth or key not in states or not _same_bits(truth[key], states[key])
        ]
        groups = _param_groups(engine)
        steps = range(made.steps, made.steps + 3)
        losses = [train_step(engine, made, step, rank, run.dp) for step in steps]
        if rank == 0:
            result = {
                "client_state": sorted(client_state),
                "different": different,
                "equal": len(truth.keys() & states.keys()) - len(set(different) & truth.keys()),
                "global_steps": engine.global_steps - len(losses),
                "losses": losses,
                "param_groups": groups,
            }
            report.write_text(json.dumps(result), encoding="utf-8")
        torch.distributed.barrier()

    run_on_ranks(body, run.dp)


def _same_bits(left: Any, right: Any) -> bool:
    import torch

    if left.shape != right.shape:
        return False
    same: bool = torch.equal(left.contiguous().view(torch.int32), right.view(torch.int32))
    return same


def _param_groups(engine: Any) -> list[dict[str, float]]:
    """The hyper-parameters that are in force, per parameter group."""
    return [
        {"lr": group["lr"], "weight_decay": group["weight_decay"]}
        for group in engine.optimizer.optimizer.param_groups
    ]


def main() -> None:
    """Resume as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("case_dir", type=Path)
    parser.add_argument("folder", type=Path, help="holds `latest` or `latest_universal`")
    parser.add_argument("report", type=Path)
    parser.add_argument("--universal", action="store_true", help="a DeepSpeed universal folder")
    parser.add_argument("--dp", type=int)
    parser.add_argument("--zero", type=int)
    arguments = parser.parse_args()
    changes = {"dp": arguments.dp, "zero_stage": arguments.zero}
    resume(
        arguments.case_dir,
        arguments.folder.resolve(),
        arguments.report.resolve(),
        universal=arguments.universal,
        changes={name: value for name, value in changes.items() if value is not None},
    )


if __name__ == "__main__":
    main()
