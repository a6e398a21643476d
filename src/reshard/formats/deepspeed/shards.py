"""All optimizer files of a checkpoint."""

from __future__ import annotations

from reshard.errors import source_error
from reshard.formats.deepspeed.files import Files
from reshard.formats.deepspeed.folder import Folder, Rank
from reshard.formats.deepspeed.grid import Grid
from reshard.formats.deepspeed.node import Node
from reshard.formats.deepspeed.shard import Shard
from reshard.formats.deepspeed.shard_zero3 import read_zero3
from reshard.formats.deepspeed.shard_zero12 import read_zero12


def read_shards(files: Files, folder: Folder, grid: Grid) -> dict[Rank, Shard]:
    """Every rank's optimizer file.

    Raises: ReshardError[unknown-zero-stage | mixed-runs | missing-key | unexpected-content].
    """
    out: dict[Rank, Shard] = {}
    for rank, name in folder.optimizers.items():
        shard = read_shard(files.root_of(name))
        stage = grid.stage(rank[1])  # each has an optimizer of its own, and groups
        first = next((out[known] for known in out if grid.stage(known[1]) == stage), shard)
        if shard.stage != first.stage or len(shard.groups) != len(first.groups):
            raise source_error(
                "mixed-runs",
                f"{first.file} and {shard.file} are not of one run",
                notes=[
                    f"ZeRO stage {first.stage} and {len(first.groups)} groups in the one, "
                    f"stage {shard.stage} and {len(shard.groups)} groups in the other"
                ],
                helps=["copy the files of one run into a folder of their own and convert that"],
            )
        out[rank] = shard
    return out


def read_shard(root: Node) -> Shard:
    """One optimizer file."""
    optimizer = root.at("optimizer_state_dict")
    stated = optimizer.get("zero_stage")
    if stated is not None:
        stage = stated.integer()
    else:
        stage = 3 if optimizer.has("fp32_flat_groups") else 1  # BF16_Optimizer does not say
    if stage == 3 and optimizer.has("fp32_flat_groups"):
        return read_zero3(root, optimizer)
    if stage in (1, 2) and optimizer.has("single_partition_of_fp32_groups"):
        return read_zero12(root, optimizer, stage)
    keys = ", ".join(f"`{key}`" for key in list(optimizer.mapping())[:12])
    raise source_error(
        "unknown-zero-stage",
        f"{root.file} holds optimizer states of ZeRO stage {stage} in an unknown form",
        notes=[
            f"its `optimizer_state_dict` has {keys}",
            "stages 1 and 2 have `single_partition_of_fp32_groups`, stage 3 `fp32_flat_groups`",
        ],
        helps=["load the checkpoint with its DeepSpeed and save it with a version from 0.4 on"],
    )
