"""A run of the real OLMo-core on CPU ranks.  Not a test itself.

    PYTHON tests/interop/olmo_run.py save OUT
    PYTHON tests/interop/olmo_run.py resume STEP TRUTH.pt REPORT.json

with `--dp fsdp|hsdp|ddp`, `--world N`, `--flat 0|1`.  `save` writes OUT/step3 and OUT/truth.pt with
OLMo-core's own checkpointer; `resume` loads a step's folder with it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures" / "make"))

from absent import stand_in
from ranks import run_on_ranks

stand_in("google", "cached_path", "boto3", "botocore", "dill", "requests")
os.environ["OLMO_NUM_THREADS"] = "1"
os.environ["OLMO_TRITON_CACHE_BASE"] = f"{tempfile.gettempdir()}/olmo-triton"

import cached_path  # noqa: E402

cached_path.cached_path = lambda path, **options: Path(path)  # what is on a disk is where it is

import torch  # noqa: E402
import whole_run  # noqa: E402
from olmo_core.distributed.parallel import DataParallelType  # noqa: E402
from olmo_core.nn.attention import AttentionBackendName  # noqa: E402
from olmo_core.nn.transformer import TransformerConfig  # noqa: E402
from olmo_core.nn.transformer.config import TransformerBlockType  # noqa: E402
from olmo_core.optim import AdamWConfig, OptimGroupOverride  # noqa: E402
from olmo_core.train.checkpoint import Checkpointer  # noqa: E402
from olmo_core.train.train_module import TransformerTrainModuleConfig  # noqa: E402
from olmo_core.train.train_module.transformer import (  # noqa: E402
    TransformerDataParallelConfig,
)

VOCABULARY = 99
TRAINER = {
    "global_step": whole_run.SAVED,
    "global_train_tokens_seen": 768,
    "global_train_petaflops": 0.5,
    "max_steps": 100,
    "data_loader": {"dataset_type": "fsl", "epoch": 1, "tokens_processed": 768},
    "epoch": 1,
    "rng": {},
    "callbacks": {},
}


class Run:
    """The train module and the checkpointer of one rank."""

    def __init__(self, told: argparse.Namespace, folder: Path) -> None:
        self.config = TransformerConfig.llama_like(
            vocab_size=VOCABULARY,
            d_model=32,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            hidden_size_multiple_of=8,
            attn_backend=AttentionBackendName.torch,
            block_name=TransformerBlockType.reordered_norm,
            qk_norm=True,
            layer_norm_eps=1e-6,
        )
        embedding = OptimGroupOverride(params=["embeddings.weight"], opts={"weight_decay": 0.0})
        kind = TransformerDataParallelConfig(
            name=DataParallelType[told.dp], num_replicas=2 if told.dp == "hsdp" else None
        )
        self.module = TransformerTrainModuleConfig(
            rank_microbatch_size=64,
            max_sequence_length=16,
            optim=AdamWConfig(
                lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), group_overrides=[embedding]
            ),
            compile_model=False,
            dp_config=kind,
            state_dict_save_opts={
                "flatten_optimizer_state_dict": bool(told.flat),
                "cpu_offload": True,
            },
            max_grad_norm=None,
        ).build(self.config.build(init_device="meta"), device=torch.device("cpu"))
        self.parameters = [
            (name.replace("module.", ""), parameter)
            for name, parameter in self.module.model.named_parameters()
        ]
        self.checkpointer = Checkpointer(work_dir=folder / "work", save_overwrite=True)
        self.steps = 0

    def train(self, steps: int) -> None:
        """Optimizer steps."""
        for _ in range(steps):
            whole_run.set_gradients(self.parameters, self.steps)
            self.module.optim.step()
            self.module.optim.zero_grad()
            self.steps += 1

    def snapshot(self) -> dict[str, Any]:
        """All that the run holds."""
        return whole_run.snapshot(self.parameters, [self.module.optim])


def save(told: argparse.Namespace, rank: int) -> None:
    """Train, save, train on."""
    run = Run(told, told.folder)
    whole_run.fill(run.parameters)
    run.train(whole_run.SAVED)
    now = run.snapshot()
    step = told.folder / f"step{whole_run.SAVED}"
    run.checkpointer.save(str(step), run.module, TRAINER | {"world_size": told.world})
    if rank == 0:  # as the callback does that saves the configuration
        config = {"model": run.config.as_config_dict()}
        (step / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run.train(whole_run.LATER)
    whole_run.keep(told.folder, rank, now, run.snapshot())


def resume(told: argparse.Namespace, rank: int) -> None:
    """Load, and train on."""
    run = Run(told, told.report.parent)
    trainer = run.checkpointer.load(str(told.folder), run.module)
    assert trainer is not None
    assert trainer["global_step"] == whole_run.SAVED
    run.steps = whole_run.SAVED
    now = run.snapshot()
    run.train(whole_run.LATER)
    whole_run.report(told.report, rank, told.truth, now, run.snapshot())


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("save", "resume"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("truth", type=Path, nargs="?")
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("--dp", default="fsdp")
    parser.add_argument("--world", type=int, default=2)
    parser.add_argument("--flat", type=int, default=1)
    told = parser.parse_args()
    act = save if told.what == "save" else resume
    run_on_ranks(lambda rank: act(told, rank), told.world, init=whole_run.start)


if __name__ == "__main__":
    main()
