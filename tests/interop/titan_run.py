"""A run of the real torchtitan on CPU ranks.  Not a test itself.

    PYTHON tests/interop/titan_run.py save OUT
    PYTHON tests/interop/titan_run.py resume RUN TRUTH.pt REPORT.json

with `--dp N --tp N --fused 0|1`.  `save` writes OUT/checkpoint/step-3 and OUT/truth.pt.  `resume`
loads the newest step in RUN with torchtitan's own checkpointer.
"""

from __future__ import annotations

import argparse
import sys
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures" / "make"))

from absent import stand_in
from ranks import run_on_ranks

stand_in("triton", "tyro")

import torch  # noqa: E402
import torch._utils  # noqa: E402

# With the stand-in of triton it would take the CPU for a GPU.
torch._utils._get_available_device_type = lambda: "cpu"  # type: ignore[attr-defined]

import torchtitan.models.llama3 as llama  # noqa: E402
import whole_run  # noqa: E402
from torchtitan.components.checkpointer import CheckpointManager  # noqa: E402
from torchtitan.components.optimizer import (  # noqa: E402
    LRSchedulersContainer,
    default_adamw,
)
from torchtitan.config import (  # noqa: E402
    CompileConfig,
    ParallelismConfig,
    TrainingConfig,
)
from torchtitan.distributed import ParallelDims  # noqa: E402

WIDTH, VOCABULARY = 32, 96


class _TrainerModule(types.ModuleType):
    """`torchtitan.trainer`: asked only whether a configuration is its own."""

    class Trainer:
        """Has a configuration."""

        class Config:
            """Which none of these is."""


sys.modules["torchtitan.trainer"] = _TrainerModule("torchtitan.trainer")


def llama_config(*, fused: bool) -> Any:
    """Two layers."""
    rope = llama.ComplexRoPE.Config(dim=8, max_seq_len=64, theta=500000, scaling="llama")
    return llama.Llama3Model.Config(
        dim=WIDTH,
        vocab_size=VOCABULARY,
        tok_embeddings=llama.Embedding.Config(
            num_embeddings=VOCABULARY, embedding_dim=WIDTH, param_init=llama._EMBEDDING_INIT
        ),
        norm=llama.RMSNorm.Config(normalized_shape=WIDTH, param_init=llama._NORM_INIT),
        lm_head=llama.Linear.Config(
            in_features=WIDTH, out_features=VOCABULARY, param_init=llama._output_linear_init(WIDTH)
        ),
        layers=llama._build_llama3_layers(
            fuse_qkv=fused,
            n_layers=2,
            dim=WIDTH,
            n_heads=4,
            n_kv_heads=2,
            hidden_dim=48,
            rope=rope,
            attn_backend="flex",
        ),
    )


class Progress:
    """torchtitan's `train_state`."""

    step = 0
    ntokens_seen = 0

    def state_dict(self) -> dict[str, int]:
        """What is saved."""
        return {"step": self.step, "ntokens_seen": self.ntokens_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """What was saved."""
        self.step, self.ntokens_seen = state["step"], state["ntokens_seen"]


class Data:
    """A data loader that has a state."""

    def state_dict(self) -> dict[str, Any]:
        """What is saved."""
        return {"dp_rank_0": b"loader", "world_size": 1}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """It is not asked."""


class Run:
    """The model, the optimizer, and torchtitan's checkpointer, of one rank."""

    def __init__(self, told: argparse.Namespace) -> None:
        parallelism = ParallelismConfig(
            data_parallel_shard_degree=told.dp,
            tensor_parallel_degree=told.tp,
            spmd_backend="full_dtensor",
        )
        sizes = ParallelDims.from_config(parallelism, told.dp * told.tp)
        sizes.build_mesh()
        config = llama_config(fused=bool(told.fused))
        config.update_from_config(config=types.SimpleNamespace(parallelism=parallelism))
        with torch.device("meta"):
            model = config.build()
        self.model = llama.parallelize_llama(
            model,
            parallel_dims=sizes,
            training=TrainingConfig(mixed_precision_param="float32", steps=100, dtype="float32"),
            parallelism=parallelism,
            compile_config=CompileConfig(enable=False),
            ac_config=None,
            dump_folder=str(told.folder),
        )
        self.model.to_empty(device="cpu")
        with torch.no_grad():
            self.model.init_weights(buffer_device=None)
        self.parameters = list(self.model.named_parameters())
        settings = default_adamw(lr=1e-2)
        settings.implementation = "for-loop"
        self.optimizer = settings.build(model_parts=[self.model])
        schedule = LRSchedulersContainer.Config(warmup_steps=4)
        self.schedule = schedule.build(optimizers=self.optimizer, training_steps=20)
        self.progress = Progress()
        kept = CheckpointManager.Config(
            enable=True,
            interval=whole_run.SAVED,
            last_save_model_only=False,
            exclude_from_loading=["dataloader"] if told.what == "resume" else [],
        )
        self.checkpointer = kept.build(
            dataloader=Data(),
            model_parts=[self.model],
            optimizers=self.optimizer,
            lr_schedulers=self.schedule,
            states={"train_state": self.progress},
            sd_adapter=None,
            base_folder=str(told.folder),
        )

    def train(self, steps: int) -> None:
        """Optimizer steps."""
        for _ in range(steps):
            whole_run.set_gradients(self.parameters, self.progress.step)
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
            self.progress.step += 1
            self.progress.ntokens_seen += 128

    def snapshot(self) -> dict[str, Any]:
        """All that the run holds."""
        found = whole_run.snapshot(self.parameters, list(self.optimizer))
        epoch = self.schedule.schedulers[0].last_epoch
        return found | {"progress": [self.progress.step, self.progress.ntokens_seen, epoch]}


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("save", "resume"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("truth", type=Path, nargs="?")
    parser.add_argument("report", type=Path, nargs="?")
    for axis in ("dp", "tp", "fused"):
        parser.add_argument(f"--{axis}", type=int, default=1)
    told = parser.parse_args()

    def body(rank: int) -> None:
        run = Run(told)
        if told.what == "save":
            whole_run.fill(run.parameters)
            run.train(whole_run.SAVED)
            now = run.snapshot()
            run.checkpointer.save(whole_run.SAVED, last_step=False)
            run.train(whole_run.LATER)
            whole_run.keep(told.folder, rank, now, run.snapshot())
            return
        run.checkpointer.folder = str(told.folder)
        assert run.checkpointer.load(), f"torchtitan found nothing in {told.folder}"
        now = run.snapshot()
        run.train(whole_run.LATER)
        whole_run.report(told.report, rank, told.truth, now, run.snapshot())

    run_on_ranks(body, told.dp * told.tp, init=whole_run.start)


if __name__ == "__main__":
    main()
