"""What the runs of torchtitan and OLMo-core have in common: filling, stepping, comparing.

Not a test itself. Gradients follow from the weights, so a step does not depend on how they are cut.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Replicate

SAVED, LATER = 3, 2
"""Steps before the save, and after it."""


def start() -> None:
    """Make the process group."""
    torch.distributed.init_process_group("gloo")


def whole(tensor: Any) -> Any:
    """A copy of all of a tensor."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def fill(parameters: list[tuple[str, Any]]) -> None:
    """Put weights into a model that do not depend on how they are cut."""
    for index, (_, parameter) in enumerate(parameters):
        full = torch.arange(parameter.numel(), dtype=torch.float32) % 97 / 512 + 0.01 * index
        full = full.view(parameter.shape)
        with torch.no_grad():
            if isinstance(parameter, DTensor):
                mesh = parameter.device_mesh
                there = DTensor.from_local(full, mesh, [Replicate()] * mesh.ndim, run_check=False)
                cut = there.redistribute(placements=parameter.placements)
                parameter.to_local().copy_(cut.to_local())
            else:
                parameter.copy_(full)


def set_gradients(parameters: list[tuple[str, Any]], step: int) -> None:
    """Gradients of one step."""
    for _, parameter in parameters:
        parameter.grad = parameter.detach() * (0.25 + 0.125 * step) + 0.0625


def snapshot(parameters: list[tuple[str, Any]], optimizers: list[Any]) -> dict[str, Any]:
    """Every whole weight and state, and the settings of the groups."""
    found: dict[str, Any] = {f"param/{name}": whole(value) for name, value in parameters}
    names = {_address(value): name for name, value in parameters}
    for optimizer in optimizers:
        for parameter, states in optimizer.state.items():
            for state, value in states.items():
                kept = whole(value) if torch.is_tensor(value) else torch.tensor(float(value))
                found[f"{state}/{names[_address(parameter)]}"] = kept
    found["groups"] = [
        [[float(group[key]) for key in ("lr", "weight_decay", "eps")], list(group["betas"])]
        for optimizer in optimizers
        for group in optimizer.param_groups
    ]
    return found


def _address(parameter: Any) -> int:
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return int(local.data_ptr())


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """The keys of what is not equal bit for bit."""
    return [
        key
        for key in sorted({*found, *wanted})
        if key not in found or key not in wanted or not _same(found[key], wanted[key])
    ]


def _same(left: Any, right: Any) -> bool:
    if not torch.is_tensor(left):
        return bool(left == right)
    return left.dtype == right.dtype and torch.equal(left, right)


def keep(folder: Path, rank: int, now: dict[str, Any], later: dict[str, Any]) -> None:
    """Write what a run held at the save, and some steps later."""
    if rank == 0:
        torch.save({"now": now, "later": later}, folder / "truth.pt")


def report(path: Path, rank: int, truth: Path, *held: dict[str, Any]) -> None:
    """Write how much of what a resumed run holds is that of the run which saved."""
    known = torch.load(truth, weights_only=False)
    found: dict[str, Any] = {"compared": len(known["now"])}
    for label, state in zip(("now", "later"), held, strict=True):
        found[label] = differences(state, known[label])
    if rank == 0:
        path.write_text(json.dumps(found), encoding="utf-8")
