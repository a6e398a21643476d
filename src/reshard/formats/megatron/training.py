"""What a Megatron checkpoint knows besides tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.formats.megatron.groups import Groups, optimizers_in
from reshard.run.run import Run
from reshard.storage.kept import encode

_HELD_ELSEWHERE = ("model", "optimizer", "iteration", "args", "rng_state", "opt_param_scheduler")
_STATES = ("state", "param_groups", "fp32_from_fp16_params", "fp32_from_fp16")


def training_of(
    root: Mapping[object, object],
    groups: Groups,
    per_rank: Sequence[Mapping[object, object]],
    extra: Mapping[str, object] | None = None,
) -> Run:
    """Iteration, scheduler, random states, arguments; nothing is left behind.

    Args:  root: of the first rank.  per_rank: of every rank.
           extra: more of what only Megatron understands, as JSON.
    """
    iteration = root.get("iteration")
    state = {}
    if "opt_param_scheduler" in root:
        state["lr_scheduler"] = encode(root["opt_param_scheduler"])
    other = {
        str(key): encode(value)
        for key, value in root.items()
        if str(key) not in _HELD_ELSEWHERE and not _is_chunk(str(key))
    }
    scaler = _scaler(root.get("optimizer"))
    if scaler is not None:
        state["loss_scaler"] = scaler
    return Run(
        iteration=iteration if isinstance(iteration, int) else None,
        param_groups=groups.all(),
        state=state,
        framework={
            "name": "megatron",
            "args": encode(root.get("args")),
            "other": other,
            "rng_state": [encode(item.get("rng_state")) for item in per_rank],
            "optimizer": encode(_settings(root.get("optimizer"))),
            **(extra or {}),
        },
    )


def _is_chunk(key: str) -> bool:
    return key.startswith("model") and key[5:].isdecimal()


def _settings(optimizer: object) -> object:
    """An optimizer without its states, its masters and its param groups."""
    if isinstance(optimizer, dict):
        return {k: _settings(v) for k, v in optimizer.items() if k not in _STATES}
    if isinstance(optimizer, list):
        return [_settings(item) for item in optimizer]
    return optimizer


def _scaler(optimizer: object) -> object:
    """The loss scaler; chained optimizers have one each, and all of these say the same."""
    found = [
        encode(item["grad_scaler"])
        for item in optimizers_in(optimizer)
        if isinstance(item, Mapping) and "grad_scaler" in item
    ]
    return found[0] if found and all(item == found[0] for item in found) else None
