"""A step whose model and optimizer are checkpoints of their own, each in a folder of the step.

Source: ByteCheckpoint checkpointer/base_checkpointer.py; NeMo-Automodel components/checkpoint/
checkpointing.py; slime backends/fsdp_utils/checkpoint.py.
"""

from __future__ import annotations

from pathlib import Path

MODELS = ("model", "weights")
"""What the folder of the model is called."""

OPTIMIZERS = ("optim", "optimizer")
"""What the folder of the optimizer is called."""

TRACKER = "latest_checkpointed_iteration.txt"
"""The file with the number of the last step: Megatron's, and of those who took its name over."""


def is_of_parts(folder: Path) -> bool:
    """Whether a step has a folder of its own for its model, or for its optimizer, with `.metadata`.

    Megatron's `weights` of NeMo have a `metadata.json` besides.
    """
    return any(
        (folder / name / ".metadata").is_file() and not (folder / name / "metadata.json").exists()
        for name in (*MODELS, *OPTIMIZERS)
    )


def is_tracked_by_another(run: Path) -> bool:
    """Whether the tracker of a run stands next to steps that are not Megatron's."""
    steps = [item for item in run.glob("iter_*") if item.is_dir()]
    if steps:
        return all(is_of_parts(step) for step in steps)
    return next(run.glob("global_step_*/"), None) is not None
