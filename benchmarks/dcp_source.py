"""Makes the distributed checkpoint that the benchmark converts: FSDP2 over 4 ranks, fp32, AdamW.

    PYTHON benchmarks/dcp_source.py OUT LAYERS

PYTHON has torch.  Nothing is trained: weights and states are filled with numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

from synthetic import Model

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "fixtures" / "make"))

RANKS = 4


def main() -> None:
    """Write the checkpoint."""
    out, model = Path(sys.argv[1]).resolve(), Model(int(sys.argv[2]))
    import torch
    from dcp_model import blocks, build, train
    from ranks import run_on_ranks  # sets the environment that torch reads
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    def body(rank: int) -> None:
        module = build(dict(model.tensors()), torch.float32)
        mesh = init_device_mesh("cpu", (RANKS,))
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        weights, states = get_state_dict(module, train(module, steps=1))
        checkpoint.save({"model": weights, "optim": states}, checkpoint_id=out)

    run_on_ranks(body, RANKS, init=lambda: torch.distributed.init_process_group("gloo"))


if __name__ == "__main__":
    main()
