"""Resumes a small run of DeepSpeed with any optimizer.  Not a test itself.

    PYTHON tests/interop/small_run.py TRUTH FOLDER REPORT.json OPTIMIZER ZERO DP

The model is that of the cases `run_*` of fixtures/, from other weights, so that nothing can look
restored by luck.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures" / "make"))

from ranks import run_on_ranks

VOCABULARY, WIDTH, ROWS, STEPS = 23, 12, 8, 3
MUON = ("blocks.0.up", "blocks.1.up", "emb", "head", "blocks.0.down", "blocks.1.down")
"""The order in which that run gave its matrices to the optimizer."""


def model() -> Any:
    """Two blocks between an embedding and a head."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(WIDTH)
            self.up = nn.Linear(WIDTH, 2 * WIDTH + 1)
            self.down = nn.Linear(2 * WIDTH + 1, WIDTH)

        def forward(self, x: Any) -> Any:
            return x + self.down(nn.functional.gelu(self.up(self.norm(x))))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = nn.Embedding(VOCABULARY, WIDTH)
            self.blocks = nn.ModuleList([Block(), Block()])
            self.fin = nn.LayerNorm(WIDTH)
            self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
            self.register_buffer("seen", torch.arange(5, dtype=torch.float32))

        def forward(self, ids: Any) -> Any:
            x = self.emb(ids)
            for block in self.blocks:
                x = block(x)
            logits = self.head(self.fin(x))[:, :-1].reshape(-1, VOCABULARY)
            return nn.functional.cross_entropy(logits, ids[:, 1:].reshape(-1))

    torch.manual_seed(4242)
    return Model()


def build(optimizer: str, zero: int, dp: int) -> Any:
    """An engine of DeepSpeed."""
    import deepspeed
    import torch

    settings: dict[str, Any] = {"stage": zero}
    if zero == 3:
        settings |= {"stage3_param_persistence_threshold": 30, "reduce_scatter": False}
    config: dict[str, Any] = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": ROWS // dp,
        "gradient_clipping": 1.0,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": settings,
    }
    made = model()
    named = dict(made.named_parameters())
    matrices = [p for p in named.values() if p.ndim > 1]
    vectors = [p for p in named.values() if p.ndim == 1]
    if optimizer == "muon":
        for parameter in named.values():
            parameter.use_muon = parameter.ndim > 1
        config["optimizer"] = {"type": "muon", "params": {"lr": 0.01, "momentum": 0.9}}
        ordered = [*(named[f"{name}.weight"] for name in MUON), *vectors]
        return deepspeed.initialize(model=made, model_parameters=ordered, config=config)[0]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    make = {"nadam": torch.optim.NAdam, "adamw": torch.optim.AdamW}[optimizer]
    return deepspeed.initialize(model=made, optimizer=make(groups, lr=0.01), config=config)[0]


def restored(engine: Any) -> dict[str, Any]:
    """Every whole tensor that the live engine has, by DeepSpeed's own accessors."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    flat = engine.optimizer
    if hasattr(flat, "_lazy_init_hp_params_optimizer_state"):
        flat._hp_optimizer_states_linked = False  # links the first group's states alone
        flat._lazy_init_hp_params_optimizer_state()
    out = {}
    for name, parameter in engine.module.named_parameters():
        if hasattr(parameter, "ds_id"):
            with deepspeed.zero.GatheredParameters([parameter]):
                out[f"{name}/lp"] = parameter.detach().clone()
        else:
            out[f"{name}/lp"] = parameter.detach().clone()
        out[f"{name}/master"] = safe_get_full_fp32_param(parameter).detach().clone()
        if not getattr(parameter, "use_muon", False):
            for state in ("exp_avg", "exp_avg_sq"):
                whole = safe_get_full_optimizer_state(parameter, state)
                out[f"{name}/{state}"] = whole.detach().clone()
    return out


def main() -> None:
    """Resume as the command line says."""
    truth_file, folder, report, optimizer, zero, dp = sys.argv[1:]
    import torch
    import torch.distributed as group
    from safetensors.torch import load_file

    truth = load_file(truth_file)
    size = int(dp)

    def body(rank: int) -> None:
        engine = build(optimizer, int(zero), size)
        path, _ = engine.load_checkpoint(folder)
        if path is None:
            raise SystemExit(f"DeepSpeed found no checkpoint in {folder}")
        found = restored(engine)
        different = [
            key
            for key, whole in found.items()
            if not torch.equal(whole.reshape(-1), truth[key].reshape(-1))
        ]
        states = engine.optimizer.optimizer.state.values()
        numbers = {k: float(v) for s in states for k, v in s.items() if getattr(v, "ndim", 0) == 0}
        losses = []
        for step in range(STEPS, STEPS + 2):
            generator = torch.Generator().manual_seed(1000 + step)
            ids = torch.randint(0, VOCABULARY, (ROWS, 6), generator=generator)
            own = ROWS // size
            loss = engine(ids[rank * own : (rank + 1) * own])
            engine.backward(loss)
            engine.step()
            whole = loss.detach().clone().reshape(1)
            group.all_reduce(whole)
            losses.append(float(whole) / size)
        if rank == 0:
            result = {
                "equal": len(found) - len(different),
                "different": different,
                "numbers": numbers,
                "losses": losses,
            }
            Path(report).write_text(json.dumps(result), encoding="utf-8")
        group.barrier()

    run_on_ranks(body, size, seconds=600)


if __name__ == "__main__":
    main()
