"""transformers' Trainer on the CPU: a run that saves after three steps, or one that goes on.

Usage: trainer_run.py MODEL OUT [CHECKPOINT]. Without a checkpoint: OUT/checkpoint-3 and the truth
of its states, OUT/truth.safetensors. With one: the states after five steps, OUT/end.safetensors.
"""

import sys

import torch
import transformers as tf
from safetensors.torch import save_file

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 11,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
CONFIGS = {
    "llama": lambda: tf.LlamaConfig(**SMALL, tie_word_embeddings=False),
    "qwen3": lambda: tf.Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=True),
    "gpt2": lambda: tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=32),
}


def main() -> None:
    kind, out, *checkpoint = sys.argv[1:]
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(CONFIGS[kind]())
    data = [{"input_ids": torch.arange(8), "labels": torch.arange(8)} for _ in range(12)]
    arguments = tf.TrainingArguments(
        out,
        max_steps=5 if checkpoint else 3,
        save_steps=3,
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        learning_rate=1e-2,
        weight_decay=0.1,
        disable_tqdm=True,
    )
    trainer = tf.Trainer(model, arguments, train_dataset=data)
    trainer.train(resume_from_checkpoint=checkpoint[0] if checkpoint else None)
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    held = {}
    for name, parameter in model.named_parameters():
        held[f"param/{name}"] = parameter.detach().clone().contiguous()
        for key, value in optimizer.state[parameter].items():
            held[f"{key}/{name}"] = value.detach().clone().contiguous()
    save_file(held, f"{out}/{'end' if checkpoint else 'truth'}.safetensors")


if __name__ == "__main__":
    main()
