"""Runs in the interpreter with torch: loads a distributed checkpoint into a cut model and compares.

    PYTHON dcp_load.py JOB.json REPORT.json

JOB: `folder`, `truth`, `world` (0: no process group), `shard` (as in make_dcp.py), `names`,
`dtype`, `flat`, `tied`, `form` (`dcp`, `titan`, or `accelerate`), `reader` (None, or arguments of
ReshardReader), `shapes` (by name, instead of those of `names`), `groups` (whether matrices are one
of their own), `later` (steps to take then, after which the digest of all states is told).
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "fixtures" / "make"), str(HERE.parents[1] / "src")]

import torch  # noqa: E402
from dcp_model import ODD, add_odd_buffers, build, hf_names, titan_names, train  # noqa: E402
from make_dcp import _start_torch, accelerate_parts, shard  # noqa: E402
from ranks import run_on_ranks  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from torch.distributed import checkpoint  # noqa: E402
from torch.distributed.checkpoint import state_dict as tools  # noqa: E402
from torch.distributed.tensor import DTensor  # noqa: E402


def main() -> None:
    """Load and compare."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    truth = load_file(job["truth"])
    report = Path(sys.argv[2])

    def body(rank: int) -> None:
        model = cut_model(job)
        optimizer = train(model, groups=job.get("groups", job["names"] != "odd"), steps=1)
        spoil(model, optimizer)
        counters = load(model, optimizer, job)
        equal, different = compare(model, optimizer, truth)
        if "later" in job:
            counters["later"] = digest_after(model, optimizer, job["later"])
        if rank == 0:
            groups = [
                {"lr": g["lr"], "betas": g["betas"], "weight_decay": g["weight_decay"]}
                for g in optimizer.param_groups
            ]
            found = {"equal": equal, "different": different, "groups": groups, **counters}
            report.write_text(json.dumps(found), encoding="utf-8")

    if job["world"]:
        run_on_ranks(body, job["world"], init=_start_torch)
    else:
        body(0)


def cut_model(job: dict[str, Any]) -> Any:
    """A model of the job's sizes on the job's mesh."""
    shapes = {"hf": hf_names(), "titan": titan_names(), "odd": ODD}[job["names"]]
    if "shapes" in job:
        shapes = {name: tuple(shape) for name, shape in job["shapes"].items()}
    tied = "lm_head.weight" if job.get("tied") else ""
    if not job["world"]:
        return build(shapes, getattr(torch, job["dtype"]), tied=tied)
    case = SimpleNamespace(world=job["world"], shard=job["shard"], names=job["names"])
    return shard(build(shapes, getattr(torch, job["dtype"]), tied=tied), case, add_odd_buffers)


def spoil(model: Any, optimizer: Any) -> None:
    """Put something else into every tensor, so that nothing is equal by chance."""
    tensors = [*model.parameters(), *model.buffers()]
    tensors += [value for state in optimizer.state.values() for value in state.values()]
    with torch.no_grad():
        for tensor in tensors:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            local.fill_(3)


def load(model: Any, optimizer: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Load as the tools do; what else they want is given back."""
    options = tools.StateDictOptions(flatten_optimizer_state_dict=job["flat"])
    weights, states = tools.get_state_dict(model, optimizer, options=options)
    counters: dict[str, Any] = {}
    if job["form"] == "titan":
        schedule = {"last_epoch": -1}
        progress = {"step": -1, "ntokens_seen": -1}
        state = {**weights, "optimizer": states, "lr_scheduler": schedule, "train_state": progress}
        read(state, job)
        weights = {name: state[name] for name in weights}
        states = state["optimizer"]
        counters = {"last_epoch": state["lr_scheduler"]["last_epoch"], **state["train_state"]}
    elif job["form"] == "accelerate":
        from accelerate.utils.fsdp_utils import load_fsdp_model, load_fsdp_optimizer

        parts = accelerate_parts(job["world"])
        load_fsdp_model(*parts, model, job["folder"])
        load_fsdp_optimizer(*parts, optimizer, model, job["folder"])
        return counters
    else:
        state = {"model": weights, "optim": states}
        read(state, job)
        weights, states = state["model"], state["optim"]
    tools.set_state_dict(
        model, optimizer, model_state_dict=weights, optim_state_dict=states, options=options
    )
    return counters


def read(state: dict[str, Any], job: dict[str, Any]) -> None:
    """The call of torch's loader."""
    if job.get("reader") is None:
        checkpoint.load(state, checkpoint_id=job["folder"])
        return
    from reshard.torch import ReshardReader

    reader = ReshardReader(job["folder"], **job["reader"])
    checkpoint.load(state, storage_reader=reader)


def compare(model: Any, optimizer: Any, truth: dict[str, Any]) -> tuple[int, list[str]]:
    """How many tensors are bit-equal, and the keys of those that are not."""
    found = held(model, optimizer)
    different = sorted(set(truth).symmetric_difference(found))
    equal = 0
    for key in truth.keys() & found.keys():
        whole = found[key]
        if whole.dtype == truth[key].dtype and bits(whole) == bits(truth[key]):
            equal += 1
        else:
            different.append(key)
    return equal, sorted(different)


def held(model: Any, optimizer: Any) -> dict[str, Any]:
    """Every whole tensor of the running model and optimizer."""
    found = {}
    for name, parameter in model.named_parameters():
        found[f"param/{name}"] = parameter
        for kind, value in optimizer.state[parameter].items():
            found[f"{kind}/{name}"] = value
    found |= {f"buffer/{name}": buffer for name, buffer in model.named_buffers()}
    return {
        key: value.full_tensor() if isinstance(value, DTensor) else value.detach()
        for key, value in found.items()
    }


def digest_after(model: Any, optimizer: Any, steps: int) -> str:
    """The digest of every tensor after some more steps, whose gradients follow from the weights."""
    for step in range(steps):
        for parameter in model.parameters():
            parameter.grad = parameter.detach() * (0.5 + step) + 0.125
        optimizer.step()
        optimizer.zero_grad()
    digest = hashlib.sha256()
    for key, whole in sorted(held(model, optimizer).items()):
        digest.update(key.encode() + bits(whole))
    return digest.hexdigest()


def bits(tensor: Any) -> bytes:
    """The bytes of a tensor."""
    return bytes(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())


if __name__ == "__main__":
    main()
