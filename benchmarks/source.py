"""Makes the checkpoint that the benchmark converts: ZeRO-1, bf16, 4 data parallel ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

MAKE = Path(__file__).resolve().parent.parent / "fixtures" / "make"
HIDDEN, INTERMEDIATE = 768, 2048


def llama_sizes(params: int) -> dict[str, int]:
    """Model sizes with about `params` parameters: 32000 words if they fit, else 1000."""
    per_layer = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN
    vocab = 32000 if params >= 2 * 32000 * HIDDEN + per_layer else 1000
    layers = max(1, round((params - 2 * vocab * HIDDEN - HIDDEN) / per_layer))
    return {
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
        "max_position_embeddings": 64,
    }


def make_source(work: Path, params: int, deepspeed_python: str) -> Path:
    """A checkpoint folder of a Llama with about `params` parameters, made by DeepSpeed itself.

    It trains one step on four processes, which takes some minutes and 20 bytes a parameter of disk
    under `work`.
    """
    like = json.loads((MAKE.parent / "z1_bf16_dp4_tied" / "case.json").read_text(encoding="utf-8"))
    changes = {"name": "benchmark", "sizes": llama_sizes(params), "steps": 1, "tied": False}
    described = work / "case.json"
    described.write_text(json.dumps(like | changes), encoding="utf-8")
    print(f"making a checkpoint of about {params / 1e6:.1f}M parameters", file=sys.stderr)
    done = subprocess.run(
        [deepspeed_python, str(MAKE / "make_case.py"), str(described), str(work / "source")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"DeepSpeed could not make the checkpoint:\n{done.stdout[-3000:]}")
    (work / "source" / "truth.safetensors").unlink()
    return work / "source" / "ckpt"
