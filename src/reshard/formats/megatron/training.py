"""What a Megatron checkpoint knows besides tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.formats.megatron.optimizer_ids import GroupMembers
from reshard.run.run import Group, Run
from reshard.storage.kept import encode, small_tensor

_HELD_ELSEWHERE = ("model", "optimizer", "iteration", "args", "rng_state", "opt_param_scheduler")
_STATES = ("state", "param_groups", "fp32_from_fp16_params", "fp32_from_fp16")


class Groups:
    """Param groups of all ranks, joined where their hyper-parameters are the same."""

    def __init__(self) -> None:
        self._found: list[tuple[dict[str, object], list[str]]] = []

    def add(self, assigned: Sequence[GroupMembers], names: Mapping[tuple[int, str], str]) -> None:
        """One rank's groups."""
        for item in assigned:
            members = [names[member.chunk, member.name] for member in item.members]
            self.add_named(item.group, members)

    def add_named(self, group: Mapping[str, object], members: Sequence[str]) -> None:
        """One group with the global names of its parameters."""
        values = {
            str(key): encode(value) for key, value in group.items() if key not in ("params", "step")
        }
        known = next((n for v, n in self._found if v == values), None)
        if known is None:
            known = []
            self._found.append((values, known))
        seen = set(known)
        known += [name for name in dict.fromkeys(members) if name not in seen]

    def all(self) -> tuple[Group, ...]:
        """Hyper-parameters and names of every group."""
        return tuple(Group(values, names) for values, names in self._found)


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
            "optimizer": encode(_settings(root.get("optimizer")), tensor=small_tensor),
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
    items = list(optimizer) if isinstance(optimizer, list) else [optimizer]
    found = [
        item["grad_scaler"] for item in items if isinstance(item, dict) and "grad_scaler" in item
    ]
    told = [encode(item) for item in found]
    return told[0] if told and all(item == told[0] for item in told) else None
