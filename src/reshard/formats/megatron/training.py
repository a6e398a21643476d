"""What a Megatron checkpoint knows besides tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reshard.formats.megatron.optimizer_ids import GroupMembers
from reshard.plan.catalog import Training
from reshard.storage.objects import to_json
from reshard.storage.torch_file import TensorRef

_HELD_ELSEWHERE = ("model", "optimizer", "iteration", "args", "rng_state")


class Groups:
    """Param groups of all ranks, joined where their hyper-parameters are the same."""

    def __init__(self) -> None:
        self._found: list[tuple[dict[str, object], list[str]]] = []

    def add(self, assigned: Sequence[GroupMembers], names: Mapping[tuple[int, str], str]) -> None:
        """One rank's groups."""
        for item in assigned:
            values = {
                str(key): to_json(value, tensor=_tensor)
                for key, value in item.group.items()
                if key not in ("params", "step")
            }
            known = next((n for v, n in self._found if v == values), None)
            if known is None:
                known = []
                self._found.append((values, known))
            seen = set(known)
            for member in item.members:
                name = names[member.chunk, member.name]
                if name not in seen:
                    known.append(name)
                    seen.add(name)

    def all(self) -> tuple[Mapping[str, object], ...]:
        """Hyper-parameters and names of every group."""
        return tuple({**values, "params": names} for values, names in self._found)


def training_of(
    root: Mapping[object, object], groups: Groups, per_rank: Sequence[Mapping[object, object]]
) -> Training:
    """Iteration, scheduler, random states, arguments; nothing is left behind.

    Args:  root: of the first rank.  per_rank: of every rank.
    """
    iteration = root.get("iteration")
    state = {}
    if "opt_param_scheduler" in root:
        state["lr_scheduler"] = to_json(root["opt_param_scheduler"], tensor=_tensor)
    other = {
        str(key): to_json(value, tensor=_tensor)
        for key, value in root.items()
        if str(key) not in (*_HELD_ELSEWHERE, "opt_param_scheduler")
        and not (str(key).startswith("model") and str(key)[5:].isdigit())
    }
    scaler = _scaler(root.get("optimizer"))
    if scaler is not None:
        state["loss_scaler"] = scaler
    return Training(
        iteration=iteration if isinstance(iteration, int) else None,
        param_groups=groups.all(),
        state=state,
        framework={
            "name": "megatron",
            "version": str(root.get("checkpoint_version", "")),
            "args": to_json(root.get("args"), tensor=_tensor),
            "other": other,
            "rng_state": [to_json(item.get("rng_state"), tensor=_tensor) for item in per_rank],
        },
    )


def _scaler(optimizer: object) -> object:
    if isinstance(optimizer, dict) and "grad_scaler" in optimizer:
        return to_json(optimizer["grad_scaler"], tensor=_tensor)
    return None


def _tensor(ref: TensorRef) -> object:
    """A small tensor within training state, with its bytes."""
    import base64

    from reshard.storage.torch_file import read_small

    data = base64.b64encode(read_small(ref)).decode("ascii")
    return {"$tensor": {"dtype": str(ref.dtype), "shape": list(ref.shape), "data": data}}
