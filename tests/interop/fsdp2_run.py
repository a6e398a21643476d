"""A Llama under FSDP2 that saves and loads its own state dicts by rank, as verl does.

usage: fsdp2_run.py OUT RANKS [FOLDER]

Without FOLDER it takes three steps and saves into OUT/ckpt, with the whole states in OUT/truth.pt.
With FOLDER it loads that, compares its states with those of OUT/truth.pt, and takes two steps.
Source of the calls: verl 0.9 utils/checkpoint/fsdp_checkpoint_manager.py.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM


def main(rank: int, ranks: int, out: Path, folder: Path | None, store: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=24,
        intermediate_size=37,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("fsdp",))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    named = dict(model.named_parameters())
    groups = [
        {"params": [p for name, p in named.items() if "norm" not in name], "weight_decay": 0.1},
        {"params": [p for name, p in named.items() if "norm" in name], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, foreach=False)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _decay)
    end = f"world_size_{ranks}_rank_{rank}.pt"
    if folder is None:
        _steps(model, optimizer, 3)
        scheduler.step()
        made = out / "ckpt"
        (made / "huggingface").mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), made / f"model_{end}")
        torch.save(optimizer.state_dict(), made / f"optim_{end}")
        torch.save({"lr_scheduler": scheduler.state_dict()}, made / f"extra_state_{end}")
        found = _whole(model, optimizer)
        if rank == 0:
            torch.save(found, out / "truth.pt")
            (made / "huggingface/config.json").write_text(json.dumps(config.to_dict()))
    else:
        model.load_state_dict(torch.load(folder / f"model_{end}", weights_only=False))
        optimizer.load_state_dict(torch.load(folder / f"optim_{end}", weights_only=False))
        extra = torch.load(folder / f"extra_state_{end}", weights_only=False)
        scheduler.load_state_dict(extra["lr_scheduler"])
        found, wanted = _whole(model, optimizer), torch.load(out / "truth.pt")
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
        _steps(model, optimizer, 2)
    dist.destroy_process_group()


def _decay(step: int) -> float:
    return 1 / (1 + step)


def _steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for index in range(count):
        for parameter in model.parameters():
            parameter.grad = parameter.detach() * (0.25 + index)
        optimizer.step()
        optimizer.zero_grad()


def _whole(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every state of every parameter, as state/name."""
    out = {}
    for name, parameter in model.named_parameters():
        states = {"param": parameter, **optimizer.state[parameter]}
        for state, value in states.items():
            whole = value.full_tensor() if isinstance(value, DTensor) else value
            out[f"{state}/{name}"] = whole.detach().clone()
    return out


if __name__ == "__main__":
    out, ranks = Path(sys.argv[1]), int(sys.argv[2])
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    out.mkdir(parents=True, exist_ok=True)
    store = out / f"store-{ranks}-{'load' if folder else 'save'}"
    mp.spawn(main, (ranks, out, folder, str(store)), nprocs=ranks)
