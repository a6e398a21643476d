"""Makes the distributed checkpoint that the benchmark converts: FSDP2 over 4 ranks, fp32, AdamW.

    PYTHON benchmarks/dcp_source.py OUT PARAMS

PYTHON has torch.  Nothing is trained: weights and states are filled with numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from source import llama_sizes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixtures" / "make"))

RANKS = 4


def names(params: int) -> dict[str, tuple[int, ...]]:
    """A Llama of about `params` parameters in the names of Hugging Face."""
    sizes = llama_sizes(params)
    hidden, ff, vocab = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden)}
    for layer in range(sizes["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for part in ("q", "k", "v", "o"):
            shapes[f"{at}.self_attn.{part}_proj.weight"] = (hidden, hidden)
        shapes |= {
            f"{at}.mlp.gate_proj.weight": (ff, hidden),
            f"{at}.mlp.up_proj.weight": (ff, hidden),
            f"{at}.mlp.down_proj.weight": (hidden, ff),
            f"{at}.input_layernorm.weight": (hidden,),
            f"{at}.post_attention_layernorm.weight": (hidden,),
        }
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocab, hidden)}


def main() -> None:
    """Write the checkpoint."""
    out, params = Path(sys.argv[1]).resolve(), int(float(sys.argv[2]))
    import torch
    from dcp_model import blocks, build, train
    from ranks import run_on_ranks  # sets the environment that torch reads
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def body(rank: int) -> None:
        module = build(names(params), torch.float32)
        mesh = init_device_mesh("cpu", (RANKS,))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        model, optim = get_state_dict(module, train(module, steps=1))
        checkpoint.save({"model": model, "optim": optim}, checkpoint_id=out)

    run_on_ranks(body, RANKS, init=lambda: torch.distributed.init_process_group("gloo"))


if __name__ == "__main__":
    main()
