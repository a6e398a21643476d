"""The learning rate schedule that Megatron's loader asks for.

Source: megatron/core/optimizer_param_scheduler.py `load_state_dict` (core 0.16.1).
"""

from __future__ import annotations

from reshard.formats.megatron.write_options import WriteOptions
from reshard.formats.megatron.write_resume import Resume


def scheduler(resume: Resume, options: WriteOptions) -> object:
    """The source's schedule; without one, a constant rate that `--override-opt-param-scheduler`
    replaces by that of the run.
    """
    if resume.scheduler is not None:
        return resume.scheduler
    rates = [_number(group.settings.get("lr")) for group in resume.groups]
    decays = [_number(group.settings.get("weight_decay")) for group in resume.groups]
    decay = max(decays, default=0.0)
    return {
        "max_lr": max(rates, default=0.0),
        "lr_warmup_steps": 0,
        "num_steps": options.samples or 0,
        "lr_decay_style": "constant",
        "lr_decay_steps": max(options.samples or 0, 1),
        "min_lr": 0.0,
        "start_wd": decay,
        "end_wd": decay,
        "wd_incr_style": "constant",
        "wd_incr_steps": max(options.samples or 0, 1),
    }


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
