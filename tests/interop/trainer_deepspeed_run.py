"""A run of transformers' Trainer with DeepSpeed on CPU ranks.  Not a test itself.

    PYTHON tests/interop/trainer_deepspeed_run.py save OUT
    PYTHON tests/interop/trainer_deepspeed_run.py resume CHECKPOINT TRUTH.pt REPORT.json

with `--dp N --zero N --bf16`.  `save` writes OUT/checkpoint-3, trains to step 5, and writes
OUT/truth.pt.  `resume` lets the Trainer go on from a folder to step 5.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "fixtures" / "make"))

from ranks import run_on_ranks

SAVED, STEPS, ROWS, LENGTH, VOCABULARY = 3, 5, 12, 8, 64


def make_trainer(told: argparse.Namespace, folder: Path, callback: Any, seed: int) -> Any:
    """A Trainer of one rank that takes the same rows at any size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

    class InOrder(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return torch.utils.data.SequentialSampler(train_dataset or self.train_dataset)

    config = {
        "zero_optimization": {"stage": told.zero, "stage3_param_persistence_threshold": 30},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": told.bf16},
    }
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        deepspeed=config,
        per_device_train_batch_size=ROWS // told.dp,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=SAVED,
        logging_steps=1,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="linear",
        bf16=told.bf16,
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    generator = torch.Generator().manual_seed(3)
    rows = torch.randint(0, VOCABULARY, (STEPS * ROWS, LENGTH), generator=generator)
    torch.manual_seed(seed)
    sizes = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        attn_implementation="eager",
        use_cache=False,
    )
    return InOrder(
        model=LlamaForCausalLM(sizes),
        args=arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        callbacks=[callback],
    )


def watch(told: argparse.Namespace, folder: Path, seed: int, resume: Path | None) -> dict[str, Any]:
    """Let a Trainer run; its states when it saves or has loaded, and the losses."""
    from training import whole_states
    from transformers import TrainerCallback

    held: dict[str, Any] = {"losses": {}, "rates": {}}

    class Watch(TrainerCallback):
        trainer: Any = None

        def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == SAVED:
                held["states"] = whole_states(self.trainer.deepspeed)

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if resume is not None and state.global_step == SAVED:
                held["states"] = whole_states(self.trainer.deepspeed)

        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any
        ) -> None:
            if "loss" in logs:
                held["losses"][str(state.global_step)] = float(logs["loss"])
                held["rates"][str(state.global_step)] = logs["learning_rate"]

    callback = Watch()
    callback.trainer = make_trainer(told, folder, callback, seed)
    callback.trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return held


def main() -> None:
    """Do as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("save", "resume"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("truth", type=Path, nargs="?")
    parser.add_argument("report", type=Path, nargs="?")
    parser.add_argument("--dp", type=int, default=2)
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    told = parser.parse_args()

    def body(rank: int) -> None:
        import torch

        if told.what == "save":
            held = watch(told, told.folder, 7, None)
            if rank == 0:
                torch.save(held, told.folder / "truth.pt")
            return
        held = watch(told, told.report.parent / "more", 4242, told.folder)
        if rank == 0:
            truth = torch.load(told.truth, weights_only=False)
            known, found = truth.pop("states"), held.pop("states")
            different = [
                key
                for key in sorted({*known, *found})
                if key not in known or key not in found or not torch.equal(known[key], found[key])
            ]
            result = {"compared": len(known), "different": different, "truth": truth, "found": held}
            told.report.write_text(json.dumps(result), encoding="utf-8")

    run_on_ranks(body, told.dp)


if __name__ == "__main__":
    main()
